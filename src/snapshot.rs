//! Backups from snapshots of a storage: the server sends nothing.
//!
//! A snapshot is taken between `pg_backup_start` and `pg_backup_stop` ([`backup::window`]), by a command of the site
//! ([`crate::hooks::storage`]), or by a person who brings the label that the server returned ([`given`]). It is mounted, and its
//! data directory is read into the repository ([`ingest`], from [`places`] and [`tablespaces`]): that is a backup as any other. Or it stays in the
//! storage ([`kept`]), and only its label and its disks are recorded.

mod abandoned;
mod given;
mod ingest;
mod kept;
mod places;
mod running;
mod tablespaces;
mod taken;

use std::path::PathBuf;

use barmanfs_catalog::{Backup, Repository, ServerName};
use barmanfs_pg::Lsn;

use crate::backup::{self, BackupOptions, Stop};
use crate::config::{BackupMethod, ServerConfig, TablespacePlace};
use crate::error::Error;
use crate::forks;

/// What is asked for on the command line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    /// The data directory in a mounted snapshot.
    pub(crate) from: Option<PathBuf>,
    /// What `pg_backup_stop` returned, if a person has taken the snapshot.
    pub(crate) stopped: Option<StoppedBy>,
    /// Where tablespaces are mounted.
    pub(crate) tablespaces: Vec<TablespacePlace>,
}

/// The end of a backup that a person has begun and ended.
#[derive(Debug, Clone)]
pub(crate) struct StoppedBy {
    pub(crate) label: PathBuf,
    pub(crate) map: Option<PathBuf>,
    pub(crate) stop_lsn: Lsn,
}

/// Whether backups of this server come from snapshots, or this one does.
pub(crate) fn is_asked(asked: &Asked, server: &ServerConfig, options: &BackupOptions) -> bool {
    asked.from.is_some() || options.method(server) == BackupMethod::Snapshot
}

/// Takes a backup by the server's method.
///
/// # Errors
/// When it fails. It is listed as failed then, if it had begun.
pub(crate) fn take_as_asked(
    repository: &Repository,
    server: &ServerConfig,
    asked: &Asked,
    options: &BackupOptions,
    stop: &Stop,
) -> Result<Backup, Error> {
    match is_asked(asked, server, options) {
        true => take(repository, server, asked, options, stop),
        false => backup::take(repository, server, options, stop),
    }
}

/// A snapshot does not bring its WAL, so it must be known which history counts.
fn refuse_forks(repository: &Repository, server: &ServerName) -> Result<(), Error> {
    match repository.open_forks(server)?.first() {
        None => Ok(()),
        Some(fork) => {
            Err(Error::failed(format!("Server {server}: {fork}")).hint(forks::advice(server, fork)))
        }
    }
}

/// Takes one backup of `server`. It ends complete or not at all.
///
/// # Errors
/// When the snapshot cannot be taken, or is no backup of the server.
pub(crate) fn take(
    repository: &Repository,
    server: &ServerConfig,
    asked: &Asked,
    options: &BackupOptions,
    stop: &Stop,
) -> Result<Backup, Error> {
    let from = asked.from.as_ref().or(server.snapshots.directory.as_ref());
    backup::hooked(repository, server, stop, |hooks, begun| {
        match (&asked.stopped, from) {
            (Some(stopped), Some(from)) => given::Given {
                repository,
                server,
                asked,
                stopped,
                options,
                stop,
                hooks,
            }
            .take(from, begun),
            _ => taken::take(
                (repository, server),
                (asked, from.map(PathBuf::as_path)),
                options,
                (stop, hooks),
                begun,
            ),
        }
    })
}
