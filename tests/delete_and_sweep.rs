//! Any backup can be deleted at any time: the others stay whole, and the space is freed.

use crate::common::clock::Clock;
use crate::common::load::{fill, transact};
use crate::common::process::{COMMAND_LIMIT, wait};
use crate::common::random::Random;
use crate::common::registry::topic;
use crate::common::site::bytes_under;
use crate::common::{Install, Mount, PgServer, Site};
use std::collections::BTreeMap;
use std::time::Instant;

topic! {
    once backups_deleted_in_any_order_leave_the_others_whole,
    once a_backup_being_read_is_deleted_only_by_force,
    once a_deletion_names_what_would_be_lost_first,
    once two_deletions_at_once_leave_one_backup,
    once wal_of_past_days_is_merged,
}

/// Four backups with changes in between, and the checksums of all their files.
fn site_with_backups(install: &'static Install) -> (Site, PgServer, BTreeMap<String, String>) {
    let (site, server) = Site::with_server(install);
    fill(&server, 2);
    for round in 0..4 {
        // Incompressible, so that its space is visible; dropped two backups later.
        server.query(&format!("CREATE TABLE round{round} AS SELECT n, sha512(random()::text::bytea) FROM generate_series(1, 40000) n"));
        if round >= 2 {
            server.query(&format!("DROP TABLE round{}", round - 2));
        }
        transact(&server, 200);
        site.backup();
    }
    let mount = Mount::new(&site);
    let checksums = site
        .backup_ids()
        .into_iter()
        .map(|id| (id.clone(), site.checksums(&mount.path(&format!("main/{id}")))))
        .collect();
    mount.unmount();
    (site, server, checksums)
}

fn backups_deleted_in_any_order_leave_the_others_whole(install: &'static Install) {
    let mut random = Random::new("backups_deleted_in_any_order");
    let (site, server, mut kept) = site_with_backups(install);
    let all_stored = backup_bytes(&site);
    let mut order: Vec<String> = kept.keys().cloned().collect();
    random.shuffle(&mut order);
    let last = order.pop().unwrap();
    for id in &order {
        site.ok(&["delete", "main", id]);
        kept.remove(id);
        site.ok(&["sweep"]);
        site.ok(&["verify"]);
        let ids: Vec<String> = kept.keys().cloned().collect();
        assert_eq!(site.backup_ids(), ids, "After deleting {id} of {order:?}");
        let mount = Mount::new(&site);
        for (id, checksums) in &kept {
            assert!(
                site.checksums(&mount.path(&format!("main/{id}"))) == *checksums,
                "{id} changed; order {order:?}"
            );
        }
        mount.unmount();
    }
    assert_starts(&site, install, &last);

    // After the last one nothing can be recovered.
    site.barmanfs(&["delete", "main", &last]).refused(1).says(&[
        "no complete backup would be left",
        &last,
        "--force",
    ]);
    site.ok(&["delete", "main", &last, "--force"]);
    sweep_until_nothing_is_freed(&site);
    let left = backup_bytes(&site);
    assert!(
        left * 10 < all_stored,
        "All backups deleted, and {left} of their {all_stored} bytes are still taken"
    );
    site.ok(&["verify"]);
    drop(server);
}

/// Bytes in the packs, without the archive, which the deletion of a backup does not affect.
fn backup_bytes(site: &Site) -> u64 {
    let packs = bytes_under(&site.repository().join("packs"));
    let stats = site.json(&["stats"]);
    let archive = &stats["servers"][0]["wal"]["stored_bytes"];
    packs
        - archive
            .as_u64()
            .unwrap_or_else(|| panic!("No stored bytes of WAL in {stats}"))
}

/// A sweep condemns packs, and a later one removes them.
fn sweep_until_nothing_is_freed(site: &Site) {
    let mut before = u64::MAX;
    while site.stored_bytes() < before {
        before = site.stored_bytes();
        site.ok(&["sweep"]);
        site.ok(&["sweep"]);
    }
}

fn assert_starts(site: &Site, install: &'static Install, id: &str) {
    let mount = Mount::new(site);
    let mut copy = PgServer::on(install, &site.copy(&mount.path(&format!("main/{id}")), "copy"));
    copy.start();
    copy.wait_until_promoted();
    crate::common::load::assert_sums_agree(&copy);
    copy.assert_sound();
}

fn a_backup_being_read_is_deleted_only_by_force(install: &'static Install) {
    let (site, server) = Site::with_server(install);
    fill(&server, 1);
    let id = site.backup();
    let mount = Mount::new(&site);
    let file = server.query("SELECT pg_relation_filepath('pgbench_accounts')");
    let mut reader = crate::common::user::command("/bin/sh", &site.path(""));
    let mut reader = reader
        .args([
            "-c",
            &format!("exec sleep 600 < '{}/main/{id}/{file}'", mount.point.display()),
        ])
        .spawn()
        .unwrap();
    crate::common::process::until("the file is open", || {
        std::fs::read_link(format!("/proc/{}/fd/0", reader.id()))
            .is_ok_and(|file| file.starts_with(&mount.point))
    });
    let refused = site.barmanfs(&["delete", "main", &id]);
    assert_eq!(
        site.backup_ids(),
        std::slice::from_ref(&id),
        "Deleted while it is read: {refused}"
    );
    refused.refused(1).says(&[&id, "--force"]);
    site.ok(&["delete", "main", &id, "--force"]);
    assert_eq!(site.backup_ids(), [""; 0]);
    reader.kill().unwrap();
    reader.wait().unwrap();
}

/// The kind: a command deletes something for good, without a warning.
fn a_deletion_names_what_would_be_lost_first(install: &'static Install) {
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    fill(&server, 1);
    server.archive_current_segment();
    let first = site.backup();
    transact(&server, 50);
    server.archive_current_segment();
    let second = site.backup();
    server.archive_current_segment();

    // Without the second backup, the first one and the WAL reach as far.
    let dry = site.json(&["delete", "main", "latest", "--dry-run"]);
    assert_eq!(
        (&dry["deleted"][0], &dry["refused"]),
        (&second.as_str().into(), &().into()),
        "{dry}"
    );
    assert_eq!(
        dry["before"]["newest"]["lsn"], dry["after"]["newest"]["lsn"],
        "{dry}"
    );
    assert_eq!(dry["after"]["newest"]["backup"], first.as_str());
    // Without the first one, the earliest point moves.
    site.barmanfs(&["delete", "main", "oldest", "--dry-run"])
        .ok()
        .says(&["Would delete", &first, "Earliest to recover", "was"]);
    assert_eq!(site.backup_ids(), [first.clone(), second.clone()]);
    for words in [
        &["oldest", "latest"][..],
        &[&second, &first],
        &["oldest", "latest", "--dry-run"],
    ] {
        site.barmanfs(&[&["delete", "main"], words].concat())
            .refused(1)
            .says(&["no complete backup would be left", "--force"]);
    }
    site.barmanfs(&["delete", "main", "oldest", "20010101T000000"])
        .refused(1);
    assert_eq!(site.backup_ids(), [first.clone(), second.clone()]);

    // Behind a gap only the second backup can be recovered further.
    let missing = server.query("SELECT pg_walfile_name(pg_current_wal_lsn())");
    server.query("ALTER SYSTEM SET archive_command = '/bin/true'");
    server.query("SELECT pg_reload_conf()");
    std::thread::sleep(std::time::Duration::from_secs(1));
    server.archive_current_segment();
    server.query("ALTER SYSTEM RESET archive_command");
    server.query("SELECT pg_reload_conf()");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(site.barmanfs(&["get-wal", "main", &missing]).code(), Some(1));
    let third = site.backup();
    server.archive_current_segment();
    site.barmanfs(&["delete", "main", &third]).refused(1).says(&[
        "what is newest depends on it",
        &third,
        "--force",
    ]);
    site.ok(&["delete", "main", &third, "--force"]);
    site.ok(&["delete", "main", &second]);

    // `--force` does not override a limit that a person has configured.
    site.write_config_of(&server, "minimum_redundancy = 1\n");
    site.barmanfs(&["delete", "main", &first, "--force"])
        .refused(1)
        .says(&["minimum_redundancy is 1"]);
    site.write_config_of(&server, "minimum_redundancy = 0\n");
    site.barmanfs(&["delete", "main", &first, "--force"])
        .ok()
        .says(&["Nothing can be recovered"]);
    assert_eq!(site.backup_ids(), [""; 0]);
}

/// Each deletion alone would leave the other backup.
fn two_deletions_at_once_leave_one_backup(install: &'static Install) {
    let (site, _server) = Site::with_server(install);
    for round in 0..4 {
        while site.backup_ids().len() < 2 {
            site.backup();
        }
        let ids = site.backup_ids();
        let mut children: Vec<_> = ids.iter().map(|id| site.spawn(&["delete", "main", id])).collect();
        let mut codes: Vec<_> = children
            .iter_mut()
            .map(|child| child.wait().expect("it ends").code())
            .collect();
        codes.sort_unstable();
        assert_eq!(codes, [Some(0), Some(1)], "Round {round}");
        assert_eq!(site.backup_ids().len(), 1, "Round {round}");
    }
}

/// Each segment is archived as a pack of its own; days later a sweep merges them, whatever became of the sweeps before, and
/// whoever reads meanwhile.
fn wal_of_past_days_is_merged(install: &'static Install) {
    let mut random = Random::new("wal_of_past_days_is_merged");
    let (site, server) = Site::with_initdb_options(install, &["--wal-segsize=1"]);
    fill(&server, 1);
    for _ in 0..40 {
        server.archive_current_segment();
    }
    let mount = Mount::new(&site);
    let wal = mount.path("main/wal");
    let (names, checksums) = (site.list(&wal), site.checksums(&wal));
    assert!(names.len() >= 40, "{names:?}");
    let packs = site.packs().len();
    let mut clock = Clock::new(&site);
    clock.move_to(clock.now() + 3 * 24 * 3600);
    let began = Instant::now();
    assert!(site.json(&["sweep"])["merged_packs"] == 0, "The day is not over");
    let usual = began.elapsed() * 3;
    for _ in 0..6 {
        let mut child = clock.command(&site, &["-q", "sweep"]).spawn().unwrap();
        std::thread::sleep(random.duration_below(usual));
        let _ = child.kill();
        wait(&mut child, COMMAND_LIMIT).expect("a killed process ends");
        assert!(site.checksums(&wal) == checksums);
    }
    // The first one may find packs that the last killed one has left.
    for _ in 0..2 {
        clock.run(&site, &["sweep"]).ok();
    }
    let left = site.packs().len();
    assert!(left + 35 <= packs, "{left} of {packs} packs are left");
    assert!(site.checksums(&wal) == checksums);
    mount.unmount();
    site.ok(&["verify"]);
    site.ok(&["rebuild-catalog"]);
    let mount = Mount::new(&site);
    let wal = mount.path("main/wal");
    assert_eq!(site.list(&wal), names);
    assert!(site.checksums(&wal) == checksums);
    mount.unmount();
    site.ok(&["verify"]);
    drop(server);
}
