//! What is in a directory, in the order of names: what the backup has there, and what differs.

use std::iter::Peekable;
use std::sync::Arc;
use std::vec;

use barmanfs_store::{RecordId, TreeReader};

use super::LiveClone;
use super::edit::listing_of;
use super::names::{Differences, Under, join};
use super::node::{Kind, NodeId};
use crate::error::Result;

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The name.
    pub name: Vec<u8>,
    /// What it leads to. It is not remembered by being listed.
    pub node: NodeId,
    /// What kind of thing that is.
    pub kind: Kind,
}

/// A directory's names as they were when it was opened, sorted.
#[derive(Debug)]
pub struct Listing {
    clone: RecordId,
    origin: Vec<u8>,
    lower: Option<Peekable<barmanfs_store::tree::Entries>>,
    differences: Peekable<vec::IntoIter<(Box<[u8]>, Under)>>,
}

impl LiveClone {
    /// What is in a directory now. Who reads it does not see what changes meanwhile.
    ///
    /// # Errors
    /// `ENOTDIR`.
    pub fn entries(&self, id: NodeId) -> Result<Listing> {
        let node = self.node(id)?;
        let directory = listing_of(&node)?;
        let names = self.names();
        let differences = names.differences.get(&id).map(Arc::clone).unwrap_or_default();
        drop(names);
        Ok(Listing::new(self.id, &self.trees, node.origin.as_deref(), directory, &differences))
    }

    /// The directory a directory is in; its own for the root.
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
    fn new(
        clone: RecordId,
        trees: &TreeReader,
        origin: Option<&[u8]>,
        directory: &barmanfs_store::DirectoryRef,
        differences: &Differences,
    ) -> Self {
        let differences: Vec<_> = differences.iter().map(|(name, under)| (name.clone(), *under)).collect();
        Self {
            clone,
            origin: origin.unwrap_or_default().to_vec(),
            lower: origin.map(|_| trees.entries(directory).peekable()),
            differences: differences.into_iter().peekable(),
        }
    }

    fn lower(&mut self, entry: barmanfs_store::Result<barmanfs_store::Entry>) -> Result<Name> {
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
            let ahead = self.lower.as_mut().and_then(Peekable::peek);
            let difference = self.differences.peek();
            let (take_lower, take_difference) = match (ahead, difference) {
                (None, None) => return None,
                (Some(Ok(entry)), Some((name, _))) => {
                    (*entry.name <= **name, **name <= *entry.name)
                }
                (Some(_), _) => (true, false),
                (None, Some(_)) => (false, true),
            };
            let entry = if take_lower { self.lower.as_mut().and_then(Iterator::next) } else { None };
            if take_difference {
                if let Some((name, Under::Node(node, kind))) = self.differences.next() {
                    let name = name.into_vec();
                    return Some(Ok(Name { name, node, kind }));
                }
            } else if let Some(entry) = entry {
                return Some(self.lower(entry));
            }
        }
    }
}
