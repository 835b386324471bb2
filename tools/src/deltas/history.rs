//! What one window costs under a rule.

use std::collections::HashMap;

use barmanfs_store::DepositOptions;
use barmanfs_store::codec::{encode_delta, encode_whole};

use crate::rules::{Rule, Seen};

/// The contents of a window, and the sizes of their frames.
#[derive(Debug)]
pub(crate) struct History {
    versions: Vec<Vec<u8>>,
    whole: Vec<usize>,
    /// By base and version.
    deltas: HashMap<(usize, usize), usize>,
    level: i32,
}

impl History {
    pub(crate) fn new(versions: Vec<Vec<u8>>, level: i32) -> Self {
        let whole_level = DepositOptions::default().whole_level;
        let whole = |bytes: &Vec<u8>| encode_whole(bytes, whole_level).bytes.len();
        Self {
            whole: versions.iter().map(whole).collect(),
            versions,
            deltas: HashMap::new(),
            level,
        }
    }

    /// The least that all versions can take when the base of each delta is the whole chunk before it.
    pub(crate) fn least(&mut self) -> usize {
        let count = self.whole.len();
        // For each version, the least that those before it take when it is whole.
        let mut least = vec![usize::MAX; count + 1];
        if let Some(first) = least.first_mut() {
            *first = 0;
        }
        for base in 0..count {
            let mut sum = at(&least, base) + at(&self.whole, base);
            for next in base + 1..=count {
                if let Some(known) = least.get_mut(next) {
                    *known = sum.min(*known);
                }
                if next < count {
                    sum += self.delta(base, next);
                }
            }
        }
        at(&least, count)
    }

    /// What all versions take under a rule.
    pub(crate) fn cost(&mut self, rule: &Rule) -> usize {
        let mut total = at(&self.whole, 0);
        let mut base = 0;
        let mut before = Seen::default();
        for version in 1..self.whole.len() {
            let (delta, step) = (self.delta(base, version), self.delta(version - 1, version));
            let seen = Seen {
                whole: at(&self.whole, base),
                delta,
                step,
                delta_before: (before.delta > 0).then_some(before.delta),
                deltas: before.deltas + delta,
                excess: before.excess + delta.saturating_sub(step),
            };
            let whole = at(&self.whole, version);
            // Whatever the rule: a delta of more than half of the whole is never kept.
            if delta * 2 > whole || rule(&seen) {
                total += whole;
                (base, before) = (version, Seen::default());
            } else {
                total += delta;
                before = seen;
            }
        }
        total
    }

    fn delta(&mut self, base: usize, version: usize) -> usize {
        let Self {
            versions,
            deltas,
            level,
            ..
        } = self;
        *deltas.entry((base, version)).or_insert_with(|| {
            let content = |version: usize| versions.get(version).map_or(&[][..], Vec::as_slice);
            let frame = encode_delta(content(version), content(base), *level);
            frame.map_or(content(version).len(), |frame| frame.bytes.len())
        })
    }
}

fn at(sizes: &[usize], index: usize) -> usize {
    sizes.get(index).copied().unwrap_or_default()
}
