//! What receives a server's WAL as a stream, with the server's position to compare them with.

use barmanfs_pg::Lsn;

use super::clients::{self, StreamClient};
use super::live::parsed;
use crate::cluster::{self, Host};
use crate::config::ServerConfig;
use crate::error::Error;

const POSITION: &str = "SELECT pg_catalog.pg_is_in_recovery()::text AS in_recovery, \
     CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_receive_lsn() \
     ELSE pg_catalog.pg_current_wal_lsn() END::text AS lsn";

/// The clients of a server at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Replication {
    /// Whether the server is a standby itself.
    pub(crate) in_recovery: bool,
    /// The end of what it has written; on a standby, of what it has received.
    pub(crate) lsn: Option<Lsn>,
    /// The clients, the longest connected first.
    pub(crate) clients: Vec<StreamClient>,
}

impl Replication {
    /// Asks a host of the server for them.
    ///
    /// # Errors
    /// When there is no connection string, or the server does not answer.
    pub(crate) fn ask(server: &ServerConfig, host: Host) -> Result<Self, Error> {
        let mut sql = cluster::look(server, host.sql())?;
        // The clients first: then none of them is ahead of the server.
        let clients = clients::ask(&mut sql)?;
        let results = sql.simple_query(POSITION)?;
        let rows = results.first();
        Ok(Self {
            in_recovery: rows.and_then(|rows| rows.text(0, "in_recovery")) == Some("true"),
            lsn: rows.and_then(|rows| parsed(rows, 0, "lsn")),
            clients,
        })
    }
}
