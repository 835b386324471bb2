//! Deletes a backup that `pg_basebackup` has written, once it is in the repository. Only what is certainly that backup is deleted.

use std::fs;
use std::io;
use std::path::Path;

use super::{archives, describe};
use crate::error::Error;
use crate::import::ForeignBackup;

/// Without it nobody takes the rest for a backup: it goes first.
const MANIFEST: &str = "backup_manifest";

/// Deletes the directory of a backup, or its archives.
///
/// # Errors
/// When there is another backup now, a server was started on it, a part of it is elsewhere, or it cannot be deleted.
pub(super) fn delete(place: &Path, backup: &ForeignBackup) -> Result<(), Error> {
    let refuse = |why: &str| Error::failed(format!("{} {why}", place.display()));
    let failed = |error: io::Error| Error::failed(format!("{} cannot be deleted: {error}", place.display()));
    if fs::symlink_metadata(place).map_err(failed)?.is_symlink() {
        return Err(refuse("is a link"));
    }
    let (now, _) = describe(place)?;
    if now.identity() != backup.identity() {
        return Err(refuse("holds another backup now"));
    }
    let Some(archives) = archives(place)? else {
        if place.join("postmaster.pid").exists() {
            return Err(refuse("has a postmaster.pid: a server may run there"));
        }
        if has_links(place).map_err(failed)? {
            return Err(refuse(
                "has links to tablespaces or to its WAL, which are elsewhere",
            ));
        }
        fs::remove_file(place.join(MANIFEST)).map_err(failed)?;
        return fs::remove_dir_all(place).map_err(failed);
    };
    fs::remove_file(place.join(MANIFEST)).map_err(failed)?;
    for (_, path) in &archives.files {
        fs::remove_file(path).map_err(failed)?;
    }
    // What else somebody has put there stays.
    match fs::remove_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => removed.map_err(failed),
    }
}

/// Whether something of a plain backup is in another place.
fn has_links(place: &Path) -> io::Result<bool> {
    if fs::symlink_metadata(place.join("pg_wal")).is_ok_and(|found| found.is_symlink()) {
        return Ok(true);
    }
    match fs::read_dir(place.join("pg_tblspc")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        entries => {
            for entry in entries? {
                if entry?.file_type()?.is_symlink() {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}
