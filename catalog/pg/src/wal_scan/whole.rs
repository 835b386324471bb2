//! Whether a segment's file holds all of the segment, as far as its own bytes show.
//!
//! A file may have its final size before it has its bytes: what is not written yet reads as zeros. Checksums cover every
//! record that starts and ends in the segment. Only the parts of records that cross its borders are not covered; there,
//! zeros where a copier would leave them are suspicious.

use super::{StopReason, WalScanner};
use crate::Lsn;
use crate::wal_check::SegmentFacts;
use crate::wal_name::SegmentName;

/// What a file system leaves unwritten begins and ends at a multiple of this.
const SECTOR_BYTES: u64 = 512;

/// How much of a segment is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wholeness {
    /// All of it.
    Whole,
    /// All that has a checksum. A record that crosses a border has zeros where a copier would leave them: in whole sectors,
    /// or at the very end.
    Likely,
    /// Its records are not understood.
    Unknown,
    /// Not all: reading ended here.
    Cut(Lsn),
}

/// Reads a segment, given in slices of any length, and decides how much of it is there.
#[derive(Debug)]
pub struct WholeScan {
    scanner: WalScanner,
    start: Lsn,
    position: u64,
    /// Zeros before the position, without a gap.
    zeros: u64,
    /// The sectors of zeros: where the first starts, and where the last ends.
    empty: Option<(u64, u64)>,
    first_record: Option<Lsn>,
}

impl WholeScan {
    /// At the beginning of segment `name`, with the `facts` of its first page.
    #[must_use]
    pub fn new(name: &SegmentName, facts: &SegmentFacts) -> Self {
        Self {
            scanner: WalScanner::new(name, facts),
            start: name.start_lsn(facts.segment_size),
            position: 0,
            zeros: 0,
            empty: None,
            first_record: None,
        }
    }

    /// Reads the segment's next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let first = &mut self.first_record;
        self.scanner.push_each(bytes, &mut |lsn, _| {
            first.get_or_insert(lsn);
        });
        let mut rest = bytes;
        while !rest.is_empty() {
            let left = SECTOR_BYTES - self.position % SECTOR_BYTES;
            let (part, behind) = rest.split_at(rest.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            self.count_zeros(part);
            rest = behind;
        }
    }

    /// Counts the zeros of a part of one sector.
    fn count_zeros(&mut self, part: &[u8]) {
        let length = part.len() as u64;
        let trailing = part.iter().rev().take_while(|byte| **byte == 0).count() as u64;
        self.position += length;
        self.zeros = if trailing == length {
            self.zeros + length
        } else {
            trailing
        };
        if self.position.is_multiple_of(SECTOR_BYTES) && self.zeros >= SECTOR_BYTES {
            let first = self
                .empty
                .map_or(self.position - SECTOR_BYTES, |(first, _)| first);
            self.empty = Some((first, self.position));
        }
    }

    /// What was found.
    #[must_use]
    pub fn finish(self) -> Wholeness {
        let index = self.scanner.finish();
        match index.stopped {
            Some(stop) if stop.reason == StopReason::UnknownVersion => return Wholeness::Unknown,
            Some(stop) => return Wholeness::Cut(stop.lsn),
            None => {}
        }
        let offset = |lsn: Lsn| lsn.0.saturating_sub(self.start.0);
        // The end of a record that began earlier; all of the segment if it does not end here.
        let head_end = match (&index.head, self.first_record.or(index.crosses_from)) {
            (None, _) => 0,
            (Some(_), Some(first)) => offset(first),
            (Some(_), None) if index.switched => offset(index.end_lsn),
            (Some(_), None) => self.position,
        };
        let tail_start = match index.crosses_from {
            Some(lsn) => offset(lsn),
            None if head_end == self.position => 0,
            None => self.position,
        };
        let is_in_head = self.empty.is_some_and(|(first, _)| first < head_end);
        let is_in_tail = self.empty.is_some_and(|(_, last)| last > tail_start);
        let ends_in_zeros = tail_start < self.position && self.zeros > 0;
        match is_in_head || is_in_tail || ends_in_zeros {
            true => Wholeness::Likely,
            false => Wholeness::Whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SegmentSize;
    use crate::testing::{PAGE_BYTES, SampleSegment, SampleWal};

    const SIZE: SegmentSize = SegmentSize::MIN;
    const START: Lsn = Lsn(0x30_0000);

    fn of(segment: &SampleSegment, bytes: &[u8], slice: usize) -> Wholeness {
        let mut scan = WholeScan::new(&segment.name, &segment.facts);
        bytes.chunks(slice).for_each(|part| scan.push(part));
        scan.finish()
    }

    fn whole(segment: &SampleSegment, bytes: &[u8]) -> Wholeness {
        let found = of(segment, bytes, bytes.len());
        assert_eq!(of(segment, bytes, 1000), found);
        found
    }

    /// Two full segments of records whose bodies have no zeros, the last of which goes on in the third.
    fn full() -> Vec<SampleSegment> {
        let mut wal = SampleWal::new(START, SIZE);
        while wal.position().0 < START.0 + 2 * SIZE.bytes() + PAGE_BYTES {
            wal.record(10, 0, &[7; 5000]);
        }
        wal.segments()
    }

    /// Only a switch ends a segment early, and zeros are right behind it.
    #[test]
    fn a_full_segment_and_one_that_was_left_are_whole() {
        for segment in &full()[..2] {
            assert_eq!(whole(segment, &segment.bytes), Wholeness::Whole);
        }
        let mut wal = SampleWal::new(START, SIZE);
        wal.record(10, 0, &[7; 5000]);
        let segment = &wal.segments()[0];
        assert!(matches!(whole(segment, &segment.bytes), Wholeness::Cut(_)));
        const XLOG_SWITCH: u8 = 0x40;
        wal.record(0, XLOG_SWITCH, &[]);
        let segment = &wal.segments()[0];
        assert_eq!(whole(segment, &segment.bytes), Wholeness::Whole);
    }

    /// Whatever part is still zero, at any place and of any length, the segment is not said to be whole.
    #[test]
    fn no_part_that_is_not_written_yet_passes() {
        for segment in &full()[..2] {
            let size = segment.bytes.len();
            for written in (40..size).step_by(49_999).chain(size - 40..size) {
                let mut bytes = segment.bytes.clone();
                bytes[written..].fill(0);
                assert_ne!(
                    of(segment, &bytes, size),
                    Wholeness::Whole,
                    "{written} bytes are there"
                );
            }
            for sector in (1..size / 512).step_by(61).chain([size / 512 - 1]) {
                let mut bytes = segment.bytes.clone();
                bytes[sector * 512..][..512].fill(0);
                assert_ne!(
                    of(segment, &bytes, size),
                    Wholeness::Whole,
                    "sector {sector} is missing"
                );
            }
        }
    }

    #[test]
    fn a_record_that_fills_the_segment_has_no_checksum_in_it() {
        let mut wal = SampleWal::new(START, SIZE);
        wal.record(10, 0, &vec![7; 3 << 20]);
        let segment = &wal.segments()[1];
        assert_eq!(whole(segment, &segment.bytes), Wholeness::Whole);
        let mut bytes = segment.bytes.clone();
        bytes[100_352..][..512].fill(0);
        assert_eq!(whole(segment, &bytes), Wholeness::Likely);
    }

    #[test]
    fn what_is_not_understood_is_unknown() {
        let mut segment = full()[0].clone();
        segment.facts.magic = 0xDFFF;
        assert_eq!(whole(&segment, &segment.bytes), Wholeness::Unknown);
    }
}
