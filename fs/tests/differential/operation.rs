//! The operations on both directories, and their random choice.

use rustix::fs::{AtFlags, FallocateFlags, OFlags, RenameFlags};

use crate::random::Random;

/// Maximum number of open files.
pub(crate) const SLOTS: usize = 6;

/// Only a few names, so that operations meet. Some are in the backup; the mount itself checks one of them.
const NAMES: &[&str] = &[
    "a",
    "b",
    "c",
    "base",
    "5",
    "1259",
    "1259_fsm",
    "empty",
    "link",
    "PG_VERSION",
    "pg_wal",
    "postmaster.pid",
];

/// Approximate maximum size of a file.
const LARGEST_BYTES: u64 = 400_000;

/// Direct reads and writes begin and end on a multiple of this.
pub(crate) const DIRECT_BYTES: u64 = 4096;

/// One system call, or a few that belong together. Slots hold open files.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Open {
        slot: usize,
        path: String,
        flags: OFlags,
        mode: u32,
    },
    Close {
        slot: usize,
    },
    ReadAt {
        slot: usize,
        offset: u64,
        length: usize,
    },
    WriteAt {
        slot: usize,
        offset: u64,
        length: usize,
        seed: u64,
    },
    /// At the file's position, or at its end.
    Write {
        slot: usize,
        length: usize,
        seed: u64,
    },
    /// Reads through a shared mapping.
    ReadMapped {
        slot: usize,
        offset: u64,
        length: usize,
    },
    /// Writes through a shared mapping.
    WriteMapped {
        slot: usize,
        offset: u64,
        length: usize,
        seed: u64,
        sync: bool,
    },
    SetSize {
        slot: usize,
        size: u64,
    },
    Truncate {
        path: String,
        size: u64,
    },
    Allocate {
        slot: usize,
        flags: FallocateFlags,
        offset: u64,
        length: u64,
    },
    Sync {
        slot: usize,
        data_only: bool,
    },
    SyncDirectory {
        path: String,
    },
    /// Goes through a file from one piece of data to the next.
    SeekThrough {
        slot: usize,
    },
    Stat {
        path: String,
        flags: AtFlags,
    },
    Read {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        flags: RenameFlags,
    },
    Link {
        from: String,
        to: String,
    },
    Symlink {
        target: String,
        path: String,
    },
    ReadLink {
        path: String,
    },
    Unlink {
        path: String,
    },
    MakeDirectory {
        path: String,
        mode: u32,
    },
    RemoveDirectory {
        path: String,
    },
    /// Lists a directory while names are added and removed.
    List {
        path: String,
        read_first: usize,
    },
    SetMode {
        path: String,
        mode: u32,
    },
    SetOwner {
        path: String,
        uid: Option<u32>,
        gid: Option<u32>,
        flags: AtFlags,
    },
    /// Sets the modification time to now, or to this time.
    SetTime {
        path: String,
        time: Option<(i64, i64)>,
        flags: AtFlags,
    },
}

impl Operation {
    /// A random operation; `known` are paths that exist or existed.
    pub(crate) fn any(random: &mut Random, known: &[String]) -> Self {
        match random.below(10) {
            0..=5 => Self::with_file(random, known),
            6 | 7 => Self::with_names(random, known),
            8 => Self::with_attributes(random, known),
            _ => Self::open(random, known),
        }
    }

    fn open(random: &mut Random, known: &[String]) -> Self {
        let access = random.one(&[
            OFlags::RDONLY,
            OFlags::RDWR,
            OFlags::RDWR,
            OFlags::RDWR,
            OFlags::WRONLY,
        ]);
        let rarely = |random: &mut Random, flag| match random.below(4) {
            0 => flag,
            _ => OFlags::empty(),
        };
        let mut flags = access | OFlags::CLOEXEC;
        for flag in [
            OFlags::CREATE,
            OFlags::CREATE,
            OFlags::EXCL,
            OFlags::TRUNC,
            OFlags::APPEND,
            OFlags::NOFOLLOW,
            OFlags::DIRECT,
            OFlags::DSYNC,
        ] {
            flags |= rarely(random, flag);
        }
        // Without O_CREAT, O_EXCL has another meaning.
        if !flags.contains(OFlags::CREATE) {
            flags -= OFlags::EXCL;
        }
        // A direct write may not be possible at the end of a file.
        if flags.contains(OFlags::APPEND) {
            flags -= OFlags::DIRECT;
        }
        Self::Open {
            slot: slot(random),
            path: path(random, known),
            flags,
            mode: mode(random),
        }
    }

    fn with_file(random: &mut Random, known: &[String]) -> Self {
        let (slot, offset, length) = (slot(random), offset(random), length(random));
        let seed = random.next();
        match random.below(24) {
            0..=4 => Self::WriteAt {
                slot,
                offset,
                length,
                seed,
            },
            5..=7 => Self::Write { slot, length, seed },
            8..=11 => Self::ReadAt { slot, offset, length },
            12 => Self::ReadMapped { slot, offset, length },
            13 | 14 => Self::WriteMapped {
                slot,
                offset,
                length,
                seed,
                sync: random.below(3) == 0,
            },
            15 | 16 => Self::SetSize { slot, size: offset },
            17 => Self::Truncate {
                path: path(random, known),
                size: offset,
            },
            18 | 19 => Self::Allocate {
                slot,
                flags: random.one(&[
                    FallocateFlags::empty(),
                    FallocateFlags::KEEP_SIZE,
                    FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE),
                    FallocateFlags::ZERO_RANGE,
                    FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE),
                ]),
                offset,
                length: length as u64,
            },
            20 | 21 => Self::Sync {
                slot,
                data_only: random.below(2) == 0,
            },
            22 => Self::SeekThrough { slot },
            _ => Self::Close { slot },
        }
    }

    fn with_names(random: &mut Random, known: &[String]) -> Self {
        let (path, other) = (path(random, known), path(random, known));
        match random.below(16) {
            0..=2 => Self::Rename {
                from: path,
                to: other,
                flags: random.one(&[
                    RenameFlags::empty(),
                    RenameFlags::empty(),
                    RenameFlags::NOREPLACE,
                    RenameFlags::EXCHANGE,
                ]),
            },
            3 => Self::Link {
                from: path,
                to: other,
            },
            // A target is resolved from the link's own directory, so it never leaves the tree.
            4 => Self::Symlink {
                target: random.one(NAMES).to_owned(),
                path,
            },
            5 => Self::ReadLink { path },
            6 | 7 => Self::Unlink { path },
            8 | 9 => Self::MakeDirectory {
                path,
                mode: mode(random),
            },
            10 => Self::RemoveDirectory { path },
            11 | 12 => Self::List {
                path,
                read_first: random.below(6) as usize,
            },
            13 => Self::SyncDirectory { path },
            _ => Self::Read { path },
        }
    }

    fn with_attributes(random: &mut Random, known: &[String]) -> Self {
        let path = path(random, known);
        let flags = random.one(&[AtFlags::empty(), AtFlags::SYMLINK_NOFOLLOW]);
        let id = |random: &mut Random| match random.below(3) {
            0 => None,
            _ => Some(random.one(&[0, 4711, 4712, 65534])),
        };
        match random.below(6) {
            0 | 1 => Self::SetMode {
                path,
                mode: mode(random),
            },
            2 => Self::SetOwner {
                path,
                uid: id(random),
                gid: id(random),
                flags,
            },
            3 => Self::SetTime {
                path,
                time: match random.below(2) {
                    0 => None,
                    _ => Some((
                        // Some of them before 1970.
                        random.below(1_500_000_000) as i64 - 300_000_000,
                        random.below(1_000_000_000) as i64,
                    )),
                },
                flags,
            },
            _ => Self::Stat { path, flags },
        }
    }
}

fn slot(random: &mut Random) -> usize {
    random.below(SLOTS as u64) as usize
}

/// Often a known path; otherwise at most three names deep.
fn path(random: &mut Random, known: &[String]) -> String {
    if !known.is_empty() && random.below(2) == 0 {
        return known[random.below(known.len() as u64) as usize].clone();
    }
    let depth = 1 + random.below(3);
    let names: Vec<&str> = (0..depth).map(|_| random.one(NAMES)).collect();
    names.join("/")
}

/// Mostly modes with all permissions for the owner.
fn mode(random: &mut Random) -> u32 {
    random.one(&[
        0o600, 0o600, 0o644, 0o700, 0o700, 0o755, 0o444, 0o2755, 0o4755, 0o6711, 0o1777,
    ])
}

/// Often at the edge of a block, or one byte off.
fn offset(random: &mut Random) -> u64 {
    let block = random.below(LARGEST_BYTES / 8192) * 8192;
    match random.below(5) {
        0 => block,
        1 => block + 1,
        2 => block.saturating_sub(1),
        3 => random.below(20_000),
        _ => random.below(LARGEST_BYTES),
    }
}

fn length(random: &mut Random) -> usize {
    let length = match random.below(5) {
        0 => 8192,
        1 => 1 + random.below(100),
        2 => 8192 * (1 + random.below(5)),
        3 => 4096,
        _ => 1 + random.below(40_000),
    };
    length as usize
}
