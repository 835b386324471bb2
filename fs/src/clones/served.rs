//! A clone that is being served.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use barmanfs_catalog::{CloneDescription, CloneLock, CloneName, ServerName};
use barmanfs_live::{Flusher, LiveClone, NodeId};
use barmanfs_store::RecordId;

use super::serving_epochs::FIRST;
use crate::error::Result;
use crate::namespace::Ino;

/// The first file that a starting server creates.
const SERVER_LOCK: &[u8] = b"postmaster.pid";

/// The identity of a clone, and its root in the mounted tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) server: ServerName,
    pub(super) name: CloneName,
    /// Distinguishes it from a later clone with the same name.
    pub(super) id: RecordId,
    /// The kernel's cached data of the clone is valid only in this epoch.
    pub(super) epoch: u64,
    /// The inode number of its root in `live/`.
    pub(super) root: Ino,
}

/// An open clone.
#[derive(Debug)]
pub(crate) struct Served {
    // Dropped in this order: no other process may open the clone before the last of our threads is done with it.
    _flusher: Flusher,
    pub(crate) clone: Arc<LiveClone>,
    pub(super) place: Arc<Place>,
    pub(super) description: CloneDescription,
    /// Turns node numbers into inode numbers. A copied clone has the node numbers of its original, and node numbers
    /// are the same in each epoch.
    salt: u64,
    /// Number of open files and directories.
    opens: AtomicU64,
    lock: CloneLock,
}

impl Served {
    pub(super) fn new(
        clone: Arc<LiveClone>,
        place: Arc<Place>,
        description: CloneDescription,
        lock: CloneLock,
    ) -> Result<Self> {
        Ok(Self {
            _flusher: Flusher::start(&clone)?,
            clone,
            salt: salt(&description, place.epoch),
            place,
            description,
            opens: AtomicU64::new(0),
            lock,
        })
    }

    /// The node with this inode number.
    pub(crate) fn node(&self, ino: Ino) -> NodeId {
        if ino == self.place.root {
            self.clone.root()
        } else {
            NodeId(ino.0 ^ self.salt)
        }
    }

    /// The inode number of a node.
    pub(crate) fn ino(&self, node: NodeId) -> Ino {
        if node == self.clone.root() {
            self.place.root
        } else {
            Ino(node.0 ^ self.salt)
        }
    }

    /// Called before a file is created. A server that starts relies on its files being durable and syncs the file
    /// system for that, which the kernel does not report. The file that keeps a second server out is created just
    /// before.
    pub(crate) fn before_making(&self, parent: NodeId, name: &[u8]) -> barmanfs_live::Result<()> {
        if parent == self.clone.root() && name == SERVER_LOCK {
            self.clone.flush_all()?;
        }
        Ok(())
    }

    /// Makes a file durable. A server that restarts after one of its processes was killed also relies on its files
    /// being durable. It keeps its lock file then, but writes and syncs it before recovery.
    pub(crate) fn sync(&self, node: NodeId, data_only: bool) -> barmanfs_live::Result<()> {
        if self.clone.is_in_root(SERVER_LOCK, node) {
            self.clone.flush_all()?;
        }
        self.clone.sync(node, data_only)
    }

    /// Counts an open.
    pub(crate) fn opened(&self) {
        self.opens.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts a close.
    pub(crate) fn closed(&self) {
        self.opens.fetch_sub(1, Ordering::SeqCst);
    }

    /// Number of its open files and directories.
    pub(super) fn open_files(&self) -> u64 {
        self.opens.load(Ordering::SeqCst)
    }

    /// Whether a file or directory is open.
    pub(super) fn is_open(&self) -> bool {
        self.open_files() > 0
    }

    /// Stops serving, but keeps the lock.
    pub(super) fn into_lock(self) -> (CloneDescription, CloneLock) {
        (self.description, self.lock)
    }

    /// Its name in messages.
    pub(crate) fn described(&self) -> String {
        format!("{}/live/{}", self.place.server, self.place.name)
    }
}

/// Zero in the first epoch of a clone that is not a copy.
fn salt(description: &CloneDescription, epoch: u64) -> u64 {
    match (description.seed, epoch) {
        (None, FIRST) => 0,
        _ => Ino::of(Ino::ROOT, epoch, description.id.to_string().as_bytes()).0,
    }
}
