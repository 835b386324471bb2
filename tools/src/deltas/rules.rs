//! Rules that say when a window is stored whole again.

use barmanfs_store::depositor::{has_drifted, may_have_drifted};

/// What a rule may know when a window has changed again. Sizes are those of frames, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The base, whole.
    pub(crate) whole: usize,
    /// The delta against it.
    pub(crate) delta: usize,
    /// A delta against the content before.
    pub(crate) step: usize,
    /// The delta of the content before; `None` when that is the base.
    pub(crate) delta_before: Option<usize>,
    /// All deltas since the base, with this one.
    pub(crate) deltas: usize,
    /// What these have more than their steps.
    pub(crate) excess: usize,
}

/// Whether to store the window whole.
pub(crate) type Rule = dyn Fn(&Seen) -> bool;

/// The rules and their names.
pub(crate) fn all() -> Vec<(String, Box<Rule>)> {
    let mut rules: Vec<(String, Box<Rule>)> = vec![
        ("half of a whole".to_owned(), Box::new(|_| false)),
        ("as barmanfs does".to_owned(), Box::new(barmanfs)),
    ];
    for part in [6, 8, 10, 16] {
        let rule = move |seen: &Seen| seen.delta * part > seen.whole;
        rules.push((format!("delta > whole / {part}"), Box::new(rule)));
    }
    for half in [1, 2, 3, 4, 6] {
        let factor = f64::from(half as u32) / 2.0;
        let deltas = move |seen: &Seen| seen.deltas * 2 > seen.whole * half;
        rules.push((format!("all deltas > {factor} wholes"), Box::new(deltas)));
        let excess = move |seen: &Seen| seen.excess * 2 > seen.whole * half;
        rules.push((format!("all excess > {factor} wholes"), Box::new(excess)));
    }
    for quarter in [1, 2, 4] {
        let factor = f64::from(quarter as u32) / 4.0;
        let rule = move |seen: &Seen| {
            let excess = seen.delta * seen.delta.saturating_sub(seen.step);
            excess * 2 > seen.whole * seen.step * quarter
        };
        rules.push((format!("computed excess > {factor} wholes"), Box::new(rule)));
    }
    rules
}

fn barmanfs(seen: &Seen) -> bool {
    let [delta, step, whole] = [seen.delta, seen.step, seen.whole].map(|bytes| bytes as u64);
    seen.delta_before.is_some_and(|before| {
        may_have_drifted(delta, before as u64, whole) && has_drifted(delta, step, whole)
    })
}
