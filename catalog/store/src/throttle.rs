//! A limit of bytes per second, for all threads that read or write together.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Makes threads wait, so that together they read or write no more than the limit.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: u64,
    /// When the bytes that were taken so far may all have passed.
    free_at: Mutex<Instant>,
}

impl Throttle {
    /// A limit of so many bytes per second; at least one.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Waits until so many bytes may pass.
    pub fn take(&self, bytes: u64) {
        std::thread::sleep(self.delay(bytes, Instant::now()));
    }

    /// Takes so many bytes, and returns how long to wait from `now` until they may pass.
    pub fn delay(&self, bytes: u64, now: Instant) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = lock(&self.free_at);
        // Time that was not used is not saved up.
        let begins = (*free_at).max(now);
        *free_at = begins + takes;
        begins.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_at_the_given_rate() {
        let throttle = Throttle::new(1000);
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!(throttle.delay(500, now), Duration::ZERO);
        assert_eq!(throttle.delay(500, now), Duration::from_millis(500));
        assert_eq!(throttle.delay(500, now), Duration::from_secs(1));
        // After a pause, nothing is made up for.
        let later = now + Duration::from_secs(10);
        assert_eq!(throttle.delay(1000, later), Duration::ZERO);
        assert_eq!(throttle.delay(1, later), Duration::from_secs(1));
    }

    #[test]
    fn the_rate_is_that_of_all_threads_together() {
        let throttle = Throttle::new(1024 * 1024);
        let now = Instant::now();
        let waits = [0, 1, 2].map(|_| throttle.delay(1 << 20, now));
        let second = Duration::from_secs(1);
        assert!(waits[0] < second / 10);
        assert!(waits[1] >= second && waits[1] < 2 * second, "{waits:?}");
        assert!(waits[2] >= 2 * second, "{waits:?}");
        let later = now + Duration::from_secs(60);
        assert_eq!(throttle.delay(1 << 20, later), Duration::ZERO);
        assert_eq!(throttle.delay(1, later), second);
    }
}
