//! One file's content on its way in.

use std::sync::Arc;

use crate::depositor::{ContentClass, Depositor};
use crate::error::{Error, Result};
use crate::file_map::FileMap;

/// A file that stands in no tree, such as a WAL segment.
#[derive(Debug)]
pub struct SingleFile {}

/// What became of a [`SingleFile`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Its content.
    pub map: FileMap,
    /// Bytes of the frames that were added for it.
    pub new_stored_bytes: u64,
}

impl SingleFile {
    /// Begins a file of `size_bytes`, cut into windows of `window_bytes`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an impossible window size.
    pub fn begin(
        _depositor: Arc<Depositor>,
        _size_bytes: u64,
        _window_bytes: u32,
        _class: ContentClass,
    ) -> Result<Self> {
        Err(Error::Invalid("not yet".to_owned()))
    }

    /// The next bytes of the content.
    ///
    /// # Errors
    /// [`Error::Invalid`] past the announced size; what the depositor meets.
    pub fn write(&mut self, _bytes: &[u8]) -> Result<()> {
        Err(Error::Invalid("not yet".to_owned()))
    }

    /// Ends the file and waits until all of it has been put; durable after the depositor's next flush.
    ///
    /// # Errors
    /// [`Error::Invalid`] when bytes are missing; what the depositor met.
    pub fn finish(self) -> Result<StoredFile> {
        Err(Error::Invalid("not yet".to_owned()))
    }
}
