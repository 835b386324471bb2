//! Complete backups that are known to be unreliable: a verification found damage in them, or their newest boot test
//! failed.

use std::collections::BTreeSet;

use barmanfs_catalog::{Backup, BackupId, BootOutcome, BootTest, Repository};

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
        let mut not_booted = BTreeSet::new();
        let mut last_test: Option<BootTest> = None;
        for backup in backups {
            let Some(test) = repository.boot_test(backup)? else {
                continue;
            };
            if test.outcome == BootOutcome::Failed {
                not_booted.insert(backup.id);
            }
            if last_test
                .as_ref()
                .is_none_or(|last| last.began_at < test.began_at)
            {
                last_test = Some(test);
            }
        }
        Ok(Self {
            damaged: repository.damaged_backups(backups)?,
            not_booted,
            last_test,
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
