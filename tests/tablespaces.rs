//! No copy harms its original: whatever the replayed WAL says about places outside the data directory, replay stays in the
//! copy. Here: tablespaces that were made, filled, moved into and dropped after the backup, or while it was taken.
//! Copies, clones and boot tests run beside the original, whose directories must not change by a byte.

use crate::common::process::until;
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use std::path::Path;

topic! {
    with_postgres copies_recover_past_a_tablespace_beside_their_original,
    edges a_clone_recovers_past_a_tablespace_beside_its_original,
    edges a_boot_test_stays_out_of_a_tablespace_made_during_the_backup,
    with_postgres a_clone_makes_no_tablespace_outside_itself,
}

/// What the copies at `r1` must have, and the original has no more.
const ROWS: &str = "SELECT (SELECT count(*) FROM t WHERE v = 'old') || ' ' || (SELECT count(*) FROM t) || ' '
    || (SELECT count(*) FROM b) || ' ' || (SELECT string_agg(spcname, ' ' ORDER BY spcname) FROM pg_tablespace)";
const EXPECTED: &str = "1000 1000 300 before pg_default pg_global sp";

/// A server whose WAL after the backup makes tablespaces and what can be in them.
struct Original {
    site: Site,
    server: PgServer,
    /// Of all its directories: data, tablespaces.
    digest: String,
}

impl Original {
    fn make(install: &'static Install) -> Self {
        let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
        for name in ["ts", "gone", "before"] {
            site.make_directory(name);
        }
        let location = |name: &str| site.path(name).display().to_string();
        server.query(&format!(
            "CREATE TABLESPACE before LOCATION '{}'",
            location("before")
        ));
        server.query("CREATE TABLE b TABLESPACE before AS SELECT generate_series(1, 200) AS n");
        site.backup();
        server.query(&format!("CREATE TABLESPACE sp LOCATION '{}'", location("ts")));
        server
            .query("CREATE TABLE t TABLESPACE sp AS SELECT n, 'old' AS v FROM generate_series(1, 1000) AS n");
        server.query("INSERT INTO b SELECT generate_series(1, 100)");
        server.query("CREATE DATABASE logged TABLESPACE sp STRATEGY wal_log");
        server.query("CREATE DATABASE copied TABLESPACE sp STRATEGY file_copy");
        server.query("CREATE DATABASE moved");
        server.query("ALTER DATABASE moved SET TABLESPACE sp");
        server.query(&format!("CREATE TABLESPACE gone LOCATION '{}'", location("gone")));
        server.query("CREATE TABLE g TABLESPACE gone AS SELECT 1");
        server.query("DROP TABLE g");
        server.query("DROP TABLESPACE gone");
        server.query("SELECT pg_create_restore_point('r1')");
        server.query("UPDATE t SET v = 'new'");
        server.query("CHECKPOINT");
        server.archive_current_segment();
        let mut original = Self {
            site,
            server,
            digest: String::new(),
        };
        original.server.stop("fast");
        original.digest = original.current();
        original
    }

    /// Every file of the original with its bytes, and every directory and link.
    fn current(&self) -> String {
        ["main", "ts", "gone", "before"]
            .map(|name| {
                let directory = self.site.path(name);
                let listing = format!(
                    "cd '{}' && find . -printf '%p %y %l %T@\\n' | LC_ALL=C sort",
                    directory.display()
                );
                self.site.sh(&listing).ok().text() + &self.site.checksums(&directory)
            })
            .concat()
    }

    #[track_caller]
    fn assert_untouched(&mut self) {
        assert!(self.digest == self.current(), "The original has changed");
        self.server.start();
        let rows = self.server.query("SELECT count(*) FROM t WHERE v = 'new'");
        assert_eq!(rows, "1000");
        self.server.stop("fast");
        self.digest = self.current();
    }
}

/// That a copy has all it should have, and nothing outside itself.
#[track_caller]
fn assert_at_r1(site: &Site, copy: &PgServer, data: &Path) {
    assert_eq!(copy.query(ROWS), EXPECTED);
    for database in ["logged", "copied", "moved"] {
        let mut client = copy.client("psql");
        client.args([
            "-XAtq",
            "-d",
            database,
            "-c",
            "SELECT count(*) > 100 FROM pg_class",
        ]);
        assert_eq!(
            crate::common::process::run(&mut client).ok().text(),
            "t",
            "{database}"
        );
    }
    let links = site
        .sh(&format!("find '{}/pg_tblspc' -type l", data.display()))
        .ok()
        .text();
    assert_eq!(links, "");
    copy.query("UPDATE t SET v = 'of the copy'");
    copy.query("CHECKPOINT");
}

fn copies_recover_past_a_tablespace_beside_their_original(install: &'static Install) {
    let mut original = Original::make(install);
    let site = &original.site;
    let mount = Mount::new(site);
    for (target, name) in [("name:r1", "plain"), ("name:r1,self-contained", "contained")] {
        let data = site.copy(&mount.path("main/pitr").join(target), name);
        let mut copy = PgServer::on(install, &data);
        copy.start();
        copy.wait_until_promoted();
        assert_at_r1(site, &copy, &data);
        copy.stop("fast");
    }
    // Stopped in the midst of its recovery, it goes through what it has done already.
    let data = site.copy(&mount.path("main/pitr/name:r1,action=pause"), "twice");
    let mut copy = PgServer::on(install, &data);
    copy.start();
    until("it pauses", || {
        copy.try_query("SELECT pg_is_wal_replay_paused()").text() == "t"
    });
    copy.stop("immediate");
    copy.start();
    until("it pauses again", || {
        copy.try_query("SELECT pg_is_wal_replay_paused()").text() == "t"
    });
    copy.query("SELECT pg_promote()");
    copy.wait_until_promoted();
    assert_at_r1(site, &copy, &data);
    copy.stop("fast");
    // The archive itself has what the server wrote.
    let names = site.list(&mount.path("main/wal"));
    let segments = names.iter().filter(|name| name.len() == 24);
    let mut shown_differently = 0;
    for segment in segments {
        let (wal, replay) = (
            mount.path("main/wal").join(segment),
            mount.path(".barmanfs/replay/main").join(segment),
        );
        let same = site.sh(&format!("cmp -s '{}' '{}'", wal.display(), replay.display()));
        shown_differently += usize::from(same.code() == Some(1));
        site.sh(&format!(
            "'{}' -c '{}' get-wal main {segment} | cmp - '{}'",
            site.program().display(),
            site.config().display(),
            wal.display()
        ))
        .ok();
    }
    assert!((1..=3).contains(&shown_differently), "{shown_differently}");
    drop(mount);
    original.assert_untouched();
}

fn a_clone_recovers_past_a_tablespace_beside_its_original(install: &'static Install) {
    let mut original = Original::make(install);
    let site = &original.site;
    let mount = Mount::new(site);
    let bindir = install.bindir.to_str().unwrap();
    for (name, target) in [("c1", "name:r1"), ("c2", "name:r1,self-contained")] {
        site.ok(&[
            "clone", "create", "main", name, "--at", target, "--start", "--replay", "--bindir", bindir,
        ]);
        let list = site.json(&["clone", "list", "main"]);
        println!("{list}");
        site.ok(&["clone", "stop", "main", name]);
        let data = mount.path("main/live").join(name);
        let links = site
            .sh(&format!("find '{}/pg_tblspc' -type l", data.display()))
            .ok()
            .text();
        assert_eq!(links, "");
        let mut clone = PgServer::on_mount(install, &data, &site.path(name));
        clone.start();
        assert_at_r1(site, &clone, &data);
        clone.stop("fast");
    }
    drop(mount);
    original.assert_untouched();
}

fn a_boot_test_stays_out_of_a_tablespace_made_during_the_backup(install: &'static Install) {
    let (site, mut server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let space = site.make_directory("ts");
    site.write_config_of(&server, "bandwidth_limit = 8000\n");
    let mut backup = site.spawn(&["backup", "main", "--fast-checkpoint"]);
    until("files are being sent", || {
        server.query("SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase LIKE 'streaming%'") == "1"
    });
    server.query(&format!("CREATE TABLESPACE sp LOCATION '{}'", space.display()));
    server.query("CREATE TABLE t TABLESPACE sp AS SELECT n, 'old' AS v FROM generate_series(1, 1000) AS n");
    assert_eq!(
        server.query("SELECT count(*) FROM pg_stat_progress_basebackup"),
        "1",
        "The backup was too fast"
    );
    assert!(backup.wait().unwrap().success());
    server.query("UPDATE t SET v = 'new'");
    server.query("CHECKPOINT");
    server.archive_current_segment();
    server.stop("fast");
    let listing = format!(
        "cd '{}' && find . -printf '%p %y %l %T@\\n' | LC_ALL=C sort",
        space.display()
    );
    let current = || site.sh(&listing).ok().text() + &site.checksums(&space);
    let before = current();
    let bindir = install.bindir.to_str().unwrap();
    let sql = site.write_file(
        "check.sql",
        b"SELECT count(*) || ' ' || min(v) FROM t;\nUPDATE t SET v = 'test';\n",
    );
    site.barmanfs(&[
        "verify",
        "main",
        "latest",
        "--boot",
        "--bindir",
        bindir,
        "--sql",
        sql.to_str().unwrap(),
    ])
    .ok()
    .says(&["1000 old"]);
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SELECT count(*) || ' ' || min(v) FROM t"), "1000 old");
    copy.query("UPDATE t SET v = 'copy'");
    copy.stop("fast");
    assert!(before == current(), "The original has changed");
}

fn a_clone_makes_no_tablespace_outside_itself(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    let space = site.make_directory("outside");
    site.backup();
    drop(server);
    let mount = Mount::new(&site);
    site.ok(&["clone", "create", "main", "c"]);
    let data = mount.path("main/live/c");
    for (link, code) in [("pg_tblspc/1", 1), ("pg_tblspc/2", 1), ("elsewhere", 0)] {
        let target = if link.ends_with('2') {
            "../../../outside"
        } else {
            "/tmp"
        };
        let made = site.sh(&format!("ln -s {target} '{}/{link}'", data.display()));
        assert_eq!(made.code(), Some(code), "{link}: {made}");
    }
    for how in ["mv", "ln -P"] {
        let moved = site.sh(&format!("cd '{}' && {how} elsewhere pg_tblspc/3", data.display()));
        assert_eq!(moved.code(), Some(1), "{how}: {moved}");
    }
    let mut clone = PgServer::on_mount(install, &data, &site.path("c"));
    clone.start();
    until("recovery ends", || {
        clone.try_query("SELECT pg_is_in_recovery()").text() == "f"
    });
    clone
        .try_query(&format!("CREATE TABLESPACE out LOCATION '{}'", space.display()))
        .refused(1)
        .says(&["not permitted"]);
    clone.query("CREATE TABLESPACE inside LOCATION ''");
    clone.query("CREATE TABLE i TABLESPACE inside AS SELECT 1");
    clone.stop("fast");
}
