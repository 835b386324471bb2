//! A single WAL record at a known position: its length and its end.
//!
//! Layout: `src/include/access/xlogrecord.h`; for pages see [`wal_check`](crate::wal_check).

use crate::Lsn;
use crate::bytes::u32_at;
use crate::wal_check::{LONG_HEADER_BYTES, SHORT_HEADER_BYTES, SegmentFacts};

/// This many bytes of a record, its length, are always on the page it starts on.
pub const LENGTH_BYTES: usize = 4;

/// A record's header; no record is shorter.
const HEADER_BYTES: u32 = 24;

/// Longest record (`XLogRecordMaxSize`).
const MAX_BYTES: u32 = 1020 * 1024 * 1024;

/// Records start at multiples of this.
const ALIGNMENT: u64 = 8;

/// The end of the record that starts at `start`, where the next one can start: after all its bytes, and the headers of
/// the pages between them. `first_bytes` are its first [`LENGTH_BYTES`]; `facts` are those of its segment. `None` if
/// no record starts there.
#[must_use]
pub fn end_of_record(start: Lsn, first_bytes: &[u8], facts: &SegmentFacts) -> Option<Lsn> {
    let length = u32_at(first_bytes, 0).filter(|length| (HEADER_BYTES..=MAX_BYTES).contains(length))?;
    let end = behind(start, u64::from(length), facts)?;
    end.0.checked_next_multiple_of(ALIGNMENT).map(Lsn)
}

/// The position of byte `offset` of the record that starts at `start`.
#[must_use]
pub fn byte_of_record(start: Lsn, offset: u32, facts: &SegmentFacts) -> Option<Lsn> {
    let last = behind(start, u64::from(offset) + 1, facts)?;
    Some(Lsn(last.0 - 1))
}

/// The position after the first `bytes` bytes, at least one, of the record that starts at `start`.
fn behind(start: Lsn, bytes: u64, facts: &SegmentFacts) -> Option<Lsn> {
    let page_bytes = u64::from(facts.page_bytes);
    let (mut at, mut left) = (start.0, bytes);
    loop {
        let on_page = page_bytes - at % page_bytes;
        if left <= on_page {
            return at.checked_add(left).map(Lsn);
        }
        left -= on_page;
        at = at.checked_add(on_page)?;
        at += if at.is_multiple_of(facts.segment_size.bytes()) {
            LONG_HEADER_BYTES as u64
        } else {
            SHORT_HEADER_BYTES as u64
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SegmentSize, SystemId, TimelineId};

    fn end(start: u64, length: u32) -> Option<u64> {
        let facts = SegmentFacts {
            system_id: SystemId(1),
            segment_size: SegmentSize::MIN,
            page_bytes: 8192,
            magic: 0xD110,
            first_page_timeline: TimelineId(1),
        };
        end_of_record(Lsn(start), &length.to_le_bytes(), &facts).map(|end| end.0)
    }

    #[test]
    fn a_record_on_one_page_ends_where_the_next_can_start() {
        assert_eq!(end(0x100_0028, 114), Some(0x100_0028 + 120));
        assert_eq!(end(0x100_2000 - 120, 120), Some(0x100_2000));
    }

    #[test]
    fn headers_of_pages_lie_between_the_parts_of_a_record() {
        assert_eq!(end(0x100_2000 - 8, 114), Some(0x100_2000 + 24 + 112));
        // A segment's first page has the longer header.
        assert_eq!(end(0x110_0000 - 8, 114), Some(0x110_0000 + 40 + 112));
        assert_eq!(end(0x100_2000 - 8, 8 + 8168 + 16), Some(0x100_4000 + 24 + 16));
    }

    #[test]
    fn bytes_that_are_no_record_have_no_end() {
        assert_eq!(end(0x100_0028, 0), None);
        assert_eq!(end(0x100_0028, u32::MAX), None);
        assert_eq!(end(u64::MAX - 7, 114), None);
    }
}
