//! What of a primary cannot be taken, or is not followed: it is named, each time, and spoils nothing else.

use barmanfs_catalog::retention::RetentionRules;
use barmanfs_catalog::{Backup, SyncOptions};
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};
use barmanfs_store::{PackStorage, PackWriter, Record, RecordId, read_footer};
use serde_json::{Value, json};

use crate::common::{SEGMENT_SIZE, SYSTEM, archive, read_wal, segment};
use crate::sync::{Sites, everything, files};

/// Kinds of records, see FORMAT.md.
const BACKUP: u8 = 1;
const DELETION: u8 = 3;
const HISTORY: u8 = 9;

/// Writes a record into a pack of the primary.
fn write(sites: &Sites, kind: u8, payload: &Value) {
    let packs = sites.packs();
    let mut pack = PackWriter::begin(&packs).unwrap();
    let record = Record {
        id: RecordId::random().unwrap(),
        kind,
        payload: payload.to_string().into_bytes(),
    };
    pack.record(record).unwrap();
    pack.close().unwrap();
}

/// The id of the record of the only backup of the primary.
fn record_of_backup(sites: &Sites) -> RecordId {
    let packs = sites.packs();
    let mut found = None;
    packs
        .list(&mut |pack| {
            let records = read_footer(&packs, pack)?.records;
            found = found.or(records
                .iter()
                .find(|record| record.kind == BACKUP)
                .map(|record| record.id));
            Ok(())
        })
        .unwrap();
    found.unwrap()
}

fn lsn(segment: u64) -> Lsn {
    Lsn(segment * SEGMENT_SIZE.bytes())
}

/// Breaks the pack with a backup's first file, and returns its path and what it was.
fn break_pack_of(sites: &Sites, backup: &Backup) -> (std::path::PathBuf, Vec<u8>) {
    let pack = sites.pack_of(backup).to_string();
    let packs = sites.primary.repository.path().join("packs");
    let path = packs.join(&pack[..2]).join(&pack);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 3] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    (path, good)
}

/// The kind: a policy that judges by what does not come.
#[test]
fn older_backups_come_in_the_place_of_one_that_is_damaged() {
    let newest = SyncOptions {
        rules: RetentionRules {
            backups: Some("REDUNDANCY 1".parse().unwrap()),
            ..RetentionRules::default()
        },
        ..everything()
    };
    let sites = Sites::new();
    let backups = [1, 2, 3].map(|number| sites.back_up(number, &files(number.into())));
    let (path, good) = break_pack_of(&sites, &backups[2]);
    for come in [vec![backups[1].id], Vec::new()] {
        let report = sites.sync_with(&newest);
        assert_eq!(report.backups, come, "{report:?}");
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert!(
            report.problems[0].contains(&backups[2].id.to_string()),
            "{report:?}"
        );
        // With its WAL.
        let here = sites.node.backups(sites.server()).unwrap();
        assert!(here.iter().all(|backup| backup.status.as_str() == "DONE"));
        assert_eq!(sites.node_ids(), [backups[1].id.to_string()]);
    }
    std::fs::write(&path, &good).unwrap();
    let report = sites.sync_with(&newest);
    assert_eq!(report.backups, [backups[2].id], "{report:?}");
    assert!(report.problems.is_empty(), "{report:?}");
    sites.assert_sound();
}

#[test]
fn an_unreadable_deletion_is_named_each_time() {
    let sites = Sites::new();
    sites.back_up(1, &files(1));
    write(&sites, DELETION, &json!({"version": 1, "of": "nothing"}));
    for _ in 0..3 {
        let report = sites.sync();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert!(report.problems[0].contains("deletion"), "{report:?}");
        assert_eq!(report.new_packs > 0, !report.backups.is_empty(), "{report:?}");
    }
}

/// A primary decides about its own histories, and cannot set apart here what no decision is about.
#[test]
fn a_decision_about_no_fork_sets_nothing_apart() {
    let sites = Sites::new();
    let backup = sites.back_up(3, &files(1));
    sites.sync();
    let fork = {
        let writer = sites.primary.repository.writer("test").unwrap();
        let place = (TimelineId(1), lsn(5), SEGMENT_SIZE);
        writer
            .record_fork(sites.server(), place, "other WAL", "test")
            .unwrap()
            .id
    };
    let restart = |of: &[RecordId], at: Lsn| {
        let record = record_of_backup(&sites);
        json!({
            "version": 1, "server": sites.server(), "timeline": 1, "lsn": at,
            "at": TimestampMicros::from_unix_seconds(1_800_000_000),
            "event": {"restart": {"of": of, "apart": [record], "taken": [], "shared_from": at}},
        })
    };
    write(&sites, HISTORY, &restart(&[], lsn(0)));
    write(&sites, HISTORY, &restart(&[RecordId::random().unwrap()], lsn(0)));
    write(&sites, HISTORY, &restart(&[fork], lsn(5)));
    for _ in 0..2 {
        let report = sites.sync();
        assert_eq!(report.problems.len(), 3, "{report:?}");
        assert!(
            report
                .problems
                .iter()
                .all(|problem| problem.contains("is not followed"))
        );
        assert!(
            report
                .problems
                .iter()
                .any(|problem| problem.contains(&format!("backup {}", backup.id)))
        );
        assert!(sites.node.backups(sites.server()).unwrap()[0].is_of_current_history());
    }
}

#[test]
fn a_decision_about_a_fork_is_followed_and_said() {
    let sites = Sites::new();
    let before = sites.back_up(1, &files(1));
    let left = sites.back_up(2, &files(2));
    sites.sync();
    let writer = sites.primary.repository.writer("test").unwrap();
    let place = (TimelineId(1), lsn(2), SEGMENT_SIZE);
    writer
        .record_fork(sites.server(), place, "other WAL", "test")
        .unwrap();
    writer.restart_history(sites.server(), None, lsn(2)).unwrap();
    drop(writer);
    let (name, bytes) = segment(2, SYSTEM, 99);
    archive(&sites.primary.repository, sites.server(), &name, &bytes).unwrap();
    let report = sites.sync();
    assert!(report.problems.is_empty(), "{report:?}");
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.contains(&left.id.to_string())),
        "{report:?}"
    );
    let here = sites.node.backups(sites.server()).unwrap();
    let current: Vec<_> = here
        .iter()
        .filter(|backup| backup.is_of_current_history())
        .map(|backup| backup.id)
        .collect();
    assert_eq!(current, [before.id]);
    let WalName::Segment(_) = name else {
        panic!("{name}")
    };
    assert!(read_wal(&sites.node, sites.server(), &name) == bytes);
}
