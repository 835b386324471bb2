//! `retention --json`, `keep --json`.

use barmanfs_catalog::retention::{RemovableWal, RetentionPlan};
use barmanfs_catalog::{Backup, BackupId, Forecast, Keep};
use serde::Serialize;

/// A server's plan, and what has been done of it.
#[derive(Debug, Serialize)]
pub(crate) struct ServerRetention {
    pub(crate) server: String,
    /// The policy for backups as it is understood.
    pub(crate) retention_policy: Option<String>,
    pub(crate) wal_retention_policy: String,
    pub(crate) minimum_redundancy: u32,
    #[serde(flatten)]
    pub(crate) plan: RetentionPlan,
    /// What a sweep frees after the next run, with what earlier deletions have left; nothing if the next run deletes
    /// nothing.
    pub(crate) forecast: Option<Forecast>,
    /// Why there is no forecast although the next run deletes something.
    pub(crate) forecast_error: Option<String>,
    /// What was deleted, with `--enforce`.
    pub(crate) deleted: Vec<BackupId>,
    /// The WAL that was removed, with `--enforce`.
    pub(crate) removed_wal: Vec<RemovableWal>,
}

/// Whether a backup is kept.
#[derive(Debug, Serialize)]
pub(crate) struct KeptBackup<'a> {
    pub(crate) server: String,
    pub(crate) backup: BackupId,
    pub(crate) keep: Option<&'a Keep>,
}

impl<'a> KeptBackup<'a> {
    pub(crate) fn new(backup: &Backup, keep: Option<&'a Keep>) -> Self {
        Self {
            server: backup.server.to_string(),
            backup: backup.id,
            keep,
        }
    }
}
