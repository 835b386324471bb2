//! Making a server close the WAL segment that it is writing.

use std::time::Duration;

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};

use super::{Purpose, primary};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::postgres::{Connection, ResultSet};

/// How long a checkpoint may take: it writes all that has changed in memory.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(3600);

/// Length of the header of a segment's first page.
const HEADER_BYTES: u64 = 40;

/// SQLSTATE `insufficient_privilege`.
const NOT_PERMITTED: &str = "42501";

const STATE: &str = "SELECT pg_catalog.pg_is_in_recovery()::text AS standby, \
     (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) AS system_id";

/// `pg_walfile_name` is only asked for the timeline: between versions it differs in which of two segments it names at
/// their border.
const SWITCH: &str = "SELECT lsn::text AS lsn, substr(pg_catalog.pg_walfile_name(lsn), 1, 8) AS timeline, \
     (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_segment_size') AS segment_size \
     FROM pg_catalog.pg_switch_wal() AS lsn";

/// The result of a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switched {
    /// This segment was closed.
    Closed(SegmentName),
    /// Nothing was written since the last switch.
    NotRequired,
    /// The server is a standby, which writes no WAL of its own.
    Standby,
}

/// Makes the server go on in the next segment. With `force`, it makes a checkpoint first, so that there is something to
/// close. For a standby, its primary is asked if there is a connection string for it.
///
/// # Errors
/// When the server does not answer, or does not permit it.
pub(crate) fn switch(server: &ServerConfig, force: bool) -> Result<Switched, Error> {
    let mut sql = super::look(server, Purpose::Sql)?;
    let mut purpose = Purpose::Sql;
    let state = sql.simple_query(STATE)?;
    let text = |column| state.first().and_then(|rows| rows.text(0, column));
    if text("standby") != Some("false") {
        if server.primary_conninfo.is_none() {
            return Ok(Switched::Standby);
        }
        let system_id = text("system_id").and_then(|id| id.parse().ok());
        sql = primary::connect(server, system_id.ok_or_else(strange)?)?;
        purpose = Purpose::Primary;
    }
    if force {
        checkpoint(&mut sql, server, purpose)?;
    }
    let results = sql.simple_query(SWITCH).map_err(|error| {
        let not_permitted = error.sqlstate() == Some(NOT_PERMITTED);
        let right = "EXECUTE ON FUNCTION pg_switch_wal";
        with_grant(error.into(), not_permitted, server, purpose, right)
    })?;
    let rows = results.first().ok_or_else(strange)?;
    closed(rows).ok_or_else(strange)
}

/// Makes a checkpoint on a connection of this purpose.
///
/// # Errors
/// When the server does not permit it, or does not answer.
pub(super) fn checkpoint(sql: &mut Connection, server: &ServerConfig, purpose: Purpose) -> Result<(), Error> {
    let done = sql.query_within(CHECKPOINT_WITHIN, "CHECKPOINT");
    done.map(drop).map_err(|error| {
        let not_permitted = error.sqlstate() == Some(NOT_PERMITTED);
        with_grant(error.into(), not_permitted, server, purpose, "pg_checkpoint")
    })
}

fn with_grant(
    error: Error,
    not_permitted: bool,
    server: &ServerConfig,
    purpose: Purpose,
    right: &str,
) -> Error {
    let user = super::conninfo(server, purpose).map(|conninfo| conninfo.user);
    match user {
        Ok(user) if not_permitted => error.hint(format!("As a superuser there: GRANT {right} TO \"{user}\"")),
        _ => error,
    }
}

fn closed(rows: &ResultSet) -> Option<Switched> {
    let size: u64 = rows.text(0, "segment_size")?.parse().ok()?;
    let timeline = u32::from_str_radix(rows.text(0, "timeline")?, 16).ok()?;
    let lsn: Lsn = rows.text(0, "lsn")?.parse().ok()?;
    closed_at(TimelineId(timeline), lsn, SegmentSize::try_from(size).ok()?)
}

/// `lsn` is the end of the record of the switch. If there was nothing to close, it is the start of the current segment.
/// A record that ends with its segment has its end behind the next one's header.
fn closed_at(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Option<Switched> {
    let offset = lsn.segment_offset(size);
    if offset == 0 {
        return Some(Switched::NotRequired);
    }
    let within = if offset <= HEADER_BYTES {
        Lsn(lsn.0.checked_sub(offset + 1)?)
    } else {
        lsn
    };
    Some(Switched::Closed(SegmentName::from_lsn(timeline, within, size)))
}

fn strange() -> Error {
    Error::failed("The server did not tell which segment it closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closed_segment_is_the_one_in_which_the_switch_is() {
        let closed = |lsn| closed_at(TimelineId(1), Lsn(lsn), SegmentSize::DEFAULT);
        let segment = |name: &str| Some(Switched::Closed(name.parse().unwrap()));
        assert_eq!(closed(0x300_0148), segment("000000010000000000000003"));
        assert_eq!(closed(0x400_0000), Some(Switched::NotRequired));
        assert_eq!(closed(0x400_0028), segment("000000010000000000000003"));
        assert_eq!(closed(0x400_0040), segment("000000010000000000000004"));
    }
}
