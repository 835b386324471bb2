//! What a mount says of itself, to those who look for mounts or take one down.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Deserialize;

/// Where it says so, see [`crate::views`].
const STATUS: &str = ".barmanfs/status.json";

/// A mount that does not answer within this time is hung.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// The part of it that is of use from outside.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    /// The repository that is served.
    pub(super) repository: PathBuf,
    /// The process that serves it, as a number of its own process namespace.
    #[serde(rename = "pid")]
    pub(super) process: Option<u32>,
}

impl Status {
    /// Asks the mount at `mount_point`.
    ///
    /// # Errors
    /// When it cannot be asked, does not answer soon, or says something else.
    pub(super) fn of(mount_point: &Path) -> io::Result<Self> {
        let status = mount_point.join(STATUS);
        let (answer, answered) = mpsc::sync_channel(1);
        // Nothing can interrupt who reads from a hung mount: that thread ends with the process.
        thread::Builder::new()
            .name("status".to_owned())
            .spawn(move || answer.send(std::fs::read(status)))?;
        let text = answered
            .recv_timeout(ANSWERS_WITHIN)
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(serde_json::from_slice(&text)?)
    }
}
