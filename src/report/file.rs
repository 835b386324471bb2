//! `list-files --json`.

use barmanfs_pg::TimestampMicros;
use serde::Serialize;

/// A file of a backup, or a file of the WAL archive.
#[derive(Debug, Serialize)]
pub(crate) struct ListedFile {
    /// Bytes of a name that are not UTF-8 become the replacement character.
    pub(crate) path: String,
    pub(crate) size_bytes: u64,
    pub(crate) mode: Option<String>,
    pub(crate) modified_at: Option<TimestampMicros>,
    pub(crate) archived_at: Option<TimestampMicros>,
}
