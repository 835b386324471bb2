//! Is the server's WAL being received as a stream?

use barmanfs_catalog::Repository;

use super::Lines;
use crate::config::ServerConfig;
use crate::error::Error;
use crate::output;
use crate::postgres::Connection;

/// The slot, as the server sees it.
const SLOT: &str = "SELECT slot_type, active::text AS active, restart_lsn::text AS restart_lsn, \
                    coalesce(wal_status, '') AS wal_status \
                    FROM pg_catalog.pg_replication_slots WHERE slot_name = '";

/// Looks at the receiver, the server's setting and the slot.
pub(super) fn check(
    repository: Option<&Repository>,
    server: &ServerConfig,
    streaming: &mut Connection,
    sql: Option<&mut Connection>,
    lines: &mut Lines,
) {
    let running = repository.is_some_and(|repository| receiver(repository, server, lines));
    wal_level(streaming, lines);
    let Some(name) = server.slot_name.as_deref() else {
        lines.failed(
            "replication slot",
            "there is no slot_name: WAL the server removes while receive-wal is not running is lost",
        );
        return;
    };
    if let Some(sql) = sql {
        slot(sql, server, name, running, lines);
    }
}

fn receiver(repository: &Repository, server: &ServerConfig, lines: &mut Lines) -> bool {
    const NAME: &str = "receive-wal running";
    match repository.receiver(&server.name) {
        Ok(Some(receiver)) => {
            lines.ok(NAME, receiver.description);
            return true;
        }
        Ok(None) => lines.failed(NAME, format!("start 'barmanfs receive-wal {}'", server.name)),
        Err(error) => lines.failed(NAME, Error::from(error).to_string()),
    }
    false
}

fn wal_level(streaming: &mut Connection, lines: &mut Lines) {
    const NAME: &str = "wal_level";
    match streaming.show("wal_level") {
        Ok(level) if level == "minimal" => lines.failed(
            NAME,
            "it is minimal: set wal_level = replica and restart the server",
        ),
        Ok(level) => lines.ok(NAME, output::printable(level.as_bytes())),
        Err(error) => lines.failed(NAME, Error::from(error).to_string()),
    }
}

fn slot(sql: &mut Connection, server: &ServerConfig, name: &str, running: bool, lines: &mut Lines) {
    const NAME: &str = "replication slot";
    // A slot's name, checked by the configuration, has no quote in it.
    let rows = match sql.simple_query(&format!("{SLOT}{name}'")) {
        Ok(mut results) => results.pop().unwrap_or_default(),
        Err(error) => return lines.failed(NAME, Error::from(error).to_string()),
    };
    let text = |column| output::printable(rows.bytes(0, column).unwrap_or_default());
    let is = |column, value: &str| rows.text(0, column) == Some(value);
    if rows.len() == 0 {
        lines.failed(
            NAME,
            format!(
                "there is no slot {name}: create it with 'barmanfs receive-wal {} --create-slot', or set create_slot = auto",
                server.name
            ),
        );
    } else if !is("slot_type", "physical") {
        lines.failed(
            NAME,
            format!("slot {name} is not physical: choose another slot_name"),
        );
    } else if is("wal_status", "lost") {
        lines.failed(
            NAME,
            format!(
                "the server has given up slot {name} and removed WAL it kept (max_slot_wal_keep_size): run \
                 'barmanfs receive-wal {server}' with --drop-slot, --create-slot and --reset, and take a backup",
                server = server.name
            ),
        );
    } else if !is("active", "true") {
        let why = if running {
            "receive-wal does not use it: see what it logs"
        } else {
            "the server keeps all WAL until receive-wal runs again"
        };
        lines.failed(NAME, format!("slot {name} is not active: {why}"));
    } else {
        lines.ok(NAME, format!("{name}, at {}", text("restart_lsn")));
    }
}
