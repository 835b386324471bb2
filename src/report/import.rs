//! `import --json`.

use barmanfs_catalog::{Backup, BackupId};
use serde::Serialize;

use crate::import::wal::Totals;
use crate::import::{ForeignBackup, LeftOut};

/// What an import took, or would take.
#[derive(Debug, Serialize)]
pub(crate) struct Import {
    pub(crate) server: String,
    /// Where from.
    pub(crate) source: String,
    /// Whether nothing was taken because of `--dry-run`.
    pub(crate) dry_run: bool,
    pub(crate) backups: Vec<ImportedBackup>,
    /// The WAL that was taken; null with `--dry-run`.
    pub(crate) wal: Option<Totals>,
    pub(crate) left_out: Vec<NotTaken>,
}

/// One backup.
#[derive(Debug, Serialize)]
pub(crate) struct ImportedBackup {
    /// What the source calls it.
    pub(crate) name: String,
    /// Its id here; null if it is not here.
    pub(crate) backup: Option<BackupId>,
    /// `imported`, `present`, `repaired`, or with `--dry-run` `would be imported` or `would be repaired`.
    pub(crate) state: &'static str,
    /// Bytes of its files.
    pub(crate) logical_bytes: Option<u64>,
    /// Bytes that were read of the source.
    pub(crate) read_bytes: u64,
    /// Bytes that were taken over from other backups without reading them.
    pub(crate) shared_bytes: u64,
    /// Bytes that it added to the repository.
    pub(crate) new_stored_bytes: u64,
    /// Whether it was deleted from the source (`--move`).
    pub(crate) source_deleted: bool,
}

impl Import {
    /// A backup was deleted from the source.
    pub(crate) fn deleted(&mut self, name: &str) {
        for backup in self.backups.iter_mut().filter(|backup| backup.name == name) {
            backup.source_deleted = true;
        }
    }
}

impl ImportedBackup {
    /// One that was imported now.
    pub(crate) fn imported(backup: &Backup, name: &str, (read_bytes, shared_bytes): (u64, u64)) -> Self {
        Self {
            name: name.to_owned(),
            backup: Some(backup.id),
            state: "imported",
            logical_bytes: Some(backup.logical_bytes),
            read_bytes,
            shared_bytes,
            new_stored_bytes: backup.new_stored_bytes,
            source_deleted: false,
        }
    }

    /// One that was here before.
    pub(crate) fn present(backup: &Backup, name: &str) -> Self {
        Self {
            state: "present",
            new_stored_bytes: 0,
            ..Self::imported(backup, name, (0, 0))
        }
    }

    /// One that was here and damaged, and is whole now.
    pub(crate) fn repaired(backup: &Backup, name: &str, read: (u64, u64)) -> Self {
        Self {
            state: "repaired",
            new_stored_bytes: 0,
            ..Self::imported(backup, name, read)
        }
    }

    /// One that is damaged here, and that an import without `--dry-run` would read again.
    pub(crate) fn to_repair(backup: &Backup, name: &str) -> Self {
        Self {
            state: "would be repaired",
            ..Self::present(backup, name)
        }
    }

    /// One that an import without `--dry-run` would take.
    pub(crate) fn planned(foreign: &ForeignBackup) -> Self {
        Self {
            name: foreign.name.clone(),
            backup: None,
            state: "would be imported",
            logical_bytes: foreign.size_bytes,
            read_bytes: 0,
            shared_bytes: 0,
            new_stored_bytes: 0,
            source_deleted: false,
        }
    }
}

/// What could not be taken.
#[derive(Debug, Serialize)]
pub(crate) struct NotTaken {
    /// Its name in the source.
    pub(crate) name: String,
    pub(crate) reason: String,
    /// Whether a person should look at it.
    pub(crate) problem: bool,
}

impl From<LeftOut> for NotTaken {
    fn from(left_out: LeftOut) -> Self {
        Self {
            name: left_out.what,
            reason: left_out.why,
            problem: left_out.is_problem,
        }
    }
}
