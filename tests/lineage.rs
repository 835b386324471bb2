//! The base of the next backup. The kinds: the history of its parent is gone from the server (a snapshot was restored,
//! pg_rewind), or files were changed without WAL (pg_checksums, pg_resetwal, `wal_level = minimal`). An incremental
//! backup would mix two states, so a full one is taken, with a message. A restart, a crash, a standby and recycled WAL
//! must never be treated as another history.

use crate::common::histories::{
    AUTO, assert_restores, backup, cold_snapshot, digest, insert, newest, put_back, remove, restored, site,
};
use crate::common::process::{run, until};
use crate::common::registry::topic;
use crate::common::standby::{catch_up, standby_of};
use crate::common::{Install, PgServer, Site};

topic! {
    since_17 a_backup_never_builds_on_a_lost_history,
    since_17 a_lost_history_is_noticed_without_an_archive,
    since_17 files_changed_without_wal_cause_a_full_backup,
    since_17 backups_of_one_history_stay_incremental,
    with_postgres a_full_backup_of_another_history_brings_its_wal,
    once a_backup_after_pg_rewind_is_right,
}

/// B1: an incremental backup after a snapshot older than its parent was restored.
fn a_backup_never_builds_on_a_lost_history(install: &'static Install) {
    let (site, mut server) = site(install);
    let (full, _, first) = backup(&site, &server);
    cold_snapshot(&site, &mut server);
    insert(&server, 10_001, 15_000, "old");
    server.query("DELETE FROM t WHERE n <= 100");
    let (old, _, second) = backup(&site, &server);
    assert_eq!(newest(&site)["kind"], "incremental");
    put_back(&site, &mut server);
    insert(&server, 20_001, 32_000, "new");
    let third = digest(&server);
    site.barmanfs(&["backup", "main", "--fast-checkpoint", "--incremental", "always"])
        .refused(1)
        .says(&["cannot be incremental"]);
    let run = site
        .barmanfs(&["backup", "main", "--fast-checkpoint", "--quiet"])
        .ok();
    run.says(&["history"]);
    let newest = newest(&site);
    assert_eq!(
        (&newest["kind"], &newest["status"]),
        (&"full".into(), &"DONE".into())
    );
    let new = newest["id"].as_str().unwrap().to_owned();
    for (id, expected) in [(full, first), (old, second), (new, third)] {
        assert_restores(&site, install, &id, &expected);
    }
}

/// The same where only backups bring WAL: while the server still has the WAL, and when it is recycled.
fn a_lost_history_is_noticed_without_an_archive(install: &'static Install) {
    let (site, mut server) = site(install);
    server.stop("fast");
    server.configure("archive_mode = off\nmin_wal_size = 32MB\nmax_wal_size = 32MB");
    server.start();
    backup(&site, &server);
    cold_snapshot(&site, &mut server);
    insert(&server, 10_001, 15_000, "old");
    server.query("DELETE FROM t WHERE n <= 100");
    backup(&site, &server);
    // The WAL is recycled, and the history is the same.
    for _ in 0..3 {
        server.query("SELECT pg_switch_wal(); CHECKPOINT; CREATE TABLE s (); DROP TABLE s");
    }
    let (old, run, second) = backup(&site, &server);
    assert_eq!(newest(&site)["kind"], "incremental", "{run}");
    put_back(&site, &mut server);
    insert(&server, 20_001, 24_000, "new");
    for _ in 0..6 {
        server.query("SELECT pg_switch_wal(); CHECKPOINT; CREATE TABLE s (); DROP TABLE s");
    }
    let (new, run, third) = backup(&site, &server);
    assert_eq!(newest(&site)["kind"], "full", "{run}");
    for (id, expected) in [(old, second), (new, third)] {
        assert_restores(&site, install, &id, &expected);
    }
}

/// B2 and related cases: pg_checksums, pg_resetwal, `wal_level = minimal`.
fn files_changed_without_wal_cause_a_full_backup(install: &'static Install) {
    let (site, mut server) = site(install);
    let pg_checksums = |server: &mut PgServer, how: &str| {
        server.stop("fast");
        run(server.command("pg_checksums").args([how, "-D"]).arg(&server.data)).ok();
        server.start();
    };
    #[track_caller]
    fn assert_full(site: &Site, server: &PgServer, words: &[&str]) {
        let expected = digest(server);
        let run = site
            .barmanfs(&["backup", "main", "--fast-checkpoint", "--quiet"])
            .ok();
        run.says(words);
        let newest = newest(site);
        assert_eq!(
            (&newest["kind"], &newest["status"]),
            (&"full".into(), &"DONE".into())
        );
        // Its checksums are not compared: it may have none.
        let mut copy = restored(site, server.install, newest["id"].as_str().unwrap(), &expected);
        copy.stop("fast");
        remove(site, &copy);
    }
    backup(&site, &server);
    pg_checksums(&mut server, "--disable");
    insert(&server, 10_001, 11_000, "x");
    assert_full(&site, &server, &["page checksums were disabled"]);
    pg_checksums(&mut server, "--enable");
    insert(&server, 11_001, 12_000, "x");
    assert_full(&site, &server, &["page checksums were enabled"]);
    // Loaded without WAL.
    server.stop("fast");
    server.configure("wal_level = minimal\nmax_wal_senders = 0\narchive_mode = off\nsummarize_wal = off\nwal_skip_threshold = 0");
    server.start();
    server.query(
        "BEGIN; TRUNCATE t; INSERT INTO t SELECT n, repeat('m', 50) FROM generate_series(1, 3000) n; COMMIT",
    );
    server.stop("fast");
    server.configure("wal_level = replica\nmax_wal_senders = 10\narchive_mode = on\nsummarize_wal = on");
    server.start();
    let expected = digest(&server);
    site.barmanfs(&AUTO).ok();
    let after_minimal = newest(&site);
    assert_eq!(after_minimal["kind"], "full");
    assert_restores(&site, install, after_minimal["id"].as_str().unwrap(), &expected);
    server.stop("fast");
    run(server.command("pg_resetwal").arg("-f").arg(&server.data)).ok();
    server.start();
    insert(&server, 30_001, 31_000, "x");
    let expected = digest(&server);
    site.barmanfs(&AUTO).ok();
    let after_reset = newest(&site);
    assert_eq!(
        (&after_reset["kind"], &after_reset["status"]),
        (&"full".into(), &"DONE".into())
    );
    assert_restores(&site, install, after_reset["id"].as_str().unwrap(), &expected);
}

/// Restarts, crashes, recycled WAL and a standby as the source of the backup.
fn backups_of_one_history_stay_incremental(install: &'static Install) {
    let (site, mut server) = site(install);
    #[track_caller]
    fn assert_incremental(site: &Site, server: &PgServer, what: &str) {
        let (_, run, _) = backup(site, server);
        assert_eq!(newest(site)["kind"], "incremental", "After {what}: {run}");
        assert!(!run.stderr.contains("history"), "After {what}: {run}");
    }
    backup(&site, &server);
    assert_incremental(&site, &server, "nothing");
    server.stop("fast");
    server.start();
    assert_incremental(&site, &server, "a restart");
    insert(&server, 10_001, 20_000, "x");
    server.kill();
    server.start();
    assert_incremental(&site, &server, "a crash");
    insert(&server, 20_001, 30_000, "x");
    for _ in 0..4 {
        server.archive_current_segment();
        server.query("CHECKPOINT");
    }
    assert_incremental(&site, &server, "recycled WAL");
    let mut standby = standby_of(&site, &server, install, "standby");
    assert_incremental(&site, &server, "a standby was made");
    insert(&server, 30_001, 40_000, "x");
    server.query("CHECKPOINT");
    catch_up(&server, &standby);
    standby.query("CHECKPOINT");
    site.write_config_with(&[("main", &standby.conninfo())]);
    let mut taking = site.spawn(&AUTO);
    until("the backup of the standby ends", || {
        server.query("CREATE TABLE s (); DROP TABLE s; SELECT pg_switch_wal()");
        std::thread::sleep(std::time::Duration::from_millis(300));
        taking.try_wait().unwrap().is_some()
    });
    let of_standby = newest(&site);
    assert_eq!(
        (&of_standby["kind"], &of_standby["status"]),
        (&"incremental".into(), &"DONE".into()),
        "{of_standby}"
    );
    // The standby is promoted, on a new timeline.
    server.stop("fast");
    standby.query("SELECT pg_promote()");
    standby.wait_until_promoted();
    insert(&standby, 40_001, 41_000, "x");
    let (id, run, expected) = backup(&site, &standby);
    assert_eq!(newest(&site)["kind"], "incremental", "After a promotion: {run}");
    assert!(!run.stderr.contains("history of server"), "{run}");
    standby.stop("fast");
    assert_restores(&site, install, &id, &expected);
}

/// Its WAL is refused: the backup must not use the archived WAL of the same name as its own.
fn a_full_backup_of_another_history_brings_its_wal(install: &'static Install) {
    let (site, mut server) = site(install);
    let (full, _, first) = backup(&site, &server);
    cold_snapshot(&site, &mut server);
    insert(&server, 10_001, 15_000, "old");
    server.archive_current_segment();
    insert(&server, 15_001, 16_000, "old");
    server.archive_current_segment();
    let (old, _, second) = backup(&site, &server);
    put_back(&site, &mut server);
    insert(&server, 20_001, 22_000, "new");
    let (new, run, third) = backup(&site, &server);
    run.says(&["The history of server main has changed"]);
    for (id, expected) in [(full, first), (old, second), (new, third)] {
        assert_restores(&site, install, &id, &expected);
    }
}

/// pg_rewind replaces files by older ones without WAL. A backup after it is right, whatever it builds on.
fn a_backup_after_pg_rewind_is_right(install: &'static Install) {
    let (site, mut server) = site(install);
    server.stop("fast");
    server.configure("wal_log_hints = on\nwal_keep_size = '1GB'");
    server.start();
    let (full, _, first) = backup(&site, &server);
    let mut standby = standby_of(&site, &server, install, "standby");
    insert(&server, 10_001, 11_000, "both");
    catch_up(&server, &standby);
    standby.query("SELECT pg_promote()");
    standby.wait_until_promoted();
    // Both servers continue: the changes of this one are backed up, then undone.
    insert(&server, 11_001, 14_000, "old");
    server.query("UPDATE t SET filler = 'lost' WHERE n <= 2000");
    let (old, _, second) = backup(&site, &server);
    insert(&standby, 20_001, 21_000, "new");
    standby.query("CHECKPOINT");
    server.stop("fast");
    run(server
        .command("pg_rewind")
        .arg("--target-pgdata")
        .arg(&server.data)
        .arg("--source-server")
        .arg(format!("{} dbname=postgres user=postgres", standby.conninfo())))
    .ok();
    server.configure(&format!(
        "primary_conninfo = '{}'",
        standby.conninfo().replace('\'', "''")
    ));
    site.sh(&format!("touch '{}/standby.signal'", server.data.display()))
        .ok();
    server.start();
    catch_up(&standby, &server);
    standby.stop("fast");
    server.query("SELECT pg_promote()");
    server.wait_until_promoted();
    insert(&server, 30_001, 31_000, "newest");
    let (new, run, third) = backup(&site, &server);
    println!("{}: {run}", newest(&site)["kind"]);
    insert(&server, 31_001, 32_000, "newest");
    let (last, _, fourth) = backup(&site, &server);
    server.stop("fast");
    for (id, expected) in [(full, first), (old, second), (new, third), (last, fourth)] {
        assert_restores(&site, install, &id, &expected);
    }
}
