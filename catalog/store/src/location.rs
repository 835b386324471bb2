//! The place of a chunk in a pack.

use crate::codec::Encoding;
use crate::id::{ChunkId, PackId};

/// Where a chunk is and how it is stored there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLocation {
    /// The pack that holds it.
    pub pack: PackId,
    /// Where its frame begins in the pack's file.
    pub offset: u32,
    /// Bytes of the frame.
    pub stored_bytes: u32,
    /// Bytes of the chunk itself.
    pub raw_bytes: u32,
    /// How to decode the frame.
    pub encoding: Encoding,
    /// A delta's base; `None` for all other encodings.
    pub base: Option<ChunkId>,
}
