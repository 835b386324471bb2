//! Keeps several threads together below a rate.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use barmanfs_store::sync::lock;

use crate::signals::Interruption;

/// A rate, and when the next bytes may be read.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(kib_per_second: u32) -> Self {
        Self {
            bytes_per_second: u64::from(kib_per_second).saturating_mul(1024).max(1),
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Waits until so many bytes may be read, or a signal arrives.
    pub(super) fn wait(&self, bytes: u64, signals: &Interruption) {
        let wait = self.reserve(bytes, Instant::now());
        if !wait.is_zero() {
            signals.sleep(wait);
        }
    }

    /// Time that was not used is lost: after a pause, the disk is not read faster.
    fn reserve(&self, bytes: u64, now: Instant) -> Duration {
        let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_second;
        let mut free_at = lock(&self.free_at);
        let begin = (*free_at).max(now);
        *free_at = begin + Duration::from_micros(micros);
        begin.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_all_threads_together() {
        let throttle = Throttle::new(1024);
        let now = Instant::now();
        let waits = [0, 1, 2].map(|_| throttle.reserve(1 << 20, now));
        let second = Duration::from_secs(1);
        assert!(waits[0] < second / 10);
        assert!(waits[1] >= second && waits[1] < 2 * second, "{waits:?}");
        assert!(waits[2] >= 2 * second, "{waits:?}");
        let later = now + Duration::from_secs(60);
        assert_eq!(throttle.reserve(1 << 20, later), Duration::ZERO);
        assert_eq!(throttle.reserve(1, later), second);
    }
}
