//! One timeline with two histories: a snapshot was restored, a copy was promoted without a new timeline, or two servers
//! of one cluster archive under one name.
//!
//! What must hold: a backup that is DONE restores to exactly the rows of its server, by a digest of all rows. WAL of
//! two histories is never mixed. Archived files can be read back, whatever is decided and however often. And each
//! command that shows the server reports the fork at once.

use crate::common::histories::{
    assert_restores, backup, cold_snapshot, digest, insert, newest, put_back, recovered, remove, site,
};
use crate::common::process::{Run, run, until};
use crate::common::registry::topic;
use crate::common::standby::{catch_up, standby_of};
use crate::common::{Install, Mount, PgServer, Site};
use crate::receive_wal::Receiver;
use serde_json::Value;
use std::collections::BTreeSet;

topic! {
    with_postgres a_fork_is_reported_and_refused_until_the_history_is_restarted,
    once the_archived_history_can_be_kept,
    once a_backup_older_than_the_archive_recovers_to_its_own_end,
    once a_hot_snapshot_that_archives_in_turns_is_a_fork,
    once a_promotion_without_a_new_timeline_is_a_fork,
    once receive_wal_reports_a_fork_and_loses_nothing,
    once history_can_be_restarted_again_and_again,
}

/// Archives a segment by hand, as another server does.
fn archive_file(site: &Site, server: &PgServer, segment: &str) -> Run {
    let path = server.data.join("pg_wal").join(segment);
    site.barmanfs(&["wal-archive", "main", &path.to_string_lossy()])
}

/// The bytes of all archived segments. They must be readable as long as the repository exists.
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

/// B8, and a cold snapshot that is restored: every command reports it, all WAL behind the fork is refused, and after
/// the decision both histories are whole.
fn a_fork_is_reported_and_refused_until_the_history_is_restarted(install: &'static Install) {
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
    // Files of other kinds, too, in any order.
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
    // The segments that archive_command could not archive arrive now.
    server.archive_current_segment();
    insert(&server, 30_001, 31_000, "new");
    let (new, run, fourth) = backup(&site, &server);
    assert_eq!(newest(&site)["kind"], "full", "{run}");
    insert(&server, 31_001, 32_000, "new");
    server.archive_current_segment();
    let end_of_new = digest(&server);
    // The backup of the history that was left does not count as one to recover from.
    let chosen =
        |count: &str| site.json(&["delete", "main", "--retain", count, "--dry-run"])["deleted"].clone();
    assert_eq!(chosen("3"), serde_json::json!([]));
    assert_eq!(chosen("2"), serde_json::json!([full, old]));
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

/// The other server was a mistake: WAL that continues the archived history is accepted again.
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
    // Its files cannot enter the archive without the decision.
    let release = |name: &str| site.barmanfs(&["quarantine", "main", "release", name]);
    for name in [&name, &held] {
        release(name).refused(1);
    }
    site.ok(&["history", "main", "keep", "--at", &lsn]);
    release(&name).refused(1);
    server.archive_current_segment();
    // It arrives again and again, and does not block other files.
    archive_file(&site, &other, &name).refused(1);
    server.archive_current_segment();
    let expected = digest(&server);
    other.stop("fast");
    server.stop("fast");
    assert_target(&site, install, "now", &expected);
}

/// The fork could not be detected: the backup brought its WAL, and the archive began with the other history.
fn a_backup_older_than_the_archive_recovers_to_its_own_end(install: &'static Install) {
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

/// Copies the running server's directory between `pg_backup_start` and `pg_backup_stop`, without their label. When it
/// is started, the copy runs crash recovery and stays on the same timeline. It archives nothing by itself.
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

/// A hot snapshot that runs beside its original: both archive in turns, and no name arrives twice.
fn a_hot_snapshot_that_archives_in_turns_is_a_fork(install: &'static Install) {
    let (site, mut server) = site(install);
    let (full, _, first) = backup(&site, &server);
    let mut other = hot_copy(&site, &server);
    insert(&server, 10_001, 11_000, "old");
    insert(&other, 20_001, 21_700, "new");
    let taken = server.archive_current_segment();
    // Segments of the other server whose names are archived already are skipped.
    let mut of_other = String::new();
    while of_other <= taken {
        insert(&other, 22_001, 22_100, "new");
        of_other = switch(&other);
    }
    archive_file(&site, &other, &of_other)
        .refused(1)
        .says(&["does not continue", "history main restart"]);
    let before = archived(&site);
    // The original is refused as well, since it is not known yet which of them counts.
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

/// WAL that `receive-wal` has reported as durable is there whatever is decided, and receiving continues behind the
/// fork.
fn receive_wal_reports_a_fork_and_loses_nothing(install: &'static Install) {
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
    // At first the server is behind the received WAL.
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

/// Rebuilds the catalog between two attempts of an `archive_command` that is refused.
fn rebuild(site: &Site) {
    until("the catalog is rebuilt", || {
        site.barmanfs(&["rebuild-catalog"]).code() == Some(0)
    });
}

/// Without the beginnings of segments, which change as WAL is received.
fn whole(checksums: &str) -> String {
    let lines = checksums.lines().filter(|line| !line.ends_with(".partial"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Ends the current segment. Returns its name.
fn switch(server: &PgServer) -> String {
    server.query("SELECT pg_walfile_name(pg_switch_wal())")
}

fn is_archived(site: &Site, name: &str) -> bool {
    site.barmanfs(&["get-wal", "main", name, "/dev/null"]).code() == Some(0)
}

/// Every file in these checksums can be read, from the archive or from a history that was left.
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
                "'{}' -c '{}' get-wal {source} main {name} | b2sum",
                site.program().display(),
                site.config().display()
            );
            site.sh(&command).text().starts_with(sum)
        };
        assert!(sources.into_iter().any(reads), "{name} does not read back");
    }
}

/// The position of the first fork without a decision.
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

/// A standby that becomes a primary on its old timeline: `standby.signal` was removed.
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

/// Restarts twice from one snapshot, then from a later one. Each time another history begins, at the same place or
/// behind it, and no history that was left loses anything.
fn history_can_be_restarted_again_and_again(install: &'static Install) {
    let (site, mut server) = site(install);
    let (full, _, first) = backup(&site, &server);
    cold_snapshot(&site, &mut server);
    let mut backups = vec![(full, first)];
    let mut written = BTreeSet::new();
    for (round, word) in ["one", "two", "three", "four"].into_iter().enumerate() {
        if round > 0 {
            put_back(&site, &mut server);
            insert(&server, 20_001, 22_000, word);
            let name = server.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
            server.query("SELECT pg_switch_wal()");
            archive_file(&site, &server, &name)
                .refused(1)
                .says(&["history main restart"]);
            site.ok(&["history", "main", "restart", "--at", &first_fork(&site)]);
            server.archive_current_segment();
        }
        if round == 2 {
            cold_snapshot(&site, &mut server);
        }
        insert(&server, 10_001, 12_000, word);
        server.archive_current_segment();
        let (id, run, rows) = backup(&site, &server);
        assert_eq!(
            newest(&site)["kind"] == "full",
            round > 0 || install.major < 17,
            "{run}"
        );
        insert(&server, 12_001, 13_000, word);
        server.archive_current_segment();
        backups.push((id, rows));
        written.extend(archived(&site).lines().map(|line| format!("{line}\n")));
    }
    let end = digest(&server);
    server.stop("fast");
    rebuild(&site);
    site.ok(&["sweep"]);
    site.ok(&["verify"]);
    let report = site.json(&["history", "main", "list"]);
    assert_eq!(report["left"].as_array().map(Vec::len), Some(3), "{report}");
    assert_reads_back(&site, &written.into_iter().collect::<String>());
    for (id, expected) in backups {
        assert_restores(&site, install, &id, &expected);
    }
    assert_target(&site, install, "now", &end);
}
