//! Packs: files of many chunk frames that describe themselves.
//!
//! Header, frames one after the other, footer, trailer; see `FORMAT.md`. The footer lists every chunk of the
//! pack and holds its records, so that the whole catalog can be rebuilt from packs alone. Frames follow each
//! other without a gap and offsets are not stored, so frames cannot overlap or point outside the file.

use crate::codec::{Encoding, Frame};
use crate::error::{Error, Result};
use crate::id::{ChunkId, PackId, RecordId};
use crate::layout::MAX_CHUNK_BYTES;
use crate::location::ChunkLocation;
use crate::seal::{FramePlace, SEAL_BYTES};
use crate::storage::PackStorage;

mod footer;
mod opener;
mod writer;

pub use footer::read_footer;
pub(crate) use opener::explain;
pub use opener::key_of_pack;
pub use writer::PackWriter;

/// A chunk in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedChunk {
    /// The chunk's id.
    pub id: ChunkId,
    /// How its frame is encoded.
    pub encoding: Encoding,
    /// Where the frame begins in the pack's file.
    pub offset: u32,
    /// Bytes of the frame.
    pub stored_bytes: u32,
    /// Bytes of the chunk itself.
    pub raw_bytes: u32,
    /// A delta's base; `None` for all other encodings.
    pub base: Option<ChunkId>,
}

impl PackedChunk {
    /// Where this chunk of `pack` is.
    pub fn location(&self, pack: PackId) -> ChunkLocation {
        ChunkLocation {
            pack,
            offset: self.offset,
            stored_bytes: self.stored_bytes,
            raw_bytes: self.raw_bytes,
            encoding: self.encoding,
            base: self.base,
        }
    }
}

/// A fact kept in a pack's footer: a backup, an archived segment, a deletion. Only the catalog interprets
/// kinds and payloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its id, by which a deletion annuls it.
    pub id: RecordId,
    /// What the payload is.
    pub kind: u8,
    /// The fact itself.
    pub payload: Vec<u8>,
}

/// A complete, durable pack, as its footer describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedPack {
    /// The pack's id.
    pub id: PackId,
    /// Size of the file.
    pub bytes: u64,
    /// Its chunks in the order of their offsets.
    pub chunks: Vec<PackedChunk>,
    /// Its records in the order they were written.
    pub records: Vec<Record>,
}

/// Reads the frame of chunk `id` from its pack and opens it, to decode it or to copy it into another pack. Otherwise only
/// sizes are checked: only the decoded chunk can be compared with its id.
///
/// # Errors
/// [`Error::MissingPack`], [`Error::Damaged`] where the pack ends too early, the location claims an impossible size or the
/// frame is not what was sealed, [`Error::NoKey`], [`Error::Io`].
pub fn read_frame(storage: &dyn PackStorage, id: &ChunkId, location: &ChunkLocation) -> Result<Frame> {
    let mut bytes = Vec::new();
    let opened = read_frame_into(storage, id, location, &mut bytes)?.len();
    bytes.truncate(opened);
    Ok(Frame {
        encoding: location.encoding,
        bytes,
    })
}

/// The same in a buffer, of which the frame is the beginning.
pub(crate) fn read_frame_into<'a>(
    storage: &dyn PackStorage,
    id: &ChunkId,
    location: &ChunkLocation,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8]> {
    let what = || format!("Frame at offset {} of pack {}", location.offset, location.pack);
    let stored_bytes = location.stored_bytes as usize;
    if stored_bytes > MAX_CHUNK_BYTES + SEAL_BYTES {
        return Err(Error::damaged(
            what(),
            format!("It claims {stored_bytes} bytes, more than any frame has"),
        ));
    }
    buffer.resize(stored_bytes, 0);
    storage.read_at(location.pack, location.offset.into(), buffer)?;
    let Some(key) = opener::opener(storage, location.pack)? else {
        return Ok(buffer);
    };
    let place = FramePlace {
        pack: location.pack,
        offset: location.offset,
        chunk: *id,
        encoding: location.encoding,
        stored_bytes: location.stored_bytes,
        raw_bytes: location.raw_bytes,
    };
    match key.open(&place, buffer) {
        Some(opened) => Ok(opened),
        None => Err(Error::damaged(what(), "It is not what was sealed for this place")),
    }
}

#[cfg(test)]
mod tests;
