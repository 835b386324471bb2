//! A repository on a file system that accepts no more data, because it is full or has turned read-only. Errors are
//! clear, all earlier data is intact, and there is always a way to free space. The kind: freeing space itself needs
//! space.

use crate::common::disk::SmallDisk;
use crate::common::load::transact;
use crate::common::process::{run, until};
use crate::common::registry::topic;
use crate::common::{Install, Mount, PgServer, Site};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

topic! {
    once a_full_file_system_loses_nothing_that_was_acknowledged (as_root),
    once a_full_file_system_can_be_freed (as_root),
    once a_file_system_without_a_free_file_can_be_freed (as_root),
    once space_is_freed_although_the_disk_fills_again_at_once (as_root),
    once a_clone_that_filled_the_file_system_can_be_destroyed (as_root),
    once a_file_system_that_turns_read_only_loses_nothing_and_stays_readable (as_root),
}

fn a_full_file_system_loses_nothing_that_was_acknowledged(install: &'static Install) {
    let site = Site::new();
    let _disk = SmallDisk::mount(&site.make_directory("repository"), 64);
    let mut server = PgServer::init(install, &site.path("main"), &[]);
    server.configure(&format!(
        "archive_mode = on\narchive_command = '{}'",
        site.archive_command()
    ));
    site.write_config(&[("main", &server)]);
    server.start();
    crate::common::load::fill(&server, 1);
    let id = site.backup();
    let checksums = checksums_of(&site, &id);

    // 90 MB that do not compress; its WAL does not fit either.
    server.query("CREATE TABLE noise AS SELECT sha512(n::text::bytea) || sha512((n + 0.5)::text::bytea) FROM generate_series(1, 700000) n");
    let backup = site.barmanfs(&["backup", "main", "--fast-checkpoint", "--wait-timeout", "5"]);
    backup.refused(1).says(&["space"]);
    until("an archive_command fails and says that space is missing", || {
        server.log().to_lowercase().contains("space")
    });

    // All earlier data is still there, and so is all acknowledged data.
    site.barmanfs(&["verify"]).ok();
    assert_eq!(checksums_of(&site, &id), checksums);
    let archived = server.query("SELECT last_archived_wal FROM pg_stat_archiver");
    site.ok(&[
        "get-wal",
        "main",
        &archived,
        &site.path("fetched").to_string_lossy(),
    ]);

    // With free space again, everything continues.
    run(Command::new("mount")
        .args(["-o", "remount,size=1g"])
        .arg(site.repository()))
    .ok();
    transact(&server, 10);
    server.archive_current_segment();
    site.backup();
    site.ok(&["verify"]);
}

fn checksums_of(site: &Site, id: &str) -> String {
    let mount = Mount::new(site);
    let checksums = site.checksums(&mount.path(&format!("main/{id}")));
    mount.unmount();
    checksums
}

/// A site with its repository on a small file system of its own.
pub(crate) fn small_site(install: &'static Install) -> (Site, PgServer, SmallDisk) {
    let site = Site::new();
    let disk = SmallDisk::mount(&site.make_directory("repository"), 64);
    let mut server = PgServer::init(install, &site.path("main"), &["--wal-segsize=1"]);
    server.configure(&format!(
        "archive_mode = on\narchive_command = '{}'",
        site.archive_command()
    ));
    site.write_config(&[("main", &server)]);
    server.start();
    (site, server, disk)
}

/// Fills the file system to the last byte. An archiver that is at work may give some back meanwhile.
pub(crate) fn fill_up(site: &Site) {
    let filler = site.repository().join("filler");
    let filler = filler.display();
    until("the file system is full", || {
        for block in ["1M", "4k", "1"] {
            site.sh(&format!(
                "dd if=/dev/zero of='{filler}' bs={block} oflag=append conv=notrunc 2>/dev/null"
            ));
        }
        free(site) == 0
    });
}

pub(crate) fn free(site: &Site) -> u64 {
    let state = rustix::fs::statvfs(site.repository()).unwrap();
    state.f_bavail * state.f_frsize
}

fn reserve(site: &Site) -> u64 {
    site.repository()
        .join("reserve")
        .metadata()
        .map_or(0, |found| found.len())
}

/// The space that is free or kept for freeing more: in the reserve and in the catalog's WAL, which contains a part of
/// it.
fn free_or_kept_back(site: &Site) -> u64 {
    let wal = site.repository().join("catalog.sqlite-wal");
    let of_wal = wal.metadata().map_or(0, |found| found.blocks() * 512);
    free(site) + reserve(site) + of_wal
}

/// Backups, each with some data of its own.
pub(crate) fn backups(site: &Site, server: &PgServer, count: u32) -> Vec<String> {
    (0..count)
        .map(|n| {
            server.query(&format!(
                "CREATE TABLE own{n} AS SELECT sha512(random()::text::bytea) FROM generate_series(1, 10000)"
            ));
            let id = site.backup();
            server.query(&format!("DROP TABLE own{n}"));
            id
        })
        .collect()
}

fn a_full_file_system_can_be_freed(install: &'static Install) {
    let (site, server, _disk) = small_site(install);
    let ids = backups(&site, &server, 3);
    for id in &ids[..2] {
        let archiver = server.hold_archiver();
        let whole = reserve(&site);
        assert!(whole >= 8 << 20, "The reserve has {whole} bytes");
        fill_up(&site);
        // No file of SQLite is left from before either.
        site.sh(&format!(
            "rm -f '{}/catalog.sqlite-shm'",
            site.repository().display()
        ))
        .ok();
        fill_up(&site);
        site.barmanfs(&["backup", "main", "--wait-timeout", "1"])
            .refused(1);
        site.ok(&["delete", "main", id]);
        fill_up(&site);
        let before = free_or_kept_back(&site);
        site.ok(&["sweep"]);
        let freed = free_or_kept_back(&site).saturating_sub(before);
        assert!(freed > 200_000, "{freed} bytes were freed");
        site.ok(&["verify"]);
        site.sh(&format!("rm '{}/filler'", site.repository().display()))
            .ok();
        // The reserve is there for the next time: the next writer restores its full size.
        drop(archiver);
        let last = backups(&site, &server, 1).remove(0);
        // What waited on the full disk is archived, in its order: without it the newest state would depend on this backup.
        server.archive_current_segment();
        site.ok(&["delete", "main", &last]);
    }
    assert_eq!(site.backup_ids(), [ids[2].clone()]);
}

fn a_file_system_without_a_free_file_can_be_freed(install: &'static Install) {
    let (site, server, _disk) = small_site(install);
    let ids = backups(&site, &server, 2);
    let _archiver = server.hold_archiver();
    // As many files as there are, and a few more.
    let used = rustix::fs::statvfs(site.repository()).unwrap();
    let limit = used.f_files - used.f_ffree + 20;
    run(Command::new("mount")
        .args(["-o", &format!("remount,nr_inodes={limit}")])
        .arg(site.repository()))
    .ok();
    let fill = format!(
        "n=0; while : 2>/dev/null > '{}/filler.'$n; do n=$((n + 1)); done",
        site.repository().display()
    );
    site.sh(&fill);
    assert_eq!(rustix::fs::statvfs(site.repository()).unwrap().f_ffree, 0);
    site.barmanfs(&["check", "main"])
        .refused(3)
        .says(&["repository writable: FAILED"]);
    site.barmanfs(&["backup", "main", "--wait-timeout", "1"])
        .refused(1);
    site.ok(&["delete", "main", &ids[0]]);
    site.sh(&fill);
    let before = free_or_kept_back(&site);
    site.ok(&["sweep"]);
    let freed = free_or_kept_back(&site).saturating_sub(before);
    assert!(freed > 200_000, "{freed} bytes were freed");
    site.ok(&["verify"]);
    assert_eq!(site.backup_ids(), [ids[1].clone()]);
}

fn space_is_freed_although_the_disk_fills_again_at_once(install: &'static Install) {
    let (site, server, _disk) = small_site(install);
    let ids = backups(&site, &server, 3);
    fill_up(&site);
    let filler = site.repository().join("filler");
    let mut greedy = site
        .sh_command(&format!(
            "while :; do dd if=/dev/zero of='{}' bs=4k oflag=append conv=notrunc 2>/dev/null; done",
            filler.display()
        ))
        .spawn()
        .unwrap();
    // All backups: chunks that other backups still use would have to be copied, and there is no room for that.
    for id in &ids {
        let deleted = site.barmanfs(&["delete", "main", id, "--force"]);
        assert_eq!(deleted.code(), Some(0), "{deleted}");
    }
    let mut freed = 0;
    let swept = site.barmanfs(&["sweep", "--json"]);
    if let Ok(report) = serde_json::from_slice::<serde_json::Value>(&swept.stdout) {
        freed = report["removed_bytes"].as_u64().unwrap_or(0);
    }
    let _ = greedy.kill();
    let _ = greedy.wait();
    assert!(freed > 1_000_000, "{swept}");
    site.ok(&["verify"]);
}

fn a_clone_that_filled_the_file_system_can_be_destroyed(install: &'static Install) {
    let (site, server, _disk) = small_site(install);
    backups(&site, &server, 1);
    let mut server = server;
    server.stop("fast");
    let mount = Mount::new(&site);
    site.ok(&["clone", "create", "main", "big"]);
    let file = mount.path("main/live/big/filler");
    site.sh(&format!("dd if=/dev/urandom of='{}' bs=1M", file.display()))
        .refused(1)
        .says(&["space"]);
    fill_up(&site);
    site.ok(&["clone", "destroy", "main", "big"]);
    assert!(free(&site) > 10 << 20, "{} bytes are free", free(&site));
    assert!(mount.is_alive());
    mount.unmount();
    site.ok(&["verify"]);
}

fn a_file_system_that_turns_read_only_loses_nothing_and_stays_readable(install: &'static Install) {
    let (site, server, _disk) = small_site(install);
    let id = backups(&site, &server, 1).remove(0);
    let name = server.archive_current_segment();
    let bytes = site.barmanfs(&["get-wal", "main", &name]).ok().stdout;
    let before = checksums_of(&site, &id);
    // It stays as it is while a command of the archiver writes there.
    let remount = |how: &str| {
        until("the repository is mounted again", || {
            let options = format!("remount,{how}");
            let mount = run(Command::new("mount")
                .args(["-o", &options])
                .arg(site.repository()));
            mount.code() == Some(0)
        });
    };
    remount("ro");
    for arguments in [
        &["backup", "main"][..],
        &["delete", "main", "latest", "--force"],
        &["sweep"],
        &["rebuild-catalog"],
    ] {
        site.barmanfs(arguments)
            .refused(1)
            .says(&["Read-only file system"]);
    }
    server.query("CREATE TABLE later (n int)");
    server.query("SELECT pg_switch_wal()");
    // One may have failed before there was a repository.
    until("an archive_command fails and says why", || {
        server.log().contains("Read-only file system")
    });
    assert_eq!(checksums_of(&site, &id), before);
    assert!(site.barmanfs(&["get-wal", "main", &name]).ok().stdout == bytes);
    remount("rw");
    server.archive_current_segment();
    site.backup();
    site.ok(&["verify"]);
}
