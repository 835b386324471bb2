//! A sweep enters WAL files into the index, merges them into packs, and removes what is merged or needed no more.

use super::Wal;
use super::rules::Rule;
use super::state::{Manifest, Place, Places, State, Sweep, SweepAt};
use crate::search::Steps;

pub(crate) const IDLE: Sweep = Sweep {
    at: SweepAt::Idle,
    overtaken: false,
    next: Manifest {
        covers: false,
        indexed: None,
        condemned: Places {
            name: false,
            merged: [false; 2],
        },
        removed: Places {
            name: false,
            merged: [false; 2],
        },
    },
    read: None,
};

/// The steps of sweep `number`.
pub(crate) fn steps(model: &Wal, state: &State, number: usize, steps: &mut Steps<State>) {
    let sweep = state.sweeps[number];
    match sweep.at {
        SweepAt::Idle => begin(state, number, steps),
        SweepAt::Look => look(model, state, number, steps),
        SweepAt::Merge => merge(model, state, number, steps),
        SweepAt::PutManifest => put_manifest(model, state, number, steps),
        SweepAt::Delete => delete(state, number, steps),
    }
    if sweep.at != SweepAt::Idle {
        let mut next = *state;
        next.sweeps[number] = IDLE;
        steps.befall(next, || format!("sweep {number}: is killed"));
    }
}

/// Reads the newest manifest. One that condemns is followed by one that removes: what the index has was decided with
/// the first, and WAL files refer to nothing.
fn begin(state: &State, number: usize, steps: &mut Steps<State>) {
    let newest = state.bucket.newest;
    let mut next = *state;
    let sweep = &mut next.sweeps[number];
    if !newest.condemned.is_empty() {
        let place = newest.indexed.map(|(place, _)| place);
        let gone = newest.condemned.without(place);
        let removed = Places {
            merged: newest.removed.union(gone).merged,
            name: gone.name,
        };
        sweep.next = Manifest {
            condemned: Places::default(),
            removed,
            ..newest
        };
        sweep.at = SweepAt::PutManifest;
        steps.act(next, || {
            format!("sweep {number}: finds {:?} condemned", newest.condemned)
        });
        return;
    }
    if !state.bucket.present(newest.removed).is_empty() {
        sweep.next = newest;
        sweep.at = SweepAt::Delete;
        steps.act(next, || {
            format!("sweep {number}: finds what a manifest has removed")
        });
        return;
    }
    sweep.next = newest;
    sweep.at = SweepAt::Look;
    steps.act(next, || format!("sweep {number}: reads the newest manifest"));
}

/// LISTs the names and packs: what to enter, what to merge, what to condemn.
fn look(model: &Wal, state: &State, number: usize, steps: &mut Steps<State>) {
    let bucket = &state.bucket;
    let sweep = state.sweeps[number];
    let mut next = *state;
    let indexed = sweep.next.indexed;
    // Merging is a choice; what else there is to do is none.
    let by_name = match indexed {
        None => !sweep.next.removed.name,
        Some((Place::Name, _)) => true,
        Some((Place::Merged(_), _)) => !model.rules.has(Rule::IndexedStays),
    };
    let may_merge = by_name && !bucket.dropped && !bucket.was_merged[number];
    if let Some(bytes) = bucket.name.filter(|_| may_merge) {
        next.sweeps[number].at = SweepAt::Merge;
        next.sweeps[number].read = Some(bytes);
        steps.act(next, || {
            format!("sweep {number}: reads {bytes:?} under the name, to merge it")
        });
    }
    let mut next = *state;
    let plan = &mut next.sweeps[number].next;
    plan.removed.name = false;
    if bucket.dropped {
        plan.indexed = None;
    } else if by_name && bucket.name.is_some() {
        plan.covers = true;
        plan.indexed = bucket.name.map(|bytes| (Place::Name, bytes));
    } else if model.gaps {
        plan.covers = true;
    }
    plan.condemned = bucket
        .present(Places::ALL)
        .without(plan.indexed.map(|(place, _)| place));
    let plan = *plan;
    next.sweeps[number].at = SweepAt::PutManifest;
    if (Manifest {
        removed: sweep.next.removed,
        ..plan
    }) == sweep.next
    {
        next.sweeps[number] = IDLE;
    }
    steps.act(next, || {
        format!(
            "sweep {number}: LISTs, wants to enter {:?} and to condemn {:?}",
            plan.indexed, plan.condemned
        )
    });
}

/// PUTs a pack with what it has read under the name.
fn merge(model: &Wal, state: &State, number: usize, steps: &mut Steps<State>) {
    let mut next = *state;
    let sweep = &mut next.sweeps[number];
    let Some(bytes) = sweep.read.take() else { return };
    next.bucket.merged[number] = Some(bytes);
    next.bucket.was_merged[number] = true;
    let place = Place::Merged(u8::from(number == 1));
    sweep.next.covers = true;
    sweep.next.indexed = Some((place, bytes));
    sweep.next.removed.name = false;
    sweep.next.condemned = state.bucket.present(Places::ALL).without(Some(place));
    sweep.at = SweepAt::PutManifest;
    if !model.rules.has(Rule::IndexBeforeDelete) {
        next.bucket.name = None;
    }
    steps.act(next, || {
        format!("sweep {number}: PUT a merged pack with {bytes:?}")
    });
}

fn put_manifest(model: &Wal, state: &State, number: usize, steps: &mut Steps<State>) {
    let sweep = state.sweeps[number];
    let mut next = *state;
    if sweep.overtaken && model.rules.has(Rule::ManifestIfAbsent) {
        next.sweeps[number] = IDLE;
        steps.act(next, || {
            format!("sweep {number}: PUT manifest: 412, begins again")
        });
        return;
    }
    next.bucket.newest = sweep.next;
    for other in next.sweeps.iter_mut().filter(|other| other.at != SweepAt::Idle) {
        other.overtaken = true;
    }
    next.sweeps[number] = IDLE;
    if sweep.next.condemned.is_empty() && !state.bucket.present(sweep.next.removed).is_empty() {
        next.sweeps[number] = Sweep {
            at: SweepAt::Delete,
            next: sweep.next,
            ..IDLE
        };
    }
    let plan = sweep.next;
    steps.act(next, || {
        format!(
            "sweep {number}: PUT the next manifest: has {:?}, condemns {:?}",
            plan.indexed, plan.condemned
        )
    });
}

/// Deletes what its manifest has removed. It may have slept before.
fn delete(state: &State, number: usize, steps: &mut Steps<State>) {
    let sweep = state.sweeps[number];
    let mut next = *state;
    next.sweeps[number] = IDLE;
    if sweep.next.removed.name {
        next.bucket.name = None;
    }
    for merged in 0..2 {
        if sweep.next.removed.merged[merged] {
            next.bucket.merged[merged] = None;
        }
    }
    steps.act(next, || {
        format!("sweep {number}: DELETE {:?}", sweep.next.removed)
    });
}
