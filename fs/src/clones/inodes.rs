//! The inodes of clones that the kernel knows, and the clone of each.
//!
//! The kernel counts the look-ups of an inode and takes back all of them at once, whatever happened to the clone
//! meanwhile. So these counts outlive the serving of a clone. Look-ups from before the clone was released are counted
//! separately until the next request for the inode; then they are added to the engine that serves the clone now.

use std::collections::HashMap;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use barmanfs_live::NodeId;
use barmanfs_store::sync::{read, write};

use super::served::{Place, Served};
use crate::error::{Result, STALE};
use crate::namespace::Ino;

/// An inode below a clone's root that the kernel knows.
#[derive(Debug)]
struct Known {
    place: Arc<Place>,
    /// `None` after the clone was released.
    served: Option<Arc<Served>>,
    /// Look-ups while the present engine serves the clone. The engine counts them too.
    lookups: u64,
    /// Look-ups before that.
    lookups_before: u64,
    /// The node's path in the backup, if the clone was released.
    origin: Option<Box<[u8]>>,
}

/// The clone an inode belongs to.
#[derive(Debug)]
pub(super) enum Owner {
    /// A clone that is being served.
    Served(Arc<Served>),
    /// A clone that was released.
    Released(Arc<Place>),
    /// No clone, or the root of a clone that was not opened yet.
    Unknown,
}

/// The inodes of all clones of a mount.
#[derive(Debug, Default)]
pub(super) struct Inodes {
    known: RwLock<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    nodes: HashMap<Ino, Known>,
    roots: HashMap<Ino, Arc<Served>>,
}

impl Inodes {
    pub(super) fn owner(&self, ino: Ino) -> Owner {
        let known = self.read();
        if let Some(node) = known.nodes.get(&ino) {
            return match &node.served {
                Some(served) => Owner::Served(Arc::clone(served)),
                None => Owner::Released(Arc::clone(&node.place)),
            };
        }
        match known.roots.get(&ino) {
            Some(served) => Owner::Served(Arc::clone(served)),
            None => Owner::Unknown,
        }
    }

    /// Adds a clone that is served from now on.
    pub(super) fn attach(&self, served: &Arc<Served>) {
        self.write().roots.insert(served.place.root, Arc::clone(served));
    }

    /// Tells the engine that serves the clone now about an inode that was looked up before the clone was released.
    pub(super) fn recall(&self, served: &Arc<Served>, ino: Ino) -> Result<()> {
        let mut known = self.write();
        let node = known.nodes.get_mut(&ino).ok_or(STALE)?;
        if node.served.is_none() {
            let of = served.node(ino);
            served
                .clone
                .recall(of, node.origin.as_deref(), node.lookups_before)?;
            node.served = Some(Arc::clone(served));
            node.lookups += std::mem::take(&mut node.lookups_before);
        }
        Ok(())
    }

    /// Counts a look-up of a node.
    pub(super) fn looked_up(&self, served: &Arc<Served>, node: NodeId) {
        let mut known = self.write();
        let node = known.nodes.entry(served.ino(node)).or_insert_with(|| Known {
            place: Arc::clone(&served.place),
            served: None,
            lookups: 0,
            lookups_before: 0,
            origin: None,
        });
        node.served = Some(Arc::clone(served));
        node.lookups += 1;
    }

    /// Takes back look-ups of an inode. Returns `None` if it does not belong to a clone, else the clone's engine and
    /// the number of look-ups to take back there.
    pub(super) fn forget(&self, ino: Ino, count: u64) -> Option<(Option<Arc<Served>>, u64)> {
        let mut known = self.write();
        let node = known.nodes.get_mut(&ino)?;
        let before = node.lookups_before.min(count);
        node.lookups_before -= before;
        let count = count - before;
        node.lookups = node.lookups.saturating_sub(count);
        let served = node.served.clone();
        if node.lookups == 0 && node.lookups_before == 0 {
            known.nodes.remove(&ino);
        }
        Some((served, count))
    }

    /// Removes a clone unless a request to it is in progress. Returns whether it was removed. `others` is the number of
    /// other references, not counting this table and those requests.
    pub(super) fn detach(&self, served: &Arc<Served>, others: usize) -> bool {
        let mut known = self.write();
        let is_its = |node: &&Known| node.served.as_ref().is_some_and(|of| Arc::ptr_eq(of, served));
        let here = known.nodes.values().filter(is_its).count() + 1;
        // No new reference can be created while this table is locked.
        if Arc::strong_count(served) > here + others {
            return false;
        }
        for (ino, node) in &mut known.nodes {
            if node.served.take_if(|of| Arc::ptr_eq(of, served)).is_some() {
                node.origin = served.clone.origin(served.node(*ino));
                node.lookups_before += std::mem::take(&mut node.lookups);
            }
        }
        known.roots.remove(&served.place.root);
        true
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        read(&self.known)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        write(&self.known)
    }
}
