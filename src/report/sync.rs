//! `sync --json` and `sync-info --json`.

use barmanfs_catalog::{ServerName, SyncMemory, SyncReport};
use barmanfs_pg::TimestampMicros;
use serde::Serialize;

/// What a sync of one server has done.
#[derive(Debug, Serialize)]
pub(crate) struct SyncedServer {
    pub(crate) server: ServerName,
    /// Where from.
    pub(crate) primary: String,
    #[serde(flatten)]
    pub(crate) report: SyncReport,
    /// Segments that the primary has received and not archived.
    pub(crate) partial_segments: u64,
    /// Why it failed; then the other fields are those of nothing.
    pub(crate) error: Option<String>,
}

/// What is remembered of the syncs of a server.
#[derive(Debug, Serialize)]
pub(crate) struct SyncInfo {
    pub(crate) server: ServerName,
    pub(crate) passive: bool,
    /// Where from; null without one.
    pub(crate) primary: Option<String>,
    pub(crate) began_at: Option<TimestampMicros>,
    pub(crate) synced_at: Option<TimestampMicros>,
    pub(crate) current_at: Option<TimestampMicros>,
    pub(crate) error: Option<String>,
    pub(crate) problems: Vec<String>,
}

impl SyncInfo {
    pub(crate) fn new(server: ServerName, primary: Option<String>, memory: SyncMemory) -> Self {
        Self {
            server,
            passive: primary.is_some(),
            primary,
            began_at: memory.began_at,
            synced_at: memory.synced_at,
            current_at: memory.current_at,
            error: memory.error,
            problems: memory.problems,
        }
    }
}
