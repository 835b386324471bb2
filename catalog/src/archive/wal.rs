//! The WAL archive: what is stored for each file PostgreSQL hands over.

use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::wal_scan::SegmentIndex;
use barmanfs_store::{FileMap, RecordId};
use serde::{Deserialize, Serialize};

use crate::archive::history::Fork;
use crate::names::ServerName;

pub(crate) mod archive;
pub(crate) mod confine;
pub(crate) mod index;
pub(crate) mod link;
mod list;
mod quarantine;
mod range;
mod reindex;
pub(crate) mod removal;

pub use confine::{Confined, LooseSegment, scan_segment};
pub use list::{WalArchive, WalEntries, WalTotals};
pub use quarantine::Comparison;
pub use range::SegmentTotals;
pub use reindex::ReindexReport;
pub use removal::{RangeTotals, SegmentRange};

/// One archived file: a segment, or a `.history`, `.backup` or `.partial` file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalFile {
    /// Whose it is.
    pub server: ServerName,
    /// Its name.
    pub name: WalName,
    /// Its size.
    pub size_bytes: u64,
    /// When it was archived.
    pub archived_at: TimestampMicros,
    /// What brought it: "wal-archive", "receive-wal".
    pub origin: String,
    /// Bytes it added to the repository.
    pub new_stored_bytes: u64,
    /// Its index of points in time; segments only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<SegmentIndex>,
    /// Its content.
    pub map: FileMap,
    /// The record it comes from.
    #[serde(skip)]
    pub(crate) record: Option<RecordId>,
}

/// The line of a listing: what `ls` shows of an archived file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WalEntry {
    /// Its name.
    pub name: WalName,
    /// Its size.
    pub size_bytes: u64,
    /// When it was archived.
    pub archived_at: TimestampMicros,
    /// Bytes it added to the repository.
    pub new_stored_bytes: u64,
}

/// A file whose name is already taken by different bytes. It is kept for a person to inspect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedWal {
    /// The file; its `name` is the one it arrived under.
    #[serde(flatten)]
    pub file: WalFile,
    /// Why it was not archived.
    pub reason: String,
}

/// The result of archiving a file. The file is durable in each case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalOutcome {
    /// It is archived.
    Stored(Box<WalFile>),
    /// The same bytes had been archived before.
    AlreadyThere(Box<WalFile>),
    /// Different bytes had been archived under this name: they stay, and the new ones are in
    /// quarantine.
    Conflict(Box<WalConflict>),
    /// It belongs to a history other than the archived one: it is in quarantine.
    Refused(Box<RefusedWal>),
}

/// A file of a history other than the archived one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedWal {
    /// The file.
    pub quarantined: QuarantinedWal,
    /// The fork that precedes it; none if a decision abandoned its history.
    pub fork: Option<Fork>,
}

/// Two files of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalConflict {
    /// The archived one.
    pub archived: WalFile,
    /// The one that has just arrived.
    pub quarantined: QuarantinedWal,
    /// The fork it reveals; none if a decision abandoned its history.
    pub fork: Option<Fork>,
}
