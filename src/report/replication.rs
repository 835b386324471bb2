//! `replication-status --json`.

use barmanfs_catalog::ServerName;
use barmanfs_pg::{Lsn, TimestampMicros};
use serde::Serialize;

use crate::config::ServerConfig;
use crate::health::standing::{Replication, StreamClient};

/// A server with what receives its WAL as a stream.
#[derive(Debug, Serialize)]
pub(crate) struct ReplicationStatus {
    pub(crate) server: ServerName,
    /// Why the server did not answer.
    pub(crate) error: Option<String>,
    pub(crate) is_in_recovery: Option<bool>,
    pub(crate) server_lsn: Option<Lsn>,
    pub(crate) streaming_clients: Vec<ReplicationClient>,
}

/// One client. Differences are bytes to the server's position.
#[derive(Debug, Serialize)]
pub(crate) struct ReplicationClient {
    pub(crate) application_name: String,
    /// `wal-streamer` or `standby`.
    #[serde(rename = "kind")]
    kind: &'static str,
    /// A connection of barmanfs itself, by its name.
    pub(crate) own: bool,
    /// Barman's stage: how much of the server's WAL it has.
    pub(crate) sync_stage: String,
    pub(crate) communication: &'static str,
    pub(crate) client_address: Option<String>,
    pub(crate) client_port: Option<i32>,
    pub(crate) client_hostname: Option<String>,
    pub(crate) user_name: Option<String>,
    pub(crate) current_state: Option<String>,
    pub(crate) current_sync_state: Option<String>,
    pub(crate) sync_priority: u32,
    pub(crate) replication_slot: Option<String>,
    pub(crate) wal_sender_pid: u32,
    #[serde(rename = "started_at")]
    pub(crate) started: Option<TimestampMicros>,
    pub(crate) sent_lsn: Option<Lsn>,
    pub(crate) sent_lsn_diff_bytes: Option<u64>,
    pub(crate) write_lsn: Option<Lsn>,
    pub(crate) write_lsn_diff_bytes: Option<u64>,
    pub(crate) flush_lsn: Option<Lsn>,
    pub(crate) flush_lsn_diff_bytes: Option<u64>,
    pub(crate) replay_lsn: Option<Lsn>,
    pub(crate) replay_lsn_diff_bytes: Option<u64>,
}

impl ReplicationStatus {
    /// The clients for which `wanted` holds.
    pub(crate) fn new(
        server: &ServerConfig,
        found: Replication,
        wanted: impl Fn(&StreamClient) -> bool,
    ) -> Self {
        let clients = found.clients.into_iter().filter(wanted);
        Self {
            server: server.name.clone(),
            error: None,
            is_in_recovery: Some(found.in_recovery),
            server_lsn: found.lsn,
            streaming_clients: clients
                .map(|client| ReplicationClient::new(server, client, found.lsn))
                .collect(),
        }
    }

    /// A server that did not answer.
    pub(crate) fn failed(server: &ServerConfig, error: String) -> Self {
        Self {
            server: server.name.clone(),
            error: Some(error),
            is_in_recovery: None,
            server_lsn: None,
            streaming_clients: Vec::new(),
        }
    }
}

impl ReplicationClient {
    fn new(server: &ServerConfig, client: StreamClient, position: Option<Lsn>) -> Self {
        let diff = |lsn: Option<Lsn>| Some(position?.0.saturating_sub(lsn?.0));
        let own = [
            Some(&server.streaming_archiver_name),
            server.streaming_backup_name.as_ref(),
        ];
        Self {
            kind: if client.is_wal_streamer() {
                "wal-streamer"
            } else {
                "standby"
            },
            own: own
                .into_iter()
                .flatten()
                .any(|name| *name == client.application_name),
            sync_stage: sync_stage(&client, diff),
            communication: match client.address {
                Some(_) => "TCP/IP",
                None => "Unix domain socket",
            },
            sent_lsn_diff_bytes: diff(client.sent_lsn),
            write_lsn_diff_bytes: diff(client.write_lsn),
            flush_lsn_diff_bytes: diff(client.flush_lsn),
            replay_lsn_diff_bytes: diff(client.replay_lsn),
            application_name: client.application_name,
            client_address: client.address,
            client_port: client.port,
            client_hostname: client.host_name,
            user_name: client.user,
            current_state: client.state,
            current_sync_state: client.sync_state,
            sync_priority: client.sync_priority,
            replication_slot: client.slot,
            wal_sender_pid: client.process,
            started: client.started,
            sent_lsn: client.sent_lsn,
            write_lsn: client.write_lsn,
            flush_lsn: client.flush_lsn,
            replay_lsn: client.replay_lsn,
        }
    }

    /// Whether it only receives.
    pub(crate) fn is_wal_streamer(&self) -> bool {
        self.replay_lsn.is_none()
    }
}

/// How much of the server's WAL a client has, in Barman's words.
fn sync_stage(client: &StreamClient, diff: impl Fn(Option<Lsn>) -> Option<u64>) -> String {
    let has_all = |lsn| diff(lsn) == Some(0);
    let of = if client.is_wal_streamer() { 3 } else { 5 };
    if of == 5 && has_all(client.replay_lsn) {
        "5/5 Hot standby (max)".to_owned()
    } else if of == 5 && has_all(client.flush_lsn) {
        "4/5 2-safe".to_owned()
    } else if has_all(client.write_lsn) {
        format!("3/{of} Remote write")
    } else if has_all(client.sent_lsn) {
        format!("2/{of} WAL Sent (min)")
    } else {
        format!("1/{of} 1-safe")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stage_says_how_much_a_client_has() {
        let stage = |sent, written, flushed, replayed: Option<u64>| {
            let client = StreamClient {
                sent_lsn: Some(Lsn(sent)),
                write_lsn: Some(Lsn(written)),
                flush_lsn: Some(Lsn(flushed)),
                replay_lsn: replayed.map(Lsn),
                ..StreamClient::default()
            };
            sync_stage(&client, |lsn| Some(9_u64.saturating_sub(lsn?.0)))
        };
        assert_eq!(stage(9, 9, 9, Some(9)), "5/5 Hot standby (max)");
        assert_eq!(stage(9, 9, 9, Some(8)), "4/5 2-safe");
        assert_eq!(stage(9, 9, 8, Some(7)), "3/5 Remote write");
        assert_eq!(stage(9, 9, 9, None), "3/3 Remote write");
        assert_eq!(stage(9, 8, 7, None), "2/3 WAL Sent (min)");
        assert_eq!(stage(8, 8, 7, None), "1/3 1-safe");
    }
}
