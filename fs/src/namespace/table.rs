//! The inodes that the kernel knows. A node is added by its first look-up and removed when the kernel has forgotten
//! all of them.
//!
//! The kernel forgets inodes when it is short of memory, which may be too late for this process. So the kernel is
//! asked to forget the oldest nodes when there are too many ([`Table::victims`], [`crate::evict`]): files, directories of
//! views, and names that the looking process makes up ([`Directory::is_open_ended`](crate::entry::Directory::is_open_ended)). The
//! kernel keeps those in use.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};

use crossbeam_channel::Sender;

use super::ino::Ino;
use super::node::Node;
use crate::entry::{Child, Content};

use barmanfs_store::sync::lock;

/// Maximum number of file nodes, about 500 bytes each.
const MAX_FILES: usize = 100_000;

/// Maximum number of directories in views of backups, about a KiB each. Others are few.
const MAX_DIRECTORIES: usize = 40_000;

/// Maximum number of made-up names, a few KiB each: targets of `pitr/`, and look-ups in `.barmanfs/`. The cache of
/// their answers has the same size.
const MAX_MADE_UP: usize = 1024;

/// No more made-up names are accepted above this number, until the kernel has forgotten some.
const MOST_MADE_UP: usize = 8 * MAX_MADE_UP;

/// Maximum number of names per round.
const BATCH: usize = 512;

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    /// Look-ups that were answered and not forgotten. The root is never forgotten.
    lookups: u64,
    /// Its position in the queue of its kind.
    turn: u64,
}

/// The kinds of nodes with separate limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    MadeUp,
    /// A directory in a view of a backup.
    Directory,
    /// Any other directory; these are limited by the number of servers.
    Fixed,
}

/// Nodes of one kind, the oldest first.
#[derive(Debug, Default)]
struct Queue {
    /// An entry with an outdated position is ignored.
    order: VecDeque<(Ino, u64)>,
    count: usize,
}

#[derive(Debug, Default)]
struct Nodes {
    known: HashMap<Ino, Known>,
    files: Queue,
    made_up: Queue,
    directories: Queue,
    turns: u64,
}

/// A name that the kernel is asked to forget.
#[derive(Debug)]
pub(crate) struct Victim {
    pub(crate) parent: Ino,
    pub(crate) node: Arc<Node>,
}

/// The nodes, with their counts of look-ups.
#[derive(Debug)]
pub(super) struct Table {
    root: Arc<Node>,
    nodes: Mutex<Nodes>,
    /// Notified when there are too many.
    crowded: OnceLock<Sender<()>>,
}

impl Table {
    pub(super) fn new(root: Node) -> Self {
        Self {
            root: Arc::new(root),
            nodes: Mutex::default(),
            crowded: OnceLock::new(),
        }
    }

    /// Sets the channel that is notified when there are too many.
    pub(super) fn on_crowd(&self, tell: Sender<()>) {
        let _ = self.crowded.set(tell);
    }

    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Node>> {
        if ino == Ino::ROOT {
            return Some(Arc::clone(&self.root));
        }
        self.lock().known.get(&ino).map(|known| Arc::clone(&known.node))
    }

    /// Counts a look-up of `child`, and makes its node if there is none yet.
    pub(super) fn look_up(&self, parent: &Arc<Node>, child: Child) -> Arc<Node> {
        let first = Ino::of(parent.ino, child.identity, &child.name);
        let mut nodes = self.lock();
        let ino = number(&nodes.known, first, parent.ino, &child);
        if let Some(known) = nodes.known.get_mut(&ino) {
            known.lookups += 1;
            return Arc::clone(&known.node);
        }
        let node = Arc::new(Node::new(ino, Some(Arc::clone(parent)), child));
        let is_crowded = nodes.insert(ino, &node);
        drop(nodes);
        if is_crowded && let Some(crowded) = self.crowded.get() {
            // A full channel means that this was already reported.
            let _ = crowded.try_send(());
        }
        node
    }

    /// Whether made-up names are refused for now.
    pub(super) fn is_full(&self) -> bool {
        self.lock().made_up.count >= MOST_MADE_UP
    }

    /// The names that the kernel should forget now, oldest first. They stay in the table until it does.
    pub(crate) fn victims(&self) -> Vec<Victim> {
        let mut nodes = self.lock();
        let mut victims = Vec::new();
        for kind in [Kind::MadeUp, Kind::File, Kind::Directory] {
            let excess = nodes
                .queue(kind)
                .map_or(0, |queue| queue.count.saturating_sub(most(kind)));
            for _ in 0..excess.min(BATCH) {
                victims.extend(nodes.oldest(kind));
            }
        }
        victims
    }

    /// The inode number of an entry, known or not.
    pub(super) fn number_of(&self, parent: Ino, child: &Child) -> Ino {
        let first = Ino::of(parent, child.identity, &child.name);
        number(&self.lock().known, first, parent, child)
    }

    /// Takes back `count` look-ups.
    pub(super) fn forget(&self, ino: Ino, count: u64) {
        let mut nodes = self.lock();
        let Some(known) = nodes.known.get_mut(&ino) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        let gone = if known.lookups == 0 {
            nodes.remove(ino)
        } else {
            None
        };
        drop(nodes);
        // Outside the lock: this may be the last reference to a whole view.
        drop(gone);
    }

    /// Number of inodes that the kernel knows.
    pub(super) fn len(&self) -> usize {
        self.lock().known.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Nodes> {
        // Every change is complete when the lock is released, even by a panic.
        lock(&self.nodes)
    }
}

impl Nodes {
    /// Adds a node. Returns whether there are too many of its kind.
    fn insert(&mut self, ino: Ino, node: &Arc<Node>) -> bool {
        self.turns += 1;
        let turn = self.turns;
        let known = Known {
            node: Arc::clone(node),
            lookups: 1,
            turn,
        };
        self.known.insert(ino, known);
        let kind = kind(node);
        let Some(queue) = self.queue(kind) else {
            return false;
        };
        queue.count += 1;
        queue.order.push_back((ino, turn));
        let is_crowded = queue.count > most(kind);
        self.tidy(kind);
        is_crowded
    }

    fn remove(&mut self, ino: Ino) -> Option<Known> {
        let gone = self.known.remove(&ino)?;
        if let Some(queue) = self.queue(kind(&gone.node)) {
            queue.count = queue.count.saturating_sub(1);
        }
        Some(gone)
    }

    /// Removes outdated entries from a queue before they are the majority.
    fn tidy(&mut self, kind: Kind) {
        let Self {
            known,
            files,
            made_up,
            directories,
            ..
        } = self;
        let queue = match kind {
            Kind::File => files,
            Kind::MadeUp => made_up,
            Kind::Directory => directories,
            Kind::Fixed => return,
        };
        if queue.order.len() > 2 * queue.count + BATCH {
            queue.order.retain(|(ino, turn)| is_current(known, *ino, *turn));
        }
    }

    /// Takes the oldest node and makes it the newest, because the kernel may keep it.
    fn oldest(&mut self, kind: Kind) -> Option<Victim> {
        loop {
            let (ino, turn) = self.queue(kind)?.order.pop_front()?;
            if !is_current(&self.known, ino, turn) {
                continue;
            }
            self.turns += 1;
            let next = self.turns;
            let known = self.known.get_mut(&ino)?;
            known.turn = next;
            let node = Arc::clone(&known.node);
            self.queue(kind)?.order.push_back((ino, next));
            let parent = node.parent.as_ref()?.ino;
            return Some(Victim { parent, node });
        }
    }

    fn queue(&mut self, kind: Kind) -> Option<&mut Queue> {
        match kind {
            Kind::File => Some(&mut self.files),
            Kind::MadeUp => Some(&mut self.made_up),
            Kind::Directory => Some(&mut self.directories),
            Kind::Fixed => None,
        }
    }
}

fn is_current(known: &HashMap<Ino, Known>, ino: Ino, turn: u64) -> bool {
    known.get(&ino).is_some_and(|known| known.turn == turn)
}

fn kind(node: &Node) -> Kind {
    let parent = node.parent.as_ref().and_then(|parent| parent.directory());
    if parent.is_some_and(|parent| parent.is_open_ended()) {
        return Kind::MadeUp;
    }
    match &node.content {
        Content::Directory(directory) if directory.usage().is_some() => Kind::Directory,
        Content::Directory(_) => Kind::Fixed,
        Content::File | Content::Symlink(_) => Kind::File,
    }
}

fn most(kind: Kind) -> usize {
    match kind {
        Kind::File => MAX_FILES,
        Kind::MadeUp => MAX_MADE_UP,
        Kind::Directory => MAX_DIRECTORIES,
        Kind::Fixed => usize::MAX,
    }
}

/// The first number from the hash `first` on that is free or already belongs to this entry.
fn number(nodes: &HashMap<Ino, Known>, first: Ino, parent: Ino, child: &Child) -> Ino {
    let mut ino = first;
    while nodes.get(&ino).is_some_and(|known| !known.node.is(parent, child)) {
        ino = ino.next();
    }
    ino
}
