//! Listing a directory in the order of names: the backup's entries with the clone's differences.

use std::cmp::Ordering;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;

use barmanfs_store::tree::Entries;
use barmanfs_store::{Entry, RecordId};

use crate::error::Result;
use crate::live_clone::LiveClone;
use crate::names::{Differences, Under, join, listing_of};
use crate::stat::{Kind, NodeId};

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The name.
    pub name: Vec<u8>,
    /// The node it leads to. Listing a node does not keep it in memory.
    pub node: NodeId,
    /// The kind of the node.
    pub kind: Kind,
}

/// A directory's names at the moment it was opened, sorted.
#[derive(Debug)]
pub struct Listing {
    clone: RecordId,
    origin: Vec<u8>,
    lower: Option<Peekable<Entries>>,
    differences: Arc<Differences>,
    /// The last difference that was used.
    last: Option<Box<[u8]>>,
}

impl LiveClone {
    /// The names in a directory now. The listing does not show later changes.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn entries(&self, id: NodeId) -> Result<Listing> {
        let differences = self.names().differences.get(&id).map(Arc::clone);
        self.list(id, differences.unwrap_or_default())
    }

    /// The names of an earlier listing of the directory again, from the first one on.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn entries_again(&self, id: NodeId, listing: &Listing) -> Result<Listing> {
        self.list(id, Arc::clone(&listing.differences))
    }

    fn list(&self, id: NodeId, differences: Arc<Differences>) -> Result<Listing> {
        let node = self.node(id)?;
        let directory = listing_of(&node)?;
        let origin = node.origin.as_deref();
        Ok(Listing {
            clone: self.id,
            origin: origin.unwrap_or_default().to_vec(),
            lower: origin.map(|_| self.trees.entries(directory).peekable()),
            differences,
            last: None,
        })
    }

    /// The parent of a directory; for the root, the root.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn parent(&self, id: NodeId) -> Result<NodeId> {
        let node = self.node(id)?;
        listing_of(&node)?;
        let parent = self.names().parent(id, node.origin.as_deref());
        Ok(parent.map_or(id, |(parent, _)| parent))
    }
}

impl Listing {
    fn lower(&self, entry: barmanfs_store::Result<Entry>) -> Result<Name> {
        let entry = entry?;
        Ok(Name {
            node: NodeId::of_path(self.clone, &join(&self.origin, &entry.name)),
            kind: match entry.node {
                barmanfs_store::Node::File(_) => Kind::File,
                barmanfs_store::Node::Directory(_) => Kind::Directory,
                barmanfs_store::Node::Symlink(_) => Kind::Symlink,
            },
            name: entry.name,
        })
    }
}

impl Iterator for Listing {
    type Item = Result<Name>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let from = self.last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut differences = self.differences.range::<[u8], _>((from, Bound::Unbounded));
            let difference = differences.next().map(|(name, under)| (name.clone(), *under));
            let ahead = self.lower.as_mut().and_then(Peekable::peek);
            let order = match (ahead, &difference) {
                (None, None) => return None,
                (Some(Ok(entry)), Some((name, _))) => entry.name.as_slice().cmp(name),
                (Some(_), _) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
            };
            // The difference replaces the backup's entry.
            let entry = if order.is_le() {
                self.lower.as_mut().and_then(Iterator::next)
            } else {
                None
            };
            match (difference.filter(|_| order.is_ge()), entry) {
                (Some((name, under)), _) => {
                    self.last = Some(name.clone());
                    if let Under::Node(node, kind) = under {
                        let name = name.into_vec();
                        return Some(Ok(Name { name, node, kind }));
                    }
                }
                (None, entry) => return entry.map(|entry| self.lower(entry)),
            }
        }
    }
}
