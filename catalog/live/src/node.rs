//! Nodes of a clone: files, directories, symbolic links, sockets. Each has a number that never changes.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use barmanfs_store::sync::{lock, read, write};
use barmanfs_store::{DirectoryRef, FileMap};
use rustix::io::Errno;

use crate::blocks::BLOCK_BYTES;
use crate::blocks::Blocks;
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::stat::{Kind, Meta, NodeId};

/// The kind of a node, with the data that never changes.
#[derive(Debug)]
pub(crate) enum Body {
    File(FileNode),
    /// The entries from the backup; none for a directory created in the clone.
    Directory(DirectoryRef),
    Symlink(Box<[u8]>),
    Socket,
}

/// A regular file.
#[derive(Debug)]
pub(crate) struct FileNode {
    /// The backup's file; `None` for a file created in the clone.
    pub(crate) lower: Option<FileMap>,
    /// Its bytes.
    pub(crate) data: RwLock<Data>,
    /// Held while bytes are made durable or destroyed, so that the journal records both in their order.
    pub(crate) sync: Mutex<()>,
    /// Bytes were written since the last sync.
    pub(crate) dirty: AtomicBool,
    /// The times changed since they were last written to the journal.
    pub(crate) stamped: AtomicBool,
    /// The kernel has the upper file. Whether bytes were written since is not known here.
    pub(crate) handed_out: AtomicBool,
    /// A sync of the upper file failed. The kernel may have dropped pages that it could not write, and reports that
    /// only once. So every sync fails until the clone is opened again.
    pub(crate) failed: AtomicBool,
}

/// The place of a file's bytes.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) state: State,
    /// The upper file while it is open.
    pub(crate) upper: Option<Arc<dyn DiskFile>>,
    /// Its bytes as counted in the clone's size.
    pub(crate) counted_bytes: u64,
    /// The file has no name and is not open: nothing is left to make durable.
    pub(crate) gone: bool,
}

/// How much of a file is still the backup's.
#[derive(Debug)]
pub(crate) enum State {
    /// The whole file.
    Lower,
    /// A part of it.
    Partial(Partial),
    /// Nothing. The upper file is the file, including size and modification time.
    Plain,
}

/// A file that is partly in an upper file.
#[derive(Debug, Clone)]
pub(crate) struct Partial {
    /// Its size.
    pub(crate) size_bytes: u64,
    /// Its size in the journal. Growth is recorded together with the bytes that caused it.
    pub(crate) journaled_bytes: u64,
    /// The length of the visible part of the lower file, where no block of the upper file covers it. Zeros follow.
    pub(crate) lower_bytes: u64,
    /// Blocks in the upper file.
    pub(crate) blocks: Blocks,
    /// Blocks that are not in the journal yet. They may not be durable.
    pub(crate) pending: Blocks,
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// Its path in the lower layer, if it has one.
    pub(crate) origin: Option<Box<[u8]>>,
    pub(crate) body: Body,
    pub(crate) meta: Mutex<Meta>,
    /// It differs from the backup, so it must stay in the table.
    pub(crate) touched: AtomicBool,
    /// The journal has a record of it.
    pub(crate) recorded: AtomicBool,
    /// Number of look-ups that were not forgotten.
    pub(crate) lookups: AtomicU64,
    /// Number of opens.
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
        lock(&self.meta)
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
        read(&self.data)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Data> {
        write(&self.data)
    }

    pub(crate) fn syncing(&self) -> MutexGuard<'_, ()> {
        lock(&self.sync)
    }

    pub(crate) fn lower_size_bytes(&self) -> u64 {
        self.lower.as_ref().map_or(0, |map| map.size_bytes)
    }
}

impl Partial {
    /// An unchanged file of the backup.
    pub(crate) fn of(lower_bytes: u64) -> Self {
        Self {
            size_bytes: lower_bytes,
            journaled_bytes: lower_bytes,
            lower_bytes,
            blocks: Blocks::default(),
            pending: Blocks::default(),
        }
    }

    /// The same file, cut or grown to `size_bytes`.
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
    /// Marks blocks as present in the upper file.
    pub(crate) fn insert(&mut self, blocks: Range<u64>) {
        for block in blocks {
            // A block that is in the journal needs no new record.
            if !self.blocks.contains(block) {
                self.blocks.insert(block..block + 1);
                self.pending.insert(block..block + 1);
            }
        }
    }
}

impl Data {
    /// Makes the file partial, with no block in its upper file if it was the backup's. Not for a plain file.
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

/// The file of a node; an error number for other kinds.
pub(crate) fn file_of(node: &Node) -> Result<&FileNode> {
    match &node.body {
        Body::File(file) => Ok(file),
        Body::Directory(_) => Err(Error::Refused(Errno::ISDIR)),
        Body::Symlink(_) => Err(Error::Refused(Errno::INVAL)),
        Body::Socket => Err(Error::Refused(Errno::NXIO)),
    }
}
