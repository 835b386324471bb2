//! `barmanfs export`: the formats of other programs, judged by these programs: `pg_verifybackup`, PostgreSQL, Barman.

use crate::common::disk::SmallDisk;
use crate::common::load::{assert_sums_agree, fill, transact, transactions};
use crate::common::process::{Run, run, until};
use crate::common::registry::topic;
use crate::common::standby::{catch_up, standby_of};
use crate::common::tree::differences;
use crate::common::{Install, Mount, PgServer, Site};
use crate::over_ssh::barman_of_everybody;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

topic! {
    since_17 the_formats_of_pg_basebackup_verify_and_start,
    once barman_imports_the_tarball_and_restores_it,
    once barman_works_with_an_exported_home,
    once a_backup_of_a_standby_brings_its_own_wal,
    once nothing_that_is_not_whole_looks_whole(as_root),
}

/// A server with a tablespace, and two backups; the second one is incremental where the server can do that.
struct Two {
    site: Site,
    server: PgServer,
    ids: Vec<String>,
    rows: String,
}

/// What must be in each copy of the second backup.
const ROWS: &str = "SELECT count(*) || ' ' || sum(n) FROM there";

impl Two {
    fn make(install: &'static Install) -> Self {
        let (site, mut server) = Site::with_server(install);
        server.stop("fast");
        server.configure("summarize_wal = on");
        server.start();
        let space = site.make_directory("space");
        server.query(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
        server.query("CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 100000) n");
        fill(&server, 2);
        site.backup();
        transact(&server, 200);
        server.query("INSERT INTO there VALUES (1000000)");
        site.backup();
        let ids = site.backup_ids();
        let rows = format!("{} {}", server.query(ROWS), transactions(&server));
        server.query("INSERT INTO there VALUES (1)");
        assert_eq!(site.backups()[1]["kind"], "incremental");
        Self {
            site,
            server,
            ids,
            rows,
        }
    }

    fn export(&self, out: &str, words: &str) -> Run {
        let out = self.site.path(out).display().to_string();
        let words = words.split_whitespace();
        let words: Vec<&str> = ["export", "main", &self.ids[1], &out]
            .into_iter()
            .chain(words)
            .collect();
        self.site.barmanfs(&words)
    }

    /// Starts a server on a copy that replays what it has, and looks for the rows.
    #[track_caller]
    fn assert_starts(&self, data: &Path) -> PgServer {
        // The original keeps its tablespace.
        let mut copy = PgServer::on(self.server.install, data);
        copy.configure_auto("archive_mode = off");
        copy.start();
        copy.wait_until_promoted();
        let rows = format!("{} {}", copy.query(ROWS), transactions(&copy));
        assert_eq!(rows, self.rows);
        assert_sums_agree(&copy);
        copy
    }
}

fn only<'a>(names: &'a [&str]) -> impl Fn(&str) -> bool + 'a {
    move |path| {
        names
            .iter()
            .any(|name| path == *name || path.starts_with(&format!("{name}/")))
    }
}

fn the_formats_of_pg_basebackup_verify_and_start(install: &'static Install) {
    let two = Two::make(install);
    let (site, server) = (&two.site, &two.server);
    let fast = site.path("fast").display().to_string();
    two.export(
        "plain",
        &format!("--format plain --tablespace-mapping fast:{fast}"),
    )
    .ok();
    two.export("tar", "--format tar --json").ok();
    two.export("zst", "--format tar --compression zstd").ok();
    two.export("bare", "--format plain --wal none").ok();
    two.export("plain", "--format plain")
        .refused(1)
        .says(&["not empty"]);
    server.verify_backup(&site.path("plain"), None);
    let mount = Mount::new(site);
    let raw = site.copy(&mount.path(&format!("main/raw/{}", two.ids[1])), "raw");
    mount.unmount();
    let but = ["pg_wal"];
    assert_eq!(differences(&raw, &site.path("bare"), &only(&but)), [""; 0]);
    assert_eq!(
        site.list(&site.path("bare/pg_wal")),
        ["archive_status", "summaries"]
    );
    // pg_verifybackup reads archives from 18 on, and WAL in them from 19 on.
    if install.major >= 18 {
        for name in ["tar", "zst"] {
            let mut verify = server.command("pg_verifybackup");
            verify.args(if install.major == 18 { &["-n"][..] } else { &[] });
            run(verify.arg(site.path(name))).ok();
        }
    }
    let wal = site.list(&raw.join("pg_wal"));
    let segments = wal.iter().filter(|name| name.len() == 24).count();
    assert!(segments > 0, "{wal:?}");
    let unpack =
        "mkdir -m 700 unpacked inside && mkdir -m 700 unpacked/pg_wal && tar -xf tar/base.tar -C unpacked &&
        tar -xf tar/pg_wal.tar -C unpacked/pg_wal && cp tar/backup_manifest unpacked &&
        tar -xf tar/[0-9]*.tar -C inside";
    site.sh(&format!("cd '{}' && {unpack}", site.path("").display()))
        .ok();
    // The original's place is taken.
    let link = site.path("unpacked/pg_tblspc").join(oid(&two));
    assert_eq!(fs::read_link(&link).unwrap(), site.path("space"));
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(site.path("inside"), &link).unwrap();
    let done = site.list(&site.path("unpacked/pg_wal/archive_status"));
    assert_eq!(done.len(), segments, "{done:?}");
    two.assert_starts(&site.path("plain"));
    assert!(fs::read_link(site.path("plain/pg_tblspc").join(oid(&two))).unwrap() == site.path("fast"));
    two.assert_starts(&site.path("unpacked"));
    let piped = "export main latest - --format tar --compression gzip";
    let refused = site.barmanfs(&piped.split_whitespace().collect::<Vec<_>>());
    refused.refused(2).says(&["has tablespaces"]);
    without_its_wal(&two);
}

/// A backup whose WAL is not archived is exported without it.
fn without_its_wal(two: &Two) {
    let (site, server) = (&two.site, &two.server);
    server.query("ALTER SYSTEM SET archive_command = 'false'");
    server.query("SELECT pg_reload_conf()");
    site.barmanfs(&["backup", "main", "--fast-checkpoint", "--no-wait"]);
    let waiting = site.backups().pop().unwrap();
    assert_eq!(waiting["status"], "WAITING_FOR_WALS", "{waiting}");
    let id = waiting["id"].as_str().unwrap();
    let export = |out: &str, words: &[&str]| {
        let out = site.path(out).display().to_string();
        site.barmanfs(&[&["export", "main", id, &out][..], words].concat())
    };
    let refused = export("waiting", &["--as", "plain"]).refused(1);
    refused.says(&["WAITING_FOR_WALS", "--wal none"]);
    export("waiting", &["--as", "plain", "--wal", "none"]).ok();
    assert!(site.path("waiting/backup_manifest").exists());
    let archive = export("archive", &["--as", "tar", "--wal", "none"]).refused(1);
    archive.says(&["WAITING_FOR_WALS", "--as plain"]);
}

/// The OID of the tablespace.
fn oid(two: &Two) -> String {
    two.server
        .query("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'")
}

/// Barman 3.19.1 with a home in the site.
struct Barman<'a> {
    site: &'a Site,
    program: String,
}

impl<'a> Barman<'a> {
    /// `None` where it is not installed.
    fn new(site: &'a Site) -> Option<Self> {
        let program = barman_of_everybody(site, "barman")?;
        let home = site.make_directory("barman");
        site.make_directory("locks");
        let config = format!(
            "[barman]\nbarman_home = {0}\nbarman_lock_directory = {1}\nlog_file = {1}/log\nbarman_user = {2}\n\
             [main]\ndescription = x\nconninfo = host=/nowhere\nstreaming_conninfo = host=/nowhere\n\
             backup_method = postgres\narchiver = on\n",
            home.display(),
            site.path("locks").display(),
            site.sh("id -un").ok().text().trim()
        );
        site.write_file("barman.conf", config.as_bytes());
        Some(Self { site, program })
    }

    fn run(&self, words: &str) -> Run {
        let config = self.site.path("barman.conf");
        self.site
            .sh(&format!("{} -c '{}' {words}", self.program, config.display()))
    }
}

fn barman_imports_the_tarball_and_restores_it(install: &'static Install) {
    let two = Two::make(install);
    let (site, id) = (&two.site, &two.ids[1]);
    let Some(barman) = Barman::new(site) else { return };
    let system = two
        .server
        .query("SELECT system_identifier FROM pg_control_system()");
    // Barman imports only for a server whose identity it knows.
    site.make_directory("barman/main");
    let identity = format!(
        "{{\"systemid\": \"{system}\", \"version\": \"{}\"}}\n",
        install.major
    );
    site.write_file("barman/main/identity.json", identity.as_bytes());
    site.make_directory("out");
    let words = "--format barman --compression gzip --json";
    let report: Value = serde_json::from_slice(&two.export("out", words).ok().stdout).unwrap();
    let tarball = report["path"].as_str().unwrap();
    assert_eq!(site.list(&site.path("out")).len(), 1);
    assert_eq!(report["backups"], serde_json::json!([id]));
    barman
        .run(&format!("import-backup main {tarball}"))
        .ok()
        .says(&["Successfully imported"]);
    barman.run(&format!("show-backup main {id}")).ok().says(&["DONE"]);
    let fast = site.path("fast").display().to_string();
    let restored = site.path("restored").display().to_string();
    barman
        .run(&format!("restore --tablespace fast:{fast} main {id} {restored}"))
        .ok();
    two.assert_starts(&site.path("restored"));
    // Another name is allowed, and told.
    two.export("own.tar", "--format barman")
        .ok()
        .says(&["import-backup", "under the name"]);
    two.export("own.tar", "--format barman")
        .refused(1)
        .says(&["exists"]);
    two.export("x", "--format barman --compression zstd")
        .refused(2)
        .says(&["gzip"]);
}

fn barman_works_with_an_exported_home(install: &'static Install) {
    let two = Two::make(install);
    let (site, server) = (&two.site, &two.server);
    let Some(barman) = Barman::new(site) else { return };
    server.query("SELECT pg_create_restore_point('later')");
    server.archive_current_segment();
    site.ok(&["keep", "main", &two.ids[0], "--target", "standalone"]);
    let home = site.path("barman").display().to_string();
    let report = site.ok(&[
        "export",
        "main",
        "all",
        &home,
        "--format",
        "barman-home",
        "--json",
    ]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["backups"].as_array().unwrap().len(), 2);
    // What did not change is there once.
    let file = |id: &str| site.path(&format!("barman/main/base/{id}/data/PG_VERSION"));
    let inode = |id: &str, name: &str| {
        let path = site.path(&format!("barman/main/base/{id}/data/{name}"));
        fs::metadata(path).unwrap().ino()
    };
    assert!(file(&two.ids[0]).exists());
    assert_eq!(
        inode(&two.ids[0], "base/1/1255"),
        inode(&two.ids[1], "base/1/1255")
    );
    assert_ne!(
        inode(&two.ids[0], "global/pg_control"),
        inode(&two.ids[1], "global/pg_control")
    );
    let number = |key: &str| report[key].as_u64().unwrap();
    assert!(
        number("written_bytes") < number("bytes") + number("wal_files") * (16 << 20),
        "{report}"
    );
    barman
        .run("list-backups main")
        .ok()
        .says(&[&two.ids[0], &two.ids[1]]);
    barman
        .run(&format!("keep --status main {}", two.ids[0]))
        .ok()
        .says(&["standalone"]);
    let verified = barman.run(&format!("show-backup main {}", two.ids[1])).ok();
    verified.says(&["DONE"]);
    let fast = site.path("fast").display().to_string();
    let restored = site.path("restored").display().to_string();
    barman
        .run(&format!(
            "restore --tablespace fast:{fast} --target-name later main {} {restored}",
            two.ids[1]
        ))
        .ok();
    let mut copy = PgServer::on(install, &site.path("restored"));
    copy.configure_auto("archive_mode = off\nrecovery_target_action = 'promote'");
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SELECT count(*) FROM there"), "100002");
    // A second export does not touch the first.
    let again = site.barmanfs(&["export", "main", "all", &home, "--format", "barman-home"]);
    again.refused(1).says(&["not empty"]);
}

fn a_backup_of_a_standby_brings_its_own_wal(install: &'static Install) {
    let (site, primary) = Site::with_server(install);
    fill(&primary, 1);
    let standby = standby_of(&site, &primary, install, "standby");
    primary.archive_current_segment();
    primary.query("CHECKPOINT");
    catch_up(&primary, &standby);
    site.write_config(&[("main", &standby)]);
    site.ok(&["backup", "main", "--fast-checkpoint", "--wait-timeout", "20"]);
    let sums = transactions(&primary);
    let archive = "export main latest - --format tar --compression gzip";
    let out = site
        .barmanfs(&archive.split_whitespace().collect::<Vec<_>>())
        .ok();
    site.write_file("out.tar.gz", &out.stdout);
    let unpack = "mkdir -m 700 piped && tar -xzf out.tar.gz -C piped && rm -f piped/standby.signal";
    site.sh(&format!("cd '{}' && {unpack}", site.path("").display()))
        .ok();
    primary.verify_backup(&site.path("piped"), None);
    let mut copy = PgServer::on(install, &site.path("piped"));
    copy.configure_auto("archive_mode = off\nprimary_conninfo = ''");
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(transactions(&copy), sums);
    let Some(barman) = Barman::new(&site) else { return };
    let home = site.path("barman").display().to_string();
    site.ok(&["export", "main", "all", &home, "--format", "barman-home"]);
    let restored = site.path("restored").display().to_string();
    barman.run(&format!("restore main latest {restored}")).ok();
    let _ = fs::remove_file(site.path("restored/standby.signal"));
    let mut copy = PgServer::on(install, &site.path("restored"));
    copy.configure_auto("archive_mode = off\nprimary_conninfo = ''");
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(transactions(&copy), sums);
}

/// The ways to write a backup, and the file or directory that appears when it is whole.
const WAYS: [&str; 4] = ["plain", "tar", "barman", "barman-home"];

fn nothing_that_is_not_whole_looks_whole(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 8);
    site.backup();
    let point = site.make_directory("small");
    let disk = SmallDisk::mount(&point, 40);
    let export = |way: &str| {
        let out = site.path("small/out").display().to_string();
        vec![
            "export".to_owned(),
            "main".to_owned(),
            "latest".to_owned(),
            out,
            "--as".to_owned(),
            way.to_owned(),
        ]
    };
    let words = |way: &str| export(way);
    let as_words = |words: &[String]| site.barmanfs(&words.iter().map(String::as_str).collect::<Vec<_>>());
    for way in WAYS {
        as_words(&words(way)).refused(1).says(&["free", "needed"]);
    }
    // Compressed, its size is not known before.
    let compressed = [words("tar"), vec!["--compression".to_owned(), "lz4".to_owned()]].concat();
    site.sh(&format!("head -c 38M /dev/zero > '{}/filler'", point.display()))
        .ok();
    as_words(&compressed).refused(1).says(&["full"]);
    fs::remove_file(point.join("filler")).unwrap();
    let _ = fs::remove_dir(point.join("out"));
    assert_eq!(site.list(&point), [""; 0]);
    disk.grow(1000);
    for way in WAYS {
        let mut child = site.spawn(&words(way).iter().map(String::as_str).collect::<Vec<_>>());
        let has_begun = || !unfinished(&point).is_empty();
        until("it has begun", has_begun);
        child.kill().unwrap();
        child.wait().unwrap();
        let whole = match way {
            "barman-home" => point.join("out/main"),
            _ => point.join("out"),
        };
        assert!(!whole.exists(), "{way}");
        as_words(&words(way)).ok();
        assert!(whole.exists() && unfinished(&point).is_empty(), "{way}");
        site.sh(&format!("rm -rf '{}'", point.join("out").display())).ok();
    }
    // A tarball in a directory has a name with a time; what is left of it has none.
    let into = [
        "export",
        "main",
        "latest",
        &point.display().to_string(),
        "--as",
        "barman",
    ];
    let mut child = site.spawn(&into);
    until("it has begun", || !unfinished(&point).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    site.barmanfs(&into).ok();
    assert_eq!(site.list(&point).len(), 1, "{:?}", site.list(&point));
    site.sh(&format!("rm '{}'/backup-export-*", point.display())).ok();
    // A damaged chunk.
    let pack = site.largest_pack(&[]);
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0x55);
    fs::write(&pack, bytes).unwrap();
    for way in WAYS {
        as_words(&words(way)).refused(1).says(&["damaged"]);
        assert!(!point.join("out/main").exists(), "{way}");
        assert!(unfinished(&point).is_empty(), "{way}");
        let _ = fs::remove_dir(point.join("out"));
        assert_eq!(site.list(&point), [""; 0], "{way}");
    }
    a_cut_stream_is_seen_as_cut(&site);
}

/// What a pipe gets of a failed export is whole for no program.
fn a_cut_stream_is_seen_as_cut(site: &Site) {
    let export = |words: &str| {
        format!(
            "'{}' -c '{}' export main latest - --as {words} >cut; test $? = 1 && test -s cut",
            site.program().display(),
            site.config().display()
        )
    };
    for way in ["tar", "barman"] {
        site.sh(&format!("{}; ! tar -tf cut", export(way)))
            .ok()
            .says(&["damaged", "Unexpected EOF"]);
        site.sh(&format!(
            "{}; ! gzip -t <cut",
            export(&format!("{way} --compression gzip"))
        ))
        .ok()
        .says(&["unexpected end of file"]);
    }
    site.sh(&format!("{}; ! zstd -t cut", export("tar --compression zstd")))
        .ok()
        .says(&["remature end"]);
}

/// What is being written, or was left.
fn unfinished(place: &Path) -> Vec<PathBuf> {
    let below = [place.to_owned(), place.join("out")];
    let entries = below
        .iter()
        .filter_map(|place| fs::read_dir(place).ok())
        .flatten();
    let names = entries.filter_map(|entry| Some(entry.ok()?.path()));
    names
        .filter(|path| path.to_string_lossy().ends_with(".exporting"))
        .collect()
}
