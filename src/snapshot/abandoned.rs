//! Snapshots that killed backups have left in the storage: the next backup deletes them.

use barmanfs_catalog::{IntendedSnapshot, Repository, ServerName};

use crate::hooks::storage::{Act, Storage, Subject};

/// Deletes them. What fails costs space in the storage, and is tried again.
pub(super) fn delete(repository: &Repository, server: &ServerName, storage: &Storage<'_>) {
    let abandoned = match abandoned(repository, server) {
        Ok(abandoned) => abandoned,
        Err(error) => {
            tracing::warn!("It is not known which snapshots killed backups of {server} have left: {error}");
            return;
        }
    };
    for snapshot in abandoned {
        let subject = Subject {
            backup: Some(snapshot.backup),
            name: &snapshot.name,
            data_directory: snapshot.data_directory.as_deref(),
            ..Subject::default()
        };
        tracing::info!(
            "Snapshot {} was left by a backup that was killed: it is deleted",
            snapshot.name
        );
        if storage.has(Act::Umount)
            && let Err(error) = storage.run(Act::Umount, &subject)
        {
            tracing::debug!("Snapshot {} is not unmounted: {error}", snapshot.name);
        }
        if storage.has(Act::Delete)
            && let Err(error) = storage.run(Act::Delete, &subject)
        {
            tracing::error!("Snapshot {} may be left in the storage: {error}", snapshot.name);
            continue;
        }
        forget(repository, &snapshot);
    }
}

/// The record of a killed backup may be in a pack that the catalog does not know yet.
fn abandoned(
    repository: &Repository,
    server: &ServerName,
) -> Result<Vec<IntendedSnapshot>, barmanfs_catalog::Error> {
    match repository.abandoned_snapshots(server)?.is_empty() {
        true => Ok(Vec::new()),
        false => {
            repository.prove_completeness()?;
            repository.abandoned_snapshots(server)
        }
    }
}

/// Notes that a snapshot is recorded or gone.
pub(super) fn forget(repository: &Repository, snapshot: &IntendedSnapshot) {
    if let Err(error) = repository.forget_intended_snapshot(&snapshot.server, snapshot.backup) {
        tracing::warn!(
            "That snapshot {} is settled cannot be noted: {error}",
            snapshot.name
        );
    }
}
