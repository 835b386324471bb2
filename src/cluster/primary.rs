//! The primary of a standby from which a backup is taken.
//!
//! A standby cannot complete the segment in which its backup stops; it is complete when the primary has filled it. If
//! nothing is written there, that never happens. So the primary is asked to switch to the next segment, if the
//! configuration has a connection to it; otherwise the backup includes its WAL.

use barmanfs_pg::{Lsn, SystemId, TimelineId, TimestampMicros};

use super::{Purpose, switch};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::postgres::Connection;

/// Reads whether this is the primary, where its WAL ends, and whether the role may switch segments.
const STATE: &str = "SELECT pg_catalog.pg_is_in_recovery()::text AS standby, \
                     (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_id, \
                     (SELECT timeline_id::text FROM pg_catalog.pg_control_checkpoint()) AS timeline, \
                     CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_wal_flush_lsn() \
                     END::text AS flush_lsn, \
                     (extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::bigint::text AS now, \
                     pg_catalog.has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE')::text AS may_switch";

/// The primary of a standby at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PrimaryState {
    /// The end of the WAL that is durable there: what the standby lacks may have commits.
    pub(crate) flush_lsn: Lsn,
    /// Its timeline, as of its last checkpoint.
    pub(crate) timeline: Option<TimelineId>,
    /// Its clock, which gives commits their times.
    pub(crate) now: Option<TimestampMicros>,
}

/// Asks the primary of a standby where its WAL ends.
///
/// # Errors
/// When there is no connection to it, or `primary_conninfo` leads to another server.
pub(crate) fn look(server: &ServerConfig, system_id: SystemId) -> Result<PrimaryState, Error> {
    let mut connection = super::look(server, Purpose::Primary)?;
    let answer = ask(&mut connection, system_id)?;
    Ok(answer.state)
}

/// What a primary has answered.
struct Answer {
    state: PrimaryState,
    may_switch: bool,
}

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

/// The same after a checkpoint, so that there is something to end the segment with.
pub(crate) fn checkpoint_and_switch(server: &ServerConfig, system_id: SystemId) -> Result<(), Error> {
    let mut connection = connect(server, system_id)?;
    switch::checkpoint(&mut connection, server, Purpose::Primary)?;
    connection.simple_query("SELECT pg_catalog.pg_switch_wal()::text AS lsn")?;
    tracing::info!(
        "The {} was asked for a checkpoint and for the end of its WAL segment",
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
    if !ask(&mut connection, system_id)?.may_switch {
        let user = super::conninfo(server, Purpose::Primary)?.user;
        let what = format!("where user \"{user}\" may not switch WAL");
        return Err(wrong(&connection, &what).hint(format!(
            "As a superuser there: GRANT EXECUTE ON FUNCTION pg_switch_wal TO \"{user}\""
        )));
    }
    Ok(connection)
}

fn wrong(connection: &Connection, what: &str) -> Error {
    Error::failed(format!(
        "primary_conninfo leads to the {}, {what}",
        connection.target()
    ))
}

fn ask(connection: &mut Connection, system_id: SystemId) -> Result<Answer, Error> {
    let state = connection.simple_query(STATE)?;
    let value = |column| {
        state
            .first()
            .and_then(|rows| rows.text(0, column))
            .unwrap_or_default()
    };
    if value("standby") != "false" {
        return Err(wrong(connection, "which is a standby itself"));
    }
    if value("system_id") != system_id.to_string() {
        let what = format!(
            "the cluster with system identifier {}; the standby is of {system_id}",
            value("system_id")
        );
        return Err(wrong(connection, &what));
    }
    let flush_lsn = value("flush_lsn").parse();
    Ok(Answer {
        state: PrimaryState {
            flush_lsn: flush_lsn.map_err(|_| wrong(connection, "which does not tell its position"))?,
            timeline: value("timeline").parse().ok().map(TimelineId),
            now: value("now").parse().ok().map(TimestampMicros::from_unix_micros),
        },
        may_switch: value("may_switch") == "true",
    })
}
