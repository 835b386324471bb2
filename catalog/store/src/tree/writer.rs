//! Writing.

use std::sync::Arc;

use crate::depositor::Depositor;
use crate::error::{Error, Result};
use crate::listing::{Attributes, DirectoryRef};
use crate::tree::TreeReader;

/// How a [`TreeWriter`] works.
#[derive(Debug, Clone, Copy, Default)]
pub struct TreeOptions {}

/// What a finished tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeTotals {
    /// Its root's listing.
    pub root: DirectoryRef,
    /// Its root's owner, permissions and time.
    pub root_attributes: Attributes,
    /// Regular files in it.
    pub files: u64,
    /// Directories in it, the root not counted.
    pub directories: u64,
    /// Sizes of its files together.
    pub logical_bytes: u64,
}

/// Writes one tree; paths are relative ("base/5/1259") and come in any order.
#[derive(Debug)]
pub struct TreeWriter {}

/// One file being written; its content comes from front to back. Dropped without `finish`, the tree cannot finish.
#[derive(Debug)]
pub struct FileSink {}

fn not_yet<T>() -> Result<T> {
    Err(Error::Invalid("not yet".to_owned()))
}

impl TreeWriter {
    /// Begins a tree; `previous` is the tree it is likely similar to: the server's last backup.
    pub fn begin(
        _depositor: Arc<Depositor>,
        _previous: Option<(TreeReader, DirectoryRef)>,
        _options: TreeOptions,
    ) -> Self {
        Self {}
    }

    /// Adds a directory. Its parents need not be there yet.
    pub fn directory(&self, _path: &[u8], _attributes: Attributes) -> Result<()> {
        not_yet()
    }

    /// Adds a symbolic link.
    pub fn symlink(&self, _path: &[u8], _attributes: Attributes, _target: &[u8]) -> Result<()> {
        not_yet()
    }

    /// Adds a file of `size_bytes`, cut into windows of `window_bytes`.
    pub fn file(
        &self,
        _path: &[u8],
        _attributes: Attributes,
        _size_bytes: u64,
        _window_bytes: u32,
    ) -> Result<FileSink> {
        not_yet()
    }

    /// Waits for all files and writes the listings. Parents that were not given get the root's attributes. What was
    /// written is durable after the depositor's next flush.
    pub fn finish(self, _root: Attributes) -> Result<TreeTotals> {
        not_yet()
    }
}

impl FileSink {
    /// The next bytes of the content.
    pub fn write(&mut self, _bytes: &[u8]) -> Result<()> {
        not_yet()
    }

    /// Ends the file.
    pub fn finish(self) -> Result<()> {
        not_yet()
    }
}
