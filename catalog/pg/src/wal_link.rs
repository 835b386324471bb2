//! The link from a segment to the previous one: the first record that starts in it names the start of the record
//! before.

use crate::Lsn;
use crate::bytes::{u16_at, u32_at, u64_at};
use crate::wal_check::{LONG_HEADER_BYTES, SHORT_HEADER_BYTES};

const FIRST_IS_CONTINUATION: u16 = 0x0001;

/// The page's first record replaces one that was never finished.
const FIRST_IS_OVERWRITE: u16 = 0x0008;
/// The same from PostgreSQL 19 on, by the page's magic; before, that bit meant something else.
const FIRST_IS_OVERWRITE_19: u16 = 0x0004;
const LAST_MAGIC_BEFORE_19: u16 = 0xD118;

/// Bytes of a record's header that matter here: its length, its transaction, the start of the record before.
const LINK_BYTES: u64 = 16;

/// No record is shorter than its header.
const HEADER_BYTES: u32 = 24;

/// Records start at multiples of this.
const ALIGNMENT: u64 = 8;

/// The first record that starts in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstRecord {
    /// Where it starts.
    pub lsn: Lsn,
    /// Where the record before it starts; 0 after `pg_resetwal`.
    pub previous: Lsn,
}

/// The first record of the segment that begins at `start`; `bytes` are the segment's first bytes. `None` if they end
/// before this record, if there is none, or if it replaces a record that was never finished: it does not name that one.
#[must_use]
pub fn first_record(start: Lsn, page_bytes: u32, bytes: &[u8]) -> Option<FirstRecord> {
    let page = u64::from(page_bytes);
    let mut at = 0_u64;
    let mut left = 0_u64;
    loop {
        let header_at = usize::try_from(at).ok()?;
        let flags = u16_at(bytes, header_at + 2)?;
        let overwrites = if u16_at(bytes, header_at)? > LAST_MAGIC_BEFORE_19 {
            FIRST_IS_OVERWRITE_19
        } else {
            FIRST_IS_OVERWRITE
        };
        if flags & overwrites != 0 {
            return None;
        }
        if at == 0 && flags & FIRST_IS_CONTINUATION != 0 {
            left = u64::from(u32_at(bytes, header_at + 16)?);
        }
        let header = if at == 0 {
            LONG_HEADER_BYTES
        } else {
            SHORT_HEADER_BYTES
        } as u64;
        let room = page.checked_sub(header)?;
        if left < room {
            let record_at = (at + header + left).next_multiple_of(ALIGNMENT);
            // The record's end may fill the page, apart from the alignment.
            if record_at < at + page {
                return link(start, page, bytes, record_at);
            }
            left = 0;
        } else {
            left -= room;
        }
        at += page;
    }
}

/// The link of the record at `record_at`, whose header may cross a page's end.
fn link(start: Lsn, page: u64, bytes: &[u8], record_at: u64) -> Option<FirstRecord> {
    let mut header = Vec::with_capacity(LINK_BYTES as usize);
    let mut at = record_at;
    while (header.len() as u64) < LINK_BYTES {
        if at.is_multiple_of(page) {
            at += SHORT_HEADER_BYTES as u64;
        }
        let room = (page - at % page).min(LINK_BYTES - header.len() as u64);
        let from = usize::try_from(at).ok()?;
        let to = usize::try_from(at + room).ok()?;
        header.extend_from_slice(bytes.get(from..to)?);
        at += room;
    }
    let record = FirstRecord {
        lsn: Lsn(start.0.checked_add(record_at)?),
        previous: Lsn(u64_at(&header, 8)?),
    };
    // Otherwise zeros after the end of the WAL, or what an older segment left there.
    let is_record = u32_at(&header, 0)? >= HEADER_BYTES && record.previous < record.lsn;
    is_record.then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u32 = 8192;

    /// Two pages: the first continues a record with `left` bytes; a record follows.
    fn segment(left: u32, flags: [u16; 2]) -> Vec<u8> {
        let mut bytes = vec![0; 4 * PAGE as usize];
        bytes[2..4].copy_from_slice(&flags[0].to_le_bytes());
        bytes[16..20].copy_from_slice(&left.to_le_bytes());
        bytes[8194..8196].copy_from_slice(&flags[1].to_le_bytes());
        bytes
    }

    fn put(bytes: &mut [u8], at: usize, previous: u64) {
        bytes[at..at + 4].copy_from_slice(&100_u32.to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&previous.to_le_bytes());
    }

    fn found(bytes: &[u8]) -> Option<(u64, u64)> {
        first_record(Lsn(0x100_0000), PAGE, bytes)
            .map(|record| (record.lsn.0 - 0x100_0000, record.previous.0))
    }

    #[test]
    fn the_first_record_of_a_segment_is_found() {
        let mut bytes = segment(0, [2, 0]);
        put(&mut bytes, 40, 0xF0);
        assert_eq!(found(&bytes), Some((40, 0xF0)));
        let mut bytes = segment(13, [3, 0]);
        put(&mut bytes, 56, 0xF1);
        assert_eq!(found(&bytes), Some((56, 0xF1)));
        // The end takes the first page and 8 bytes of the second.
        let mut bytes = segment(8192 - 40 + 8, [3, 1]);
        put(&mut bytes, 8192 + 24 + 8, 0xF2);
        assert_eq!(found(&bytes), Some((8192 + 32, 0xF2)));
        // It fills the first page.
        let mut bytes = segment(8192 - 40, [3, 0]);
        put(&mut bytes, 8192 + 24, 0xF3);
        assert_eq!(found(&bytes), Some((8192 + 24, 0xF3)));
    }

    #[test]
    fn a_header_may_cross_a_page() {
        // The first page holds 8 bytes of it, the link follows the second page's header.
        let mut bytes = segment(8192 - 40 - 8, [3, 1]);
        bytes[8184..8188].copy_from_slice(&100_u32.to_le_bytes());
        bytes[8192 + 24..8192 + 32].copy_from_slice(&0xF4_u64.to_le_bytes());
        assert_eq!(found(&bytes), Some((8184, 0xF4)));
    }

    #[test]
    fn no_link_is_found_where_no_whole_record_begins() {
        let mut bytes = segment(0, [2 | 8, 0]);
        put(&mut bytes, 40, 0xF0);
        assert_eq!(found(&bytes), None);
        let mut bytes = segment(9000, [3, 8]);
        put(&mut bytes, 8192 + 24, 0xF0);
        assert_eq!(found(&bytes), None);
        assert_eq!(found(&segment(0, [2, 0])), None);
        // It names a record after itself.
        let mut bytes = segment(0, [2, 0]);
        put(&mut bytes, 40, 0x100_0028);
        assert_eq!(found(&bytes), None);
        assert_eq!(found(&segment(u32::MAX, [3, 1])), None);
        assert_eq!(found(&[]), None);
    }
}
