//! The walk through a segment's pages and records.

use crc32c::crc32c_append;

use super::record::{OpenRecord, Progress};
use super::{Fragment, RecordFacts, SegmentIndex, Stop, StopReason};
use crate::bytes::{u16_at, u32_at, u64_at};
use crate::wal_check::{LONG_HEADER_BYTES, SHORT_HEADER_BYTES, SegmentFacts};
use crate::wal_name::SegmentName;
use crate::{Lsn, SegmentSize};

const FIRST_IS_CONTINUATION: u16 = 0x0001;

/// The flag of a page on which a record that was never finished is void; PostgreSQL 19 renumbered it.
fn first_is_overwrite(magic: u16) -> u16 {
    const MAGIC_OF_18: u16 = 0xD118;
    if magic > MAGIC_OF_18 { 0x0004 } else { 0x0008 }
}

/// Records start at multiples of this.
const ALIGNMENT: u64 = 8;

/// Called with each record that is read.
pub type EachRecord<'a> = dyn FnMut(Lsn, Option<&RecordFacts>) + 'a;

/// Reads a segment, given in slices of any length, into a [`SegmentIndex`].
#[derive(Debug)]
pub struct WalScanner {
    start: Lsn,
    segment_bytes: u64,
    page_bytes: u64,
    magic: u16,
    /// Where in the segment the scan began: a page.
    begun_at: u64,
    /// How much of the segment has been read or skipped.
    position: u64,
    /// The current page's header, as far as it has been read.
    page_header: Vec<u8>,
    open: Open,
    record: OpenRecord,
    ended: bool,
    index: SegmentIndex,
}

/// What the bytes at the current position belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// The space before the next record.
    Nothing,
    /// The end of a record that began in an earlier segment, `left` bytes of it.
    Head { left: u64 },
    /// The record that is being read.
    Record,
}

impl WalScanner {
    /// A scanner at the beginning of segment `name`, with the `facts` of its first page.
    #[must_use]
    pub fn new(name: &SegmentName, facts: &SegmentFacts) -> Self {
        let size: SegmentSize = facts.segment_size;
        let start = name.start_lsn(size);
        let mut scanner = Self {
            start,
            segment_bytes: size.bytes(),
            page_bytes: u64::from(facts.page_bytes),
            magic: facts.magic,
            begun_at: 0,
            position: 0,
            page_header: Vec::with_capacity(LONG_HEADER_BYTES),
            open: Open::Nothing,
            record: OpenRecord::new(start),
            ended: false,
            index: SegmentIndex {
                end_lsn: start,
                reads: SegmentIndex::READS,
                ..SegmentIndex::default()
            },
        };
        if !facts.is_known_version() {
            scanner.stop(start, StopReason::UnknownVersion);
        }
        scanner
    }

    /// A scanner that begins with a later page of segment `name`, `offset` bytes into it.
    #[must_use]
    pub fn from_page(name: &SegmentName, facts: &SegmentFacts, offset: u64) -> Self {
        let mut scanner = Self::new(name, facts);
        let begun_at = offset - offset % scanner.page_bytes.max(1);
        (scanner.begun_at, scanner.position) = (begun_at, begun_at);
        scanner.index.end_lsn = scanner.lsn();
        scanner
    }

    /// Reads the segment's next bytes. What comes after the segment's end is ignored.
    pub fn push(&mut self, bytes: &[u8]) {
        self.push_each(bytes, &mut |_, _| {});
    }

    /// As [`push`](Self::push), and calls `each` with each record that starts and ends in the segment: its
    /// LSN, and its content if that matters for recovery.
    pub fn push_each(&mut self, mut bytes: &[u8], each: &mut EachRecord<'_>) {
        while !bytes.is_empty() && !self.ended {
            let used = self.step(bytes, each);
            self.position += used as u64;
            bytes = bytes.get(used..).unwrap_or_default();
            if self.position >= self.segment_bytes {
                self.end_of_segment();
            }
        }
    }

    /// What was found.
    #[must_use]
    pub fn finish(mut self) -> SegmentIndex {
        if !self.ended {
            let lsn = if self.open == Open::Record {
                self.record.lsn()
            } else {
                self.lsn()
            };
            self.stop(lsn, StopReason::EndOfInput);
        }
        self.index
    }

    fn lsn(&self) -> Lsn {
        Lsn(self.start.0.wrapping_add(self.position))
    }

    fn stop(&mut self, lsn: Lsn, reason: StopReason) {
        self.index.stopped = Some(Stop { lsn, reason });
        self.ended = true;
    }

    /// Reads the next bytes that belong together; returns how many they were.
    fn step(&mut self, bytes: &[u8], each: &mut EachRecord<'_>) -> usize {
        let offset = self.position % self.page_bytes;
        let header_bytes = if self.position < self.page_bytes {
            LONG_HEADER_BYTES
        } else {
            SHORT_HEADER_BYTES
        };
        let in_header = (header_bytes as u64).saturating_sub(offset);
        if in_header > 0 {
            let part = first(bytes, in_header);
            self.page_header.extend_from_slice(part);
            if self.page_header.len() == header_bytes {
                self.enter_page(offset + part.len() as u64);
            }
            return part.len();
        }
        let on_page = first(bytes, self.page_bytes - offset);
        let part = match self.open {
            Open::Nothing => return self.begin_record(on_page),
            Open::Head { left } => first(on_page, left),
            Open::Record => first(on_page, self.record.missing_bytes()),
        };
        match self.open {
            Open::Head { left } => self.take_head(part, left),
            _ => self.take_record(part, each),
        }
        part.len()
    }

    /// Checks a page by its header, which is now complete; its data starts `header_bytes` into it.
    fn enter_page(&mut self, header_bytes: u64) {
        let page_lsn = Lsn(self
            .start
            .0
            .wrapping_add(self.position - self.position % self.page_bytes));
        let header = std::mem::take(&mut self.page_header);
        let field = |offset| u32_at(&header, offset).unwrap_or_default();
        let flags = u16_at(&header, 2).unwrap_or_default();
        let is_this_page = u16_at(&header, 0) == Some(self.magic) && u64_at(&header, 8) == Some(page_lsn.0);
        let continued = if flags & FIRST_IS_CONTINUATION != 0 {
            u64::from(field(16))
        } else {
            0
        };
        self.page_header = header;
        self.page_header.clear();

        let is_first = self.position < self.begun_at + self.page_bytes;
        if flags & first_is_overwrite(self.magic) != 0 {
            // The previous record was never finished, because the server crashed; it is void.
            if matches!(self.open, Open::Head { .. }) {
                self.index.head = None;
            }
            self.open = Open::Nothing;
        }
        let expected = match self.open {
            Open::Nothing => 0,
            Open::Head { left } => left,
            Open::Record => self.record.missing_bytes(),
        };
        if !is_this_page || (!is_first && continued != expected) {
            let broken = if self.open == Open::Record {
                self.record.lsn()
            } else {
                page_lsn
            };
            self.stop(broken, StopReason::WrongPage);
        } else if is_first && continued > 0 {
            self.open = Open::Head { left: continued };
            let lsn = Lsn(page_lsn.0.wrapping_add(header_bytes));
            self.index.head = Some(Fragment {
                lsn,
                lead: Vec::new(),
                bytes: 0,
                crc32c: 0,
            });
        }
    }

    /// Skips to where a record can start, and starts it there.
    fn begin_record(&mut self, on_page: &[u8]) -> usize {
        let gap = self.position.next_multiple_of(ALIGNMENT) - self.position;
        if gap == 0 {
            self.record.restart(self.lsn());
            self.open = Open::Record;
        }
        first(on_page, gap).len()
    }

    fn take_head(&mut self, part: &[u8], left: u64) {
        if let Some(head) = &mut self.index.head {
            let wanted = (Fragment::LEAD_BYTES - head.lead.len()).min(part.len());
            head.lead.extend_from_slice(&part[..wanted]);
            head.bytes += part.len() as u64;
            head.crc32c = crc32c_append(head.crc32c, part);
        }
        let left = left - part.len() as u64;
        self.open = Open::Head { left };
        if left == 0 {
            self.record_ends_after(part);
        }
    }

    /// A record ends with `part`, which starts at the current position.
    fn record_ends_after(&mut self, part: &[u8]) {
        let end = (self.position + part.len() as u64).next_multiple_of(ALIGNMENT);
        self.index.end_lsn = Lsn(self.start.0.wrapping_add(end));
        self.open = Open::Nothing;
    }

    fn take_record(&mut self, part: &[u8], each: &mut EachRecord<'_>) {
        let lsn = self.record.lsn();
        match self.record.take(part) {
            Progress::Incomplete => {}
            Progress::Nothing => self.stop(lsn, StopReason::NoMoreRecords),
            Progress::Wrong => self.stop(lsn, StopReason::WrongRecord),
            Progress::Complete(facts) => {
                self.record_ends_after(part);
                self.index.last_lsn = Some(lsn);
                each(lsn, facts.as_ref());
                if facts == Some(RecordFacts::Switch) {
                    self.index.end_lsn = Lsn(self.start.0.wrapping_add(self.segment_bytes));
                    self.ended = true;
                }
                if let Some(facts) = facts {
                    self.index.add(lsn, facts);
                }
            }
        }
    }

    fn end_of_segment(&mut self) {
        if self.ended {
            return;
        }
        self.ended = true;
        if self.open == Open::Record {
            self.index.end_lsn = self.lsn();
            self.index.crosses_from = Some(self.record.lsn());
            let record = std::mem::replace(&mut self.record, OpenRecord::new(self.start));
            self.index.tail = record.into_tail();
        }
    }
}

/// The first `count` bytes, or all where there are fewer.
fn first(bytes: &[u8], count: u64) -> &[u8] {
    let count = usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len());
    &bytes[..count]
}
