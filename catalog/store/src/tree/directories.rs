//! The directories of a tree being written that are in memory.
//!
//! An entry is kept as its bytes in a page. When entries take too much memory, directories that the stream has left
//! give theirs back: their entries become the pages of a *run*. A directory that is entered again begins a new run;
//! at the end its runs are merged.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::path::split;
use super::run::Run;
use crate::error::{Error, Result};
use crate::listing::Attributes;

/// Entries in sorted order: name, and its bytes in a page. `None` while the file's content is under way.
pub(super) type EntryMap = BTreeMap<Box<[u8]>, Option<Box<[u8]>>>;

/// What an entry takes in addition to its bytes: its place in the map and its allocations.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// One directory.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// `None` while it has only been named as a parent.
    pub(super) attributes: Option<Attributes>,
    /// Its entries, without its subdirectories and without those in runs.
    pub(super) entries: EntryMap,
    /// Number of entries whose content is not complete yet.
    waiting: usize,
    /// Memory that the entries take.
    bytes: usize,
    /// Entries that are already written as pages.
    pub(super) runs: Vec<Arc<Run>>,
}

/// All directories by their path; the root's is empty.
#[derive(Debug)]
pub(super) struct Directories {
    by_path: HashMap<Box<[u8]>, Directory>,
    /// The directory of the last entry: the only one that always keeps its entries.
    current: Box<[u8]>,
    /// Memory all entries take.
    bytes: usize,
    /// Whether the stream has left a directory, or a directory it had left has become complete, since the last
    /// search.
    may_give: bool,
}

impl Directories {
    pub(super) fn new() -> Self {
        let by_path = HashMap::from([(Box::default(), Directory::default())]);
        Self {
            by_path,
            current: Box::default(),
            bytes: 0,
            may_give: false,
        }
    }

    /// Adds a directory.
    pub(super) fn add(&mut self, path: &[u8], attributes: Attributes) -> Result<()> {
        let directory = self.enter(path)?;
        if directory.attributes.replace(attributes).is_some() {
            return Err(twice(path));
        }
        Ok(())
    }

    /// Adds an entry that is no directory; `None` for a file whose content follows.
    pub(super) fn insert(&mut self, path: &[u8], entry: Option<Box<[u8]>>) -> Result<()> {
        if self.by_path.contains_key(path) {
            return Err(twice(path));
        }
        let (parent, name) = split(path);
        let bytes = entry_memory(name, entry.as_deref());
        let directory = self.enter(parent)?;
        if directory.entries.contains_key(name) {
            return Err(twice(path));
        }
        directory.waiting += usize::from(entry.is_none());
        directory.bytes += bytes;
        directory.entries.insert(name.into(), entry);
        self.bytes += bytes;
        self.leave_for(parent);
        Ok(())
    }

    /// Completes a file's entry.
    pub(super) fn complete(&mut self, path: &[u8], entry: Box<[u8]>) {
        let (parent, name) = split(path);
        let Some(directory) = self.by_path.get_mut(parent) else {
            return;
        };
        let Some(slot) = directory.entries.get_mut(name) else {
            return;
        };
        self.bytes += entry.len();
        directory.bytes += entry.len();
        directory.waiting -= 1;
        *slot = Some(entry);
        self.may_give |= directory.waiting == 0 && *self.current != *parent;
    }

    /// If the entries take more than `limit_bytes`: takes the entries of directories that the stream has left, the
    /// largest first, until the rest takes half of it. Each directory gets a new run, which the caller has to write.
    pub(super) fn give_up(&mut self, limit_bytes: usize) -> Vec<(Box<[u8]>, EntryMap, Arc<Run>)> {
        if self.bytes <= limit_bytes || !self.may_give {
            return Vec::new();
        }
        self.may_give = false;
        let left = |path: &[u8], directory: &Directory| {
            directory.waiting == 0 && !directory.entries.is_empty() && *path != *self.current
        };
        let mut candidates: Vec<_> = self
            .by_path
            .iter_mut()
            .filter(|(path, directory)| left(path, directory))
            .collect();
        candidates.sort_by_key(|(_, directory)| std::cmp::Reverse(directory.bytes));
        let mut given = Vec::new();
        for (path, directory) in candidates {
            if self.bytes <= limit_bytes / 2 {
                break;
            }
            self.bytes -= std::mem::take(&mut directory.bytes);
            let run = Arc::new(Run::default());
            directory.runs.push(Arc::clone(&run));
            given.push((path.clone(), std::mem::take(&mut directory.entries), run));
        }
        given
    }

    /// All directories, once all content is complete.
    pub(super) fn into_all(self) -> Result<HashMap<Box<[u8]>, Directory>> {
        for (path, directory) in &self.by_path {
            if let Some((name, _)) = directory.entries.iter().find(|(_, entry)| entry.is_none()) {
                let (path, name) = (path.escape_ascii(), name.escape_ascii());
                return Err(Error::Invalid(format!(
                    "File \"{name}\" in \"{path}\" was begun and not finished"
                )));
            }
        }
        Ok(self.by_path)
    }

    /// The directory at this path; creates it and its parents if they do not exist yet.
    fn enter(&mut self, path: &[u8]) -> Result<&mut Directory> {
        let slashes = path
            .iter()
            .enumerate()
            .filter(|&(_, &byte)| byte == b'/')
            .map(|(at, _)| at);
        if !self.by_path.contains_key(path) {
            for end in slashes.chain([path.len()]) {
                let ancestor = path.get(..end).unwrap_or_default();
                let (parent, name) = split(ancestor);
                if self
                    .by_path
                    .get(parent)
                    .is_some_and(|parent| parent.entries.contains_key(name))
                {
                    return Err(twice(ancestor));
                }
                self.by_path.entry(ancestor.into()).or_default();
            }
        }
        Ok(self.by_path.entry(path.into()).or_default())
    }

    fn leave_for(&mut self, directory: &[u8]) {
        if *self.current != *directory {
            self.may_give = true;
            self.current = directory.into();
        }
    }
}

/// The error for a path that came twice, or as a directory and as something else.
pub(super) fn twice(path: &[u8]) -> Error {
    Error::Invalid(format!("Path \"{}\" is in the backup twice", path.escape_ascii()))
}

fn entry_memory(name: &[u8], entry: Option<&[u8]>) -> usize {
    name.len() + entry.map_or(0, <[u8]>::len) + ENTRY_OVERHEAD_BYTES
}
