//! Storing one file's content: cut into windows, each compared with the window that was there before.

use std::fmt;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};

use super::TreeReader;
use super::assembly::{Assembly, FileDone, StoredFile};
use super::reader::WindowCursor;
use crate::depositor::{ContentClass, Depositor};
use crate::error::{Error, Result};
use crate::file_map::{FileMap, valid_window_bytes};
use crate::id::ChunkId;
use crate::layout::MAX_CHUNK_BYTES;

/// Maximum number of pieces of one file, so that its entry fits a page: 16 TiB of data.
const MAX_PIECES: u64 = (MAX_CHUNK_BYTES / ChunkId::BYTES / 2) as u64;

/// What is known about a file before its content arrives.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileShape {
    pub(super) size_bytes: u64,
    pub(super) window_bytes: u32,
    pub(super) class: ContentClass,
}

impl FileShape {
    /// Checks that such a file can be stored.
    pub(super) fn check(&self) -> Result<()> {
        let Self {
            size_bytes,
            window_bytes,
            ..
        } = *self;
        if !valid_window_bytes(window_bytes) {
            return Err(Error::Invalid(format!(
                "Windows of {window_bytes} bytes are not possible"
            )));
        }
        if FileMap::piece_count(size_bytes.div_ceil(u64::from(window_bytes))) > MAX_PIECES {
            return Err(Error::Invalid(format!(
                "A file of {size_bytes} bytes is too large"
            )));
        }
        Ok(())
    }
}

/// The file as it was before.
#[derive(Debug)]
pub(super) struct Similar {
    pub(super) tree: TreeReader,
    pub(super) map: FileMap,
    pub(super) cursor: WindowCursor,
}

impl Similar {
    /// The chunk that was at window `n`.
    fn chunk(&mut self, n: u64) -> Result<Option<ChunkId>> {
        if n >= self.map.window_count() {
            return Ok(None);
        }
        Ok(self.cursor.window(&self.tree, &self.map, n)?.chunk)
    }
}

/// Takes a file's bytes and puts its windows.
pub(super) struct FileWriter {
    depositor: Arc<Depositor>,
    shape: FileShape,
    similar: Option<Similar>,
    assembly: Arc<Assembly>,
    /// The window being filled.
    buffer: Vec<u8>,
    /// Its number.
    n: u64,
    /// Bytes of the file that have not come yet.
    left: u64,
}

impl FileWriter {
    /// Begins a file whose shape has been checked. `done` is called when all of it has been put.
    pub(super) fn begin(
        depositor: Arc<Depositor>,
        shape: FileShape,
        similar: Option<Similar>,
        done: FileDone,
    ) -> Self {
        let FileShape {
            size_bytes,
            window_bytes,
            ..
        } = shape;
        let before = similar.as_ref().map(|similar| &similar.map);
        let assembly = Assembly::begin(Arc::clone(&depositor), size_bytes, window_bytes, before, done);
        let (assembly, left) = (Arc::new(assembly), size_bytes);
        Self {
            depositor,
            shape,
            similar,
            assembly,
            buffer: Vec::new(),
            n: 0,
            left,
        }
    }

    /// The next bytes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            Error::Invalid(format!(
                "It has more than the {} bytes announced",
                self.shape.size_bytes
            ))
        })?;
        let window_bytes = self.shape.window_bytes as usize;
        while !bytes.is_empty() {
            if self.buffer.capacity() == 0 {
                self.buffer = self.depositor.buffer(window_bytes);
            }
            let room = window_bytes - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == window_bytes {
                self.put_window()?;
            }
        }
        Ok(())
    }

    /// Ends the file.
    pub(super) fn finish(mut self) -> Result<()> {
        if self.left > 0 {
            let FileShape { size_bytes, .. } = self.shape;
            return Err(Error::Invalid(format!(
                "It ends {} bytes before the {size_bytes} announced",
                self.left
            )));
        }
        if !self.buffer.is_empty() {
            self.put_window()?;
        }
        self.assembly.all_put();
        Ok(())
    }

    fn put_window(&mut self) -> Result<()> {
        let (n, similar) = (self.n, self.similar_chunk());
        let assembly = Arc::clone(&self.assembly);
        let bytes = std::mem::take(&mut self.buffer);
        self.n += 1;
        self.depositor.put(
            bytes,
            similar,
            self.shape.class,
            Box::new(move |outcome| assembly.window(n, &outcome)),
        )
    }

    /// The previous backup's chunk for this window. It only saves work: if it cannot be read, the file is stored
    /// without it.
    fn similar_chunk(&mut self) -> Option<ChunkId> {
        match self.similar.as_mut()?.chunk(self.n) {
            Ok(chunk) => chunk,
            Err(error) => {
                tracing::warn!("A file is stored without comparing it with the previous backup: {error}");
                self.similar = None;
                None
            }
        }
    }
}

impl fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileWriter")
            .field("shape", &self.shape)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

/// A file that is not part of a tree, such as a WAL segment.
#[derive(Debug)]
pub struct SingleFile {
    writer: FileWriter,
    depositor: Arc<Depositor>,
    stored: Receiver<StoredFile>,
}

impl SingleFile {
    /// Begins a file of `size_bytes`, cut into windows of `window_bytes`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an impossible window size.
    pub fn begin(
        depositor: Arc<Depositor>,
        size_bytes: u64,
        window_bytes: u32,
        class: ContentClass,
    ) -> Result<Self> {
        let shape = FileShape {
            size_bytes,
            window_bytes,
            class,
        };
        shape.check()?;
        let (done, stored) = bounded(1);
        let done = Box::new(move |file| {
            // If the file was given up, nobody is waiting for it.
            let _unwanted = done.send(file);
        });
        let writer = FileWriter::begin(Arc::clone(&depositor), shape, None, done);
        Ok(Self {
            writer,
            depositor,
            stored,
        })
    }

    /// The next bytes of the content.
    ///
    /// # Errors
    /// [`Error::Invalid`] past the announced size; any error of the depositor.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write(bytes)
    }

    /// Ends the file and waits until all of it has been put; durable after the depositor's next flush.
    ///
    /// # Errors
    /// [`Error::Invalid`] when bytes are missing; any error of the depositor.
    pub fn finish(self) -> Result<StoredFile> {
        self.writer.finish()?;
        self.depositor.drain()?;
        self.stored
            .recv()
            .map_err(|_| Error::Invalid("A file's windows were put, but not its map".to_owned()))
    }
}
