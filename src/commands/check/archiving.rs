//! Does the server's WAL arrive?

use barmanfs_catalog::Repository;

use super::Lines;
use crate::backup::{self, ServerSettings};
use crate::config::{Archiver, ServerConfig};
use crate::error::Error;
use crate::output;
use crate::postgres::Connection;

/// What `pg_stat_archiver` says of a failure that nothing succeeded after.
const FAILING: &str = "SELECT last_failed_wal, last_failed_time::text AS at, failed_count::text AS failures \
                       FROM pg_catalog.pg_stat_archiver \
                       WHERE last_failed_time > coalesce(last_archived_time, '-infinity')";

/// How far the archive may be behind: what a busy server writes while an `archive_command` is at work.
const LAG_SEGMENTS: u64 = 16;

/// Looks at the server's settings, at its own opinion, and at what has arrived.
pub(super) fn check(
    repository: Option<&Repository>,
    server: &ServerConfig,
    cluster: &ServerSettings,
    streaming: &mut Connection,
    sql: Option<&mut Connection>,
    lines: &mut Lines,
) {
    let streams = server.streaming_archiver;
    let expected = match server.archiver {
        Archiver::On => true,
        Archiver::Off => false,
        // A server that streams need not archive as well.
        Archiver::Auto => cluster.archives || !streams,
    };
    if !expected && streams {
        lines.ok("archive_mode", "WAL comes by receive-wal alone".to_owned());
        if let Some(repository) = repository {
            arrived(repository, server, cluster, lines);
        }
        return;
    }
    if !expected {
        lines.ok(
            "archive_mode",
            "archiver = off: backups bring their WAL, there is no recovery to a later time".to_owned(),
        );
        return;
    }
    if !cluster.archives {
        lines.failed(
            "archive_mode",
            "it is off: set archive_mode = on and restart the server",
        );
        return;
    }
    lines.ok("archive_mode", None);
    command(server, streaming, lines);
    if let Some(sql) = sql {
        archiver(sql, lines);
    }
    if let Some(repository) = repository {
        arrived(repository, server, cluster, lines);
    }
}

fn command(server: &ServerConfig, streaming: &mut Connection, lines: &mut Lines) {
    const NAME: &str = "archive_command";
    let wanted = format!("archive_command = 'barmanfs wal-archive {} %p'", server.name);
    match streaming.show("archive_command") {
        Ok(command) if command.is_empty() || command == "(disabled)" => {
            lines.failed(NAME, format!("there is none: set {wanted}"));
        }
        Ok(command) => lines.ok(NAME, output::printable(command.as_bytes())),
        Err(error) => lines.failed(NAME, Error::from(error).to_string()),
    }
}

fn archiver(sql: &mut Connection, lines: &mut Lines) {
    const NAME: &str = "archiver errors";
    match sql.simple_query(FAILING) {
        Err(error) => lines.failed(NAME, Error::from(error).to_string()),
        Ok(results) => match results.first().filter(|rows| rows.len() > 0) {
            None => lines.ok(NAME, "there are none now".to_owned()),
            Some(rows) => {
                let text = |column| output::printable(rows.bytes(0, column).unwrap_or_default());
                lines.failed(
                    NAME,
                    format!(
                        "{} could not be archived at {}, {} failures in all: the server's log says why",
                        text("last_failed_wal"),
                        text("at"),
                        text("failures")
                    ),
                );
            }
        },
    }
}

fn arrived(repository: &Repository, server: &ServerConfig, cluster: &ServerSettings, lines: &mut Lines) {
    const NAME: &str = "continuous archiving";
    match backup::keeps_up(repository, server, cluster, LAG_SEGMENTS) {
        Ok(true) => lines.ok(NAME, None),
        Ok(false) if server.streaming_archiver => lines.failed(
            NAME,
            "none of the last segments has arrived: run 'SELECT pg_switch_wal()' and check again",
        ),
        Ok(false) => lines.failed(
            NAME,
            "none of the last segments has arrived: after a change of archive_command run 'SELECT pg_switch_wal()' and check again",
        ),
        Err(error) => lines.failed(NAME, error.to_string()),
    }
}
