//! Backups, clones and readers beside two sweeps.

mod clone;
pub(crate) mod rules;
pub(crate) mod state;
mod sweep;
mod writer;

use crate::search::{Model, Steps};
use crate::set::Set;
use rules::{Rule, Rules};
use state::{
    Bucket, CLONE, COPY, CloneAt, End, Manifest, Reader, ReaderAt, State, Sweep, WRITER, Writer, WriterAt,
};

/// Where runs begin. The later beginnings save steps on the way to what a test is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Backup 0 and its pack are there, and no manifest has decided anything.
    Fresh,
    /// Writer 0 has deduplicated against pack 0 and has not ended; then retention removed backup 0, a sweep condemned
    /// pack 0, and has listed writer 0's session.
    Condemned,
    /// Writer 0 has written pack 1 and is gone; backup 0 is removed and pack 0 condemned. Pack 1 and session 1 were
    /// removed earlier.
    PackRemoved,
}

/// Who takes part, and which safeguards are on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backups {
    pub(crate) rules: Rules,
    pub(crate) start: Start,
    pub(crate) writers: usize,
    pub(crate) sweeps: usize,
    /// How many of the sweeps copy a sparse pack once.
    pub(crate) copies: usize,
    pub(crate) clone: bool,
    pub(crate) reader: bool,
    /// Whether retention may take backups away.
    pub(crate) retention: bool,
    /// Whether the network may deliver requests again, at any time.
    pub(crate) held: bool,
    /// Whether others may act while a LIST is under way, between any two keys.
    pub(crate) list_by_key: bool,
}

impl Start {
    fn apply(self, state: &mut State) {
        if self == Start::Fresh {
            return;
        }
        let bucket = &mut state.bucket;
        bucket.annulled = Set::one(0);
        bucket.has_older = true;
        bucket.newest.condemns = true;
        bucket.newest.condemned = Set::one(0);
        let writer = &mut state.writers[0];
        writer.known = Set::NONE;
        writer.put_begin = true;
        if self == Start::Condemned {
            bucket.begins = bucket.begins.with(WRITER[0]);
            bucket.newest.after = Some(Set::one(WRITER[0]));
            writer.at = WriterAt::PutEnd;
        } else {
            bucket.pruned = true;
            bucket.newest.removed = Set::one(WRITER[0]);
            bucket.newest.closed = Set::one(WRITER[0]);
            writer.at = WriterAt::Gone;
            writer.put_pack = true;
        }
    }
}

impl Backups {
    /// Nobody; the tests add who takes part.
    pub(crate) const NOBODY: Backups = Backups {
        rules: Rules::all(),
        start: Start::Fresh,
        writers: 0,
        sweeps: 0,
        copies: 0,
        clone: false,
        reader: false,
        retention: true,
        held: true,
        list_by_key: true,
    };

    /// The sessions that can be there, from `first` on.
    fn keys_from(&self, first: u8) -> Set {
        let mut keys = Set::one(0);
        for session in WRITER
            .iter()
            .take(self.writers)
            .chain(COPY.iter().take(self.copies))
        {
            keys = keys.with(*session);
        }
        if self.clone {
            keys = keys.with(CLONE);
        }
        keys.starting_at(first)
    }
}

/// The manifest that a host takes for the newest, if it knows the first one.
fn manifest_read(model: &Backups, bucket: &Bucket) -> Manifest {
    if bucket.pruned && !model.rules.has(Rule::NewestIsListed) {
        Manifest::default()
    } else {
        bucket.newest
    }
}

impl Model for Backups {
    type State = State;

    fn initial(&self) -> State {
        let mut ends = [End::Absent; 6];
        ends[0] = End::Backup(9);
        let writer = |number| Writer {
            at: if number < self.writers {
                WriterAt::Start
            } else {
                WriterAt::Gone
            },
            known: Set::one(0),
            avoided: Set::NONE,
            put_begin: false,
            put_pack: false,
            put_end: false,
        };
        let mut state = State {
            bucket: Bucket {
                packs: Set::one(0),
                begins: Set::one(0),
                ends,
                roots: Set::NONE,
                annulled: Set::NONE,
                newest: Manifest::default(),
                has_older: false,
                pruned: false,
            },
            writers: [writer(0), writer(1)],
            sweeps: [Sweep::IDLE; 2],
            clone: if self.clone { CloneAt::Start } else { CloneAt::Gone },
            reader: Reader {
                at: if self.reader {
                    ReaderAt::Get
                } else {
                    ReaderAt::Done
                },
                known: Set::one(0),
            },
            deleted_wrongly: false,
        };
        self.start.apply(&mut state);
        state
    }

    fn steps(&self, state: &State, steps: &mut Steps<State>) {
        for number in 0..self.writers {
            writer::steps(self, state, number, steps);
        }
        for number in 0..self.sweeps {
            sweep::steps(self, state, number, steps);
        }
        clone::steps(self, state, steps);
        clone::reader_steps(self, state, steps);
        if self.retention {
            for session in [0, WRITER[0], WRITER[1]] {
                if state.bucket.has_backup(session, true) {
                    let mut next = *state;
                    next.bucket.annulled = next.bucket.annulled.with(session);
                    steps.befall(next, || format!("retention: removes backup {session}"));
                }
            }
        }
    }

    fn canonical(&self, mut state: State) -> State {
        if self.sweeps == 2
            && self.copies == 0
            && self.rules.has(Rule::RankByName)
            && state.sweeps[0] > state.sweeps[1]
        {
            state.sweeps.swap(0, 1);
        }
        state
    }

    fn broken(&self, state: &State) -> Option<String> {
        let bucket = &state.bucket;
        let closed_counts = self.rules.has(Rule::ClosedStaysClosed);
        let lacks = bucket.found_packs().is_empty();
        for session in [0, WRITER[0], WRITER[1]] {
            if bucket.has_backup(session, closed_counts) && lacks {
                return Some(format!("backup {session} is published and lacks its chunk"));
            }
        }
        if state.clone == CloneAt::Done && lacks {
            return Some("the clone lacks a chunk of its backup".to_owned());
        }
        for (number, writer) in state.writers.iter().enumerate() {
            let session = writer::session(self, number);
            let there = bucket.end(session) == End::Backup(number as u8) && bucket.has_backup(session, true);
            if writer.at == WriterAt::Done && !there && !bucket.annulled.has(session) {
                return Some(format!(
                    "writer {number} reported its backup as done, and it is not there"
                ));
            }
        }
        if state.reader.at == ReaderAt::Failed {
            return Some("the reader failed, and the backup is there".to_owned());
        }
        state
            .deleted_wrongly
            .then(|| "a sweep deleted what the chain has not removed".to_owned())
    }

    fn at_rest(&self, state: &State) -> bool {
        let bucket = &state.bucket;
        let live_root = bucket.roots.has(CLONE) && bucket.end(CLONE) == End::Clone;
        let needed = |session| match session {
            CLONE => live_root,
            _ => bucket.has_backup(session, true),
        };
        let live = (0..6).any(needed);
        let sessions = [0, WRITER[0], WRITER[1], CLONE, COPY[0], COPY[1]];
        !bucket.newest.condemns
            && bucket.packs.len() == u32::from(live)
            && bucket.packs.common(bucket.newest.removed).is_empty()
            && (bucket.roots.is_empty() || live_root)
            && sessions.iter().all(|session| {
                needed(*session) || (!bucket.begins.has(*session) && bucket.end(*session) == End::Absent)
            })
    }
}
