//! The replication slot, which makes the server keep WAL that has not been received.

use crate::cluster::{self, Purpose};
use crate::config::{CreateSlot, ServerConfig};
use crate::error::Error;
use crate::postgres::{self, Connection, SlotPosition};

/// SQLSTATE `duplicate_object`.
const DUPLICATE: &str = "42710";

/// SQLSTATE `undefined_object`.
const UNDEFINED: &str = "42704";

/// The first version in which a slot can be read over a replication connection.
const FIRST_READABLE_MAJOR: u32 = 15;

/// The position of the server's slot, if the server can return it. With `create_slot = auto`, a missing slot is
/// created.
pub(super) fn prepare(
    connection: &mut Connection,
    server: &ServerConfig,
) -> Result<Option<SlotPosition>, Error> {
    let Some(name) = server.slot_name.as_deref() else {
        return Ok(None);
    };
    let readable = connection.server_version()?.major() >= FIRST_READABLE_MAJOR;
    let found = if readable {
        connection.read_slot(name)?
    } else {
        None
    };
    if found.is_some() || server.create_slot == CreateSlot::Manual {
        return Ok(found);
    }
    match connection.create_slot(name) {
        Ok(()) => tracing::info!("Created the replication slot {name} on server {}", server.name),
        Err(error) if error.sqlstate() == Some(DUPLICATE) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(if readable {
        connection.read_slot(name)?
    } else {
        None
    })
}

/// Creates the slot. With `if_not_exists`, an existing slot is fine. Returns whether it was created.
pub(crate) fn create(server: &ServerConfig, if_not_exists: bool) -> Result<bool, Error> {
    let name = required(server)?;
    match cluster::connect(server, Purpose::ReceiveWal)?.create_slot(name) {
        Ok(()) => Ok(true),
        Err(error) if if_not_exists && error.sqlstate() == Some(DUPLICATE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Drops the slot: the server no longer keeps WAL for us.
pub(crate) fn drop(server: &ServerConfig) -> Result<(), Error> {
    let name = required(server)?;
    cluster::connect(server, Purpose::ReceiveWal)?
        .drop_slot(name, false)
        .map_err(|error| {
            let in_use = error.sqlstate() == Some("55006");
            let error = Error::from(error);
            if in_use {
                error.hint(format!(
                    "Stop what uses it first: 'barmanfs receive-wal {} --stop'",
                    server.name
                ))
            } else {
                error
            }
        })
}

fn required(server: &ServerConfig) -> Result<&str, Error> {
    server.slot_name.as_deref().ok_or_else(|| {
        Error::usage(format!("Server '{}' has no slot_name", server.name)).hint(format!(
            "Add a line like 'slot_name = barmanfs' to its section [{}]",
            server.name
        ))
    })
}

/// Adds a hint when the slot does not exist.
pub(super) fn explain(server: &ServerConfig, error: postgres::Error) -> Error {
    let is_missing = error.sqlstate() == Some(UNDEFINED) && server.slot_name.is_some();
    let error = Error::from(error);
    if is_missing {
        error.hint(format!(
            "Create it: 'barmanfs receive-wal {} --create-slot', or set create_slot = auto",
            server.name
        ))
    } else {
        error
    }
}
