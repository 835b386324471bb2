//! A clone of backup 0: a session, `roots/`, the end of the session. And a reader of backup 0.

use super::rules::Rule;
use super::state::{CLONE, CloneAt, End, ReaderAt, State};
use super::{Backups, manifest_read};
use crate::search::Steps;

/// The steps of the clone.
pub(crate) fn steps(model: &Backups, state: &State, steps: &mut Steps<State>) {
    let root_first = model.rules.has(Rule::RootBeforeEnd);
    let mut next = *state;
    match state.clone {
        CloneAt::Start => {
            next.bucket.begins = next.bucket.begins.with(CLONE);
            next.clone = CloneAt::Begun;
            steps.act(next, || format!("clone: PUT sessions/{CLONE}/begin"));
        }
        CloneAt::Begun => {
            let newest = manifest_read(model, &state.bucket);
            let mut found = state.bucket.packs.minus(newest.removed);
            if model.rules.has(Rule::CloneOfUncondemned) {
                found = found.minus(newest.condemned);
            }
            let refused = found.is_empty();
            let listed = state.bucket.has_backup(0, true) || !model.rules.has(Rule::CloneOfUncondemned);
            next.clone = match (refused || !listed, root_first) {
                (true, _) => CloneAt::Gone,
                (false, true) => CloneAt::PutRoot,
                (false, false) => CloneAt::PutEnd,
            };
            steps.act(next, || {
                format!(
                    "clone: reads the newest manifest and backup 0, finds packs {found}: {:?}",
                    next.clone
                )
            });
        }
        CloneAt::PutRoot | CloneAt::PutRootTooLate => {
            next.bucket.roots = next.bucket.roots.with(CLONE);
            next.clone = if root_first {
                CloneAt::PutEnd
            } else {
                CloneAt::Confirm
            };
            steps.act(next, || "clone: PUT roots/host/clone".to_owned());
        }
        CloneAt::PutEnd => put_end(model, state, steps),
        CloneAt::Confirm => {
            let closed = model.rules.has(Rule::ConfirmEnd) && state.bucket.newest.closed.has(CLONE);
            next.clone = if closed { CloneAt::Gone } else { CloneAt::Done };
            steps.act(next, || {
                format!("clone: reads the newest manifest, is {:?}", next.clone)
            });
        }
        CloneAt::Done | CloneAt::Gone => {}
    }
    if !matches!(state.clone, CloneAt::Start | CloneAt::Done | CloneAt::Gone) {
        let mut next = *state;
        next.clone = CloneAt::Gone;
        steps.befall(next, || "clone: is killed".to_owned());
    }
}

fn put_end(model: &Backups, state: &State, steps: &mut Steps<State>) {
    let created_next = if model.rules.has(Rule::RootBeforeEnd) {
        CloneAt::Confirm
    } else {
        CloneAt::PutRootTooLate
    };
    let mut next = *state;
    if next
        .bucket
        .create_end(CLONE, End::Clone, model.rules.has(Rule::EndIfAbsent))
    {
        if state.bucket.end(CLONE) != End::Clone {
            steps.befall(next, || {
                format!("clone: PUT sessions/{CLONE}/end is done, its answer is lost")
            });
        }
        next.clone = created_next;
        steps.act(next, || format!("clone: PUT sessions/{CLONE}/end: 200"));
    } else {
        let there = state.bucket.end(CLONE);
        let mine = there == End::Clone || !model.rules.has(Rule::CompareEnd);
        next.clone = if mine { created_next } else { CloneAt::Gone };
        steps.act(next, || {
            format!("clone: PUT sessions/{CLONE}/end: 412, {there:?}")
        });
    }
}

/// The steps of the reader.
pub(crate) fn reader_steps(model: &Backups, state: &State, steps: &mut Steps<State>) {
    let reader = state.reader;
    let mut next = *state;
    match reader.at {
        ReaderAt::Get | ReaderAt::GetAgain => {
            let pack = reader.known.lowest();
            let there = pack.is_some_and(|pack| state.bucket.packs.has(pack));
            let once = !model.rules.has(Rule::RefreshWhileItMoves);
            let gives_up = reader.at == ReaderAt::GetAgain && once && state.bucket.has_backup(0, true);
            next.reader.at = match (there, gives_up) {
                (true, _) => ReaderAt::Done,
                (false, true) => ReaderAt::Failed,
                (false, false) => ReaderAt::Refresh,
            };
            let pack = pack.map_or("none".to_owned(), |pack| pack.to_string());
            steps.act(next, || {
                format!("reader: GET pack {pack}: {}", if there { "200" } else { "404" })
            });
        }
        ReaderAt::Refresh if !state.bucket.has_backup(0, true) => {
            next.reader.at = ReaderAt::Done;
            steps.act(next, || "reader: finds that the backup was removed".to_owned());
        }
        ReaderAt::Refresh => {
            next.reader.known = state
                .bucket
                .packs
                .minus(manifest_read(model, &state.bucket).removed);
            next.reader.at = ReaderAt::GetAgain;
            steps.act(next, || {
                format!("reader: refreshes, finds packs {}", next.reader.known)
            });
        }
        ReaderAt::Done | ReaderAt::Failed => {}
    }
}
