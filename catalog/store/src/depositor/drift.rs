//! When a window is stored whole again, though a delta would be smaller.
//!
//! The base of a delta is always a whole chunk. While a window changes a little with each backup, its deltas grow, as
//! each holds everything since the base. A whole chunk costs more once, and the deltas after it are small again. When
//! each of `k` changes adds `step` bytes, the last delta has `k * step`, and all of them together have taken about
//! `k * delta / 2`, of which `delta * (delta - step) / (2 * step)` because the base is old. The classic bound is to
//! change the base when that is as much as the whole chunk takes. Over real histories of pages half of it is best.
//!
//! Nothing is remembered for this. `step` is the size of a delta against what was there just before. Where a window
//! changes in the same place each time, `step` is the delta itself, and the base stays. Where changes have come to an
//! end, `step` is small, and one more delta is the last large one.

/// A delta is taken if a whole chunk costs as much as this many of them: a single change that happens to be small says
/// little of those before it. Over real histories, more of them cost up to a tenth more.
const DELTAS_IN_A_WHOLE: u64 = 10;

/// Whether [`has_drifted`] may be true, from what is known without reading anything: the sizes of the delta, of the
/// delta by which the chunk before is stored against the same base, and of a whole chunk. The step is hardly ever
/// smaller than the difference of the two deltas.
pub fn may_have_drifted(delta: u64, delta_before: u64, whole: u64) -> bool {
    has_drifted(delta, delta.saturating_sub(delta_before), whole)
}

/// Whether a whole chunk costs less from now on than further deltas against the same base. `step` is the size of a
/// delta against the chunk before.
pub fn has_drifted(delta: u64, step: u64, whole: u64) -> bool {
    // Chunks have at most 4 MiB: the products fit.
    delta * DELTAS_IN_A_WHOLE > whole && delta * delta.saturating_sub(step) > whole * step
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What 200 changes take when the delta is `delta(k)` after `k` of them since the base, and each is `step` alone.
    fn total(whole: u64, step: u64, delta: impl Fn(u64) -> u64) -> u64 {
        let (mut total, mut since, mut before) = (0, 0, None);
        for _ in 0..200 {
            since += 1;
            let size = delta(since);
            let drifted = before.is_some_and(|before| {
                may_have_drifted(size, before, whole) && has_drifted(size, step, whole)
            });
            let stored = if drifted || size * 2 > whole { whole } else { size };
            before = (stored == size).then_some(size);
            since = if stored == size { since } else { 0 };
            total += stored;
        }
        total
    }

    /// The least that 200 such changes can take.
    fn least(whole: u64, delta: impl Fn(u64) -> u64) -> u64 {
        let mut least = vec![0; 201];
        for end in 1..=200 {
            let from = |base: usize| -> u64 {
                let deltas: u64 = (1..(end - base) as u64).map(&delta).sum();
                least[base] + whole + deltas
            };
            let all_deltas: u64 = (1..=end as u64).map(&delta).sum();
            least[end] = (0..end).map(from).min().unwrap().min(all_deltas);
        }
        least[200]
    }

    #[test]
    fn the_same_change_again_costs_the_same_each_time() {
        for (whole, step) in [(10_000, 100), (10_000, 1200), (10_000, 4000), (300, 100)] {
            assert_eq!(total(whole, step, |_| step), 200 * step);
        }
    }

    #[test]
    fn growing_deltas_cost_little_more_than_the_least_possible() {
        for (whole, step) in [(20_000, 100), (10_000, 40), (8_000, 1000), (60_000, 400)] {
            let growing = |k| k * step;
            let (found, best) = (total(whole, step, growing), least(whole, growing));
            assert!(found * 10 <= best * 11, "{found} for {best} at {whole}, {step}");
        }
    }

    #[test]
    fn deltas_that_stop_growing_early_are_kept() {
        let saturated = |k: u64| (k * 100).min(900);
        assert_eq!(
            total(10_000, 100, saturated),
            (1..=200).map(saturated).sum::<u64>()
        );
    }
}
