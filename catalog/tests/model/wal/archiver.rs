//! The archiver of one WAL file, and a reader of it.

use super::Wal;
use super::rules::Rule;
use super::state::{Archiver, ArchiverAt, Bytes, Fault, ReaderAt, State};
use crate::search::Steps;

/// The steps of archiver `number`.
pub(crate) fn steps(model: &Wal, state: &State, number: usize, steps: &mut Steps<State>) {
    let archiver = state.archivers[number];
    let mine = if number == 0 { Bytes::X } else { Bytes::Y };
    match archiver.at {
        ArchiverAt::Put => put(model, state, number, mine, steps),
        ArchiverAt::Compare => compare(model, state, number, mine, steps),
        ArchiverAt::Check => check(model, state, number, mine, steps),
        ArchiverAt::Absent | ArchiverAt::Acknowledged | ArchiverAt::Quarantined => {}
    }
    if matches!(archiver.at, ArchiverAt::Compare | ArchiverAt::Check) {
        let mut next = *state;
        next.archivers[number] = Archiver {
            at: ArchiverAt::Put,
            read_before: None,
            ..archiver
        };
        steps.befall(next, || {
            format!("archiver {number}: is killed, PostgreSQL calls it again")
        });
    }
    let ended = matches!(archiver.at, ArchiverAt::Acknowledged | ArchiverAt::Quarantined);
    if ended && archiver.put && state.bucket.name.is_none() {
        let mut next = *state;
        next.bucket.name = Some(mine);
        steps.befall(next, || {
            format!("network: a late PUT of the name with {mine:?} arrives")
        });
    }
}

/// The PUT. Its answer may be lost: then the archiver does the same again.
fn put(model: &Wal, state: &State, number: usize, mine: Bytes, steps: &mut Steps<State>) {
    let mut next = *state;
    let archiver = &mut next.archivers[number];
    if !model.rules.has(Rule::CheckAfterPut) && archiver.read_before.is_none() {
        archiver.read_before = Some(state.bucket.newest);
        steps.act(next, || {
            format!("archiver {number}: reads the newest manifest before its PUT")
        });
        return;
    }
    archiver.put = true;
    if state.bucket.name.is_some() && model.rules.has(Rule::CreateIfAbsent) {
        archiver.at = ArchiverAt::Compare;
        steps.act(next, || {
            format!("archiver {number}: PUT of the name with {mine:?}: 412")
        });
        return;
    }
    next.bucket.name = Some(mine);
    if next != *state {
        steps.befall(next, || {
            format!("archiver {number}: PUT of the name with {mine:?} is done, its answer is lost")
        });
    }
    next.archivers[number].at = ArchiverAt::Check;
    steps.act(next, || {
        format!("archiver {number}: PUT of the name with {mine:?}: 200")
    });
}

fn compare(model: &Wal, state: &State, number: usize, mine: Bytes, steps: &mut Steps<State>) {
    let mut next = *state;
    let there = state.bucket.name;
    let equal = there == Some(mine) || !model.rules.has(Rule::CompareOn412);
    if equal && model.rules.has(Rule::CheckAfter412) {
        next.archivers[number].at = ArchiverAt::Check;
    } else if equal {
        acknowledge(&mut next, number, mine);
    } else if there.is_none() {
        next.archivers[number].at = ArchiverAt::Put;
    } else {
        quarantine(&mut next, number);
    }
    steps.act(next, || {
        format!(
            "archiver {number}: reads {there:?} under the name: {:?}",
            next.archivers[number].at
        )
    });
}

fn check(model: &Wal, state: &State, number: usize, mine: Bytes, steps: &mut Steps<State>) {
    let mut next = *state;
    let manifest = state.archivers[number].read_before.unwrap_or(state.bucket.newest);
    match manifest
        .indexed
        .filter(|_| manifest.covers && model.rules.has(Rule::CheckWatermark))
    {
        Some((_, bytes)) if bytes != mine => quarantine(&mut next, number),
        _ => acknowledge(&mut next, number, mine),
    }
    steps.act(next, || {
        let (covers, indexed) = (manifest.covers, manifest.indexed);
        format!(
            "archiver {number}: at or below the watermark: {covers}, the index has {indexed:?}: {:?}",
            next.archivers[number].at
        )
    });
}

fn acknowledge(next: &mut State, number: usize, bytes: Bytes) {
    next.archivers[number].at = ArchiverAt::Acknowledged;
    next.archivers[number].read_before = None;
    next.tell(bytes);
}

/// The file goes into a pack of the archiver's own stream, under a name that nobody else has.
fn quarantine(next: &mut State, number: usize) {
    next.archivers[number].at = ArchiverAt::Quarantined;
    next.archivers[number].read_before = None;
}

/// The steps of the reader: by name, then by the index.
pub(crate) fn reader_steps(model: &Wal, state: &State, steps: &mut Steps<State>) {
    let reader = state.reader;
    let mut next = *state;
    match reader.at {
        ReaderAt::Start => {
            next.reader.promised = state
                .archivers
                .iter()
                .any(|other| other.at == ArchiverAt::Acknowledged);
            next.reader.at = ReaderAt::GetName;
            steps.act(next, || "reader: begins".to_owned());
        }
        ReaderAt::GetName => {
            next.reader.got = state.bucket.name;
            next.reader.at = ReaderAt::ReadManifest;
            if let Some(bytes) = state
                .bucket
                .name
                .filter(|_| !model.rules.has(Rule::ReadChecksWatermark))
            {
                deliver(&mut next, bytes);
            }
            steps.act(next, || {
                format!("reader: GET of the name: {:?}", state.bucket.name)
            });
        }
        ReaderAt::ReadManifest => {
            let newest = state.bucket.newest;
            match (newest.indexed.filter(|_| newest.covers), reader.got) {
                (Some((place, bytes)), _) => {
                    next.reader.at = ReaderAt::Get(place, bytes);
                    next.reader.got = None;
                }
                (None, Some(bytes)) => deliver(&mut next, bytes),
                (None, None) => fail(&mut next),
            }
            steps.act(next, || {
                format!("reader: the index has {:?}: {:?}", newest.indexed, next.reader.at)
            });
        }
        ReaderAt::Get(place, bytes) => {
            let there = state.bucket.at(place);
            match there.filter(|there| *there == bytes || !model.rules.has(Rule::ReadComparesId)) {
                Some(there) => deliver(&mut next, there),
                None if model.rules.has(Rule::ReadAgain) => next.reader.at = ReaderAt::GetName,
                None => fail(&mut next),
            }
            steps.act(next, || format!("reader: GET of {place:?}: {there:?}"));
        }
        ReaderAt::Absent | ReaderAt::Done => {}
    }
}

fn deliver(next: &mut State, bytes: Bytes) {
    next.reader.at = ReaderAt::Done;
    next.reader.got = None;
    next.tell(bytes);
}

fn fail(next: &mut State) {
    next.reader.at = ReaderAt::Done;
    next.reader.got = None;
    if next.reader.promised && !next.bucket.dropped {
        next.fault = Some(Fault::Vanished);
    }
}
