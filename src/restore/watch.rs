//! How far the recovery of a restored directory has come. The server of a recovery may take no connections, so this reads
//! what is there without one: its process title names the segment that it replays.

use std::path::{Path, PathBuf};

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SegmentSize};
use serde::Deserialize;

use super::DESCRIPTION;
use super::destination::CONTROL;
use crate::error::Error;
use crate::instance;

/// The part of a restore's description that is needed.
#[derive(Debug, Clone, Deserialize)]
struct Described {
    first_segment: Option<SegmentName>,
    last_segment: Option<SegmentName>,
}

/// A restored directory.
#[derive(Debug)]
pub(crate) struct Watched {
    data: PathBuf,
    described: Described,
    segment_size: SegmentSize,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replay {
    /// No server runs.
    NotRunning,
    /// A server runs, and nothing shows how far it is.
    Starting,
    /// It replays this segment.
    At(SegmentName),
    /// It takes connections: it is promoted, pauses, or is a standby.
    Ready,
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
        let described = serde_json::from_slice(&text)
            .map_err(|error| Error::failed(format!("{}: {error}", description.display())))?;
        let control = data.join(CONTROL);
        let bytes = std::fs::read(&control)
            .map_err(|error| Error::failed(format!("Cannot read {}: {error}", control.display())))?;
        let control = barmanfs_pg::pg_control::ControlFile::parse(&bytes)
            .map_err(|error| Error::failed(format!("{}: {error}", control.display())))?;
        Ok(Self {
            data: data.to_owned(),
            described,
            segment_size: control.segment_size,
        })
    }

    /// How far it is now.
    pub(crate) fn look(&self) -> Replay {
        let Some(running) = instance::running(&self.data) else {
            return Replay::NotRunning;
        };
        if instance::status(&self.data) == instance::Status::Ready {
            return Replay::Ready;
        }
        let segment = children(running.pid).find_map(|child| replayed(&title(child)));
        segment.map_or(Replay::Starting, Replay::At)
    }

    /// Segments replayed, and all of them.
    pub(crate) fn segments(&self, at: SegmentName) -> Option<(u64, u64)> {
        let number =
            |segment: SegmentName| segment.start_lsn(self.segment_size).0 / self.segment_size.bytes();
        let first = number(self.described.first_segment?);
        let last = number(self.described.last_segment?).max(first);
        let done = number(at).saturating_sub(first);
        Some((done, last - first + 1))
    }

    /// Where a segment starts.
    pub(crate) fn lsn(&self, at: SegmentName) -> Lsn {
        at.start_lsn(self.segment_size)
    }

    /// Bytes of one segment.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_size.bytes()
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
/// "waiting for".
fn replayed(title: &str) -> Option<SegmentName> {
    let (_, doing) = title.split_once("startup ")?;
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
        assert_eq!(replayed("postgres: startup "), None);
        assert_eq!(replayed("postgres: checkpointer"), None);
    }
}
