//! Reading.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::file_map::{FileMap, Window};
use crate::id::ChunkId;
use crate::listing::{DirectoryRef, Entry};
use crate::reader::ChunkReader;

/// Reads trees. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TreeReader {
    chunks: Arc<ChunkReader>,
}

/// The entries of a directory, sorted by name. See [`TreeReader::entries`].
#[derive(Debug)]
pub struct Entries {}

/// A file's content from front to back. See [`TreeReader::reader`].
#[derive(Debug)]
pub struct FileReader {}

fn not_yet<T>() -> Result<T> {
    Err(Error::Invalid("not yet".to_owned()))
}

impl TreeReader {
    /// A reader of trees whose chunks come from `chunks`.
    pub fn new(chunks: Arc<ChunkReader>) -> Self {
        Self { chunks }
    }

    /// Where the chunks come from.
    pub fn chunks(&self) -> &Arc<ChunkReader> {
        &self.chunks
    }

    /// The entries of a directory, page by page, sorted by name.
    pub fn entries(&self, _directory: &DirectoryRef) -> Entries {
        Entries {}
    }

    /// The entry of this name.
    pub fn lookup(&self, _directory: &DirectoryRef, _name: &[u8]) -> Result<Option<Entry>> {
        not_yet()
    }

    /// The entry at this path below `root`: "base/5/1259".
    pub fn find(&self, _root: &DirectoryRef, _path: &[u8]) -> Result<Option<Entry>> {
        not_yet()
    }

    /// Window `n` of a file.
    pub fn window(&self, _map: &FileMap, _n: u64) -> Result<Window> {
        not_yet()
    }

    /// Reads from `offset` until `buffer` is full or the file ends; returns the number of bytes.
    pub fn read_at(&self, _map: &FileMap, _offset: u64, _buffer: &mut [u8]) -> Result<usize> {
        not_yet()
    }

    /// Starts decoding these windows in the background, so that a read soon after finds them in the cache.
    pub fn read_ahead(&self, _map: &FileMap, _windows: Range<u64>) -> Result<()> {
        not_yet()
    }

    /// Where, from `offset` on, the first byte is that is not in a hole; `None` when only a hole follows.
    pub fn next_data(&self, _map: &FileMap, _offset: u64) -> Result<Option<u64>> {
        not_yet()
    }

    /// Where, from `offset` on, the first hole begins; the file's size when none does.
    pub fn next_hole(&self, _map: &FileMap, _offset: u64) -> Result<u64> {
        not_yet()
    }

    /// The content from front to back.
    pub fn reader(&self, _map: FileMap) -> FileReader {
        FileReader {}
    }

    /// Calls `each` with every chunk the tree consists of: listing pages, pieces of maps, windows. Where it answers
    /// `false` for a page or a piece, what that refers to is left out.
    pub fn chunks_of(
        &self,
        _directory: &DirectoryRef,
        _each: &mut dyn FnMut(ChunkId) -> Result<bool>,
    ) -> Result<()> {
        not_yet()
    }

    /// The same for one file: pieces of its map, windows.
    pub fn chunks_of_file(&self, _map: &FileMap, _each: &mut dyn FnMut(ChunkId) -> Result<bool>) -> Result<()> {
        not_yet()
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        None
    }
}

impl Read for FileReader {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}
