//! A histogram of latencies whose size is fixed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Number of buckets. The last but one ends at 4.2 s: a request that takes longer is an outage, and how much longer is
/// in the log.
pub const LATENCY_BUCKETS: usize = 24;

/// The longest latency in this bucket, in microseconds: 2 to the power of its number. `None` for the last bucket, which
/// has no limit, and for what is no bucket.
pub const fn latency_limit_us(bucket: usize) -> Option<u64> {
    if bucket + 1 < LATENCY_BUCKETS {
        Some(1 << bucket)
    } else {
        None
    }
}

/// Counts latencies by powers of two, from 1 us to 4 s. Two additions for each latency, without a lock or an
/// allocation.
#[derive(Debug, Default)]
pub struct Latencies {
    buckets: [AtomicU64; LATENCY_BUCKETS],
    sum_ns: AtomicU64,
}

/// The numbers of [`Latencies`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LatencyCounts {
    /// How many latencies were counted: the sum of all buckets.
    pub count: u64,
    /// All latencies together, in nanoseconds: those of cached answers are below a microsecond.
    pub sum_ns: u64,
    /// How many latencies were at most [`latency_limit_us`] and longer than the limit of the bucket before.
    pub buckets: [u64; LATENCY_BUCKETS],
}

impl Latencies {
    /// Counts one latency.
    pub fn add(&self, latency: Duration) {
        // Nanoseconds of 584 years fit.
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers at this moment.
    pub fn snapshot(&self) -> LatencyCounts {
        let buckets = self
            .buckets
            .each_ref()
            .map(|bucket| bucket.load(Ordering::Relaxed));
        LatencyCounts {
            // Counted here and not for each latency, so that it always agrees with the buckets.
            count: buckets.iter().sum(),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
            buckets,
        }
    }
}

impl LatencyCounts {
    /// The arithmetic mean; zero when there is nothing.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.checked_div(self.count).unwrap_or(0))
    }
}

/// The first bucket whose limit is not exceeded.
fn bucket_of(ns: u64) -> usize {
    let us = ns.div_ceil(1000);
    let power = match us.checked_sub(1) {
        None | Some(0) => 0,
        Some(below) => u64::BITS - below.leading_zeros(),
    };
    (power as usize).min(LATENCY_BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(latency: Duration) -> usize {
        let latencies = Latencies::default();
        latencies.add(latency);
        let counts = latencies.snapshot();
        assert_eq!((counts.count, counts.sum_ns), (1, latency.as_nanos() as u64));
        counts.buckets.iter().position(|count| *count == 1).unwrap()
    }

    #[test]
    fn a_bucket_holds_its_limit_and_nothing_longer() {
        assert_eq!(bucket(Duration::ZERO), 0);
        for number in 0..LATENCY_BUCKETS - 1 {
            let limit = Duration::from_micros(latency_limit_us(number).unwrap());
            assert_eq!(bucket(limit), number);
            assert_eq!(bucket(limit + Duration::from_nanos(1)), number + 1);
        }
    }

    #[test]
    fn the_last_bucket_has_no_limit() {
        assert_eq!(latency_limit_us(LATENCY_BUCKETS - 2), Some(4_194_304));
        assert_eq!(latency_limit_us(LATENCY_BUCKETS - 1), None);
        assert_eq!(latency_limit_us(usize::MAX - 1), None);
        assert_eq!(bucket(Duration::from_secs(1_000_000)), LATENCY_BUCKETS - 1);
    }

    #[test]
    fn latencies_add_up() {
        let latencies = Latencies::default();
        assert_eq!(latencies.snapshot().mean(), Duration::ZERO);
        for us in [3, 4, 5] {
            latencies.add(Duration::from_micros(us));
        }
        let counts = latencies.snapshot();
        assert_eq!((counts.count, counts.sum_ns), (3, 12_000));
        assert_eq!(counts.mean(), Duration::from_micros(4));
        assert_eq!((counts.buckets[2], counts.buckets[3]), (2, 1));
    }
}
