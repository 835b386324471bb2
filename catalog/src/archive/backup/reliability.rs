//! What is known about how far backups can be relied on, read once for all of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::archive::backup::Backup;
use crate::archive::backup::boot_test::{BootOutcome, BootTest};
use crate::error::Result;
use crate::index::repository::Repository;
use crate::names::BackupId;

/// The known damage of a server's backups, and their newest boot tests.
#[derive(Debug, Clone, Default)]
pub struct Reliability {
    /// Backups that need data that is known to be damaged.
    pub damaged: BTreeSet<BackupId>,
    /// The newest boot test of each backup that has been tested.
    pub boot_tests: BTreeMap<BackupId, BootTest>,
}

impl Repository {
    /// What is known about these backups, which all belong to one server.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn reliability(&self, backups: &[Backup]) -> Result<Reliability> {
        Ok(Reliability {
            damaged: self.damaged_backups(backups)?,
            boot_tests: self.boot_tests(backups)?,
        })
    }
}

impl Reliability {
    /// Whether the newest boot test of a backup failed.
    pub fn failed_to_boot(&self, id: BackupId) -> bool {
        let test = self.boot_tests.get(&id);
        test.is_some_and(|test| test.outcome == BootOutcome::Failed)
    }

    /// Whether a backup is damaged, or its newest boot test failed.
    pub fn is_doubtful(&self, id: BackupId) -> bool {
        self.damaged.contains(&id) || self.failed_to_boot(id)
    }
}
