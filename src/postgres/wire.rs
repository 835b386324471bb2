//! From bytes to messages: a read buffer that lends messages out without copying.
//!
//! A base backup is gigabytes of CopyData, so its messages are not copied: [`FrameBuffer`] reads large pieces
//! and lends each message out of its buffer.

use std::io::{self, Read};

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;

use super::Error;

/// Space for reads: several of the largest messages of a base backup (32 KiB) with each system call.
const READ_BUFFER_BYTES: usize = 512 << 10;

/// Maximum size of a message. PostgreSQL's streams have pieces of at most 128 KiB, and the result sets that
/// barmanfs requests are small. A larger message does not come from a PostgreSQL server.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The size of the tag and the length word, which counts itself.
const HEADER_BYTES: usize = 5;

/// One message of the server, lent out of the read buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) tag: u8,
    /// Includes the header.
    whole: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The part after tag and length.
    pub(super) fn body(&self) -> &'a [u8] {
        self.whole.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// The decoded message, for messages that are rare enough to be copied.
    pub(super) fn decode(&self) -> Result<Message, Error> {
        let malformed = || Error::protocol(format!("malformed message '{}'", self.tag.escape_ascii()));
        Message::parse(&mut BytesMut::from(self.whole))
            .ok()
            .flatten()
            .ok_or_else(malformed)
    }
}

/// The read side of a connection. A read that times out loses nothing and can be repeated.
#[derive(Debug)]
pub(super) struct FrameBuffer {
    bytes: Vec<u8>,
    /// The bytes that were read but not returned yet: `bytes[start..end]`.
    start: usize,
    end: usize,
    /// The message that [`FrameBuffer::current`] lends.
    current: (usize, usize),
    received_bytes: u64,
}

impl FrameBuffer {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; READ_BUFFER_BYTES],
            start: 0,
            end: 0,
            current: (0, 0),
            received_bytes: 0,
        }
    }

    /// The number of bytes read so far. It shows whether data arrives.
    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Goes on to the next message, and returns its tag.
    pub(super) fn advance(&mut self, stream: &mut impl Read) -> Result<u8, Error> {
        self.fill(stream, HEADER_BYTES)?;
        let (tag, length) = match self.bytes.get(self.start..self.end) {
            Some(&[tag, a, b, c, d, ..]) => (tag, u32::from_be_bytes([a, b, c, d])),
            _ => return Err(Error::Closed),
        };
        let whole_bytes = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_add(1));
        let whole_bytes = match whole_bytes {
            Some(bytes) if (HEADER_BYTES..=MAX_MESSAGE_BYTES).contains(&bytes) => bytes,
            _ => {
                let tag = tag.escape_ascii();
                return Err(Error::protocol(format!(
                    "message '{tag}' with a length of {length} bytes"
                )));
            }
        };
        self.fill(stream, whole_bytes)?;
        self.current = (self.start, self.start + whole_bytes);
        self.start += whole_bytes;
        Ok(tag)
    }

    /// The message of the last call to `advance`.
    pub(super) fn current(&self) -> Frame<'_> {
        let whole = self.bytes.get(self.current.0..self.current.1).unwrap_or_default();
        Frame {
            tag: whole.first().copied().unwrap_or_default(),
            whole,
        }
    }

    /// Whether there is more than the current message: another one, or a part of it.
    pub(super) fn has_more(&self) -> bool {
        self.start < self.end
    }

    /// Reads until at least `wanted` bytes are there.
    fn fill(&mut self, stream: &mut impl Read, wanted: usize) -> Result<(), Error> {
        if self.end - self.start >= wanted {
            return Ok(());
        }
        if self.start + wanted > self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let room = self.bytes.len().max(wanted);
            self.bytes.resize(room, 0);
        }
        while self.end - self.start < wanted {
            match stream.read(self.bytes.get_mut(self.end..).unwrap_or_default()) {
                Ok(0) => return Err(Error::Closed),
                Ok(count) => {
                    self.end += count;
                    self.received_bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns its bytes in pieces of the given sizes, with a timeout before each.
    struct Pieces {
        bytes: Vec<u8>,
        at: usize,
        sizes: Vec<usize>,
        turn: usize,
    }

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.turn += 1;
            if self.turn % 2 == 1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let size = self.sizes[(self.turn / 2) % self.sizes.len()];
            let count = size.min(buffer.len()).min(self.bytes.len() - self.at);
            buffer[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
            self.at += count;
            Ok(count)
        }
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    proptest! {
        #[test]
        fn messages_survive_any_slicing_and_timeouts(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200_000), 1..12),
            sizes in prop::collection::vec(1_usize..300_000, 1..6),
        ) {
            let bytes = bodies.iter().flat_map(|body| message(b'd', body)).collect();
            let mut stream = Pieces { bytes, at: 0, sizes, turn: 0 };
            let mut buffer = FrameBuffer::new();
            for body in &bodies {
                let tag = loop {
                    match buffer.advance(&mut stream) {
                        Ok(tag) => break tag,
                        Err(Error::Io(error)) => prop_assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                        Err(other) => return Err(TestCaseError::fail(other.to_string())),
                    }
                };
                prop_assert_eq!(tag, b'd');
                prop_assert_eq!(buffer.current().body(), body.as_slice());
            }
            let end = loop {
                match buffer.advance(&mut stream) {
                    Err(Error::Io(_)) => {}
                    other => break other,
                }
            };
            prop_assert!(matches!(end, Err(Error::Closed)));
        }
    }

    #[test]
    fn impossible_lengths_are_refused_before_anything_is_allocated() {
        for length in [0_u32, 3, 0x7FFF_FFFF, u32::MAX] {
            let mut bytes = vec![b'd'];
            bytes.extend(length.to_be_bytes());
            let mut buffer = FrameBuffer::new();
            let error = buffer.advance(&mut bytes.as_slice()).unwrap_err();
            assert!(error.to_string().contains("message 'd' with a length"), "{error}");
            assert_eq!(buffer.bytes.len(), READ_BUFFER_BYTES);
        }
    }
}
