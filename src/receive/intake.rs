//! Receives one stream of WAL into the spool.
//!
//! A commit that waits for this process waits for three steps in a row: the bytes arrive, they are synced, and the
//! server gets the report. So as soon as nothing more is arriving, everything received is synced at once and reported.
//! Commits that arrive together share a sync.

use std::time::{Duration, Instant};

use barmanfs_catalog::{Error as CatalogError, Spool, SpoolFile};
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};

use super::archiver::Archiver;
use super::position::Start;
use crate::error::Error;
use crate::postgres::{self, NextTimeline, StreamEvent, StreamPosition, WalStream};
use crate::signals::Interruption;

/// How long a read waits. This limits how late a signal is noticed.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// When WAL arrives without a pause, it is synced after this many bytes: a commit in it must not wait for the end of a
/// bulk load.
const UNSYNCED_BYTES: u64 = 1024 * 1024;

/// Interval of reports to an idle server. The server gives up after `wal_sender_timeout`, usually a minute.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A server that is silent for this long is asked for an answer.
const ASK_AFTER: Duration = Duration::from_secs(30);

/// A server that does not answer that either is gone. Its host may have vanished without closing the connection.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// A stream that has lasted this long did not fail for want of room.
const LASTS_AFTER: Duration = Duration::from_secs(15);

/// SQLSTATE `undefined_file`: the server does not have the requested WAL.
const WAL_REMOVED: &str = "58P01";

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The timeline continues as another.
    Timeline(NextTimeline),
    /// The server shuts down.
    ShutDown,
    /// A signal came.
    Stopped,
}

/// The receiving end of a stream.
pub(super) struct Intake<'a> {
    spool: &'a Spool,
    archiver: &'a Archiver,
    stop: &'a Interruption,
    timeline: TimelineId,
    size: SegmentSize,
    file: Option<SpoolFile>,
    /// The position of the next byte.
    next: Lsn,
    flushed: Lsn,
    /// The last report to the server, and when it was sent.
    reported: Option<StreamPosition>,
    reported_at: Instant,
    heard_at: Instant,
    asked: bool,
}

impl<'a> Intake<'a> {
    pub(super) fn new(
        spool: &'a Spool,
        archiver: &'a Archiver,
        stop: &'a Interruption,
        start: Start,
        size: SegmentSize,
    ) -> Self {
        let now = Instant::now();
        Self {
            spool,
            archiver,
            stop,
            timeline: start.timeline,
            size,
            file: None,
            next: start.lsn,
            flushed: start.lsn,
            reported: None,
            reported_at: now,
            heard_at: now,
            asked: false,
        }
    }

    /// Receives until the stream ends. Calls `on_success` as soon as something of it is durable, or the stream has lasted: a
    /// server that answers is no success where nothing can be stored.
    ///
    /// # Errors
    /// Errors of the stream, and failures to store WAL. Such WAL was not acknowledged, so the server sends it again.
    pub(super) fn run(
        mut self,
        mut stream: WalStream<'_>,
        on_success: &mut dyn FnMut(),
    ) -> Result<StreamEnd, Error> {
        let start = self.flushed;
        let ended = self.receive(&mut stream, start, on_success);
        // What arrived before a failure need not be sent again, and a network that cuts each stream after some messages
        // is a success each time.
        if ended.is_err() && self.sync().is_ok() && self.flushed > start {
            on_success();
        }
        if matches!(ended, Ok(StreamEnd::Stopped)) {
            self.stop(stream)?;
        }
        ended
    }

    fn receive(
        &mut self,
        stream: &mut WalStream<'_>,
        start: Lsn,
        on_success: &mut dyn FnMut(),
    ) -> Result<StreamEnd, Error> {
        let began = Instant::now();
        loop {
            let (mut heard, mut reply_wanted) = (true, false);
            match stream.next().map_err(|error| self.explain(error))? {
                StreamEvent::Wal { start, bytes } => self.take(start, bytes)?,
                StreamEvent::Keepalive { reply_wanted: wanted } => reply_wanted = wanted,
                StreamEvent::Silence => heard = false,
                StreamEvent::Ended(next) => {
                    self.sync()?;
                    return Ok(next.map_or(StreamEnd::ShutDown, StreamEnd::Timeline));
                }
            }
            if heard {
                (self.heard_at, self.asked) = (Instant::now(), false);
            }
            if self.flushed > start || heard && began.elapsed() >= LASTS_AFTER {
                on_success();
            }
            if self.stop.requested() {
                return Ok(StreamEnd::Stopped);
            }
            if reply_wanted || self.unsynced_bytes() >= UNSYNCED_BYTES || !stream.has_more()? {
                self.sync()?;
                self.report(stream, reply_wanted)?;
            }
            self.wait_for_archiver(stream)?;
        }
    }

    /// Writes WAL into its segment's file.
    fn take(&mut self, start: Lsn, mut bytes: &[u8]) -> Result<(), Error> {
        if start != self.next {
            return Err(Error::failed(format!(
                "The server sent WAL from {start} on, after that up to {}",
                self.next
            )));
        }
        while !bytes.is_empty() {
            let mut file = match self.file.take() {
                Some(file) => file,
                None => {
                    let name = SegmentName::from_lsn(self.timeline, self.next, self.size);
                    self.spool.begin(name, self.size)?
                }
            };
            let fitting = usize::try_from(file.missing_bytes()).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(fitting.min(bytes.len()));
            self.append(&mut file, part)?;
            self.next = file.written();
            bytes = rest;
            if file.missing_bytes() > 0 {
                self.file = Some(file);
            } else {
                file.finish()?;
                self.flushed = self.next;
                self.archiver.wake();
            }
        }
        Ok(())
    }

    /// A server that sends other bytes than before has another history: it was restored, or it is another server. What
    /// was acknowledged before is kept in the archive, and receiving starts again with the server's present WAL.
    fn append(&self, file: &mut SpoolFile, bytes: &[u8]) -> Result<(), Error> {
        match file.append(bytes) {
            Err(error @ CatalogError::SpoolDiverges { name, .. }) => {
                self.spool.set_aside(name)?;
                Err(Error::from(error).hint(format!(
                    "What it sent before is kept in the archive as {name}.partial; was the server restored, or is it another one?"
                )))
            }
            other => Ok(other?),
        }
    }

    fn explain(&self, error: postgres::Error) -> Error {
        if error.sqlstate() != Some(WAL_REMOVED) {
            return error.into();
        }
        let missing = SegmentName::from_lsn(self.timeline, self.next, self.size);
        let server = self.spool.server();
        Error::failed(format!(
            "The server has removed WAL that was not received, segment {missing} first: there is a gap ({error})"
        ))
        .hint(format!(
            "If neither archive_command nor an import from another tool ('barmanfs import {server}') brings it, start again with 'barmanfs receive-wal {server} --reset' and take a backup: \
             no backup before the gap can be recovered to a time after it"
        ))
    }

    fn unsynced_bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, SpoolFile::unsynced_bytes)
    }

    fn sync(&mut self) -> Result<(), Error> {
        if let Some(file) = self.file.as_mut().filter(|file| file.unsynced_bytes() > 0) {
            file.sync()?;
            self.flushed = file.durable();
        }
        Ok(())
    }

    fn position(&self) -> StreamPosition {
        StreamPosition {
            written: self.next,
            flushed: self.flushed,
        }
    }

    /// Reports the position to the server if the server requests it, if it has changed, or if a report is due.
    fn report(&mut self, stream: &mut WalStream<'_>, reply_wanted: bool) -> Result<(), Error> {
        let silent_for = self.heard_at.elapsed();
        if silent_for >= GONE_AFTER {
            return Err(Error::failed(format!(
                "The server has not been heard of for {} s",
                silent_for.as_secs()
            )));
        }
        let ask = silent_for >= ASK_AFTER && !self.asked;
        let position = self.position();
        let is_new = self.reported != Some(position);
        if is_new || reply_wanted || ask || self.reported_at.elapsed() >= REPORT_EVERY {
            stream.report(position, ask)?;
            (self.reported, self.reported_at) = (Some(position), Instant::now());
            self.asked |= ask;
        }
        Ok(())
    }

    /// While too many segments wait for the archive, receives nothing, but still reports to the server.
    fn wait_for_archiver(&mut self, stream: &mut WalStream<'_>) -> Result<(), Error> {
        // Only between two segments, because this reads a directory.
        while self.file.is_none() && !self.stop.requested() && self.archiver.is_behind()? {
            self.heard_at = Instant::now();
            self.report(stream, false)?;
            self.stop.sleep(TICK);
        }
        Ok(())
    }

    /// Ends in order: all received data is durable, and the server knows it.
    fn stop(mut self, mut stream: WalStream<'_>) -> Result<(), Error> {
        self.sync()?;
        stream.report(self.position(), false)?;
        // At this point it does not matter whether the server sees the end of the stream.
        if let Err(error) = stream.stop() {
            tracing::debug!("The stream did not end in order: {error}");
        }
        Ok(())
    }
}
