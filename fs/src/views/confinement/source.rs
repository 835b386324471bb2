//! Configuration files as they are stored.

use std::sync::Arc;

use barmanfs_live::leads_out;
use barmanfs_store::{Attributes, DirectoryRef, Entry, Node};

use super::super::changes;
use super::super::tree::TreeDirectory;
use crate::entry::Body;
use crate::error::{Error, Result};

/// Maximum size. A larger file is not a configuration file.
pub(in crate::views) const MAX_BYTES: u64 = 4 << 20;

/// The stored content of a path.
#[derive(Debug)]
pub(in crate::views) enum Stored {
    /// A file.
    Text(Attributes, Vec<u8>),
    /// A file that cannot be read because it is damaged. Opening it fails.
    Damaged,
    /// PostgreSQL might read this, but barmanfs does not, for this reason.
    Unusable(Attributes, &'static str),
    /// Nothing is stored here, or a view does not show it.
    Absent,
}

/// A source of configuration files.
pub(in crate::views) trait Source {
    /// Reads a path in the data directory.
    fn read(&self, path: &[u8]) -> Result<Stored>;

    /// The names in a directory of the data directory that match `is_wanted`, without subdirectories. `None` if the
    /// directory does not exist.
    fn names(&self, path: &[u8], is_wanted: &dyn Fn(&[u8]) -> bool) -> Result<Option<Vec<Vec<u8>>>>;

    /// Whether a view has a file at this path.
    fn has_file(&self, path: &[u8]) -> Result<bool>;
}

/// The stored tree below a view.
#[derive(Debug, Clone, Copy)]
pub(in crate::views) struct TreeSource<'a>(pub(in crate::views) &'a TreeDirectory);

impl TreeSource<'_> {
    fn entry(&self, path: &[u8]) -> Result<Option<Entry>> {
        // A view shows other content at these paths than is stored.
        if changes::is_of_the_running_server(path) || path.starts_with(b"pg_wal/") {
            return Ok(None);
        }
        let Some(end) = path.iter().rposition(|byte| *byte == b'/') else {
            return self.0.stored(path);
        };
        let (Some(parent), Some(name)) = (path.get(..end), path.get(end + 1..)) else {
            return Ok(None);
        };
        let Some(parent) = self.directory(parent)? else {
            return Ok(None);
        };
        Ok(self.0.tree.context.trees.lookup(&parent, name)?)
    }

    /// Follows no symbolic links.
    fn directory(&self, path: &[u8]) -> Result<Option<DirectoryRef>> {
        let mut at = self.0.listing.clone();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let found = self.0.tree.context.trees.lookup(&at, name)?;
            let Some(Node::Directory(listing)) = found.map(|entry| entry.node) else {
                return Ok(None);
            };
            at = listing;
        }
        Ok(Some(at))
    }
}

impl Source for TreeSource<'_> {
    fn read(&self, path: &[u8]) -> Result<Stored> {
        let Some(Entry { attributes, node, .. }) = self.entry(path)? else {
            return Ok(Stored::Absent);
        };
        let map = match node {
            Node::File(map) => map,
            Node::Symlink(target) if leads_out(&target) => return Ok(Stored::Absent),
            Node::Symlink(_) => return Ok(Stored::Unusable(attributes, "it is a symbolic link")),
            Node::Directory(_) => return Ok(Stored::Absent),
        };
        match Body::Stored(Arc::new(map)).read_all(&self.0.tree.context.trees, MAX_BYTES) {
            Ok(Some(text)) => Ok(Stored::Text(attributes, text)),
            Ok(None) => Ok(Stored::Unusable(
                attributes,
                "it is too large to be a configuration file",
            )),
            Err(Error::Store(_)) => Ok(Stored::Damaged),
            Err(error) => Err(error),
        }
    }

    fn names(&self, path: &[u8], is_wanted: &dyn Fn(&[u8]) -> bool) -> Result<Option<Vec<Vec<u8>>>> {
        let Some(directory) = self.directory(path)? else {
            return Ok(None);
        };
        let mut names = Vec::new();
        for entry in self.0.tree.context.trees.entries(&directory) {
            let entry = entry?;
            if is_wanted(&entry.name) && !matches!(entry.node, Node::Directory(_)) {
                names.push(entry.name);
            }
        }
        Ok(Some(names))
    }

    fn has_file(&self, path: &[u8]) -> Result<bool> {
        let entry = self.entry(path)?;
        Ok(entry.is_some_and(|entry| matches!(entry.node, Node::File(_))))
    }
}
