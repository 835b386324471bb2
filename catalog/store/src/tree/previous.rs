//! The previous tree, whose files and listings the new ones are likely similar to.

use std::num::NonZero;
use std::sync::Arc;

use lru::LruCache;

use super::file::Similar;
use super::path::split;
use super::reader::{TreeReader, WindowCursor};
use crate::error::Result;
use crate::id::ChunkId;
use crate::listing::{DirectoryRef, Node};

/// Number of directories whose listing is remembered: a stream stays in one directory for long, then returns to
/// its parents. Their entries are in the chunk cache.
const KNOWN_DIRECTORIES: NonZero<usize> = NonZero::new(64).unwrap();

/// Finds what was at a path before. This only saves work: a previous tree that cannot be read causes a warning,
/// never an error.
#[derive(Debug)]
pub(super) struct Previous {
    tree: TreeReader,
    root: Arc<DirectoryRef>,
    known: LruCache<Vec<u8>, Option<Arc<DirectoryRef>>>,
}

impl Previous {
    pub(super) fn new(tree: TreeReader, root: DirectoryRef) -> Self {
        Self {
            tree,
            root: Arc::new(root),
            known: LruCache::new(KNOWN_DIRECTORIES),
        }
    }

    /// The file at this path, if it was cut into windows of the same size.
    pub(super) fn file(&mut self, path: &[u8], window_bytes: u32) -> Option<Similar> {
        match self.node(path)? {
            Node::File(map) if map.window_bytes == window_bytes => Some(Similar {
                tree: self.tree.clone(),
                map,
                cursor: WindowCursor::default(),
            }),
            _ => None,
        }
    }

    /// The directory at this path; empty for the root.
    pub(super) fn directory(&mut self, path: &[u8]) -> Option<Arc<DirectoryRef>> {
        if path.is_empty() {
            return Some(Arc::clone(&self.root));
        }
        if let Some(known) = self.known.get(path) {
            return known.clone();
        }
        let found = match self.node(path) {
            Some(Node::Directory(directory)) => Some(Arc::new(directory)),
            _ => None,
        };
        self.known.put(path.to_vec(), found.clone());
        found
    }

    fn node(&mut self, path: &[u8]) -> Option<Node> {
        let (parent, name) = split(path);
        let directory = self.directory(parent)?;
        let entry = hint(self.tree.lookup(&directory, name))?;
        entry.map(|entry| entry.node)
    }
}

/// The page of a previous listing that covers `first`, the first name of a new page.
pub(super) fn similar_page(previous: &DirectoryRef, first: &[u8]) -> Option<ChunkId> {
    let after = previous
        .pages
        .partition_point(|page| page.first.as_slice() <= first);
    previous.pages.get(after.saturating_sub(1)).map(|page| page.chunk)
}

fn hint<T>(found: Result<T>) -> Option<T> {
    found
        .map_err(|error| tracing::warn!("Stored without comparing it with the previous backup: {error}"))
        .ok()
}
