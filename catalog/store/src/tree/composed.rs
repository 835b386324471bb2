//! A file made from another one and the blocks in which they differ: what an incremental backup sends.
//!
//! Unchanged windows are taken over from the other file's map without reading them, unless new references to them are
//! not allowed any more. For the other windows, a worker reads the old bytes and writes the new blocks over them. So
//! the work depends on the changes and not on the file's size, and the result is the same map as if all bytes had been
//! sent.

use std::fmt;
use std::sync::Arc;

use self::expected::Expected;
use super::assembly::{Assembly, FileDone, StoredFile};
use super::file::{FileShape, Similar};
use crate::depositor::{Deposit, Depositor, Patch};
use crate::error::{Error, Result};
use crate::file_map::{FileMap, Window, Windows};
use crate::layout::BLOCK_BYTES;

mod expected;

/// Takes a file's changed blocks and puts its windows.
pub(super) struct FileComposer {
    depositor: Arc<Depositor>,
    shape: FileShape,
    base: Option<Similar>,
    /// How many bytes of the base the file keeps.
    keep_bytes: u64,
    /// Whether to ask the index what may be taken over.
    ask: bool,
    /// Created when the first window is entered; a file that equals its base needs none.
    assembly: Option<Arc<Assembly>>,
    done: Option<FileDone>,
    /// Windows before this one have been put or taken over.
    n: u64,
    /// The changes of window `n` so far.
    patch: Option<Patch>,
    /// The windows that will change, as far as that is known.
    expected: Expected,
    /// Where the last block ended.
    end: u64,
    /// CRC-32C of a full window of zeros, once it was needed.
    zeros_crc: Option<u32>,
}

impl FileComposer {
    /// Begins a file whose shape has been checked. The base must be cut into windows of the same size.
    pub(super) fn begin(
        depositor: Arc<Depositor>,
        shape: FileShape,
        base: Option<Similar>,
        keep_bytes: u64,
        ask: bool,
        done: FileDone,
    ) -> Self {
        let base_bytes = base.as_ref().map_or(0, |base| base.map.size_bytes);
        Self {
            depositor,
            shape,
            base,
            keep_bytes: keep_bytes.min(base_bytes).min(shape.size_bytes),
            ask,
            assembly: None,
            done: Some(done),
            n: 0,
            patch: None,
            expected: Expected::default(),
            end: 0,
            zeros_crc: None,
        }
    }

    /// Says where blocks will change, in ascending order.
    pub(super) fn expect(&mut self, offsets: impl Iterator<Item = u64>) {
        let window_bytes = u64::from(self.shape.window_bytes);
        self.expected = Expected::new(offsets.map(|offset| offset / window_bytes));
    }

    /// The next changed block.
    pub(super) fn block(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_block(offset, bytes)?;
        let window_bytes = u64::from(self.shape.window_bytes);
        let n = offset / window_bytes;
        if n != self.n || self.patch.is_none() {
            self.put_patch()?;
            self.take_over_until(n)?;
        }
        if self.patch.is_none() {
            self.fetch_expected()?;
        }
        let patch = self.patch.get_or_insert_with(|| Patch {
            bytes: self.depositor.buffer(self.shape.window_bytes as usize),
            ..Patch::default()
        });
        // Less than a window's size, which is a u32.
        patch.push((offset % window_bytes) as usize, bytes);
        self.end = offset + bytes.len() as u64;
        Ok(())
    }

    /// Has the old content of the next windows fetched.
    fn fetch_expected(&mut self) -> Result<()> {
        let Some(base) = &self.base else {
            return Ok(());
        };
        let chunks = self.expected.begin(&base.tree, &base.map)?;
        if chunks.is_empty() {
            return Ok(());
        }
        self.depositor.expect_patches_of(chunks)
    }

    fn check_block(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let rest = self.shape.size_bytes.saturating_sub(offset);
        let expected = rest.min(BLOCK_BYTES as u64);
        if offset < self.end || !offset.is_multiple_of(BLOCK_BYTES as u64) || bytes.len() as u64 != expected {
            return Err(Error::Invalid(format!(
                "{} bytes at {offset} are no block of a file of {} bytes, of which {} are there",
                bytes.len(),
                self.shape.size_bytes,
                self.end
            )));
        }
        if bytes.is_empty() {
            return Err(Error::Invalid(format!(
                "A block at {offset} lies past the file's end"
            )));
        }
        Ok(())
    }

    /// Ends the file: what follows the last block comes from the base.
    pub(super) fn finish(mut self) -> Result<()> {
        if let Some(map) = self.unchanged_map()? {
            if let Some(done) = self.done.take() {
                done(StoredFile {
                    map,
                    new_stored_bytes: 0,
                });
            }
            return Ok(());
        }
        self.put_patch()?;
        let windows = self.shape.size_bytes.div_ceil(u64::from(self.shape.window_bytes));
        self.take_over_until(windows)?;
        self.assembly().all_put();
        Ok(())
    }

    /// The base's own map, if nothing changed and all of it may be taken over.
    fn unchanged_map(&mut self) -> Result<Option<FileMap>> {
        let Some(base) = &mut self.base else {
            return Ok(None);
        };
        let size_bytes = self.shape.size_bytes;
        if self.end > 0 || self.keep_bytes != size_bytes || base.map.size_bytes != size_bytes {
            return Ok(None);
        }
        if !self.ask {
            return Ok(Some(base.map.clone()));
        }
        if let Windows::Pieces(pieces) = &base.map.windows {
            for piece in pieces {
                if !self.depositor.is_stored(piece)? {
                    return Ok(None);
                }
            }
        }
        for n in 0..base.map.window_count() {
            let window = base.cursor.window(&base.tree, &base.map, n)?;
            if !may_take_over(&self.depositor, &window)? {
                return Ok(None);
            }
        }
        Ok(Some(base.map.clone()))
    }

    /// Puts the window with changes, if there is one.
    fn put_patch(&mut self) -> Result<()> {
        let Some(patch) = self.patch.take() else {
            return Ok(());
        };
        let n = self.n;
        self.n += 1;
        let kept = self.kept_bytes(n);
        self.put(n, patch, kept)
    }

    /// Handles the windows before `end`, which have no changes.
    fn take_over_until(&mut self, end: u64) -> Result<()> {
        while self.n < end {
            let n = self.n;
            self.n += 1;
            let (kept, length) = (self.kept_bytes(n), self.length(n));
            let before = self.base_window(n, kept)?;
            match before {
                Some((window, base_length))
                    if kept == length
                        && base_length == length
                        && (!self.ask || may_take_over(&self.depositor, &window)?) =>
                {
                    self.enter(n, window);
                }
                Some((window, _)) if window.chunk.is_some() => self.put(n, Patch::default(), kept)?,
                _ => {
                    let window = Window {
                        chunk: None,
                        crc32c: self.zeros_crc(length),
                    };
                    self.enter(n, window);
                }
            }
        }
        Ok(())
    }

    /// Puts a window. Its first `kept` bytes come from the base, except where a change covers them.
    fn put(&mut self, n: u64, patch: Patch, kept: usize) -> Result<()> {
        let before = self.base_window(n, kept)?;
        let patch = Patch {
            base: before.and_then(|(window, _)| window.chunk),
            keep_bytes: kept,
            length: self.length(n),
            ..patch
        };
        let assembly = self.assembly();
        let done = Box::new(move |outcome| assembly.window(n, &outcome));
        self.depositor.put_patched(patch, self.shape.class, done)
    }

    fn enter(&mut self, n: u64, window: Window) {
        let known = Deposit {
            chunk: window.chunk,
            crc32c: window.crc32c,
            new_stored_bytes: 0,
        };
        self.assembly().window(n, &Ok(known));
    }

    /// The base's window `n` and its length, if some of it is kept.
    fn base_window(&mut self, n: u64, kept: usize) -> Result<Option<(Window, usize)>> {
        match &mut self.base {
            Some(base) if kept > 0 => {
                let window = base.cursor.window(&base.tree, &base.map, n)?;
                Ok(Some((window, base.map.window_length(n) as usize)))
            }
            _ => Ok(None),
        }
    }

    /// How many bytes of window `n` come from the base; the rest is zero.
    fn kept_bytes(&self, n: u64) -> usize {
        let start = n * u64::from(self.shape.window_bytes);
        let kept = self.keep_bytes.saturating_sub(start);
        usize::try_from(kept).map_or(self.length(n), |kept| kept.min(self.length(n)))
    }

    fn length(&self, n: u64) -> usize {
        let start = n * u64::from(self.shape.window_bytes);
        let rest = self.shape.size_bytes.saturating_sub(start);
        // At most a window's size, which is a u32.
        rest.min(u64::from(self.shape.window_bytes)) as usize
    }

    fn zeros_crc(&mut self, length: usize) -> u32 {
        let full = self.shape.window_bytes as usize;
        let of_zeros = |length| crc32c::crc32c(&vec![0; length]);
        if length == full {
            *self.zeros_crc.get_or_insert_with(|| of_zeros(full))
        } else {
            of_zeros(length)
        }
    }

    fn assembly(&mut self) -> Arc<Assembly> {
        let Self {
            depositor,
            shape,
            base,
            assembly,
            done,
            ..
        } = self;
        let assembly = assembly.get_or_insert_with(|| {
            // Taken once: the only other code that takes it ends the file.
            let done = done.take().unwrap_or_else(|| Box::new(drop));
            let before = base.as_ref().map(|base| &base.map);
            Arc::new(Assembly::begin(
                Arc::clone(depositor),
                shape.size_bytes,
                shape.window_bytes,
                before,
                done,
            ))
        });
        Arc::clone(assembly)
    }
}

fn may_take_over(depositor: &Depositor, window: &Window) -> Result<bool> {
    window.chunk.map_or(Ok(true), |chunk| depositor.is_stored(&chunk))
}

impl fmt::Debug for FileComposer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileComposer")
            .field("shape", &self.shape)
            .field("keep_bytes", &self.keep_bytes)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
