//! `export --json`.

use std::path::PathBuf;

use barmanfs_catalog::{BackupId, ServerName};
use serde::Serialize;

use crate::export::Exported;

/// What was exported.
#[derive(Debug, Serialize)]
pub(crate) struct ExportReport {
    pub(crate) server: ServerName,
    /// The backups in it, oldest first.
    pub(crate) backups: Vec<BackupId>,
    pub(crate) format: &'static str,
    /// Where it is.
    pub(crate) path: Option<PathBuf>,
    /// Number of files of these backups.
    pub(crate) files: u64,
    /// Their size; in a directory, without holes.
    pub(crate) bytes: u64,
    /// Bytes that were written, where files of two backups have one copy, or are compressed.
    pub(crate) written_bytes: u64,
    /// Number of WAL files.
    pub(crate) wal_files: u64,
    /// What was left out, and what else to know.
    pub(crate) notes: Vec<String>,
    pub(crate) seconds: f64,
}

impl ExportReport {
    pub(crate) fn new(server: &ServerName, format: &'static str, exported: Exported) -> Self {
        Self {
            server: server.clone(),
            backups: exported.backups,
            format,
            path: exported.path,
            files: exported.files,
            bytes: exported.bytes,
            written_bytes: exported.written_bytes,
            wal_files: exported.wal_files,
            notes: exported.notes,
            seconds: exported.elapsed.as_secs_f64(),
        }
    }
}
