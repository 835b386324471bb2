//! `START_REPLICATION PHYSICAL`: WAL as a stream, and the reports back to the server.
//!
//! The server sends messages with WAL, and keepalives. The client reports how much WAL is written and how much is
//! durable. A transaction that waits for a synchronous standby waits for that report, so [`WalStream::has_more`] shows
//! when the client should sync and answer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::backend::{
    COMMAND_COMPLETE_TAG, COPY_DATA_TAG, COPY_DONE_TAG, ERROR_RESPONSE_TAG,
};
use postgres_protocol::message::frontend;

use barmanfs_pg::{Lsn, TimelineId};

use super::auth::Exchange;
use super::connection::{Answer, Connection};
use super::error::Error;
use super::replication::quoted_slot_name;
use super::result_set::ResultSet;

/// CopyBothResponse, which `postgres-protocol` does not support.
const COPY_BOTH_RESPONSE_TAG: u8 = b'W';

/// Time limit for the server to begin or to end a stream: it checks for the client's messages between any two of its
/// own.
const END_WITHIN: Duration = Duration::from_secs(30);

/// The header of a message with WAL: kind, start, the server's end of WAL, time.
const WAL_HEADER_BYTES: usize = 25;

/// A keepalive: kind, the server's end of WAL, time, whether it wants an answer.
const KEEPALIVE_BYTES: usize = 18;

/// PostgreSQL counts its times from 2000-01-01.
const EPOCH_DIFFERENCE_US: i64 = 946_684_800_000_000;

/// The place where another timeline continues a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextTimeline {
    /// The next one.
    pub(crate) timeline: TimelineId,
    /// The position where it left the old one.
    pub(crate) switch_lsn: Lsn,
}

/// The progress of a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamPosition {
    /// The end of the received WAL.
    pub(crate) written: Lsn,
    /// The end of the durable WAL. The server may remove WAL before it, and completes waiting commits.
    pub(crate) flushed: Lsn,
}

/// The server's answer to `START_REPLICATION`.
#[derive(Debug)]
pub(crate) enum Replication<'a> {
    /// WAL follows.
    Stream(WalStream<'a>),
    /// The timeline was left at exactly this position.
    TimelineEnded(NextTimeline),
}

/// One message of the server.
#[derive(Debug)]
pub(crate) enum StreamEvent<'a> {
    /// WAL, in one piece from `start` on.
    Wal {
        /// Position of the first byte.
        start: Lsn,
        /// The bytes. They may extend into the next segment.
        bytes: &'a [u8],
    },
    /// The server is alive.
    Keepalive {
        /// Whether it requests a report at once.
        reply_wanted: bool,
    },
    /// Nothing came within the connection's read timeout.
    Silence,
    /// The server has ended the stream: the timeline continues as another one or, with `None`, the server shuts down.
    Ended(Option<NextTimeline>),
}

/// A stream of WAL. After its end, the connection can be used for something else.
#[derive(Debug)]
pub(crate) struct WalStream<'a> {
    connection: &'a mut Connection,
}

impl Connection {
    /// Asks for the WAL of a timeline from `start` on, a segment's start.
    ///
    /// # Errors
    /// SQLSTATE 42704 if the slot does not exist, 55006 if somebody else uses it. If the server does not have the WAL,
    /// it reports that with the first event: 58P01.
    pub(crate) fn start_replication(
        &mut self,
        slot: Option<&str>,
        timeline: TimelineId,
        start: Lsn,
    ) -> Result<Replication<'_>, Error> {
        let slot = match slot {
            Some(name) => format!("SLOT {} ", quoted_slot_name(name)?),
            None => String::new(),
        };
        let command = format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}");
        let ended = self.within(END_WITHIN, |connection| {
            connection.start_query(&command)?;
            match connection.next_frame()?.tag {
                COPY_BOTH_RESPONSE_TAG => Ok(None),
                ERROR_RESPONSE_TAG => Err(connection.fail_query()),
                _ => {
                    let first = connection.read_current_result()?;
                    let next = connection.read_next_timeline(Some(first))?;
                    let next =
                        next.ok_or_else(|| Error::protocol("neither WAL nor a timeline that follows"))?;
                    Ok(Some(next))
                }
            }
        })?;
        Ok(match ended {
            Some(next) => Replication::TimelineEnded(next),
            None => Replication::Stream(WalStream { connection: self }),
        })
    }

    /// Reads the rest of the query after the stream.
    fn read_next_timeline(&mut self, first: Option<Answer>) -> Result<Option<NextTimeline>, Error> {
        let mut next = None;
        let mut answer = first;
        loop {
            match answer.take().map_or_else(|| self.read_result(), Ok)? {
                Answer::Rows(rows) => next = Some(next_timeline(&rows)?),
                Answer::Done => {}
                Answer::Ready => return Ok(next),
            }
        }
    }
}

fn next_timeline(rows: &ResultSet) -> Result<NextTimeline, Error> {
    Ok(NextTimeline {
        timeline: TimelineId(rows.parse(0, "next_tli")?),
        switch_lsn: rows.parse(0, "next_tli_startpos")?,
    })
}

impl WalStream<'_> {
    /// The next message. Waits at most for the connection's read timeout.
    ///
    /// # Errors
    /// Errors of the server, which end the stream, and a broken connection.
    pub(crate) fn next(&mut self) -> Result<StreamEvent<'_>, Error> {
        let tag = match self.connection.next_frame() {
            Ok(frame) => frame.tag,
            Err(Error::Timeout(_)) => return Ok(StreamEvent::Silence),
            Err(error) => return Err(error),
        };
        match tag {
            COPY_DATA_TAG => parse(self.connection.current_frame().body()),
            COPY_DONE_TAG => self.answer_end().map(StreamEvent::Ended),
            // A server that shuts down does not end the copy first.
            COMMAND_COMPLETE_TAG => Ok(StreamEvent::Ended(None)),
            ERROR_RESPONSE_TAG => Err(self.connection.fail_query()),
            tag => Err(Error::protocol(format!(
                "message '{}' in a stream of WAL",
                tag.escape_ascii()
            ))),
        }
    }

    /// Whether another message has arrived or begun to arrive.
    pub(crate) fn has_more(&mut self) -> Result<bool, Error> {
        self.connection.has_incoming()
    }

    /// Reports the position to the server. With `ask`, requests an answer at once.
    pub(crate) fn report(&mut self, position: StreamPosition, ask: bool) -> Result<(), Error> {
        let message = frontend::CopyData::new(status(position, ask))
            .map_err(|_| Error::protocol("a status message that cannot be sent"))?;
        let mut bytes = BytesMut::new();
        message.write(&mut bytes);
        self.connection.send(&bytes)
    }

    /// Ends the stream, and discards what the server still sends.
    pub(crate) fn stop(self) -> Result<(), Error> {
        let connection = self.connection;
        connection.within(END_WITHIN, |connection| {
            send_copy_done(connection)?;
            loop {
                match connection.next_frame()?.tag {
                    COPY_DONE_TAG => break,
                    ERROR_RESPONSE_TAG => return Err(connection.fail_query()),
                    _ => {}
                }
            }
            connection.read_next_timeline(None).map(drop)
        })
    }

    fn answer_end(&mut self) -> Result<Option<NextTimeline>, Error> {
        self.connection.within(END_WITHIN, |connection| {
            send_copy_done(connection)?;
            connection.read_next_timeline(None)
        })
    }
}

fn send_copy_done(connection: &mut Connection) -> Result<(), Error> {
    let mut message = BytesMut::new();
    frontend::copy_done(&mut message);
    connection.send(&message)
}

/// Reads the payload of a CopyData message.
fn parse(payload: &[u8]) -> Result<StreamEvent<'_>, Error> {
    let lsn = |at: usize| {
        let bytes = payload.get(at..)?.first_chunk::<8>()?;
        Some(Lsn(u64::from_be_bytes(*bytes)))
    };
    let event = match payload.first() {
        Some(b'w') => lsn(1)
            .zip(payload.get(WAL_HEADER_BYTES..))
            .map(|(start, bytes)| StreamEvent::Wal { start, bytes }),
        Some(b'k') if payload.len() == KEEPALIVE_BYTES => Some(StreamEvent::Keepalive {
            reply_wanted: payload.last() == Some(&1),
        }),
        _ => None,
    };
    event.ok_or_else(|| {
        let kind = payload.first().copied().unwrap_or_default().escape_ascii();
        Error::protocol(format!(
            "a message '{kind}' of {} bytes in a stream of WAL",
            payload.len()
        ))
    })
}

/// The payload of a status update. Nothing is replayed here, so the position of replay is omitted.
fn status(position: StreamPosition, ask: bool) -> BytesMut {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_us = i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX);
    let mut message = BytesMut::with_capacity(34);
    message.put_u8(b'r');
    message.put_u64(position.written.0);
    message.put_u64(position.flushed.0);
    message.put_u64(Lsn::INVALID.0);
    message.put_i64(now_us.saturating_sub(EPOCH_DIFFERENCE_US));
    message.put_u8(ask.into());
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wal(start: u64, bytes: &[u8]) -> Vec<u8> {
        let mut message = vec![b'w'];
        message.extend(start.to_be_bytes());
        message.extend([0; 16]);
        message.extend(bytes);
        message
    }

    #[test]
    fn reads_both_kinds_of_message() {
        let message = wal(0x1_0000_0028, b"abc");
        match parse(&message).unwrap() {
            StreamEvent::Wal { start, bytes } => {
                assert_eq!((start, bytes), (Lsn(0x1_0000_0028), b"abc".as_slice()));
            }
            other => panic!("{other:?}"),
        }
        for (last, wanted) in [(0, false), (1, true)] {
            let mut keepalive = vec![b'k'; KEEPALIVE_BYTES];
            keepalive[KEEPALIVE_BYTES - 1] = last;
            match parse(&keepalive).unwrap() {
                StreamEvent::Keepalive { reply_wanted } => assert_eq!(reply_wanted, wanted),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn refuses_truncated_and_unknown_messages() {
        for wrong in [&b""[..], b"w", &wal(1, b"")[..WAL_HEADER_BYTES - 1], b"k1", b"x"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_status_has_the_form_postgresql_reads() {
        let position = StreamPosition {
            written: Lsn(0x0102_0304_0506_0708),
            flushed: Lsn(0x11),
        };
        let bytes = status(position, true);
        assert_eq!(bytes.len(), 34);
        assert_eq!(bytes[..9], [b'r', 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[9..17], 0x11_u64.to_be_bytes());
        assert_eq!(bytes[17..25], [0; 8]);
        assert_eq!(bytes[33], 1);
    }

    proptest! {
        #[test]
        fn any_message_is_read_or_refused(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
