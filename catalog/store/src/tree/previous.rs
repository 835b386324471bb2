//! The previous tree, whose files and listings the new ones are likely similar to.

use std::sync::Arc;

use super::file::Similar;
use super::finder::Finder;
use super::path::split;
use super::reader::{TreeReader, WindowCursor};
use crate::error::Result;
use crate::id::ChunkId;
use crate::listing::{DirectoryRef, Node};

/// Finds what was at a path before. This only saves work: a previous tree that cannot be read causes a warning,
/// never an error.
#[derive(Debug)]
pub(super) struct Previous(Finder);

impl Previous {
    pub(super) fn new(tree: TreeReader, root: DirectoryRef) -> Self {
        Self(Finder::new(tree, root))
    }

    /// The file at this path, if it was cut into windows of the same size.
    pub(super) fn file(&mut self, path: &[u8], window_bytes: u32) -> Option<Similar> {
        let (parent, name) = split(path);
        let directory = self.directory(parent)?;
        match hint(self.0.lookup(&directory, name))??.node {
            Node::File(map) if map.window_bytes == window_bytes => Some(Similar {
                tree: self.0.tree().clone(),
                map,
                cursor: WindowCursor::default(),
            }),
            _ => None,
        }
    }

    /// The directory at this path; empty for the root.
    pub(super) fn directory(&mut self, path: &[u8]) -> Option<Arc<DirectoryRef>> {
        let found = hint(self.0.directory(path));
        if found.is_none() {
            // One warning is enough for all that is in it.
            self.0.pass_over(path);
        }
        found?
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
