//! Reads the end of a server's WAL, which is not stored yet, until the first commit in it.

use barmanfs_pg::wal_check::SegmentFacts;
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::wal_scan::{RecordFacts, SegmentIndex, StopReason, WalScanner};
use barmanfs_pg::{Lsn, SegmentSize, SystemId, TimelineId, TimestampMicros};

use crate::error::Error;
use crate::postgres::{Connection, WalPiece};

/// The size of a WAL page. If the server was built with another one, its WAL is not understood here.
const PAGE_BYTES: u32 = 8192;

/// How much is read at a time. A server that is in use has a commit in the first piece.
const PIECE_BYTES: u64 = 512 << 10;

/// How much is read altogether: a server that commits nothing does not write more than a few checkpoints in a segment.
const READ_BYTES_MAX: u64 = 32 << 20;

/// A part of a server's WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Its timeline.
    pub(super) timeline: TimelineId,
    /// The start of a record.
    pub(super) from: Lsn,
    /// Its end.
    pub(super) to: Lsn,
    /// Size of the server's segments.
    pub(super) size: SegmentSize,
}

/// The first commit in a part of a server's WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FirstCommit {
    /// There is none.
    None,
    /// Its time.
    At(TimestampMicros),
    /// It is not known: the reason.
    NotRead(String),
}

/// Finds the first commit in these parts, which follow each other.
///
/// # Errors
/// When the connection fails.
pub(super) fn first_commit(streaming: &mut Connection, stretches: &[Stretch]) -> Result<FirstCommit, Error> {
    let mut left = READ_BYTES_MAX;
    for stretch in stretches {
        let mut position = stretch.from;
        while position < stretch.to {
            let segment = SegmentName::from_lsn(stretch.timeline, position, stretch.size);
            let mut part = Part {
                streaming,
                segment,
                from: position,
                to: stretch.to.min(segment.next(stretch.size).start_lsn(stretch.size)),
                size: stretch.size,
            };
            match part.first_commit(&mut left)? {
                FirstCommit::None => position = segment.next(stretch.size).start_lsn(stretch.size),
                found => return Ok(found),
            }
        }
    }
    Ok(FirstCommit::None)
}

/// The part of a stretch that is in one segment.
struct Part<'a> {
    streaming: &'a mut Connection,
    segment: SegmentName,
    from: Lsn,
    to: Lsn,
    size: SegmentSize,
}

impl Part<'_> {
    fn first_commit(&mut self, left: &mut u64) -> Result<FirstCommit, Error> {
        let page = u64::from(PAGE_BYTES);
        let mut position = Lsn(self.from.0 - self.from.0 % page);
        let begins_with_page = position == self.from;
        let mut scanner: Option<WalScanner> = None;
        let (mut found, mut switched) = (None, false);
        while position < self.to && found.is_none() && !switched {
            if *left < PIECE_BYTES {
                return Ok(not_read(format!(
                    "there is no commit in the first {} MiB of it",
                    READ_BYTES_MAX >> 20
                )));
            }
            let end = self.to.min(Lsn(position.0.saturating_add(PIECE_BYTES)));
            let bytes = match self.streaming.read_wal(self.segment.timeline, position, end)? {
                WalPiece::Bytes(bytes) if !bytes.is_empty() => bytes,
                WalPiece::Bytes(_) => return Ok(not_read("the server did not send it")),
                WalPiece::Removed => return Ok(not_read("the server has removed it")),
                WalPiece::Refused(why) => return Ok(not_read(format!("the server refuses it: {why}"))),
            };
            *left -= PIECE_BYTES;
            let scanner = scanner.get_or_insert_with(|| self.scanner(position, &bytes));
            let from = self.from;
            scanner.push_each(&bytes, &mut |lsn, facts| match facts {
                Some(RecordFacts::Commit { time, .. }) if lsn >= from => {
                    found.get_or_insert(*time);
                }
                // The rest of the segment is empty.
                Some(RecordFacts::Switch) => switched = true,
                _ => {}
            });
            position = Lsn(position.0.saturating_add(bytes.len() as u64));
        }
        if let Some(time) = found {
            return Ok(FirstCommit::At(time));
        }
        let index = scanner.map(WalScanner::finish).unwrap_or_default();
        Ok(match doubt(&index, begins_with_page) {
            None => FirstCommit::None,
            Some(why) => not_read(why),
        })
    }

    fn scanner(&self, position: Lsn, page: &[u8]) -> WalScanner {
        let magic = page.first_chunk::<2>().copied().map(u16::from_le_bytes);
        let facts = SegmentFacts {
            system_id: SystemId(0),
            segment_size: self.size,
            page_bytes: PAGE_BYTES,
            magic: magic.unwrap_or_default(),
            first_page_timeline: self.segment.timeline,
        };
        WalScanner::from_page(&self.segment, &facts, position.segment_offset(self.size))
    }
}

fn not_read(why: impl Into<String>) -> FirstCommit {
    FirstCommit::NotRead(why.into())
}

/// Why there may be a commit although none was read. `begins_with_page`: a record that crosses the beginning ends in
/// what is not safe.
fn doubt(index: &SegmentIndex, begins_with_page: bool) -> Option<&'static str> {
    if begins_with_page && index.head.is_some() || index.tail.is_some() {
        return Some("a record that may be a commit crosses two segments");
    }
    match index.stopped.as_ref().map(|stop| stop.reason) {
        // The end of what the server has written.
        None | Some(StopReason::EndOfInput | StopReason::NoMoreRecords) => None,
        Some(_) => Some("it is not understood"),
    }
}
