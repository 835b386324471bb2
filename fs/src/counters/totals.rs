//! The counters that a mount shows in its status, for `metrics`.

use barmanfs_store::Counts;
use serde::{Deserialize, Serialize};

use super::{KindCounts, RequestCounts};

/// What a mount has done since it began. Numbers only grow while it lives.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountCounters {
    /// The requests of each kind that it has answered.
    pub requests: Vec<RequestTotals>,
    /// The answers that were an error.
    pub errors: Vec<ErrorTotals>,
    /// Bytes that it has sent to readers.
    pub bytes_read: u64,
    /// Bytes of packs that it has read for that.
    pub pack_bytes_read: u64,
    /// Reads of packs that failed.
    pub pack_reads_failed: u64,
    /// Chunks that it has decoded.
    pub chunks_decoded: u64,
    /// Bytes of these chunks.
    pub chunk_bytes_decoded: u64,
    /// Requests for a chunk that was in the cache.
    pub cache_hits: u64,
    /// Requests for a chunk that had to be decoded.
    pub cache_misses: u64,
}

/// The requests of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestTotals {
    /// The kind, as FUSE calls it: `read`.
    pub kind: String,
    /// How many.
    pub count: u64,
    /// How long they took altogether.
    pub seconds: f64,
}

/// The errors with one number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorTotals {
    /// The number, as in `errno.h`; `None` for one that Linux does not have.
    pub errno: Option<u32>,
    /// How many.
    pub count: u64,
}

impl MountCounters {
    /// The numbers of the requests, and of what they read from the repository.
    pub(crate) fn of(requests: &RequestCounts, stored: &Counts) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a month are exact")]
        let totals = |KindCounts { kind, latency }: &KindCounts| RequestTotals {
            kind: kind.name().to_owned(),
            count: latency.count,
            seconds: latency.sum_ns as f64 / 1e9,
        };
        let errors = requests.errors.iter().map(|error| ErrorTotals {
            errno: error.errno,
            count: error.count,
        });
        Self {
            requests: requests.requests.iter().map(totals).collect(),
            errors: errors.collect(),
            bytes_read: requests.bytes_read,
            pack_bytes_read: stored.pack_bytes_read,
            pack_reads_failed: stored.pack_reads_failed,
            chunks_decoded: stored.chunks_decoded,
            chunk_bytes_decoded: stored.chunk_bytes_decoded,
            cache_hits: stored.cache_hits,
            cache_misses: stored.cache_misses,
        }
    }
}
