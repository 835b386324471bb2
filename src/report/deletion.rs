//! `delete --json`.

use barmanfs_catalog::retention::RemovableWal;
use barmanfs_catalog::{BackupId, CloneName};
use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};
use serde::Serialize;

/// What the command did or, with `--dry-run`, would do.
#[derive(Debug, Serialize)]
pub(crate) struct Deletion {
    pub(crate) server: String,
    pub(crate) dry_run: bool,
    pub(crate) deleted: Vec<BackupId>,
    /// The part of the history that could be recovered before.
    pub(crate) before: Remains,
    /// The part of the history that can be recovered afterwards.
    pub(crate) after: Remains,
    /// The archived WAL that no backup needs afterwards; retention removes it.
    pub(crate) unneeded_wal: Vec<RemovableWal>,
    /// Clones that are based on the deleted backups, and keep what they need.
    pub(crate) clones: Vec<CloneName>,
    /// The reason if it would be refused; only with `--dry-run`.
    pub(crate) refused: Option<String>,
}

/// The part of the history that can be recovered with a set of backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Remains {
    /// Number of complete backups of the server with their WAL, without the doubtful ones.
    pub(crate) done: usize,
    /// Number of complete backups that are damaged or whose boot test failed.
    pub(crate) doubtful: usize,
    /// The end of the first of them.
    pub(crate) earliest: Option<Place>,
    /// The end of what can be replayed on one of them.
    pub(crate) newest: Option<Place>,
}

/// A place in the server's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Place {
    /// The time of the last commit or abort before this place, if known.
    pub(crate) time: Option<TimestampMicros>,
    pub(crate) timeline: TimelineId,
    pub(crate) lsn: Lsn,
    /// The backup from which this place is reached.
    pub(crate) backup: String,
}
