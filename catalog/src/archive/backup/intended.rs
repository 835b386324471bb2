//! Snapshots of the storage that a backup is about to take: `running/<server>.<backup>.snapshot`.
//!
//! The storage has a snapshot before its record is here, and one that is only read never gets a record. A process that is killed
//! in between leaves it there, and only this file knows its name. The file is written before the snapshot is taken, and goes when
//! the snapshot is recorded or deleted.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::running;
use crate::archive::backup::{Backup, BackupStatus};
use crate::error::{Error, Result};
use crate::home::{RUNNING, regular, sync_directory, write_durably};
use crate::index::repository::Repository;
use crate::names::{BackupId, ServerName};

/// The ending of the files.
const ENDING: &str = ".snapshot";

/// A snapshot that the storage may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntendedSnapshot {
    /// Whose it is.
    pub server: ServerName,
    /// The backup that is made of it.
    pub backup: BackupId,
    /// The name that the commands of the storage are given.
    pub name: String,
    /// The server's data directory, if its role could see that.
    #[serde(default)]
    pub data_directory: Option<String>,
}

impl Repository {
    fn intended(&self) -> PathBuf {
        self.home.join(RUNNING)
    }

    /// Notes that a snapshot is about to be taken, durably.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn intend_snapshot(&self, snapshot: &IntendedSnapshot) -> Result<()> {
        let _acting = self.as_owner()?;
        let json = serde_json::to_vec(snapshot).map_err(|error| Error::Invalid(error.to_string()))?;
        write_durably(&file(&self.intended(), &snapshot.server, snapshot.backup), &json)
    }

    /// Notes that the snapshot of a backup is recorded, or is not in the storage any more.
    ///
    /// # Errors
    /// When the note cannot be removed.
    pub fn forget_intended_snapshot(&self, server: &ServerName, backup: BackupId) -> Result<()> {
        let _acting = self.as_owner()?;
        let directory = self.intended();
        let path = file(&directory, server, backup);
        match fs::remove_file(&path) {
            Ok(()) => sync_directory(&directory),
            Err(source) if source.kind() == ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::io("remove", &path, source)),
        }
    }

    /// The snapshots of a server that may be in the storage without a record, as far as the catalog knows: their backups have
    /// ended, and did not say what became of them. Oldest first.
    ///
    /// # Errors
    /// When the notes or the catalog cannot be read.
    pub fn abandoned_snapshots(&self, server: &ServerName) -> Result<Vec<IntendedSnapshot>> {
        let mut found = list(&self.intended(), server)?;
        if found.is_empty() {
            return Ok(found);
        }
        let running = running::read(self, server)?.filter(|backup| backup.status == BackupStatus::Started);
        let recorded = self.backups(server)?;
        let has = |snapshot: &IntendedSnapshot| {
            let is_it = |backup: &Backup| backup.id == snapshot.backup;
            running.as_ref().is_some_and(is_it)
                || recorded.iter().any(|backup| {
                    is_it(backup)
                        && backup
                            .snapshot
                            .as_ref()
                            .is_some_and(|own| own.name == snapshot.name)
                })
        };
        found.retain(|snapshot| !has(snapshot));
        Ok(found)
    }
}

fn file(directory: &Path, server: &ServerName, backup: BackupId) -> PathBuf {
    directory.join(format!("{server}.{backup}{ENDING}"))
}

/// The notes of a server. One that is not readable names no snapshot.
fn list(directory: &Path, server: &ServerName) -> Result<Vec<IntendedSnapshot>> {
    let unreadable = |source| Error::io("list", directory, source);
    let entries = match fs::read_dir(directory) {
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if !path.as_os_str().to_string_lossy().ends_with(ENDING) {
            continue;
        }
        let json = match regular::read(&path) {
            Err(source) if source.kind() == ErrorKind::NotFound => continue,
            json => json.map_err(|source| Error::io("read", &path, source))?,
        };
        let read: Option<IntendedSnapshot> = serde_json::from_slice(&json).ok();
        found.extend(read.filter(|snapshot| snapshot.server == *server));
    }
    found.sort_by_key(|snapshot| snapshot.backup);
    Ok(found)
}
