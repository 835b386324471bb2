//! Chunks on their way into packs that are not in the index yet.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::id::ChunkId;
use crate::pack::PackedChunk;
use crate::sync::lock;

/// Ids that one worker has claimed to store, so that no other worker stores the same bytes again. A claim stays
/// until the chunk's pack is in the index, so there are never more claims than fit the open pack, the packs being
/// closed and the queues: a few times [`PACK_MAX_CHUNKS`](crate::layout::PACK_MAX_CHUNKS).
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<HashSet<ChunkId>>);

impl Claims {
    /// Claims a chunk; `false` when another worker already has.
    pub(super) fn claim(&self, id: ChunkId) -> bool {
        lock(&self.0).insert(id)
    }

    /// Releases a claim: the chunk is in the index.
    pub(super) fn release(&self, id: &ChunkId) {
        lock(&self.0).remove(id);
    }

    /// Releases the claims of a pack that is now in the index.
    pub(super) fn release_all(&self, chunks: &[PackedChunk]) {
        let mut claims = lock(&self.0);
        for chunk in chunks {
            claims.remove(&chunk.id);
        }
    }
}
