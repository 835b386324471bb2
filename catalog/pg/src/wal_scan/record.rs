//! One WAL record: its checksum, and its content if it is of a kind that matters for recovery.

use crc32c::{crc32c, crc32c_append, crc32c_combine};

use serde::{Deserialize, Serialize};

use super::Fragment;
use crate::bytes::{i64_at, u32_at, u64_at};
use crate::pg_control::RequiredSettings;
use crate::{Lsn, TimelineId, TimestampMicros};

/// Length of a record's header.
pub(super) const HEADER_BYTES: usize = 24;
/// The part of the header that the CRC covers: everything before the CRC itself.
pub(super) const CRC_OFFSET: usize = 20;
const XID_OFFSET: usize = 4;
const INFO_OFFSET: usize = 16;
const RESOURCE_MANAGER_OFFSET: usize = 17;

/// No PostgreSQL writes a longer record; a length beyond is garbage.
pub(super) const MAX_RECORD_BYTES: u64 = 1 << 30;

/// A record of a kind that matters for recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it starts.
    pub lsn: Lsn,
    /// Its content.
    pub facts: RecordFacts,
}

/// The kinds of records that matter for recovery, and their content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordFacts {
    /// A transaction committed, prepared or not.
    Commit {
        /// When.
        time: TimestampMicros,
        /// Which; 0 if the record's first bytes do not have it.
        xid: u32,
    },
    /// A transaction was rolled back, prepared or not.
    Abort {
        /// When.
        time: TimestampMicros,
        /// Which; 0 if the record's first bytes do not have it.
        xid: u32,
    },
    /// A restore point was named.
    RestorePoint {
        /// Its name; bytes that are not UTF-8 are replaced.
        name: String,
        /// When.
        time: TimestampMicros,
    },
    /// A base backup ended: from here on its copy is consistent.
    BackupEnd {
        /// Where that backup started.
        start_lsn: Lsn,
    },
    /// A checkpoint was completed.
    Checkpoint {
        /// When it began, whole seconds.
        time: TimestampMicros,
        /// The timeline it is on.
        timeline: TimelineId,
        /// The timeline before; the same if none begins here.
        previous: TimelineId,
    },
    /// Recovery ended and a timeline began.
    EndOfRecovery {
        /// When.
        time: TimestampMicros,
        /// The timeline that begins.
        timeline: TimelineId,
        /// The timeline that was recovered.
        previous: TimelineId,
    },
    /// The rest of the segment is empty.
    Switch,
    /// A tablespace was created. Replayed unchanged, it is a symbolic link to the original's directory.
    TablespaceCreated {
        /// Which.
        oid: u32,
        /// The edit that keeps its replay within the data directory; none if its path is already empty.
        emptied: Option<EmptiedPath>,
    },
    /// The server started with other settings.
    ParameterChange(Parameters),
    /// `full_page_writes` was switched.
    FullPageWrites {
        /// Whether pages are written whole from here on.
        on: bool,
    },
}

/// A record that creates a tablespace, with an empty path: the path's first byte is zero. PostgreSQL then creates a
/// plain directory in `pg_tblspc` (`create_tablespace_directories` in `src/backend/commands/tablespace.c`). The record
/// keeps its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptiedPath {
    /// Where the path begins, in bytes of the record.
    pub path_at: u32,
    /// The record's CRC-32C with an empty path.
    pub crc32c: u32,
}

/// Settings a server started with that differ from those before (`xl_parameter_change`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// How much is logged.
    pub wal_level: WalLevel,
    /// Settings that a standby must have at least as large.
    #[serde(flatten)]
    pub required: RequiredSettings,
}

/// `wal_level`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalLevel {
    /// Not enough for recovery, which ends with an error where this level begins.
    Minimal,
    /// Enough.
    Replica,
    /// Enough, and more.
    Logical,
}

impl WalLevel {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Minimal,
            1 => Self::Replica,
            2 => Self::Logical,
            _ => return None,
        })
    }
}

/// The kinds whose contents are read, as resource manager and the high bits of the info byte.
enum Kind {
    Commit,
    Abort,
    RestorePoint,
    BackupEnd,
    Checkpoint,
    EndOfRecovery,
    Switch,
    TablespaceCreate,
    ParameterChange,
    FullPageWrites,
}

impl Kind {
    /// Sources: `src/include/catalog/pg_control.h` (XLOG_*), `src/include/access/xact.h`,
    /// `src/include/commands/tablespace.h`.
    fn of(header: &[u8]) -> Option<Self> {
        const XLOG: u8 = 0;
        const TRANSACTION: u8 = 1;
        const TABLESPACE: u8 = 5;
        let info = *header.get(INFO_OFFSET)?;
        match (*header.get(RESOURCE_MANAGER_OFFSET)?, info & 0xF0, info & 0x70) {
            (TRANSACTION, _, 0x00 | 0x30) => Some(Self::Commit),
            (TRANSACTION, _, 0x20 | 0x40) => Some(Self::Abort),
            (XLOG, 0x00 | 0x10, _) => Some(Self::Checkpoint),
            (XLOG, 0x40, _) => Some(Self::Switch),
            (XLOG, 0x50, _) => Some(Self::BackupEnd),
            (XLOG, 0x60, _) => Some(Self::ParameterChange),
            (XLOG, 0x70, _) => Some(Self::RestorePoint),
            (XLOG, 0x80, _) => Some(Self::FullPageWrites),
            (XLOG, 0x90, _) => Some(Self::EndOfRecovery),
            (TABLESPACE, 0x00, _) => Some(Self::TablespaceCreate),
            _ => None,
        }
    }
}

/// A record's content, from its first bytes (all of them, or [`Fragment::LEAD_BYTES`]).
pub(super) fn read_facts(lead: &[u8], record_bytes: u64) -> Option<RecordFacts> {
    let kind = Kind::of(lead)?;
    if matches!(kind, Kind::Switch) {
        return Some(RecordFacts::Switch);
    }
    let data_at = main_data_at(lead, record_bytes)?;
    let data = lead.get(data_at..)?;
    let pg_time = || i64_at(data, 0).map(TimestampMicros::from_pg);
    let timelines = || Some((TimelineId(u32_at(data, 8)?), TimelineId(u32_at(data, 12)?)));
    Some(match kind {
        Kind::Commit => RecordFacts::Commit {
            time: pg_time()?,
            xid: ended_xid(lead, data),
        },
        Kind::Abort => RecordFacts::Abort {
            time: pg_time()?,
            xid: ended_xid(lead, data),
        },
        Kind::BackupEnd => RecordFacts::BackupEnd {
            start_lsn: Lsn(u64_at(data, 0)?),
        },
        Kind::RestorePoint => {
            let name = data.get(8..72)?.split(|&byte| byte == 0).next()?;
            RecordFacts::RestorePoint {
                name: String::from_utf8_lossy(name).into_owned(),
                time: pg_time()?,
            }
        }
        Kind::Checkpoint => {
            let (timeline, previous) = timelines()?;
            RecordFacts::Checkpoint {
                time: TimestampMicros::from_unix_seconds(i64_at(
                    data,
                    checkpoint_time_at(data_at, record_bytes),
                )?),
                timeline,
                previous,
            }
        }
        Kind::EndOfRecovery => {
            let (timeline, previous) = timelines()?;
            RecordFacts::EndOfRecovery {
                time: pg_time()?,
                timeline,
                previous,
            }
        }
        Kind::Switch => RecordFacts::Switch,
        Kind::TablespaceCreate => RecordFacts::TablespaceCreated {
            oid: u32_at(data, 0)?,
            emptied: emptied_path(lead, record_bytes, data_at + 4)?,
        },
        Kind::ParameterChange => RecordFacts::ParameterChange(parameters(data)?),
        Kind::FullPageWrites => RecordFacts::FullPageWrites {
            on: *data.first()? != 0,
        },
    })
}

/// The position of a checkpoint's time in its data: in PostgreSQL 19 a field before it grew (`CheckPoint` in
/// `src/include/catalog/pg_control.h`).
fn checkpoint_time_at(data_at: usize, record_bytes: u64) -> usize {
    const BYTES_SINCE_19: u64 = 96;
    match record_bytes.saturating_sub(data_at as u64) == BYTES_SINCE_19 {
        true => 72,
        false => 64,
    }
}

fn parameters(data: &[u8]) -> Option<Parameters> {
    Some(Parameters {
        required: RequiredSettings {
            max_connections: u32_at(data, 0)?,
            max_worker_processes: u32_at(data, 4)?,
            max_wal_senders: u32_at(data, 8)?,
            max_prepared_transactions: u32_at(data, 12)?,
            max_locks_per_transaction: u32_at(data, 16)?,
        },
        wal_level: WalLevel::from_number(u32_at(data, 20)?)?,
    })
}

/// The record with the path at `path_at` emptied. `None` if its first byte is unknown; `Some(None)` if it is already
/// empty and there is nothing to change.
#[expect(clippy::option_option, reason = "not known, or nothing to do")]
fn emptied_path(lead: &[u8], record_bytes: u64, path_at: usize) -> Option<Option<EmptiedPath>> {
    let first = *lead.get(path_at)?;
    if first == 0 {
        return Some(None);
    }
    // The contribution of one byte to a CRC depends only on how many bytes follow: the rest of the record, and the part
    // of the header that the CRC covers last.
    let behind = usize::try_from(record_bytes).ok()?.checked_sub(path_at + 1)? + CRC_OFFSET;
    let added = crc32c_combine(crc32c(&[first]) ^ crc32c(&[0]), 0, behind);
    Some(Some(EmptiedPath {
        path_at: u32::try_from(path_at).ok()?,
        crc32c: u32_at(lead, CRC_OFFSET)? ^ added,
    }))
}

/// Whether a record that begins with `lead` creates a tablespace.
pub(super) fn makes_tablespace(lead: &[u8]) -> bool {
    matches!(
        lead.get(..HEADER_BYTES).and_then(Kind::of),
        Some(Kind::TablespaceCreate)
    )
}

/// The transaction a commit or abort record ends: the one that wrote it, or the prepared one it names.
///
/// Source: `xl_xact_commit` and what may follow it, `src/include/access/xact.h`.
fn ended_xid(lead: &[u8], data: &[u8]) -> u32 {
    let info = lead.get(INFO_OFFSET).copied().unwrap_or_default();
    let xid = if matches!(info & 0x70, 0x30 | 0x40) {
        prepared_xid(info, data)
    } else {
        u32_at(lead, XID_OFFSET)
    };
    xid.unwrap_or_default()
}

fn prepared_xid(info: u8, data: &[u8]) -> Option<u32> {
    const HAS_INFO: u8 = 0x80;
    const HAS_DATABASE: u32 = 1;
    const HAS_TWO_PHASE: u32 = 1 << 4;
    /// Its entries changed their length with PostgreSQL 18.
    const HAS_DROPPED_STATISTICS: u32 = 1 << 8;
    /// Flags of lists that may come before the transaction's id, in their order, and the length of an entry:
    /// subtransactions, dropped relations, invalidation messages.
    const LISTS: [(u32, u32); 3] = [(1 << 1, 4), (1 << 2, 12), (1 << 3, 16)];
    let flags = (info & HAS_INFO != 0).then(|| u32_at(data, 8)).flatten()?;
    if flags & HAS_TWO_PHASE == 0 || flags & HAS_DROPPED_STATISTICS != 0 {
        return None;
    }
    let mut at = 12 + if flags & HAS_DATABASE != 0 { 8 } else { 0 };
    for (flag, entry_bytes) in LISTS {
        if flags & flag != 0 {
            let list_bytes = u32_at(data, at)?.checked_mul(entry_bytes)?;
            at = at
                .checked_add(4)?
                .checked_add(usize::try_from(list_bytes).ok()?)?;
        }
    }
    u32_at(data, at)
}

/// Where the main data of a record without block references begins.
///
/// Such a record may name a replication origin and a top-level transaction first. Its main data comes last and reaches
/// to its end, which is checked.
fn main_data_at(lead: &[u8], record_bytes: u64) -> Option<usize> {
    const ORIGIN: u8 = 253;
    const TOP_LEVEL_XID: u8 = 252;
    const SHORT_DATA: u8 = 255;
    const LONG_DATA: u8 = 254;
    let mut at = HEADER_BYTES;
    let (start, bytes) = loop {
        match *lead.get(at)? {
            ORIGIN => at += 3,
            TOP_LEVEL_XID => at += 5,
            SHORT_DATA => break (at + 2, u64::from(*lead.get(at + 1)?)),
            LONG_DATA => break (at + 5, u64::from(u32_at(lead, at + 1)?)),
            _ => return None,
        }
    };
    let ends_with_the_record = u64::try_from(start).ok()?.checked_add(bytes)? == record_bytes;
    ends_with_the_record.then_some(start)
}

/// Whether the CRC in the header (at the start of `lead`) is right for a record whose bytes after
/// the header have the CRC `body_crc32c`.
fn crc_is_right(lead: &[u8], body_crc32c: u32) -> bool {
    let covered = lead.get(..CRC_OFFSET);
    let stored = u32_at(lead, CRC_OFFSET);
    covered.is_some_and(|covered| stored == Some(crc32c_append(body_crc32c, covered)))
}

/// A record as it is being read.
#[derive(Debug)]
pub(super) struct OpenRecord {
    lsn: Lsn,
    /// Its first bytes, at most [`Fragment::LEAD_BYTES`].
    lead: Vec<u8>,
    bytes_read: u64,
    /// CRC-32C of what was read after the header.
    body_crc32c: u32,
}

/// The state of a record while it is being read.
pub(super) enum Progress {
    /// Its end is not reached.
    Incomplete,
    /// A length of zero: no record was written here.
    Nothing,
    /// It contradicts itself.
    Wrong,
    /// It is complete and correct; its content, if that matters.
    Complete(Option<RecordFacts>),
}

impl OpenRecord {
    pub(super) fn new(lsn: Lsn) -> Self {
        Self {
            lsn,
            lead: Vec::with_capacity(Fragment::LEAD_BYTES),
            bytes_read: 0,
            body_crc32c: 0,
        }
    }

    /// Starts again at `lsn` with the same memory: a segment has a hundred thousand records.
    pub(super) fn restart(&mut self, lsn: Lsn) {
        self.lead.clear();
        *self = Self {
            lsn,
            lead: std::mem::take(&mut self.lead),
            bytes_read: 0,
            body_crc32c: 0,
        };
    }

    pub(super) fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Its length, once that has been read.
    fn total_bytes(&self) -> Option<u64> {
        u32_at(&self.lead, 0).map(u64::from)
    }

    /// How many bytes it still needs; the length, at the start of its header, comes first.
    pub(super) fn missing_bytes(&self) -> u64 {
        match self.total_bytes() {
            None => 4 - self.bytes_read.min(4),
            Some(total) => total.saturating_sub(self.bytes_read),
        }
    }

    /// Takes the next bytes, no more than are missing.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Progress {
        let header_missing = HEADER_BYTES.saturating_sub(self.lead.len()).min(bytes.len());
        let (header, body) = bytes.split_at(header_missing);
        self.lead.extend_from_slice(header);
        self.body_crc32c = crc32c_append(self.body_crc32c, body);
        let wanted = (Fragment::LEAD_BYTES - self.lead.len()).min(body.len());
        self.lead.extend_from_slice(&body[..wanted]);
        self.bytes_read += bytes.len() as u64;
        self.progress()
    }

    fn progress(&self) -> Progress {
        let Some(total) = self.total_bytes() else {
            return Progress::Incomplete;
        };
        if total == 0 {
            return Progress::Nothing;
        }
        if !(HEADER_BYTES as u64..=MAX_RECORD_BYTES).contains(&total) {
            return Progress::Wrong;
        }
        let previous = u64_at(&self.lead, 8);
        if previous.is_some_and(|previous| previous >= self.lsn.0) {
            return Progress::Wrong;
        }
        if self.bytes_read < total {
            return Progress::Incomplete;
        }
        if !crc_is_right(&self.lead, self.body_crc32c) {
            return Progress::Wrong;
        }
        Progress::Complete(read_facts(&self.lead, total))
    }

    /// The part read so far, as the tail of its segment; `None` if it is of a kind that does not matter.
    pub(super) fn into_tail(self) -> Option<Fragment> {
        let header = self.lead.get(..HEADER_BYTES);
        if header.is_some_and(|header| Kind::of(header).is_none()) {
            return None;
        }
        let crc32c = match header {
            Some(header) => {
                let body_bytes = usize::try_from(self.bytes_read).ok()?.checked_sub(HEADER_BYTES)?;
                crc32c_combine(crc32c(header), self.body_crc32c, body_bytes)
            }
            None => crc32c(&self.lead),
        };
        Some(Fragment {
            lsn: self.lsn,
            lead: self.lead,
            bytes: self.bytes_read,
            crc32c,
        })
    }
}

/// Joins a record that crosses segments: the `tail` of the segment it starts in, and the `heads` of the segments after,
/// in order (one, unless the record is longer than a segment).
///
/// `None` if the parts do not make a whole record with a correct CRC, or if it is of a kind that does not matter.
#[must_use]
pub fn join(tail: &Fragment, heads: &[&Fragment]) -> Option<Record> {
    let mut lead = tail.lead.clone();
    let mut lead_is_gapless = tail.bytes == tail.lead.len() as u64;
    let (mut bytes, mut crc) = (tail.bytes, tail.crc32c);
    for head in heads {
        if lead_is_gapless {
            lead.extend_from_slice(&head.lead);
            lead_is_gapless = head.bytes == head.lead.len() as u64;
        }
        bytes = bytes.checked_add(head.bytes)?;
        crc = crc32c_combine(crc, head.crc32c, usize::try_from(head.bytes).ok()?);
    }
    let header = lead.get(..HEADER_BYTES)?;
    if bytes > MAX_RECORD_BYTES || u32_at(header, 0).map(u64::from) != Some(bytes) {
        return None;
    }
    // A CRC is linear: combining with a second part of CRC zero leaves what the first part adds
    // to the whole, so taking the header out of the whole leaves the body.
    let body_bytes = usize::try_from(bytes).ok()?.checked_sub(HEADER_BYTES)?;
    let body_crc32c = crc ^ crc32c_combine(crc32c(header), 0, body_bytes);
    let facts = crc_is_right(header, body_crc32c)
        .then(|| read_facts(&lead, bytes))
        .flatten()?;
    Some(Record { lsn: tail.lsn, facts })
}
