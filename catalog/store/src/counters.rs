//! What the readers and writers of one repository have done since it was opened, in numbers.
//!
//! A counter is an atomic number to which each event adds, in relaxed order: no lock, no allocation, a few nanoseconds.
//! Numbers only grow. A snapshot reads them one after the other while work goes on, so two numbers of one snapshot may
//! differ by the work of that moment. Each repository has counters of its own ([`Counters`] is shared by `Arc`).
//!
//! | counted | where |
//! |---|---|
//! | reads of packs, complete packs | [`CountedPacks`](crate::CountedPacks), around the storage |
//! | look-ups in the cache, decoded chunks | [`ChunkReader`](crate::ChunkReader) |
//! | chunks stored, chunks stored already | [`Depositor`](crate::Depositor) |

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

mod latencies;

pub use latencies::{LATENCY_BUCKETS, Latencies, LatencyCounts, latency_limit_us};

/// The counters of one repository.
#[derive(Debug, Default)]
pub struct Counters {
    pack_read_latency: Latencies,
    pack_reads_failed: Counter,
    pack_bytes_read: Counter,
    packs_written: Counter,
    pack_bytes_written: Counter,
    cache_hits: Counter,
    cache_misses: Counter,
    chunks_decoded: Counter,
    chunk_bytes_decoded: Counter,
    chunks_written: Counter,
    chunk_bytes_written: Counter,
    frame_bytes_written: Counter,
    chunks_deduplicated: Counter,
    chunk_bytes_deduplicated: Counter,
}

/// The numbers of [`Counters`] at one moment, all since the repository was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Reads of a part of a pack, also those that failed, and their latencies.
    pub pack_read_latency: LatencyCounts,
    /// Of these reads: failed, because the pack is missing or damaged or the storage cannot be reached.
    pub pack_reads_failed: u64,
    /// Bytes of packs that were read.
    pub pack_bytes_read: u64,
    /// Packs that became complete and durable.
    pub packs_written: u64,
    /// Bytes of these packs, with headers and footers.
    pub pack_bytes_written: u64,
    /// Requests for a chunk that was in the cache, or that another reader was decoding already.
    pub cache_hits: u64,
    /// Requests for a chunk that had to be decoded, also by read-ahead.
    pub cache_misses: u64,
    /// Chunks decoded and found to be what their ids name. The base of a delta counts when it is decoded for it.
    pub chunks_decoded: u64,
    /// Bytes of these chunks.
    pub chunk_bytes_decoded: u64,
    /// New chunks that a depositor appended to a pack.
    pub chunks_written: u64,
    /// Bytes of these chunks, before compression.
    pub chunk_bytes_written: u64,
    /// Bytes of their frames, which are compressed chunks or deltas.
    pub frame_bytes_written: u64,
    /// Chunks that were put into a depositor and are stored already. Holes do not count.
    pub chunks_deduplicated: u64,
    /// Bytes of these chunks.
    pub chunk_bytes_deduplicated: u64,
}

impl Counters {
    /// The numbers at this moment.
    pub fn snapshot(&self) -> Counts {
        Counts {
            pack_read_latency: self.pack_read_latency.snapshot(),
            pack_reads_failed: self.pack_reads_failed.get(),
            pack_bytes_read: self.pack_bytes_read.get(),
            packs_written: self.packs_written.get(),
            pack_bytes_written: self.pack_bytes_written.get(),
            cache_hits: self.cache_hits.get(),
            cache_misses: self.cache_misses.get(),
            chunks_decoded: self.chunks_decoded.get(),
            chunk_bytes_decoded: self.chunk_bytes_decoded.get(),
            chunks_written: self.chunks_written.get(),
            chunk_bytes_written: self.chunk_bytes_written.get(),
            frame_bytes_written: self.frame_bytes_written.get(),
            chunks_deduplicated: self.chunks_deduplicated.get(),
            chunk_bytes_deduplicated: self.chunk_bytes_deduplicated.get(),
        }
    }

    /// A read of a pack; `bytes` is `None` when it failed.
    pub(crate) fn pack_read(&self, took: Duration, bytes: Option<usize>) {
        self.pack_read_latency.add(took);
        match bytes {
            Some(bytes) => self.pack_bytes_read.add(bytes as u64),
            None => self.pack_reads_failed.add(1),
        }
    }

    /// A pack that is complete and durable.
    pub(crate) fn pack_written(&self, bytes: u64) {
        self.packs_written.add(1);
        self.pack_bytes_written.add(bytes);
    }

    pub(crate) fn cache_hit(&self) {
        self.cache_hits.add(1);
    }

    pub(crate) fn cache_miss(&self) {
        self.cache_misses.add(1);
    }

    /// A chunk of this size that was decoded and checked.
    pub(crate) fn chunk_decoded(&self, bytes: usize) {
        self.chunks_decoded.add(1);
        self.chunk_bytes_decoded.add(bytes as u64);
    }

    /// A chunk that was appended to a pack: its own size, and that of its frame.
    pub(crate) fn chunk_written(&self, bytes: usize, frame_bytes: usize) {
        self.chunks_written.add(1);
        self.chunk_bytes_written.add(bytes as u64);
        self.frame_bytes_written.add(frame_bytes as u64);
    }

    /// A chunk of this size that is stored already.
    pub(crate) fn chunk_deduplicated(&self, bytes: usize) {
        self.chunks_deduplicated.add(1);
        self.chunk_bytes_deduplicated.add(bytes as u64);
    }
}

/// One line for the log.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} reads of packs ({} bytes, {} failed, {} us on average), {} chunks decoded ({} bytes), cache {} hits \
             and {} misses, {} chunks written ({} bytes, stored in {}), {} deduplicated ({} bytes), {} packs written \
             ({} bytes)",
            self.pack_read_latency.count,
            self.pack_bytes_read,
            self.pack_reads_failed,
            self.pack_read_latency.mean().as_micros(),
            self.chunks_decoded,
            self.chunk_bytes_decoded,
            self.cache_hits,
            self.cache_misses,
            self.chunks_written,
            self.chunk_bytes_written,
            self.frame_bytes_written,
            self.chunks_deduplicated,
            self.chunk_bytes_deduplicated,
            self.packs_written,
            self.pack_bytes_written,
        )
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
