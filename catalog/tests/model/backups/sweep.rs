//! A sweep: one step of the chain of manifests, then from the beginning again.
//!
//! When a sweep tries to fence is a matter of clocks, and clocks lie: here it may at any moment.

use super::Backups;
use super::rules::Rule;
use super::state::{COPY, End, Manifest, SESSIONS, State, Sweep, SweepAt};
use crate::search::Steps;
use crate::set::Set;

/// The steps of sweep `number`.
pub(crate) fn steps(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let sweep = state.sweeps[number];
    match sweep.at {
        SweepAt::Idle => begin(model, state, number, steps),
        SweepAt::CopyBegun => go_on(state, number, steps, decide(model, state, number, true)),
        SweepAt::CopyPut | SweepAt::CopyEnd => copy(model, state, number, steps),
        SweepAt::ListTooEarly | SweepAt::List(_) => list(model, state, number, steps),
        SweepAt::PutAfter => put_after(state, number, steps),
        SweepAt::Condemn | SweepAt::Remove => put_manifest(model, state, number, steps),
        SweepAt::CheckRemoved => look_for_higher(model, state, number, steps),
        SweepAt::Fence => fence(model, state, number, steps),
        SweepAt::Mark(_) => mark(model, state, number, steps),
        SweepAt::Delete => delete(model, state, number, steps),
    }
    if sweep.at != SweepAt::Idle {
        let mut next = *state;
        next.sweeps[number] = Sweep::IDLE;
        steps.befall(next, || format!("sweep {number}: is killed"));
    }
}

/// What a sweep does next, and why.
type Decision = (Sweep, &'static str);

fn go_on(state: &State, number: usize, steps: &mut Steps<State>, (sweep, why): Decision) {
    if sweep == state.sweeps[number] {
        return;
    }
    let mut next = *state;
    next.sweeps[number] = sweep;
    let condemned = sweep.basis.condemned;
    steps.act(next, || match sweep.at {
        SweepAt::List(_) | SweepAt::Fence => {
            format!(
                "sweep {number}: {why}: packs {condemned}, sessions {}",
                sweep.open
            )
        }
        _ => format!("sweep {number}: {why}: packs {}", sweep.plan),
    });
}

fn begin(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    go_on(state, number, steps, decide(model, state, number, false));
    let session = COPY[number];
    let is_new = !state.bucket.begins.has(session) && !state.bucket.newest.closed.has(session);
    if number < model.copies && is_new {
        let mut next = *state;
        next.bucket.begins = next.bucket.begins.with(session);
        next.sweeps[number].at = SweepAt::CopyBegun;
        steps.act(next, || {
            format!("sweep {number}: PUT sessions/{session}/begin, to copy a sparse pack")
        });
    }
}

/// Reads the newest manifest and all that it needs to go on from there.
fn decide(model: &Backups, state: &State, number: usize, copies: bool) -> Decision {
    let newest = state.bucket.newest;
    let mut sweep = Sweep::IDLE;
    sweep.basis = newest;
    sweep.basis.after = None;
    if newest.condemns {
        sweep.at = newest.after.map_or(SweepAt::List(0), |_| SweepAt::Fence);
        sweep.open = newest.after.unwrap_or_default();
        return (sweep, "finds something condemned, and waits for");
    }
    if left_over(state, newest.removed, newest.closed, true).is_some() {
        sweep.at = SweepAt::Delete;
        return (sweep, "finds what a manifest has removed");
    }
    if copies {
        choose_sparse(model, state, sweep)
    } else {
        propose(model, state, number, sweep)
    }
}

/// Chooses a pack to copy the chunk from.
fn choose_sparse(model: &Backups, state: &State, mut sweep: Sweep) -> Decision {
    let known = state.bucket.found_packs();
    let live = (0..SESSIONS).any(|session| refers(model, state, session));
    if !live || known.is_empty() {
        return (Sweep::IDLE, "finds nothing to copy");
    }
    sweep.at = SweepAt::CopyPut;
    sweep.plan = known;
    (sweep, "reads the newest manifest, finds these sparse")
}

/// Marks, and finds what seems to be needed no more. It is only a proposal: the mark that counts is the one after the
/// fence.
fn propose(model: &Backups, state: &State, number: usize, mut sweep: Sweep) -> Decision {
    let bucket = &state.bucket;
    let known = bucket.found_packs();
    let live = (0..SESSIONS).any(|session| refers(model, state, session));
    sweep.plan = if live {
        known.minus(one(model, number, known))
    } else {
        known
    };
    let sessions = (0..SESSIONS).any(|session| bucket.is_open(session) || bucket.is_spent(session));
    if sweep.plan.is_empty() && !sessions {
        return (Sweep::IDLE, "finds nothing to do");
    }
    let lists_first = !model.rules.has(Rule::ManifestBeforeSessions);
    sweep.at = if lists_first {
        SweepAt::ListTooEarly
    } else {
        SweepAt::Condemn
    };
    (sweep, "reads the newest manifest, wants to condemn")
}

/// The copy that is kept of several.
fn one(model: &Backups, number: usize, packs: Set) -> Set {
    let kept = if number == 0 || model.rules.has(Rule::RankByName) {
        packs.lowest()
    } else {
        packs.highest()
    };
    kept.map_or(Set::NONE, Set::one)
}

/// Whether a session or its root needs the chunk.
fn refers(model: &Backups, state: &State, session: u8) -> bool {
    let bucket = &state.bucket;
    let root =
        bucket.roots.has(session) && bucket.end(session) != End::Void && !bucket.newest.closed.has(session);
    root || bucket.has_backup(session, model.rules.has(Rule::ClosedStaysClosed))
}

/// Copies the chunk out of a sparse pack, in a session of its own.
fn copy(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let sweep = state.sweeps[number];
    let session = COPY[number];
    let mut next = *state;
    if sweep.at == SweepAt::CopyPut {
        if sweep.plan.common(state.bucket.packs).is_empty() {
            next.sweeps[number] = Sweep::IDLE;
            steps.act(next, || {
                format!("sweep {number}: GET of the sparse pack: 404, begins again")
            });
            return;
        }
        next.bucket.packs = next.bucket.packs.with(session);
        next.sweeps[number].at = SweepAt::CopyEnd;
        steps.act(next, || {
            format!("sweep {number}: PUT pack {session}, a copy of the sparse one")
        });
        return;
    }
    if next
        .bucket
        .create_end(session, End::Copy, model.rules.has(Rule::EndIfAbsent))
    {
        next.sweeps[number].at = SweepAt::Condemn;
        if !model.rules.has(Rule::ManifestBeforeSessions) {
            next.sweeps[number].at = SweepAt::ListTooEarly;
        }
        steps.act(next, || {
            format!(
                "sweep {number}: PUT sessions/{session}/end: 200, wants to condemn packs {}",
                sweep.plan
            )
        });
    } else {
        next.sweeps[number] = Sweep::IDLE;
        steps.act(next, || {
            format!("sweep {number}: PUT sessions/{session}/end: 412, begins again")
        });
    }
}

/// One key of a LIST of `sessions/`: other actors may act between two of them.
fn list(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let mut next = *state;
    let sweep = &mut next.sweeps[number];
    let early = sweep.at == SweepAt::ListTooEarly;
    let first = if let SweepAt::List(first) = sweep.at {
        first
    } else {
        0
    };
    let keys = model.keys_from(first);
    let seen = if model.list_by_key && !early {
        keys.lowest().map_or(Set::NONE, Set::one)
    } else {
        keys
    };
    for session in (0..SESSIONS).filter(|session| seen.has(*session)) {
        if state.bucket.is_open(session) {
            sweep.open = sweep.open.with(session);
        }
    }
    sweep.at = match (early, keys.minus(seen).lowest()) {
        (true, _) => SweepAt::Condemn,
        (false, Some(session)) => SweepAt::List(session),
        (false, None) => SweepAt::PutAfter,
    };
    let open = sweep.open;
    steps.act(next, || {
        format!("sweep {number}: LIST sessions/, keys {seen}: {open} without end")
    });
}

fn put_after(state: &State, number: usize, steps: &mut Steps<State>) {
    let sweep = state.sweeps[number];
    let mut next = *state;
    let newest = &mut next.bucket.newest;
    if sweep.behind == 0 && newest.after.is_none() {
        newest.after = Some(sweep.open);
    }
    next.sweeps[number] = Sweep::IDLE;
    steps.act(next, || format!("sweep {number}: PUT after: {}", sweep.open));
}

/// Creates the next manifest. Who does not get its name begins again.
fn put_manifest(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let sweep = state.sweeps[number];
    let mut next = *state;
    let condemns = sweep.at == SweepAt::Condemn;
    let verb = if condemns { "condemns" } else { "removes" };
    let overwrites = sweep.behind > 0 && !model.rules.has(Rule::ManifestIfAbsent);
    if sweep.behind > 0 && !overwrites && !(sweep.behind > 1 && sweep.name_is_free) {
        next.sweeps[number] = Sweep::IDLE;
        steps.act(next, || {
            format!("sweep {number}: PUT manifest: 412, begins again")
        });
        return;
    }
    let after = manifest_after(model, &sweep);
    let at = match (condemns, model.rules.has(Rule::ManifestBeforeSessions)) {
        (false, _) => SweepAt::CheckRemoved,
        (true, true) => SweepAt::List(0),
        (true, false) => SweepAt::Idle,
    };
    next.sweeps[number] = Sweep {
        at,
        behind: sweep.behind,
        name_is_free: sweep.name_is_free,
        ..Sweep::IDLE
    };
    if at == SweepAt::CheckRemoved {
        next.sweeps[number].basis = after;
    }
    if sweep.behind == 0 || (overwrites && sweep.behind == 1) {
        next.bucket.newest = after;
        next.bucket.has_older = true;
        next.sweeps[number].behind = 0;
        for (other, behind) in next.sweeps.iter_mut().enumerate() {
            if other != number && behind.at != SweepAt::Idle && behind.at != SweepAt::CopyBegun {
                behind.behind = (behind.behind + 1).min(2);
            }
        }
        if !model.rules.has(Rule::ManifestBeforeSessions) && condemns {
            next.bucket.newest.after = Some(sweep.open);
        }
    } else {
        next.sweeps[number].behind = sweep.behind - 1;
    }
    if at == SweepAt::Idle {
        next.sweeps[number] = Sweep::IDLE;
    }
    steps.act(next, || {
        format!(
            "sweep {number}: PUT the next manifest, {verb} packs {}, has {} removed",
            sweep.plan, after.removed
        )
    });
}

/// The manifest that follows a sweep's basis.
fn manifest_after(model: &Backups, sweep: &Sweep) -> Manifest {
    let stays = model.rules.has(Rule::RemovedStaysListed);
    let before = if stays { sweep.basis.removed } else { Set::NONE };
    let closed = sweep.basis.closed.union(sweep.closes);
    if sweep.at == SweepAt::Condemn {
        return Manifest {
            condemns: true,
            condemned: sweep.plan,
            removed: before,
            closed,
            after: None,
        };
    }
    Manifest {
        condemns: false,
        condemned: Set::NONE,
        removed: before.union(sweep.plan),
        closed,
        after: None,
    }
}

/// After a manifest is won: is it the newest? The name may have been free because its manifest was deleted.
fn look_for_higher(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let sweep = state.sweeps[number];
    let mut next = *state;
    if sweep.behind > 0 && model.rules.has(Rule::LookForHigher) {
        next.sweeps[number] = Sweep::IDLE;
        steps.act(next, || {
            format!("sweep {number}: LIST index/: there is a higher manifest, gives up")
        });
        return;
    }
    next.sweeps[number].at = SweepAt::Delete;
    steps.act(next, || {
        format!("sweep {number}: LIST index/: there is no higher manifest")
    });
}

/// Makes a void of the `end` of a session that does not come. When all have ended, the mark begins.
fn fence(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let sweep = state.sweeps[number];
    let waits_for = (1..SESSIONS).find(|session| sweep.open.has(*session) && state.bucket.is_open(*session));
    let mut next = *state;
    if let Some(session) = waits_for.filter(|_| model.rules.has(Rule::Fence)) {
        next.bucket.create_end(session, End::Void, true);
        steps.act(next, || {
            format!("sweep {number}: PUT sessions/{session}/end as a void")
        });
        return;
    }
    next.sweeps[number].open = Set::NONE;
    next.sweeps[number].at = SweepAt::Mark(0);
    steps.act(next, || {
        format!("sweep {number}: all sessions of after have ended, marks again")
    });
}

/// One key of the LISTs that a mark reads; after the last one the sweep knows what it may remove.
fn mark(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let mut next = *state;
    let SweepAt::Mark(first) = state.sweeps[number].at else {
        return;
    };
    let sweep = &mut next.sweeps[number];
    let keys = model.keys_from(first);
    let seen = if model.list_by_key {
        keys.lowest().map_or(Set::NONE, Set::one)
    } else {
        keys
    };
    for session in (0..SESSIONS).filter(|session| seen.has(*session)) {
        sweep.live |= refers(model, state, session);
        if state.bucket.is_spent(session) {
            sweep.closes = sweep.closes.with(session);
        }
    }
    if let Some(session) = keys.minus(seen).lowest() {
        sweep.at = SweepAt::Mark(session);
    } else {
        let condemned = sweep.basis.condemned;
        let others = state.bucket.found_packs().minus(condemned);
        let needs_rescue = sweep.live && others.is_empty() && model.rules.has(Rule::MarkAgain);
        sweep.plan = if needs_rescue {
            condemned.minus(one(model, number, condemned))
        } else {
            condemned
        };
        sweep.at = if model.rules.has(Rule::RemoveBeforeDelete) {
            SweepAt::Remove
        } else {
            SweepAt::Delete
        };
        sweep.basis.condemned = Set::NONE;
        if sweep.at == SweepAt::Delete {
            sweep.basis.removed = sweep.basis.removed.union(sweep.plan);
        }
    }
    let (live, plan) = (sweep.live, sweep.plan);
    steps.act(next, || {
        format!("sweep {number}: marks sessions {seen}: chunk referenced: {live}, will remove {plan}")
    });
}

/// What is still there of what a manifest has removed or closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LeftOver {
    Packs(Set),
    Sessions(Set),
    OldManifests,
}

fn left_over(state: &State, removed: Set, closed: Set, is_newest: bool) -> Option<LeftOver> {
    let bucket = &state.bucket;
    let packs = bucket.packs.common(removed);
    let mut sessions = bucket.begins.union(bucket.roots);
    for session in 0..SESSIONS {
        if bucket.end(session) != End::Absent {
            sessions = sessions.with(session);
        }
    }
    let sessions = sessions.common(closed);
    if !packs.is_empty() {
        Some(LeftOver::Packs(packs))
    } else if !sessions.is_empty() {
        Some(LeftOver::Sessions(sessions))
    } else {
        (bucket.has_older && is_newest).then_some(LeftOver::OldManifests)
    }
}

/// Deletes what is left. Nobody looks at these keys any more but readers, who know pack 0 alone, so their order does
/// not matter.
fn delete(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let sweep = state.sweeps[number];
    let mut next = *state;
    let Some(left) = left_over(state, sweep.basis.removed, sweep.basis.closed, sweep.behind == 0) else {
        next.sweeps[number] = Sweep::IDLE;
        if !model.rules.has(Rule::RemoveBeforeDelete) && state.bucket.newest.condemns {
            next.sweeps[number] = Sweep {
                at: SweepAt::Remove,
                ..sweep
            };
        }
        steps.act(next, || format!("sweep {number}: has deleted everything"));
        return;
    };
    let bucket = &mut next.bucket;
    let what = match left {
        LeftOver::Packs(packs) => {
            next.deleted_wrongly |=
                model.rules.has(Rule::RemoveBeforeDelete) && !packs.minus(bucket.newest.removed).is_empty();
            bucket.packs = bucket.packs.minus(packs);
            format!("packs {packs}")
        }
        LeftOver::Sessions(sessions) => {
            bucket.begins = bucket.begins.minus(sessions);
            bucket.roots = bucket.roots.minus(sessions);
            for session in (0..SESSIONS).filter(|session| sessions.has(*session)) {
                bucket.ends[session as usize] = End::Absent;
            }
            format!("all keys of sessions {sessions}")
        }
        LeftOver::OldManifests => {
            bucket.pruned = true;
            bucket.has_older = false;
            for other in next.sweeps.iter_mut().filter(|other| other.behind > 1) {
                other.name_is_free = true;
            }
            "the manifests below the newest".to_owned()
        }
    };
    // The last deletion and the look at what is left are one step.
    if left_over(&next, sweep.basis.removed, sweep.basis.closed, sweep.behind == 0).is_none()
        && model.rules.has(Rule::RemoveBeforeDelete)
    {
        next.sweeps[number] = Sweep::IDLE;
    }
    steps.act(next, || format!("sweep {number}: DELETE {what}"));
}
