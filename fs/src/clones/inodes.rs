//! Which inodes of clones the kernel knows, and which clone each belongs to.
//!
//! The kernel counts how often it was told of an inode, and forgets all of them at once, whatever has become of the
//! clone in between. So these counts outlive the serving of a clone. What was counted before the clone was let go is
//! counted apart until the inode is asked for again: then the engine that serves it now is told of it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use barmanfs_live::NodeId;

use super::served::{Place, Served};
use crate::error::{Result, STALE};
use crate::namespace::Ino;

/// An inode below a clone's root that the kernel knows.
#[derive(Debug)]
struct Known {
    place: Arc<Place>,
    /// None since the clone was let go.
    served: Option<Arc<Served>>,
    /// How often it was looked up in what serves it now; the engine counts them too, for itself.
    lookups: u64,
    /// How often before.
    lookups_before: u64,
    /// Where the backup has it, if it was let go.
    origin: Option<Box<[u8]>>,
}

/// Whose an inode is.
#[derive(Debug)]
pub(super) enum Whose {
    /// A clone's that is served.
    Served(Arc<Served>),
    /// A clone's that was let go.
    LetGo(Arc<Place>),
    /// No clone's, or a clone's root that was not looked into yet.
    Unknown,
}

/// See the module.
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
    pub(super) fn whose(&self, ino: Ino) -> Whose {
        let known = self.read();
        if let Some(node) = known.nodes.get(&ino) {
            return match &node.served {
                Some(served) => Whose::Served(Arc::clone(served)),
                None => Whose::LetGo(Arc::clone(&node.place)),
            };
        }
        match known.roots.get(&ino) {
            Some(served) => Whose::Served(Arc::clone(served)),
            None => Whose::Unknown,
        }
    }

    /// A clone is served from now on.
    pub(super) fn attach(&self, served: &Arc<Served>) {
        self.write().roots.insert(served.place.root, Arc::clone(served));
    }

    /// An inode the kernel knows is asked for, and its clone was let go in between: it is made known to what serves it now.
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

    /// The kernel was told of a node once more.
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

    /// The kernel forgets an inode; `None` when it is none of a clone, else the clone that serves it and how many look-ups
    /// are to be forgotten there.
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

    /// Takes out a clone that is served, unless a request to it is under way; says whether it did. `others` is how many hold
    /// it besides this table and those requests.
    pub(super) fn detach(&self, served: &Arc<Served>, others: usize) -> bool {
        let mut known = self.write();
        let is_its = |node: &&Known| node.served.as_ref().is_some_and(|of| Arc::ptr_eq(of, served));
        let here = known.nodes.values().filter(is_its).count() + 1;
        // Who has none yet gets none while this table is locked.
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
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}
