//! Reproducible random numbers: every failure names its seed.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

thread_local! {
    static USED: Cell<bool> = const { Cell::new(false) };
}

/// SplitMix64.
#[derive(Debug)]
pub(crate) struct Random {
    state: u64,
    seed: u64,
}

impl Random {
    /// Seeded from `BARMANFS_TEST_SEED`, or from the clock; the seed is printed, so that a failure can be reproduced.
    pub(crate) fn new(test: &str) -> Self {
        let seed = match std::env::var("BARMANFS_TEST_SEED") {
            Ok(text) => text.parse().expect("BARMANFS_TEST_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| now.as_nanos() as u64),
        };
        println!("{test}: BARMANFS_TEST_SEED={seed}");
        Self::from_seed(seed)
    }

    /// With this seed.
    pub(crate) fn from_seed(seed: u64) -> Self {
        USED.set(true);
        Self { state: seed, seed }
    }

    /// Whether this thread made one since `forget_use`.
    pub(crate) fn was_used() -> bool {
        USED.get()
    }

    pub(crate) fn forget_use() {
        USED.set(false);
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Any one of these; there must be at least one.
    pub(crate) fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    pub(crate) fn duration_below(&mut self, bound: Duration) -> Duration {
        Duration::from_micros(self.below(bound.as_micros().max(1) as u64))
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}
