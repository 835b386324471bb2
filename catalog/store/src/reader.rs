//! Reading chunks: every reader's way from an id to its bytes.
//!
//! A chunk is decoded once, however many readers ask for it at the same time, is held against its id before
//! anyone sees it, and stays in a cache bounded in bytes. Bases of deltas go through the same cache: in a
//! second backup many windows stand on few of them. Sequential readers have the next chunks decoded ahead on
//! all cores.
//!
//! No lock is held while a chunk is located, read or decoded; a reader waits only for another one that is at
//! work on the very same chunk.

use std::cell::RefCell;
use std::sync::Arc;

use crate::codec::{Encoding, decode_into};
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::index::{ChunkIndex, ChunkLocation};
use crate::layout::MAX_CHUNK_BYTES;
use crate::storage::PackStorage;

mod ahead;
mod cache;

use ahead::ReadAhead;
use cache::{Cache, Found, Purpose};

/// Reads chunks of one repository, from any number of threads.
#[derive(Debug)]
pub struct ChunkReader {
    core: Arc<Core>,
    ahead: ReadAhead,
}

impl ChunkReader {
    /// A reader whose cache holds at most `cache_bytes` of decoded chunks.
    pub fn new(storage: Arc<dyn PackStorage>, index: Arc<dyn ChunkIndex>, cache_bytes: usize) -> Self {
        let core = Arc::new(Core {
            storage,
            index,
            cache: Cache::new(cache_bytes),
        });
        Self {
            ahead: ReadAhead::new(Arc::clone(&core)),
            core,
        }
    }

    /// A chunk's bytes, which are those its id names.
    ///
    /// # Errors
    /// [`Error::MissingChunk`], [`Error::MissingPack`] and [`Error::Damaged`] for data that is lost;
    /// [`Error::Io`] and [`Error::Index`] where another try may succeed.
    pub fn get(&self, id: &ChunkId) -> Result<Arc<[u8]>> {
        self.core.get(id)
    }

    /// Whether [`get`](Self::get) would find the chunk decoded.
    pub fn is_cached(&self, id: &ChunkId) -> bool {
        self.core.cache.holds(id)
    }

    /// Has chunks decoded in the background, for reads that are about to come. A hint: what does not fit the
    /// queue is dropped, and a chunk that cannot be read fails only when it is asked for.
    pub fn read_ahead(&self, ids: impl IntoIterator<Item = ChunkId>) {
        for id in ids {
            if !self.core.cache.is_known(&id) && !self.ahead.push(id) {
                break;
            }
        }
    }

    /// Reads, decodes and checks a chunk as it is on disk, whatever the cache holds.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn check(&self, id: &ChunkId) -> Result<()> {
        self.core.load(id, self.core.locate(id)?).map(|_| ())
    }
}

/// What readers and the read-ahead workers share.
#[derive(Debug)]
struct Core {
    storage: Arc<dyn PackStorage>,
    index: Arc<dyn ChunkIndex>,
    cache: Cache,
}

impl Core {
    fn get(&self, id: &ChunkId) -> Result<Arc<[u8]>> {
        let lead = match self.cache.find(id, Purpose::Chunk) {
            Found::Known(result) => return result,
            Found::Lead(lead) => lead,
        };
        let result = self.locate(id).and_then(|location| {
            if location.base.is_some() {
                lead.is_delta();
            }
            self.load(id, location)
        });
        lead.finish(result.clone());
        result
    }

    /// The base of a delta, which must be a whole chunk. Were that not insisted on, two damaged entries of an
    /// index could make deltas each other's base, and their readers wait for each other for ever.
    fn base(&self, id: &ChunkId) -> Result<Arc<[u8]>> {
        let lead = match self.cache.find(id, Purpose::Base) {
            Found::Known(result) => return result,
            Found::Lead(lead) => lead,
        };
        let result = match self.locate(id) {
            // Readers of this chunk itself may wait here; dropping the lead has them decode it on their own.
            Ok(location) if location.base.is_some() => return Err(base_is_delta(id)),
            Ok(location) => self.load(id, location),
            Err(error) => Err(error),
        };
        lead.finish(result.clone());
        result
    }

    fn locate(&self, id: &ChunkId) -> Result<ChunkLocation> {
        self.index.locate(id)?.ok_or(Error::MissingChunk(*id))
    }

    /// Reads, decodes and checks a chunk. When its pack is gone, a sweep has moved what lives in it: look
    /// once more.
    fn load(&self, id: &ChunkId, location: ChunkLocation) -> Result<Arc<[u8]>> {
        match self.load_from(id, &location) {
            Err(Error::MissingPack(pack)) => {
                let again = self.locate(id)?;
                if again == location {
                    Err(Error::MissingPack(pack))
                } else {
                    self.load_from(id, &again)
                }
            }
            loaded => loaded,
        }
    }

    fn load_from(&self, id: &ChunkId, location: &ChunkLocation) -> Result<Arc<[u8]>> {
        let damaged = |reason: String| {
            let ChunkLocation { pack, offset, .. } = location;
            Error::damaged(format!("Chunk {id} in pack {pack} at offset {offset}"), reason)
        };
        let raw_bytes = location.raw_bytes as usize;
        if raw_bytes.max(location.stored_bytes as usize) > MAX_CHUNK_BYTES {
            return Err(damaged("It claims to be larger than any chunk is".to_owned()));
        }
        if location.base.is_some() {
            // On its way from disk while the base is looked up, read and decoded.
            self.storage
                .will_read(location.pack, u64::from(location.offset), location.stored_bytes);
        }
        let base = location
            .base
            .map(|base| self.base(&base))
            .transpose()
            .map_err(|error| match error {
                lost if lost.is_damage() => damaged(format!("Its base cannot be read ({lost})")),
                other => other,
            })?;
        // Decoded where it will stay: zeroing the room first costs a fraction of copying it later.
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, raw_bytes).collect();
        let out = Arc::make_mut(&mut bytes);
        self.decode(location, base.as_deref(), out)
            .map_err(|error| match error {
                Error::Damaged { reason, .. } => damaged(reason),
                other => other,
            })?;
        if ChunkId::of(&bytes) == *id {
            Ok(bytes)
        } else {
            Err(damaged("Its bytes are not those its id names".to_owned()))
        }
    }

    fn decode(&self, location: &ChunkLocation, base: Option<&[u8]>, out: &mut [u8]) -> Result<()> {
        let (pack, offset) = (location.pack, u64::from(location.offset));
        if location.encoding == Encoding::Stored && location.stored_bytes == location.raw_bytes {
            return self.storage.read_at(pack, offset, out);
        }
        FRAME.with_borrow_mut(|frame| {
            frame.resize(location.stored_bytes as usize, 0);
            self.storage.read_at(pack, offset, frame)?;
            decode_into(frame, location.encoding, base, out)
                .map_err(|error| Error::damaged(format!("Pack {pack}"), error.to_string()))
        })
    }
}

thread_local! {
    /// A frame on its way from disk to the decoder; keeps its capacity from chunk to chunk.
    static FRAME: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn base_is_delta(id: &ChunkId) -> Error {
    Error::damaged(
        format!("Chunk {id}"),
        "It is the base of a delta and is found as a delta itself",
    )
}

#[cfg(test)]
mod tests;
