//! The members of a tar archive one by one, each to be read by whoever asks for it.
//!
//! [`TarReader`] passes everything on as it comes. Here what it passes on of one slice of the archive waits in a queue.

use std::collections::VecDeque;
use std::io::{self, Read};

use crate::error::Error;
use crate::postgres::{EndBlocks, SinkError, TarEntry, TarReader, TarSink};

/// Bytes of the archive that are parsed at a time; the queue holds no more of it.
const SLICE_BYTES: usize = 128 << 10;

/// An archive that is read member by member.
pub(crate) struct Members<R> {
    source: R,
    tar: TarReader,
    queue: Queue,
    buffer: Vec<u8>,
    is_at_end: bool,
}

enum Event {
    Begin(TarEntry),
    /// Bytes, and how many of them are taken.
    Data(Vec<u8>, usize),
    End,
}

#[derive(Default)]
struct Queue(VecDeque<Event>);

impl TarSink for Queue {
    fn entry(&mut self, entry: &TarEntry) -> Result<(), SinkError> {
        self.0.push_back(Event::Begin(entry.clone()));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.0.push_back(Event::Data(bytes.to_vec(), 0));
        Ok(())
    }

    fn end_entry(&mut self) -> Result<(), SinkError> {
        self.0.push_back(Event::End);
        Ok(())
    }
}

impl<R: Read> Members<R> {
    /// The name is for messages.
    pub(crate) fn new(name: &str, source: R) -> Self {
        Self::parsed(TarReader::new(name, EndBlocks::Required).with_root(), source)
    }

    /// The members of an archive that WAL-G has written.
    pub(crate) fn of_walg(name: &str, source: R) -> Self {
        Self::parsed(TarReader::of_walg(name), source)
    }

    fn parsed(tar: TarReader, source: R) -> Self {
        Self {
            source,
            tar,
            queue: Queue::default(),
            buffer: vec![0; SLICE_BYTES],
            is_at_end: false,
        }
    }

    /// The next member, whose path is empty for the directory itself, and whose content is what [`Read`] gives; what is left of the one before is passed over. `None` at the
    /// archive's end.
    ///
    /// # Errors
    /// When the archive cannot be read, is cut, or has members that no backup has.
    pub(crate) fn next_member(&mut self) -> Result<Option<TarEntry>, Error> {
        loop {
            match self.queue.0.pop_front() {
                Some(Event::Begin(entry)) => return Ok(Some(entry)),
                Some(Event::Data(..) | Event::End) => {}
                None if self.is_at_end => return Ok(None),
                None => self
                    .parse_more()
                    .map_err(|error| Error::failed(error.to_string()))?,
            }
        }
    }

    fn parse_more(&mut self) -> io::Result<()> {
        let length = self.source.read(&mut self.buffer)?;
        if length == 0 {
            self.is_at_end = true;
            return self.tar.finish().map_err(io::Error::other);
        }
        let bytes = self.buffer.get(..length).unwrap_or_default();
        self.tar.feed(bytes, &mut self.queue).map_err(io::Error::other)
    }
}

impl<R: Read> Read for Members<R> {
    /// Reads from the present member; 0 at its end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.queue.0.front_mut() {
                Some(Event::Data(bytes, taken)) => {
                    let mut rest = bytes.get(*taken..).unwrap_or_default();
                    let length = rest.read(buffer)?;
                    *taken += length;
                    if *taken == bytes.len() {
                        self.queue.0.pop_front();
                    }
                    if length > 0 || buffer.is_empty() {
                        return Ok(length);
                    }
                }
                // The end stays in the queue: reading again is the end again.
                Some(Event::Begin(_) | Event::End) => return Ok(0),
                None if self.is_at_end => return Ok(0),
                None => match self.parse_more() {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    more => more?,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(mode: u32) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    }

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = header(0o600);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// Gives one byte at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(1);
            self.0.read(buffer.get_mut(..length).unwrap_or_default())
        }
    }

    #[test]
    fn members_come_one_by_one_and_may_be_passed_over() {
        let large = vec![7; 300_000];
        let members: &[(&str, &[u8])] = &[("a", b"one"), ("empty", b""), ("large", &large), ("z", b"last")];
        let bytes = archive(members);
        for pass_over in [false, true] {
            let mut reader = Members::new("x.tar", Slow(&bytes));
            for (name, content) in members {
                let entry = reader.next_member().unwrap().unwrap();
                assert_eq!(
                    (entry.path.as_slice(), entry.size_bytes),
                    (name.as_bytes(), content.len() as u64)
                );
                if !pass_over {
                    let mut read = Vec::new();
                    reader.read_to_end(&mut read).unwrap();
                    assert!(read == *content);
                    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
                }
            }
            assert!(reader.next_member().unwrap().is_none());
        }
    }

    #[test]
    fn the_directory_itself_may_be_a_member() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = header(0o750);
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        builder.append_data(&mut header, "./", &[][..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        let entry = Members::new("x.tar", bytes.as_slice())
            .next_member()
            .unwrap()
            .unwrap();
        assert_eq!((entry.path.as_slice(), entry.mode), (&b""[..], 0o750));
    }

    #[test]
    fn an_archive_that_is_cut_anywhere_is_refused() {
        let bytes = archive(&[("a", b"one"), ("b", b"two")]);
        for end in 0..bytes.len() - 512 {
            let mut reader = Members::new("x.tar", &bytes[..end]);
            let read = (|| {
                while reader.next_member()?.is_some() {
                    let mut content = Vec::new();
                    let read = reader.read_to_end(&mut content);
                    read.map_err(|error| Error::failed(error.to_string()))?;
                }
                Ok::<(), Error>(())
            })();
            assert!(read.is_err(), "{end}");
        }
    }
}
