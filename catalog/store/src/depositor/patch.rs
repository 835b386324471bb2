//! A window given as its changes. A worker assembles it before it is stored like any other.

use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::reader::ChunkReader;

/// A window that differs from another in known places.
#[derive(Debug, Default)]
pub(crate) struct Patch {
    /// The chunk of the earlier window; `None` for zeros.
    pub(crate) base: Option<ChunkId>,
    /// How many bytes of the base are kept; zeros follow.
    pub(crate) keep_bytes: usize,
    /// Its own length.
    pub(crate) length: usize,
    /// Where changed bytes begin in the window, and where they end in `bytes`; in ascending order.
    pub(crate) changes: Vec<Change>,
    /// The changed bytes, one after the other.
    pub(crate) bytes: Vec<u8>,
}

/// One run of changed bytes, see [`Patch::changes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) at: usize,
    pub(crate) end: usize,
}

impl Patch {
    /// Adds bytes at an offset behind all earlier ones. [`resolve`](Self::resolve) rejects bytes outside
    /// the window.
    pub(crate) fn push(&mut self, at: usize, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let end = self.bytes.len();
        self.changes.push(Change { at, end });
    }

    /// Writes the window into `window`, which is empty. The base is only read if some of its bytes are
    /// left.
    pub(super) fn resolve(&self, reader: &ChunkReader, window: &mut Vec<u8>) -> Result<()> {
        if let Some(base) = self.base.filter(|_| self.shows_base()) {
            let base_bytes = reader.get(&base)?;
            let kept = base_bytes.get(..self.keep_bytes).ok_or_else(|| {
                let reason = format!(
                    "It has {} bytes, its file's map says at least {}",
                    base_bytes.len(),
                    self.keep_bytes
                );
                Error::damaged(format!("Chunk {base}"), reason)
            })?;
            window.extend_from_slice(kept);
        }
        window.resize(self.length, 0);
        let mut from = 0;
        for change in &self.changes {
            let bytes = self.bytes.get(from..change.end).unwrap_or_default();
            let place = window
                .get_mut(change.at..change.at + bytes.len())
                .ok_or_else(|| Error::Invalid("A change lies outside its window".to_owned()))?;
            place.copy_from_slice(bytes);
            from = change.end;
        }
        Ok(())
    }

    /// Whether a byte of the base is left between the changes.
    fn shows_base(&self) -> bool {
        let (mut covered, mut from) = (0, 0);
        for change in &self.changes {
            if change.at > covered {
                break;
            }
            covered = change.at + (change.end - from);
            from = change.end;
        }
        covered < self.keep_bytes
    }
}
