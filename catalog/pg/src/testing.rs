//! Writes WAL the way PostgreSQL does, for tests of this crate and of those that use it. Where a test does not need
//! records, [`segment`] makes a segment of any bytes.

#![allow(clippy::unwrap_used, reason = "a test's tool ends with the test")]

use crc32c::{crc32c, crc32c_append};

use crate::wal_check::{SegmentFacts, check_segment};
use crate::wal_name::SegmentName;
use crate::wal_scan::RecordFacts;
use crate::{Lsn, SegmentSize, SystemId, TimelineId, TimestampMicros};

/// Size of a WAL page.
pub const PAGE_BYTES: u64 = 8192;
const MAGIC: u16 = 0xD110;

/// The flag of a page whose header is the long one.
const LONG_HEADER: u16 = 2;

/// The system identifier in the segments.
pub const SYSTEM_ID: u64 = 42;

/// The write-ahead log of a cluster that starts at the beginning of some segment.
#[derive(Debug, Clone)]
pub struct SampleWal {
    size: SegmentSize,
    timeline: TimelineId,
    start: Lsn,
    bytes: Vec<u8>,
    previous: u64,
    /// Where each record starts and ends, in order.
    pub extents: Vec<(Lsn, Lsn)>,
    /// Every record that matters, in order.
    pub written: Vec<(Lsn, RecordFacts)>,
}

/// One finished segment.
#[derive(Debug, Clone)]
pub struct SampleSegment {
    /// Its name.
    pub name: SegmentName,
    /// The facts of its first page.
    pub facts: SegmentFacts,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl SampleWal {
    /// An empty log of timeline 1.
    #[must_use]
    pub fn new(start: Lsn, size: SegmentSize) -> Self {
        assert_eq!(start.segment_offset(size), 0);
        Self {
            size,
            timeline: TimelineId(1),
            start,
            bytes: Vec::new(),
            previous: 0,
            extents: Vec::new(),
            written: Vec::new(),
        }
    }

    /// The log of a new timeline, which branches off this one where a record starts.
    #[must_use]
    pub fn fork(&self, at: Lsn, timeline: TimelineId) -> Self {
        let mut fork = self.clone();
        fork.timeline = timeline;
        fork.bytes.truncate(usize::try_from(at.0 - self.start.0).unwrap());
        fork.extents.retain(|(start, _)| *start < at);
        fork.previous = fork.extents.last().map_or(0, |(start, _)| start.0);
        fork.written.retain(|(lsn, _)| *lsn < at);
        fork
    }

    /// Where the next byte goes.
    #[must_use]
    pub fn position(&self) -> Lsn {
        Lsn(self.start.0 + self.bytes.len() as u64)
    }

    /// Starts a page if one is due; `left` bytes of the current record are still to come.
    fn begin_page(&mut self, left: usize, flags: u16) {
        if !(self.bytes.len() as u64).is_multiple_of(PAGE_BYTES) {
            return;
        }
        let is_first = (self.bytes.len() as u64).is_multiple_of(self.size.bytes());
        let flags = flags | u16::from(left > 0);
        let first = is_first.then_some((SystemId(SYSTEM_ID), self.size));
        let header = page_header(self.timeline, self.position(), flags, left, first);
        self.bytes.extend(header);
    }

    /// Appends a record without a transaction; returns where it starts.
    pub fn record(&mut self, resource_manager: u8, info: u8, body: &[u8]) -> Lsn {
        self.record_of(0, resource_manager, info, body)
    }

    fn record_of(&mut self, xid: u32, resource_manager: u8, info: u8, body: &[u8]) -> Lsn {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.begin_page(0, 0);
        let lsn = self.position();
        let mut record = Vec::new();
        record.extend(u32::try_from(24 + body.len()).unwrap().to_le_bytes());
        record.extend(xid.to_le_bytes());
        record.extend(self.previous.to_le_bytes());
        record.extend([info, resource_manager, 0, 0]);
        let crc = crc32c_append(crc32c(body), &record);
        record.extend(crc.to_le_bytes());
        record.extend(body);
        self.previous = lsn.0;
        for at in 0..record.len() {
            self.begin_page(record.len() - at, 0);
            self.bytes.push(record[at]);
        }
        self.extents
            .push((lsn, Lsn(self.position().0.next_multiple_of(8))));
        lsn
    }

    /// Appends a record with these `facts`, and with `padding` more bytes of main data.
    pub fn say(&mut self, facts: &RecordFacts, padding: usize) {
        let pg_time = |time: TimestampMicros| (time.unix_micros() - 946_684_800_000_000).to_le_bytes();
        let mut data = Vec::new();
        let mut of_xid = 0;
        let (resource_manager, info) = match facts {
            // An odd transaction is a prepared one.
            RecordFacts::Commit { time, xid } if xid % 2 == 1 => {
                data.extend(pg_time(*time));
                prepared(&mut data, *xid);
                (1, 0xB0)
            }
            RecordFacts::Commit { time, xid } => {
                data.extend(pg_time(*time));
                of_xid = *xid;
                (1, 0x80)
            }
            RecordFacts::Abort { time, xid } if xid % 2 == 1 => {
                data.extend(pg_time(*time));
                prepared(&mut data, *xid);
                (1, 0xC0)
            }
            RecordFacts::Abort { time, xid } => {
                data.extend(pg_time(*time));
                of_xid = *xid;
                (1, 0x20)
            }
            RecordFacts::RestorePoint { name, time } => {
                data.extend(pg_time(*time));
                data.extend(name.as_bytes());
                data.resize(72, 0);
                (0, 0x70)
            }
            RecordFacts::BackupEnd { start_lsn } => {
                data.extend(start_lsn.0.to_le_bytes());
                (0, 0x50)
            }
            RecordFacts::Checkpoint {
                time,
                timeline,
                previous,
            } => {
                data.resize(88, 0);
                data[8..12].copy_from_slice(&timeline.0.to_le_bytes());
                data[12..16].copy_from_slice(&previous.0.to_le_bytes());
                data[64..72].copy_from_slice(&(time.unix_micros() / 1_000_000).to_le_bytes());
                (0, 0x10)
            }
            RecordFacts::EndOfRecovery {
                time,
                timeline,
                previous,
            } => {
                data.extend(pg_time(*time));
                data.extend(timeline.0.to_le_bytes());
                data.extend(previous.0.to_le_bytes());
                (0, 0x90)
            }
            RecordFacts::Switch => (0, 0x40),
            RecordFacts::TablespaceCreated { oid, emptied } => {
                data.extend(oid.to_le_bytes());
                data.extend(emptied.map_or(&b"\0"[..], |_| b"/srv/tablespaces/fast\0"));
                (5, 0x00)
            }
            RecordFacts::ParameterChange(parameters) => {
                let of = parameters.required;
                let settings = [
                    of.max_connections,
                    of.max_worker_processes,
                    of.max_wal_senders,
                    of.max_prepared_transactions,
                    of.max_locks_per_transaction,
                    parameters.wal_level as u32,
                ];
                data.extend(settings.into_iter().flat_map(u32::to_le_bytes));
                (0, 0x60)
            }
            RecordFacts::FullPageWrites { on } => {
                data.push(u8::from(*on));
                (0, 0x80)
            }
        };
        // The length of a checkpoint shows the version.
        let padding = match facts {
            RecordFacts::Checkpoint { .. } => 0,
            _ => padding,
        };
        data.resize(data.len() + padding, 0xEE);
        let body = if *facts == RecordFacts::Switch {
            Vec::new()
        } else {
            main_data(&data)
        };
        let lsn = self.record_of(of_xid, resource_manager, info, &body);
        self.written.push((lsn, facts.clone()));
        if *facts == RecordFacts::Switch {
            self.fill();
            self.extents.pop();
            self.extents.push((lsn, self.position()));
        }
    }

    /// Appends a record and makes it void, as after a crash of the server while writing it: what is left of the
    /// page is zero, and the next page begins with the flag for this.
    pub fn crash_within_record(&mut self) {
        self.record(10, 0, &[0xAB; 20_000]);
        self.extents.pop();
        let page = usize::try_from(PAGE_BYTES).unwrap();
        self.bytes.truncate(self.bytes.len() / page * page);
        self.begin_page(0, 8);
    }

    /// Fills the segment up with zeroes.
    fn fill(&mut self) {
        let size = usize::try_from(self.size.bytes()).unwrap();
        self.bytes.resize(self.bytes.len().next_multiple_of(size), 0);
    }

    /// The log so far, the last segment filled up with zeroes.
    #[must_use]
    pub fn segments(&self) -> Vec<SampleSegment> {
        let size = usize::try_from(self.size.bytes()).unwrap();
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(size), 0);
        let named = |(lsn, bytes): (u64, &[u8])| {
            let name = SegmentName::from_lsn(self.timeline, Lsn(lsn), self.size);
            let facts = check_segment(bytes, &name, bytes.len() as u64).unwrap();
            SampleSegment {
                name,
                facts,
                bytes: bytes.to_vec(),
            }
        };
        (self.start.0..)
            .step_by(size)
            .zip(bytes.chunks(size))
            .map(named)
            .collect()
    }
}

/// The header of a page. That of a segment's first page also has the system and the size of the segment.
fn page_header(
    timeline: TimelineId,
    address: Lsn,
    flags: u16,
    left: usize,
    first: Option<(SystemId, SegmentSize)>,
) -> Vec<u8> {
    let flags = flags | if first.is_some() { LONG_HEADER } else { 0 };
    let mut header = Vec::new();
    header.extend(MAGIC.to_le_bytes());
    header.extend(flags.to_le_bytes());
    header.extend(timeline.0.to_le_bytes());
    header.extend(address.0.to_le_bytes());
    header.extend(u32::try_from(left).unwrap().to_le_bytes());
    header.extend([0; 4]);
    if let Some((system, size)) = first {
        header.extend(system.0.to_le_bytes());
        header.extend(u32::try_from(size.bytes()).unwrap().to_le_bytes());
        header.extend(u32::try_from(PAGE_BYTES).unwrap().to_le_bytes());
    }
    header
}

/// Segment `number` of timeline 1. It has the size of `content`, whose first bytes are replaced by the header of the
/// first page. The rest stays, so there need not be any records.
#[must_use]
pub fn segment(number: u32, system: SystemId, mut content: Vec<u8>) -> (SegmentName, Vec<u8>) {
    let size = SegmentSize::try_from(content.len() as u64).unwrap();
    let timeline = TimelineId(1);
    let start = Lsn(u64::from(number) * size.bytes());
    let header = page_header(timeline, start, 0, 0, Some((system, size)));
    content[..header.len()].copy_from_slice(&header);
    (SegmentName::from_lsn(timeline, start, size), content)
}

/// What follows the time in the record that ends a prepared transaction: flags, the database, a subtransaction, the
/// transaction.
fn prepared(data: &mut Vec<u8>, xid: u32) {
    for word in [1 | 2 | 16, 5, 1663, 1, xid + 1, xid] {
        data.extend(u32::to_le_bytes(word));
    }
}

fn main_data(data: &[u8]) -> Vec<u8> {
    let mut body = vec![253, 1, 0, 252, 9, 9, 9, 9];
    match u8::try_from(data.len()) {
        Ok(short) => body.extend([255, short]),
        Err(_) => {
            body.push(254);
            body.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        }
    }
    body.extend(data);
    body
}
