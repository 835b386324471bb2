//! The inodes the kernel knows. A node comes with its first look-up and goes when the kernel has forgotten all of
//! them, so the table is as large as the kernel's own cache and no larger.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::ino::Ino;
use super::node::{Child, Node};

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    /// Look-ups answered and not yet forgotten; the root is never forgotten.
    lookups: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    root: Arc<Node>,
    nodes: Mutex<HashMap<Ino, Known>>,
}

impl Table {
    pub(super) fn new(root: Node) -> Self {
        Self {
            root: Arc::new(root),
            nodes: Mutex::default(),
        }
    }

    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Node>> {
        if ino == Ino::ROOT {
            return Some(Arc::clone(&self.root));
        }
        self.lock().get(&ino).map(|known| Arc::clone(&known.node))
    }

    /// Counts a look-up of `child`, and makes its node if there is none yet.
    pub(super) fn look_up(&self, parent: &Arc<Node>, child: Child) -> Arc<Node> {
        let mut nodes = self.lock();
        let ino = number(&nodes, parent.ino, &child);
        let known = nodes.entry(ino).or_insert_with(|| Known {
            node: Arc::new(Node::new(ino, Some(Arc::clone(parent)), child)),
            lookups: 0,
        });
        known.lookups += 1;
        Arc::clone(&known.node)
    }

    /// The number `child` has, or would get.
    pub(super) fn number_of(&self, parent: Ino, child: &Child) -> Ino {
        number(&self.lock(), parent, child)
    }

    /// Takes back `count` look-ups.
    pub(super) fn forget(&self, ino: Ino, count: u64) {
        let mut nodes = self.lock();
        let Some(known) = nodes.get_mut(&ino) else { return };
        known.lookups = known.lookups.saturating_sub(count);
        let gone = if known.lookups == 0 {
            nodes.remove(&ino)
        } else {
            None
        };
        drop(nodes);
        // Outside the lock: this may be what held a whole view.
        drop(gone);
    }

    /// How many inodes the kernel knows.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Ino, Known>> {
        // Every change is complete when the lock is given up, also by a panic.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first number from the hash on that is free or already this child's.
fn number(nodes: &HashMap<Ino, Known>, parent: Ino, child: &Child) -> Ino {
    let mut ino = Ino::of(parent, child.identity, &child.name);
    while nodes.get(&ino).is_some_and(|known| !known.node.is(parent, child)) {
        ino = ino.next();
    }
    ino
}
