//! One WAL name beside two archivers, two sweeps that merge, and a reader.

mod archiver;
pub(crate) mod rules;
mod state;
mod sweep;

use crate::search::{Model, Steps};
use rules::Rules;
use state::{Archiver, ArchiverAt, Bucket, Fault, Manifest, Place, Reader, ReaderAt, State};

/// Who takes part, and which safeguards are on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wal {
    pub(crate) rules: Rules,
    pub(crate) archivers: usize,
    pub(crate) sweeps: usize,
    pub(crate) reader: bool,
    /// Whether retention may drop the file.
    pub(crate) retention: bool,
    /// Whether the watermark may pass the file before it is there.
    pub(crate) gaps: bool,
}

impl Model for Wal {
    type State = State;

    fn initial(&self) -> State {
        let archiver = |number| Archiver {
            at: if number < self.archivers {
                ArchiverAt::Put
            } else {
                ArchiverAt::Absent
            },
            read_before: None,
            put: false,
        };
        State {
            bucket: Bucket {
                name: None,
                merged: [None; 2],
                was_merged: [false; 2],
                newest: Manifest::default(),
                dropped: false,
            },
            archivers: [archiver(0), archiver(1)],
            sweeps: [sweep::IDLE; 2],
            reader: Reader {
                at: if self.reader {
                    ReaderAt::Start
                } else {
                    ReaderAt::Absent
                },
                got: None,
                promised: false,
            },
            told: None,
            fault: None,
        }
    }

    fn steps(&self, state: &State, steps: &mut Steps<State>) {
        for number in 0..self.archivers {
            archiver::steps(self, state, number, steps);
        }
        for number in 0..self.sweeps {
            sweep::steps(self, state, number, steps);
        }
        archiver::reader_steps(self, state, steps);
        if self.retention && !state.bucket.dropped {
            let mut next = *state;
            next.bucket.dropped = true;
            steps.befall(next, || "retention: needs the file no more".to_owned());
        }
    }

    fn broken(&self, state: &State) -> Option<String> {
        match state.fault {
            Some(Fault::Changed) => return Some("somebody got other bytes than somebody before".to_owned()),
            Some(Fault::Vanished) => return Some("a reader did not find an acknowledged file".to_owned()),
            None => {}
        }
        let acknowledged = state
            .archivers
            .iter()
            .any(|other| other.at == ArchiverAt::Acknowledged);
        let newest = state.bucket.newest;
        let found = match newest.indexed.filter(|_| newest.covers) {
            Some((place, bytes)) => state.bucket.at(place) == Some(bytes),
            None => state.bucket.name.is_some(),
        };
        (acknowledged && !found && !state.bucket.dropped)
            .then(|| "an acknowledged file is not where its readers look".to_owned())
    }

    fn at_rest(&self, state: &State) -> bool {
        let bucket = &state.bucket;
        let copies = usize::from(bucket.name.is_some()) + bucket.merged.iter().flatten().count();
        let place = bucket.newest.indexed.map(|(place, _)| place);
        let needed = place.is_some_and(|place: Place| bucket.at(place).is_some()) || bucket.name.is_some();
        bucket.newest.condemned.is_empty() && copies == usize::from(needed && !bucket.dropped)
    }
}
