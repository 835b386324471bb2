//! The shape of the answer: timelines, ranges of WAL, gaps, and what can be reached.

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};
use serde::{Deserialize, Serialize};

use crate::archive::backup::BackupStatus;
use crate::archive::history::Fork;
use crate::names::{BackupId, ServerName};
use crate::recovery::TimelineSpan;

/// A server's WAL and backups as far as they matter for recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineReport {
    /// Whose.
    pub server: ServerName,
    /// The timelines in the order of their numbers.
    pub timelines: Vec<Timeline>,
    /// Missing segments, in the order of their names.
    pub gaps: Vec<Gap>,
    /// Where the server was started with `wal_level = minimal`, which no recovery can pass.
    #[serde(default)]
    pub minimal: Vec<MinimalStretch>,
    /// The earliest state that can be recovered: the end of the first backup.
    #[serde(default)]
    pub earliest: Option<Reach>,
    /// Files of the archive that cannot be used: their content is ignored.
    #[serde(default)]
    pub unreadable: Vec<UnreadableFile>,
    /// The newest state that can be recovered: the target `now`.
    #[serde(default)]
    pub newest: Option<Reach>,
    /// Forks of timelines into two histories without a decision on which one counts.
    #[serde(default)]
    pub forks: Vec<Fork>,
}

/// An archived file that cannot be read or does not match its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableFile {
    /// The file.
    pub name: WalName,
    /// What is wrong with it.
    pub reason: String,
    /// What to do.
    pub advice: String,
}

/// One timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Its number.
    pub timeline: TimelineId,
    /// Where it branched off; none for the first, or while its history file is not archived.
    #[serde(default)]
    pub parent: Option<Parent>,
    /// Ranges of consecutive archived segments. There is a gap between each two of them.
    pub ranges: Vec<WalRange>,
    /// The complete backups taken on it, oldest first.
    pub backups: Vec<BackupPlace>,
    /// The restore points written on it.
    pub restore_points: Vec<RestorePointPlace>,
}

/// Where a timeline began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The parent timeline.
    pub timeline: TimelineId,
    /// Where the parent was left.
    pub switch_lsn: Lsn,
    /// The reason, in PostgreSQL's words.
    pub reason: String,
}

/// A range of consecutive archived segments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalRange {
    /// The first segment.
    pub first: SegmentName,
    /// The last segment.
    pub last: SegmentName,
    /// Number of segments.
    pub segments: u64,
    /// Where the first begins.
    pub start_lsn: Lsn,
    /// Where the last one's records end.
    pub end_lsn: Lsn,
    /// The earliest commit or abort.
    #[serde(default, rename = "from_time")]
    pub from: Option<TimestampMicros>,
    /// The latest commit or abort.
    #[serde(default, rename = "to_time")]
    pub to: Option<TimestampMicros>,
    /// Number of committed transactions.
    pub commits: u64,
}

/// A backup's place on its timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupPlace {
    /// Its id.
    pub id: BackupId,
    /// DONE, or WAITING_FOR_WALS.
    pub status: BackupStatus,
    /// Where its replay begins.
    pub start_lsn: Lsn,
    /// What its replay must reach.
    pub stop_lsn: Lsn,
    /// When it ended.
    #[serde(default)]
    pub end_time: Option<TimestampMicros>,
}

/// A restore point's place on its timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePointPlace {
    /// Its name.
    pub name: String,
    /// Where its record starts.
    pub lsn: Lsn,
    /// When it was created.
    pub time: TimestampMicros,
}

/// Segments of a timeline that are missing, with others before or after them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first missing segment.
    pub first: SegmentName,
    /// The last missing segment.
    pub last: SegmentName,
    /// Number of missing segments.
    pub count: u64,
    /// The part of the WAL that cannot be reached because of them: from the end of the last records before the gap to
    /// the end of the next backup, if there is one.
    pub unreachable: TimelineSpan,
    /// The last commit or abort before the gap: what is later cannot be reached.
    #[serde(default, rename = "after_time")]
    pub after: Option<TimestampMicros>,
    /// The end of the next backup, from which everything that follows can be reached again.
    #[serde(default, rename = "until_time")]
    pub until: Option<TimestampMicros>,
    /// The last complete backup before. If there is none, nothing could have been reached there anyway.
    #[serde(default)]
    pub backup_before: Option<BackupId>,
    /// The first complete backup after.
    #[serde(default)]
    pub backup_after: Option<BackupId>,
}

/// A part of the WAL that was written with `wal_level = minimal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MinimalStretch {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where the server was started with this setting.
    pub lsn: Lsn,
    /// The last complete backup before. If there is none, nothing could have been reached there anyway.
    #[serde(default)]
    pub backup_before: Option<BackupId>,
    /// The first complete backup after, from which everything that follows can be reached again.
    #[serde(default)]
    pub backup_after: Option<BackupId>,
}

impl MinimalStretch {
    /// Whether something cannot be reached because of it.
    #[must_use]
    pub fn matters(&self) -> bool {
        self.backup_before.is_some()
    }
}

/// A state that can be recovered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// The backup to start from.
    pub backup: BackupId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The position up to which it is recovered.
    pub lsn: Lsn,
    /// Its last commit or abort or, if nothing is replayed, the end of the backup.
    #[serde(default)]
    pub time: Option<TimestampMicros>,
    /// Whether `time` is of a commit or abort, by the server's clock. That of a backup is by the clock of the host that
    /// took it.
    #[serde(skip)]
    pub is_commit: bool,
    /// Whether part of it is still being received and not archived.
    pub receiving: bool,
}

impl Gap {
    /// Whether something cannot be reached because of it: before the first backup nothing could be reached anyway.
    #[must_use]
    pub fn matters(&self) -> bool {
        self.backup_before.is_some()
    }
}
