//! What the bucket holds and what each actor knows.
//!
//! There is one chunk, which every backup needs, and each pack holds a copy of it: what holds for one chunk holds for
//! each. Session 0 has ended, and backup 0 and pack 0 are there in the beginning.

use crate::set::Set;

/// The sessions of the two writers, of the clone, and of the two sweeps, which copy a sparse pack.
pub(crate) const WRITER: [u8; 2] = [1, 2];
pub(crate) const CLONE: u8 = 3;
pub(crate) const COPY: [u8; 2] = [4, 5];
pub(crate) const SESSIONS: u8 = 6;

/// What is in the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bucket {
    pub(crate) packs: Set,
    pub(crate) begins: Set,
    pub(crate) ends: [End; SESSIONS as usize],
    pub(crate) roots: Set,
    /// Backups that retention has taken away.
    pub(crate) annulled: Set,
    pub(crate) newest: Manifest,
    /// Whether there are manifests below the newest.
    pub(crate) has_older: bool,
    /// Whether the manifest after the first one was deleted.
    pub(crate) pruned: bool,
}

/// `sessions/<id>/end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    Absent,
    /// The record of a backup by this writer; 9 is the one of the beginning.
    Backup(u8),
    /// A clone is complete.
    Clone,
    /// A sweep has copied a pack.
    Copy,
    Void,
}

/// `index/<n>/manifest` with the highest number. How high does not matter, only who has seen an older one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Manifest {
    /// The step of the chain that condemns, and is followed by one that removes.
    pub(crate) condemns: bool,
    pub(crate) condemned: Set,
    pub(crate) removed: Set,
    /// Sessions that are over for good, and whose keys can be deleted.
    pub(crate) closed: Set,
    /// `index/<n>/after`: the sessions without `end` that a LIST saw.
    pub(crate) after: Option<Set>,
}

/// A backup under way.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Writer {
    pub(crate) at: WriterAt,
    /// Packs in the host's index.
    pub(crate) known: Set,
    /// Packs that the manifest it read has as condemned or removed.
    pub(crate) avoided: Set,
    /// Its requests, which the network may hold back and deliver once more.
    pub(crate) put_begin: bool,
    pub(crate) put_pack: bool,
    pub(crate) put_end: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WriterAt {
    Start,
    /// Only without `BeginBeforeManifest`.
    ReadTooEarly,
    Begun,
    Read,
    PutEnd,
    Confirm,
    /// The backup was reported as done.
    Done,
    /// It failed, or its process is gone.
    Gone,
}

/// A sweep, which goes through one step of the chain and begins again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Sweep {
    pub(crate) at: SweepAt,
    /// The manifest that it decides on.
    pub(crate) basis: Manifest,
    /// How many newer ones there are, at most 2.
    pub(crate) behind: u8,
    /// The manifest that follows its basis was there and was deleted.
    pub(crate) name_is_free: bool,
    /// What it wants to condemn or to remove.
    pub(crate) plan: Set,
    pub(crate) closes: Set,
    /// Sessions without `end`, as its LIST saw them.
    pub(crate) open: Set,
    /// Its mark has found a reference to the chunk.
    pub(crate) live: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SweepAt {
    Idle,
    /// Has PUT `begin` of a session that copies a sparse pack.
    CopyBegun,
    CopyPut,
    CopyEnd,
    /// Only without `ManifestBeforeSessions`.
    ListTooEarly,
    Condemn,
    /// Lists sessions key by key, then PUTs `after`.
    List(u8),
    PutAfter,
    Fence,
    /// Looks for references session by session.
    Mark(u8),
    Remove,
    CheckRemoved,
    Delete,
}

/// A clone of backup 0 that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CloneAt {
    Start,
    Begun,
    PutRoot,
    PutEnd,
    Confirm,
    /// Only without `RootBeforeEnd`.
    PutRootTooLate,
    Done,
    Gone,
}

/// Somebody who reads backup 0 with an index of the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Reader {
    pub(crate) at: ReaderAt,
    pub(crate) known: Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ReaderAt {
    Get,
    /// A pack was not there.
    Refresh,
    GetAgain,
    Done,
    /// It reported an error while the backup was there.
    Failed,
}

/// Everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) bucket: Bucket,
    pub(crate) writers: [Writer; 2],
    pub(crate) sweeps: [Sweep; 2],
    pub(crate) clone: CloneAt,
    pub(crate) reader: Reader,
    /// A sweep deleted a pack that the chain has not removed.
    pub(crate) deleted_wrongly: bool,
}

impl Bucket {
    /// Whether the backup of `session` is one: what every host reads from the bucket.
    pub(crate) fn has_backup(&self, session: u8, closed_counts: bool) -> bool {
        matches!(self.ends[session as usize], End::Backup(_))
            && !self.annulled.has(session)
            && !(closed_counts && self.newest.closed.has(session))
    }

    /// Packs that a host finds which reads the newest manifest.
    pub(crate) fn found_packs(&self) -> Set {
        self.packs.minus(self.newest.removed)
    }

    pub(crate) fn end(&self, session: u8) -> End {
        self.ends[session as usize]
    }

    pub(crate) fn is_open(&self, session: u8) -> bool {
        self.begins.has(session) && self.end(session) == End::Absent && !self.newest.closed.has(session)
    }

    /// Whether nobody needs the keys of a session any more.
    pub(crate) fn is_spent(&self, session: u8) -> bool {
        let begun = self.begins.has(session) && !self.newest.closed.has(session);
        begun
            && match self.end(session) {
                End::Absent => false,
                End::Backup(_) => self.annulled.has(session),
                End::Clone => !self.roots.has(session),
                End::Copy | End::Void => true,
            }
    }

    /// Creates the key if it is absent; the answer is false for a 412.
    pub(crate) fn create_end(&mut self, session: u8, end: End, if_absent: bool) -> bool {
        let place = &mut self.ends[session as usize];
        if if_absent && *place != End::Absent {
            return false;
        }
        *place = end;
        true
    }
}

impl Sweep {
    pub(crate) const IDLE: Sweep = Sweep {
        at: SweepAt::Idle,
        basis: Manifest {
            condemns: false,
            condemned: Set::NONE,
            removed: Set::NONE,
            closed: Set::NONE,
            after: None,
        },
        behind: 0,
        name_is_free: false,
        plan: Set::NONE,
        closes: Set::NONE,
        open: Set::NONE,
        live: false,
    };
}
