//! Fetches the WAL of a backup over the backup's own connection if it does not reach the archive: an `archive_command`
//! that fails must not cost a backup of ten hours. The connection's slot has kept that WAL all the time.

use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use barmanfs_catalog::{Backup, Repository, WalOutcome};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};

use super::Stop;
use crate::error::Error;
use crate::postgres::{Connection, Replication, StreamEvent, StreamPosition, WalStream};

/// How long a read waits. This limits how late the deadline is noticed.
const TICK: Duration = Duration::from_secs(1);

/// Interval of status reports to the server.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Receives these segments, in the order of their names, all of the backup's timeline, and archives them.
///
/// # Errors
/// When the server cannot send them, when they cannot be archived, and when the deadline passes first.
pub(super) fn fetch(
    repository: &Repository,
    connection: &mut Connection,
    backup: &Backup,
    missing: &[SegmentName],
    deadline: Instant,
    stop: &Stop,
) -> Result<(), Error> {
    let (Some(first), Some(last)) = (missing.first(), missing.last()) else {
        return Ok(());
    };
    let size = backup.segment_size;
    connection.set_read_timeout(Some(TICK))?;
    let slot = connection.temporary_slot().map(str::to_owned);
    let start = first.start_lsn(size);
    let stream = match connection.start_replication(slot.as_deref(), first.timeline, start)? {
        Replication::Stream(stream) => stream,
        Replication::TimelineEnded(next) => {
            return Err(Error::failed(format!(
                "The timeline was left at {}",
                next.switch_lsn
            )));
        }
    };
    let file = repository.temporary_file()?;
    let fetch = Fetch {
        repository,
        backup,
        missing,
        timeline: first.timeline,
        size,
        end: last.next(size).start_lsn(size),
        file,
        next: start,
        reported_at: Instant::now(),
    };
    fetch.run(stream, deadline, stop)
}

struct Fetch<'a> {
    repository: &'a Repository,
    backup: &'a Backup,
    missing: &'a [SegmentName],
    timeline: TimelineId,
    size: SegmentSize,
    end: Lsn,
    /// The segment being received: a nameless file of the length of a segment.
    file: File,
    next: Lsn,
    reported_at: Instant,
}

impl Fetch<'_> {
    fn run(mut self, mut stream: WalStream<'_>, deadline: Instant, stop: &Stop) -> Result<(), Error> {
        while self.next < self.end {
            if stop.requested() || Instant::now() >= deadline {
                return Err(Error::failed(format!(
                    "The server has sent its WAL up to {} only",
                    self.next
                )));
            }
            let mut reply_wanted = false;
            match stream.next()? {
                StreamEvent::Wal { start, bytes } => self.take(start, bytes)?,
                StreamEvent::Keepalive { reply_wanted: wanted } => reply_wanted = wanted,
                StreamEvent::Silence => {}
                StreamEvent::Ended(_) => {
                    return Err(Error::failed(format!("The server's WAL ends at {}", self.next)));
                }
            }
            if reply_wanted || self.reported_at.elapsed() >= REPORT_EVERY {
                // Nothing is reported as flushed, so the slot stays where it is.
                let position = StreamPosition {
                    written: self.next,
                    flushed: Lsn::INVALID,
                };
                stream.report(position, false)?;
                self.reported_at = Instant::now();
            }
        }
        Ok(stream.stop()?)
    }

    fn take(&mut self, start: Lsn, mut bytes: &[u8]) -> Result<(), Error> {
        if start != self.next {
            return Err(Error::failed(format!(
                "The server sent WAL from {start} on, after that up to {}",
                self.next
            )));
        }
        while !bytes.is_empty() && self.next < self.end {
            let segment = SegmentName::from_lsn(self.timeline, self.next, self.size);
            let offset = self.next.segment_offset(self.size);
            let fitting = usize::try_from(self.size.bytes() - offset).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(fitting.min(bytes.len()));
            let is_missing = self.missing.binary_search(&segment).is_ok();
            if is_missing {
                self.file
                    .write_all_at(part, offset)
                    .map_err(|error| Error::failed(format!("Cannot write a temporary file: {error}")))?;
            }
            self.next = Lsn(self.next.0.saturating_add(part.len() as u64));
            bytes = rest;
            if is_missing && part.len() == fitting {
                self.archive(segment)?;
            }
        }
        Ok(())
    }

    fn archive(&mut self, segment: SegmentName) -> Result<(), Error> {
        self.file
            .rewind()
            .map_err(|error| Error::failed(format!("Cannot read a temporary file: {error}")))?;
        let server = &self.backup.server;
        let writer = self.repository.writer(&format!("backup of {server}"))?;
        let name = WalName::Segment(segment);
        match writer.archive_wal(server, &name, &mut self.file, self.size.bytes(), "backup")? {
            WalOutcome::Stored(_) | WalOutcome::AlreadyThere(_) => Ok(()),
            WalOutcome::Refused(refused) => Err(Error::failed(format!(
                "Segment {segment} is refused: {}",
                refused.quarantined.reason
            ))),
            WalOutcome::Conflict(conflict) => Err(Error::failed(format!(
                "Segment {segment} was archived with other content at {}",
                conflict.archived.archived_at
            ))),
        }
    }
}
