//! What stands in a clone: files, directories, symbolic links, each known by a number that is its own for good.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use barmanfs_store::{Attributes, DirectoryRef, FileMap, RecordId};
use rustix::time::ClockId;

use super::blocks::Blocks;
use super::disk::DiskFile;

/// A node's number: its inode number, the same over renames and remounts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({:016x})", self.0)
    }
}

impl NodeId {
    /// Numbers below this are left to the mount.
    const FIRST: u64 = 16;

    /// Programs that keep a number in a signed 64-bit integer are to see it right.
    const MASK: u64 = (1 << 63) - 1;

    /// The number of what the clone stands on has at `path`.
    pub(super) fn of_path(clone: RecordId, path: &[u8]) -> Self {
        Self::hashed(clone, b"path", path)
    }

    /// The number of the `n`th node that was made in the clone.
    pub(super) fn of_made(clone: RecordId, n: u64) -> Self {
        Self::hashed(clone, b"made", &n.to_le_bytes())
    }

    fn hashed(clone: RecordId, kind: &[u8; 4], what: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(clone.to_string().as_bytes());
        hasher.update(kind);
        hasher.update(what);
        let mut number = [0; 8];
        hasher.finalize_xof().fill(&mut number);
        Self((u64::from_le_bytes(number) & Self::MASK).max(Self::FIRST))
    }
}

/// A time: since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub s: i64,
    /// Nanoseconds within the second.
    pub ns: u32,
}

impl Time {
    /// The clock file systems stamp files with: times taken here and by the kernel never go backwards.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
        Self {
            s: now.tv_sec,
            ns: u32::try_from(now.tv_nsec).unwrap_or(0),
        }
    }
}

/// What kind of node it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// The name of a socket: the kernel knows who listens on it.
    Socket,
}

/// What `stat` shows of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAttributes {
    /// Its number.
    pub node: NodeId,
    /// What it is.
    pub kind: Kind,
    /// The lower twelve bits of `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names it has; 1 for a directory, whose subdirectories nobody counts.
    pub links: u32,
    /// Size in bytes; of a symbolic link, its target's.
    pub size_bytes: u64,
    /// Bytes of it that are not in holes, be they shared with the backup or not.
    pub allocated_bytes: u64,
    /// When its content was last changed.
    pub mtime: Time,
    /// When anything of it was last changed.
    pub ctime: Time,
}

/// What is recorded of any node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Names that lead to it. Changed only while the names are locked for it.
    pub(super) links: u32,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
}

impl From<&Attributes> for Meta {
    fn from(attributes: &Attributes) -> Self {
        let time = Time {
            s: attributes.mtime_s,
            ns: attributes.mtime_ns,
        };
        Self {
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            links: 1,
            mtime: time,
            ctime: time,
        }
    }
}

/// What a node is, with what never changes of it.
#[derive(Debug)]
pub(super) enum Body {
    File(FileNode),
    /// What it has of the backup's; nothing when it was made in the clone.
    Directory(DirectoryRef),
    Symlink(Box<[u8]>),
    Socket,
}

/// A regular file.
#[derive(Debug)]
pub(super) struct FileNode {
    /// What the backup has for it; nothing when it was made in the clone.
    pub(super) lower: Option<FileMap>,
    /// Its bytes.
    pub(super) data: RwLock<Data>,
    /// Held by what makes bytes durable or destroys them, so that the journal hears of both in their order.
    pub(super) sync: Mutex<()>,
    /// Bytes were written since the last sync.
    pub(super) dirty: AtomicBool,
    /// Its times changed since the journal was told.
    pub(super) stamped: AtomicBool,
    /// The kernel was given the upper file: nobody here knows whether bytes were written since.
    pub(super) handed_out: AtomicBool,
    /// A sync of the upper file failed. The kernel may have forgotten what it could not write, and says so only once: no
    /// sync is answered for any more until the clone is opened anew.
    pub(super) failed: AtomicBool,
}

/// Where a file's bytes are.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) state: State,
    /// The upper file while it is open.
    pub(super) upper: Option<Arc<dyn DiskFile>>,
    /// What it counts for in the clone's size.
    pub(super) counted_bytes: u64,
    /// No name leads to it and nobody has it open: there is nothing left to make durable.
    pub(super) gone: bool,
}

/// How much of a file is still the backup's.
#[derive(Debug)]
pub(super) enum State {
    /// All.
    Lower,
    /// Some.
    Partial(Partial),
    /// Nothing: the upper file is the file, its size and its modification time too.
    Plain,
}

/// A file of which some is in an upper file.
#[derive(Debug, Clone)]
pub(super) struct Partial {
    /// Its size.
    pub(super) size_bytes: u64,
    /// Its size as the journal has it: a longer one is told with the bytes that made it so.
    pub(super) journaled_bytes: u64,
    /// So much of the lower file is visible where no block of the upper one covers it; past it there are zeros.
    pub(super) lower_bytes: u64,
    /// Blocks in the upper file.
    pub(super) blocks: Blocks,
    /// Those of them the journal does not know yet: they may not be durable.
    pub(super) pending: Blocks,
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    /// Where what the clone stands on has it.
    pub(super) origin: Option<Box<[u8]>>,
    pub(super) body: Body,
    pub(super) meta: Mutex<Meta>,
    /// It differs from the backup's, so it has to be remembered.
    pub(super) touched: AtomicBool,
    /// The journal has a record of it.
    pub(super) recorded: AtomicBool,
    /// How often it was looked up and not forgotten.
    pub(super) lookups: AtomicU64,
    /// How often it is open.
    pub(super) users: AtomicU64,
}

impl Node {
    pub(super) fn new(id: NodeId, origin: Option<&[u8]>, body: Body, meta: Meta) -> Self {
        Self {
            id,
            origin: origin.map(Into::into),
            body,
            meta: Mutex::new(meta),
            touched: AtomicBool::new(false),
            recorded: AtomicBool::new(false),
            lookups: AtomicU64::new(0),
            users: AtomicU64::new(0),
        }
    }

    pub(super) fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn kind(&self) -> Kind {
        match &self.body {
            Body::File(_) => Kind::File,
            Body::Directory(_) => Kind::Directory,
            Body::Symlink(_) => Kind::Symlink,
            Body::Socket => Kind::Socket,
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    pub(super) fn touch(&self) {
        self.touched.store(true, Ordering::Relaxed);
    }
}

impl FileNode {
    pub(super) fn new(lower: Option<FileMap>, state: State) -> Self {
        Self {
            lower,
            data: RwLock::new(Data {
                state,
                upper: None,
                counted_bytes: 0,
                gone: false,
            }),
            sync: Mutex::default(),
            dirty: AtomicBool::new(false),
            stamped: AtomicBool::new(false),
            handed_out: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Data> {
        self.data.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Data> {
        self.data.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn syncing(&self) -> MutexGuard<'_, ()> {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lower_size_bytes(&self) -> u64 {
        self.lower.as_ref().map_or(0, |map| map.size_bytes)
    }
}

impl Partial {
    /// A file nothing of which has been changed yet.
    pub(super) fn of(lower_bytes: u64) -> Self {
        Self {
            size_bytes: lower_bytes,
            journaled_bytes: lower_bytes,
            lower_bytes,
            blocks: Blocks::default(),
            pending: Blocks::default(),
        }
    }

    /// What remains when the file is cut to `size_bytes`, or has grown so far.
    pub(super) fn resized(&self, size_bytes: u64) -> Self {
        let mut cut = self.clone();
        let end = size_bytes.div_ceil(super::blocks::BLOCK_BYTES);
        cut.size_bytes = size_bytes;
        cut.lower_bytes = cut.lower_bytes.min(size_bytes);
        cut.blocks.truncate(end);
        cut.pending.truncate(end);
        cut
    }
}

impl Partial {
    /// The upper file has these blocks now.
    pub(super) fn insert(&mut self, blocks: Range<u64>) {
        for block in blocks {
            // Of one the journal knows already, it has nothing to learn.
            if !self.blocks.contains(block) {
                self.blocks.insert(block..block + 1);
                self.pending.insert(block..block + 1);
            }
        }
    }
}

impl Data {
    /// As a file that is partly in its upper file, however little. Not for one that is there as a whole.
    pub(super) fn become_partial(&mut self, file: &FileNode) -> &mut Partial {
        if !matches!(self.state, State::Partial(_)) {
            self.state = State::Partial(Partial::of(file.lower_size_bytes()));
        }
        match &mut self.state {
            State::Partial(partial) => partial,
            State::Lower | State::Plain => unreachable!("it was made so"),
        }
    }
}
