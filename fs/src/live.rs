//! Live clones: a backup as a directory that can be written, of which only what is written takes space.
//!
//! A clone has two layers. The lower one is a backup's tree in the store (and WAL beside it), which never changes. The
//! upper one is the clone's directory:
//!
//! - `journal`: everything that is not file bytes, as a log ([`journal`]).
//! - `files/<node>`: the bytes of a changed or new file, sparse.
//!
//! A file is the backup's, or partly (blocks of 8 KiB that were written are in its upper file, the others are read from
//! the backup), or the upper file alone. Nothing is copied when a file is opened, synced or gets another owner.
//!
//! Invariants:
//! - What a sync has answered for is there after any crash or loss of power. All else is, block by block, what it was
//!   or what it was to become; never anything else, and never zeros in place of data.
//! - For that, bytes are durable before the journal says that they are the file's ([`sync`]), and what destroys bytes
//!   waits until the journal's word for it is durable.
//! - What is found when a clone is opened is durable before anything is done with it, whoever was killed before.
//! - What cannot be written down is refused, and has not happened.
//! - One writer: the process that holds the clone's lock.
//!
//! Locks are taken in this order: gate, a file's sync, its data, names, a node's attributes; then those inside of
//! [`journal`]. Who holds the gate may append; nobody does while the journal is written anew.

mod attributes;
mod blocks;
mod contents;
mod copy;
mod disk;
mod edit;
mod file;
mod journal;
mod listing;
mod names;
mod node;
mod open;
mod ranges;
mod record;
mod rename;
mod sync;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use barmanfs_store::{RecordId, TreeReader};
use rustix::io::Errno;

pub use attributes::{AttributeChanges, NewTime};
pub use copy::copy_files;
pub use edit::NewNode;
pub(crate) use edit::leads_out;
pub use listing::{Listing, Name};
pub use node::{Kind, NodeAttributes, NodeId, Time};
pub use open::{Initial, MadeFile, MadeThing};
pub use ranges::Allocation;
pub use rename::RenameMode;
pub use sync::Flusher;

use self::disk::Disk;
use self::journal::{Journal, Position};
use self::names::{Names, Under};
use self::node::{Body, FileNode, Node};
use crate::error::{Error, Result};

/// What a clone takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of the repository's file system: upper files and journal.
    pub used_bytes: u64,
    /// What they may be at most.
    pub max_bytes: Option<u64>,
    /// Bytes that were written to files of the clone since it was opened, those by a kernel directly not counted.
    pub written_bytes: u64,
    /// Files, directories and links that are remembered because they differ from the backup's.
    pub changed_nodes: u64,
}

/// A clone that is open. All operations may be called at the same time.
#[derive(Debug)]
pub struct LiveClone {
    id: RecordId,
    trees: TreeReader,
    disk: Arc<dyn Disk>,
    journal: Journal,
    root: NodeId,
    gate: RwLock<()>,
    names: RwLock<Names>,
    /// Files with bytes the journal does not know yet.
    dirty: Mutex<HashMap<NodeId, Arc<Node>>>,
    /// Upper files to be removed once the journal is durable up to there.
    doomed: Mutex<Vec<(Position, NodeId)>>,
    max_bytes: Option<u64>,
    /// Bytes of upper files: as the file system counts them, and between two syncs of a file, as we do.
    used_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

impl LiveClone {
    /// The clone's root directory.
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// Whether a name in the root directory leads to this node, and did not in the backup.
    pub fn is_in_root(&self, name: &[u8], id: NodeId) -> bool {
        let under = self.names().difference(self.root, name);
        matches!(under, Some(Under::Node(node, _)) if node == id)
    }

    /// What it takes.
    pub fn statistics(&self) -> Statistics {
        let names = self.names();
        let changed = names
            .nodes
            .values()
            .filter(|node| node.touched.load(Ordering::Relaxed));
        Statistics {
            used_bytes: self.occupied_bytes(),
            max_bytes: self.max_bytes,
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            changed_nodes: changed.count() as u64,
        }
    }

    fn occupied_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed) + self.journal.size_bytes()
    }

    /// Refuses what would make the clone larger than it may be. What it has may be written over, whatever has been added to
    /// the journal since.
    fn check_room(&self, more_bytes: u64) -> Result<()> {
        match self.max_bytes {
            Some(max) if more_bytes > 0 && self.occupied_bytes().saturating_add(more_bytes) > max => {
                Err(Error::Refused(Errno::NOSPC))
            }
            _ => Ok(()),
        }
    }

    /// Counts an upper file anew.
    fn count(&self, counted_bytes: &mut u64, now_bytes: u64) {
        self.used_bytes.fetch_add(now_bytes, Ordering::Relaxed);
        self.used_bytes.fetch_sub(*counted_bytes, Ordering::Relaxed);
        *counted_bytes = now_bytes;
    }

    fn gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> RwLockReadGuard<'_, Names> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn names_mut(&self) -> RwLockWriteGuard<'_, Names> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn dirty(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Node>>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doomed(&self) -> MutexGuard<'_, Vec<(Position, NodeId)>> {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.names().node(id)
    }
}

/// The file a node is.
fn file_of(node: &Node) -> Result<&FileNode> {
    match &node.body {
        Body::File(file) => Ok(file),
        Body::Directory(_) => Err(Error::Refused(Errno::ISDIR)),
        Body::Symlink(_) => Err(Error::Refused(Errno::INVAL)),
        Body::Socket => Err(Error::Refused(Errno::NXIO)),
    }
}

/// An error of the system. What a full disk answers is no failure of ours, and is told as it is.
fn failed(action: &'static str, path: impl Into<PathBuf>, error: io::Error) -> Error {
    match Errno::from_io_error(&error) {
        Some(Errno::NOSPC | Errno::DQUOT) => Error::Refused(Errno::NOSPC),
        Some(errno @ (Errno::FBIG | Errno::OPNOTSUPP)) => Error::Refused(errno),
        _ => Error::io(action, path, error),
    }
}
