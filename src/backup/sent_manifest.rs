//! Notes about files that are stored in another form than they were sent. They are compared with the server's manifest.
//!
//! The server's manifest describes what it sent: `INCREMENTAL.1259` with the size and checksum of that file. It lists
//! files in the order in which they were sent. So a nameless file with a note for each is enough; it is read once from
//! front to back.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};

/// A file as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SentFile {
    pub(super) path: Vec<u8>,
    pub(crate) size_bytes: u64,
    pub(crate) crc32c: u32,
}

/// Takes notes of sent files.
#[derive(Debug)]
pub(crate) enum SentNotesWriter {
    /// They come in the order of the manifest.
    Ordered(OrderedWriter),
    /// They come in any order. Only files that are stored in another form are noted, with some 60 bytes for each.
    AnyOrder(HashMap<Vec<u8>, (u64, u32)>),
}

/// Finds the notes of sent files.
#[derive(Debug)]
pub(crate) enum SentNotes {
    Ordered(OrderedNotes),
    AnyOrder(HashMap<Vec<u8>, (u64, u32)>),
}

impl SentNotesWriter {
    /// For files in the order of the manifest. `spool` is an empty file for the notes.
    pub(super) fn ordered(spool: File) -> Self {
        Self::Ordered(OrderedWriter::new(spool))
    }

    /// For files in any order.
    pub(crate) fn in_any_order() -> Self {
        Self::AnyOrder(HashMap::new())
    }

    /// Adds a file.
    pub(super) fn push(&mut self, file: &SentFile) -> io::Result<()> {
        match self {
            Self::Ordered(writer) => writer.push(file),
            Self::AnyOrder(files) => {
                files.insert(file.path.clone(), (file.size_bytes, file.crc32c));
                Ok(())
            }
        }
    }

    /// Ends writing.
    pub(crate) fn finish(self) -> io::Result<SentNotes> {
        Ok(match self {
            Self::Ordered(writer) => SentNotes::Ordered(writer.finish()?),
            Self::AnyOrder(files) => SentNotes::AnyOrder(files),
        })
    }
}

impl SentNotes {
    /// The note of the file that the manifest lists next; `None` if it was not sent, or not in this order.
    pub(crate) fn take(&mut self, path: &[u8]) -> io::Result<Option<SentFile>> {
        match self {
            Self::Ordered(notes) => Ok(notes.next()?.filter(|sent| sent.path == path)),
            Self::AnyOrder(files) => Ok(files.remove(path).map(|(size_bytes, crc32c)| SentFile {
                path: path.to_vec(),
                size_bytes,
                crc32c,
            })),
        }
    }
}

/// Writes the notes.
#[derive(Debug)]
pub(crate) struct OrderedWriter(BufWriter<File>);

/// Reads the notes in the order in which they were written.
#[derive(Debug)]
pub(crate) struct OrderedNotes(BufReader<File>);

impl OrderedWriter {
    /// `spool` is an empty file for the notes.
    fn new(spool: File) -> Self {
        Self(BufWriter::new(spool))
    }

    /// Adds a file. Names in an archive have less than 100 bytes.
    fn push(&mut self, file: &SentFile) -> io::Result<()> {
        let length = u16::try_from(file.path.len()).map_err(io::Error::other)?;
        self.0.write_all(&length.to_le_bytes())?;
        self.0.write_all(&file.path)?;
        self.0.write_all(&file.size_bytes.to_le_bytes())?;
        self.0.write_all(&file.crc32c.to_le_bytes())
    }

    /// Ends writing, and returns a reader.
    fn finish(self) -> io::Result<OrderedNotes> {
        let mut spool = self.0.into_inner().map_err(io::IntoInnerError::into_error)?;
        spool.rewind()?;
        Ok(OrderedNotes(BufReader::new(spool)))
    }
}

impl OrderedNotes {
    /// The next file; `None` after the last.
    fn next(&mut self) -> io::Result<Option<SentFile>> {
        if self.0.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut length = [0; 2];
        self.0.read_exact(&mut length)?;
        let mut path = vec![0; usize::from(u16::from_le_bytes(length))];
        let (mut size, mut crc) = ([0; 8], [0; 4]);
        self.0.read_exact(&mut path)?;
        self.0.read_exact(&mut size)?;
        self.0.read_exact(&mut crc)?;
        Ok(Some(SentFile {
            path,
            size_bytes: u64::from_le_bytes(size),
            crc32c: u32::from_le_bytes(crc),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_in_their_order() {
        let mut writer = OrderedWriter::new(tempfile::tempfile().unwrap());
        let files: Vec<SentFile> = (0..300)
            .map(|n| SentFile {
                path: vec![b'a'; n],
                size_bytes: n as u64 * 8192,
                crc32c: !(n as u32),
            })
            .collect();
        files.iter().for_each(|file| writer.push(file).unwrap());
        let mut notes = writer.finish().unwrap();
        for file in &files {
            assert_eq!(notes.next().unwrap().as_ref(), Some(file));
        }
        assert_eq!(notes.next().unwrap(), None);
    }
}
