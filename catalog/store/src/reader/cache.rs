//! Decoded chunks, and the decodes in progress.
//!
//! Sharded by chunk id, so that readers on many cores rarely contend for a lock. The first reader of a chunk
//! that is not cached *leads*: it decodes, all others wait for its result. A lead that is given up, even by a
//! panic, wakes them, and one of them becomes the new leader.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use lru::LruCache;

use crate::error::Result;
use crate::id::ChunkId;
use crate::layout::MAX_CHUNK_BYTES;
use crate::sync::{lock, wait};

use super::base_is_delta;

/// Maximum number of shards: beyond this, locks held for a fraction of a microsecond are no bottleneck on any
/// host.
const MAX_SHARDS: usize = 16;

/// What an entry costs in addition to the chunk's bytes: id, list and table entries, allocation.
const ENTRY_BYTES: usize = 160;

/// What a chunk is looked up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// For its own sake.
    Chunk,
    /// As the base of a delta.
    Base,
}

/// Outcome of a look-up.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// It was cached, or another reader has just decoded it or failed to.
    Known(Result<Arc<[u8]>>),
    /// The caller must decode it.
    Lead(Lead<'a>),
}

#[derive(Debug)]
pub(super) struct Cache {
    shards: Box<[Mutex<Shard>]>,
    shard_bytes: usize,
}

#[derive(Debug)]
struct Shard {
    ready: LruCache<ChunkId, Arc<[u8]>>,
    /// What the chunks in `ready` cost together.
    bytes: usize,
    flights: HashMap<ChunkId, Arc<Flight>>,
}

impl Cache {
    /// A cache of at most `bytes`. It has as many shards as can hold a largest chunk each.
    pub(super) fn new(bytes: usize) -> Self {
        let shards = (bytes / (MAX_CHUNK_BYTES + ENTRY_BYTES)).clamp(1, MAX_SHARDS);
        let shard = || Shard {
            ready: LruCache::unbounded(),
            bytes: 0,
            flights: HashMap::new(),
        };
        Self {
            shards: (0..shards).map(|_| Mutex::new(shard())).collect(),
            shard_bytes: bytes / shards,
        }
    }

    /// Finds a chunk, waiting for a decode that is under way.
    pub(super) fn find(&self, id: &ChunkId, purpose: Purpose) -> Found<'_> {
        loop {
            let flight = {
                let mut shard = self.shard(id);
                if let Some(bytes) = shard.ready.get(id) {
                    return Found::Known(Ok(Arc::clone(bytes)));
                }
                let Some(flight) = shard.flights.get(id) else {
                    let flight = Arc::new(Flight::default());
                    shard.flights.insert(*id, Arc::clone(&flight));
                    return Found::Lead(Lead {
                        cache: self,
                        id: *id,
                        flight,
                        finished: false,
                    });
                };
                Arc::clone(flight)
            };
            if let Some(result) = flight.wait(id, purpose) {
                return Found::Known(result);
            }
        }
    }

    /// Whether the chunk is decoded.
    pub(super) fn holds(&self, id: &ChunkId) -> bool {
        self.shard(id).ready.contains(id)
    }

    /// Whether the chunk is decoded or being decoded.
    pub(super) fn is_known(&self, id: &ChunkId) -> bool {
        let shard = self.shard(id);
        shard.ready.contains(id) || shard.flights.contains_key(id)
    }

    fn shard(&self, id: &ChunkId) -> MutexGuard<'_, Shard> {
        let [first, ..] = id.0;
        let shard = &self.shards[usize::from(first) % self.shards.len()];
        // No code that holds this lock panics half-way through a change.
        lock(shard)
    }

    /// Ends a flight and caches its result. Evicted chunks are freed after the lock is released.
    fn land(&self, id: &ChunkId, bytes: Option<&Arc<[u8]>>) {
        let mut evicted = Vec::new();
        let mut shard = self.shard(id);
        shard.flights.remove(id);
        let Some(bytes) = bytes.filter(|bytes| cost(bytes) <= self.shard_bytes) else {
            return;
        };
        shard.bytes += cost(bytes);
        if let Some(replaced) = shard.ready.put(*id, Arc::clone(bytes)) {
            shard.bytes -= cost(&replaced);
        }
        while shard.bytes > self.shard_bytes {
            let Some((_, oldest)) = shard.ready.pop_lru() else {
                break;
            };
            shard.bytes -= cost(&oldest);
            evicted.push(oldest);
        }
        drop(shard);
    }
}

fn cost(bytes: &[u8]) -> usize {
    bytes.len() + ENTRY_BYTES
}

/// The duty to decode a chunk that others may already wait for.
#[derive(Debug)]
pub(super) struct Lead<'a> {
    cache: &'a Cache,
    id: ChunkId,
    flight: Arc<Flight>,
    finished: bool,
}

impl Lead<'_> {
    /// Announces that the chunk is a delta, so that nobody waits for it as a base.
    pub(super) fn is_delta(&self) {
        self.flight.set(State::DecodingDelta);
    }

    /// Hands the result to the cache and to all waiting readers. A failure is not cached: the next reader
    /// tries again.
    pub(super) fn finish(mut self, result: Result<Arc<[u8]>>) {
        self.finished = true;
        self.cache.land(&self.id, result.as_ref().ok());
        self.flight.set(State::Done(result));
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.cache.land(&self.id, None);
            self.flight.set(State::GivenUp);
        }
    }
}

/// A decode in progress.
#[derive(Debug, Default)]
struct Flight {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Decoding,
    DecodingDelta,
    Done(Result<Arc<[u8]>>),
    GivenUp,
}

impl Flight {
    fn set(&self, state: State) {
        *lock(&self.state) = state;
        self.changed.notify_all();
    }

    /// Waits for the leader's result; `None` when it gave up.
    fn wait(&self, id: &ChunkId, purpose: Purpose) -> Option<Result<Arc<[u8]>>> {
        let mut state = lock(&self.state);
        loop {
            match &*state {
                State::DecodingDelta if purpose == Purpose::Base => return Some(Err(base_is_delta(id))),
                State::Decoding | State::DecodingDelta => {
                    state = wait(&self.changed, state);
                }
                State::Done(result) => return Some(result.clone()),
                State::GivenUp => return None,
            }
        }
    }
}
