//! The archive: backups, WAL, its histories, the spool, clones, and what each kind of record means.

pub(crate) mod backup;
pub(crate) mod changes;
pub(crate) mod clones;
pub(crate) mod damage;
pub(crate) mod derive;
pub(crate) mod history;
pub mod json;
pub(crate) mod keep;
pub(crate) mod roots;
pub(crate) mod servers;
pub(crate) mod site_files;
pub(crate) mod spool;
pub(crate) mod wal;

use std::path::Path;

use crate::error::Result;
use crate::home::settings::CreateOptions;
use crate::index::repository::Repository;

impl Repository {
    /// Creates a repository in an empty or missing directory and opens it.
    ///
    /// # Errors
    /// [`CannotCreate`](crate::Error::CannotCreate) when something is there already.
    pub fn create(path: &Path, options: CreateOptions) -> Result<Self> {
        Self::make(path, options, None)?;
        Self::open(path)
    }

    /// Opens a repository. Takes a few milliseconds: `wal-archive` does it for every segment.
    ///
    /// # Errors
    /// [`NoRepository`](crate::Error::NoRepository), [`SettingsMissing`](crate::Error::SettingsMissing),
    /// [`NewerFormat`](crate::Error::NewerFormat), and the errors after which the catalog must be
    /// rebuilt: [`CatalogMissing`](crate::Error::CatalogMissing),
    /// [`CatalogLayout`](crate::Error::CatalogLayout), [`CatalogDamaged`](crate::Error::CatalogDamaged).
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, derive::derive)
    }
}
