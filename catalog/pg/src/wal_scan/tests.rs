//! The scanner against WAL whose contents are known.

use proptest::prelude::*;

use super::*;
use crate::testing::{PAGE_BYTES, SampleSegment, SampleWal};
use crate::{Lsn, SegmentSize, TimelineId, TimestampMicros};

const SIZE: SegmentSize = SegmentSize::MIN;

fn scan(segment: &SampleSegment) -> SegmentIndex {
    scan_bytes(segment, &segment.bytes)
}

fn scan_bytes(segment: &SampleSegment, bytes: &[u8]) -> SegmentIndex {
    let mut scanner = WalScanner::new(&segment.name, &segment.facts);
    scanner.push(bytes);
    scanner.finish()
}

fn commit(micros: i64) -> RecordFacts {
    RecordFacts::Commit {
        time: TimestampMicros::from_unix_micros(1_700_000_000_000_000 + micros),
        xid: 700,
    }
}

/// Everything in the indexes, with the records that cross segments joined.
fn merged(indexes: &[SegmentIndex]) -> SegmentIndex {
    let mut all = SegmentIndex::default();
    for index in indexes {
        all.commit_time_max = all.commit_time_max.max(index.commit_time_max);
        all.commit_time_min = [all.commit_time_min, index.commit_time_min]
            .into_iter()
            .flatten()
            .min();
        all.commits += index.commits;
        all.xid_min = [all.xid_min, index.xid_min].into_iter().flatten().min();
        all.xid_max = all.xid_max.max(index.xid_max);
        all.restore_points.extend(index.restore_points.clone());
        all.backup_ends.extend(index.backup_ends.clone());
        all.timeline_switches.extend(index.timeline_switches.clone());
        all.checkpoint_time_last = all.checkpoint_time_last.max(index.checkpoint_time_last);
        all.switched |= index.switched;
    }
    for (at, index) in indexes.iter().enumerate() {
        let Some(tail) = &index.tail else { continue };
        let heads: Vec<&Fragment> = indexes[at + 1..]
            .iter()
            .map_while(|index| index.head.as_ref())
            .collect();
        let joined = (1..=heads.len()).find_map(|count| join(tail, &heads[..count]));
        if let Some(record) = joined {
            all.add(record.lsn, record.facts);
        }
    }
    in_order(all)
}

fn in_order(mut index: SegmentIndex) -> SegmentIndex {
    index.restore_points.sort_by_key(|point| point.lsn);
    index.backup_ends.sort_by_key(|end| end.lsn);
    index.timeline_switches.sort_by_key(|switch| switch.lsn);
    index
}

/// What the indexes together should contain for `wal`.
fn expected(wal: &SampleWal) -> SegmentIndex {
    let mut all = SegmentIndex::default();
    for (lsn, facts) in &wal.written {
        all.add(*lsn, facts.clone());
    }
    in_order(all)
}

#[test]
fn finds_the_facts_of_a_segment() {
    let mut wal = SampleWal::new(Lsn(0x30_0000), SIZE);
    wal.say(&commit(5), 0);
    wal.say(&commit(3), 300);
    wal.record(10, 0, &[1; 20_000]);
    let time = TimestampMicros::from_unix_micros(1_700_000_000_000_009);
    wal.say(
        &RecordFacts::RestorePoint {
            name: "before_migration".into(),
            time,
        },
        0,
    );
    wal.say(
        &RecordFacts::BackupEnd {
            start_lsn: Lsn(0x20_0028),
        },
        0,
    );
    let end = wal.position();
    let index = scan(&wal.segments()[0]);
    assert_eq!(index.commits, 2);
    assert_eq!(
        index.commit_time_min,
        Some(TimestampMicros::from_unix_micros(1_700_000_000_000_003))
    );
    assert_eq!(
        index.commit_time_max,
        Some(TimestampMicros::from_unix_micros(1_700_000_000_000_005))
    );
    assert_eq!(index.restore_points[0].name, "before_migration");
    assert_eq!(index.backup_ends[0].start_lsn, Lsn(0x20_0028));
    assert_eq!(index.end_lsn, Lsn(end.0.next_multiple_of(8)));
    let stop = index.stopped.unwrap();
    assert_eq!(
        (stop.lsn, stop.reason),
        (index.end_lsn, StopReason::NoMoreRecords)
    );
    assert_eq!((index.head, index.tail), (None, None));
}

#[test]
fn a_scan_from_any_page_finds_what_starts_behind_it() {
    let mut wal = SampleWal::new(Lsn(0x30_0000), SIZE);
    for nth in 0..200 {
        wal.say(&commit(nth), 0);
        wal.record(10, 0, &[1; 700]);
    }
    let segment = &wal.segments()[0];
    let each_from = |page: usize| {
        let offset = page * usize::try_from(PAGE_BYTES).unwrap();
        let mut scanner = WalScanner::from_page(&segment.name, &segment.facts, offset as u64);
        let mut found = Vec::new();
        scanner.push_each(&segment.bytes[offset..], &mut |lsn, _| found.push(lsn));
        let stop = scanner.finish().stopped.unwrap();
        assert_eq!(stop.reason, StopReason::NoMoreRecords, "page {page}");
        found
    };
    let all = each_from(0);
    for page in 1..15 {
        let start = Lsn(0x30_0000 + page as u64 * PAGE_BYTES);
        let behind: Vec<Lsn> = all.iter().copied().filter(|lsn| *lsn > start).collect();
        assert_eq!(each_from(page), behind, "page {page}");
    }
}

#[test]
fn a_switch_ends_the_segment() {
    let mut wal = SampleWal::new(Lsn(0), SIZE);
    wal.say(&commit(1), 0);
    wal.say(&RecordFacts::Switch, 0);
    let index = scan(&wal.segments()[0]);
    assert!(index.switched);
    assert_eq!(index.stopped, None);
    assert_eq!(index.end_lsn, Lsn(SIZE.bytes()));
}

#[test]
fn a_record_across_the_end_is_joined() {
    for lead in [8, 16, 24, 40, 64, 200] {
        let mut wal = SampleWal::new(Lsn(0), SIZE);
        // Fill up so that `lead` bytes of the commit fit before the segment's end.
        while wal.position().0 + 3 * PAGE_BYTES < SIZE.bytes() {
            wal.record(10, 0, &[0; 8000]);
        }
        let from = wal.position().0.next_multiple_of(8);
        let to = SIZE.bytes() - lead;
        let page_headers = 24 * (to / PAGE_BYTES - from.div_ceil(PAGE_BYTES) + 1);
        wal.record(
            10,
            0,
            &vec![0; usize::try_from(to - from - page_headers - 24).unwrap()],
        );
        assert_eq!(wal.position().0, to);
        wal.say(&commit(77), 500);
        let indexes: Vec<_> = wal.segments().iter().map(scan).collect();
        assert_eq!(indexes[0].tail.as_ref().unwrap().bytes, lead);
        assert_eq!((indexes[0].commits, indexes[1].commits), (0, 0));
        let head = indexes[1].head.as_ref().unwrap();
        let record = join(indexes[0].tail.as_ref().unwrap(), &[head]).unwrap();
        assert_eq!(record.facts, commit(77), "{lead} bytes before the end");
        let damaged = Fragment {
            crc32c: head.crc32c ^ 1,
            ..head.clone()
        };
        assert_eq!(join(indexes[0].tail.as_ref().unwrap(), &[&damaged]), None);
    }
}

#[test]
fn a_record_cut_by_a_crash_is_void() {
    let mut wal = SampleWal::new(Lsn(0x10_0000), SIZE);
    wal.say(&commit(1), 0);
    wal.crash_within_record();
    wal.say(&commit(2), 0);
    let index = scan(&wal.segments()[0]);
    assert_eq!(index.commits, 2);
    assert_eq!(index.stopped.unwrap().reason, StopReason::NoMoreRecords);
}

#[test]
fn remains_of_a_recycled_segment_end_the_scan() {
    let mut old = SampleWal::new(Lsn(0), SIZE);
    let mut new = SampleWal::new(Lsn(0x10_0000), SIZE);
    for n in 0..40 {
        old.say(&commit(n), 1000);
    }
    new.say(&commit(1000), 10_000);
    let new_end = usize::try_from(new.position().0 - 0x10_0000).unwrap();
    let mut recycled = old.segments().remove(0).bytes;
    let segment = new.segments().remove(0);
    recycled[..new_end].copy_from_slice(&segment.bytes[..new_end]);
    let index = scan_bytes(&segment, &recycled);
    assert_eq!(index.commits, 1);
    assert!(index.stopped.is_some());
}

#[test]
fn an_unknown_version_is_not_interpreted() {
    let mut wal = SampleWal::new(Lsn(0), SIZE);
    wal.say(&commit(1), 0);
    let mut segment = wal.segments().remove(0);
    segment.facts.magic = 0xD1FF;
    let index = scan(&segment);
    assert_eq!(index.commits, 0);
    assert_eq!(index.stopped.unwrap().reason, StopReason::UnknownVersion);
}

#[test]
fn lists_are_bounded() {
    let mut wal = SampleWal::new(Lsn(0), SIZE);
    for n in 0..SegmentIndex::LIST_ENTRIES_MAX as u64 + 1 {
        wal.say(&RecordFacts::BackupEnd { start_lsn: Lsn(n) }, 0);
    }
    let index = scan(&wal.segments()[0]);
    assert_eq!(index.backup_ends.len(), SegmentIndex::LIST_ENTRIES_MAX);
    assert!(index.lists_cut);
}

/// Something to write: a record that matters, or another one of this many bytes.
#[derive(Debug, Clone)]
enum Step {
    Say(RecordFacts, usize),
    Other(usize),
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let time = || (0_i64..2_000_000_000).prop_map(TimestampMicros::from_unix_seconds);
    let timeline = || (1_u32..4).prop_map(TimelineId);
    let facts = prop_oneof![
        (time(), 3_u32..1_000_000).prop_map(|(time, xid)| RecordFacts::Commit { time, xid }),
        (time(), 3_u32..1_000_000).prop_map(|(time, xid)| RecordFacts::Abort { time, xid }),
        ("[a-z]{1,63}", time()).prop_map(|(name, time)| RecordFacts::RestorePoint { name, time }),
        any::<u64>().prop_map(|lsn| RecordFacts::BackupEnd { start_lsn: Lsn(lsn) }),
        (time(), timeline(), timeline()).prop_map(|(time, timeline, previous)| RecordFacts::Checkpoint {
            time,
            timeline,
            previous
        }),
        (time(), timeline(), timeline()).prop_map(|(time, timeline, previous)| RecordFacts::EndOfRecovery {
            time,
            timeline,
            previous
        }),
        Just(RecordFacts::Switch),
    ];
    prop_oneof![
        6 => (facts, prop_oneof![0_usize..10, 0_usize..600_000]).prop_map(|(facts, padding)| Step::Say(facts, padding)),
        3 => (0_usize..300_000).prop_map(Step::Other),
        1 => Just(Step::Crash),
    ]
}

fn write(steps: Vec<Step>) -> SampleWal {
    let mut wal = SampleWal::new(Lsn(0xFFF0_0000), SIZE);
    for step in steps {
        match step {
            // A switch has no data.
            Step::Say(RecordFacts::Switch, _) => wal.say(&RecordFacts::Switch, 0),
            Step::Say(facts, padding) => wal.say(&facts, padding),
            Step::Other(bytes) => {
                wal.record(10, 0x20, &vec![3; bytes]);
            }
            Step::Crash => wal.crash_within_record(),
        }
    }
    wal
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_fact_that_was_written_is_found(steps in prop::collection::vec(step(), 1..24)) {
        let wal = write(steps);
        let indexes: Vec<_> = wal.segments().iter().map(scan).collect();
        prop_assert_eq!(merged(&indexes), expected(&wal));
        let json = serde_json::to_string(&indexes).unwrap();
        prop_assert_eq!(serde_json::from_str::<Vec<SegmentIndex>>(&json).unwrap(), indexes);
    }

    #[test]
    fn slicing_makes_no_difference(
        steps in prop::collection::vec(step(), 1..8),
        cuts in prop::collection::vec(1_usize..20_000, 1..40),
    ) {
        for segment in write(steps).segments() {
            let mut scanner = WalScanner::new(&segment.name, &segment.facts);
            let mut rest = segment.bytes.as_slice();
            for cut in cuts.iter().cycle() {
                let (slice, after) = rest.split_at((*cut).min(rest.len()));
                scanner.push(slice);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(scanner.finish(), scan(&segment));
        }
    }

    #[test]
    fn damage_never_invents_a_record(
        steps in prop::collection::vec(step(), 1..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let wal = write(steps);
        let segment = wal.segments().remove(0);
        let mut bytes = segment.bytes.clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] ^= byte;
        }
        let (found, sound) = (scan_bytes(&segment, &bytes), scan(&segment));
        prop_assert!(found.commits <= sound.commits);
        prop_assert!(found.restore_points.iter().all(|point| sound.restore_points.contains(point)));
        prop_assert!(found.backup_ends.iter().all(|end| sound.backup_ends.contains(end)));
    }

    #[test]
    fn garbage_is_read_without_harm(garbage in prop::collection::vec(any::<u8>(), 0..40_000)) {
        let wal = write(vec![Step::Other(1)]);
        let segment = wal.segments().remove(0);
        let mut bytes = segment.bytes[..100].to_vec();
        bytes.extend(garbage);
        prop_assert_eq!(scan_bytes(&segment, &bytes).commits, 0);
    }
}
