//! Where the content of a tree's files comes from: this repository, or the other side of a connection.

use std::io::{self, Read};
use std::sync::Arc;

use barmanfs_fs::entry::Body;
use barmanfs_store::tree::FileReader;
use barmanfs_store::{ChunkHash, ChunkId, FileMap, TreeReader, Window};

use super::agent::far::{FarFile, FarTree};
use crate::error::Error;

/// See the module.
#[derive(Debug, Clone)]
pub(super) enum TreeSource {
    /// This repository.
    Own(TreeReader),
    /// The other side.
    Far(Arc<FarTree>),
}

/// The content of one file.
#[derive(Debug, Clone)]
pub(super) enum FileContent {
    /// In this repository, or made by a view.
    Own(Body, TreeReader),
    /// On the other side.
    Far(FarFile),
}

/// Windows of a part of a file.
#[derive(Debug, Default)]
pub(super) struct PartWindows {
    /// Bytes of each window but the last.
    pub(super) window_bytes: u32,
    /// The number of the first.
    pub(super) first: u64,
    pub(super) windows: Vec<Window>,
}

/// A window whose bytes are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) n: u64,
    pub(super) length: u32,
    pub(super) chunk: ChunkId,
}

/// Receives the bytes of a window.
pub(super) type EachContent<'a> = dyn FnMut(&Wanted, &[u8]) -> Result<(), Error> + 'a;

impl FileContent {
    /// How its chunks are named.
    pub(super) fn chunk_hash(&self) -> ChunkHash {
        match self {
            Self::Own(_, trees) => trees.chunks().chunk_hash().clone(),
            Self::Far(file) => file.chunk_hash(),
        }
    }

    /// Its size in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::Own(body, _) => body.size_bytes(),
            Self::Far(file) => file.size_bytes(),
        }
    }

    /// The windows that begin in this part; `None` if it is not stored in windows.
    pub(super) fn windows(&self, (from, to): (u64, u64)) -> Result<Option<PartWindows>, Error> {
        let (map, trees) = match self {
            Self::Own(Body::Stored(map), trees) => (map, trees),
            Self::Own(..) => return Ok(None),
            Self::Far(file) => return file.windows((from, to)).map(Some),
        };
        let range = map.windows_of(from, to - from);
        let mut part = PartWindows {
            window_bytes: map.window_bytes,
            first: range.start,
            windows: Vec::new(),
        };
        trees.each_window(map, range, |_, window| {
            part.windows.push(window);
            Ok::<_, Error>(())
        })?;
        Ok(Some(part))
    }

    /// Calls `each` with the bytes of each of these windows, in order.
    pub(super) fn contents(&self, wanted: &[Wanted], each: &mut EachContent<'_>) -> Result<(), Error> {
        match self {
            Self::Own(Body::Stored(map), trees) => wanted.iter().try_for_each(|window| {
                let bytes = trees.window_content(map, window.n, &window.chunk)?;
                each(window, &bytes)
            }),
            Self::Own(..) => Err(Error::failed("It is not stored in windows")),
            Self::Far(file) => file.contents(wanted, each),
        }
    }

    /// Reads it from front to back.
    pub(super) fn reader(self) -> ContentReader {
        ContentReader(match self {
            Self::Own(Body::Stored(map), trees) => Reading::Stored(trees.reader(FileMap::clone(&map))),
            content => Reading::Other { content, at: 0 },
        })
    }

    /// Whether both are stored in the same chunks.
    pub(super) fn is_stored_as(&self, other: &Self) -> bool {
        matches!(
            (self, other),
            (Self::Own(Body::Stored(own), _), Self::Own(Body::Stored(other), _)) if own == other
        )
    }

    /// Reads a part of what is not stored in windows.
    pub(super) fn read_at(&self, at: u64, into: &mut [u8]) -> Result<usize, Error> {
        match self {
            Self::Own(body, trees) => Ok(body.read_at(trees, at, into)?),
            Self::Far(_) => Err(Error::failed("It is read in windows")),
        }
    }
}

/// Reads the content of a file from front to back.
#[derive(Debug)]
pub(crate) struct ContentReader(Reading);

#[derive(Debug)]
enum Reading {
    /// In chunks.
    Stored(FileReader),
    /// Any other, and where the next byte is.
    Other { content: FileContent, at: u64 },
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Reading::Stored(reader) => reader.read(buffer),
            Reading::Other { content, at } => {
                let count = content
                    .read_at(*at, buffer)
                    .map_err(|error| io::Error::other(error.to_string()))?;
                *at += count as u64;
                Ok(count)
            }
        }
    }
}
