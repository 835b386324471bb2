//! Reproducible random numbers: every failure names its seed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

thread_local! {
    /// The seeds that this thread's test chose, in their order.
    static CHOSEN: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    /// The seeds that it takes instead of choosing: those of its first run.
    static GIVEN: RefCell<VecDeque<u64>> = const { RefCell::new(VecDeque::new()) };
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
        let given = GIVEN.with_borrow_mut(VecDeque::pop_front);
        let seed = given.unwrap_or_else(|| match std::env::var("BARMANFS_TEST_SEED") {
            Ok(text) => text.parse().expect("BARMANFS_TEST_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| now.as_nanos() as u64),
        });
        CHOSEN.with_borrow_mut(|chosen| chosen.push(seed));
        println!("{test}: BARMANFS_TEST_SEED={seed}");
        Self::from_seed(seed)
    }

    /// With this seed.
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self { state: seed, seed }
    }

    /// The next test of this thread chooses its own seeds.
    pub(crate) fn begin_test() {
        CHOSEN.with_borrow_mut(Vec::clear);
        GIVEN.with_borrow_mut(VecDeque::clear);
    }

    /// A second run of this thread's test takes the seeds of the first one.
    pub(crate) fn repeat_test() {
        let chosen = CHOSEN.with_borrow_mut(std::mem::take);
        GIVEN.with_borrow_mut(|given| *given = chosen.into());
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
