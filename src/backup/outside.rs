//! A warning about configuration files that a backup does not have.

use barmanfs_catalog::{Backup, Repository};

use crate::error::Error;

/// Files that a server reads from its data directory by default.
const FILES: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

/// Logs which configuration files are missing in a backup: those `outside`, and those that the server reads through a
/// symbolic link, which PostgreSQL does not send.
///
/// # Errors
/// When the backup's listing cannot be read.
pub(super) fn warn(repository: &Repository, backup: &Backup, outside: &[String]) -> Result<(), Error> {
    let mut missing = outside.to_vec();
    if let Some(root) = backup.root.as_ref().filter(|_| outside.is_empty()) {
        for name in FILES {
            let found = repository.trees().lookup(&root.directory, name.as_bytes());
            if found.map_err(barmanfs_catalog::Error::from)?.is_none() {
                missing.push(name.to_owned());
            }
        }
    }
    if !missing.is_empty() {
        tracing::warn!(
            "Backup {} of server {} does not have {}: that is outside the server's data directory, like all it includes, or \
             a symbolic link. Keep a copy of it. A recovered server starts with a minimal configuration instead",
            backup.id,
            backup.server,
            missing.join(", ")
        );
    }
    Ok(())
}
