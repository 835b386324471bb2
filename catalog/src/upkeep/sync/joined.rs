//! Reads chunks of a node and of its primary through one reader: here where they are here, from the primary otherwise.

use std::sync::Arc;
use std::time::Duration;

use barmanfs_store::{
    ChunkId, ChunkIndex, ChunkLocation, ChunkReader, ClosedPack, Counters, Keys, Listed, PackId, PackStorage,
    PackUpload, Part, PartMark,
};

use crate::index::chunk_index::places;
use crate::index::db::Db;
use crate::index::repository::Repository;

/// Cache of decoded chunks: listings and pieces of maps, and the bases of deltas.
const CACHE_BYTES: usize = 64 << 20;

/// A reader of both.
pub(super) fn reader(node: &Repository, primary: &Arc<Db>, storage: &Arc<dyn PackStorage>) -> ChunkReader {
    let index = JoinedIndex {
        node: Arc::clone(&node.db),
        primary: Arc::clone(primary),
    };
    let packs = JoinedPacks {
        node: Arc::clone(&node.storage),
        primary: Arc::clone(storage),
        keys: node.storage.keys().joined(storage.keys()),
    };
    ChunkReader::new(
        Arc::new(packs),
        Arc::new(index),
        Arc::new(Counters::default()),
        CACHE_BYTES,
    )
}

/// The places of both.
#[derive(Debug)]
struct JoinedIndex {
    node: Arc<Db>,
    primary: Arc<Db>,
}

impl ChunkIndex for JoinedIndex {
    fn locate(&self, id: &ChunkId) -> barmanfs_store::Result<Option<ChunkLocation>> {
        Ok(self.places(id)?.into_iter().next())
    }

    fn places(&self, id: &ChunkId) -> barmanfs_store::Result<Vec<ChunkLocation>> {
        let here = self.node.read(|db| places(db, id))?;
        let there = self.primary.read(|db| places(db, id))?;
        let (good, damaged): (Vec<_>, Vec<_>) = here.into_iter().partition(|place| !place.damaged);
        let all = good.into_iter().chain(there).chain(damaged);
        Ok(all.map(|place| place.location).collect())
    }

    fn locate_reusable(&self, _id: &ChunkId) -> barmanfs_store::Result<Option<ChunkLocation>> {
        Err(only_reads())
    }

    fn publish(&self, _pack: &ClosedPack) -> barmanfs_store::Result<()> {
        Err(only_reads())
    }
}

/// The packs of both.
#[derive(Debug)]
struct JoinedPacks {
    node: Arc<dyn PackStorage>,
    primary: Arc<dyn PackStorage>,
    keys: Keys,
}

impl PackStorage for JoinedPacks {
    fn keys(&self) -> &Keys {
        &self.keys
    }

    fn begin(&self) -> barmanfs_store::Result<Box<dyn PackUpload>> {
        Err(only_reads())
    }

    fn begin_copy(&self, _id: PackId) -> barmanfs_store::Result<Box<dyn PackUpload>> {
        Err(only_reads())
    }

    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> barmanfs_store::Result<()> {
        match self.node.read_at(id, offset, buf) {
            Err(barmanfs_store::Error::MissingPack(_)) => self.primary.read_at(id, offset, buf),
            read => read,
        }
    }

    // It is not known which of the two has the pack.
    fn will_read(&self, _id: PackId, _offset: u64, _bytes: u32) {}

    fn bytes(&self, id: PackId) -> barmanfs_store::Result<u64> {
        match self.node.bytes(id) {
            Err(barmanfs_store::Error::MissingPack(_)) => self.primary.bytes(id),
            found => found,
        }
    }

    fn list(
        &self,
        _each: &mut dyn FnMut(PackId) -> barmanfs_store::Result<()>,
    ) -> barmanfs_store::Result<()> {
        Err(only_reads())
    }

    fn part_mark(&self, _part: Part) -> barmanfs_store::Result<PartMark> {
        Ok(PartMark::Unknown)
    }

    fn list_part(
        &self,
        _part: Part,
        _each: &mut dyn FnMut(Listed) -> barmanfs_store::Result<()>,
    ) -> barmanfs_store::Result<()> {
        Err(only_reads())
    }

    fn remove(&self, _id: PackId) -> barmanfs_store::Result<()> {
        Err(only_reads())
    }

    fn settle(&self, _packs: &[PackId]) -> barmanfs_store::Result<()> {
        Err(only_reads())
    }

    fn remove_abandoned(&self, _older_than: Duration) -> barmanfs_store::Result<usize> {
        Err(only_reads())
    }
}

fn only_reads() -> barmanfs_store::Error {
    barmanfs_store::Error::Invalid("The packs of a node and its primary are only read together".to_owned())
}
