//! Two histories of one timeline: where they part, and which one counts.
//!
//! A snapshot that is put back, or a copy that is promoted without a new timeline, writes other WAL at positions that are in
//! the archive already. Where that is seen, a *fork* is recorded: a timeline and a position. From then on no segment at or
//! behind it is taken ([`arrival`]), neither of the timeline nor of those that leave it behind the fork, until a person
//! decides ([`decide`]): `keep` the archived history, or `restart` with the other one. After a restart the archived files
//! behind the fork are kept *apart*: under a key of their own in the tables of WAL, which has all that the backups of that
//! history need. So a plan, whose files all come from one key, never mixes two histories.
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

/// The places where two histories of one timeline part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The record that tells of it.
    pub id: RecordId,
    /// The timeline.
    pub timeline: TimelineId,
    /// Where the histories are known to differ, or the start of the segment in which they do at the latest.
    pub lsn: Lsn,
    /// When it was seen.
    pub found_at: TimestampMicros,
    /// Who saw it: "wal-archive", "backup".
    pub found_by: String,
    /// How it showed.
    pub why: String,
    /// What has been decided; nothing yet where it is `None`.
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

/// A history that was left for another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftHistory {
    /// The timeline on which it was left.
    pub timeline: TimelineId,
    /// Where.
    pub lsn: Lsn,
    /// When that was decided.
    pub decided_at: TimestampMicros,
    /// The files that are kept apart, segments and others.
    pub files: u64,
    /// The backups that belong to it alone, oldest first.
    pub backups: Vec<BackupId>,
}

/// What there is to say about a server's histories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// Whose.
    pub server: ServerName,
    /// The forks, in the order they were found.
    pub forks: Vec<Fork>,
    /// The histories that were left, in the order of the decisions.
    pub left: Vec<LeftHistory>,
    /// Backups that belong to a history that is not the archive's, and was not decided for.
    pub undecided_backups: Vec<BackupId>,
    /// Refused files, which wait for a decision or a look.
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
    /// Backups that belong to the history that was left.
    pub backups: Vec<BackupId>,
}
