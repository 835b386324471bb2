//! The index that the store needs to find chunks; the catalog implements it with SQLite.

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
    /// For readers: where the chunk is, even if its pack is condemned. `None` when no known pack holds it.
    ///
    /// # Errors
    /// [`Error::Index`](crate::Error::Index) when the index itself fails.
    fn locate(&self, id: &ChunkId) -> Result<Option<ChunkLocation>>;

    /// For readers that will need many chunks soon: where those are that are known, in any order.
    ///
    /// # Errors
    /// [`Error::Index`](crate::Error::Index) when the index itself fails.
    fn locate_all(&self, ids: &[ChunkId]) -> Result<Vec<ChunkLocation>> {
        let places = ids.iter().map(|id| self.locate(id));
        places.filter_map(Result::transpose).collect()
    }

    /// For readers that cannot read the chunk at its [located](Self::locate) place: all its places, the best first.
    ///
    /// # Errors
    /// [`Error::Index`](crate::Error::Index) when the index itself fails.
    fn places(&self, id: &ChunkId) -> Result<Vec<ChunkLocation>> {
        Ok(self.locate(id)?.into_iter().collect())
    }

    /// For writers: where the chunk is, in a pack that is not condemned and not known to be damaged there. `None`
    /// means: store it again.
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
