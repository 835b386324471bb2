//! Complete backups that are known to be unreliable: a verification found damage in them, or their newest boot test
//! failed.

use std::collections::BTreeSet;

use barmanfs_catalog::{Backup, BackupId, BootTest, Repository};

use crate::error::Error;

/// The unreliable backups of a server.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    /// Backups that need data that is known to be damaged.
    pub(crate) damaged: BTreeSet<BackupId>,
    /// Backups whose newest boot test failed.
    pub(crate) not_booted: BTreeSet<BackupId>,
    /// The newest boot test of any of the backups.
    pub(crate) last_test: Option<BootTest>,
}

impl Doubts {
    /// Finds the doubts about these backups, which all belong to one server.
    pub(crate) fn find(repository: &Repository, backups: &[Backup]) -> Result<Self, Error> {
        let known = repository.reliability(backups)?;
        let all = backups.iter().map(|backup| backup.id);
        Ok(Self {
            not_booted: all.filter(|id| known.failed_to_boot(*id)).collect(),
            last_test: known.boot_tests.into_values().max_by_key(|test| test.began_at),
            damaged: known.damaged,
        })
    }

    /// Whether there are doubts about this backup.
    pub(crate) fn concern(&self, id: BackupId) -> bool {
        self.about(id).is_some()
    }

    /// The problem of a backup, for the end of a sentence about it.
    pub(crate) fn about(&self, id: BackupId) -> Option<&'static str> {
        match (self.damaged.contains(&id), self.not_booted.contains(&id)) {
            (true, true) => Some("is damaged and failed its boot test"),
            (true, false) => Some("is damaged"),
            (false, true) => Some("failed its boot test"),
            (false, false) => None,
        }
    }
}
