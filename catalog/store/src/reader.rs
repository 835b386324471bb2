//! Reading chunks: from an id to its bytes.
//!
//! A chunk is decoded once, however many readers request it at the same time. It is compared with its id before anyone
//! sees it, and stays in a cache bounded in bytes. A chunk that cannot be read at one place may be readable at another:
//! a sweep has moved it, or it was stored again because the first copy was damaged. Bases of deltas go through the same
//! cache: in a second backup many windows share few bases. For sequential readers, the next chunks are decoded ahead on
//! all cores.
//!
//! No lock is held while a chunk is located, read or decoded; a reader waits only for another reader of the very same
//! chunk.

use std::cell::RefCell;
use std::sync::Arc;

use crate::codec::{Encoding, decode_into};
use crate::counters::Counters;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::index::ChunkIndex;
use crate::layout::MAX_CHUNK_BYTES;
use crate::location::ChunkLocation;
use crate::pack::{explain, read_frame_into};
use crate::seal::{ChunkHash, SEAL_BYTES};
use crate::storage::PackStorage;

mod ahead;
mod cache;
mod runs;

use ahead::ReadAhead;
use cache::{Cache, Found, Purpose};
use runs::{Run, runs};

/// Reads chunks of one repository, from any number of threads.
#[derive(Debug)]
pub struct ChunkReader {
    core: Arc<Core>,
    ahead: ReadAhead,
}

impl ChunkReader {
    /// A reader whose cache holds at most `cache_bytes` of decoded chunks.
    pub fn new(
        storage: Arc<dyn PackStorage>,
        index: Arc<dyn ChunkIndex>,
        counters: Arc<Counters>,
        cache_bytes: usize,
    ) -> Self {
        let core = Arc::new(Core {
            storage,
            index,
            counters,
            cache: Cache::new(cache_bytes),
        });
        Self {
            ahead: ReadAhead::new(Arc::clone(&core)),
            core,
        }
    }

    /// A chunk's bytes, checked against its id.
    ///
    /// # Errors
    /// [`Error::MissingChunk`], [`Error::MissingPack`] and [`Error::Damaged`] for data that is lost;
    /// [`Error::Io`] and [`Error::Index`] where another try may succeed.
    pub fn get(&self, id: &ChunkId) -> Result<Arc<[u8]>> {
        self.core.get(id)
    }

    /// How the chunks are named.
    pub fn chunk_hash(&self) -> &ChunkHash {
        self.core.storage.keys().chunk_hash()
    }

    /// Whether [`get`](Self::get) would find the chunk decoded.
    pub fn is_cached(&self, id: &ChunkId) -> bool {
        self.core.cache.holds(id)
    }

    /// Decodes chunks in the background, for reads that are about to come. This is a hint: chunks that do not fit the
    /// queue are dropped, and a chunk that cannot be read fails only when it is requested.
    pub fn read_ahead(&self, ids: impl IntoIterator<Item = ChunkId>) {
        for id in ids {
            if !self.core.cache.is_known(&id) && !self.ahead.push(id) {
                break;
            }
        }
    }

    /// Has the storage fetch the frames of these chunks, and of their bases, for reads that are about to come. They are
    /// fetched in the order in which they lie there, and neighbours at once, so that a disk need not seek for each. This
    /// is a hint: what cannot be found is left out.
    pub(crate) fn fetch_ahead(&self, ids: &[ChunkId]) {
        if let Err(error) = self.core.fetch_ahead(ids) {
            tracing::debug!(%error, "Cannot fetch ahead");
        }
    }

    /// The counters of the repository that it reads.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.core.counters
    }

    /// Reads, decodes and checks a chunk as it is on disk at this one of its places, even if it is cached.
    ///
    /// # Errors
    /// As [`get`](Self::get); [`Error::LostBase`] when the damage is not here but at all places of the base.
    pub fn check(&self, id: &ChunkId, place: &ChunkLocation) -> Result<()> {
        self.core.load_from(id, place).map(|_| ())
    }
}

/// What readers and the read-ahead workers share.
#[derive(Debug)]
struct Core {
    storage: Arc<dyn PackStorage>,
    index: Arc<dyn ChunkIndex>,
    counters: Arc<Counters>,
    cache: Cache,
}

impl Core {
    fn fetch_ahead(&self, ids: &[ChunkId]) -> Result<()> {
        let unknown = |ids: &mut Vec<ChunkId>| {
            ids.retain(|id| !self.cache.is_known(id));
            ids.sort_unstable();
            ids.dedup();
        };
        let mut ids = ids.to_vec();
        unknown(&mut ids);
        let mut frames = self.index.locate_all(&ids)?;
        let mut bases: Vec<ChunkId> = frames.iter().filter_map(|frame| frame.base).collect();
        unknown(&mut bases);
        frames.extend(self.index.locate_all(&bases)?);
        for Run { pack, offset, bytes } in runs(&frames) {
            self.storage.will_read(pack, offset, bytes);
        }
        Ok(())
    }

    fn get(&self, id: &ChunkId) -> Result<Arc<[u8]>> {
        let lead = match self.find(id, Purpose::Chunk) {
            Found::Known(result) => return result,
            Found::Lead(lead) => lead,
        };
        let result = self.load(id, |place| {
            if place.base.is_some() {
                lead.is_delta();
            }
            true
        });
        lead.finish(result.clone());
        result
    }

    /// The base of a delta, which must be a whole chunk. Without this check, two damaged index entries could make
    /// deltas each other's base, and their readers would wait for each other forever.
    fn base(&self, id: &ChunkId) -> Result<Arc<[u8]>> {
        let lead = match self.find(id, Purpose::Base) {
            Found::Known(result) => return result,
            Found::Lead(lead) => lead,
        };
        let result = self.load(id, |place| place.base.is_none());
        if !matches!(&result, Err(error) if error.is_damage()) {
            // Damage is not handed on: readers of this chunk itself may wait here, and may find it as a delta. Dropping
            // the lead makes them look on their own.
            lead.finish(result.clone());
        }
        result
    }

    fn find(&self, id: &ChunkId, purpose: Purpose) -> Found<'_> {
        let found = self.cache.find(id, purpose);
        match &found {
            Found::Known(Ok(_)) => self.counters.cache_hit(),
            // Another reader's failure: neither a hit nor a decode of its own.
            Found::Known(Err(_)) => {}
            Found::Lead(_) => self.counters.cache_miss(),
        }
        found
    }

    /// Reads, decodes and checks a chunk at the best place that `take` accepts or, if that one is lost or damaged, at
    /// the next.
    fn load(&self, id: &ChunkId, take: impl Fn(&ChunkLocation) -> bool) -> Result<Arc<[u8]>> {
        let first = self.index.locate(id)?.ok_or(Error::MissingChunk(*id))?;
        let mut lost = if take(&first) {
            match self.load_from(id, &first) {
                Err(error) if error.is_damage() => error,
                loaded => return loaded,
            }
        } else {
            base_is_delta(id)
        };
        for place in self.index.places(id)? {
            if place == first || !take(&place) {
                continue;
            }
            match self.load_from(id, &place) {
                Err(error) if error.is_damage() => lost = error,
                loaded => {
                    if !matches!(lost, Error::MissingPack(_)) {
                        tracing::warn!("Read from another place: {lost}");
                    }
                    return loaded;
                }
            }
        }
        Err(lost)
    }

    fn load_from(&self, id: &ChunkId, location: &ChunkLocation) -> Result<Arc<[u8]>> {
        let damaged = |reason: String| Error::damaged(place_of(id, location), reason);
        let raw_bytes = location.raw_bytes as usize;
        if raw_bytes > MAX_CHUNK_BYTES || location.stored_bytes as usize > MAX_CHUNK_BYTES + SEAL_BYTES {
            return Err(damaged("It claims to be larger than any chunk is".to_owned()));
        }
        if location.base.is_some() {
            // Prefetched while the base is looked up, read and decoded.
            self.storage
                .will_read(location.pack, u64::from(location.offset), location.stored_bytes);
        }
        let base = location.base.map(|base| self.base_of(id, location, base));
        let base = base.transpose()?;
        // Decoded into its final place: zeroing that first costs a fraction of copying the chunk later.
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, raw_bytes).collect();
        let out = Arc::make_mut(&mut bytes);
        self.decode(id, location, base.as_deref(), out)
            .map_err(|error| match error {
                Error::Damaged { reason, .. } => self.explain(location, damaged(reason)),
                other => other,
            })?;
        if self.storage.keys().id_of(&bytes) == *id {
            self.counters.chunk_decoded(bytes.len());
            Ok(bytes)
        } else {
            Err(self.explain(
                location,
                damaged("Its bytes are not those its id names".to_owned()),
            ))
        }
    }

    /// A sealed pack is not damaged where no key is held.
    fn explain(&self, location: &ChunkLocation, damage: Error) -> Error {
        explain(self.storage.as_ref(), location.pack, damage)
    }

    fn base_of(&self, id: &ChunkId, location: &ChunkLocation, base: ChunkId) -> Result<Arc<[u8]>> {
        self.base(&base).map_err(|error| match error {
            lost if lost.is_damage() => Error::LostBase {
                what: place_of(id, location),
                base,
                reason: lost.to_string(),
            },
            other => other,
        })
    }

    fn decode(
        &self,
        id: &ChunkId,
        location: &ChunkLocation,
        base: Option<&[u8]>,
        out: &mut [u8],
    ) -> Result<()> {
        let (pack, offset) = (location.pack, u64::from(location.offset));
        let is_sealed = self.storage.keys().seals();
        if location.encoding == Encoding::Stored && location.stored_bytes == location.raw_bytes && !is_sealed
        {
            return self.storage.read_at(pack, offset, out);
        }
        FRAME.with_borrow_mut(|buffer| {
            let frame = read_frame_into(self.storage.as_ref(), id, location, buffer)?;
            decode_into(frame, location.encoding, base, out)
                .map_err(|error| Error::damaged(format!("Pack {pack}"), error.to_string()))
        })
    }
}

thread_local! {
    /// A frame on its way from disk to the decoder; keeps its capacity from chunk to chunk.
    static FRAME: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn place_of(id: &ChunkId, location: &ChunkLocation) -> String {
    let ChunkLocation { pack, offset, .. } = location;
    format!("Chunk {id} in pack {pack} at offset {offset}")
}

fn base_is_delta(id: &ChunkId) -> Error {
    Error::damaged(
        format!("Chunk {id}"),
        "It is the base of a delta and is found as a delta itself",
    )
}

#[cfg(test)]
mod tests;
