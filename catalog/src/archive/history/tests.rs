use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, SystemId, testing};
use barmanfs_store::layout::PACK_HEADER_BYTES;
use barmanfs_store::testing::Call;

use super::Decided;
use crate::archive::derive::derive;
use crate::archive::wal::WalOutcome;
use crate::error::Error;
use crate::home::PACKS;
use crate::home::settings::CreateOptions;
use crate::index::repository::{Repository, on_test_packs};
use crate::monitor::Silent;
use crate::names::ServerName;

const SIZE: SegmentSize = SegmentSize::MIN;

fn name(number: u32) -> WalName {
    WalName::Segment(segment(number, 0).0)
}

/// A segment with a valid first page and, instead of records, bytes that depend on `history`.
fn segment(number: u32, history: u8) -> (SegmentName, Vec<u8>) {
    let content = (0..SIZE.bytes()).map(|at| (at / 1000) as u8 ^ history).collect();
    testing::segment(number, SystemId(testing::SYSTEM_ID), content)
}

fn archive(repository: &Repository, number: u32, history: u8) -> WalOutcome {
    let bytes = segment(number, history).1;
    let writer = repository.writer("test").unwrap();
    let size = bytes.len() as u64;
    writer
        .archive_wal(&main(), &name(number), &mut bytes.as_slice(), size, "test")
        .unwrap()
}

fn main() -> ServerName {
    "main".parse().unwrap()
}

/// Numbers and histories of the segments of an archive: for 0 the server's, otherwise that of an abandoned history.
fn archived(repository: &Repository, left: usize) -> Vec<(u32, u8)> {
    let archive = match left {
        0 => repository.wal(&main()),
        left => repository.left_wal(&main(), left).unwrap().unwrap(),
    };
    let numbers = 1..10;
    let found = numbers.filter_map(|number| {
        let map = archive.find(&name(number)).unwrap()?.map;
        let mut last = [0];
        let at = SIZE.bytes() - 1;
        assert_eq!(repository.trees().read_at(&map, at, &mut last).unwrap(), 1);
        Some((number, last[0] ^ (at / 1000) as u8))
    });
    found.collect()
}

fn packs(path: &Path) -> BTreeSet<PathBuf> {
    let directories = fs::read_dir(path.join(PACKS)).unwrap();
    let directories = directories
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir());
    directories
        .flat_map(|directory| fs::read_dir(directory).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// The records at the pack's end stay readable.
fn damage_first_chunk(pack: &Path) {
    let mut bytes = fs::read(pack).unwrap();
    bytes[PACK_HEADER_BYTES + 10] ^= 1;
    fs::write(pack, bytes).unwrap();
}

#[test]
fn releasing_from_quarantine_mixes_no_histories() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("repository");
    let repository = Repository::create(&path, CreateOptions::default()).unwrap();
    for number in 1..=3 {
        assert!(matches!(archive(&repository, number, 1), WalOutcome::Stored(_)));
    }
    assert!(matches!(archive(&repository, 2, 2), WalOutcome::Conflict(_)));
    assert!(matches!(archive(&repository, 4, 2), WalOutcome::Refused(_)));
    let kept = repository
        .find_quarantined(&main(), &name(4).to_string())
        .unwrap();
    let error = repository.release_quarantined(&kept, false).unwrap_err();
    assert!(matches!(error, Error::OfAnotherHistory { .. }), "{error}");
    repository.delete_quarantined(&kept).unwrap();
    assert!(matches!(archive(&repository, 4, 2), WalOutcome::Refused(_)));
    let lsn = repository.open_forks(&main()).unwrap()[0].lsn;
    assert_eq!(lsn.segment_start(SIZE), Lsn(2 * SIZE.bytes()));

    let writer = repository.writer("test").unwrap();
    writer.restart_history(&main(), None, lsn).unwrap();
    assert_eq!(archived(&repository, 0), [(1, 1), (2, 2)]);
    assert_eq!(archived(&repository, 1), [(2, 1), (3, 1)]);
    // The abandoned history stays abandoned, and its third segment is not accepted into the new one.
    assert!(matches!(archive(&repository, 3, 1), WalOutcome::Refused(_)));
    let old = repository
        .find_quarantined(&main(), &name(3).to_string())
        .unwrap();
    let error = repository.release_quarantined(&old, false).unwrap_err();
    assert!(matches!(error, Error::OfAnotherHistory { .. }), "{error}");
    // There is no open fork any more that precedes the other file.
    let kept = repository
        .find_quarantined(&main(), &name(4).to_string())
        .unwrap();
    repository.release_quarantined(&kept, false).unwrap();
    drop(writer);
    for _ in 0..2 {
        assert_eq!(archived(&repository, 0), [(1, 1), (2, 2), (4, 2)]);
        assert_eq!(archived(&repository, 1), [(2, 1), (3, 1)]);
        Repository::rebuild(&path, &mut Silent).unwrap();
        repository.generation().unwrap();
    }
}

/// Archivers retry. If a file reveals a second fork and is sent again, it must not be attributed to the first fork,
/// which was decided.
#[test]
fn a_file_that_arrives_again_names_the_fork_it_revealed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("repository");
    let repository = Repository::create(&path, CreateOptions::default()).unwrap();
    let conflict = |number, history| match archive(&repository, number, history) {
        WalOutcome::Conflict(conflict) => conflict.fork.unwrap(),
        other => panic!("{other:?}"),
    };
    for number in 1..=2 {
        archive(&repository, number, 1);
    }
    let first = conflict(2, 2);
    let writer = repository.writer("test").unwrap();
    writer.restart_history(&main(), None, first.lsn).unwrap();
    for number in 3..=4 {
        archive(&repository, number, 2);
    }
    let second = conflict(4, 3);
    assert_ne!(second.id, first.id);
    for _ in 0..2 {
        let again = conflict(4, 3);
        assert_eq!((again.id, again.decided), (second.id, None));
    }
    writer.keep_history(&main(), None, second.lsn).unwrap();
    for _ in 0..2 {
        let again = conflict(4, 3);
        assert_eq!((again.id, again.decided), (second.id, Some(Decided::Keep)));
    }
    assert_eq!(repository.forks(&main()).unwrap().len(), 2);
}

/// WAL from the second segment on. Other record sizes make another history.
fn wal(record_bytes: usize) -> Vec<testing::SampleSegment> {
    const XLOG_NOOP: u8 = 0x20;
    let mut wal = testing::SampleWal::new(Lsn(SIZE.bytes()), SIZE);
    while wal.position().0 < 3 * SIZE.bytes() + SIZE.bytes() / 2 {
        wal.record(0, XLOG_NOOP, &vec![7; record_bytes]);
    }
    wal.segments()
}

/// Two servers of one cluster archive by turns. While one of them waits for the disk, the other brings the next segment.
#[test]
fn neighbours_that_come_at_one_moment_are_compared() {
    let (_directory, storage, repository) = on_test_packs(derive);
    let archive = |segment: &testing::SampleSegment| {
        let writer = repository.writer("test").unwrap();
        let (name, size) = (WalName::Segment(segment.name), segment.bytes.len() as u64);
        writer
            .archive_wal(&main(), &name, &mut segment.bytes.as_slice(), size, "test")
            .unwrap()
    };
    let (one, other) = (wal(1000), wal(1700));
    assert!(matches!(archive(&one[0]), WalOutcome::Stored(_)));

    let (at_disk, is_at_disk) = mpsc::channel();
    storage.before_each(move |call| {
        if matches!(call, Call::Finish(_)) {
            at_disk.send(()).unwrap();
            thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    });
    thread::scope(|scope| {
        let first = scope.spawn(|| archive(&one[1]));
        is_at_disk.recv().unwrap();
        let second = archive(&other[2]);
        assert!(matches!(first.join().unwrap(), WalOutcome::Stored(_)));
        assert!(matches!(second, WalOutcome::Refused(_)), "{second:?}");
    });
    assert_eq!(repository.open_forks(&main()).unwrap().len(), 1);
}

#[test]
fn reindexing_leaves_both_histories_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("repository");
    let repository = Repository::create(&path, CreateOptions::default()).unwrap();
    for number in 1..=2 {
        archive(&repository, number, 1);
    }
    for number in 2..=4 {
        archive(&repository, number, 2);
    }
    let writer = repository.writer("test").unwrap();
    // From the second segment on, as no backup needs the first.
    writer
        .restart_history(&main(), None, Lsn(2 * SIZE.bytes()))
        .unwrap();
    let both = |repository: &Repository| (archived(repository, 0), archived(repository, 1));
    let before = both(&repository);
    assert_eq!(before.0, [(1, 1), (2, 2), (3, 2), (4, 2)]);
    assert_eq!(before.1, [(2, 1)]);
    let numbers: Vec<WalName> = (1..=4).map(name).collect();
    writer.reindex_these(&main(), &numbers).unwrap();
    drop(writer);
    for _ in 0..2 {
        assert_eq!(both(&repository), before);
        Repository::rebuild(&path, &mut Silent).unwrap();
        repository.generation().unwrap();
    }
}

/// A damaged segment must leave the archive, or the right one could never come. The other history's segment of that name
/// stays.
#[test]
fn a_damaged_segment_is_taken_from_its_own_history_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("repository");
    let repository = Repository::create(&path, CreateOptions::default()).unwrap();
    for number in 1..=2 {
        archive(&repository, number, 1);
    }
    // Refused, and taken by the decision.
    let before = packs(&path);
    archive(&repository, 2, 2);
    let new: Vec<PathBuf> = packs(&path).difference(&before).cloned().collect();
    archive(&repository, 3, 2);
    let writer = repository.writer("test").unwrap();
    let lsn = repository.open_forks(&main()).unwrap()[0].lsn;
    writer.restart_history(&main(), None, lsn).unwrap();
    drop(writer);
    assert_eq!(archived(&repository, 0), [(1, 1), (2, 2), (3, 2)]);
    for pack in new {
        damage_first_chunk(&pack);
    }
    let repository = Repository::open(&path).unwrap();
    repository.take_from_archive(&main(), &name(2), false).unwrap();
    for _ in 0..2 {
        assert_eq!(repository.wal(&main()).find(&name(2)).unwrap(), None);
        assert_eq!(archived(&repository, 0), [(1, 1), (3, 2)]);
        assert_eq!(archived(&repository, 1), [(2, 1)]);
        assert_eq!(repository.wal(&main()).quarantined().unwrap().len(), 1);
        Repository::rebuild(&path, &mut Silent).unwrap();
        repository.generation().unwrap();
    }
    assert!(matches!(archive(&repository, 2, 2), WalOutcome::Stored(_)));
    assert_eq!(archived(&repository, 0), [(1, 1), (2, 2), (3, 2)]);
}
