//! What stands in a clone: files, directories, symbolic links, each known by a number that is its own for good.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use barmanfs_store::{DirectoryRef, FileMap};
use rustix::io::Errno;

use crate::blocks::BLOCK_BYTES;
use crate::blocks::Blocks;
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::stat::{Kind, Meta, NodeId};

/// What a node is, with what never changes of it.
#[derive(Debug)]
pub(crate) enum Body {
    File(FileNode),
    /// What it has of the backup's; nothing when it was made in the clone.
    Directory(DirectoryRef),
    Symlink(Box<[u8]>),
    Socket,
}

/// A regular file.
#[derive(Debug)]
pub(crate) struct FileNode {
    /// What the backup has for it; nothing when it was made in the clone.
    pub(crate) lower: Option<FileMap>,
    /// Its bytes.
    pub(crate) data: RwLock<Data>,
    /// Held by what makes bytes durable or destroys them, so that the journal hears of both in their order.
    pub(crate) sync: Mutex<()>,
    /// Bytes were written since the last sync.
    pub(crate) dirty: AtomicBool,
    /// Its times changed since the journal was told.
    pub(crate) stamped: AtomicBool,
    /// The kernel was given the upper file: nobody here knows whether bytes were written since.
    pub(crate) handed_out: AtomicBool,
    /// A sync of the upper file failed. The kernel may have forgotten what it could not write, and says so only once: no
    /// sync is answered for any more until the clone is opened anew.
    pub(crate) failed: AtomicBool,
}

/// Where a file's bytes are.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) state: State,
    /// The upper file while it is open.
    pub(crate) upper: Option<Arc<dyn DiskFile>>,
    /// What it counts for in the clone's size.
    pub(crate) counted_bytes: u64,
    /// No name leads to it and nobody has it open: there is nothing left to make durable.
    pub(crate) gone: bool,
}

/// How much of a file is still the backup's.
#[derive(Debug)]
pub(crate) enum State {
    /// All.
    Lower,
    /// Some.
    Partial(Partial),
    /// Nothing: the upper file is the file, its size and its modification time too.
    Plain,
}

/// A file of which some is in an upper file.
#[derive(Debug, Clone)]
pub(crate) struct Partial {
    /// Its size.
    pub(crate) size_bytes: u64,
    /// Its size as the journal has it: a longer one is told with the bytes that made it so.
    pub(crate) journaled_bytes: u64,
    /// So much of the lower file is visible where no block of the upper one covers it; past it there are zeros.
    pub(crate) lower_bytes: u64,
    /// Blocks in the upper file.
    pub(crate) blocks: Blocks,
    /// Those of them the journal does not know yet: they may not be durable.
    pub(crate) pending: Blocks,
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// Where what the clone stands on has it.
    pub(crate) origin: Option<Box<[u8]>>,
    pub(crate) body: Body,
    pub(crate) meta: Mutex<Meta>,
    /// It differs from the backup's, so it has to be remembered.
    pub(crate) touched: AtomicBool,
    /// The journal has a record of it.
    pub(crate) recorded: AtomicBool,
    /// How often it was looked up and not forgotten.
    pub(crate) lookups: AtomicU64,
    /// How often it is open.
    pub(crate) users: AtomicU64,
}

impl Node {
    pub(crate) fn new(id: NodeId, origin: Option<&[u8]>, body: Body, meta: Meta) -> Self {
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

    pub(crate) fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn kind(&self) -> Kind {
        match &self.body {
            Body::File(_) => Kind::File,
            Body::Directory(_) => Kind::Directory,
            Body::Symlink(_) => Kind::Symlink,
            Body::Socket => Kind::Socket,
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    pub(crate) fn touch(&self) {
        self.touched.store(true, Ordering::Relaxed);
    }
}

impl FileNode {
    pub(crate) fn new(lower: Option<FileMap>, state: State) -> Self {
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

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Data> {
        self.data.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Data> {
        self.data.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn syncing(&self) -> MutexGuard<'_, ()> {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lower_size_bytes(&self) -> u64 {
        self.lower.as_ref().map_or(0, |map| map.size_bytes)
    }
}

impl Partial {
    /// A file nothing of which has been changed yet.
    pub(crate) fn of(lower_bytes: u64) -> Self {
        Self {
            size_bytes: lower_bytes,
            journaled_bytes: lower_bytes,
            lower_bytes,
            blocks: Blocks::default(),
            pending: Blocks::default(),
        }
    }

    /// What remains when the file is cut to `size_bytes`, or has grown so far.
    pub(crate) fn resized(&self, size_bytes: u64) -> Self {
        let mut cut = self.clone();
        let end = size_bytes.div_ceil(BLOCK_BYTES);
        cut.size_bytes = size_bytes;
        cut.lower_bytes = cut.lower_bytes.min(size_bytes);
        cut.blocks.truncate(end);
        cut.pending.truncate(end);
        cut
    }
}

impl Partial {
    /// The upper file has these blocks now.
    pub(crate) fn insert(&mut self, blocks: Range<u64>) {
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
    pub(crate) fn become_partial(&mut self, file: &FileNode) -> &mut Partial {
        if !matches!(self.state, State::Partial(_)) {
            self.state = State::Partial(Partial::of(file.lower_size_bytes()));
        }
        match &mut self.state {
            State::Partial(partial) => partial,
            State::Lower | State::Plain => unreachable!("it was made so"),
        }
    }
}

/// The file a node is.
pub(crate) fn file_of(node: &Node) -> Result<&FileNode> {
    match &node.body {
        Body::File(file) => Ok(file),
        Body::Directory(_) => Err(Error::Refused(Errno::ISDIR)),
        Body::Symlink(_) => Err(Error::Refused(Errno::INVAL)),
        Body::Socket => Err(Error::Refused(Errno::NXIO)),
    }
}
