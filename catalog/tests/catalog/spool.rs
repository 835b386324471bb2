//! The spool: acknowledged WAL is never overwritten, and leaves the spool only for the archive.

use std::path::PathBuf;

use crate::common::{Fixture, SEGMENT_SIZE, SYSTEM, archive, fixture, read_wal, segment};
use barmanfs_catalog::{Error, Spool, SpoolFile, WalOutcome};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, TimelineId};

/// Bytes that come in one message.
const MESSAGE: usize = 100_000;

fn name(number: u32) -> SegmentName {
    segment(number, SYSTEM, 0).0.segment().unwrap()
}

fn bytes(number: u32, seed: u64) -> Vec<u8> {
    segment(number, SYSTEM, seed).1
}

fn spool(f: &Fixture) -> Spool {
    f.repository.spool(&f.server).unwrap()
}

fn path(f: &Fixture, file: &str) -> PathBuf {
    f.repository
        .path()
        .join("spool")
        .join(f.server.as_str())
        .join(file)
}

fn receive(spool: &Spool, name: SegmentName, bytes: &[u8]) -> SpoolFile {
    let mut file = spool.begin(name, SEGMENT_SIZE).unwrap();
    for message in bytes.chunks(MESSAGE) {
        file.append(message).unwrap();
    }
    file.sync().unwrap();
    file
}

#[test]
fn a_segment_goes_through_the_spool_into_the_archive() {
    let f = fixture();
    let spool = spool(&f);
    let whole = bytes(1, 1);
    let half = whole.len() / 2;
    let mut file = receive(&spool, name(1), &whole[..half]);
    assert_eq!(file.durable(), file.written());
    assert_eq!(file.durable().0, name(1).start_lsn(SEGMENT_SIZE).0 + half as u64);

    let [partial] = f.repository.receiving(&f.server).unwrap().try_into().unwrap();
    assert_eq!((partial.name, partial.complete), (name(1), false));
    let mut expected = whole[..half].to_vec();
    expected.resize(whole.len(), 0);
    assert!(
        std::fs::read(&partial.path).unwrap() == expected,
        "zero where nothing has come"
    );

    file.append(&whole[half..]).unwrap();
    assert_eq!(file.missing_bytes(), 0);
    assert!(file.append(&[0]).is_err(), "it is full");
    file.finish().unwrap();
    let [complete] = f.repository.receiving(&f.server).unwrap().try_into().unwrap();
    assert!(complete.complete);
    assert_eq!(spool.complete().unwrap(), [name(1)]);

    assert!(matches!(spool.archive(name(1)).unwrap(), WalOutcome::Stored(_)));
    assert!(read_wal(&f.repository, &f.server, &WalName::Segment(name(1))) == whole);
    assert_eq!(f.repository.receiving(&f.server).unwrap(), []);
    assert!(!complete.path.exists());
}

#[test]
fn an_incomplete_segment_is_never_archived_as_complete() {
    let f = fixture();
    let spool = spool(&f);
    let file = receive(&spool, name(1), &bytes(1, 1)[..MESSAGE]);
    assert!(file.finish().is_err());
    assert_eq!(spool.complete().unwrap(), []);
    assert_eq!(spool.partial().unwrap(), [name(1)]);
}

#[test]
fn bytes_of_an_earlier_receiver_are_repeated_and_never_changed() {
    let f = fixture();
    let whole = bytes(1, 1);
    drop(receive(&spool(&f), name(1), &whole[..3 * MESSAGE]));
    let spool = spool(&f);
    let before = std::fs::read(path(&f, &format!("{}.partial", name(1)))).unwrap();

    let mut other = whole.clone();
    other[2 * MESSAGE + 5] ^= 0x55;
    let mut file = spool.begin(name(1), SEGMENT_SIZE).unwrap();
    file.append(&other[..2 * MESSAGE]).unwrap();
    let error = file.append(&other[2 * MESSAGE..3 * MESSAGE]).unwrap_err();
    assert!(matches!(error, Error::SpoolDiverges { .. }), "{error}");
    assert!(std::fs::read(path(&f, &format!("{}.partial", name(1)))).unwrap() == before);

    receive(&spool, name(1), &whole).finish().unwrap();
    spool.archive(name(1)).unwrap();
    assert!(read_wal(&f.repository, &f.server, &WalName::Segment(name(1))) == whole);
}

#[test]
fn a_lost_unacknowledged_block_is_filled_in() {
    let f = fixture();
    let spool = spool(&f);
    let whole = bytes(1, 1);
    drop(receive(&spool, name(1), &whole[..4 * MESSAGE]));
    // As a crash of the host leaves it: a later block reached the disk, an earlier one did not.
    let file = path(&f, &format!("{}.partial", name(1)));
    let mut left = std::fs::read(&file).unwrap();
    left[MESSAGE..2 * MESSAGE].fill(0);
    std::fs::write(&file, left).unwrap();
    receive(&spool, name(1), &whole).finish().unwrap();
    spool.archive(name(1)).unwrap();
    assert!(read_wal(&f.repository, &f.server, &WalName::Segment(name(1))) == whole);
}

#[test]
fn only_one_process_receives_and_others_name_it() {
    let f = fixture();
    assert_eq!(f.repository.receiver(&f.server).unwrap(), None);
    let spool = spool(&f);
    let error = f.repository.spool(&f.server).unwrap_err();
    assert!(matches!(error, Error::Receiving { .. }), "{error}");
    let receiver = f.repository.receiver(&f.server).unwrap().unwrap();
    assert_eq!(receiver.process, Some(std::process::id()));
    assert!(
        receiver.description.contains("receive-wal"),
        "{}",
        receiver.description
    );
    drop(spool);
    assert_eq!(f.repository.receiver(&f.server).unwrap(), None);
}

#[test]
fn a_file_of_another_size_is_left_alone() {
    let f = fixture();
    let spool = spool(&f);
    let file = path(&f, &format!("{}.partial", name(1)));
    std::fs::write(&file, b"of another server").unwrap();
    let error = spool.begin(name(1), SEGMENT_SIZE).unwrap_err();
    assert!(matches!(error, Error::SpoolSize { .. }), "{error}");
    assert!(file.exists());
    // A file that a process was creating when it was killed is no obstacle.
    std::fs::write(&file, b"").unwrap();
    spool.begin(name(1), SEGMENT_SIZE).unwrap();
}

#[test]
fn a_partial_segment_is_removed_when_the_archive_has_all_of_it() {
    let f = fixture();
    let whole = bytes(1, 1);
    drop(receive(&spool(&f), name(1), &whole[..MESSAGE]));
    let spool = spool(&f);
    assert_eq!(spool.settle(TimelineId(1)).unwrap(), []);
    assert_eq!(spool.partial().unwrap(), [name(1)], "the archive has nothing yet");
    archive(&f.repository, &f.server, &WalName::Segment(name(1)), &whole).unwrap();
    assert_eq!(f.repository.receiving(&f.server).unwrap(), []);
    assert_eq!(spool.settle(TimelineId(1)).unwrap(), []);
    assert_eq!(spool.partial().unwrap(), []);
}

#[test]
fn a_new_timeline_takes_over_the_received_bytes() {
    let f = fixture();
    let spool = spool(&f);
    let whole = bytes(1, 1);
    drop(receive(&spool, name(1), &whole[..MESSAGE]));
    let next = SegmentName {
        timeline: TimelineId(2),
        ..name(1)
    };
    receive(&spool, next, &whole).finish().unwrap();
    spool.archive(next).unwrap();
    assert_eq!(
        spool.partial().unwrap(),
        [],
        "it holds nothing that is not in the new one"
    );
    assert_eq!(
        f.repository
            .wal(&f.server)
            .entry(&WalName::Partial(name(1)))
            .unwrap(),
        None
    );
}

#[test]
fn bytes_that_the_new_timeline_lacks_are_kept() {
    let f = fixture();
    let spool = spool(&f);
    let (old, new) = (bytes(1, 1), bytes(1, 2));
    drop(receive(&spool, name(1), &old[..MESSAGE]));
    let next = SegmentName {
        timeline: TimelineId(2),
        ..name(1)
    };
    archive(&f.repository, &f.server, &WalName::Segment(next), &new).unwrap();
    assert_eq!(
        spool.settle(TimelineId(1)).unwrap(),
        [],
        "timeline 2 is not the server's"
    );
    assert_eq!(spool.partial().unwrap(), [name(1)]);
    assert_eq!(spool.settle(TimelineId(2)).unwrap(), [name(1)]);
    assert_eq!(spool.partial().unwrap(), []);
    let kept = read_wal(&f.repository, &f.server, &WalName::Partial(name(1)));
    assert!(kept[..MESSAGE] == old[..MESSAGE]);
}

#[test]
fn an_abandoned_segment_is_taken_over_at_once() {
    let f = fixture();
    let spool = spool(&f);
    let whole = bytes(1, 1);
    let switch = Lsn(name(1).start_lsn(SEGMENT_SIZE).0 + MESSAGE as u64);
    let next = SegmentName {
        timeline: TimelineId(2),
        ..name(1)
    };
    for (received, kept) in [(MESSAGE, false), (2 * MESSAGE, true)] {
        drop(receive(&spool, name(1), &whole[..received]));
        assert_eq!(
            spool
                .take_over(name(1), TimelineId(2), switch, SEGMENT_SIZE)
                .unwrap(),
            kept
        );
        let [taken] = f.repository.receiving(&f.server).unwrap().try_into().unwrap();
        assert_eq!(taken.name, next);
        let mut expected = whole[..MESSAGE].to_vec();
        expected.resize(whole.len(), 0);
        assert!(
            std::fs::read(&taken.path).unwrap() == expected,
            "up to the switch and not beyond"
        );
        let archived = WalName::Partial(name(1));
        if kept {
            let beyond = read_wal(&f.repository, &f.server, &archived);
            assert!(beyond[..received] == whole[..received]);
        } else {
            assert_eq!(f.repository.wal(&f.server).entry(&archived).unwrap(), None);
        }
        std::fs::remove_file(taken.path).unwrap();
    }
}

#[test]
fn a_partial_segment_without_content_leaves_no_trace() {
    let f = fixture();
    let spool = spool(&f);
    drop(spool.begin(name(1), SEGMENT_SIZE).unwrap());
    spool.set_aside(name(1)).unwrap();
    assert_eq!(spool.partial().unwrap(), []);
    assert_eq!(
        f.repository
            .wal(&f.server)
            .entry(&WalName::Partial(name(1)))
            .unwrap(),
        None
    );
}

#[test]
fn a_different_segment_in_the_archive_sends_this_one_into_quarantine() {
    let f = fixture();
    let spool = spool(&f);
    let (received, archived) = (bytes(1, 1), bytes(1, 2));
    archive(&f.repository, &f.server, &WalName::Segment(name(1)), &archived).unwrap();
    receive(&spool, name(1), &received).finish().unwrap();
    let outcome = spool.archive(name(1)).unwrap();
    assert!(matches!(outcome, WalOutcome::Conflict(_)), "{outcome:?}");
    assert_eq!(f.repository.wal(&f.server).quarantined().unwrap().len(), 1);
    assert_eq!(spool.complete().unwrap(), []);
}

#[test]
fn the_last_segment_of_a_timeline_is_found() {
    let f = fixture();
    for number in 1..=3 {
        archive(
            &f.repository,
            &f.server,
            &WalName::Segment(name(number)),
            &bytes(number, 1),
        )
        .unwrap();
    }
    let archive = f.repository.wal(&f.server);
    let last = |end| archive.last_segment(TimelineId(1), end).unwrap();
    assert_eq!(last(None), Some(name(3)));
    assert_eq!(last(Some(name(3))), Some(name(2)));
    assert_eq!(last(Some(name(1))), None);
    assert_eq!(archive.last_segment(TimelineId(2), None).unwrap(), None);
}

/// Opening a pipe would wait forever.
#[test]
fn files_that_are_not_regular_are_refused_at_once() {
    let f = fixture();
    let spool = spool(&f);
    let pipe = |file: &str| {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path(&f, file),
            rustix::fs::FileType::Fifo,
            mode,
            0,
        )
        .unwrap();
    };
    pipe(&name(1).to_string());
    pipe(&format!("{}.partial", name(2)));
    let refused = |error: Error| assert!(error.to_string().contains("regular file"), "{error}");
    refused(spool.archive(name(1)).unwrap_err());
    refused(spool.set_aside(name(2)).unwrap_err());
    refused(spool.begin(name(2), SEGMENT_SIZE).unwrap_err());
    assert!(f.repository.receiving(&f.server).unwrap().is_empty());
}

/// What has come once never goes for the sake of a receiver that has less of it, or something else.
#[test]
fn a_partial_segment_is_replaced_only_by_one_that_continues_it() {
    let f = fixture();
    let spool = spool(&f);
    let (whole, name) = (bytes(1, 1), name(1));
    let path = path(&f, &format!("{name}.partial"));
    let begins = |count: usize| {
        let mut begins = whole[..count].to_vec();
        begins.resize(whole.len(), 0);
        begins
    };
    let replace = |at: i64, bytes: &[u8]| spool.replace_partial(name, SEGMENT_SIZE, (at, 5), &mut &*bytes);
    assert!(replace(1, &whole[..100_000]).unwrap());
    assert!(replace(2, &whole[..300_000]).unwrap());
    assert!(std::fs::read(&path).unwrap() == begins(300_000));
    // Less than is here, as after a crash of the other host.
    assert!(!replace(3, &whole[..200_000]).unwrap());
    assert!(std::fs::read(&path).unwrap() == begins(300_000));
    assert!(spool.has_received(name, (3, 5)), "it is not asked for again");
    // Something else.
    let error = replace(4, &bytes(1, 2)[..400_000]).unwrap_err();
    assert!(matches!(error, Error::SpoolDiverges { .. }), "{error}");
    assert!(std::fs::read(&path).unwrap() == begins(300_000));
    assert!(!spool.has_received(name, (4, 5)));
    assert!(replace(5, &whole[..400_000]).unwrap());
    assert!(std::fs::read(&path).unwrap() == begins(400_000));
}
