//! Waiting for the end of a recovery.

use std::time::{Duration, Instant};

use barmanfs_catalog::Action;
use barmanfs_pg::control::ClusterState;

use super::postmaster::is_alive;
use super::{Instance, Running, running};
use crate::error::Error;

/// How often a recovery is looked at.
const POLL: Duration = Duration::from_millis(100);

/// How a recovery has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replayed {
    /// The server takes writes.
    Promoted,
    /// It waits at its target, open for queries.
    Paused,
    /// It has shut down at its target.
    ShutDown,
}

impl Instance {
    /// Whether it replays WAL, and takes no writes yet.
    pub(crate) fn is_recovering(&self) -> Result<bool, Error> {
        let state = self.control()?.state;
        Ok(matches!(
            state,
            ClusterState::InArchiveRecovery | ClusterState::InCrashRecovery
        ))
    }

    /// Waits until its recovery has reached its target, where it does `action`.
    pub(crate) fn wait_for_recovery(
        &self,
        action: Action,
        timeout: Option<Duration>,
    ) -> Result<Replayed, Error> {
        let began = Instant::now();
        loop {
            let state = self.control()?.state;
            match running(&self.data) {
                Some(_) if state == ClusterState::InProduction => return Ok(Replayed::Promoted),
                Some(running) if action == Action::Pause && self.is_paused(&running)? => {
                    return Ok(Replayed::Paused);
                }
                Some(_) => {}
                None if action == Action::Shutdown
                    && self.control()?.state == ClusterState::ShutDownInRecovery =>
                {
                    return Ok(Replayed::ShutDown);
                }
                None => {
                    return Err(Error::failed(format!(
                        "The server in {} has stopped during its recovery: its log says why",
                        self.data.display()
                    )));
                }
            }
            if timeout.is_some_and(|timeout| began.elapsed() >= timeout) {
                return Err(Error::failed(format!(
                    "The server in {} is still recovering after {} s; it goes on",
                    self.data.display(),
                    began.elapsed().as_secs()
                )));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Whether recovery waits at its target. This no file tells: the server is asked, by the user it runs as.
    fn is_paused(&self, running: &Running) -> Result<bool, Error> {
        let asked = self
            .command("psql")
            .args([
                "-XAtqw",
                "-d",
                "postgres",
                "-c",
                "SELECT pg_is_wal_replay_paused()",
                "-p",
            ])
            .arg(running.port.to_string())
            .arg("-h")
            .arg(&running.socket_directory)
            .output()
            .map_err(|error| Error::failed(format!("Cannot run psql: {error}")))?;
        // It has gone since, or is just being promoted by somebody.
        if asked.status.success() || !is_alive(running.pid) {
            return Ok(asked.stdout.starts_with(b"t"));
        }
        let why = String::from_utf8_lossy(&asked.stderr);
        let why = why.lines().next().unwrap_or("psql does not say why").trim();
        Err(Error::failed(format!(
            "Whether the server in {} waits at its target cannot be seen: {why}",
            self.data.display()
        ))
        .hint("It goes on without this command: SELECT pg_is_wal_replay_paused() tells"))
    }
}
