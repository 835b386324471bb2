//! The chunks on their way into packs that the index does not know yet.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::id::ChunkId;
use crate::pack::PackedChunk;

/// Ids that one worker has claimed to store, so that no other stores the same bytes again. They stay until the index
/// knows their pack, so there are never more than fit the open pack, the packs being closed and the queues: a few
/// times [`PACK_MAX_CHUNKS`](crate::layout::PACK_MAX_CHUNKS).
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<HashSet<ChunkId>>);

impl Claims {
    /// Claims a chunk; `false` when another worker has.
    pub(super) fn claim(&self, id: ChunkId) -> bool {
        self.lock().insert(id)
    }

    /// Gives a claim up: the index knows the chunk.
    pub(super) fn release(&self, id: &ChunkId) {
        self.lock().remove(id);
    }

    /// Gives up the claims of a pack that the index knows now.
    pub(super) fn release_all(&self, chunks: &[PackedChunk]) {
        let mut claims = self.lock();
        for chunk in chunks {
            claims.remove(&chunk.id);
        }
    }

    // An insertion or removal that panicked leaves a set that is at worst too large.
    fn lock(&self) -> MutexGuard<'_, HashSet<ChunkId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
