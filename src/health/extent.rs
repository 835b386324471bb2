//! What a repository takes and has, for metrics.

use std::path::Path;

use barmanfs_catalog::{Growth, PackTotals, RepositoryMemory};
use barmanfs_fs::FoundMount;

use super::space;
use crate::error::Error;
use crate::place::Place;

/// The figures of a repository.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extent {
    /// Its packs.
    pub(crate) packs: PackTotals,
    /// Size of the catalog.
    pub(crate) catalog_bytes: u64,
    /// Free space of its file system.
    pub(crate) free_bytes: u64,
    /// How fast it grows.
    pub(crate) growth: Growth,
    /// Size of the files of all complete backups.
    pub(crate) backup_bytes: u64,
    /// Size of all archived files of WAL.
    pub(crate) wal_bytes: u64,
    /// What `cron` remembers of it.
    pub(crate) cron: RepositoryMemory,
    /// The mounts of it that answer.
    pub(crate) mounts: Vec<FoundMount>,
}

impl Extent {
    /// Reads them.
    ///
    /// # Errors
    /// When the repository cannot be read.
    pub(crate) fn of(place: &Place) -> Result<Self, Error> {
        let repository = place.open()?;
        let path = place.home();
        let (mut backup_bytes, mut wal_bytes) = (0, 0);
        for server in repository.servers()? {
            let backups = repository.backups(&server)?;
            let complete = backups.iter().filter(|backup| backup.is_complete());
            backup_bytes += complete.map(|backup| backup.logical_bytes).sum::<u64>();
            wal_bytes += repository.wal(&server).totals()?.logical_bytes;
        }
        Ok(Self {
            packs: repository.pack_totals()?,
            catalog_bytes: repository.catalog_bytes(),
            free_bytes: free_bytes(path)?,
            growth: space::growth(&repository)?,
            backup_bytes,
            wal_bytes,
            cron: repository.repository_memory()?,
            // Of a mount that does not answer, it is not known what it serves.
            mounts: barmanfs_fs::mounts_of(path)?.serving,
        })
    }

    /// How many logical bytes there are for each byte in a pack; `None` if there are no packs.
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub(crate) fn dedup_ratio(&self) -> Option<f64> {
        let logical = self.backup_bytes.saturating_add(self.wal_bytes);
        (self.packs.bytes > 0).then(|| logical as f64 / self.packs.bytes as f64)
    }
}

fn free_bytes(path: &Path) -> Result<u64, Error> {
    let state = rustix::fs::statvfs(path)
        .map_err(|error| Error::failed(format!("Cannot read the space of {}: {error}", path.display())))?;
    Ok(state.f_bavail.saturating_mul(state.f_frsize))
}
