//! Reads a piece of a server's WAL over the replication protocol into memory.

use std::time::{Duration, Instant};

use barmanfs_pg::{Lsn, TimelineId};

use super::connection::Connection;
use super::error::Error;
use super::stream::Deadline;
use super::wal_stream::{Replication, StreamEvent, StreamPosition};

/// Time limit for a piece of some megabytes.
const READ_WITHIN: Duration = Duration::from_secs(120);

/// Interval of reports to the server meanwhile.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// SQLSTATE of "requested WAL segment … has already been removed".
const REMOVED: &str = "58P01";

/// The result of reading a piece of WAL.
#[derive(Debug)]
pub(crate) enum WalPiece {
    /// Its bytes; fewer than requested if the server's WAL ends before.
    Bytes(Vec<u8>),
    /// The server no longer has it.
    Removed,
    /// The server refuses, for this reason: the piece is ahead of its WAL, or not in its history.
    Refused(String),
}

impl Connection {
    /// Reads the WAL of a timeline from `from` up to `to`. It does not wait for WAL that the server has not written
    /// yet.
    ///
    /// After [`WalPiece::Removed`] and [`WalPiece::Refused`] a temporary slot of this connection is gone: PostgreSQL
    /// drops it when a replication command fails.
    ///
    /// # Errors
    /// When the connection breaks, or the server takes too long.
    pub(crate) fn read_wal(&mut self, timeline: TimelineId, from: Lsn, to: Lsn) -> Result<WalPiece, Error> {
        // At the end of its WAL, an idle server neither sends data nor reports the end.
        let end = self.identify_system()?.flush_lsn;
        if from >= end {
            return Ok(WalPiece::Refused(format!("it ends at {end}")));
        }
        let to = to.min(end);
        self.set_deadline(Some(Deadline::after(READ_WITHIN)))?;
        let result = self.receive_wal(timeline, from, to);
        self.set_deadline(None)?;
        match result {
            Ok(bytes) => Ok(WalPiece::Bytes(bytes)),
            Err(Error::Server(answer)) if answer.code == REMOVED => Ok(WalPiece::Removed),
            Err(error @ Error::Server(_)) => Ok(WalPiece::Refused(error.to_string())),
            Err(error) => Err(error),
        }
    }

    fn receive_wal(&mut self, timeline: TimelineId, from: Lsn, to: Lsn) -> Result<Vec<u8>, Error> {
        let wanted = usize::try_from(to.0.saturating_sub(from.0)).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        let mut stream = match self.start_replication(None, timeline, from)? {
            Replication::Stream(stream) => stream,
            Replication::TimelineEnded(_) => return Ok(bytes),
        };
        let mut reported_at = Instant::now();
        let mut ended = false;
        while bytes.len() < wanted {
            let mut reply_wanted = false;
            match stream.next()? {
                StreamEvent::Wal { start, bytes: part } => {
                    let next = from.0.saturating_add(bytes.len() as u64);
                    if start.0 != next {
                        return Err(Error::protocol(format!(
                            "WAL from {start} on after that up to {}",
                            Lsn(next)
                        )));
                    }
                    let fitting = part.len().min(wanted - bytes.len());
                    bytes.extend_from_slice(part.get(..fitting).unwrap_or_default());
                }
                StreamEvent::Keepalive { reply_wanted: wanted } => reply_wanted = wanted,
                // The server took too long.
                StreamEvent::Silence => break,
                StreamEvent::Ended(_) => {
                    ended = true;
                    break;
                }
            }
            if reply_wanted || reported_at.elapsed() >= REPORT_EVERY {
                let position = StreamPosition {
                    written: Lsn(from.0.saturating_add(bytes.len() as u64)),
                    flushed: Lsn::INVALID,
                };
                stream.report(position, false)?;
                reported_at = Instant::now();
            }
        }
        if !ended {
            stream.stop()?;
        }
        Ok(bytes)
    }
}
