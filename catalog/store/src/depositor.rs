//! The way in: bytes become chunks, chunks become frames, frames fill packs.
//!
//! ```text
//! put ──► job queue ──► workers (all cores) ──► frame queue ──► packer ──► closer
//!         JOB_QUEUE     hash, compare, look     FRAME_QUEUE     appends    fsync, rename,
//!                       up, compress                            frames     index
//! ```
//!
//! Every arrow is a bounded queue, so a slow disk slows `put` down and nothing piles up in memory. Arrows only point
//! right: no stage waits for a stage to its left, so nothing can block forever.
//!
//! Invariants:
//! - One depositor stores a chunk at most once: it remembers the ids in packs that are not in the index yet.
//! - A delta's base is a whole chunk that the index gives as reusable; never one of a pack that is still open.
//! - A pack enters the index only after it is durable under its final name. A crash leaves a temporary file, or a
//!   finished pack that is not in the index; never a reference to bytes that do not exist.
//! - The first error stops everything: every later call returns it, and so does `flush`.

use std::num::NonZero;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::Result;
use crate::id::{ChunkId, PackId};
use crate::index::ChunkIndex;
use crate::pack::Record;
use crate::reader::ChunkReader;
use crate::storage::PackStorage;
use crate::sync::lock;

mod claims;
mod drift;
mod intake;
mod packer;
mod patch;
mod status;

use claims::Claims;
pub use drift::{has_drifted, may_have_drifted};
use intake::{Content, Intake, Job};
use packer::{CLOSE_QUEUE, Closer, Packer, ToPacker};
pub(crate) use patch::Patch;
use status::{Status, spawn};

/// Puts that wait for a worker. The queue is long enough that workers find work while the receiving thread is not
/// scheduled (24 data windows keep two workers busy for 3 ms). It takes 24 MiB when all are windows of streams.
const JOB_QUEUE: usize = 24;

/// Frames that wait for the packer: 12 MiB at most, for windows of streams that do not compress.
const FRAME_QUEUE: usize = 12;

/// Empty buffers kept for the next puts: as many as can be in use at once, so that none is ever allocated twice.
const POOLED_BUFFERS: usize = JOB_QUEUE + MAX_WORKERS;

/// Maximum number of workers. Each holds one window, its base and its frame. With this many workers and the queues full
/// of streams' windows, that is below 84 MiB, on two cores below 42 MiB; data windows need a tenth of it.
const MAX_WORKERS: usize = 16;

/// The kind of the bytes put: decides the compression level, and whether zeros are a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentClass {
    /// Windows of files that are changed in place.
    Data,
    /// Windows of files that are written once, and read from front to back.
    Stream,
    /// Pieces of file maps, and listings: always chunks, never holes.
    Map,
}

/// How a [`Depositor`] works.
#[derive(Debug, Clone, Copy)]
pub struct DepositOptions {
    /// zstd level of whole chunks of data. 2 by default: it stored a 2.2 GB database in 346 MB. Level 1 made 360 MB in
    /// a tenth less CPU time, level 3 made 350 MB in an eighth more.
    pub whole_level: i32,
    /// zstd level of delta chunks.
    pub delta_level: i32,
    /// zstd level of whole chunks of [`ContentClass::Stream`].
    pub stream_level: i32,
    /// zstd level of whole pieces and listings.
    pub map_level: i32,
    /// Threads that hash and compress; 0 for one on each core.
    pub workers: usize,
    /// Whether chunks of the previous tree may be referenced again without an index look-up: they stay where they are
    /// until this run has ended.
    pub trust_previous: bool,
}

impl Default for DepositOptions {
    fn default() -> Self {
        Self {
            whole_level: 2,
            delta_level: 3,
            stream_level: 3,
            map_level: 3,
            workers: 0,
            trust_previous: true,
        }
    }
}

/// The result of one put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deposit {
    /// The chunk; `None` for a hole.
    pub chunk: Option<ChunkId>,
    /// CRC-32C of the bytes.
    pub crc32c: u32,
    /// Bytes of the frame that was added for them; 0 when nothing had to be stored.
    pub new_stored_bytes: u32,
}

/// What went through a [`Depositor`] so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DepositTotals {
    /// Bytes put.
    pub bytes_in: u64,
    /// Number of puts.
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

/// Called once with the result of a put, on one of the depositor's threads. It must be quick, and may call
/// [`Depositor::put_now`] but not [`Depositor::put`].
pub type Done = Box<dyn FnOnce(Result<Deposit>) + Send>;

/// Stores bytes as chunks in packs; see the [module](self).
#[derive(Debug)]
pub struct Depositor {
    // The field order matters: threads end when the queue they read from has no sender left, and are joined last.
    jobs: Sender<Job>,
    intake: Arc<Intake>,
    free_buffers: Receiver<Vec<u8>>,
    _threads: Threads,
}

impl Depositor {
    /// Starts the threads. What is stored counts in the counters of `reader`.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        storage: Arc<dyn PackStorage>,
        index: Arc<dyn ChunkIndex>,
        reader: Arc<ChunkReader>,
        options: DepositOptions,
    ) -> Result<Self> {
        let status = Arc::new(Status::default());
        let claims = Arc::new(Claims::default());
        let (to_workers, jobs) = bounded(JOB_QUEUE);
        let (to_packer, frames) = bounded(FRAME_QUEUE);
        let (to_closer, packs) = bounded(CLOSE_QUEUE);
        let (used_buffers, free_buffers) = bounded(POOLED_BUFFERS);
        let finished = Arc::default();
        let closer = Closer {
            index: Arc::clone(&index),
            status: Arc::clone(&status),
            claims: Arc::clone(&claims),
            finished: Arc::clone(&finished),
        };
        let mut packer = Packer {
            storage,
            counters: Arc::clone(reader.counters()),
            status: Arc::clone(&status),
            closer: to_closer,
            open: None,
        };
        let intake = Arc::new(Intake {
            index,
            reader,
            options,
            status,
            claims,
            finished,
            packer: to_packer,
            used_buffers,
            totals: Mutex::default(),
        });
        let status = &intake.status;
        let mut threads = vec![
            spawn("pack-closer", status, move || closer.run(&packs))?,
            spawn("pack-writer", status, move || packer.run(&frames))?,
        ];
        for _ in 0..worker_count(options.workers) {
            let (intake, jobs) = (Arc::clone(&intake), jobs.clone());
            threads.push(spawn("depositor", status, move || intake.run(&jobs))?);
        }
        Ok(Self {
            jobs: to_workers,
            intake,
            free_buffers,
            _threads: Threads(threads),
        })
    }

    /// An empty buffer of at least `capacity` bytes; one that an earlier `put` no longer needs, if there is one.
    pub fn buffer(&self, capacity: usize) -> Vec<u8> {
        let mut buffer = self.free_buffers.try_recv().unwrap_or_default();
        buffer.reserve_exact(capacity);
        buffer
    }

    /// Hands bytes to the workers; `similar` is the chunk that was at this position before. Blocks while the queue is
    /// full. When it returns an error, `done` is not called.
    ///
    /// # Errors
    /// The first error of anything put before.
    pub fn put(
        &self,
        bytes: Vec<u8>,
        similar: Option<ChunkId>,
        class: ContentClass,
        done: Done,
    ) -> Result<()> {
        self.send(Content::Whole { bytes, similar }, class, done)
    }

    /// Hands a window to the workers as changes against its earlier content, which is also its similar chunk.
    ///
    /// # Errors
    /// As [`put`](Self::put). If the earlier content cannot be read, the whole run fails.
    pub(crate) fn put_patched(&self, patch: Patch, class: ContentClass, done: Done) -> Result<()> {
        self.send(Content::Patched(patch), class, done)
    }

    /// Says which chunks the next patches will change, so that they are fetched in the order of the disk.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub(crate) fn expect_patches_of(&self, ids: Vec<ChunkId>) -> Result<()> {
        // No answer is needed.
        self.send(Content::Expected(ids), ContentClass::Data, Box::new(drop))
    }

    fn send(&self, content: Content, class: ContentClass, done: Done) -> Result<()> {
        let ticket = self.intake.status.begin()?;
        let job = Job {
            content,
            class,
            done,
            ticket,
        };
        self.jobs.send(job).map_err(|_| self.intake.status.panicked())
    }

    /// Whether chunks of the previous tree may be referenced again without an [index look-up](Self::is_stored).
    pub(crate) fn trusts_previous(&self) -> bool {
        self.intake.options.trust_previous
    }

    /// Whether new references to this chunk are allowed.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(crate) fn is_stored(&self, id: &ChunkId) -> Result<bool> {
        Ok(self.intake.index.locate_reusable(id)?.is_some())
    }

    /// As [`put`](Self::put), but stores the bytes on the calling thread.
    ///
    /// # Errors
    /// The first error of anything put before, or this one's.
    pub fn put_now(&self, bytes: &[u8], similar: Option<ChunkId>, class: ContentClass) -> Result<Deposit> {
        self.intake.deposit(bytes, similar, class)
    }

    /// Waits until every put so far has been answered. This does not make the data durable.
    ///
    /// # Errors
    /// The first error of anything put before.
    pub fn drain(&self) -> Result<()> {
        self.intake.status.wait_idle()
    }

    /// Waits for everything put so far, writes the records into the last pack, closes it and enters it in the index.
    /// When this returns, everything put and recorded is durable and can be read. Returns the packs that were
    /// finished since the last flush; none when there was nothing new.
    ///
    /// # Errors
    /// The first error of anything put before, or of closing a pack.
    pub fn flush(&self, records: Vec<Record>) -> Result<Vec<PackId>> {
        self.close_packs(records)?;
        Ok(std::mem::take(&mut *lock(&self.intake.finished)))
    }

    /// Makes everything put so far readable. The next flush still returns the packs that this closes.
    pub(crate) fn publish(&self) -> Result<()> {
        self.close_packs(Vec::new())
    }

    /// Where bases of deltas are read from: the chunks of this repository.
    pub(crate) fn reader(&self) -> &Arc<ChunkReader> {
        &self.intake.reader
    }

    fn close_packs(&self, records: Vec<Record>) -> Result<()> {
        self.drain()?;
        let (flushed, answer) = bounded(1);
        let status = &self.intake.status;
        let asked = self.intake.packer.send(ToPacker::Flush(records, flushed));
        asked.map_err(|_| status.panicked())?;
        answer.recv().map_err(|_| status.panicked())?
    }

    /// What went through so far.
    pub fn totals(&self) -> DepositTotals {
        *lock(&self.intake.totals)
    }
}

/// Joined when the depositor is dropped. Full packs are still closed then, for the next run to reuse; the open pack is
/// discarded.
#[derive(Debug)]
struct Threads(Vec<JoinHandle<()>>);

impl Drop for Threads {
    fn drop(&mut self) {
        let this = thread::current().id();
        if self.0.iter().any(|thread| thread.thread().id() == this) {
            // A `done` on a worker held the last reference: a worker cannot join itself.
            return;
        }
        for thread in self.0.drain(..) {
            // The threads catch their panics: the result carries nothing.
            let _panic = thread.join();
        }
    }
}

fn worker_count(wanted: usize) -> usize {
    let cores = || thread::available_parallelism().map_or(1, NonZero::get);
    if wanted == 0 {
        cores().min(MAX_WORKERS)
    } else {
        wanted.min(MAX_WORKERS)
    }
}

#[cfg(test)]
mod tests;
