//! How far the recovery of a data directory has come. The server of a recovery may take no connections, so this reads what
//! is there without one: its process title names the segment that it replays, and the archive knows when the commits before
//! that were made. A server that takes connections is asked.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use barmanfs_catalog::{Repository, ServerName};
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SegmentSize, TimestampMicros};
use serde::{Deserialize, Serialize};

use super::DESCRIPTION;
use crate::error::Error;
use crate::instance::{self, Instance, Running};

/// The part of a restore's description that is needed.
#[derive(Debug, Clone, Deserialize)]
struct Described {
    server: Option<ServerName>,
    first_segment: Option<SegmentName>,
    last_segment: Option<SegmentName>,
}

/// A data directory whose server replays WAL.
#[derive(Debug)]
pub(crate) struct Watched {
    data: PathBuf,
    /// Where PostgreSQL's programs are, if that is configured.
    pub(crate) path_prefix: Option<PathBuf>,
    /// Whose archive it replays.
    pub(crate) server: Option<ServerName>,
    /// The segments that it needs, if that is known.
    window: Option<(SegmentName, SegmentName)>,
    segment_size: SegmentSize,
    /// When the server was asked whether it is paused, and what it said.
    asked: Cell<Option<(Instant, Option<bool>)>>,
}

/// How often a server that takes connections is asked. Each time is a process, and a session of the server.
pub(super) const ASK_EVERY: Duration = Duration::from_secs(1);

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replay {
    /// No server runs.
    NotRunning,
    /// A server runs, and nothing shows how far it is.
    Starting,
    /// It replays this segment.
    At(SegmentName),
    /// It takes connections, and is paused at its target.
    Paused,
    /// It takes connections: it is promoted, or is a standby that has replayed all there is.
    Ready,
}

/// How a time is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TimeSource {
    /// The server says it: the last transaction that it has replayed.
    Server,
    /// The last commit in the archived segments that it has replayed.
    Archive,
    /// The last checkpoint that it has replayed: it is further.
    Checkpoint,
}

/// Where a replay is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) lsn: Option<Lsn>,
    pub(crate) time: Option<(TimestampMicros, TimeSource)>,
}

impl Watched {
    /// A directory that `restore` has written.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn open(data: &Path) -> Result<Self, Error> {
        let description = data.join(DESCRIPTION);
        let text = std::fs::read(&description).map_err(|error| {
            Error::failed(format!("Cannot read {}: {error}", description.display()))
                .hint("Name a directory that 'barmanfs restore' has written")
        })?;
        let described: Described = serde_json::from_slice(&text)
            .map_err(|error| Error::failed(format!("{}: {error}", description.display())))?;
        let window = described.first_segment.zip(described.last_segment);
        Self::new(data, described.server, window)
    }

    /// Any data directory.
    ///
    /// # Errors
    /// When its `pg_control` cannot be read.
    pub(crate) fn new(
        data: &Path,
        server: Option<ServerName>,
        window: Option<(SegmentName, SegmentName)>,
    ) -> Result<Self, Error> {
        Ok(Self {
            data: data.to_owned(),
            path_prefix: None,
            server,
            window,
            segment_size: instance::control(data)?.segment_size,
            asked: Cell::new(None),
        })
    }

    /// How far it is now.
    pub(crate) fn look(&self) -> Replay {
        let Some(running) = instance::running(&self.data) else {
            return Replay::NotRunning;
        };
        let replayed = children(running.pid).find_map(|child| replayed(&title(child)));
        if instance::status(&self.data) != instance::Status::Ready {
            return replayed.map_or(Replay::Starting, Replay::At);
        }
        // With hot_standby it takes connections long before it is at its target.
        // A standby goes on for ever. Of others, the process that replays ends with the recovery.
        let Some(segment) = replayed.filter(|_| !self.data.join("standby.signal").exists()) else {
            return Replay::Ready;
        };
        match self.is_paused(&running) {
            Some(true) => Replay::Paused,
            Some(false) => Replay::At(segment),
            None => Replay::Ready,
        }
    }

    /// `None` if the server cannot be asked.
    fn is_paused(&self, running: &Running) -> Option<bool> {
        if let Some((at, said)) = self.asked.get()
            && at.elapsed() < ASK_EVERY
        {
            return said;
        }
        let instance = Instance::at(&self.data, None, self.path_prefix.as_deref()).ok()?;
        let said = instance.is_paused(running).ok();
        self.asked.set(Some((Instant::now(), said)));
        said
    }

    /// Where that is. What cannot be found out is left out.
    pub(crate) fn reached(&self, replay: Replay, repository: Option<&Repository>) -> Reached {
        match replay {
            Replay::NotRunning | Replay::Starting => Reached::default(),
            Replay::At(segment) => Reached {
                lsn: Some(segment.start_lsn(self.segment_size)),
                time: self
                    .time_before(segment, repository)
                    .or_else(|| self.checkpoint_time()),
            },
            Replay::Paused | Replay::Ready => self.said_by_the_server(),
        }
    }

    /// The last commit before a segment.
    fn time_before(
        &self,
        segment: SegmentName,
        repository: Option<&Repository>,
    ) -> Option<(TimestampMicros, TimeSource)> {
        let known = repository?.last_commit_before(self.server.as_ref()?, segment, self.segment_size);
        let time = known
            .inspect_err(|error| tracing::debug!("The time reached: {error}"))
            .ok()??;
        Some((time, TimeSource::Archive))
    }

    fn checkpoint_time(&self) -> Option<(TimestampMicros, TimeSource)> {
        let seconds = instance::control(&self.data).ok()?.checkpoint_time;
        Some((
            TimestampMicros::from_unix_seconds(seconds),
            TimeSource::Checkpoint,
        ))
    }

    fn said_by_the_server(&self) -> Reached {
        let asked = || {
            let running = instance::running(&self.data)?;
            let instance = Instance::at(&self.data, None, self.path_prefix.as_deref()).ok()?;
            instance.replayed(&running)
        };
        match asked() {
            Some((lsn, time)) => Reached {
                lsn,
                time: time.map(|time| (time, TimeSource::Server)),
            },
            None => Reached::default(),
        }
    }

    /// Segments replayed, and all of them.
    pub(crate) fn segments(&self, at: SegmentName) -> Option<(u64, u64)> {
        let (first, last) = self.window?;
        let number =
            |segment: SegmentName| segment.start_lsn(self.segment_size).0 / self.segment_size.bytes();
        let first = number(first);
        let last = number(last).max(first);
        let done = number(at).saturating_sub(first);
        Some((done, last - first + 1))
    }

    /// Bytes of one segment.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_size.bytes()
    }

    /// The segment with this place.
    pub(crate) fn segment_of(&self, lsn: Lsn) -> Option<SegmentName> {
        let (_, last) = self.window?;
        Some(SegmentName::from_lsn(last.timeline, lsn, self.segment_size))
    }
}

/// The processes of a server.
fn children(pid: i32) -> impl Iterator<Item = i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<i32> = children
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect();
    children.into_iter()
}

fn title(pid: i32) -> String {
    let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&title).trim_end_matches('\0').to_owned()
}

/// The segment in the title of a startup process: "postgres: startup recovering 000000010000000000000003", also
/// "waiting for", while restore_command fetches it.
fn replayed(title: &str) -> Option<SegmentName> {
    let (_, doing) = title.split_once("startup ")?;
    // What follows is left of the command line, if the title takes only a part of its place.
    let doing = doing.split('\0').next()?;
    doing.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_title_of_the_startup_process_names_the_segment() {
        let expected = "000000020000000A000000FF".parse().ok();
        for title in [
            "postgres: startup recovering 000000020000000A000000FF",
            "postgres: main: startup waiting for 000000020000000A000000FF",
        ] {
            assert_eq!(replayed(title), expected, "{title}");
        }
        let loaded = "/lib/ld.so\0--argv0\0postgres: startup recovering 000000020000000A000000FF\0\0\0/bin/postgres\0-D\0/x";
        assert_eq!(replayed(loaded), expected);
        assert_eq!(replayed("postgres: startup "), None);
        assert_eq!(replayed("postgres: checkpointer"), None);
    }
}
