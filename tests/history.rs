//! One timeline, two histories: a snapshot was put back, a copy was promoted without a new timeline, two servers of one
//! cluster archive under one name. And the kin of it: files changed behind WAL's back.
//!
//! What must hold: a backup that is DONE restores to exactly what its server had, by a digest of all rows; nothing is
//! built on a history that is gone; WAL of two histories is never mixed; what was archived reads back; and each
//! command that shows the server says so at once. What is no other history (a restart, a crash, a standby, recycled WAL) is never taken for one.

use crate::common::process::{Run, run, until};
use crate::common::registry::topic;
use crate::common::standby::{catch_up, standby_of};
use crate::common::{Install, Mount, PgServer, Site};
use crate::receive_wal::Receiver;
use serde_json::Value;

topic! {
    since_17 a_backup_never_builds_on_a_history_that_is_gone,
    since_17 a_gone_history_is_noticed_without_an_archive,
    since_17 files_changed_behind_wals_back_make_a_full_backup,
    since_17 what_is_no_other_history_stays_incremental,
    with_postgres a_full_backup_of_another_history_brings_its_wal,
    with_postgres a_fork_is_told_refused_and_restarted,
    once the_archived_history_can_be_kept,
    once a_backup_older_than_the_archive_is_good_for_its_own_moment,
    once a_hot_snapshot_that_archives_by_turns_is_a_fork,
    once a_promotion_without_a_new_timeline_is_a_fork,
    once receive_wal_tells_of_a_fork_and_loses_nothing,
    once pg_rewind_is_noticed_or_does_no_harm,
}

const AUTO: [&str; 3] = ["backup", "main", "--fast-checkpoint"];

/// A server `main` with a table, that archives and summarizes its WAL where it can.
fn site(install: &'static Install) -> (Site, PgServer) {
    let (site, mut server) = Site::with_server(install);
    if install.major >= 17 {
        server.stop("fast");
        server.configure("summarize_wal = on");
        server.start();
    }
    server.query("CREATE TABLE t (n int, filler text)");
    insert(&server, 1, 5000, "first");
    (site, server)
}

fn insert(server: &PgServer, from: u32, to: u32, word: &str) {
    server.query(&format!(
        "INSERT INTO t SELECT n, repeat('{word}', 20) FROM generate_series({from}, {to}) n"
    ));
}

/// All rows in a digest.
fn digest(server: &PgServer) -> String {
    server.query(
        "SELECT count(*) || ' ' || coalesce(md5(string_agg(n || filler, ',' ORDER BY n, filler)), '') FROM t",
    )
}

/// A copy of the data directory as it is.
#[track_caller]
fn snapshot(site: &Site, server: &PgServer) {
    site.sh(&format!(
        "rm -rf '{snap}' && cp -a '{}' '{snap}'",
        server.data.display(),
        snap = site.path("snap").display()
    ))
    .ok();
}

/// Takes a cold snapshot.
fn cold_snapshot(site: &Site, server: &mut PgServer) {
    server.stop("fast");
    snapshot(site, server);
    server.start();
}

/// Stops the server and puts the snapshot in its place.
fn put_back(site: &Site, server: &mut PgServer) {
    server.stop("immediate");
    site.sh(&format!(
        "rm -rf '{data}' && cp -a '{}' '{data}' && rm -f '{data}/postmaster.pid'",
        site.path("snap").display(),
        data = server.data.display()
    ))
    .ok();
    server.start();
}

fn newest(site: &Site) -> Value {
    site.backups().pop().unwrap()
}

/// Takes a backup that must become DONE; what the program said, and the digest of the server.
#[track_caller]
fn backup(site: &Site, server: &PgServer) -> (String, Run, String) {
    let digest = digest(server);
    let run = site.barmanfs(&AUTO).ok();
    let newest = newest(site);
    assert_eq!(newest["status"], "DONE", "{run}");
    (newest["id"].as_str().unwrap().to_owned(), run, digest)
}

/// A copy of a backup, recovered without the mount: it has exactly these rows.
#[track_caller]
fn restored(site: &Site, install: &'static Install, id: &str, expected: &str) -> PgServer {
    let mount = Mount::new(site);
    let data = site.copy(&mount.path(&format!("main/{id}")), "copy");
    mount.unmount();
    recovered(PgServer::on(install, &data), id, expected)
}

#[track_caller]
fn recovered(mut copy: PgServer, what: &str, expected: &str) -> PgServer {
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(digest(&copy), expected, "{what}");
    copy
}

fn remove(site: &Site, copy: &PgServer) {
    site.sh(&format!("rm -rf '{}'", copy.data.display())).ok();
}

/// A backup's copy has exactly these rows, and is sound.
#[track_caller]
fn assert_restores(site: &Site, install: &'static Install, id: &str, expected: &str) {
    let mut copy = restored(site, install, id, expected);
    copy.assert_sound();
    copy.stop_and_assert_checksums();
    remove(site, &copy);
}

/// B1: an incremental backup after a snapshot older than its parent was put back.
fn a_backup_never_builds_on_a_history_that_is_gone(install: &'static Install) {
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

/// The same where only backups bring WAL, as long as the server has it and when it is recycled.
fn a_gone_history_is_noticed_without_an_archive(install: &'static Install) {
    let (site, mut server) = site(install);
    server.stop("fast");
    server.configure("archive_mode = off\nmin_wal_size = 32MB\nmax_wal_size = 32MB");
    server.start();
    backup(&site, &server);
    cold_snapshot(&site, &mut server);
    insert(&server, 10_001, 15_000, "old");
    server.query("DELETE FROM t WHERE n <= 100");
    backup(&site, &server);
    // WAL is recycled, and the history is the same.
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

/// B2 and its kin: pg_checksums, pg_resetwal, `wal_level = minimal`.
fn files_changed_behind_wals_back_make_a_full_backup(install: &'static Install) {
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
        // Not its checksums: it may have none.
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

/// Restarts, crashes, recycled WAL and a standby as the source.
fn what_is_no_other_history_stays_incremental(install: &'static Install) {
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
    // It takes over, on a new timeline.
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

/// Its WAL is refused: the backup must not take what the archive has of that name for its own.
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

/// Archives a segment by hand, as another server does.
fn archive_file(site: &Site, server: &PgServer, segment: &str) -> Run {
    let path = server.data.join("pg_wal").join(segment);
    site.barmanfs(&["wal-archive", "main", &path.to_string_lossy()])
}

/// The bytes of all archived segments, which must read back as long as the repository lives.
fn archived(site: &Site) -> String {
    let mount = Mount::new(site);
    let sums = site.checksums(&mount.path("main/wal"));
    mount.unmount();
    sums
}

fn fork_lsn(site: &Site) -> String {
    let report = site.json(&["history", "main", "list"]);
    let forks = report["forks"].as_array().unwrap().clone();
    let open: Vec<&Value> = forks.iter().filter(|fork| fork["decided"].is_null()).collect();
    assert_eq!(open.len(), 1, "{report}");
    open[0]["lsn"].as_str().unwrap().to_owned()
}

/// B8, and a cold snapshot that is put back: everybody tells, all behind the fork is refused, and after the decision
/// both histories are whole.
fn a_fork_is_told_refused_and_restarted(install: &'static Install) {
    let (site, mut server) = site(install);
    let (full, _, first) = backup(&site, &server);
    cold_snapshot(&site, &mut server);
    insert(&server, 10_001, 12_000, "old");
    server.archive_current_segment();
    let (old, _, second) = backup(&site, &server);
    insert(&server, 12_001, 13_000, "old");
    let last = server.query("SELECT pg_create_restore_point('late'); SELECT pg_switch_wal()");
    assert!(!last.is_empty());
    server.archive_current_segment();
    let end_of_old = digest(&server);
    let before = archived(&site);
    put_back(&site, &mut server);
    insert(&server, 20_001, 22_000, "new");
    let names: Vec<String> = (0..6)
        .map(|_| {
            let name = server.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
            insert(&server, 22_001, 22_500, "new");
            server.query("SELECT pg_switch_wal()");
            name
        })
        .collect();
    // Those of other names, too, in any order.
    for name in names.iter().rev() {
        archive_file(&site, &server, name)
            .refused(1)
            .says(&["history main restart"]);
    }
    assert_eq!(archived(&site), before);
    for command in [
        &["list-backups", "main"][..],
        &["timeline", "main"],
        &["explain", "main", "now"],
        &["history", "main", "list"],
    ] {
        site.barmanfs(command).says(&["two histories"]);
    }
    let check = site.barmanfs(&["check", "main"]);
    check.refused(3).says(&["one history: FAILED", "history changed"]);
    let (between, run, third) = backup(&site, &server);
    run.says(&["history of server main has changed"]);
    rebuild(&site);
    let lsn = fork_lsn(&site);
    site.ok(&["history", "main", "restart", "--at", &lsn]);
    assert_reads_back(&site, &before);
    // What archive_command had been refused comes now.
    server.archive_current_segment();
    insert(&server, 30_001, 31_000, "new");
    let (new, run, fourth) = backup(&site, &server);
    assert_eq!(newest(&site)["kind"], "full", "{run}");
    insert(&server, 31_001, 32_000, "new");
    server.archive_current_segment();
    let end_of_new = digest(&server);
    let (listed, report) = (site.backups(), site.json(&["history", "main", "list"]));
    rebuild(&site);
    assert_eq!(site.backups(), listed);
    assert_eq!(site.json(&["history", "main", "list"]), report);
    site.ok(&["sweep"]);
    site.ok(&["verify"]);
    server.stop("fast");
    for (id, expected) in [
        (full, first),
        (old.clone(), second),
        (between, third),
        (new, fourth),
    ] {
        assert_restores(&site, install, &id, &expected);
    }
    for (target, expected) in [
        (format!("name:late,backup={old}"), end_of_old),
        ("now".to_owned(), end_of_new),
    ] {
        assert_target(&site, install, &target, &expected);
    }
}

/// A copy for a target has exactly these rows.
#[track_caller]
fn assert_target(site: &Site, install: &'static Install, target: &str, expected: &str) {
    let mount = Mount::new(site);
    let data = site.copy(&mount.path(&format!("main/pitr/{target}")), "copy");
    let mut copy = recovered(PgServer::on(install, &data), target, expected);
    copy.stop("fast");
    mount.unmount();
    remove(site, &copy);
}

/// The other server was a mistake: what continues the archived history is taken again.
fn the_archived_history_can_be_kept(install: &'static Install) {
    let (site, mut server) = site(install);
    backup(&site, &server);
    cold_snapshot(&site, &mut server);
    insert(&server, 10_001, 11_000, "old");
    server.archive_current_segment();
    // A copy of the snapshot that archives as well.
    let mut other = PgServer::on(install, &site.copy(&site.path("snap"), "other"));
    other.configure("archive_mode = off");
    other.start();
    let name = other.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
    insert(&other, 20_001, 21_000, "new");
    other.query("SELECT pg_switch_wal()");
    archive_file(&site, &other, &name).refused(1);
    insert(&server, 11_001, 12_000, "old");
    let held = server.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
    server.query("SELECT pg_switch_wal()");
    archive_file(&site, &server, &held).refused(1);
    let lsn = fork_lsn(&site);
    site.ok(&["history", "main", "keep", "--at", &lsn]);
    server.archive_current_segment();
    // It comes again and again, and keeps nobody out.
    archive_file(&site, &other, &name).refused(1);
    server.archive_current_segment();
    let expected = digest(&server);
    other.stop("fast");
    server.stop("fast");
    assert_target(&site, install, "now", &expected);
}

/// Nobody could see the fork: the backup brought its WAL, the archive began with the other history.
fn a_backup_older_than_the_archive_is_good_for_its_own_moment(install: &'static Install) {
    let (site, mut server) = site(install);
    server.stop("fast");
    server.configure("archive_mode = off");
    server.start();
    cold_snapshot(&site, &mut server);
    insert(&server, 10_001, 11_000, "old");
    let (old, _, first) = backup(&site, &server);
    assert_eq!(newest(&site)["wal_included"], true);
    let stop = newest(&site)["stop_lsn"].as_str().unwrap().to_owned();
    server.stop("fast");
    site.sh(&format!("rm -rf '{}'", server.data.display())).ok();
    site.copy(&site.path("snap"), "main");
    server.configure("archive_mode = on");
    server.start();
    insert(&server, 20_001, 25_000, "new");
    let behind = || server.query(&format!("SELECT pg_current_wal_lsn() > '{stop}'")) == "t";
    until("the archive has WAL behind the backup", || {
        insert(&server, 25_001, 25_500, "new");
        server.archive_current_segment();
        behind()
    });
    server.archive_current_segment();
    site.barmanfs(&["explain", "main", "now"])
        .rejected()
        .says(&["history has changed"]);
    let (new, run, second) = backup(&site, &server);
    assert_eq!(newest(&site)["kind"], "full", "{run}");
    insert(&server, 26_001, 27_000, "new");
    server.archive_current_segment();
    let end = digest(&server);
    server.stop("fast");
    for (id, expected) in [(old, first), (new, second)] {
        assert_restores(&site, install, &id, &expected);
    }
    assert_target(&site, install, "now", &end);
}

/// Copies the running server's directory between `pg_backup_start` and `pg_backup_stop`, without their label: started, the
/// copy recovers as after a crash, on the same timeline. It archives nothing by itself.
#[track_caller]
fn hot_copy(site: &Site, server: &PgServer) -> PgServer {
    let data = site.path("hot");
    let copy = format!(
        "\\! cp -a '{}' '{}' && rm -f '{}/postmaster.pid'",
        server.data.display(),
        data.display(),
        data.display()
    );
    let mut psql = server.client("psql");
    psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1"])
        .args(["-c", "SELECT pg_backup_start('hot', true)", "-c", &copy])
        .args(["-c", "SELECT pg_backup_stop(false)"]);
    run(&mut psql).ok();
    let mut other = PgServer::on(server.install, &data);
    other.configure("archive_mode = off");
    other.start();
    other
}

/// A hot snapshot that runs beside its original: both archive by turns, and no name comes twice.
fn a_hot_snapshot_that_archives_by_turns_is_a_fork(install: &'static Install) {
    let (site, mut server) = site(install);
    let (full, _, first) = backup(&site, &server);
    let mut other = hot_copy(&site, &server);
    insert(&server, 10_001, 11_000, "old");
    insert(&other, 20_001, 21_700, "new");
    let taken = server.archive_current_segment();
    // What the archive has of the other's names is skipped.
    let mut of_other = String::new();
    while of_other <= taken {
        insert(&other, 22_001, 22_100, "new");
        of_other = switch(&other);
    }
    archive_file(&site, &other, &of_other)
        .refused(1)
        .says(&["does not continue", "history main restart"]);
    let before = archived(&site);
    // The original is told as well, since nobody knows yet which of them counts.
    insert(&server, 11_001, 12_000, "old");
    let held = server.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
    server.query("SELECT pg_switch_wal()");
    archive_file(&site, &server, &held).refused(1);
    assert_eq!(archived(&site), before);
    let (old, _, second) = backup(&site, &server);
    let end_of_old = digest(&server);
    server.stop("fast");
    site.write_config_with(&[("main", &other.conninfo())]);
    let (between, run, third) = backup(&site, &other);
    run.says(&["history of server main has changed"]);
    let lsn = first_fork(&site);
    site.ok(&["history", "main", "restart", "--at", &lsn]);
    assert_reads_back(&site, &before);
    other.stop("fast");
    other.configure("archive_mode = on");
    other.start();
    other.archive_current_segment();
    let (new, run, fourth) = backup(&site, &other);
    assert_eq!(newest(&site)["kind"], "full", "{run}");
    insert(&other, 23_001, 23_500, "new");
    other.archive_current_segment();
    let end_of_new = digest(&other);
    other.stop("fast");
    rebuild(&site);
    site.ok(&["verify"]);
    assert_reads_back(&site, &before);
    assert_eq!(second, end_of_old);
    for (id, expected) in [(full, first), (old, second), (between, third), (new, fourth)] {
        assert_restores(&site, install, &id, &expected);
    }
    assert_target(&site, install, "now", &end_of_new);
}

/// What `receive-wal` has told its server to be durable is there whatever is decided, and it goes on behind the fork.
fn receive_wal_tells_of_a_fork_and_loses_nothing(install: &'static Install) {
    let (site, mut server) = site(install);
    server.stop("fast");
    server.configure("archive_mode = off");
    server.start();
    site.write_config_of(
        &server,
        "streaming_archiver = on\nslot_name = barmanfs\ncreate_slot = auto\n",
    );
    let mut receiver = Receiver::start(&site);
    receiver.says("Receiving WAL");
    let (full, _, first) = backup(&site, &server);
    cold_snapshot(&site, &mut server);
    insert(&server, 10_001, 11_000, "old");
    switch(&server);
    insert(&server, 11_001, 12_000, "old");
    let last = switch(&server);
    until("the old history is received", || is_archived(&site, &last));
    let (old, _, second) = backup(&site, &server);
    let before = whole(&archived(&site));
    put_back(&site, &mut server);
    // It is behind what has been received at first.
    receiver.says("was put back to an earlier state");
    insert(&server, 20_001, 21_000, "new");
    let names: Vec<String> = (0..8)
        .map(|_| {
            insert(&server, 22_001, 22_050, "new");
            switch(&server)
        })
        .collect();
    let refused = || {
        site.json(&["history", "main", "list"])["refused"]
            .as_u64()
            .unwrap()
    };
    until("WAL behind the fork is received", || refused() > 0);
    let (between, run, third) = backup(&site, &server);
    run.says(&["history"]);
    assert_eq!(whole(&archived(&site)), before);
    let lsn = first_fork(&site);
    receiver.kill();
    site.ok(&["history", "main", "restart", "--at", &lsn]);
    assert_reads_back(&site, &before);
    site.barmanfs(&["receive-wal", "main", "--reset"]).ok();
    let mut receiver = Receiver::start(&site);
    receiver.says("Receiving WAL");
    insert(&server, 23_001, 24_000, "new");
    let end = switch(&server);
    until("the new history is received", || is_archived(&site, &end));
    let (new, run, fourth) = backup(&site, &server);
    assert_eq!(newest(&site)["kind"], "full", "{run}");
    insert(&server, 24_001, 25_000, "new");
    let end = switch(&server);
    until("the new history is received", || is_archived(&site, &end));
    assert!(is_archived(&site, names.last().unwrap()));
    let end_of_new = digest(&server);
    receiver.kill();
    server.stop("fast");
    for (id, expected) in [(full, first), (old, second), (between, third), (new, fourth)] {
        assert_restores(&site, install, &id, &expected);
    }
    assert_target(&site, install, "now", &end_of_new);
}

/// Rebuilds the catalog, between two attempts of an `archive_command` that is refused.
fn rebuild(site: &Site) {
    until("the catalog is rebuilt", || {
        site.barmanfs(&["rebuild-catalog"]).code() == Some(0)
    });
}

/// Without the beginnings of segments, which come and go as WAL is received.
fn whole(checksums: &str) -> String {
    let lines = checksums.lines().filter(|line| !line.ends_with(".partial"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Ends the current segment; its name.
fn switch(server: &PgServer) -> String {
    server.query("SELECT pg_walfile_name(pg_switch_wal())")
}

fn is_archived(site: &Site, name: &str) -> bool {
    site.barmanfs(&["get-wal", "main", name, "/dev/null"]).code() == Some(0)
}

/// Every file of these checksums reads back, from the archive or from a history that was left.
#[track_caller]
fn assert_reads_back(site: &Site, checksums: &str) {
    let left = site.json(&["history", "main", "list"])["left"]
        .as_array()
        .unwrap()
        .len();
    for line in checksums.lines() {
        let (sum, name) = line.split_once("  ./").unwrap();
        let sources = (0..=left).map(|number| match number {
            0 => String::new(),
            number => format!("--left {number}"),
        });
        let reads = |source: String| {
            let command = format!(
                "'{}' -c '{}' get-wal {source} main {name} | sha256sum",
                site.program().display(),
                site.config().display()
            );
            site.sh(&command).text().starts_with(sum)
        };
        assert!(sources.into_iter().any(reads), "{name} does not read back");
    }
}

/// Where the first fork is that nobody has decided about.
fn first_fork(site: &Site) -> String {
    let report = site.json(&["history", "main", "list"]);
    let forks = report["forks"].as_array().unwrap();
    let open = forks.iter().filter(|fork| fork["decided"].is_null());
    let lsn = |fork: &Value| fork["lsn"].as_str().unwrap().to_owned();
    let number = |lsn: &String| {
        let (high, low) = lsn.split_once('/').unwrap();
        (
            u32::from_str_radix(high, 16).unwrap(),
            u32::from_str_radix(low, 16).unwrap(),
        )
    };
    open.map(lsn)
        .min_by_key(number)
        .unwrap_or_else(|| panic!("{report}"))
}

/// pg_rewind makes files older behind WAL's back: a backup after it is right, whatever it builds on.
fn pg_rewind_is_noticed_or_does_no_harm(install: &'static Install) {
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
    // Both go on: this one's changes are backed up, then undone.
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

/// A standby that becomes a primary on the timeline it had: `standby.signal` was removed.
fn a_promotion_without_a_new_timeline_is_a_fork(install: &'static Install) {
    let (site, mut server) = site(install);
    let (full, _, first) = backup(&site, &server);
    let mut standby = standby_of(&site, &server, install, "standby");
    insert(&server, 10_001, 11_000, "both");
    catch_up(&server, &standby);
    standby.stop("fast");
    insert(&server, 11_001, 12_000, "old");
    server.archive_current_segment();
    let (old, _, second) = backup(&site, &server);
    server.stop("fast");
    site.sh(&format!("rm '{}/standby.signal'", standby.data.display()))
        .ok();
    standby.start();
    assert_eq!(standby.query("SELECT pg_is_in_recovery()"), "f");
    assert_eq!(standby.timeline(), 1);
    insert(&standby, 20_001, 23_000, "new");
    site.write_config_with(&[("main", &standby.conninfo())]);
    let (between, run, third) = backup(&site, &standby);
    run.says(&["history of server main has changed"]);
    let lsn = fork_lsn(&site);
    site.ok(&["history", "main", "restart", "--at", &lsn]);
    standby.archive_current_segment();
    let (new, _, fourth) = backup(&site, &standby);
    insert(&standby, 23_001, 24_000, "new");
    standby.archive_current_segment();
    let end = digest(&standby);
    standby.stop("fast");
    for (id, expected) in [(full, first), (old, second), (between, third), (new, fourth)] {
        assert_restores(&site, install, &id, &expected);
    }
    assert_target(&site, install, "now", &end);
}
