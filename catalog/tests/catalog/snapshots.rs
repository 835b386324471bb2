//! Backups whose files are in the site's storage: they count as others, nothing here belongs to them, and they go only when
//! somebody has said that they are gone there.

use std::collections::BTreeSet;

use barmanfs_catalog::retention::{Approved, RetentionRules};
use barmanfs_catalog::{
    Backup, BackupKind, BackupSelector, BackupStatus, IntendedSnapshot, Repository, Silent, SnapshotDisk,
    StorageSnapshot, SweepOptions, TargetSpec, VerifyScope,
};
use barmanfs_pg::TimestampMicros;

use crate::common::{
    Files, Fixture, SYSTEM, archive, back_up, backup_end, begin, fixture, noise, segment, stored,
};

/// Their kind of record, see FORMAT.md.
const KIND: u8 = 12;

/// A backup that is a snapshot; its WAL is not there yet.
pub(crate) fn take(f: &Fixture) -> Backup {
    let snapshot = StorageSnapshot {
        name: "barmanfs-main-1".to_owned(),
        disks: vec![SnapshotDisk {
            disk: None,
            snapshot: "disk1-1".to_owned(),
            mount_point: "/srv".to_owned(),
            mount_options: "rw".to_owned(),
        }],
        data_directory: Some("/srv/main".to_owned()),
        backup_label: "START WAL LOCATION: 0/400028 (file 000000010000000000000004)\n".to_owned(),
        tablespace_map: String::new(),
    };
    let run = begin(&f.repository, &f.server);
    run.finish_snapshot(backup_end(4, 4), snapshot).unwrap()
}

fn files(seed: u64) -> Files {
    Files::from([("base/1".to_owned(), noise(seed, 300_000))])
}

fn archive_wal(f: &Fixture) {
    for number in 1..6 {
        let (name, bytes) = segment(number, SYSTEM, number.into());
        archive(&f.repository, &f.server, &name, &bytes).unwrap();
    }
}

#[test]
fn a_snapshot_is_done_when_its_wal_is_there_and_has_no_files() {
    let f = fixture();
    let before = back_up(&f.repository, &f.server, &files(1));
    let taken = take(&f);
    assert_eq!(
        (taken.kind, taken.status),
        (BackupKind::Snapshot, BackupStatus::WaitingForWals)
    );
    archive_wal(&f);
    let latest = f.repository.backup(&f.server, &BackupSelector::Latest).unwrap();
    assert_eq!(
        (latest.id, latest.status, latest.is_complete()),
        (taken.id, BackupStatus::Done, false)
    );
    assert_eq!(latest.snapshot, taken.snapshot);
    let verified = f.repository.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert_eq!((verified.backups, verified.snapshots), (1, 1));
    // A recovery uses it only where somebody names it.
    let planned = |spec: &str| {
        let spec: TargetSpec = spec.parse().unwrap();
        f.repository
            .plan(&f.server, &spec)
            .unwrap()
            .map(|plan| plan.backup.id)
    };
    assert_eq!(planned("immediate").ok(), Some(before.id));
    assert_eq!(
        planned(&format!("immediate,backup={}", taken.id)).ok(),
        Some(taken.id)
    );
    // The next backup shares with the last one whose files are here.
    let next = back_up(&f.repository, &f.server, &files(1));
    assert!(next.new_stored_bytes < 100_000, "{}", next.new_stored_bytes);
}

#[test]
fn a_policy_names_a_snapshot_and_leaves_it_to_who_can_reach_the_storage() {
    let f = fixture();
    let old = take(&f);
    archive_wal(&f);
    for _ in 0..2 {
        take(&f);
    }
    let rules = RetentionRules {
        backups: Some("REDUNDANCY 2".parse().unwrap()),
        ..RetentionRules::default()
    };
    let now = TimestampMicros::from_unix_seconds(4_000_000_000);
    let ids = || -> Vec<_> {
        let backups = f.repository.backups(&f.server).unwrap();
        backups.into_iter().map(|backup| backup.id).collect()
    };
    let done = f.repository.enforce_retention(&f.server, &rules, now).unwrap();
    let doomed: Vec<_> = done.plan.doomed().map(|backup| backup.id).collect();
    assert_eq!((doomed, done.deleted), (vec![old.id], Vec::new()));
    assert_eq!(ids().len(), 3);
    let approved = Approved {
        backups: BTreeSet::from([old.id]),
        wal: Vec::new(),
    };
    let done = f
        .repository
        .enforce_approved(&f.server, &rules, now, Some(&approved))
        .unwrap();
    assert_eq!((done.deleted, ids().len()), (Vec::new(), 3));
    f.repository.delete_backup(&old, false).unwrap();
    assert_eq!(ids().len(), 2);
}

#[test]
fn nothing_is_left_of_a_deleted_snapshot() {
    let f = fixture();
    let taken = take(&f);
    f.repository.delete_backup(&taken, false).unwrap();
    assert_eq!(stored(&f, KIND), 1);
    f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    f.repository.sweep(&SweepOptions::default(), &mut Silent).unwrap();
    assert_eq!(stored(&f, KIND), 0);
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    assert!(f.repository.backups(&f.server).unwrap().is_empty());
}

/// The kind: a kill between the snapshot in the storage and its record.
#[test]
fn a_snapshot_without_a_record_is_known_by_its_name() {
    let f = fixture();
    let run = begin(&f.repository, &f.server);
    let id = run.id();
    let intended = |name: &str| IntendedSnapshot {
        server: f.server.clone(),
        backup: id,
        name: name.to_owned(),
        data_directory: None,
    };
    let abandoned = || f.repository.abandoned_snapshots(&f.server).unwrap();
    f.repository.intend_snapshot(&intended("one")).unwrap();
    assert_eq!(abandoned(), [], "it is being taken");
    drop(run);
    assert_eq!(abandoned(), [intended("one")]);
    f.repository.forget_intended_snapshot(&f.server, id).unwrap();
    f.repository.forget_intended_snapshot(&f.server, id).unwrap();
    assert_eq!(abandoned(), []);
    // One that is recorded is not abandoned, whatever the note says.
    let taken = take(&f);
    let recorded = IntendedSnapshot {
        backup: taken.id,
        ..intended("barmanfs-main-1")
    };
    f.repository.intend_snapshot(&recorded).unwrap();
    assert_eq!(abandoned(), []);
}
