//! What the store needs to know about where chunks are; the catalog implements it on SQLite.

use std::fmt::Debug;

use crate::error::Result;
use crate::id::ChunkId;
use crate::location::ChunkLocation;
use crate::pack::ClosedPack;

/// The index from chunk ids to places in packs.
///
/// A chunk may be in several packs (two writers at once, or a sweep's copy beside a condemned pack). An index
/// that keeps one place for it must prefer a whole frame to a delta: a chunk that is some delta's base has to
/// be found whole, since deltas are never more than one deep.
pub trait ChunkIndex: Send + Sync + Debug {
    /// For readers: wherever the chunk is, be the pack condemned or not. `None` when no pack is known to hold
    /// it.
    ///
    /// # Errors
    /// [`Error::Index`](crate::Error::Index) when the index itself fails.
    fn locate(&self, id: &ChunkId) -> Result<Option<ChunkLocation>>;

    /// For readers that found nothing they could read there: all places of the chunk, the best first.
    ///
    /// # Errors
    /// [`Error::Index`](crate::Error::Index) when the index itself fails.
    fn places(&self, id: &ChunkId) -> Result<Vec<ChunkLocation>> {
        Ok(self.locate(id)?.into_iter().collect())
    }

    /// For writers: where the chunk is, in a pack that is not condemned and not known to be damaged there. `None` means:
    /// store it anew.
    ///
    /// # Errors
    /// [`Error::Index`](crate::Error::Index) when the index itself fails.
    fn locate_reusable(&self, id: &ChunkId) -> Result<Option<ChunkLocation>>;

    /// Enters a closed pack. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Index`](crate::Error::Index) when the index itself fails; the pack is then an orphan that a
    /// sweep or a rebuild adopts.
    fn publish(&self, pack: &ClosedPack) -> Result<()>;
}
