//! Configuration files that no backup has, because the server keeps them outside its data directory, as on Debian.

use std::path::Path;

use barmanfs_catalog::{Backup, Repository};

use crate::error::Error;
use crate::postgres::Connection;

/// The settings that name them.
const SETTINGS: [&str; 3] = ["config_file", "hba_file", "ident_file"];

/// Files a server reads in its data directory where nothing else is set.
const FILES: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

/// Their paths, as far as this user may see them; `None` where he may not (that takes `pg_read_all_settings`).
///
/// To be asked before there is a slot: PostgreSQL drops a temporary one when a command fails.
///
/// # Errors
/// When the server does not answer.
pub(crate) fn files(connection: &mut Connection) -> Result<Option<Vec<String>>, Error> {
    let Some(data) = show(connection, "data_directory")? else {
        return Ok(None);
    };
    let mut outside = Vec::new();
    for setting in SETTINGS {
        match show(connection, setting)? {
            Some(path) if !Path::new(&path).starts_with(&data) => {
                outside.push(path.escape_debug().to_string());
            }
            Some(_) => {}
            None => return Ok(None),
        }
    }
    Ok(Some(outside))
}

/// Says which configuration files a backup does not have: those `outside`, and those that the server reads through a symbolic
/// link, which PostgreSQL does not send.
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

/// `None` where it is not permitted.
fn show(connection: &mut Connection, setting: &str) -> Result<Option<String>, Error> {
    match connection.show(setting) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.sqlstate() == Some(NOT_PERMITTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `insufficient_privilege`.
const NOT_PERMITTED: &str = "42501";
