//! Detects sequential reads, and decides how far to decode ahead of the reader.

use std::ops::Range;

/// First distance to decode ahead: enough to keep the other cores busy, and little is lost if the reader stops.
const FIRST_AHEAD_BYTES: u64 = 512 * 1024;

/// Maximum distance. Several cores decode this much in a few milliseconds. More would evict from the cache what other
/// readers need next.
const MAX_AHEAD_BYTES: u64 = 8 * 1024 * 1024;

/// The kernel reads ahead with several requests at once, which arrive in any order. A read this close to the end of
/// the last one still belongs to the sequence.
const SLACK_BYTES: u64 = 2 * 1024 * 1024;

/// The position of one reader in one file.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    /// End of the furthest read of the sequence; `None` before the first read and after a random one.
    end: Option<u64>,
    /// Windows before this offset have been requested.
    ahead_to: u64,
    /// The next distance.
    ahead_bytes: u64,
}

impl Sequence {
    /// Records a read, and returns the bytes to decode ahead now, possibly none.
    pub(super) fn read(&mut self, offset: u64, length: u64) -> Range<u64> {
        let end = offset.saturating_add(length);
        let last = self.end.unwrap_or(0);
        let near = offset <= last.saturating_add(SLACK_BYTES) && last <= end.saturating_add(SLACK_BYTES);
        // The first read of a file starts a sequence if it is at the beginning.
        let follows = if self.end.is_some() { near } else { offset == 0 };
        if !follows {
            // This may be the first read of a sequence. The next one decides.
            *self = Self {
                end: Some(end),
                ahead_to: end,
                ahead_bytes: 0,
            };
            return 0..0;
        }
        let end = end.max(last);
        self.end = Some(end);
        self.ahead_bytes = (self.ahead_bytes * 2).clamp(FIRST_AHEAD_BYTES, MAX_AHEAD_BYTES);
        let from = self.ahead_to.max(end);
        let to = end.saturating_add(self.ahead_bytes);
        // In steps of a quarter, so that a reader of small pieces does not cause a request for each.
        if to < from + self.ahead_bytes / 4 {
            return 0..0;
        }
        self.ahead_to = to;
        from..to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    #[test]
    fn decoding_ahead_grows_with_sequential_reads() {
        let mut sequence = Sequence::default();
        let mut asked_to = 0;
        for n in 0..400_u64 {
            let ahead = sequence.read(n * 128 * KIB, 128 * KIB);
            if !ahead.is_empty() {
                assert!(ahead.start >= asked_to, "asked twice for {ahead:?}");
                asked_to = ahead.end;
            }
            assert!(
                asked_to > (n + 1) * 128 * KIB,
                "read {n} overtook what was decoded ahead"
            );
            assert!(asked_to <= (n + 1) * 128 * KIB + MAX_AHEAD_BYTES);
        }
        assert!(asked_to >= 400 * 128 * KIB + MAX_AHEAD_BYTES / 2);
    }

    #[test]
    fn random_reads_decode_nothing_ahead() {
        let mut sequence = Sequence::default();
        for page in [77_777, 1_000_000, 5_000, 900_000, 123_456_u64] {
            assert!(sequence.read(page * 8 * KIB, 8 * KIB).is_empty());
        }
    }

    #[test]
    fn requests_out_of_order_are_still_one_sequence() {
        let mut sequence = Sequence::default();
        let mut total = 0;
        for n in [0, 2, 1, 4, 3, 6, 5, 8, 7_u64] {
            let ahead = sequence.read(n * 1024 * KIB, 1024 * KIB);
            total += ahead.end - ahead.start;
        }
        assert!(total > 0);
        assert!(sequence.end == Some(9 * 1024 * KIB));
    }

    #[test]
    fn reading_may_begin_in_the_middle() {
        let mut sequence = Sequence::default();
        assert!(sequence.read(50_000 * KIB, 8 * KIB).is_empty());
        let ahead = sequence.read(50_008 * KIB, 8 * KIB);
        assert_eq!(ahead.start, 50_016 * KIB);
        assert!(!ahead.is_empty());
    }
}
