//! `switch-wal --json` and `check-wal-archive --json`.

use barmanfs_catalog::ServerName;
use barmanfs_pg::wal_name::SegmentName;
use serde::Serialize;

/// A server that was asked to close its segment.
#[derive(Debug, Serialize)]
pub(crate) struct SwitchedServer {
    pub(crate) server: ServerName,
    /// The segment that was closed; null if there was nothing to close.
    pub(crate) closed: Option<SegmentName>,
    /// Nothing was done, because it is a standby.
    pub(crate) standby: bool,
    /// Whether the segment was archived in time; null if nothing was waited for.
    pub(crate) archived: Option<bool>,
}

/// Whether an archive is empty.
#[derive(Debug, Serialize)]
pub(crate) struct CheckedArchive {
    pub(crate) server: ServerName,
    /// It is.
    pub(crate) ok: bool,
    /// The first file in it.
    pub(crate) found: Option<String>,
}
