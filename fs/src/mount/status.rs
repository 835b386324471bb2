//! The status that a mount reports about itself, for commands that look for mounts or unmount one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use barmanfs_store::threads;
use serde::Deserialize;

use crate::counters::MountCounters;

/// The file with the status, see [`crate::views`].
const STATUS: &str = ".barmanfs/status.json";

/// A mount that does not answer within this time is hung.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// The part of the status that other processes need.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    /// The repository it serves.
    pub(super) repository: PathBuf,
    /// The id of the process that serves it, in that process's own namespace.
    #[serde(rename = "pid")]
    pub(super) process: Option<u32>,
    /// What it has done. A mount of an earlier release does not tell.
    #[serde(default)]
    pub(super) counters: Option<MountCounters>,
}

impl Status {
    /// Reads the status of the mount at `mount_point`.
    ///
    /// # Errors
    /// When it cannot be read, does not answer in time, or has another form.
    pub(super) fn of(mount_point: &Path) -> io::Result<Self> {
        let status = mount_point.join(STATUS);
        let (answer, answered) = mpsc::sync_channel(1);
        // A read from a hung mount cannot be interrupted: that thread ends with the process.
        threads::start("status", move || answer.send(std::fs::read(status)))?;
        let text = answered
            .recv_timeout(ANSWERS_WITHIN)
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(serde_json::from_slice(&text)?)
    }
}
