//! Waits for the end of a recovery.

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use barmanfs_pg::pg_control::ClusterState;
use barmanfs_pg::{Lsn, TimestampMicros};

use super::auto_conf::{self, last_value};
use super::postmaster::is_alive;
use super::{Instance, Running, Status, running, status};
use crate::error::Error;

/// How often to check a recovery.
const POLL: Duration = Duration::from_millis(100);

/// How a recovery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replayed {
    /// The server takes writes.
    Promoted,
    /// It waits at its target, open for queries.
    Paused,
    /// It has shut down at its target.
    ShutDown,
}

/// What a server does at its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtTarget {
    Promotes,
    /// It pauses, and can be asked whether it does.
    Pauses,
    ShutsDown,
}

impl AtTarget {
    /// Derives this from its configuration. A server that does not allow connections in recovery shuts down instead of
    /// pausing (PostgreSQL's documentation of `recovery_target_action`).
    fn of(settings: &str) -> Self {
        let readable = !matches!(
            last_value(settings, "hot_standby").as_deref(),
            Some("off" | "false" | "no" | "0")
        );
        match last_value(settings, "recovery_target_action").as_deref() {
            Some("promote") => Self::Promotes,
            Some("shutdown") => Self::ShutsDown,
            _ if readable => Self::Pauses,
            _ => Self::ShutsDown,
        }
    }
}

/// Whether the server of a data directory, which does not run, was stopped by its recovery target.
///
/// # Errors
/// When its files cannot be read.
pub(crate) fn has_shut_down_at_target(data: &Path) -> Result<bool, Error> {
    let recovers_to_a_target = data.join("recovery.signal").exists() && !data.join("standby.signal").exists();
    Ok(recovers_to_a_target
        && super::control(data)?.state == ClusterState::ShutDownInRecovery
        && AtTarget::of(&auto_conf::read(data)?) == AtTarget::ShutsDown)
}

impl Instance {
    /// Whether it replays WAL, and does not accept writes yet.
    pub(crate) fn is_recovering(&self) -> Result<bool, Error> {
        let state = self.control()?.state;
        Ok(matches!(
            state,
            ClusterState::InArchiveRecovery | ClusterState::InCrashRecovery
        ))
    }

    /// Waits until its recovery has reached its target, or the end of the WAL if it has no target. The server's own
    /// configuration decides what it does there: the settings of a mount or of this command may differ by now.
    /// `each` is called at each look, with whether the server takes connections.
    pub(crate) fn wait_for_recovery(
        &self,
        timeout: Option<Duration>,
        mut each: impl FnMut(bool),
    ) -> Result<Replayed, Error> {
        let began = Instant::now();
        let at_target = AtTarget::of(&auto_conf::read(&self.data)?);
        loop {
            let state = self.control()?.state;
            match running(&self.data) {
                Some(_) if state == ClusterState::InProduction => return Ok(Replayed::Promoted),
                Some(running) if at_target == AtTarget::Pauses && self.is_paused(&running)? => {
                    return Ok(Replayed::Paused);
                }
                Some(_) => {}
                None if at_target == AtTarget::ShutsDown
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
            each(status(&self.data) == Status::Ready);
            std::thread::sleep(POLL);
        }
    }

    /// Where a server that takes connections is in its recovery, or where that has ended, and the time of the last
    /// transaction it has replayed; `None` if it cannot be asked, or has not recovered.
    pub(crate) fn replayed(&self, running: &Running) -> Option<(Option<Lsn>, Option<TimestampMicros>)> {
        const QUERY: &str = "SELECT pg_last_wal_replay_lsn(), \
            (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint";
        let asked = self.ask(running, QUERY).ok()?;
        if !asked.status.success() {
            return None;
        }
        let text = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
        let (lsn, micros) = text.split_once('|')?;
        let time = micros.parse().ok().map(TimestampMicros::from_unix_micros);
        Some((lsn.parse().ok(), time))
    }

    fn ask(&self, running: &Running, query: &str) -> Result<Output, Error> {
        self.command("psql")
            .args(["-XAtqw", "-d", "postgres", "-c", query, "-p"])
            .arg(running.port.to_string())
            .arg("-h")
            .arg(&running.socket_directory)
            .output()
            .map_err(|error| Error::failed(format!("Cannot run psql: {error}")))
    }

    /// Whether recovery is paused at its target. No file shows that, so this asks the server, as the user that it runs
    /// as.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) fn is_paused(&self, running: &Running) -> Result<bool, Error> {
        let asked = self.ask(running, "SELECT pg_is_wal_replay_paused()")?;
        // Either psql got an answer, or the server is gone.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_action_at_the_target_is_read_from_the_configuration() {
        let of = |action: &str, hot_standby: &str| {
            AtTarget::of(&format!(
                "recovery_target_action = 'promote'\nrecovery_target_action = '{action}'\nhot_standby = {hot_standby}\n"
            ))
        };
        assert_eq!(of("promote", "on"), AtTarget::Promotes);
        assert_eq!(of("pause", "on"), AtTarget::Pauses);
        assert_eq!(of("pause", "off"), AtTarget::ShutsDown);
        assert_eq!(of("shutdown", "off"), AtTarget::ShutsDown);
    }
}
