//! The way in: bytes become chunks, chunks become frames, frames fill packs.
//!
//! ```text
//! put ──► job queue ──► workers (all cores) ──► frame queue ──► packer ──► closer
//!         JOB_QUEUE     hash, compare, look     FRAME_QUEUE     appends    fsync, rename,
//!                       up, compress                            frames     index
//! ```
//!
//! Every arrow is a bounded queue, so a slow disk slows `put` down and nothing piles up in memory. Arrows only point
//! right: nothing waits for what stands left of it, so nothing can block for ever.
//!
//! Invariants:
//! - A chunk is stored at most once by one depositor: the ids in packs that the index does not know yet are
//!   remembered ([`claims`]).
//! - A delta's base is a whole chunk that the index gives as reusable; never one of a pack that is still open.
//! - A pack is in the index only after it is durable under its final name. A crash leaves a temporary file, or a
//!   finished pack that the index does not know; never a reference to bytes that are not there.
//! - The first error stops everything: it is returned by every later call, and by `flush`.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::id::{ChunkId, PackId};
use crate::index::ChunkIndex;
use crate::pack::Record;
use crate::reader::ChunkReader;
use crate::storage::PackStorage;

/// What kind of bytes are put: decides the compression level, and whether zeros are a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentClass {
    /// Windows of relation and other data files.
    Data,
    /// Windows of WAL.
    Wal,
    /// Pieces of file maps, and listings: always chunks, never holes.
    Map,
}

/// How a [`Depositor`] works.
#[derive(Debug, Clone, Copy)]
pub struct DepositOptions {
    /// zstd level of whole chunks of data.
    pub whole_level: i32,
    /// zstd level of delta chunks.
    pub delta_level: i32,
    /// zstd level of whole chunks of WAL.
    pub wal_level: i32,
    /// zstd level of whole pieces and listings.
    pub map_level: i32,
    /// Threads that hash and compress; 0 for one on each core.
    pub workers: usize,
}

impl Default for DepositOptions {
    fn default() -> Self {
        Self { whole_level: 1, delta_level: 3, wal_level: 3, map_level: 3, workers: 0 }
    }
}

/// What became of the bytes put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deposit {
    /// The chunk; `None` for a hole.
    pub chunk: Option<ChunkId>,
    /// CRC-32C of the bytes.
    pub crc32c: u32,
    /// Bytes of the frame that was added for them; 0 when nothing had to be.
    pub new_stored_bytes: u32,
}

/// What went through a [`Depositor`] so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DepositTotals {
    /// Bytes put.
    pub bytes_in: u64,
    /// Times something was put.
    pub chunks: u64,
    /// Of these: all zeros, nothing stored.
    pub holes: u64,
    /// Of these: known already, nothing stored.
    pub reused: u64,
    /// Of these: stored whole.
    pub new_whole: u64,
    /// Of these: stored as a delta.
    pub new_delta: u64,
    /// Bytes of the frames added.
    pub new_stored_bytes: u64,
}

/// Called once with what became of the bytes, on one of the depositor's threads: it must be quick, and may call
/// [`Depositor::put_now`] but not [`Depositor::put`].
pub type Done = Box<dyn FnOnce(Result<Deposit>) + Send>;

/// See the [module](self).
#[derive(Debug)]
pub struct Depositor {}

impl Depositor {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        _storage: Arc<dyn PackStorage>,
        _index: Arc<dyn ChunkIndex>,
        _reader: Arc<ChunkReader>,
        _options: DepositOptions,
    ) -> Result<Self> {
        Err(Error::Invalid("not yet".to_owned()))
    }

    /// An empty buffer of at least `capacity` bytes, one that an earlier `put` has done with where there is one.
    pub fn buffer(&self, capacity: usize) -> Vec<u8> {
        Vec::with_capacity(capacity)
    }

    /// Hands bytes to the workers; `similar` is the chunk that stood at this place before. Blocks while the queue is
    /// full. When it returns an error, `done` is not called.
    ///
    /// # Errors
    /// The first error of anything put before.
    pub fn put(&self, _bytes: Vec<u8>, _similar: Option<ChunkId>, _class: ContentClass, _done: Done) -> Result<()> {
        Err(Error::Invalid("not yet".to_owned()))
    }

    /// Does the same on the calling thread.
    ///
    /// # Errors
    /// The first error of anything put before, or this one's.
    pub fn put_now(&self, _bytes: &[u8], _similar: Option<ChunkId>, _class: ContentClass) -> Result<Deposit> {
        Err(Error::Invalid("not yet".to_owned()))
    }

    /// Waits until everything put so far has been answered. That does not make it durable.
    ///
    /// # Errors
    /// The first error of anything put before.
    pub fn drain(&self) -> Result<()> {
        Err(Error::Invalid("not yet".to_owned()))
    }

    /// Waits for everything put so far, writes the records into the last pack, closes it and enters it in the index.
    /// When this returns, everything put and recorded is durable and can be read. Returns the packs that were
    /// finished since the last flush; none when there was nothing new.
    ///
    /// # Errors
    /// The first error of anything put before, or of closing a pack.
    pub fn flush(&self, _records: Vec<Record>) -> Result<Vec<PackId>> {
        Err(Error::Invalid("not yet".to_owned()))
    }

    /// What went through so far.
    pub fn totals(&self) -> DepositTotals {
        DepositTotals::default()
    }
}
