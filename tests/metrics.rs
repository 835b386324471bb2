//! `barmanfs metrics`: Prometheus reads it, it says what is so, and a dead server does not hold it up.

use crate::common::load::fill;
use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::user::own_command;
use crate::common::{Install, Mount, Site};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;
use std::time::{Duration, Instant};

topic! {
    once metrics_say_what_is_stored_and_what_would_be_lost,
    once metrics_do_not_wait_for_a_dead_server,
    alone metrics_of_a_missing_repository_say_so,
}

/// The samples by name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect(line);
            (name.to_owned(), value.parse().expect(line))
        })
        .collect()
}

/// What the command prints, to the last line break.
#[track_caller]
fn printed(site: &Site, words: &[&str]) -> String {
    let run = site.barmanfs(words).ok();
    String::from_utf8(run.stdout).expect("text")
}

/// Prometheus' own tool, where it is installed.
#[track_caller]
fn assert_promtool_agrees(site: &Site, text: &str) {
    let mut tool = own_command("promtool", &site.path(""));
    let spawned = tool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut tool = match spawned {
        Ok(tool) => tool,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "promtool is missing: {error}");
            return;
        }
    };
    let mut input = tool.stdin.take().expect("a pipe");
    input
        .write_all(text.as_bytes())
        .expect("Cannot write to promtool");
    drop(input);
    let output = tool.wait_with_output().expect("Cannot wait for promtool");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success() && said.is_empty(),
        "promtool: {said}\n{text}"
    );
}

fn metrics_say_what_is_stored_and_what_would_be_lost(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    let without_backup = printed(&site, &["metrics"]);
    assert_promtool_agrees(&site, &without_backup);
    let nothing = samples(&without_backup);
    assert_eq!(nothing["barmanfs_rpo_seconds{server=\"main\"}"], f64::INFINITY);
    assert_eq!(nothing["barmanfs_rpo_known{server=\"main\"}"], 1.0);
    fill(&server, 1);
    server.archive_current_segment();
    site.backup();
    server.archive_current_segment();
    site.write_config_of(&server, "backup_schedule = 0 2 * * *\n");
    site.ok(&["cron"]);
    let mount = Mount::new(&site);
    site.ok(&["clone", "create", "main", "test1"]);

    let text = printed(&site, &["metrics", "main"]);
    assert_promtool_agrees(&site, &text);
    let found = samples(&text);
    let of = |name: &str| *found.get(name).unwrap_or_else(|| panic!("No {name}: {text}"));
    let main = |name: &str| of(&format!("barmanfs_{name}{{server=\"main\"}}"));
    let backup = site.backups().remove(0);
    let seconds = |key: &str| backup[key].as_f64().expect(key);
    assert_eq!(main("up"), 1.0);
    assert_eq!(
        main("last_backup_size_bytes"),
        backup["logical_bytes"].as_f64().unwrap()
    );
    assert_eq!(
        main("last_backup_end_timestamp_seconds"),
        seconds("end_time_epoch")
    );
    assert_eq!(
        main("first_backup_end_timestamp_seconds"),
        seconds("end_time_epoch")
    );
    let took = seconds("end_time_epoch") - seconds("begin_time_epoch");
    assert!(
        (main("last_backup_duration_seconds") - took).abs() < 0.01,
        "{text}"
    );
    assert_eq!(of("barmanfs_backups{server=\"main\",status=\"done\"}"), 1.0);
    assert_eq!(
        of("barmanfs_check_status{check=\"WAL without gaps\",server=\"main\"}"),
        0.0
    );
    for name in ["wal_gaps", "quarantined_wal_files", "damaged_backups"] {
        assert_eq!(main(name), 0.0, "{name}: {text}");
    }
    let measured = of("barmanfs_measured_timestamp_seconds");
    for ran_at in [
        main("cron_last_run_timestamp_seconds"),
        of("barmanfs_cron_last_run_timestamp_seconds{server=\"\"}"),
    ] {
        assert!((measured - 60.0..=measured).contains(&ran_at), "{ran_at}: {text}");
    }
    assert_eq!(main("clones"), 1.0);
    assert_eq!(of("barmanfs_repository_up"), 1.0);
    assert!(of("barmanfs_repository_dedup_ratio") > 1.0, "{text}");
    let stats = site.json(&["stats"]);
    assert_eq!(
        of("barmanfs_repository_pack_bytes"),
        stats["pack_bytes"].as_f64().unwrap()
    );
    assert_eq!(of("barmanfs_mounts"), 1.0);
    assert_eq!(of("barmanfs_check_status{check=\"free space\",server=\"\"}"), 0.0);
    let point = mount.path("").display().to_string();
    let point = point.trim_end_matches('/');
    let of_mount = |found: &BTreeMap<String, f64>, name: &str, more: &str| {
        let name = format!("barmanfs_mount_{name}{{mount=\"{point}\"{more}}}");
        *found.get(&name).unwrap_or_else(|| panic!("No {name}: {found:?}"))
    };
    let control = mount.path("main/latest/global/pg_control");
    site.sh(&format!("cat '{}' >/dev/null", control.display())).ok();
    let later = samples(&printed(&site, &["metrics", "main"]));
    let read = of_mount(&later, "read_bytes_total", "");
    assert!(
        read >= of_mount(&found, "read_bytes_total", "") + 8192.0,
        "{read}"
    );
    assert!(of_mount(&later, "requests_total", ",request=\"read\"") > 0.0);
    assert!(of_mount(&later, "chunks_decoded_total", "") > 0.0);

    // The server may commit by itself at any time.
    until("nothing would be lost", || {
        // This does not commit anything behind the switch.
        server.query("SELECT pg_switch_wal()");
        let found = samples(&printed(&site, &["metrics"]));
        found["barmanfs_rpo_seconds{server=\"main\"}"] == 0.0
            && found["barmanfs_rpo_bytes{server=\"main\"}"] == 0.0
    });
    // A commit that has not arrived would be lost.
    server.query("CREATE TABLE lost (n int)");
    until("the commit is a second old", || {
        let found = samples(&printed(&site, &["metrics"]));
        found["barmanfs_rpo_seconds{server=\"main\"}"] > 1.0
            && found["barmanfs_rpo_bytes{server=\"main\"}"] > 0.0
    });
    mount.unmount();
}

fn metrics_do_not_wait_for_a_dead_server(install: &'static Install) {
    let (site, mut server) = Site::with_server(install);
    server.archive_current_segment();
    site.backup();
    server.stop("fast");
    let silent = TcpListener::bind("127.0.0.1:0").expect("Cannot listen");
    let port = silent.local_addr().expect("an address").port();
    let conninfo = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=disable");
    let mut config = format!(
        "[barmanfs]\nrepository = {}\ncheck_timeout = 2\n",
        site.repository().display()
    );
    for name in ["main", "b", "c", "d", "e", "f", "g", "h"] {
        config += &format!("\n[{name}]\nconninfo = {conninfo}\n");
    }
    site.write_file("barmanfs.conf", config.as_bytes());
    let directory = site.make_directory("textfiles");
    let file = directory.join("barmanfs.prom");
    let began = Instant::now();
    let output = file.display().to_string();
    assert_eq!(printed(&site, &["metrics", "--output", &output]), "");
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    let text = std::fs::read_to_string(&file).expect("the file");
    assert_promtool_agrees(&site, &text);
    let found = samples(&text);
    assert_eq!(found["barmanfs_up{server=\"main\"}"], 0.0);
    assert_eq!(found["barmanfs_up{server=\"h\"}"], 0.0);
    assert_eq!(found["barmanfs_backups{server=\"main\",status=\"done\"}"], 1.0);
    assert_eq!(
        found["barmanfs_check_status{check=\"check timeout\",server=\"main\"}"],
        2.0
    );
    assert!(
        !found.contains_key("barmanfs_rpo_seconds{server=\"main\"}"),
        "{text}"
    );
    assert_eq!(found["barmanfs_rpo_known{server=\"main\"}"], 0.0);

    // A reader never sees a part: the file is another one, and nothing is left beside it.
    let metadata = std::fs::metadata(&file).expect("the file");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o644);
    site.ok(&["metrics", "h", "--output", &output]);
    let replaced = std::fs::metadata(&file).expect("the file");
    assert_ne!(metadata.ino(), replaced.ino());
    assert_eq!(site.list(&directory), ["barmanfs.prom"]);
    site.barmanfs(&["metrics", "h", "--output", "/nowhere/barmanfs.prom"])
        .refused(1)
        .says(&["Cannot write /nowhere/barmanfs.prom"]);
}

fn metrics_of_a_missing_repository_say_so() {
    let site = Site::new();
    site.write_config_with(&[("main", "host=/nowhere user=postgres")]);
    let text = printed(&site, &["metrics"]);
    let found = samples(&text);
    assert_eq!(found["barmanfs_repository_up"], 0.0, "{text}");
    assert_eq!(found["barmanfs_up{server=\"main\"}"], 0.0);
    assert_eq!(
        found["barmanfs_check_status{check=\"repository\",server=\"main\"}"],
        2.0
    );
}
