//! The delay before the next try.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);

/// Commits may be waiting for this process, so a server that is back must not wait much longer.
const LONGEST: Duration = Duration::from_secs(15);

/// Doubles the delay each time, up to a limit. Jitter separates clients that lost the same server at the same
/// time.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The delay before the next try: up to a quarter less than twice the last one.
    pub(super) fn next(&mut self) -> Duration {
        let whole = FIRST
            .saturating_mul(1_u32.checked_shl(self.tries).unwrap_or(u32::MAX))
            .min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        // Each new state is random.
        let share = RandomState::new().hash_one(self.tries) % 1000;
        whole - whole / 4 * u32::try_from(share).unwrap_or(0) / 1000
    }

    /// Resets the delay after a success.
    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_grows_to_a_limit_and_restarts() {
        let mut backoff = Backoff::default();
        let delays: Vec<Duration> = (0..100).map(|_| backoff.next()).collect();
        assert!(delays[0] <= FIRST && delays[0] >= FIRST * 3 / 4, "{delays:?}");
        assert!(
            delays.windows(2).take(4).all(|pair| pair[0] < pair[1]),
            "{delays:?}"
        );
        assert!(
            delays[50..]
                .iter()
                .all(|delay| (LONGEST * 3 / 4..=LONGEST).contains(delay)),
            "{delays:?}"
        );
        assert!(
            delays[50..].iter().any(|delay| *delay != delays[50]),
            "always the same moment"
        );
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
