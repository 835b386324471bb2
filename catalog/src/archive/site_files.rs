//! The directory `config` of a repository: what barmanfs itself writes down about the configuration of its site. It is
//! read before the repository is opened, so only the writing is here.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::home::{CONFIG, sync_directory, write_durably};
use crate::index::repository::Repository;

/// The lock of a process that changes a file in it.
const LOCK: &str = "config";

/// The right to change the files in `config/`, until this is dropped.
#[derive(Debug)]
pub struct SiteFiles<'a> {
    repository: &'a Repository,
    _lock: Lock,
}

impl Repository {
    /// Waits until no other process changes the files in `config/`.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn site_files(&self) -> Result<SiteFiles<'_>> {
        Ok(SiteFiles {
            _lock: self.locks.wait_exclusive(LOCK, "change of the configuration")?,
            repository: self,
        })
    }
}

impl SiteFiles<'_> {
    /// Replaces a file. After a crash it is either all there or as it was before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let _acting = self.repository.as_owner()?;
        let directory = self.directory();
        match fs::create_dir(&directory) {
            Ok(()) => sync_directory(self.repository.path())?,
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::io("create", &directory, source)),
        }
        write_durably(&directory.join(name), bytes)
    }

    /// Removes a file. It need not exist.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        let _acting = self.repository.as_owner()?;
        let path = self.directory().join(name);
        match fs::remove_file(&path) {
            Ok(()) => sync_directory(&self.directory()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::io("remove", &path, source)),
        }
    }

    fn directory(&self) -> PathBuf {
        self.repository.path().join(CONFIG)
    }
}
