//! Two histories of one timeline: where they diverge, and which one counts.
//!
//! If a snapshot is restored, or a copy is promoted without a new timeline, the server writes different WAL at
//! positions that are already archived. When this is detected, a *fork* is recorded: a timeline and a position. From
//! then on no segment at or after the fork is archived ([`arrival`]), neither of its timeline nor of timelines that
//! branch off after the fork, until a person decides ([`decide`]): `keep` the archived history, or `restart` with the
//! other one. After a restart the archived files after the fork are kept *apart*: under a separate key in the WAL
//! tables, which has everything that the backups of that history need. All files of a recovery plan come from one key,
//! so a plan never mixes two histories.
//!
//! Forks and decisions are records of one kind. A decision names the records it sets apart, so it means the same in
//! whatever order records are read ([`records`]).

use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};
use barmanfs_store::RecordId;
use serde::{Deserialize, Serialize};

use crate::names::{BackupId, ServerName};

pub(crate) mod arrival;
mod decide;
pub(crate) mod records;
mod report;
#[cfg(test)]
mod tests;

/// A position where two histories of one timeline diverge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The record that describes it.
    pub id: RecordId,
    /// The timeline.
    pub timeline: TimelineId,
    /// Where the histories are known to differ, or the start of the first segment in which they are known to differ.
    pub lsn: Lsn,
    /// When it was detected.
    pub found_at: TimestampMicros,
    /// What detected it: "wal-archive", "backup".
    pub found_by: String,
    /// How it was detected.
    pub why: String,
    /// The decision; `None` while there is none.
    pub decided: Option<Decided>,
}

impl std::fmt::Display for Fork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "timeline {} has two histories from {} on: {}",
            self.timeline, self.lsn, self.why
        )
    }
}

/// Which history counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decided {
    /// The one that came later.
    Restart,
    /// The one that was archived.
    Keep,
}

/// A history that was abandoned in favour of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftHistory {
    /// The timeline on which it was abandoned.
    pub timeline: TimelineId,
    /// The position from which it was abandoned.
    pub lsn: Lsn,
    /// When the decision was made.
    pub decided_at: TimestampMicros,
    /// The files that are kept apart, segments and others.
    pub files: u64,
    /// The backups that belong to it alone, oldest first.
    pub backups: Vec<BackupId>,
}

/// The state of a server's histories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// Whose.
    pub server: ServerName,
    /// The forks, in the order they were found.
    pub forks: Vec<Fork>,
    /// The abandoned histories, in the order of the decisions.
    pub left: Vec<LeftHistory>,
    /// Backups of a history that is not the archive's and that no decision has chosen.
    pub undecided_backups: Vec<BackupId>,
    /// Number of refused files, which wait for a decision or an inspection.
    pub refused: u64,
}

/// What a restart did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarted {
    /// On this timeline.
    pub timeline: TimelineId,
    /// From there on.
    pub lsn: Lsn,
    /// Archived files that are kept apart now.
    pub apart: u64,
    /// Refused segments that are archived now.
    pub taken: u64,
    /// Backups that belong to the abandoned history.
    pub backups: Vec<BackupId>,
}
