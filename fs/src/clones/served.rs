//! One clone that is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use barmanfs_catalog::{CloneDescription, CloneLock, CloneName, ServerName};
use barmanfs_live::{Flusher, LiveClone, NodeId};
use barmanfs_store::RecordId;

use super::serving_epochs::FIRST;
use crate::error::Result;
use crate::namespace::Ino;

/// A server makes it first of all.
const SERVER_LOCK: &[u8] = b"postmaster.pid";

/// Which clone, and where it begins in the mounted tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) server: ServerName,
    pub(super) name: CloneName,
    /// Another clone may have its name one day.
    pub(super) id: RecordId,
    /// What is known of it is so in this epoch alone.
    pub(super) epoch: u64,
    /// The number its root has in `live/`.
    pub(super) root: Ino,
}

/// One clone that is open.
#[derive(Debug)]
pub(crate) struct Served {
    // Dropped in this order: nobody else may open the clone before the last of ours is done with it.
    _flusher: Flusher,
    pub(crate) clone: Arc<LiveClone>,
    pub(super) place: Arc<Place>,
    pub(super) description: CloneDescription,
    /// What makes inode numbers of node numbers: those are the same in a clone that was copied and its copy, and in each
    /// epoch.
    salt: u64,
    /// Open files and directories.
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

    /// Called before a file is made. A server that starts relies on what is there being durable; it says so by syncing
    /// the file system, of which the kernel tells us nothing. The file that keeps a second server out is made just before.
    pub(crate) fn before_making(&self, parent: NodeId, name: &[u8]) -> barmanfs_live::Result<()> {
        if parent == self.clone.root() && name == SERVER_LOCK {
            self.clone.flush_all()?;
        }
        Ok(())
    }

    /// Makes a file durable. Also a server that starts anew because one of its processes was killed relies on what is
    /// there being durable; it keeps that file then, but writes and syncs it again before it recovers.
    pub(crate) fn sync(&self, node: NodeId, data_only: bool) -> barmanfs_live::Result<()> {
        if self.clone.is_in_root(SERVER_LOCK, node) {
            self.clone.flush_all()?;
        }
        self.clone.sync(node, data_only)
    }

    /// One file or directory more is open.
    pub(crate) fn opened(&self) {
        self.opens.fetch_add(1, Ordering::SeqCst);
    }

    /// One fewer.
    pub(crate) fn closed(&self) {
        self.opens.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many files and directories of it are open.
    pub(super) fn open_files(&self) -> u64 {
        self.opens.load(Ordering::SeqCst)
    }

    /// Whether there are any.
    pub(super) fn is_open(&self) -> bool {
        self.open_files() > 0
    }

    /// Ends the serving, but not the lock on the clone.
    pub(super) fn into_lock(self) -> (CloneDescription, CloneLock) {
        (self.description, self.lock)
    }

    /// What it is called in messages.
    pub(crate) fn described(&self) -> String {
        format!("{}/live/{}", self.place.server, self.place.name)
    }
}

/// Nothing for a clone whose node numbers are its own, the first time.
fn salt(description: &CloneDescription, epoch: u64) -> u64 {
    match (description.seed, epoch) {
        (None, FIRST) => 0,
        _ => Ino::of(Ino::ROOT, epoch, description.id.to_string().as_bytes()).0,
    }
}
