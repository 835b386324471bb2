//! Names of packs that follow each other: the packs of one host are a stream, numbered from 1 on. The id of such a pack is the id of
//! its stream and its number, so a host that knows one pack of a stream knows which key to ask for next.
//!
//! A number is handed out when a pack is begun, by any process of the host, and never again. A pack that is given up leaves a
//! gap. The last number is in a file of the host. Where that is lost, or a crash of the host has taken it back, a new stream
//! begins: a key that is taken by other bytes shows it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use barmanfs_store::{Error, PackId, RecordId};
use rustix::fs::OFlags;

use crate::Result;

/// Names a stream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub [u8; Self::BYTES]);

impl StreamId {
    /// Length of the id in bytes.
    pub const BYTES: usize = 8;

    /// The stream that this pack is in, if it is in one.
    #[must_use]
    pub fn of(pack: PackId) -> Self {
        let mut id = [0; Self::BYTES];
        id.copy_from_slice(&pack.as_bytes()[..Self::BYTES]);
        Self(id)
    }

    /// The pack with this number.
    #[must_use]
    pub fn pack(self, number: u64) -> PackId {
        let mut id = [0; PackId::BYTES];
        id[..Self::BYTES].copy_from_slice(&self.0);
        id[Self::BYTES..].copy_from_slice(&number.to_be_bytes());
        PackId(id)
    }

    fn random() -> Result<Self> {
        let random = RecordId::random()?;
        let mut id = [0; Self::BYTES];
        id.copy_from_slice(&random.as_bytes()[..Self::BYTES]);
        Ok(Self(id))
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({self})")
    }
}

impl FromStr for StreamId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match u64::from_str_radix(text, 16) {
            Ok(id) if is_hex && text.len() == 2 * Self::BYTES => Ok(Self(id.to_be_bytes())),
            _ => Err(()),
        }
    }
}

/// The number of a pack in its stream.
pub(crate) fn number(pack: PackId) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&pack.as_bytes()[StreamId::BYTES..]);
    u64::from_be_bytes(number)
}

/// The stream of this host, in a file.
#[derive(Debug)]
pub struct Stream {
    file: PathBuf,
}

impl Stream {
    /// The stream in this file, which need not exist yet.
    #[must_use]
    pub fn in_file(file: &Path) -> Self {
        Self {
            file: file.to_path_buf(),
        }
    }

    /// Hands out the id of a new pack.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub(crate) fn next(&self) -> Result<PackId> {
        let failed = |source| Error::io("write", &self.file, source);
        let mut file = self.locked().map_err(failed)?;
        let mut text = String::new();
        (&mut file).take(1024).read_to_string(&mut text).map_err(failed)?;
        let (stream, last) = match parse(&text) {
            Some(found) => found,
            None => (StreamId::random()?, 0),
        };
        let number = last + 1;
        let text = format!("{stream} {number}\n");
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(text.as_bytes()))
            .and_then(|()| file.set_len(text.len() as u64))
            .map_err(failed)?;
        Ok(stream.pack(number))
    }

    /// Ends the stream: a number of it was used before.
    pub(crate) fn end(&self, stream: StreamId) -> Result<()> {
        let failed = |source| Error::io("write", &self.file, source);
        let mut file = self.locked().map_err(failed)?;
        let mut text = String::new();
        (&mut file).take(1024).read_to_string(&mut text).map_err(failed)?;
        match parse(&text) {
            Some((now, _)) if now == stream => file.set_len(0).map_err(failed),
            _ => Ok(()),
        }
    }

    fn locked(&self) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .mode(0o600)
            .open(&self.file)?;
        file.lock()?;
        Ok(file)
    }
}

/// Only a whole line counts.
fn parse(text: &str) -> Option<(StreamId, u64)> {
    let (stream, number) = text.strip_suffix('\n')?.split_once(' ')?;
    let number: u64 = number.parse().ok()?;
    (number < u64::MAX).then_some((stream.parse().ok()?, number))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_follow_each_other_in_whatever_process() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("stream");
        let ids: Vec<PackId> = std::thread::scope(|scope| {
            let ask = || (0..50).map(|_| Stream::in_file(&file).next().unwrap()).collect();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            let each = threads.into_iter().map(|thread| thread.join().unwrap());
            each.collect::<Vec<Vec<PackId>>>().concat()
        });
        let numbers: BTreeSet<u64> = ids.iter().map(|id| number(*id)).collect();
        assert_eq!(numbers, (1..=200).collect());
        let streams: BTreeSet<StreamId> = ids.iter().map(|id| StreamId::of(*id)).collect();
        assert_eq!(streams.len(), 1);
    }

    #[test]
    fn a_stream_that_is_lost_or_ended_is_never_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("stream");
        let stream = Stream::in_file(&file);
        let first = stream.next().unwrap();
        stream.end(StreamId::of(PackId([9; 16]))).unwrap();
        assert_eq!(StreamId::of(stream.next().unwrap()), StreamId::of(first));
        stream.end(StreamId::of(first)).unwrap();
        let second = stream.next().unwrap();
        assert_ne!(StreamId::of(second), StreamId::of(first));
        for damaged in ["", "0123456789abcdef 7", "x 7\n", "0123456789abcdef -1\n"] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(number(stream.next().unwrap()), 1, "{damaged:?}");
        }
    }

    #[test]
    fn a_pack_has_its_stream_and_number_in_its_id() {
        let stream: StreamId = "0123456789abcdef".parse().unwrap();
        let pack = stream.pack(258);
        assert_eq!(pack.to_string(), "0123456789abcdef0000000000000102");
        assert_eq!((StreamId::of(pack), number(pack)), (stream, 258));
        for text in [
            "",
            "local",
            "0123456789ABCDEF",
            "+123456789abcdef",
            "0123456789abcdef0",
        ] {
            assert!(text.parse::<StreamId>().is_err(), "{text}");
        }
    }
}
