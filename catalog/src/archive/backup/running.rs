//! Running backups: `running/<server>.json`, and the lock that tells whether its process lives.
//!
//! A backup is in the catalog only once it has ended. Until then its state file says what is known of it: while the
//! lock `backup-<server>` is held it is STARTED, afterwards FAILED, interrupted by a kill or a crash. The next backup
//! of the server makes a record of that. No SQLite write is needed, and a rebuild loses nothing.
//!
//! Order at a backup's end: record into the catalog, state file removed, lock freed. Readers go the other way (state
//! file, lock, catalog), so they see a backup that just ended at least once, and [`list`](super::list) leaves
//! the state file out when the catalog has the backup.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::archive::backup::{Backup, BackupStatus};
use crate::error::{Error, Result};
use crate::home::{RUNNING, regular, sync_directory, write_durably};
use crate::index::repository::Repository;
use crate::names::ServerName;

/// Why a backup without a word of its own has failed.
const INTERRUPTED: &str = "Interrupted: the process that took it was killed, or the host went down";

/// Name of the lock that the running backup of a server holds.
pub(super) fn lock_name(server: &ServerName) -> String {
    format!("backup-{server}")
}

fn directory(repository: &Repository) -> PathBuf {
    repository.home.join(RUNNING)
}

fn state_file(repository: &Repository, server: &ServerName) -> PathBuf {
    directory(repository).join(format!("{server}.json"))
}

/// Writes down that this backup is running, or with `status` FAILED how it ended.
pub(super) fn write(repository: &Repository, backup: &Backup) -> Result<()> {
    let path = state_file(repository, &backup.server);
    let json = serde_json::to_vec(backup).map_err(|error| Error::Invalid(error.to_string()))?;
    write_durably(&path, &json)
}

/// Forgets the state file; its lock must be held.
pub(super) fn remove(repository: &Repository, server: &ServerName) -> Result<()> {
    let path = state_file(repository, server);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::io("remove", &path, source)),
        _ => sync_directory(&directory(repository)),
    }
}

/// The server's backup that is running or was interrupted. One whose state file is unreadable is as if it had never
/// begun: nothing of it can be restored anyway.
pub(super) fn read(repository: &Repository, server: &ServerName) -> Result<Option<Backup>> {
    let Some(mut backup) = read_state(repository, server)? else {
        return Ok(None);
    };
    if repository.locks.is_held(&lock_name(server))? {
        backup.status = BackupStatus::Started;
    } else {
        interrupted(&mut backup);
    }
    Ok(Some(backup))
}

/// The same for whoever holds the lock: nobody else can be at work on it.
pub(super) fn read_interrupted(repository: &Repository, server: &ServerName) -> Result<Option<Backup>> {
    let mut backup = read_state(repository, server)?;
    backup.iter_mut().for_each(interrupted);
    Ok(backup)
}

fn interrupted(backup: &mut Backup) {
    backup.status = BackupStatus::Failed;
    backup.error.get_or_insert_with(|| INTERRUPTED.to_owned());
}

fn read_state(repository: &Repository, server: &ServerName) -> Result<Option<Backup>> {
    let path = state_file(repository, server);
    match regular::read(&path) {
        Ok(json) => Ok(serde_json::from_slice(&json)
            .ok()
            .filter(|backup: &Backup| &backup.server == server)),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io("read", &path, source)),
    }
}

/// The servers that have a running or interrupted backup.
pub(crate) fn servers(repository: &Repository) -> Result<Vec<ServerName>> {
    let directory = directory(repository);
    let unreadable = |source| Error::io("list", &directory, source);
    let mut servers = Vec::new();
    let entries = match fs::read_dir(&directory) {
        // A repository that was copied may have come without what was empty.
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(servers),
        entries => entries.map_err(unreadable)?,
    };
    for entry in entries {
        let name = entry.map_err(unreadable)?.file_name();
        let server = name
            .to_str()
            .and_then(|name| name.strip_suffix(".json"))
            .map(str::parse);
        servers.extend(server.and_then(Result::ok));
    }
    Ok(servers)
}
