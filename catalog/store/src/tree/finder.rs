//! Many look-ups by path in one tree.
//!
//! [`TreeReader::find`] begins at the root each time, and reads the whole list of a directory's pages for each of its
//! files: with n files in a directory, n look-ups cost n². What asks for file after file uses a [`Finder`]. It keeps
//! the directories and pages that it has read, so each is read once where they fit.

use std::num::NonZero;
use std::sync::Arc;

use lru::LruCache;

use super::path::split;
use super::reader::TreeReader;
use crate::error::Result;
use crate::id::ChunkId;
use crate::listing::{DirectoryRef, Entry, IndexedPage, Node, PageRef};

/// Number of directories whose list of pages is remembered: look-ups stay in one directory for long, then return to its
/// parents.
const KNOWN_DIRECTORIES: NonZero<usize> = NonZero::new(64).unwrap();

/// Memory for pages: those of 300,000 small files in one directory. A server sends the files of a directory in the
/// order of its file system, so the whole directory is in use at once. Beyond that, a look-up may decode a page again.
const PAGES_BYTES: usize = 32 << 20;

/// Finds entries by their paths.
#[derive(Debug)]
pub struct Finder {
    tree: TreeReader,
    root: Arc<DirectoryRef>,
    directories: LruCache<Vec<u8>, Option<Arc<DirectoryRef>>>,
    pages: LruCache<ChunkId, IndexedPage>,
    /// What `pages` take.
    bytes: usize,
    /// What they may take: [`PAGES_BYTES`].
    limit_bytes: usize,
}

impl Finder {
    /// Finds what is below `root`.
    pub fn new(tree: TreeReader, root: DirectoryRef) -> Self {
        Self {
            tree,
            root: Arc::new(root),
            directories: LruCache::new(KNOWN_DIRECTORIES),
            pages: LruCache::unbounded(),
            bytes: 0,
            limit_bytes: PAGES_BYTES,
        }
    }

    /// The reader of the tree.
    pub fn tree(&self) -> &TreeReader {
        &self.tree
    }

    /// The entry at this path ("base/5/1259"), if there is one.
    ///
    /// # Errors
    /// When a page on the way cannot be read or is damaged.
    pub fn find(&mut self, path: &[u8]) -> Result<Option<Entry>> {
        let (parent, name) = split(path);
        match self.directory(parent)? {
            Some(directory) => self.lookup(&directory, name),
            None => Ok(None),
        }
    }

    /// The directory at this path; empty for the root.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Option<Arc<DirectoryRef>>> {
        if path.is_empty() {
            return Ok(Some(Arc::clone(&self.root)));
        }
        if let Some(known) = self.directories.get(path) {
            return Ok(known.clone());
        }
        let found = match self.find(path)?.map(|entry| entry.node) {
            Some(Node::Directory(directory)) => Some(Arc::new(directory)),
            _ => None,
        };
        self.directories.put(path.to_vec(), found.clone());
        Ok(found)
    }

    /// From now on there is no directory at this path.
    pub(super) fn pass_over(&mut self, path: &[u8]) {
        self.directories.put(path.to_vec(), None);
    }

    /// The entry of this name in a directory of the tree.
    pub(super) fn lookup(&mut self, directory: &DirectoryRef, name: &[u8]) -> Result<Option<Entry>> {
        match directory.page_of(name) {
            Some(page) => self.page(page)?.entry(name),
            None => Ok(None),
        }
    }

    fn page(&mut self, page: &PageRef) -> Result<&IndexedPage> {
        if !self.pages.contains(&page.chunk) {
            let indexed = IndexedPage::open(page, self.tree.chunks().get(&page.chunk)?)?;
            self.bytes += indexed.memory_bytes();
            while self.bytes > self.limit_bytes
                && let Some((_, oldest)) = self.pages.pop_lru()
            {
                self.bytes -= oldest.memory_bytes();
            }
            self.pages.put(page.chunk, indexed);
        }
        self.pages
            .get(&page.chunk)
            .ok_or_else(|| crate::Error::Invalid("A page is gone from a list that has it".to_owned()))
    }
}

#[cfg(test)]
mod tests;
