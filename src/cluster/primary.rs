//! The primary of a standby from which a backup is taken.
//!
//! A standby cannot complete the segment in which its backup stops; it is complete when the primary has filled it. If
//! nothing is written there, that never happens. So the primary is asked to switch to the next segment, if the
//! configuration has a connection to it; otherwise the backup includes its WAL.

use barmanfs_pg::SystemId;

use super::Purpose;
use crate::config::ServerConfig;
use crate::error::Error;
use crate::postgres::Connection;

/// Reads whether this is the primary, and whether the role may switch segments.
const STATE: &str = "SELECT pg_catalog.pg_is_in_recovery()::text AS standby, \
                     (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_id, \
                     pg_catalog.has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE')::text AS may_switch";

/// Whether the primary of a standby can be asked to switch to the next segment. If not, logs the reason.
pub(crate) fn can_switch(server: &ServerConfig, system_id: SystemId) -> bool {
    if server.primary_conninfo.is_none() {
        return false;
    }
    match connect(server, system_id) {
        Ok(_) => true,
        Err(error) => {
            let hint = error
                .hint_text()
                .map_or_else(String::new, |hint| format!(". {hint}"));
            tracing::warn!(
                "The primary of server {} cannot be used: {error}{hint}",
                server.name
            );
            false
        }
    }
}

/// Makes the primary switch to the next segment, so that the segment in which the backup stops becomes complete.
pub(crate) fn switch_wal(server: &ServerConfig, system_id: SystemId) -> Result<(), Error> {
    let mut connection = connect(server, system_id)?;
    connection.simple_query("SELECT pg_catalog.pg_switch_wal()::text AS lsn")?;
    tracing::info!(
        "The {} was asked for the end of its WAL segment",
        connection.target()
    );
    Ok(())
}

/// Connects to the primary.
///
/// # Errors
/// Also if the server is not a primary, belongs to another cluster, or does not grant the privilege.
pub(crate) fn connect(server: &ServerConfig, system_id: SystemId) -> Result<Connection, Error> {
    let mut connection = super::connect(server, Purpose::Primary)?;
    let state = connection.simple_query(STATE)?;
    let value = |column| {
        state
            .first()
            .and_then(|rows| rows.text(0, column))
            .unwrap_or_default()
    };
    let wrong = |what: String| {
        Err(Error::failed(format!(
            "primary_conninfo leads to the {}, {what}",
            connection.target()
        )))
    };
    if value("standby") != "false" {
        return wrong("which is a standby itself".to_owned());
    }
    if value("system_id") != system_id.to_string() {
        return wrong(format!(
            "the cluster with system identifier {}; the standby is of {system_id}",
            value("system_id")
        ));
    }
    if value("may_switch") != "true" {
        let user = super::conninfo(server, Purpose::Primary)?.user;
        return wrong(format!("where user \"{user}\" may not switch WAL")).map_err(|error: Error| {
            error.hint(format!(
                "As a superuser there: GRANT EXECUTE ON FUNCTION pg_switch_wal TO \"{user}\""
            ))
        });
    }
    Ok(connection)
}
