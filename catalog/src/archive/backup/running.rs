//! Running backups: `running/<server>.json`, and the lock that shows whether its process is alive.
//!
//! A backup is in the catalog only once it has ended. Until then its state file describes it: while the lock
//! `backup-<server>` is held, the backup is STARTED, afterwards FAILED, interrupted by a kill or a crash. The next
//! backup of the server writes a record of the interrupted one. No SQLite write is needed, and a rebuild loses
//! nothing.
//!
//! Order at a backup's end: enter the record in the catalog, remove the state file, release the lock. Readers use the
//! reverse order (state file, lock, catalog), so they see a backup that just ended at least once.
//! [`list`](super::list) ignores the state file when the catalog has the backup.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::archive::backup::{Backup, BackupStatus};
use crate::error::{Error, Result};
use crate::home::{RUNNING, regular, sync_directory, write_durably};
use crate::index::repository::Repository;
use crate::names::ServerName;

/// The error of a failed backup that has no error of its own.
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

/// Writes the state file: the backup is running, or, with `status` FAILED, has ended.
pub(super) fn write(repository: &Repository, backup: &Backup) -> Result<()> {
    let path = state_file(repository, &backup.server);
    let json = serde_json::to_vec(backup).map_err(|error| Error::Invalid(error.to_string()))?;
    write_durably(&path, &json)
}

/// Removes the state file; its lock must be held.
pub(super) fn remove(repository: &Repository, server: &ServerName) -> Result<()> {
    let path = state_file(repository, server);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::io("remove", &path, source)),
        _ => sync_directory(&directory(repository)),
    }
}

/// The server's running or interrupted backup. If its state file is unreadable, the backup counts as never begun:
/// nothing of it can be restored anyway.
pub(super) fn read(repository: &Repository, server: &ServerName) -> Result<Option<Backup>> {
    let Some(mut backup) = read_state(repository, server)? else {
        return Ok(None);
    };
    if repository.locks.is_held(&lock_name(server))? {
        backup.status = BackupStatus::Started;
    } else if backup.imported.is_some() {
        // It is whole where it comes from, so there is no failed backup.
        return Ok(None);
    } else {
        interrupted(&mut backup);
    }
    Ok(Some(backup))
}

/// The same for the holder of the lock: no other process can be running the backup.
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
        // A copy of a repository may lack empty directories.
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
