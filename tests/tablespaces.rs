//! No copy harms its original: whatever the replayed WAL says about places outside the data directory, replay stays in
//! the copy. Here: tablespaces that were created, filled, used as a target of moves and dropped before the backup,
//! after it, or while it was taken. Copies, clones, boot tests and standbys of copies run beside the original. It is
//! shut down, and inotify watches all its directories.

use crate::common::process::{run, until};
use crate::common::registry::topic;
use crate::common::standby::{catch_up, standby_with};
use crate::common::{Install, Mount, PgServer, Site, Watcher};
use std::path::{Path, PathBuf};

topic! {
    with_postgres copies_recover_past_a_tablespace_on_the_same_host,
    edges a_clone_recovers_past_a_tablespace_on_the_same_host,
    edges a_standby_of_a_copy_stays_out_of_the_originals_tablespaces,
    edges a_boot_test_stays_out_of_a_tablespace_made_during_the_backup,
    with_postgres a_clone_makes_no_tablespace_outside_itself,
}

/// The data that the copies have at `r1`, and that the original no longer has.
const ROWS: &str = "SELECT (SELECT count(*) FROM t WHERE v = 'old') || ' ' || (SELECT count(*) FROM t) || ' '
    || (SELECT count(*) FROM b) || ' ' || (SELECT string_agg(spcname, ' ' ORDER BY spcname) FROM pg_tablespace)";
const EXPECTED: &str = "1000 1000 300 before pg_default pg_global sp";

/// Databases that are created or moved after the backup. Each has a table `d` of 100 rows.
const DATABASES: [&str; 5] = ["logged", "copied", "moved", "moved_twice", "moved_back"];

/// A server whose WAL after the backup creates tablespaces and all kinds of objects in them.
struct Original {
    site: Site,
    server: PgServer,
    watcher: Watcher,
}

impl Original {
    fn make(install: &'static Install) -> Self {
        let (site, mut server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
        for name in ["ts", "gone", "before"] {
            site.make_directory(name);
        }
        let location = |name: &str| site.path(name).display().to_string();
        server.query(&format!(
            "CREATE TABLESPACE before LOCATION '{}'",
            location("before")
        ));
        server.query("CREATE TABLE b TABLESPACE before AS SELECT generate_series(1, 200) AS n");
        for database in [
            "moved",
            "moved_twice TABLESPACE before",
            "moved_back TABLESPACE before",
        ] {
            server.query(&format!("CREATE DATABASE {database}"));
        }
        for database in ["moved", "moved_twice", "moved_back"] {
            query_in(
                &server,
                database,
                "CREATE TABLE d AS SELECT generate_series(1, 100) AS n",
            );
        }
        site.backup();
        server.query("SELECT pg_create_restore_point('r0')");
        server.query(&format!("CREATE TABLESPACE sp LOCATION '{}'", location("ts")));
        server
            .query("CREATE TABLE t TABLESPACE sp AS SELECT n, 'old' AS v FROM generate_series(1, 1000) AS n");
        server.query("INSERT INTO b SELECT generate_series(1, 100)");
        for (name, strategy) in [("logged", "wal_log"), ("copied", "file_copy")] {
            server.query(&format!(
                "CREATE DATABASE {name} TEMPLATE moved_back TABLESPACE sp STRATEGY {strategy}"
            ));
        }
        for (name, space) in [
            ("moved", "sp"),
            ("moved_twice", "pg_default"),
            ("moved_twice", "sp"),
            ("moved_back", "sp"),
            ("moved_back", "before"),
        ] {
            server.query(&format!("ALTER DATABASE {name} SET TABLESPACE {space}"));
        }
        server.query(&format!("CREATE TABLESPACE gone LOCATION '{}'", location("gone")));
        server.query("CREATE TABLE g TABLESPACE gone AS SELECT 1");
        server.query("DROP TABLE g");
        server.query("DROP TABLESPACE gone");
        server.query("SELECT pg_create_restore_point('r1')");
        server.query("UPDATE t SET v = 'new'");
        server.query("CHECKPOINT");
        server.archive_current_segment();
        server.stop("fast");
        let watcher = watch(&site, &["main", "main.s", "ts", "gone", "before"]);
        Self {
            site,
            server,
            watcher,
        }
    }

    #[track_caller]
    fn assert_untouched(&self, by: &str) {
        self.watcher.assert_untouched(by);
    }

    #[track_caller]
    fn assert_sound(&mut self) {
        self.server.start();
        let rows = self.server.query("SELECT count(*) FROM t WHERE v = 'new'");
        assert_eq!(rows, "1000");
    }
}

fn watch(site: &Site, names: &[&str]) -> Watcher {
    let places: Vec<PathBuf> = names.iter().map(|name| site.path(name)).collect();
    Watcher::on(&places.iter().map(PathBuf::as_path).collect::<Vec<_>>())
}

#[track_caller]
fn query_in(server: &PgServer, database: &str, sql: &str) -> String {
    run(server.client("psql").args(["-XAtq", "-d", database, "-c", sql]))
        .ok()
        .text()
}

/// No symbolic link in `pg_tblspc`.
#[track_caller]
fn assert_no_links(site: &Site, data: &Path) {
    let links = site.sh(&format!("find '{}/pg_tblspc' -type l", data.display()));
    assert_eq!(links.ok().text(), "");
}

/// The copy has all its data, and no links to the outside.
#[track_caller]
fn assert_at_r1(site: &Site, copy: &PgServer, data: &Path) {
    assert_at_r1_with(site, copy, data, &DATABASES);
}

#[track_caller]
fn assert_at_r1_with(site: &Site, copy: &PgServer, data: &Path, databases: &[&str]) {
    assert_eq!(copy.query(ROWS), EXPECTED);
    for database in databases {
        assert_eq!(
            query_in(copy, database, "SELECT count(*) FROM d"),
            "100",
            "{database}"
        );
        query_in(copy, database, "UPDATE d SET n = n + 1");
    }
    assert_no_links(site, data);
    copy.query("UPDATE t SET v = 'of the copy'");
    copy.query("CHECKPOINT");
}

pub(crate) fn copies_recover_past_a_tablespace_on_the_same_host(install: &'static Install) {
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
        original.assert_untouched(name);
    }
    // A copy that is stopped in the middle of its recovery replays the same WAL again.
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
    // PostgreSQL itself loses a database that was moved when it replays the move again after a crash: its old directory
    // is gone by then. This also happens with a copy by pg_basebackup, of 15 and of 19.
    assert_at_r1_with(site, &copy, &data, &["logged", "copied"]);
    copy.stop("fast");
    original.assert_untouched("a copy that recovered twice");
    // The archive itself has the bytes that the server wrote.
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
    original.assert_sound();
}

fn a_clone_recovers_past_a_tablespace_on_the_same_host(install: &'static Install) {
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
        assert_no_links(site, &data);
        original.assert_untouched("clone start");
        let mut clone = PgServer::on_mount(install, &data, &site.path(name));
        clone.start();
        assert_at_r1(site, &clone, &data);
        clone.stop("fast");
        original.assert_untouched("pg_ctl on a clone");
    }
    drop(mount);
    original.assert_sound();
}

/// A standby starts with the settings of its primary, here of a copy.
const NO_TARGET: &str =
    "restore_command = ''\nrecovery_target_name = ''\nrecovery_target_timeline = 'latest'";

/// A copy streams the WAL that it replays: a standby, too, gets the record of a tablespace without its path.
fn a_standby_of_a_copy_stays_out_of_the_originals_tablespaces(install: &'static Install) {
    let mut original = Original::make(install);
    let site = &original.site;
    let mount = Mount::new(site);
    let data = site.copy(&mount.path("main/pitr/name:r0,action=pause"), "copy");
    let mut copy = PgServer::on(install, &data);
    copy.start();
    let pauses = |copy: &PgServer| copy.try_query("SELECT pg_is_wal_replay_paused()").text() == "t";
    until("it pauses", || pauses(&copy));
    // Before any tablespace exists: all the WAL that creates them is streamed from the copy.
    let mut standby = standby_with(site, &copy, install, "standby", NO_TARGET);
    copy.stop("fast");
    copy.configure_auto(
        "recovery_target_name = 'r1'\nrecovery_target_action = 'promote'\nwal_keep_size = '1GB'",
    );
    copy.start();
    copy.wait_until_promoted();
    assert_at_r1(site, &copy, &data);
    catch_up(&copy, &standby);
    assert_no_links(site, &standby.data);
    original.assert_untouched("a copy with a standby");

    // And a standby that starts with the copy's tablespaces.
    let mut second = standby_with(site, &copy, install, "second", NO_TARGET);
    assert_no_links(site, &second.data);
    for sql in [
        "CREATE TABLE s TABLESPACE sp AS SELECT 1",
        "CREATE TABLESPACE own LOCATION ''",
        "CREATE TABLE o TABLESPACE own AS SELECT 1",
        "ALTER DATABASE moved SET TABLESPACE own",
    ] {
        copy.query(sql);
    }
    for standby in [&standby, &second] {
        catch_up(&copy, standby);
        assert_eq!(
            standby.query("SELECT count(*) FROM t NATURAL JOIN b"),
            copy.query("SELECT count(*) FROM t NATURAL JOIN b")
        );
    }
    copy.stop("fast");
    for standby in [&mut standby, &mut second] {
        standby.query("SELECT pg_promote()");
        standby.wait_until_promoted();
        standby.query("UPDATE t SET v = 'of the standby'; CHECKPOINT");
        query_in(standby, "moved", "UPDATE d SET n = n + 1");
        assert_no_links(site, &standby.data);
        standby.stop("fast");
    }
    original.assert_untouched("standbys of a copy");
    drop(mount);
    original.assert_sound();
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
    let watcher = watch(&site, &["main", "main.s", "ts"]);
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
    watcher.assert_untouched("verify --boot");
    let mount = Mount::new(&site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path("main/latest"), "copy"));
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.query("SELECT count(*) || ' ' || min(v) FROM t"), "1000 old");
    copy.query("UPDATE t SET v = 'copy'");
    copy.stop("fast");
    watcher.assert_untouched("a copy");
    site.ok(&["clone", "create", "main", "c", "--start", "--bindir", bindir]);
    site.ok(&["clone", "stop", "main", "c"]);
    let mut clone = PgServer::on_mount(install, &mount.path("main/live/c"), &site.path("c"));
    clone.start();
    until("recovery ends", || {
        clone.try_query("SELECT pg_is_in_recovery()").text() == "f"
    });
    clone.query("UPDATE t SET v = 'clone'; CHECKPOINT");
    clone.stop("fast");
    watcher.assert_untouched("a clone");
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
    for how in [
        "mv elsewhere pg_tblspc/3",
        "ln -P elsewhere pg_tblspc/3",
        "mkdir d && ln -s /tmp d/1 && mv -T d pg_tblspc",
        "rm -r d && rmdir pg_tblspc && ln -s /tmp pg_tblspc",
    ] {
        let moved = site.sh(&format!("cd '{}' && {how}", data.display()));
        assert_eq!(moved.code(), Some(1), "{how}: {moved}");
    }
    site.sh(&format!("mkdir -m 700 '{}/pg_tblspc'", data.display()))
        .ok();
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
