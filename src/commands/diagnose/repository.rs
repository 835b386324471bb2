//! The repository, and the mounts of it.

use barmanfs_catalog::Repository;
use serde_json::{Value, json};

use super::{part, to_value};
use crate::config::Config;
use crate::error::Error;
use crate::place::Place;

/// What the repository is and takes.
pub(super) fn of(config: &Config) -> Value {
    let path = &config.repository;
    let repository = match Place::of(config).open() {
        Ok(repository) => repository,
        Err(error) => return part(Err(error.into())),
    };
    let settings = repository.settings();
    part(Ok(json!({
        "path": config.shown_repository(),
        "id": settings.id,
        "format_version": settings.format_version,
        "created_at": settings.created_at,
        "catalog_bytes": repository.catalog_bytes(),
        "free_bytes": free_bytes(path),
        "catalog_faults": part(repository.catalog_faults().map_err(Error::from).map(|faults| json!(faults))),
        "packs": part(repository.pack_totals().map_err(Error::from).and_then(|totals| to_value(&totals))),
        "unread_packs": part(unread(&repository)),
        "cron": part(repository.repository_memory().map_err(Error::from).and_then(|memory| to_value(&memory))),
    })))
}

fn unread(repository: &Repository) -> Result<Value, Error> {
    let packs = repository.unread_packs()?;
    Ok(packs.iter().map(|pack| format!("{pack:?}")).collect())
}

fn free_bytes(path: &std::path::Path) -> Option<u64> {
    let state = rustix::fs::statvfs(path).ok()?;
    Some(state.f_bavail.saturating_mul(state.f_frsize))
}

/// The mounts of it that this process can see.
pub(super) fn mounts(config: &Config) -> Value {
    part(found(config))
}

fn found(config: &Config) -> Result<Value, Error> {
    let found = barmanfs_fs::mounts_of(&config.repository)?;
    let serving = found.serving.iter().map(|mount| {
        json!({
            "mount_point": mount.mount_point,
            "process": mount.process,
            "user": mount.user,
            "allow_other": mount.allow_other,
        })
    });
    let silent = found.silent.iter().map(|mount| {
        json!({
            "mount_point": mount.mount_point,
            "user": mount.user,
            "reason": mount.reason.to_string(),
        })
    });
    Ok(json!({"serving": serving.collect::<Vec<_>>(), "silent": silent.collect::<Vec<_>>()}))
}
