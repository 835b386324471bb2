//! Backups: complete or absent, and named as users name them.

use crate::common::{
    Files, SYSTEM, WINDOW, archive, attributes, back_up, backup_end, begin, finish, fixture, new_backup,
    noise, put_files, restore, segment,
};
use barmanfs_catalog::{
    BackupKind, BackupSelector, BackupStatus, Error, NewBackup, Repository, Silent, SweepOptions,
};
use barmanfs_pg::SystemId;

fn files(seed: u64) -> Files {
    let mut files = Files::new();
    files.insert("PG_VERSION".to_owned(), b"15\n".to_vec());
    files.insert("base/5/1259".to_owned(), noise(seed, 300_000));
    files.insert("base/5/1260".to_owned(), vec![0; 200_000]);
    files.insert("base/5/1261".to_owned(), noise(seed + 1, 3_000_000));
    files
}

#[test]
fn a_backup_reads_back_and_waits_for_its_wal() {
    let f = fixture();
    let run = begin(&f.repository, &f.server);
    put_files(&run, &files(1));
    let backup = finish(run, 1, 3);
    assert_eq!(backup.status, BackupStatus::WaitingForWals);
    assert_eq!(backup.files, 4);
    assert_eq!(backup.logical_bytes, 3_500_003);
    assert_eq!(restore(&f.repository, &backup), files(1));
    assert_eq!(f.repository.missing_wal(&backup).unwrap().len(), 3);
    for number in 1..=3 {
        let (name, bytes) = segment(number, SYSTEM, 100 + u64::from(number));
        archive(&f.repository, &f.server, &name, &bytes).unwrap();
    }
    let backup = f.repository.backup(&f.server, &BackupSelector::Latest).unwrap();
    assert_eq!(backup.status, BackupStatus::Done);
    assert!(f.repository.missing_wal(&backup).unwrap().is_empty());
}

#[test]
fn a_second_backup_stores_only_changes() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(1));
    let second = back_up(&f.repository, &f.server, &files(1));
    assert!(first.new_stored_bytes > 3_000_000);
    assert!(
        second.new_stored_bytes < 2_000,
        "{} bytes for nothing",
        second.new_stored_bytes
    );
    assert!(second.id > first.id);
    let mut changed = files(1);
    changed.get_mut("base/5/1261").unwrap()[1_000_000] ^= 1;
    let third = back_up(&f.repository, &f.server, &changed);
    assert!(
        third.new_stored_bytes < 4_000,
        "{} bytes for one page",
        third.new_stored_bytes
    );
    assert_eq!(restore(&f.repository, &third), changed);
    assert_eq!(restore(&f.repository, &second), files(1));
    let oldest = f.repository.backup(&f.server, &BackupSelector::Oldest).unwrap();
    assert_eq!(oldest.id, first.id);
}

/// Backups that take less than a second use the ids of the following seconds. A backup that is deleted meanwhile
/// leaves a gap before them, which must not be filled.
#[test]
fn ids_follow_the_order_within_a_second_and_after_a_deletion() {
    let f = fixture();
    let mut newest = back_up(&f.repository, &f.server, &files(1));
    for seed in 2..6 {
        let earlier = newest;
        newest = back_up(&f.repository, &f.server, &files(seed));
        assert!(newest.id > earlier.id, "{} after {}", newest.id, earlier.id);
        if seed == 4 {
            let oldest = f.repository.backup(&f.server, &BackupSelector::Oldest).unwrap();
            f.repository.delete_backup(&oldest, false).unwrap();
        }
    }
    let latest = f.repository.backup(&f.server, &BackupSelector::Latest).unwrap();
    assert_eq!(latest.id, newest.id);
}

#[test]
fn one_backup_runs_at_a_time_and_is_shown_as_started() {
    let f = fixture();
    let run = begin(&f.repository, &f.server);
    let listed = f.repository.backups(&f.server).unwrap();
    assert_eq!(
        (listed.len(), listed[0].id, listed[0].status),
        (1, run.id(), BackupStatus::Started)
    );
    let again = f
        .repository
        .writer("another")
        .unwrap()
        .begin_backup(&f.server, new_backup());
    let error = again.unwrap_err();
    assert!(matches!(error, Error::BackupRunning { .. }), "{error}");
    assert!(error.to_string().contains("test backup, process "), "{error}");
    let error = f.repository.delete_backup(&listed[0], true).unwrap_err();
    assert!(matches!(error, Error::BackupRunning { .. }), "{error}");
    let other = "other".parse().unwrap();
    back_up(&f.repository, &other, &files(9));
    put_files(&run, &files(1));
    finish(run, 1, 1);
}

#[test]
fn a_failed_backup_has_its_reason_and_is_not_the_latest() {
    let f = fixture();
    let run = begin(&f.repository, &f.server);
    put_files(&run, &files(1));
    run.fail("Connection to the server lost");
    let dropped = begin(&f.repository, &f.server);
    drop(dropped);
    let listed = f.repository.backups(&f.server).unwrap();
    let seen: Vec<_> = listed
        .iter()
        .map(|backup| (backup.status, backup.error.as_deref().unwrap()))
        .collect();
    assert_eq!(
        seen,
        [
            (BackupStatus::Failed, "Connection to the server lost"),
            (BackupStatus::Failed, "Interrupted")
        ]
    );
    let latest = f.repository.backup(&f.server, &BackupSelector::Latest);
    assert!(matches!(latest, Err(Error::NoSuchBackup { .. })));
    let failed = f
        .repository
        .backup(&f.server, &BackupSelector::LatestFailed)
        .unwrap();
    assert_eq!(failed.id, listed[1].id);
    f.repository.delete_backup(&failed, false).unwrap();
    assert_eq!(f.repository.backups(&f.server).unwrap().len(), 1);
    let next = back_up(&f.repository, &f.server, &files(1));
    assert!(
        next.new_stored_bytes < 10_000,
        "what the failed one stored was not found: {}",
        next.new_stored_bytes
    );
}

#[test]
fn a_killed_backup_is_shown_as_failed_and_recorded_by_the_next() {
    let f = fixture();
    let state = f.repository.path().join("running/main.json");
    let run = begin(&f.repository, &f.server);
    let kept = std::fs::read(&state).unwrap();
    let id = run.id();
    run.fail("x");
    let failed = f.repository.backup(&f.server, &BackupSelector::Id(id)).unwrap();
    f.repository.delete_backup(&failed, false).unwrap();
    std::fs::write(&state, &kept).unwrap();
    let listed = f.repository.backups(&f.server).unwrap();
    assert_eq!((listed[0].id, listed[0].status), (id, BackupStatus::Failed));
    assert!(
        listed[0].error.as_deref().unwrap().starts_with("Interrupted"),
        "{listed:?}"
    );
    back_up(&f.repository, &f.server, &files(1));
    let listed = f.repository.backups(&f.server).unwrap();
    assert_eq!(
        listed.iter().map(|backup| backup.status).collect::<Vec<_>>(),
        [BackupStatus::Failed, BackupStatus::WaitingForWals]
    );
    assert!(!state.exists());
    std::fs::write(&state, b"{ half a").unwrap();
    assert_eq!(
        f.repository.backups(&f.server).unwrap().len(),
        2,
        "an unreadable state file is no backup"
    );
    back_up(&f.repository, &f.server, &files(2));
}

#[test]
fn a_killed_backup_can_be_deleted() {
    let f = fixture();
    let state = f.repository.path().join("running/main.json");
    let run = begin(&f.repository, &f.server);
    let kept = std::fs::read(&state).unwrap();
    let id = run.id();
    run.fail("x");
    let failed = f.repository.backup(&f.server, &BackupSelector::Id(id)).unwrap();
    f.repository.delete_backup(&failed, false).unwrap();
    std::fs::write(&state, &kept).unwrap();
    let interrupted = f
        .repository
        .backup(&f.server, &BackupSelector::LatestFailed)
        .unwrap();
    f.repository.delete_backup(&interrupted, false).unwrap();
    assert!(f.repository.backups(&f.server).unwrap().is_empty());
    assert!(f.repository.delete_backup(&interrupted, false).is_err());
}

#[test]
fn a_server_name_belongs_to_one_cluster() {
    let f = fixture();
    back_up(&f.repository, &f.server, &files(1));
    let other = NewBackup {
        system_id: SystemId(1),
        ..new_backup()
    };
    let error = f
        .repository
        .writer("x")
        .unwrap()
        .begin_backup(&f.server, other)
        .unwrap_err();
    assert!(matches!(error, Error::OtherSystem { .. }), "{error}");
}

#[test]
fn a_backup_being_read_is_not_deleted_without_force() {
    let f = fixture();
    let backup = back_up(&f.repository, &f.server, &files(1));
    let guard = f.repository.reading(&backup).unwrap();
    let second = f.repository.reading(&backup).unwrap();
    let error = f.repository.delete_backup(&backup, false).unwrap_err();
    assert!(matches!(error, Error::BackupInUse { .. }), "{error}");
    f.repository.delete_backup(&backup, true).unwrap();
    drop((guard, second));
    assert!(matches!(
        f.repository.reading(&backup),
        Err(Error::NoSuchBackup { .. })
    ));
    assert!(matches!(
        f.repository.delete_backup(&backup, true),
        Err(Error::NoSuchBackup { .. })
    ));
}

#[test]
fn other_processes_see_changes() {
    let f = fixture();
    let other = Repository::open(f.repository.path()).unwrap();
    let before = other.generation().unwrap();
    let backup = back_up(&f.repository, &f.server, &files(1));
    let after = other.generation().unwrap();
    assert_ne!(before, after);
    assert_eq!(other.backups(&f.server).unwrap(), std::slice::from_ref(&backup));
    assert_eq!(restore(&other, &backup), files(1));
    f.repository.delete_backup(&backup, false).unwrap();
    assert_ne!(other.generation().unwrap(), after);
    assert!(other.backups(&f.server).unwrap().is_empty());
}

#[test]
fn an_incremental_backup_names_its_parent_and_does_not_need_it() {
    let f = fixture();
    let parent = back_up(&f.repository, &f.server, &files(1));
    assert_eq!((parent.kind, parent.parent), (BackupKind::Full, None));
    let mut run = begin(&f.repository, &f.server);
    run.build_on(&parent).unwrap();
    let running = f.repository.backups(&f.server).unwrap().pop().unwrap();
    assert_eq!(
        (running.kind, running.parent),
        (BackupKind::Incremental, Some(parent.id))
    );
    put_files(&run, &files(1));
    run.end_tree(attributes()).unwrap();
    run.add_file(b"backup_manifest", attributes(), 3, &mut b"{}\n".as_slice())
        .unwrap();
    let backup = run.finish(backup_end(1, 2)).unwrap();
    assert_eq!(
        (backup.kind, backup.parent),
        (BackupKind::Incremental, Some(parent.id))
    );
    assert_eq!(backup.files, parent.files + 1);
    assert_eq!(backup.logical_bytes, parent.logical_bytes + 3);
    f.repository.delete_backup(&parent, false).unwrap();
    for _ in 0..3 {
        f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    }
    let mut expected = files(1);
    expected.insert("backup_manifest".to_owned(), b"{}\n".to_vec());
    assert_eq!(restore(&f.repository, &backup), expected);
}

#[test]
fn a_failed_incremental_starts_over_as_a_full_backup() {
    let f = fixture();
    let parent = back_up(&f.repository, &f.server, &files(1));
    let mut run = begin(&f.repository, &f.server);
    run.build_on(&parent).unwrap();
    // The first attempt stores half of a file: nothing of it may be left.
    let tree = run.tree().unwrap();
    let mut half = tree.file(b"half", attributes(), 2, WINDOW).unwrap();
    half.write(b"x").unwrap();
    drop(half);
    run.start_over().unwrap();
    put_files(&run, &files(2));
    let backup = finish(run, 1, 2);
    assert_eq!((backup.kind, backup.parent), (BackupKind::Full, None));
    assert!(backup.id > parent.id);
    assert_eq!(restore(&f.repository, &backup), files(2));
}
