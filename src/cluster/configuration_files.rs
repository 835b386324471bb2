//! Configuration files that the server keeps outside its data directory, as on Debian.

use std::path::Path;

use crate::error::Error;
use crate::postgres::Connection;

/// The settings with the paths of configuration files.
const SETTINGS: [&str; 3] = ["config_file", "hba_file", "ident_file"];

/// SQLSTATE `insufficient_privilege`.
const NOT_PERMITTED: &str = "42501";

/// The paths of such files; `None` if the role may not see them. That takes `pg_read_all_settings`.
///
/// Call this before creating a temporary slot: PostgreSQL drops the slot when a command fails.
///
/// # Errors
/// When the server does not answer.
pub(crate) fn files_outside(connection: &mut Connection) -> Result<Option<Vec<String>>, Error> {
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

/// `None` if it is not permitted.
fn show(connection: &mut Connection, setting: &str) -> Result<Option<String>, Error> {
    match connection.show(setting) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.sqlstate() == Some(NOT_PERMITTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
