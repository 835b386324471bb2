//! An open clone: the state that all operations share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use barmanfs_store::sync::{lock, read, write};
use barmanfs_store::{RecordId, TreeReader};
use rustix::io::Errno;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::journal::{Journal, Position};
use crate::names::{Names, Under};
use crate::node::Node;
use crate::stat::NodeId;

/// The space that a clone takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes in the repository's file system: upper files and journal.
    pub used_bytes: u64,
    /// The limit of these bytes.
    pub max_bytes: Option<u64>,
    /// Bytes written to files of the clone since it was opened, without those that a kernel wrote directly.
    pub written_bytes: u64,
    /// Files, directories and links that are kept in memory because they differ from the backup.
    pub changed_nodes: u64,
}

/// An open clone. All operations may be called concurrently.
#[derive(Debug)]
pub struct LiveClone {
    /// The clone's record.
    pub(crate) id: RecordId,
    /// Reads the backup below.
    pub(crate) trees: TreeReader,
    /// The clone's directory: upper files and journal.
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) journal: Journal,
    pub(crate) root: NodeId,
    /// Shared by every edit, exclusive where the journal is replaced by a state: no edit is between its two parts then.
    pub(crate) gate: RwLock<()>,
    /// What differs from the backup: nodes, and names in directories.
    pub(crate) names: RwLock<Names>,
    /// Files with bytes that are not in the journal yet.
    pub(crate) dirty: Mutex<HashMap<NodeId, Arc<Node>>>,
    /// Upper files to remove once the journal is durable up to this position.
    pub(crate) doomed: Mutex<Vec<(Position, NodeId)>>,
    pub(crate) max_bytes: Option<u64>,
    /// Bytes of upper files: as the file system counts them at a sync, estimated between two syncs.
    pub(crate) used_bytes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
}

impl LiveClone {
    /// The clone's root directory.
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// Whether a name in the root directory leads to this node and did not in the backup.
    pub fn is_in_root(&self, name: &[u8], id: NodeId) -> bool {
        let under = self.names().difference(self.root, name);
        matches!(under, Some(Under::Node(node, _)) if node == id)
    }

    /// The space it takes.
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

    pub(crate) fn occupied_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed) + self.journal.size_bytes()
    }

    /// Refuses an operation that would make the clone larger than its limit. Overwriting existing bytes is always
    /// allowed, however much the journal has grown.
    pub(crate) fn check_room(&self, more_bytes: u64) -> Result<()> {
        match self.max_bytes {
            Some(max) if more_bytes > 0 && self.occupied_bytes().saturating_add(more_bytes) > max => {
                Err(Error::Refused(Errno::NOSPC))
            }
            _ => Ok(()),
        }
    }

    /// Replaces the counted size of an upper file.
    pub(crate) fn count(&self, counted_bytes: &mut u64, now_bytes: u64) {
        self.used_bytes.fetch_add(now_bytes, Ordering::Relaxed);
        self.used_bytes.fetch_sub(*counted_bytes, Ordering::Relaxed);
        *counted_bytes = now_bytes;
    }

    pub(crate) fn gate(&self) -> RwLockReadGuard<'_, ()> {
        read(&self.gate)
    }

    pub(crate) fn names(&self) -> RwLockReadGuard<'_, Names> {
        read(&self.names)
    }

    pub(crate) fn names_mut(&self) -> RwLockWriteGuard<'_, Names> {
        write(&self.names)
    }

    pub(crate) fn dirty(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Node>>> {
        lock(&self.dirty)
    }

    pub(crate) fn doomed(&self) -> MutexGuard<'_, Vec<(Position, NodeId)>> {
        lock(&self.doomed)
    }

    pub(crate) fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.names().node(id)
    }
}
