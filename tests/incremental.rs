//! Incremental backups: the server sends the changes, and the stored backup is a full one like any other. The oracle is
//! `pg_combinebackup`, run pairwise on exactly the bytes that the server sent.

use crate::common::load::{assert_sums_agree, fill, transact};
use crate::common::process::run;
use crate::common::proxy::{Fate, Proxy};
use crate::common::random::Random;
use crate::common::recorder::{Recorder, unpack};
use crate::common::registry::topic;
use crate::common::standby::standby_of;
use crate::common::{Install, Load, Mount, PgServer, Site};
use serde_json::Value;
use std::path::{Path, PathBuf};

topic! {
    since_17 incremental_backups_equal_the_output_of_pg_combinebackup,
    since_17 relations_with_several_segments_are_composed(at_scale),
    since_17 a_server_without_support_is_backed_up_in_full_with_the_reason,
    once a_damaged_parent_does_not_fail_the_backup,
    once a_page_with_a_wrong_checksum_is_inherited_by_no_backup,
    once files_that_do_not_match_the_manifest_are_refused,
    since_17 files_that_cannot_be_composed_lead_to_a_full_backup,
    since_17 a_backup_builds_on_a_parent_from_before_the_timelines_branched,
    before_17 servers_before_17_send_everything,
}

/// A server `main` that summarizes its WAL and archives it; the program reaches it through a recorder.
fn recorded_site(install: &'static Install) -> (Site, PgServer, Recorder) {
    let (site, mut server) = Site::with_server(install);
    summarize(&mut server);
    let recorder = Recorder::start(&server);
    site.write_config_with(&[("main", &recorder.conninfo())]);
    (site, server, recorder)
}

fn summarize(server: &mut PgServer) {
    server.stop("fast");
    server.configure("summarize_wal = on");
    server.start();
}

fn site_with_summaries(install: &'static Install) -> (Site, PgServer) {
    let (site, mut server) = Site::with_server(install);
    summarize(&mut server);
    (site, server)
}

/// One in this many backups is copied and started.
const USED_EVERY: usize = 3;

/// A backup, and its twin made by PostgreSQL's tools.
struct Day<'a> {
    site: &'a Site,
    server: &'a PgServer,
    recorder: &'a Recorder,
    /// Ids, oldest first, with the checksums of all files of the raw view.
    taken: Vec<(String, String)>,
    /// The newest output of pg_combinebackup.
    twin: PathBuf,
}

impl<'a> Day<'a> {
    /// Begins with a full backup.
    fn begin(site: &'a Site, server: &'a PgServer, recorder: &'a Recorder) -> Self {
        let mut day = Self {
            site,
            server,
            recorder,
            taken: Vec::new(),
            twin: PathBuf::new(),
        };
        let (id, backup, sent) = day.record();
        assert_eq!(
            (&backup["kind"], &backup["parent"]),
            (&"full".into(), &Value::Null)
        );
        day.twin = sent;
        day.compare(&id);
        day
    }

    /// Takes a backup. Returns its id, its entry in the JSON, and the recorded bytes.
    fn record(&self) -> (String, Value, PathBuf) {
        let name = format!("sent{}", self.taken.len());
        let tapes = self.site.make_directory(&format!("{name}.tapes"));
        self.recorder.record_into(tapes.clone());
        let id = self.site.backup();
        let backup = self.site.backups().pop().unwrap();
        let sent = unpack(self.site, &tapes, &name);
        self.remove(&tapes);
        (id, backup, sent)
    }

    fn remove(&self, directory: &Path) {
        self.site.sh(&format!("rm -rf '{}'", directory.display())).ok();
    }

    /// Takes an incremental backup and compares it with its twin. Returns how many bytes the server sent.
    #[track_caller]
    fn incremental(&mut self, what: &str) -> u64 {
        let parent = self.taken.last().unwrap().0.clone();
        let (id, backup, sent) = self.record();
        assert_eq!(
            (&backup["kind"], &backup["parent"]),
            (&"incremental".into(), &parent.into()),
            "After {what}: {backup}"
        );
        let twin = self.site.path(&format!("combined{}", self.taken.len()));
        let mut pg_combinebackup = self.server.command("pg_combinebackup");
        pg_combinebackup.args(["--no-sync", "-o"]).arg(&twin);
        run(pg_combinebackup.arg(&self.twin).arg(&sent)).ok();
        let before = std::mem::replace(&mut self.twin, twin);
        self.remove(&before);
        self.remove(&sent);
        println!("{id}: incremental after {what}");
        self.compare(&id);
        // Its files are those of the twin, so it is enough to start a server on some of them.
        if self.taken.len().is_multiple_of(USED_EVERY) {
            self.assert_usable(&id);
        }
        backup["sent_bytes"].as_u64().unwrap()
    }

    /// Every file of the raw view is equal to that of the twin, and the manifest has the same content.
    #[track_caller]
    fn compare(&mut self, id: &str) {
        let mount = Mount::new(self.site);
        let raw = mount.path(&format!("main/raw/{id}"));
        let ours = self.site.checksums(&raw);
        let theirs = self.site.checksums(&self.twin);
        assert_same_lines(&comparable(&ours), &comparable(&theirs));
        assert_same_lines(&self.directories(&raw), &self.directories(&self.twin));
        assert_same_lines(&self.manifest(&raw), &self.manifest(&self.twin));
        self.taken.push((id.to_owned(), ours));
    }

    fn directories(&self, root: &Path) -> Vec<String> {
        let script = "find . -mindepth 1 -type d -printf '%P %m\\n' | LC_ALL=C sort";
        let found = self.site.sh(&format!("cd '{}' && {script}", root.display())).ok();
        found.text().lines().map(str::to_owned).collect()
    }

    /// Size and checksum of each listed file, and the other entries. The tool is free to list the WAL of a backup or
    /// not.
    fn manifest(&self, root: &Path) -> Vec<String> {
        let shown = self
            .site
            .sh(&format!("cat '{}/backup_manifest'", root.display()))
            .ok();
        let manifest: Value = serde_json::from_slice(&shown.stdout).unwrap();
        // PostgreSQL 19 writes an LSN's lower half with all eight digits.
        let rest = ["System-Identifier", "WAL-Ranges"]
            .map(|key| format!("{key} {}", manifest[key]).replace("/0", "/"));
        let files = manifest["Files"].as_array().unwrap().iter();
        let files = files.filter(|file| !file["Path"].as_str().unwrap().starts_with("pg_wal/"));
        let files = files.map(|file| format!("{} {} {}", file["Path"], file["Size"], file["Checksum"]));
        files.chain(rest).collect()
    }

    /// PostgreSQL's tools accept it, and a copy starts and is sound.
    #[track_caller]
    fn assert_usable(&self, id: &str) {
        let mount = Mount::new(self.site);
        let raw = mount.path(&format!("main/raw/{id}"));
        self.server.verify_backup(&raw, Some(&mount.path("main/wal")));
        self.server
            .verify_backup(&mount.path(&format!("main/{id}")), None);
        let data = self.site.copy(&mount.path(&format!("main/{id}")), "copy");
        mount.unmount();
        let mut copy = PgServer::on(self.server.install, &data);
        copy.start();
        copy.wait_until_promoted();
        assert_sums_agree(&copy);
        copy.assert_sound();
        copy.stop_and_assert_checksums();
        self.remove(&data);
    }

    /// Deletes one backup after the other in random order. The remaining ones stay unchanged, and the last one starts.
    fn end(mut self, random: &mut Random) {
        let listed = self.site.backups();
        self.site.ok(&["rebuild-catalog"]);
        assert_eq!(self.site.backups(), listed);
        random.shuffle(&mut self.taken);
        let order: Vec<String> = self.taken.iter().map(|(id, _)| id.clone()).collect();
        while self.taken.len() > 1 {
            let (id, _) = self.taken.pop().unwrap();
            self.site.ok(&["delete", "main", &id]);
            self.site.ok(&["sweep"]);
            self.site.ok(&["verify"]);
            let mount = Mount::new(self.site);
            // Only the next two in the order, so each one is compared after the two deletions before its own.
            for (left, checksums) in self.taken.iter().rev().take(2) {
                let now = self.site.checksums(&mount.path(&format!("main/raw/{left}")));
                assert!(
                    now == *checksums,
                    "{left} changed after deleting {id}; last to first: {order:?}"
                );
            }
            mount.unmount();
        }
        self.assert_usable(&order[0]);
    }
}

/// All files except the WAL, which PostgreSQL's tools leave to others, and the manifest, whose order is not fixed.
fn comparable(checksums: &str) -> Vec<String> {
    let lines = checksums.lines();
    let lines = lines.filter(|line| !line.contains(" ./pg_wal/") && !line.ends_with(" ./backup_manifest"));
    lines.map(str::to_owned).collect()
}

#[track_caller]
fn assert_same_lines(ours: &[String], theirs: &[String]) {
    assert!(!ours.is_empty());
    let only = |these: &[String], those: &[String], whose: &str| -> Vec<String> {
        let lines = these.iter().filter(|line| !those.contains(line));
        lines.map(|line| format!("{whose}: {line}")).collect()
    };
    let differences = [only(ours, theirs, "ours"), only(theirs, ours, "theirs")].concat();
    assert!(differences.is_empty(), "Different:\n{}", differences.join("\n"));
}

/// The work between two backups: a name for messages, and the commands.
const WORK: &[(&str, &[&str])] = &[
    ("nothing at all", &[]),
    (
        "inserts and updates",
        &[
            "INSERT INTO documents SELECT n, md5(n::text) || repeat('x', 200) FROM generate_series(20001, 24000) n",
            "UPDATE documents SET body = body || 'y' WHERE id % 50 = 0",
            "UPDATE spread SET n = n + 1 WHERE n % 100 = 0",
            "VACUUM documents",
        ],
    ),
    (
        "deletes, and VACUUM that truncates",
        &[
            "DELETE FROM documents WHERE id > 8000 OR id % 7 = 0",
            "DELETE FROM spread",
            "VACUUM (TRUNCATE) documents, spread",
            "CREATE UNLOGGED TABLE passing AS SELECT n FROM generate_series(1, 5000) n",
            "CREATE INDEX passing_index ON passing (n)",
        ],
    ),
    (
        "growth over what was truncated, and unlogged work",
        &[
            "INSERT INTO documents SELECT n, repeat('z', 300) FROM generate_series(30000, 36000) n",
            "INSERT INTO spread SELECT generate_series(1, 3000)",
            "INSERT INTO passing SELECT generate_series(1, 5000)",
            "CREATE DATABASE copied STRATEGY file_copy",
            "CREATE DATABASE logged STRATEGY wal_log",
        ],
    ),
    (
        "TRUNCATE, VACUUM FULL and rewritten tables",
        &[
            "TRUNCATE spread",
            "INSERT INTO spread SELECT generate_series(1, 100)",
            "VACUUM FULL documents",
            "ALTER TABLE moving SET TABLESPACE fast",
            "CLUSTER kept USING kept_pkey",
            "DROP TABLE passing",
            "UPDATE kept SET t = t || '!'",
        ],
    ),
    (
        "dropped databases, relations and a tablespace",
        &[
            "DROP DATABASE copied",
            "DROP TABLE moving",
            "ALTER TABLE spread SET TABLESPACE pg_default",
            "DROP TABLESPACE fast",
            "CREATE TABLE spread_again TABLESPACE big AS SELECT generate_series(1, 20000) n",
            "DELETE FROM spread_again WHERE n > 100",
            "VACUUM (TRUNCATE) spread_again",
        ],
    ),
    (
        "nearly everything changed",
        &[
            "UPDATE documents SET body = upper(body)",
            "INSERT INTO spread_again SELECT generate_series(1, 30000)",
            "VACUUM FREEZE",
            "REINDEX TABLE kept",
        ],
    ),
    ("one row", &["UPDATE kept SET t = 'one' WHERE id = 1"]),
];

fn incremental_backups_equal_the_output_of_pg_combinebackup(install: &'static Install) {
    let mut random = Random::new("a_day_of_incrementals");
    let (site, server, recorder) = recorded_site(install);
    fill(&server, 1);
    for space in ["fast", "big"] {
        let location = site.make_directory(space);
        server.query(&format!(
            "CREATE TABLESPACE {space} LOCATION '{}'",
            location.display()
        ));
    }
    for statement in [
        "CREATE TABLE documents AS SELECT n AS id, md5(n::text) || repeat('x', 200) AS body FROM generate_series(1, 20000) n",
        "CREATE INDEX ON documents (id)",
        "CREATE TABLE spread TABLESPACE fast AS SELECT generate_series(1, 40000) n",
        "CREATE TABLE moving AS SELECT generate_series(1, 10000) n",
        "CREATE TABLE kept (id int PRIMARY KEY, t text)",
        "INSERT INTO kept SELECT n, md5(n::text) FROM generate_series(1, 5000) n",
        "VACUUM",
    ] {
        server.query(statement);
    }
    let mut day = Day::begin(&site, &server, &recorder);
    let full_bytes = site.backups()[0]["sent_bytes"].as_u64().unwrap();
    for (number, (what, statements)) in WORK.iter().enumerate() {
        // Every other backup is taken while the server works, so that pages change during it.
        let load = (number % 2 == 1).then(|| Load::start(&server));
        statements
            .iter()
            .for_each(|statement| drop(server.query(statement)));
        let sent = day.incremental(what);
        drop(load);
        if matches!(*what, "nothing at all" | "one row") {
            assert!(
                sent * 3 < full_bytes,
                "{sent} bytes sent after {what}, {full_bytes} in full"
            );
        }
        assert!(
            site.ok(&["show-backup", "main", "latest"])
                .contains("incremental from ")
        );
    }
    day.end(&mut random);
}

/// pg_class shows the structure of a heap with several segments; it is filled without reading anything.
fn relations_with_several_segments_are_composed(install: &'static Install) {
    let mut random = Random::new("relations_of_more_than_a_segment");
    let (site, server, recorder) = recorded_site(install);
    fill(&server, 1);
    server.query("CREATE TABLE large (n int, filler text) WITH (autovacuum_enabled = off)");
    server.query("ALTER TABLE large ALTER filler SET STORAGE PLAIN");
    // One row a page.
    server.query("INSERT INTO large SELECT n, repeat('x', 7000) FROM generate_series(1, 140000) n");
    assert!(server.query("SELECT pg_relation_size('large') > 1 << 30") == "t");
    let mut day = Day::begin(&site, &server, &recorder);
    server.query("UPDATE large SET n = -n WHERE n % 10000 = 1");
    server.query("INSERT INTO large SELECT n, repeat('y', 7000) FROM generate_series(140001, 145000) n");
    day.incremental("changes in both segments");
    server.query("DELETE FROM large WHERE ctid >= '(100000,0)'");
    server.query("VACUUM (TRUNCATE) large");
    assert!(server.query("SELECT pg_relation_size('large') < 1 << 30") == "t");
    day.incremental("truncation to one segment");
    server.query("INSERT INTO large SELECT n, repeat('z', 7000) FROM generate_series(200001, 240000) n");
    day.incremental("growth into the second segment again");
    day.end(&mut random);
}

/// The kind of the newest backup.
fn newest_kind(site: &Site) -> Value {
    site.backups().pop().unwrap()["kind"].clone()
}

fn a_server_without_support_is_backed_up_in_full_with_the_reason(install: &'static Install) {
    let (site, mut server) = Site::with_server(install);
    fill(&server, 1);
    let always = ["backup", "main", "--fast-checkpoint", "--incremental", "always"];
    let auto = ["backup", "main", "--fast-checkpoint"];
    site.barmanfs(&always)
        .refused(1)
        .says(&["cannot be incremental", "summarize_wal = off"]);
    site.barmanfs(&auto).ok().says(&["full", "summarize_wal = off"]);
    summarize(&mut server);
    // The summaries do not reach back to the backup: the WAL after it was written before summarizing began.
    site.barmanfs(&always)
        .refused(1)
        .says(&["WAL summaries are required"]);
    site.barmanfs(&auto)
        .ok()
        .says(&["becomes a full one", "WAL summaries are required"]);
    assert_eq!(newest_kind(&site), "full");
    site.ok(&always);
    assert_eq!(newest_kind(&site), "incremental");
    site.ok(&["backup", "main", "--fast-checkpoint", "--incremental", "never"]);
    assert_eq!(newest_kind(&site), "full");
    // A configuration can do the same.
    let config = std::fs::read_to_string(site.config()).unwrap();
    site.write_file(
        "barmanfs.conf",
        config.replace("[main]", "[main]\nincremental = never").as_bytes(),
    );
    site.ok(&auto);
    assert_eq!(newest_kind(&site), "full");
    let statuses: Vec<Value> = site
        .backups()
        .into_iter()
        .map(|backup| backup["status"].clone())
        .collect();
    assert_eq!(
        statuses,
        ["FAILED", "DONE", "FAILED", "DONE", "DONE", "DONE", "DONE"]
    );
}

fn a_damaged_parent_does_not_fail_the_backup(install: &'static Install) {
    let (site, server) = site_with_summaries(install);
    fill(&server, 1);
    site.backup();
    transact(&server, 100);
    for pack in site.packs() {
        damage(&pack);
    }
    let run = site.barmanfs(&["backup", "main", "--fast-checkpoint", "--incremental", "always"]);
    run.refused(1).says(&["cannot be incremental", "damaged"]);
    let run = site.barmanfs(&["backup", "main", "--fast-checkpoint"]);
    run.ok().says(&["becomes a full one", "damaged"]);
    assert_eq!(newest_kind(&site), "full");
}

/// No WAL tells that a page was spoilt or repaired, so a backup that built on the spoilt one would have it for ever.
fn a_page_with_a_wrong_checksum_is_inherited_by_no_backup(install: &'static Install) {
    let (site, mut server) = Site::with_initdb_options(install, &["--data-checksums"]);
    summarize(&mut server);
    fill(&server, 1);
    let table = server.query("SELECT pg_relation_filepath('pgbench_accounts')");
    let table = server.data.join(table).display().to_string();
    let while_stopped = |server: &mut PgServer, script: &str| {
        server.stop("fast");
        site.sh(script).ok();
        server.start();
    };
    let spoil = format!(
        "cp '{table}' good && printf spoilt | dd of='{table}' bs=1 seek=20000 conv=notrunc status=none"
    );
    while_stopped(&mut server, &spoil);
    let backup = |method: &str, incremental: &str| {
        let words = [
            "backup",
            "main",
            "--fast-checkpoint",
            "--method",
            method,
            "--incremental",
            incremental,
        ];
        site.barmanfs(&words)
    };
    for method in ["postgres", "files"] {
        backup(method, "never").refused(3);
        backup(method, "auto")
            .refused(3)
            .says(&["all pages are read again"]);
        assert_eq!(newest_kind(&site), "full");
    }
    while_stopped(&mut server, &format!("cp good '{table}'"));
    backup("files", "auto").ok();
    assert_eq!(newest_kind(&site), "full");
    backup("files", "always").ok();
    assert_eq!(newest_kind(&site), "incremental");
    let newest = site.backups().pop().expect("a backup");
    let mount = Mount::new(&site);
    let id = newest["id"].as_str().expect("an id");
    server.verify_backup(&mount.path(&format!("main/{id}")), None);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    copy.stop_and_assert_checksums();
}

/// Spoils the middle of a file.
fn damage(file: &Path) {
    use std::os::unix::fs::FileExt;
    let length = std::fs::metadata(file).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    let noise: Vec<u8> = (0..length / 2).map(|n| (n * 7 + 3) as u8).collect();
    file.write_all_at(&noise, length / 4).unwrap();
}

/// A server with a full backup and some changes since, behind a proxy that modifies the stream.
fn meddled_site(
    install: &'static Install,
    meddler: impl FnMut(&mut Vec<u8>) -> Fate + Send + 'static,
) -> (Site, PgServer) {
    let (site, server) = site_with_summaries(install);
    fill(&server, 1);
    site.backup();
    transact(&server, 100);
    let proxy = Proxy::start(&server.sockets(), meddler);
    site.write_config_with(&[("main", &proxy.conninfo())]);
    (site, server)
}

/// Calls `change` with the first piece of data after the header of an incremental file.
fn in_first_incremental(mut change: impl FnMut(&mut [u8])) -> impl FnMut(&mut Vec<u8>) -> Fate {
    let (mut next, mut done) = (false, false);
    move |payload| {
        let is_data = payload.first() == Some(&b'd');
        if is_data && next && !done {
            change(&mut payload[1..]);
            done = true;
        }
        let names = payload.windows(12).any(|bytes| bytes == b"INCREMENTAL.");
        next = is_data && payload.len() == 513 && names;
        Fate::Pass
    }
}

fn files_that_do_not_match_the_manifest_are_refused(install: &'static Install) {
    // Changes the number of blocks of the relation: the file is valid by itself, but the relation gets longer.
    let (site, _server) = meddled_site(install, in_first_incremental(|data| data[8] ^= 1));
    let run = site.barmanfs(&["backup", "main", "--fast-checkpoint"]);
    run.refused(1)
        .says(&["INCREMENTAL.", "the manifest gives the CRC-32C", "sent is"]);
    assert_eq!(site.backups().pop().unwrap()["status"], "FAILED");
    site.ok(&["verify"]);
}

fn files_that_cannot_be_composed_lead_to_a_full_backup(install: &'static Install) {
    let (site, server) = meddled_site(install, in_first_incremental(|data| data[0] ^= 1));
    site.barmanfs(&["backup", "main", "--fast-checkpoint"])
        .ok()
        .says(&["becomes a full one", "INCREMENTAL."]);
    assert_eq!(newest_kind(&site), "full");
    let mount = Mount::new(&site);
    server.verify_backup(&mount.path("main/latest"), None);
}

fn a_backup_builds_on_a_parent_from_before_the_timelines_branched(install: &'static Install) {
    let (site, mut primary) = site_with_summaries(install);
    fill(&primary, 1);
    let standby = standby_of(&site, &primary, install, "standby");
    let first = site.backup();
    transact(&primary, 100);
    primary.stop("fast");
    // The standby takes over.
    standby.query("SELECT pg_promote()");
    standby.wait_until_promoted();
    transact(&standby, 100);
    site.write_config_with(&[("main", &standby.conninfo())]);
    let second = site.backup();
    let backup = site.backups().pop().unwrap();
    assert_eq!(
        (&backup["kind"], &backup["parent"]),
        (&"incremental".into(), &first.into())
    );
    assert_eq!(backup["timeline"], 2);
    let mount = Mount::new(&site);
    standby.verify_backup(&mount.path(&format!("main/{second}")), None);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_sums_agree(&copy);
    copy.assert_sound();
}

fn servers_before_17_send_everything(install: &'static Install) {
    let (site, _server) = Site::with_server(install);
    site.backup();
    let run = site.barmanfs(&["backup", "main", "--incremental", "always"]);
    run.refused(1).says(&["cannot be incremental", "17 and later"]);
    site.backup();
    assert_eq!(newest_kind(&site), "full");
}
