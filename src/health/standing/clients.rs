//! The processes that receive a server's WAL as a stream.

use barmanfs_pg::{Lsn, TimestampMicros};

use super::live::{parsed, time};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::output::printable;
use crate::postgres::{Connection, ResultSet};

/// How many clients are looked at. A server rarely has more than a dozen.
const CLIENTS_MAX: usize = 1000;

const CLIENTS: &str = "SELECT r.pid::text AS pid, r.usename AS usename, r.application_name, \
    r.client_addr::text AS client_addr, r.client_hostname, r.client_port::text AS client_port, \
    (extract(epoch from r.backend_start) * 1000000)::bigint AS started, r.state, r.sync_state, \
    r.sync_priority::text AS sync_priority, \
    r.sent_lsn::text AS sent, r.write_lsn::text AS written, r.flush_lsn::text AS flushed, \
    r.replay_lsn::text AS replayed, extract(epoch from r.flush_lag)::text AS flush_lag, \
    (extract(epoch from r.reply_time) * 1000000)::bigint AS replied, \
    s.slot_name AS slot_name \
    FROM pg_catalog.pg_stat_replication r \
    LEFT JOIN pg_catalog.pg_replication_slots s ON s.active_pid = r.pid \
    ORDER BY r.backend_start, r.pid LIMIT ";

/// A process that receives WAL as a stream: a standby, `receive-wal`, a backup.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct StreamClient {
    /// The server's process that serves it.
    pub(crate) process: u32,
    /// The user.
    pub(crate) user: Option<String>,
    /// Its `application_name`.
    pub(crate) application_name: String,
    /// Its address; `None` for a socket of the server's host, and where the role may not see it.
    pub(crate) address: Option<String>,
    /// Its host's name, if the server looks names up.
    pub(crate) host_name: Option<String>,
    /// Its port; -1 for a socket of the server's host.
    pub(crate) port: Option<i32>,
    /// When the connection began.
    pub(crate) started: Option<TimestampMicros>,
    /// `streaming`, `catchup`, `backup`, …
    pub(crate) state: Option<String>,
    /// `async`, `potential`, `sync` or `quorum`.
    pub(crate) sync_state: Option<String>,
    /// Its place among the synchronous standbys; 0 for none.
    pub(crate) sync_priority: u32,
    /// The end of what was sent to it.
    pub(crate) sent_lsn: Option<Lsn>,
    /// The end of what it says to have written.
    pub(crate) write_lsn: Option<Lsn>,
    /// The end of what it says to be durable.
    pub(crate) flush_lsn: Option<Lsn>,
    /// The end of what it says to have replayed; `None` for what is no standby.
    pub(crate) replay_lsn: Option<Lsn>,
    /// How long it took until the last flush was reported, in seconds.
    pub(crate) flush_lag_seconds: Option<f64>,
    /// When it sent its last report, by its own clock: that of the host that it runs on.
    pub(crate) replied: Option<TimestampMicros>,
    /// The replication slot that it uses.
    pub(crate) slot: Option<String>,
}

/// The clients that may be this server's `receive-wal`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum OwnStream<'a> {
    /// There is none.
    None,
    /// This one.
    One(&'a StreamClient),
    /// One of so many, and nothing tells which.
    OneOf(usize),
}

impl<'a> OwnStream<'a> {
    /// Finds them. Any program may have the same name, but only one has the slot.
    pub(crate) fn among(clients: &'a [StreamClient], server: &ServerConfig) -> Self {
        let is_own = |client: &&StreamClient| match &server.slot_name {
            Some(slot) => client.slot.as_ref() == Some(slot),
            None => client.slot.is_none() && client.application_name == server.streaming_archiver_name,
        };
        let own: Vec<&StreamClient> = clients.iter().filter(is_own).collect();
        match own.as_slice() {
            [] => Self::None,
            [one] => Self::One(one),
            several => Self::OneOf(several.len()),
        }
    }
}

impl StreamClient {
    /// Whether it only receives, and replays nothing.
    pub(crate) fn is_wal_streamer(&self) -> bool {
        self.replay_lsn.is_none()
    }
}

/// Asks for all of them.
///
/// # Errors
/// When the server does not answer.
pub(in crate::health) fn ask(sql: &mut Connection) -> Result<Vec<StreamClient>, Error> {
    let results = sql.simple_query(&format!("{CLIENTS}{CLIENTS_MAX}"))?;
    let Some(rows) = results.first() else {
        return Ok(Vec::new());
    };
    Ok((0..rows.len()).map(|row| client(rows, row)).collect())
}

fn client(rows: &ResultSet, row: usize) -> StreamClient {
    let text = |column| {
        rows.bytes(row, column)
            .map(printable)
            .filter(|text| !text.is_empty())
    };
    StreamClient {
        process: parsed(rows, row, "pid").unwrap_or_default(),
        user: text("usename"),
        application_name: text("application_name").unwrap_or_default(),
        address: text("client_addr"),
        host_name: text("client_hostname"),
        port: parsed(rows, row, "client_port"),
        started: time(rows, row, "started"),
        state: text("state"),
        sync_state: text("sync_state"),
        sync_priority: parsed(rows, row, "sync_priority").unwrap_or_default(),
        sent_lsn: parsed(rows, row, "sent"),
        write_lsn: parsed(rows, row, "written"),
        flush_lsn: parsed(rows, row, "flushed"),
        replay_lsn: parsed(rows, row, "replayed"),
        flush_lag_seconds: parsed(rows, row, "flush_lag"),
        replied: time(rows, row, "replied"),
        slot: text("slot_name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::server;

    fn client(name: &str, slot: Option<&str>) -> StreamClient {
        StreamClient {
            application_name: name.to_owned(),
            slot: slot.map(str::to_owned),
            ..StreamClient::default()
        }
    }

    #[test]
    fn another_receiver_of_the_same_name_is_not_taken_for_our_own() {
        let name = "barmanfs_receive_wal";
        let clients = [
            client(name, Some("other")),
            client(name, Some("ours")),
            client(name, None),
        ];
        let with_slot = server("streaming_archiver = on\nslot_name = ours\n");
        assert_eq!(
            OwnStream::among(&clients, &with_slot),
            OwnStream::One(&clients[1])
        );
        assert_eq!(OwnStream::among(&clients[..1], &with_slot), OwnStream::None);
        let without = server("");
        assert_eq!(OwnStream::among(&clients, &without), OwnStream::One(&clients[2]));
        let twins = [
            client(name, None),
            client(name, None),
            client("walreceiver", None),
        ];
        assert_eq!(OwnStream::among(&twins, &without), OwnStream::OneOf(2));
    }
}
