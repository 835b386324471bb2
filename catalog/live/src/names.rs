//! The names of a clone, and the nodes they lead to.
//!
//! Only differences from the backup are kept in memory: for a directory, the names that lead to another node than in
//! the backup, or to nothing. All other names are looked up in the backup each time. A node is in the table while it
//! differs from the backup, is looked up, or is open.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use barmanfs_store::{DirectoryRef, Entry, RecordId, TreeReader};
use rustix::io::Errno;

use crate::error::{Error, NOT_FOUND, Result, STALE};
use crate::node::{Body, FileNode, Node, State};
use crate::stat::{Kind, Meta, NodeId};

/// Maximum bytes of a name, as in Linux.
const MAX_NAME_BYTES: usize = 255;

/// The target of a name that differs from the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Under {
    Nothing,
    Node(NodeId, Kind),
}

/// The names of a directory that differ from the backup.
pub(crate) type Differences = BTreeMap<Box<[u8]>, Under>;

/// All differences of names, and the nodes in memory.
#[derive(Debug)]
pub(crate) struct Names {
    clone: RecordId,
    pub(crate) nodes: HashMap<NodeId, Arc<Node>>,
    /// Shared with the listings that read them.
    pub(crate) differences: HashMap<NodeId, Arc<Differences>>,
    /// Directories that were moved or created, and the parent of each.
    placed: HashMap<NodeId, NodeId>,
    /// Number of nodes created so far.
    pub(crate) made: u64,
}

impl Names {
    pub(crate) fn new(clone: RecordId) -> Self {
        Self {
            clone,
            nodes: HashMap::new(),
            differences: HashMap::new(),
            placed: HashMap::new(),
            made: 0,
        }
    }

    /// The id of the clone.
    pub(crate) fn clone_id(&self) -> RecordId {
        self.clone
    }

    /// The node of this number.
    pub(crate) fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.nodes.get(&id).cloned().ok_or(STALE)
    }

    /// The node under a name. This does not add it to the table.
    pub(crate) fn child(&self, trees: &TreeReader, parent: &Node, name: &[u8]) -> Result<Option<Arc<Node>>> {
        let Body::Directory(listing) = &parent.body else {
            return Ok(None);
        };
        if let Some(under) = self.difference(parent.id, name) {
            return match under {
                Under::Nothing => Ok(None),
                Under::Node(id, _) => self.node(id).map(Some),
            };
        }
        let Some(origin) = &parent.origin else {
            return Ok(None);
        };
        let entry = trees.lookup(listing, name)?;
        Ok(entry.map(|entry| self.lower_node(&join(origin, name), entry)))
    }

    /// The difference recorded for a name. Does not read the backup.
    pub(crate) fn difference(&self, parent: NodeId, name: &[u8]) -> Option<Under> {
        self.differences.get(&parent)?.get(name).copied()
    }

    /// A node for what the backup has at `path`.
    pub(crate) fn lower_node(&self, path: &[u8], entry: Entry) -> Arc<Node> {
        let id = NodeId::of_path(self.clone, path);
        if let Some(node) = self.nodes.get(&id) {
            return Arc::clone(node);
        }
        let meta = Meta::from(&entry.attributes);
        let body = match entry.node {
            barmanfs_store::Node::File(map) => Body::File(FileNode::new(Some(map), State::Lower)),
            barmanfs_store::Node::Directory(listing) => Body::Directory(listing),
            barmanfs_store::Node::Symlink(target) => Body::Symlink(target.into()),
        };
        Arc::new(Node::new(id, Some(path), body, meta))
    }

    /// Adds a node to the table, and returns the node in the table: an existing one stays.
    pub(crate) fn keep(&mut self, node: &Arc<Node>) -> Arc<Node> {
        Arc::clone(self.nodes.entry(node.id).or_insert_with(|| Arc::clone(node)))
    }

    /// Removes a node from the table if it is not needed any more.
    pub(crate) fn release(&mut self, node: &Node) {
        let used = node.lookups.load(Ordering::Relaxed) > 0 || node.users.load(Ordering::Relaxed) > 0;
        if !used && (!node.touched.load(Ordering::Relaxed) || node.meta().links == 0) {
            self.nodes.remove(&node.id);
        }
    }

    /// A number for a new node.
    pub(crate) fn next_id(&mut self) -> NodeId {
        loop {
            let id = NodeId::of_made(self.clone, self.made);
            self.made += 1;
            if !self.nodes.contains_key(&id) {
                return id;
            }
        }
    }

    /// Makes a name lead to a node, or to nothing.
    pub(crate) fn set(&mut self, parent: &Node, name: &[u8], node: Option<&Node>) {
        let differences = Arc::make_mut(self.differences.entry(parent.id).or_default());
        match node {
            Some(node) => {
                differences.insert(name.into(), Under::Node(node.id, node.kind()));
                if node.is_directory() {
                    self.placed.insert(node.id, parent.id);
                }
            }
            None if parent.origin.is_some() => {
                differences.insert(name.into(), Under::Nothing);
            }
            None => {
                differences.remove(name);
            }
        }
    }

    /// Cleans up after the last name of a node was removed.
    pub(crate) fn unlinked(&mut self, node: &Node) {
        self.differences.remove(&node.id);
        self.placed.remove(&node.id);
    }

    /// Whether a directory is empty.
    pub(crate) fn is_empty(
        &self,
        trees: &TreeReader,
        directory: &Node,
        listing: &DirectoryRef,
    ) -> Result<bool> {
        let none = Differences::new();
        let differences = self.differences.get(&directory.id).map_or(&none, |of| &**of);
        if differences.values().any(|under| matches!(under, Under::Node(..))) {
            return Ok(false);
        }
        for entry in trees.entries(listing) {
            if !differences.contains_key(&*entry?.name) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether `directory` is `of`, or lies below it.
    pub(crate) fn is_below(&self, directory: &Node, of: NodeId) -> bool {
        let mut at = Some((directory.id, directory.origin.as_deref().map(<[u8]>::to_vec)));
        while let Some((id, origin)) = at {
            if id == of {
                return true;
            }
            at = self.parent(id, origin.as_deref());
        }
        false
    }

    /// The parent of a directory, and the path of the parent in the backup. A directory that was not moved itself has
    /// the parent that it has in the backup, even if that one was moved.
    pub(crate) fn parent(&self, id: NodeId, origin: Option<&[u8]>) -> Option<(NodeId, Option<Vec<u8>>)> {
        if let Some(parent) = self.placed.get(&id) {
            let origin = self.nodes.get(parent).and_then(|node| node.origin.as_deref());
            return Some((*parent, origin.map(<[u8]>::to_vec)));
        }
        let path = origin.filter(|path| !path.is_empty())?;
        let parent = match path.iter().rposition(|&byte| byte == b'/') {
            Some(end) => path.get(..end).unwrap_or_default(),
            None => b"",
        };
        Some((NodeId::of_path(self.clone, parent), Some(parent.to_vec())))
    }
}

/// The path of a name in a directory.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        name.to_vec()
    } else {
        [directory, b"/", name].concat()
    }
}

/// The directory of this number, if it still has a name.
pub(crate) fn present_directory(names: &Names, id: NodeId) -> Result<Arc<Node>> {
    let node = names.node(id)?;
    listing_of(&node)?;
    let links = node.meta().links;
    if links == 0 { Err(NOT_FOUND) } else { Ok(node) }
}

/// The entries that the backup has in a directory.
pub(crate) fn listing_of(node: &Node) -> Result<&DirectoryRef> {
    match &node.body {
        Body::Directory(listing) => Ok(listing),
        Body::File(_) | Body::Symlink(_) | Body::Socket => Err(Error::Refused(Errno::NOTDIR)),
    }
}

/// Refuses a text that cannot be a name in a directory.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::Refused(Errno::NAMETOOLONG));
    }
    let is_name = !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0));
    if is_name {
        Ok(())
    } else {
        Err(Error::Refused(Errno::INVAL))
    }
}
