//! Reads the end of a server's WAL, which is not stored yet, until the first commit in it.

use barmanfs_catalog::CrossingRecord;
use barmanfs_pg::wal_check::SegmentFacts;
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::wal_scan::{Fragment, RecordFacts, SegmentIndex, StopReason, WalScanner, join};
use barmanfs_pg::{Lsn, SegmentSize, SystemId, TimelineId, TimestampMicros};

use crate::error::Error;
use crate::postgres::WalPiece;

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

/// Reads the WAL of a timeline from one position up to another; it may return less.
pub(super) type ReadWal<'a> = dyn FnMut(TimelineId, Lsn, Lsn) -> Result<WalPiece, Error> + 'a;

/// Finds the first commit in these parts, which follow each other. `crossing` is the record that begins in the safe WAL
/// and goes on in them.
///
/// # Errors
/// When the connection fails.
pub(super) fn first_commit(
    read: &mut ReadWal<'_>,
    stretches: &[Stretch],
    crossing: CrossingRecord,
) -> Result<FirstCommit, Error> {
    let mut left = READ_BYTES_MAX;
    let mut crossing = Crossing::from(crossing);
    for stretch in stretches {
        let mut position = stretch.from;
        while position < stretch.to {
            let segment = SegmentName::from_lsn(stretch.timeline, position, stretch.size);
            let end = segment.next(stretch.size).start_lsn(stretch.size);
            let part = Part {
                segment,
                from: position,
                to: stretch.to.min(end),
                size: stretch.size,
            };
            let seen = match part.read(read, &mut left)? {
                Ok(seen) => seen,
                Err(why) => return Ok(FirstCommit::NotRead(why)),
            };
            // What begins before all others was committed before them, wherever it ends.
            if position.segment_offset(stretch.size) == 0 {
                match crossing.ends_with(seen.index.head.as_ref()) {
                    FirstCommit::None => {}
                    found => return Ok(found),
                }
            }
            if let Some(time) = seen.commit {
                return Ok(FirstCommit::At(time));
            }
            if let Some(why) = doubt(&seen.index) {
                return Ok(not_read(why));
            }
            crossing.go_on(seen.index);
            position = end;
        }
        // No record goes on in another timeline.
        crossing = Crossing::None;
    }
    Ok(FirstCommit::None)
}

/// A record that crosses the end of a segment.
enum Crossing {
    /// There is none, or it is no commit.
    None,
    /// There may be one.
    Unknown,
    /// Its parts so far.
    Begun(Fragment, Vec<Fragment>),
}

impl From<CrossingRecord> for Crossing {
    fn from(record: CrossingRecord) -> Self {
        match record {
            CrossingRecord::Unknown => Self::Unknown,
            CrossingRecord::Other => Self::None,
            CrossingRecord::Begun(tail) => Self::Begun(tail, Vec::new()),
        }
    }
}

impl Crossing {
    /// What it was if a segment begins with its end, or with one more part of it.
    fn ends_with(&self, head: Option<&Fragment>) -> FirstCommit {
        let Some(head) = head else {
            return FirstCommit::None;
        };
        match self {
            Self::None => FirstCommit::None,
            Self::Unknown => not_read("a record that may be a commit crosses two segments"),
            Self::Begun(tail, parts) => {
                let heads: Vec<&Fragment> = parts.iter().chain([head]).collect();
                match join(tail, &heads).map(|record| record.facts) {
                    Some(RecordFacts::Commit { time, .. }) => FirstCommit::At(time),
                    _ => FirstCommit::None,
                }
            }
        }
    }

    /// Goes on behind this segment, which was read to its end.
    fn go_on(&mut self, index: SegmentIndex) {
        let last = std::mem::replace(self, Self::None);
        *self = match (index.tail, index.crosses_from, last, index.head) {
            (Some(tail), _, _, _) => Self::Begun(tail, Vec::new()),
            // A record longer than a segment.
            (None, None, Self::Begun(tail, mut parts), Some(head)) if index.last_lsn.is_none() => {
                parts.push(head);
                Self::Begun(tail, parts)
            }
            (None, None, Self::Unknown, Some(_)) if index.last_lsn.is_none() => Self::Unknown,
            _ => Self::None,
        };
    }
}

/// The part of a stretch that is in one segment.
struct Part {
    segment: SegmentName,
    from: Lsn,
    to: Lsn,
    size: SegmentSize,
}

/// What was read of a part.
struct Seen {
    /// The first commit that begins and ends in it.
    commit: Option<TimestampMicros>,
    /// The index of what was read: if there is a commit, not further than that.
    index: SegmentIndex,
}

impl Part {
    /// Reads up to the first commit. The inner error says why that was not possible.
    fn read(&self, read: &mut ReadWal<'_>, left: &mut u64) -> Result<Result<Seen, String>, Error> {
        let page = u64::from(PAGE_BYTES);
        let mut position = Lsn(self.from.0 - self.from.0 % page);
        let mut scanner: Option<WalScanner> = None;
        let (mut commit, mut switched) = (None, false);
        while position < self.to && commit.is_none() && !switched {
            if *left < PIECE_BYTES {
                return Ok(Err(format!(
                    "there is no commit in the first {} MiB of it",
                    READ_BYTES_MAX >> 20
                )));
            }
            let end = self.to.min(Lsn(position.0.saturating_add(PIECE_BYTES)));
            let bytes = match read(self.segment.timeline, position, end)? {
                WalPiece::Bytes(bytes) if !bytes.is_empty() => bytes,
                WalPiece::Bytes(_) => return Ok(Err("the server did not send it".to_owned())),
                WalPiece::Removed => return Ok(Err("the server has removed it".to_owned())),
                WalPiece::Refused(why) => return Ok(Err(format!("the server refuses it: {why}"))),
            };
            *left -= PIECE_BYTES;
            let scanner = scanner.get_or_insert_with(|| self.scanner(position, &bytes));
            let from = self.from;
            scanner.push_each(&bytes, &mut |lsn, facts| match facts {
                Some(RecordFacts::Commit { time, .. }) if lsn >= from => {
                    commit.get_or_insert(*time);
                }
                // The rest of the segment is empty.
                Some(RecordFacts::Switch) => switched = true,
                _ => {}
            });
            position = Lsn(position.0.saturating_add(bytes.len() as u64));
        }
        let index = scanner.map(WalScanner::finish).unwrap_or_default();
        Ok(Ok(Seen { commit, index }))
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

/// Why there may be a commit although none was read.
fn doubt(index: &SegmentIndex) -> Option<&'static str> {
    match index.stopped.as_ref().map(|stop| stop.reason) {
        // The end of what the server has written.
        None | Some(StopReason::EndOfInput | StopReason::NoMoreRecords) => None,
        Some(_) => Some("it is not understood"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use barmanfs_pg::testing::SampleWal;

    const SIZE: SegmentSize = SegmentSize::MIN;
    const BEGIN: Lsn = Lsn(0x30_0000);

    fn at(seconds: i64) -> TimestampMicros {
        TimestampMicros::from_unix_seconds(1_700_000_000 + seconds)
    }

    fn commit(wal: &mut SampleWal, seconds: i64, padding: usize) {
        let (time, xid) = (at(seconds), 700);
        wal.say(&RecordFacts::Commit { time, xid }, padding);
    }

    /// The first commit from a position on.
    fn first(wal: &SampleWal, from: Lsn, crossing: CrossingRecord) -> FirstCommit {
        let bytes: Vec<u8> = wal
            .segments()
            .into_iter()
            .flat_map(|segment| segment.bytes)
            .collect();
        let place = |lsn: Lsn| usize::try_from(lsn.0 - BEGIN.0).unwrap();
        let mut read = |_, from, to| Ok(WalPiece::Bytes(bytes[place(from)..place(to)].to_vec()));
        let stretch = Stretch {
            timeline: TimelineId(1),
            from,
            to: wal.position(),
            size: SIZE,
        };
        first_commit(&mut read, &[stretch], crossing).unwrap()
    }

    /// WAL in which a record that is followed by a commit at second 9 crosses into the second segment, and its beginning.
    fn crossed_by(record: impl Fn(&mut SampleWal)) -> (SampleWal, CrossingRecord) {
        let mut wal = SampleWal::new(BEGIN, SIZE);
        commit(&mut wal, 0, 0);
        let free = BEGIN.0 + SIZE.bytes() - wal.position().0;
        // The pages have headers.
        wal.record(10, 0, &vec![7; usize::try_from(free).unwrap() - 6000]);
        record(&mut wal);
        commit(&mut wal, 9, 0);
        let segments = wal.segments();
        let name = &segments[0].name;
        let mut source = segments[0].bytes.as_slice();
        let index = barmanfs_catalog::scan_segment(*name, SIZE.bytes(), &mut source).unwrap();
        let index = index.unwrap();
        assert!(index.crosses_from.is_some(), "it crosses");
        let begun = index.tail.map_or(CrossingRecord::Other, CrossingRecord::Begun);
        (wal, begun)
    }

    #[test]
    fn a_commit_that_crosses_segments_is_older_than_those_behind_it() {
        let second = Lsn(BEGIN.0 + SIZE.bytes());
        let (wal, begun) = crossed_by(|wal| commit(wal, 5, 9000));
        assert_eq!(first(&wal, second, begun), FirstCommit::At(at(5)));
        // Without its beginning nobody knows.
        let unknown = first(&wal, second, CrossingRecord::Unknown);
        assert!(matches!(unknown, FirstCommit::NotRead(_)), "{unknown:?}");
        // What is read has both parts.
        assert_eq!(
            first(&wal, Lsn(wal.extents[1].0.0), CrossingRecord::Unknown),
            FirstCommit::At(at(5))
        );
        // It may be longer than a segment.
        let (wal, begun) = crossed_by(|wal| commit(wal, 6, 3 << 20));
        assert_eq!(first(&wal, second, begun), FirstCommit::At(at(6)));
    }

    #[test]
    fn another_record_that_crosses_segments_is_no_commit() {
        let second = Lsn(BEGIN.0 + SIZE.bytes());
        let (wal, begun) = crossed_by(|wal| {
            wal.record(10, 0, &[7; 9000]);
        });
        assert_eq!(first(&wal, second, begun), FirstCommit::At(at(9)));
    }
}
