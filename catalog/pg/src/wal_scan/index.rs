//! The results of a scan, as stored with the archived segment.

use serde::{Deserialize, Serialize};

use super::{EmptiedPath, Parameters, RecordFacts};
use crate::{Lsn, TimelineId, TimestampMicros};

/// What one WAL segment contains about points in time: the index for point-in-time recovery.
///
/// A record counts for the segment it *starts* in. A record that crosses the segment's end is in no segment's figures.
/// Its parts are in `tail` here and in `head` of the segments after, so that [`join`](super::join) can read it in
/// whatever order the segments arrive.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SegmentIndex {
    /// Earliest time in a commit or abort record. Commit times do not rise steadily with the
    /// LSN, hence both limits. Aborts count because recovery to a time stops at them as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_time_min: Option<TimestampMicros>,
    /// Latest time in a commit or abort record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_time_max: Option<TimestampMicros>,
    /// How many commit records, prepared transactions included.
    pub commits: u64,
    /// Lowest transaction id in a commit or abort record. Ids wrap around: the range only shows where a transaction
    /// cannot have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xid_min: Option<u32>,
    /// Highest transaction id in a commit or abort record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xid_max: Option<u32>,
    /// Where the last record starts that both starts and ends in this segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_lsn: Option<Lsn>,
    /// Named restore points, in LSN order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub restore_points: Vec<RestorePoint>,
    /// Ends of base backups, in LSN order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backup_ends: Vec<BackupEnd>,
    /// Time of the last checkpoint, whole seconds: the clock of a server that commits nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_time_last: Option<TimestampMicros>,
    /// Places where a new timeline begins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timeline_switches: Vec<TimelineSwitch>,
    /// Where the last record that ends in this segment ends. The segment's end if a record crosses it, or if the server
    /// switched to the next one; the segment's start if there is neither.
    pub end_lsn: Lsn,
    /// Whether the server left the rest of the segment empty and went on in the next one.
    pub switched: bool,
    /// Why the scan ended before the segment did. `None`: it was read to its end or to the switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stop>,
    /// End of a record that began in an earlier segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<Fragment>,
    /// Where the record starts that goes on in the next segment, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crosses_from: Option<Lsn>,
    /// Beginning of a record that goes on in the next segment, if it is of a kind wanted here or
    /// too short to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<Fragment>,
    /// Whether a list was cut because it was full.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lists_cut: bool,
    /// What the release that made this index looked for: the [`SegmentIndex::READS`] of that release. In the index of
    /// an older release, the following fields are unknown.
    #[serde(skip_serializing_if = "is_zero")]
    pub reads: u32,
    /// Tablespaces made outside the data directory, in LSN order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tablespaces: Vec<TablespaceMade>,
    /// Whether that list was cut because it was full.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tablespaces_cut: bool,
    /// Where the server started with other settings, in LSN order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parameter_changes: Vec<ParameterChange>,
    /// Where `full_page_writes` was switched off, in LSN order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub full_page_writes_off: Vec<Lsn>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A tablespace whose record has a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceMade {
    /// Where its record starts.
    pub lsn: Lsn,
    /// Which.
    pub oid: u32,
    /// The record with an empty path.
    #[serde(flatten)]
    pub emptied: EmptiedPath,
}

/// A start of the server with other settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterChange {
    /// Where its record starts.
    pub lsn: Lsn,
    /// The settings.
    #[serde(flatten)]
    pub parameters: Parameters,
}

/// A named restore point (`pg_create_restore_point`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// Its name; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Where its record starts.
    pub lsn: Lsn,
    /// When it was made.
    pub time: TimestampMicros,
}

/// The end of a base backup taken on a primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupEnd {
    /// Where the backup started, which distinguishes the backups.
    pub start_lsn: Lsn,
    /// Where its end record starts.
    pub lsn: Lsn,
}

/// The beginning of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSwitch {
    /// Where its record starts.
    pub lsn: Lsn,
    /// The timeline that begins.
    pub timeline: TimelineId,
    /// The timeline that is left.
    pub previous: TimelineId,
    /// When.
    pub time: TimestampMicros,
}

/// Where and why a scan ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Position of the record or page that could not be read.
    pub lsn: Lsn,
    /// Why not.
    pub reason: StopReason,
}

/// Why a scan ended early. None of these is an error: the segment is archived as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The WAL of this PostgreSQL version is not known, so it is stored and not interpreted.
    UnknownVersion,
    /// Zeroes where a record should start: what a segment that was never filled up ends with.
    NoMoreRecords,
    /// A page that is not the one expected there, as in a recycled segment.
    WrongPage,
    /// A record that contradicts itself or fails its checksum.
    WrongRecord,
    /// The bytes ended before the segment did.
    EndOfInput,
}

/// One segment's part of a record that crosses segments: enough to check its CRC and to read its
/// first fields once all parts are known, however long the record is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    /// LSN where the record starts (tail), or where its continuation starts (head).
    pub lsn: Lsn,
    /// The first bytes of this part, at most [`Fragment::LEAD_BYTES`]; hexadecimal in JSON.
    #[serde(with = "crate::hex")]
    pub lead: Vec<u8>,
    /// Length of this part, without page headers.
    pub bytes: u64,
    /// CRC-32C of this part.
    pub crc32c: u32,
}

impl Fragment {
    /// A record's header, 16 bytes for fields that may come before its main data, and the longest main data read here
    /// (a checkpoint's 88 bytes).
    pub const LEAD_BYTES: usize = 128;
}

impl SegmentIndex {
    /// How many restore points, backup ends or timeline switches are listed for one segment. A
    /// segment could hold thousands, but nobody recovers to one of so many, and the index stays small.
    pub const LIST_ENTRIES_MAX: usize = 256;

    /// How many tablespaces are listed for one segment: all that are created must be known, and nobody creates more.
    pub const TABLESPACES_MAX: usize = 4096;

    /// What this release looks for in a segment; raised when a release looks for more, or reads the WAL of another version.
    ///
    /// | | |
    /// |---|---|
    /// | 1 | tablespaces, parameters, full_page_writes; PostgreSQL 19 |
    pub const READS: u32 = 1;

    /// Whether the index has everything that this release looks for.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.reads >= Self::READS
    }

    /// Whether the segment is of a PostgreSQL version whose WAL is not understood.
    #[must_use]
    pub fn is_of_unknown_version(&self) -> bool {
        self.stopped
            .is_some_and(|stop| stop.reason == StopReason::UnknownVersion)
    }

    /// Enters the facts of the record at `lsn`. The scanner calls it for the records within a segment, the catalog for
    /// those it has [joined](super::join).
    pub fn add(&mut self, lsn: Lsn, facts: RecordFacts) {
        match facts {
            RecordFacts::Commit { time, xid } => {
                self.commits += 1;
                self.add_end(time, xid);
            }
            RecordFacts::Abort { time, xid } => self.add_end(time, xid),
            RecordFacts::RestorePoint { name, time } => {
                self.lists_cut |= !push_bounded(&mut self.restore_points, RestorePoint { name, lsn, time });
            }
            RecordFacts::BackupEnd { start_lsn } => {
                self.lists_cut |= !push_bounded(&mut self.backup_ends, BackupEnd { start_lsn, lsn });
            }
            RecordFacts::Checkpoint {
                time,
                timeline,
                previous,
            } => {
                self.checkpoint_time_last = self.checkpoint_time_last.max(Some(time));
                if timeline != previous {
                    self.add_switch(TimelineSwitch {
                        lsn,
                        timeline,
                        previous,
                        time,
                    });
                }
            }
            RecordFacts::EndOfRecovery {
                time,
                timeline,
                previous,
            } => {
                self.add_switch(TimelineSwitch {
                    lsn,
                    timeline,
                    previous,
                    time,
                });
            }
            RecordFacts::Switch => self.switched = true,
            RecordFacts::TablespaceCreated { oid, emptied } => {
                let made = emptied.map(|emptied| TablespaceMade { lsn, oid, emptied });
                let has_room = self.tablespaces.len() < Self::TABLESPACES_MAX;
                self.tablespaces_cut |= made.is_some() && !has_room;
                self.tablespaces.extend(made.filter(|_| has_room));
            }
            RecordFacts::ParameterChange(parameters) => {
                let change = ParameterChange { lsn, parameters };
                self.lists_cut |= !push_bounded(&mut self.parameter_changes, change);
            }
            RecordFacts::FullPageWrites { on: true } => {}
            RecordFacts::FullPageWrites { on: false } => {
                self.lists_cut |= !push_bounded(&mut self.full_page_writes_off, lsn);
            }
        }
    }

    fn add_end(&mut self, time: TimestampMicros, xid: u32) {
        self.commit_time_min = Some(self.commit_time_min.map_or(time, |min| min.min(time)));
        self.commit_time_max = self.commit_time_max.max(Some(time));
        if xid != 0 {
            self.xid_min = Some(self.xid_min.map_or(xid, |min| min.min(xid)));
            self.xid_max = self.xid_max.max(Some(xid));
        }
    }

    fn add_switch(&mut self, switch: TimelineSwitch) {
        self.lists_cut |= !push_bounded(&mut self.timeline_switches, switch);
    }
}

/// Appends if there is room; returns whether there was.
fn push_bounded<T>(list: &mut Vec<T>, entry: T) -> bool {
    let has_room = list.len() < SegmentIndex::LIST_ENTRIES_MAX;
    if has_room {
        list.push(entry);
    }
    has_room
}
