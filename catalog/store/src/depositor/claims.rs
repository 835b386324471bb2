//! The chunks on their way into packs that the index does not know yet.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::id::ChunkId;
use crate::pack::PackedChunk;
use crate::sync::lock;

/// Ids that one worker has claimed to store, so that no other stores the same bytes again. They stay until the index
/// knows their pack, so there are never more than fit the open pack, the packs being closed and the queues: a few
/// times [`PACK_MAX_CHUNKS`](crate::layout::PACK_MAX_CHUNKS).
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<HashSet<ChunkId>>);

impl Claims {
    /// Claims a chunk; `false` when another worker has.
    pub(super) fn claim(&self, id: ChunkId) -> bool {
        lock(&self.0).insert(id)
    }

    /// Gives a claim up: the index knows the chunk.
    pub(super) fn release(&self, id: &ChunkId) {
        lock(&self.0).remove(id);
    }

    /// Gives up the claims of a pack that the index knows now.
    pub(super) fn release_all(&self, chunks: &[PackedChunk]) {
        let mut claims = lock(&self.0);
        for chunk in chunks {
            claims.remove(&chunk.id);
        }
    }
}
