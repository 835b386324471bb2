//! What the bucket holds of one WAL name, and what each actor knows.

/// The bytes of a file. Archiver 0 has the first, archiver 1 the others: a second server that was promoted, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Bytes {
    X,
    Y,
}

/// Where a copy of the file can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// `wal/<server>/<tli>/<file>`: the one name that can come back after it was deleted.
    Name,
    /// A pack into which a sweep merged it.
    Merged(u8),
}

/// What is in the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bucket {
    pub(crate) name: Option<Bytes>,
    /// A merged pack of each sweep.
    pub(crate) merged: [Option<Bytes>; 2],
    pub(crate) was_merged: [bool; 2],
    pub(crate) newest: Manifest,
    /// Retention needs this file no more.
    pub(crate) dropped: bool,
}

/// `index/<n>/manifest` with the highest number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Manifest {
    /// The file is at or below the watermark of its timeline.
    pub(crate) covers: bool,
    pub(crate) indexed: Option<(Place, Bytes)>,
    pub(crate) condemned: Places,
    pub(crate) removed: Places,
}

/// A set of places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Places {
    pub(crate) name: bool,
    pub(crate) merged: [bool; 2],
}

/// `archive_command` for the file; PostgreSQL calls it again until it succeeds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Archiver {
    pub(crate) at: ArchiverAt,
    /// Only without `CheckAfterPut`.
    pub(crate) read_before: Option<Manifest>,
    /// A request of it may be under way.
    pub(crate) put: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ArchiverAt {
    Absent,
    Put,
    Compare,
    Check,
    Acknowledged,
    Quarantined,
}

/// A sweep.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Sweep {
    pub(crate) at: SweepAt,
    pub(crate) overtaken: bool,
    pub(crate) next: Manifest,
    /// What it read to merge it.
    pub(crate) read: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SweepAt {
    Idle,
    /// Has read the newest manifest.
    Look,
    Merge,
    PutManifest,
    Delete,
}

/// `get-wal` of the file, or a restore.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Reader {
    pub(crate) at: ReaderAt,
    pub(crate) got: Option<Bytes>,
    /// The file had been acknowledged when it began.
    pub(crate) promised: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ReaderAt {
    Absent,
    Start,
    GetName,
    ReadManifest,
    /// By the index, which also says what is there.
    Get(Place, Bytes),
    Done,
}

/// Everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) bucket: Bucket,
    pub(crate) archivers: [Archiver; 2],
    pub(crate) sweeps: [Sweep; 2],
    pub(crate) reader: Reader,
    /// The bytes that the first acknowledgement or the first reader was about.
    pub(crate) told: Option<Bytes>,
    pub(crate) fault: Option<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// Somebody was told other bytes than somebody before.
    Changed,
    /// A reader did not find what had been acknowledged when it began.
    Vanished,
}

impl Bucket {
    pub(crate) fn at(&self, place: Place) -> Option<Bytes> {
        match place {
            Place::Name => self.name,
            Place::Merged(sweep) => self.merged[usize::from(sweep)],
        }
    }

    /// What is there of `places`.
    pub(crate) fn present(&self, places: Places) -> Places {
        Places {
            name: places.name && self.name.is_some(),
            merged: [0, 1].map(|sweep| places.merged[sweep] && self.merged[sweep].is_some()),
        }
    }
}

impl Places {
    pub(crate) const ALL: Places = Places {
        name: true,
        merged: [true; 2],
    };

    pub(crate) fn is_empty(self) -> bool {
        self == Places::default()
    }

    pub(crate) fn union(self, other: Places) -> Places {
        Places {
            name: self.name || other.name,
            merged: [0, 1].map(|sweep| self.merged[sweep] || other.merged[sweep]),
        }
    }

    pub(crate) fn without(mut self, place: Option<Place>) -> Places {
        match place {
            Some(Place::Name) => self.name = false,
            Some(Place::Merged(sweep)) => self.merged[usize::from(sweep)] = false,
            None => {}
        }
        self
    }
}

impl State {
    /// Somebody learns what the file contains, and relies on it.
    pub(crate) fn tell(&mut self, bytes: Bytes) {
        if self.bucket.dropped {
            return;
        }
        match self.told {
            None => self.told = Some(bytes),
            Some(before) if before != bytes => self.fault = Some(Fault::Changed),
            Some(_) => {}
        }
    }
}
