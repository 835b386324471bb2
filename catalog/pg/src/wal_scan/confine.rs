//! Keeping the replay of a segment within the data directory.
//!
//! Only records that create a tablespace name a path outside the data directory. Replaying one creates a symbolic link
//! to that path, which in a copy leads into the original's tablespace. With an empty path, PostgreSQL creates a plain
//! directory instead. So the first byte of the path becomes zero, and the CRC is recomputed; every record keeps its
//! position and its length.
//!
//! A record may cross the end of its segment. Its CRC is always in the segment that has its kind, and depends only on
//! the path's first byte, so the other segment is needed only if it has that byte. If that segment has not arrived yet,
//! the CRC is made wrong: the record is not complete, and must not become complete while it is being read.

use super::index::StopReason;
use super::record::{CRC_OFFSET, EmptiedPath, RecordFacts, makes_tablespace, read_facts};
use super::{Fragment, SegmentIndex, join};
use crate::Lsn;
use crate::bytes::u32_at;
use crate::wal_check::SegmentFacts;
use crate::wal_record::byte_of_record;

/// Bytes to show instead of those in the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WalEdit {
    /// Their position.
    pub at: Lsn,
    /// The bytes to show.
    pub bytes: Vec<u8>,
}

/// Why the replay of a segment cannot be kept within the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unconfinable {
    /// The content of its records is unknown.
    #[error("it is of a PostgreSQL version whose WAL this release of barmanfs cannot read")]
    UnknownVersion,
    /// More than are listed.
    #[error("it makes more than {} tablespaces", SegmentIndex::TABLESPACES_MAX)]
    TooManyTablespaces,
}

/// Whether the record that begins with `tail` may create a tablespace. If so, the next segment must be known.
#[must_use]
pub fn may_cross(tail: &Fragment) -> bool {
    makes_tablespace(&tail.lead)
}

/// The edits to a segment with this index and the `facts` of its first page. `before` and `after` are the segments that
/// may hold the beginning of its first record and the end of its last one; they may be of several timelines.
///
/// # Errors
/// [`Unconfinable`]
pub fn confine(
    index: &SegmentIndex,
    facts: &SegmentFacts,
    start: Lsn,
    before: &[SegmentIndex],
    after: &[SegmentIndex],
) -> Result<Vec<WalEdit>, Unconfinable> {
    if index
        .stopped
        .is_some_and(|stop| stop.reason == StopReason::UnknownVersion)
    {
        return Err(Unconfinable::UnknownVersion);
    }
    if index.tablespaces_cut {
        return Err(Unconfinable::TooManyTablespaces);
    }
    let mut edits = Vec::new();
    for made in &index.tablespaces {
        edits.extend(emptied(made.lsn, made.emptied, facts));
    }
    if let Some(tail) = &index.tail {
        let heads = after.iter().filter_map(|index| index.head.as_ref());
        edits.extend(crossing(tail, heads, facts));
    }
    if let Some(head) = &index.head {
        for tail in before.iter().filter_map(|index| index.tail.as_ref()) {
            edits.extend(crossing(tail, std::iter::once(head), facts));
        }
    }
    let end = Lsn(start.0.saturating_add(facts.segment_size.bytes()));
    edits.retain(|edit| (start..end).contains(&edit.at));
    edits.sort_by_key(|edit| edit.at);
    edits.dedup();
    Ok(edits)
}

/// The record with an empty path, in whichever segments its bytes are.
fn emptied(lsn: Lsn, emptied: EmptiedPath, facts: &SegmentFacts) -> Vec<WalEdit> {
    let path = byte_of_record(lsn, emptied.path_at, facts).map(|at| WalEdit { at, bytes: vec![0] });
    path.into_iter()
        .chain(with_crc(lsn, emptied.crc32c, facts))
        .collect()
}

fn with_crc(lsn: Lsn, crc32c: u32, facts: &SegmentFacts) -> Option<WalEdit> {
    // Records start at multiples of eight, and so do pages: no page ends within the CRC.
    let at = byte_of_record(lsn, CRC_OFFSET as u32, facts)?;
    let bytes = crc32c.to_le_bytes().to_vec();
    Some(WalEdit { at, bytes })
}

/// The record that begins with `tail` and may end with one of `heads`.
fn crossing<'a>(
    tail: &Fragment,
    heads: impl Iterator<Item = &'a Fragment>,
    facts: &SegmentFacts,
) -> Vec<WalEdit> {
    let whole = heads.into_iter().find_map(|head| join(tail, &[head]));
    let known = match whole {
        Some(record) => Some(record.facts),
        // This segment alone may be enough.
        None if makes_tablespace(&tail.lead) => {
            u32_at(&tail.lead, 0).and_then(|length| read_facts(&tail.lead, u64::from(length)))
        }
        None => return Vec::new(),
    };
    match known {
        Some(RecordFacts::TablespaceCreated { emptied: None, .. }) => Vec::new(),
        Some(RecordFacts::TablespaceCreated {
            emptied: Some(path), ..
        }) => emptied(tail.lsn, path, facts),
        Some(_) => Vec::new(),
        None => u32_at(&tail.lead, CRC_OFFSET)
            .and_then(|crc| with_crc(tail.lsn, !crc, facts))
            .into_iter()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::SegmentSize;
    use crate::testing::{PAGE_BYTES, SampleSegment, SampleWal};
    use crate::wal_scan::WalScanner;

    const SIZE: SegmentSize = SegmentSize::MIN;

    /// Any value: the log writes its own.
    const PATH: EmptiedPath = EmptiedPath {
        path_at: 0,
        crc32c: 0,
    };

    fn made(oid: u32) -> RecordFacts {
        let emptied = Some(PATH);
        RecordFacts::TablespaceCreated { oid, emptied }
    }

    fn scan(segment: &SampleSegment) -> SegmentIndex {
        let mut scanner = WalScanner::new(&segment.name, &segment.facts);
        scanner.push(&segment.bytes);
        scanner.finish()
    }

    /// The segment as a copy gets it.
    fn shown(segment: &SampleSegment, before: &[SegmentIndex], after: &[SegmentIndex]) -> SampleSegment {
        let start = segment.name.start_lsn(SIZE);
        let mut shown = segment.clone();
        for edit in confine(&scan(segment), &segment.facts, start, before, after).unwrap() {
            let at = usize::try_from(edit.at.0 - start.0).unwrap();
            shown.bytes[at..at + edit.bytes.len()].copy_from_slice(&edit.bytes);
        }
        shown
    }

    /// Fills the log up to `lead` bytes before the end of its first segment.
    fn fill(wal: &mut SampleWal, lead: u64) {
        while wal.position().0 + 3 * PAGE_BYTES < SIZE.bytes() {
            wal.record(10, 0, &[0; 8000]);
        }
        let from = wal.position().0.next_multiple_of(8);
        let to = SIZE.bytes() - lead;
        let page_headers = 24 * (to / PAGE_BYTES - from.div_ceil(PAGE_BYTES) + 1);
        let body = usize::try_from(to - from - page_headers - 24).unwrap();
        wal.record(10, 0, &vec![0; body]);
        assert_eq!(wal.position().0, to);
    }

    #[test]
    fn every_tablespace_within_a_segment_gets_an_empty_path() {
        let mut wal = SampleWal::new(Lsn(0x30_0000), SIZE);
        for oid in 0..2000 {
            wal.say(&made(oid), (oid as usize * 37) % 900);
        }
        let segment = wal.segments().remove(0);
        let sound = scan(&segment);
        assert!(sound.tablespaces.len() > 1000, "{}", sound.tablespaces.len());
        let index = scan(&shown(&segment, &[], &[]));
        assert_eq!(index.tablespaces, []);
        assert_eq!((index.last_lsn, index.stopped), (sound.last_lsn, sound.stopped));
    }

    /// Wherever the end of the segment cuts the record, it is shown with an empty path and a correct CRC.
    #[test]
    fn a_tablespace_across_the_end_of_a_segment_gets_an_empty_path() {
        for lead in (8..=56).step_by(8) {
            let mut wal = SampleWal::new(Lsn(0), SIZE);
            fill(&mut wal, lead);
            wal.say(&made(16_384), 0);
            wal.record(10, 0, &[1; 100]);
            let segments = wal.segments();
            let (first, second) = (&segments[0], &segments[1]);
            let indexes = (scan(first), scan(second));
            let first = shown(first, &[], std::slice::from_ref(&indexes.1));
            let second = shown(second, std::slice::from_ref(&indexes.0), &[]);
            let (first, second) = (scan(&first), scan(&second));
            let joined = join(&first.tail.unwrap(), &[&second.head.unwrap()]);
            let facts = joined.map(|record| record.facts);
            let emptied = RecordFacts::TablespaceCreated {
                oid: 16_384,
                emptied: None,
            };
            assert_eq!(facts, Some(emptied), "{lead} bytes before the end");
        }
    }

    /// The part shown before the next segment arrived, together with that segment as shown later: never a path.
    #[test]
    fn a_tablespace_whose_end_comes_later_never_has_a_path() {
        for lead in (8..=56).step_by(8) {
            let mut wal = SampleWal::new(Lsn(0), SIZE);
            fill(&mut wal, lead);
            wal.say(&made(16_384), 0);
            let segments = wal.segments();
            let before = scan(&segments[0]);
            let first = scan(&shown(&segments[0], &[], &[]));
            for second in [
                shown(&segments[1], std::slice::from_ref(&before), &[]),
                segments[1].clone(),
            ] {
                // The unedited segment is never shown, unless the record's kind was unknown before it arrived.
                let joined = join(&first.tail.clone().unwrap(), &[&scan(&second).head.unwrap()]);
                let has_path = joined.is_some_and(|record| {
                    matches!(
                        record.facts,
                        RecordFacts::TablespaceCreated { emptied: Some(_), .. }
                    )
                });
                assert!(
                    !has_path || (lead <= 16 && second.bytes == segments[1].bytes),
                    "{lead}"
                );
            }
        }
    }

    #[test]
    fn wal_that_cannot_be_read_cannot_be_confined() {
        let mut wal = SampleWal::new(Lsn(0), SIZE);
        wal.say(&made(1), 0);
        let mut segment = wal.segments().remove(0);
        segment.facts.magic = 0xD1FF;
        let result = confine(&scan(&segment), &segment.facts, Lsn(0), &[], &[]);
        assert_eq!(result, Err(Unconfinable::UnknownVersion));
        let mut wal = SampleWal::new(Lsn(0), SIZE);
        for oid in 0..=SegmentIndex::TABLESPACES_MAX as u32 {
            wal.say(&made(oid), 0);
        }
        let segment = wal.segments().remove(0);
        let result = confine(&scan(&segment), &segment.facts, Lsn(0), &[], &[]);
        assert_eq!(result, Err(Unconfinable::TooManyTablespaces));
    }

    proptest! {
        /// All records read the same as before, except for the paths.
        #[test]
        fn nothing_else_is_changed(padding in prop::collection::vec(0_usize..30_000, 1..60)) {
            let mut wal = SampleWal::new(Lsn(0), SIZE);
            for (oid, padding) in padding.iter().enumerate() {
                wal.record(10, 0, &vec![7; *padding]);
                wal.say(&made(u32::try_from(oid).unwrap()), padding % 700);
            }
            let segments = wal.segments();
            let indexes: Vec<SegmentIndex> = segments.iter().map(scan).collect();
            for (at, segment) in segments.iter().enumerate() {
                let before = at.checked_sub(1).map(|at| &indexes[at..=at]).unwrap_or_default();
                let after = indexes.get(at + 1..at + 2).unwrap_or_default();
                let shown = shown(segment, before, after);
                let (was, is) = (&indexes[at], scan(&shown));
                prop_assert_eq!(is.tablespaces.len(), 0);
                prop_assert_eq!((is.last_lsn, is.end_lsn, is.stopped), (was.last_lsn, was.end_lsn, was.stopped));
                let changed = segment.bytes.iter().zip(&shown.bytes).filter(|(a, b)| a != b).count();
                prop_assert!(changed <= 5 * (was.tablespaces.len() + 2));
            }
        }
    }
}
