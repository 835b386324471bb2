//! `clone list --json`.

use std::path::PathBuf;

use barmanfs_catalog::{CloneName, CloneOrigin, ServerName};
use barmanfs_pg::TimestampMicros;
use serde::Serialize;

/// One clone.
#[derive(Debug, Serialize)]
pub(crate) struct ListedClone {
    pub(crate) server: ServerName,
    pub(crate) name: CloneName,
    #[serde(flatten)]
    pub(crate) origin: CloneOrigin,
    pub(crate) created_at: TimestampMicros,
    /// Bytes the clone takes in the repository.
    pub(crate) written_bytes: u64,
    pub(crate) max_bytes: Option<u64>,
    /// Where it is mounted.
    pub(crate) path: Option<PathBuf>,
    /// Whether a server runs on it; `None` if that is unknown.
    pub(crate) running: Option<bool>,
    pub(crate) port: Option<u16>,
    /// The directory of its socket.
    pub(crate) socket_directory: Option<PathBuf>,
    pub(crate) process: Option<i32>,
    /// Whether that server has lost its files with an earlier mount, and must be stopped.
    pub(crate) outlived_its_mount: bool,
}
