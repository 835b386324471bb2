//! The set of a file's blocks that are in its upper file.
//!
//! One bit for each block of [`BLOCK_BYTES`]; a file of 1 GiB needs 16 KiB. The journal stores sets of blocks as runs,
//! because blocks that are written together are usually adjacent.

use std::ops::Range;

/// The unit of copy-on-write: PostgreSQL's page.
pub(crate) const BLOCK_BYTES: u64 = barmanfs_store::layout::BLOCK_BYTES as u64;

const WORD_BITS: u64 = 64;

/// A set of block numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Blocks {
    words: Vec<u64>,
}

/// The block that contains this byte.
pub(crate) fn block_of(offset: u64) -> u64 {
    offset / BLOCK_BYTES
}

/// The blocks that contain any of these bytes.
pub(crate) fn blocks_of(bytes: Range<u64>) -> Range<u64> {
    if bytes.is_empty() {
        return block_of(bytes.start)..block_of(bytes.start);
    }
    block_of(bytes.start)..bytes.end.div_ceil(BLOCK_BYTES)
}

/// The blocks that contain only these bytes.
pub(crate) fn whole_blocks_of(bytes: Range<u64>) -> Range<u64> {
    let first = bytes.start.div_ceil(BLOCK_BYTES);
    first..block_of(bytes.end).max(first)
}

/// Bits `from..to` of a word.
fn mask(from: u64, to: u64) -> u64 {
    let below = |bit: u64| {
        if bit >= WORD_BITS {
            u64::MAX
        } else {
            (1 << bit) - 1
        }
    };
    below(to) & !below(from)
}

/// A position in `words`. The largest file is far below what would not fit.
fn word_index(block: u64) -> usize {
    usize::try_from(block / WORD_BITS).unwrap_or(usize::MAX)
}

impl Blocks {
    pub(crate) fn contains(&self, block: u64) -> bool {
        self.word(word_index(block)) & mask(block % WORD_BITS, block % WORD_BITS + 1) != 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }

    /// Adds a run of blocks.
    pub(crate) fn insert(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        let needed = word_index(run.end - 1) + 1;
        if self.words.len() < needed {
            self.words.resize(needed, 0);
        }
        self.each_word(run, |word, mask| *word |= mask);
    }

    /// Removes a run of blocks.
    pub(crate) fn remove(&mut self, run: Range<u64>) {
        let end = run.end.min(self.words.len() as u64 * WORD_BITS);
        self.each_word(run.start..end, |word, mask| *word &= !mask);
    }

    /// Removes all blocks from this one on.
    pub(crate) fn truncate(&mut self, block: u64) {
        self.remove(block..u64::MAX);
        self.words
            .truncate(word_index(block.saturating_add(WORD_BITS - 1)));
    }

    fn each_word(&mut self, run: Range<u64>, change: impl Fn(&mut u64, u64)) {
        let mut at = run.start;
        while at < run.end {
            let base = at - at % WORD_BITS;
            let to = run.end.min(base + WORD_BITS);
            if let Some(word) = self.words.get_mut(word_index(at)) {
                change(word, mask(at - base, to - base));
            }
            at = to;
        }
    }

    /// Whether `block` is in the set, and the first later block for which the opposite is true; at most `end`.
    pub(crate) fn run(&self, block: u64, end: u64) -> (bool, u64) {
        let inside = self.contains(block);
        let mut at = block;
        while at < end {
            let base = at - at % WORD_BITS;
            let Some(word) = self.words.get(word_index(at)) else {
                // No block from here on is in the set.
                return (inside, if inside { at } else { end });
            };
            let word = if inside { !word } else { *word };
            let other = word & mask(at - base, WORD_BITS);
            if other != 0 {
                return (inside, end.min(base + u64::from(other.trailing_zeros())));
            }
            at = base + WORD_BITS;
        }
        (inside, end)
    }

    /// Whether all blocks of the run are in the set.
    pub(crate) fn contains_all(&self, run: Range<u64>) -> bool {
        run.is_empty() || self.run(run.start, run.end) == (true, run.end)
    }

    /// The runs of the set, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let end = self.words.len() as u64 * WORD_BITS;
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < end {
                let (inside, next) = self.run(at, end);
                let run = at..next;
                at = next;
                if inside {
                    return Some(run);
                }
            }
            None
        })
    }

    /// The blocks of this set that are not in the other.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let words = self.words.iter().enumerate();
        Self {
            words: words.map(|(n, word)| word & !other.word(n)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ranges_of_bytes_as_blocks() {
        assert_eq!(blocks_of(0..1), 0..1);
        assert_eq!(blocks_of(8191..8193), 0..2);
        assert!(blocks_of(8192..8192).is_empty());
        assert_eq!(whole_blocks_of(1..3 * 8192 - 1), 1..2);
        assert_eq!(whole_blocks_of(0..8192), 0..1);
        assert!(whole_blocks_of(1..8191).is_empty());
    }

    #[test]
    fn block_sets_behave_like_sets_of_numbers() {
        let mut state = 7_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let (mut blocks, mut model) = (Blocks::default(), BTreeSet::new());
        for _ in 0..2000 {
            let start = random(300);
            let run = start..start + random(80);
            match random(5) {
                0 => {
                    blocks.truncate(start);
                    model.retain(|block| *block < start);
                }
                1 | 2 => {
                    blocks.remove(run.clone());
                    model.retain(|block| !run.contains(block));
                }
                _ => {
                    blocks.insert(run.clone());
                    model.extend(run.clone());
                }
            }
            assert!(blocks.runs().flatten().eq(model.iter().copied()));
            assert_eq!(blocks.is_empty(), model.is_empty());
            assert_eq!(
                blocks.contains_all(run.clone()),
                run.clone().all(|block| model.contains(&block))
            );
            let (inside, next) = blocks.run(start, 400);
            assert_eq!(inside, model.contains(&start));
            assert!((start..next).all(|block| model.contains(&block) == inside));
            assert!(next == 400 || model.contains(&next) != inside);
        }
    }

    #[test]
    fn one_set_is_subtracted_from_another() {
        let (mut all, mut some) = (Blocks::default(), Blocks::default());
        all.insert(0..100);
        some.insert(3..70);
        assert!(all.without(&some).runs().eq([0..3, 70..100]));
        assert!(some.without(&all).is_empty());
    }
}
