//! The two results for a target: a plan, or the reason why there is none.

use barmanfs_pg::pg_control::RequiredSettings;
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};
use serde::{Deserialize, Serialize};

use crate::archive::backup::Backup;
use crate::names::{BackupId, ServerName};
use crate::recovery::TargetSpec;
use crate::recovery::time::shown;

/// A part of the WAL that belongs to one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSpan {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where the part begins.
    pub from: Lsn,
    /// Where it ends; none for the end of the WAL.
    #[serde(default)]
    pub to: Option<Lsn>,
}

/// How to recover to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The target.
    pub spec: TargetSpec,
    /// The backup to start from.
    pub backup: Backup,
    /// The timeline to recover along: `recovery_target_timeline`.
    pub timeline: TimelineId,
    /// The timelines replayed, from the backup's start to the target.
    pub path: Vec<TimelineSpan>,
    /// Number of segments replayed.
    pub segments: u64,
    /// Bytes of WAL replayed, as far as this is known without reading it.
    pub wal_bytes: u64,
    /// The first segment replayed.
    pub first_segment: SegmentName,
    /// The last segment PostgreSQL needs to reach the target.
    pub last_segment: SegmentName,
    /// Whether that one is still being received.
    pub ends_in_partial: bool,
    /// The moment of a time target.
    pub time: Option<TimestampMicros>,
    /// The last replayed commit or abort that the index alone shows.
    pub reaches: Option<TimestampMicros>,
    /// Notes for the user, one sentence each.
    pub notes: Vec<String>,
    /// The largest settings that the server was started with on the way, as far as they changed: a standby needs at
    /// least these.
    pub required: Option<RequiredSettings>,
}

/// Why a target cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unreachable {
    /// There is nothing to start from.
    #[error("{}", no_backup_text(*snapshot))]
    NoBackup {
        /// The newest complete backup whose files are a snapshot of the storage, if there is one.
        #[serde(skip)]
        snapshot: Option<BackupId>,
    },
    /// The requested backup cannot be started from.
    #[error("Backup {backup} cannot be started from: {why}")]
    BadBackup {
        /// The backup.
        backup: BackupId,
        /// "there is none of this id", "it is WAITING_FOR_WALS".
        why: String,
    },
    /// The timeline is unknown.
    #[error("There is no timeline {timeline}: its history file is not archived")]
    NoTimeline {
        /// The timeline.
        timeline: TimelineId,
        /// The known timelines.
        known: Vec<TimelineId>,
    },
    /// The history of the timeline cannot be read, so what leads to it is unknown.
    #[error("The archived history of timeline {timeline}, {}.history, cannot be read: {fault}", timeline.hex())]
    BadHistory {
        /// Whose.
        server: ServerName,
        /// The timeline.
        timeline: TimelineId,
        /// What is wrong with the file.
        fault: String,
    },
    /// No backup lies on the way to the timeline.
    #[error("No complete backup lies on the way to timeline {timeline}")]
    NoBackupOnTimeline {
        /// The timeline.
        timeline: TimelineId,
        /// The newest complete backup.
        newest: BackupId,
        /// The timeline on which that backup was taken.
        newest_timeline: TimelineId,
    },
    /// The target lies before the end of every backup.
    #[error("The target lies before the end of every backup that could lead to it")]
    BeforeBackups {
        /// The first of these backups.
        first: BackupId,
        /// Its end.
        lsn: Lsn,
        /// When it ended.
        time: Option<TimestampMicros>,
    },
    /// Nothing is archived at which PostgreSQL would stop.
    #[error(
        "{what} on timeline {timeline}: PostgreSQL would come to the end of the WAL without reaching the target, and stop"
    )]
    AfterEnd {
        /// "Nothing committed after 2026-… is archived".
        what: String,
        /// The timeline that was searched.
        timeline: TimelineId,
        /// The newest commit or abort that can be reached.
        #[serde(rename = "newest_time")]
        newest: Option<TimestampMicros>,
        /// The end of the WAL that can be reached.
        end: Lsn,
    },
    /// Segments are missing between the backup and the target.
    #[error("{}", gap_text(*first, *last, *count, *is_removed))]
    Gap {
        /// The first segment missing.
        first: SegmentName,
        /// The last of the consecutive missing segments.
        last: SegmentName,
        /// How many.
        count: u64,
        /// Whether the retention policy removed the first one.
        #[serde(skip)]
        is_removed: bool,
        /// The newest commit or abort before it.
        #[serde(rename = "newest_time")]
        newest: Option<TimestampMicros>,
        /// The end of the WAL before it.
        end: Lsn,
    },
    /// A segment between the backup and the target is known to be damaged: PostgreSQL stops there with an error.
    #[error(
        "Segment {segment} is archived and damaged, and the target lies behind its beginning: recovery ends there with an error"
    )]
    Damaged {
        /// The first such segment.
        segment: SegmentName,
        /// The newest commit or abort before it.
        #[serde(rename = "newest_time")]
        newest: Option<TimestampMicros>,
        /// The last record before it: the target that comes nearest.
        last_record: Option<Lsn>,
    },
    /// A segment's records end before it does, so replay ends in it.
    #[error(
        "Segment {segment} is archived, but its records end at {end}, before the target: replay ends there"
    )]
    Broken {
        /// The segment.
        segment: SegmentName,
        /// Where its records end.
        end: Lsn,
        /// The newest commit or abort before.
        #[serde(rename = "newest_time")]
        newest: Option<TimestampMicros>,
    },
    /// The server was started with a `wal_level` that no recovery can pass.
    #[error(
        "At LSN {lsn} the server was started with wal_level = minimal: recovery ends there with an error, and the target lies behind it"
    )]
    Minimal {
        /// Where that was recorded.
        lsn: Lsn,
        /// The timeline that was searched.
        timeline: TimelineId,
        /// The last commit or abort before it that the index alone shows.
        newest: Option<TimestampMicros>,
    },
    /// The WAL cannot be interpreted, so a copy that replays it cannot be kept within its directory.
    #[error(
        "Segment {segment} is of a PostgreSQL version whose WAL this release of barmanfs cannot read: it is archived safely, but points in time are not known, and a copy that replays it could not be kept to itself"
    )]
    UnknownWal {
        /// The first such segment.
        segment: SegmentName,
    },
    /// An earlier release archived WAL that it could not read, but this release can.
    #[error("Segment {segment} was archived by a release of barmanfs that could not read its WAL")]
    NotIndexed {
        /// The first such segment.
        segment: SegmentName,
        /// Whose.
        server: ServerName,
    },
    /// A tablespace is created on the way, and this PostgreSQL would create it where the original has it.
    #[error(
        "A tablespace is made in segment {segment}, and PostgreSQL {version} would make it where the original has its own: in a copy, recovery past it is only possible from 13.8, 14.5 and 15.0 on"
    )]
    Tablespace {
        /// The segment.
        segment: SegmentName,
        /// The version of the server that was backed up.
        version: String,
    },
}

fn no_backup_text(snapshot: Option<BackupId>) -> String {
    let only = match snapshot {
        Some(id) => format!(": the files of {id} are a snapshot of the storage"),
        None => String::new(),
    };
    format!("There is no complete backup to start from{only}")
}

/// What to do about an archived history file that cannot be read.
pub(super) fn bad_history_advice(server: &ServerName, timeline: TimelineId) -> String {
    format!(
        "'barmanfs quarantine {server} take {}.history' takes it out of the archive; the server can archive the right one then",
        timeline.hex()
    )
}

fn gap_text(first: SegmentName, last: SegmentName, count: u64, is_removed: bool) -> String {
    match (count, is_removed) {
        (1, false) => format!("Segment {first} is not archived, and the target lies behind it"),
        (1, true) => {
            format!("Segment {first} was removed by the retention policy, and the target lies behind it")
        }
        (_, false) => {
            format!("Segments {first} to {last} ({count}) are not archived, and the target lies behind them")
        }
        (_, true) => format!(
            "Segments {first} to {last} ({count}) are not there any more: the retention policy removed {first}, and the \
             target lies behind them"
        ),
    }
}

impl Unreachable {
    /// What can be reached instead.
    #[must_use]
    pub fn nearest(&self) -> Option<String> {
        match self {
            Self::NoBackup { .. }
            | Self::BadBackup { .. }
            | Self::BadHistory { .. }
            | Self::NoTimeline { .. } => None,
            Self::NoBackupOnTimeline { .. } => None,
            Self::UnknownWal { .. } | Self::NotIndexed { .. } | Self::Tablespace { .. } => None,
            Self::Minimal { lsn, newest, .. } => {
                let commit = newest
                    .map(|time| format!("the commit of {}, and ", shown(time)))
                    .unwrap_or_default();
                let target = lsn.to_string().replace('/', "-");
                Some(format!("{commit}all before it: {target},exclusive"))
            }
            Self::Damaged {
                newest, last_record, ..
            } => {
                let commit = newest
                    .map(|time| format!("the commit of {}, and ", shown(time)))
                    .unwrap_or_default();
                let target = last_record.as_ref()?.to_string().replace('/', "-");
                Some(format!("{commit}all before that segment: {target}"))
            }
            Self::BeforeBackups { first, lsn, time } => {
                let when = time.map(|time| format!(", {}", shown(time))).unwrap_or_default();
                Some(format!(
                    "the earliest is the end of backup {first}: LSN {lsn}{when}"
                ))
            }
            Self::AfterEnd { newest, end, .. }
            | Self::Gap { newest, end, .. }
            | Self::Broken { newest, end, .. } => Some(match newest {
                Some(time) => format!(
                    "the newest commit that can be reached is of {}, the WAL ends at {end}",
                    shown(*time)
                ),
                None => format!("the WAL that can be replayed ends at {end}"),
            }),
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoBackup { snapshot: None } => Some("Take one with 'barmanfs backup'".to_owned()),
            Self::NoBackup { snapshot: Some(id) } => Some(format!(
                "Mount disks made from it, then 'barmanfs restore' of backup {id}, named by its id, prepares the server on them"
            )),
            Self::BadBackup { .. } => Some("'barmanfs list-backups' shows those there are".to_owned()),
            Self::NoTimeline { known, .. } => {
                let known: Vec<String> = known.iter().map(ToString::to_string).collect();
                (!known.is_empty()).then(|| format!("There are: {}", known.join(", ")))
            }
            Self::NoBackupOnTimeline { newest, newest_timeline, .. } => Some(format!(
                "The newest backup, {newest}, is on timeline {newest_timeline}: add ,timeline={newest_timeline}, or take a new one"
            )),
            Self::BadHistory { server, timeline, .. } => Some(bad_history_advice(server, *timeline)),
            Self::BeforeBackups { .. } => None,
            Self::AfterEnd { .. } => Some("'now' recovers all there is".to_owned()),
            Self::Gap { is_removed: true, .. } => Some(
                "The backup before it is kept for its own end only; 'barmanfs timeline' shows from where on all WAL is archived"
                    .to_owned(),
            ),
            Self::Gap { .. } => Some("A backup taken now leads past it; what lies in between needs the segment itself, see 'barmanfs timeline'".to_owned()),
            Self::Damaged { segment, .. } => Some(format!(
                "Archive it again if somebody still has it, as the server in its pg_wal or another copy of this repository \
                 ('barmanfs wal-archive SERVER PATH/{segment}'); a backup taken now leads past it"
            )),
            Self::Broken { .. } | Self::Minimal { .. } | Self::Tablespace { .. } => {
                Some("A backup taken now leads past it".to_owned())
            }
            Self::UnknownWal { .. } => Some(
                "A release of barmanfs that knows this version reads it with 'barmanfs index-wal'; until then get-wal and raw/ have \
                 all bytes"
                    .to_owned(),
            ),
            Self::NotIndexed { server, .. } => Some(format!("'barmanfs index-wal {server}' reads it")),
        }
    }
}
