//! A backup: `begin`, the newest manifest, packs, `end`.

use super::rules::Rule;
use super::state::{End, State, WRITER, Writer, WriterAt};
use super::{Backups, manifest_read};
use crate::search::Steps;
use crate::set::Set;

/// The steps of writer `number`.
pub(crate) fn steps(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let writer = state.writers[number];
    let who = format_args!("writer {number}");
    let session = session(model, number);
    let early = !model.rules.has(Rule::BeginBeforeManifest);
    match writer.at {
        // Its host lost its state, or it could not get the id of the other.
        WriterAt::Start if session != WRITER[number] && state.writers[0].at != WriterAt::Gone => {}
        WriterAt::Start if early => {
            let mut next = *state;
            read_manifest(model, &mut next, number);
            next.writers[number].at = WriterAt::ReadTooEarly;
            steps.act(next, || {
                format!("{who}: reads the newest manifest before its begin")
            });
        }
        WriterAt::Start | WriterAt::ReadTooEarly => {
            let mut next = *state;
            next.bucket.begins = next.bucket.begins.with(session);
            let read = writer.at == WriterAt::ReadTooEarly;
            next.writers[number].at = if read { WriterAt::Read } else { WriterAt::Begun };
            next.writers[number].put_begin = true;
            steps.act(next, || format!("{who}: PUT sessions/{session}/begin"));
        }
        WriterAt::Begun => {
            let mut next = *state;
            read_manifest(model, &mut next, number);
            next.writers[number].at = WriterAt::Read;
            steps.act(next, || {
                format!(
                    "{who}: reads the newest manifest, may not use packs {}",
                    next.writers[number].avoided
                )
            });
        }
        WriterAt::Read => look_for_copy(model, state, number, steps),
        WriterAt::PutEnd => put_end(model, state, number, steps),
        WriterAt::Confirm => confirm(model, state, number, steps),
        WriterAt::Done | WriterAt::Gone => {}
    }
    if !matches!(writer.at, WriterAt::Start | WriterAt::Done | WriterAt::Gone) {
        let mut next = *state;
        next.writers[number] = gone(&writer);
        steps.befall(next, || format!("{who}: is killed"));
    }
    if model.held {
        late_requests(model, state, number, steps);
    }
}

/// The id of the writer's session.
pub(crate) fn session(model: &Backups, number: usize) -> u8 {
    if model.rules.has(Rule::SessionIdsAreNew) {
        WRITER[number]
    } else {
        WRITER[0]
    }
}

/// The name of the pack that it writes.
fn pack(model: &Backups, state: &State, number: usize) -> u8 {
    let name_of_other = !model.rules.has(Rule::PackNamesAreNew)
        && !state.bucket.packs.has(WRITER[0])
        && state.writers[0].at == WriterAt::Gone;
    if name_of_other { WRITER[0] } else { WRITER[number] }
}

fn read_manifest(model: &Backups, next: &mut State, number: usize) {
    let newest = manifest_read(model, &next.bucket);
    let writer = &mut next.writers[number];
    writer.avoided = newest.condemned;
    if model.rules.has(Rule::RemovedIsForgotten) {
        writer.avoided = writer.avoided.union(newest.removed);
    }
}

/// Learns which packs there are by probing the streams, and either finds a copy of the chunk that it may use, or has
/// not come to one, or there is none.
fn look_for_copy(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let writer = state.writers[number];
    let mut usable = writer.known.union(state.bucket.packs);
    if model.rules.has(Rule::NothingCondemnedIsUsed) {
        usable = usable.minus(writer.avoided);
    } else {
        usable = usable.minus(state.bucket.newest.removed);
    }
    if let Some(copy) = usable.lowest() {
        let mut next = *state;
        next.writers[number].at = WriterAt::PutEnd;
        forget(&mut next.writers[number]);
        steps.act(next, || {
            format!("writer {number}: deduplicates against pack {copy}")
        });
    }
    let pack = pack(model, state, number);
    let mut next = *state;
    let writer = &mut next.writers[number];
    forget(writer);
    writer.at = WriterAt::PutEnd;
    if model.rules.has(Rule::PacksBeforeEnd) {
        writer.put_pack = pack == WRITER[number];
        next.bucket.packs = next.bucket.packs.with(pack);
        steps.act(next, || {
            format!("writer {number}: finds no copy that it may use, or not yet: PUT pack {pack}")
        });
    } else {
        steps.act(next, || format!("writer {number}: has PUT pack {pack} under way"));
    }
}

/// What it knew serves no more.
fn forget(writer: &mut Writer) {
    writer.known = Set::NONE;
    writer.avoided = Set::NONE;
}

/// Creates `end`. The answer may be lost: then it does the same again.
fn put_end(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let session = session(model, number);
    let mine = End::Backup(number as u8);
    let mut next = *state;
    if next
        .bucket
        .create_end(session, mine, model.rules.has(Rule::EndIfAbsent))
    {
        next.writers[number].put_end = true;
        if state.bucket.end(session) != mine {
            steps.befall(next, || {
                format!("writer {number}: PUT sessions/{session}/end is done, its answer is lost")
            });
        }
        next.writers[number].at = WriterAt::Confirm;
        steps.act(next, || {
            format!("writer {number}: PUT sessions/{session}/end: 200")
        });
        return;
    }
    let there = state.bucket.end(session);
    if !model.rules.has(Rule::CompareEnd) || there == mine {
        next.writers[number].at = WriterAt::Confirm;
        steps.act(next, || {
            format!("writer {number}: PUT sessions/{session}/end: 412, takes it for its own")
        });
    } else {
        next.writers[number] = gone(&state.writers[number]);
        steps.act(next, || {
            format!("writer {number}: PUT sessions/{session}/end: 412, {there:?}: the backup failed")
        });
    }
}

fn confirm(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let session = session(model, number);
    let closed = model.rules.has(Rule::ConfirmEnd) && state.bucket.newest.closed.has(session);
    let mut next = *state;
    next.writers[number].at = if closed { WriterAt::Gone } else { WriterAt::Done };
    let result = if closed {
        "its session is closed: the backup failed"
    } else {
        "the backup is done"
    };
    steps.act(next, || {
        format!("writer {number}: reads the newest manifest, {result}")
    });
}

/// A process that is gone; its requests may be under way.
fn gone(writer: &Writer) -> Writer {
    Writer {
        at: WriterAt::Gone,
        known: Set::NONE,
        avoided: Set::NONE,
        ..*writer
    }
}

/// A request that a proxy or the network has held back, and delivers after its sender repeated it or is gone.
fn late_requests(model: &Backups, state: &State, number: usize, steps: &mut Steps<State>) {
    let writer = state.writers[number];
    let session = session(model, number);
    if !matches!(writer.at, WriterAt::Done | WriterAt::Gone) {
        return;
    }
    if writer.put_begin && !state.bucket.begins.has(session) {
        let mut next = *state;
        next.bucket.begins = next.bucket.begins.with(session);
        steps.befall(next, || {
            format!("network: a late PUT of sessions/{session}/begin arrives")
        });
    }
    if writer.put_pack && !state.bucket.packs.has(WRITER[number]) {
        let mut next = *state;
        next.bucket.packs = next.bucket.packs.with(WRITER[number]);
        steps.befall(next, || {
            format!("network: a late PUT of pack {} arrives", WRITER[number])
        });
    }
    if writer.put_end && state.bucket.end(session) == End::Absent {
        let mut next = *state;
        next.bucket.create_end(session, End::Backup(number as u8), true);
        steps.befall(next, || {
            format!("network: a late PUT of sessions/{session}/end arrives")
        });
    }
}
