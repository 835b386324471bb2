//! The backup that annotations choose.

use barmanfs_catalog::{Backup, BackupId, BackupSelector, BackupStatus, Repository, ServerName, TargetSpec};

use super::request::AUTO;
use crate::cli::restore::RestoreArgs;
use crate::commands::App;
use crate::error::Error;

/// The newest backup with all annotations that are asked for; with 'auto', the newest of these that leads to the target.
///
/// # Errors
/// When there is none.
pub(super) fn find(
    app: &App,
    args: &RestoreArgs,
    repository: &Repository,
    server: &ServerName,
    spec: &TargetSpec,
) -> Result<BackupId, Error> {
    let has_all = |backup: &Backup| {
        let mut asked = args.annotation.iter();
        asked.all(|annotation| annotation.is_in(&backup.annotations))
    };
    let words: Vec<String> = args.annotation.iter().map(ToString::to_string).collect();
    let words = words.join(", ");
    let is_newest = matches!(args.backup.parse(), Ok(BackupSelector::Latest));
    if args.backup != AUTO && !is_newest {
        let backup = app.backup(repository, server, &args.backup)?;
        return match has_all(&backup) && backup.is_of_server() {
            true => Ok(backup.id),
            false => Err(Error::failed(format!(
                "Backup {} does not have {words}",
                backup.id
            ))),
        };
    }
    let mut backups = repository.backups(server)?;
    backups.retain(|backup| {
        backup.status == BackupStatus::Done && backup.is_of_current_history() && has_all(backup)
    });
    for backup in backups.iter().rev() {
        let of_it = TargetSpec {
            backup: Some(backup.id),
            ..spec.clone()
        };
        if is_newest || repository.plan(server, &of_it)?.is_ok() {
            return Ok(backup.id);
        }
    }
    let error = match backups.last() {
        None => Error::failed(format!("No backup of server {server} that is DONE has {words}")),
        Some(newest) => Error::failed(format!(
            "No backup of server {server} with {words} leads to {spec}"
        ))
        .hint(format!(
            "'barmanfs explain {server} {spec},backup={}' says why",
            newest.id
        )),
    };
    Err(error)
}
