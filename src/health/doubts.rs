//! Complete backups that cannot be relied on, as far as is known: a verification found damage in them, or their newest boot
//! test failed.

use std::collections::BTreeSet;

use barmanfs_catalog::{Backup, BackupId, BootOutcome, Repository};

use crate::error::Error;

/// Which backups of a server cannot be relied on.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    /// They need what is known to be damaged.
    pub(crate) damaged: BTreeSet<BackupId>,
    /// Their newest boot test failed.
    pub(crate) not_booted: BTreeSet<BackupId>,
}

impl Doubts {
    /// What the repository knows of these backups, which are of one server.
    pub(crate) fn find(repository: &Repository, backups: &[Backup]) -> Result<Self, Error> {
        let mut not_booted = BTreeSet::new();
        for backup in backups {
            let test = repository.boot_test(backup)?;
            if test.is_some_and(|test| test.outcome == BootOutcome::Failed) {
                not_booted.insert(backup.id);
            }
        }
        Ok(Self {
            damaged: repository.damaged_backups(backups)?,
            not_booted,
        })
    }

    /// Whether there is any about this backup.
    pub(crate) fn concern(&self, id: BackupId) -> bool {
        self.about(id).is_some()
    }

    /// What is wrong with a backup, for the end of a sentence about it.
    pub(crate) fn about(&self, id: BackupId) -> Option<&'static str> {
        match (self.damaged.contains(&id), self.not_booted.contains(&id)) {
            (true, true) => Some("is damaged and failed its boot test"),
            (true, false) => Some("is damaged"),
            (false, true) => Some("failed its boot test"),
            (false, false) => None,
        }
    }
}
