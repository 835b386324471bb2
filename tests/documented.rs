//! The commands of `docs/walg.md` and `docs/leaving.md`, each run once as it is written, on a real server. The kind: a command
//! that parses and does not do what its page says, because an option, an order or another program has changed.

use crate::common::process::Run;
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use std::fs;
use std::path::PathBuf;

topic! {
    once commands_for_users_of_wal_g_run,
    once commands_of_leaving_run,
}

const WAL_G: &str = include_str!("../docs/walg.md");
const LEAVING: &str = include_str!("../docs/leaving.md");

/// A site whose shell finds this program as `barmanfs`, with its configuration.
struct Shell<'a> {
    site: &'a Site,
    install: &'static Install,
}

impl Shell<'_> {
    fn new<'a>(site: &'a Site, install: &'static Install) -> Shell<'a> {
        site.make_directory("bin");
        site.make_directory("srv");
        let program = format!(
            "#!/bin/sh\nexec '{}' -c '{}' \"$@\"\n",
            site.program().display(),
            site.config().display()
        );
        site.write_file("bin/barmanfs", program.as_bytes());
        // The other host is this one.
        site.write_file("bin/ssh", b"#!/bin/sh\nshift\nexec sh -c \"$*\"\n");
        site.sh(&format!("chmod +x '{}'/*", site.path("bin").display()))
            .ok();
        Shell { site, install }
    }

    fn run(&self, line: &str) -> Run {
        let path = format!(
            "{}:{}:$PATH",
            self.site.path("bin").display(),
            self.install.bindir.display()
        );
        println!("{line}");
        self.site.sh(&format!("PATH=\"{path}\"; umask 077; {line}"))
    }

    fn srv(&self, name: &str) -> PathBuf {
        self.site.path("srv").join(name)
    }
}

/// A server with a tablespace, a backup and WAL behind it.
fn site_with_tablespace(install: &'static Install) -> (Site, PgServer) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let space = site.make_directory("space");
    server.query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    server.query("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 100) n");
    (site, server)
}

/// The commands between backticks.
fn commands(page: &str) -> Vec<String> {
    let marked = page.split('`').skip(1).step_by(2);
    let commands = marked.filter(|text| text.starts_with("barmanfs ") || text.starts_with("cp -a "));
    commands.map(|text| text.replace('\n', " ")).collect()
}

/// What has a test of its own, because it does not end, or needs what this site has not.
fn is_elsewhere(command: &str) -> bool {
    [
        // No end: tests/receive_wal.rs. All that a cron does: tests/cron.rs.
        "barmanfs receive-wal main",
        "barmanfs cron",
        // Another host: tests/over_ssh.rs.
        "barmanfs wal-archive --remote ",
        "barmanfs wal-restore ",
        // A directory that fell behind: tests/catchup.rs. A storage of WAL-G: tests/import_walg.rs.
        "barmanfs catchup ",
        "barmanfs import main --walg ",
        // Only their names: each has its line elsewhere.
        "barmanfs export",
        "barmanfs metrics",
    ]
    .iter()
    .any(|begin| command.starts_with(begin))
}

fn commands_for_users_of_wal_g_run(install: &'static Install) {
    let (site, server) = site_with_tablespace(install);
    let lines = format!(
        "immediate_checkpoint = on\npath_prefix = {}\n",
        install.bindir.display()
    );
    site.write_config_of(&server, &lines);
    let shell = Shell::new(&site, install);
    site.backup();
    let mount = Mount::new(&site);
    let moment = server.query("SELECT now()");
    server.query("CREATE TABLE later AS SELECT 1 n");
    let segment = server.archive_current_segment();
    // The server removes its own.
    let own = site.make_directory("wal").join(&segment);
    site.ok(&["get-wal", "main", &segment, own.to_str().unwrap()]);
    let mut commands = commands(WAL_G);
    commands.retain(|command| !is_elsewhere(command));
    // Nothing is left behind it.
    commands.sort_by_key(|command| command.contains("--all --force"));
    assert!(commands.len() >= 25, "{commands:?}");
    for (number, command) in commands.iter().enumerate() {
        let ids = site.backup_ids();
        let (Some(oldest), Some(newest)) = (ids.first(), ids.last()) else {
            panic!("nothing is left before {command}")
        };
        let target = site.path(&format!("srv/{number}"));
        let chosen = match command.starts_with("barmanfs wal-archive") {
            true => command.replace("%p", &own.display().to_string()),
            false => command.replace("%p", &target.display().to_string()),
        };
        // A place that is named and not chosen is made empty.
        let _ = fs::remove_dir_all(shell.srv("fast"));
        let chosen = chosen
            .replace("%f", &segment)
            .replace("/mnt/backups", &mount.text())
            .replace("/srv/fast", &shell.srv("fast").display().to_string());
        let words = chosen.split(' ').map(|word| match word {
            "NAME" => newest.clone(),
            "DIR" => target.display().to_string(),
            "N" => "3".to_owned(),
            "X" if command.contains("--target") => ids.get(1).unwrap_or(oldest).clone(),
            "X" => oldest.clone(),
            "TIME" => format!("'{moment}'"),
            word => word.to_owned(),
        });
        let line = words.collect::<Vec<_>>().join(" ");
        let run = shell.run(&line);
        match command.as_str() {
            // They find what this site lacks, and say so.
            "barmanfs check main" => drop(run.says(&["PostgreSQL: OK"])),
            _ => drop(run.ok()),
        }
        let restores = command.contains(" DIR");
        assert!(!restores || target.join("PG_VERSION").exists(), "{line}");
        if command.contains("clone create") {
            site.ok(&["clone", "destroy", "main", "one", "--stop"]);
        }
    }
    assert_eq!(site.backup_ids(), [""; 0], "'delete --all --force' is among them");
}

/// The lines of the blocks for a shell, without comments and what is to be typed elsewhere.
fn shell_lines(page: &str) -> Vec<&str> {
    let blocks = page.split("```sh\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split_once("```"));
    let lines = blocks.flat_map(|(block, _)| block.lines());
    let lines = lines.map(|line| line.split("  #").next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).collect()
}

fn commands_of_leaving_run(install: &'static Install) {
    let (site, server) = site_with_tablespace(install);
    let shell = Shell::new(&site, install);
    let id = site.backup();
    let segment = server.archive_current_segment();
    let mount = Mount::new(&site);
    for directory in ["srv/wal", "srv/handover", "srv/barman"] {
        site.make_directory(directory);
    }
    let lines = shell_lines(LEAVING);
    assert!(lines.len() >= 20, "{lines:?}");
    for line in lines {
        // Barman's own commands run in tests/export.rs, the reader's in tools/test_read_pack.py.
        let is_elsewhere = ["barman ", "pip ", "python3 ", "barmanfs mount "];
        if is_elsewhere.iter().any(|begin| line.starts_with(begin)) {
            continue;
        }
        // Each way begins with an empty place, except where a line goes on with what the one before it has made.
        if ["barmanfs export", "cp -a", "mkdir"]
            .iter()
            .any(|begin| line.starts_with(begin))
        {
            let _ = fs::remove_dir_all(shell.srv("data"));
            let _ = fs::remove_dir_all(shell.srv("fast"));
        }
        let mut line = line
            .replace("/mnt/backups", &mount.text())
            .replace("/srv/", &format!("{}/", site.path("srv").display()))
            .replace("/var/lib/barman", &shell.srv("barman").display().to_string())
            .replace("20261120T101500", &id)
            .replace("0000000100000000000000A1", &segment);
        // A server with tablespaces elsewhere cannot go through a pipe.
        if line.contains(" - ") {
            server.query("DROP TABLE there");
            server.query("DROP TABLESPACE fast");
            site.backup();
        }
        // Barman makes it when it is started.
        if line.contains("/main/incoming/") {
            site.make_directory("srv/barman/main/incoming");
        }
        if line.starts_with("pg_verifybackup ") && line.contains("/tars") {
            if install.major < 18 {
                continue;
            }
            line += if install.major == 18 { " -n" } else { "" };
        }
        shell.run(&line).ok();
        let data = shell.srv("data");
        let is_made = data.join("PG_VERSION").exists();
        assert!(
            is_made || line.starts_with("mkdir ") || !line.contains(data.to_str().unwrap()),
            "{line}"
        );
    }
    for made in ["raw/PG_VERSION", "barman/main/identity.json"] {
        assert!(shell.srv(made).exists(), "{made}");
    }
    assert!(shell.srv("wal").join(&segment).exists());
    assert_eq!(site.list(&shell.srv("handover")).len(), 1);
}
