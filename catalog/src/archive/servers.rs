//! Servers: the names that backups and WAL are stored under, and the cluster that each name belongs to.

use std::collections::BTreeSet;

use barmanfs_pg::{SystemId, TimestampMicros};
use barmanfs_store::{Record, RecordId};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::archive::backup::running;
use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::home::now;
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::index::writer::Writer;
use crate::names::ServerName;

/// A server's name and the cluster it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerRecord {
    pub(crate) name: ServerName,
    pub(crate) system_id: SystemId,
    pub(crate) added_at: TimestampMicros,
}

impl Repository {
    /// All servers of which anything is stored, sorted by name.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn servers(&self) -> Result<Vec<ServerName>> {
        let mut servers: BTreeSet<ServerName> = running::servers(self)?.into_iter().collect();
        let recorded = self.db.read(|db| {
            let mut names = db.prepare_cached(
                // One look-up for each archive, however many files it has.
                "WITH RECURSIVE archives (server) AS (
                     SELECT min(server) FROM wal
                     UNION ALL
                     SELECT (SELECT min(server) FROM wal WHERE server > archives.server) FROM archives
                     WHERE archives.server IS NOT NULL
                 )
                 SELECT name FROM servers UNION SELECT server FROM backups
                 UNION SELECT server FROM archives WHERE server IS NOT NULL AND instr(server, '/') = 0",
            )?;
            let rows = names.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|name| Ok(name?.parse()?))
                .collect::<Result<Vec<ServerName>>>()
        })?;
        servers.extend(recorded);
        Ok(servers.into_iter().collect())
    }

    /// The cluster a server's name belongs to; `None` while nothing of the server has been stored.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn system_id(&self, server: &ServerName) -> Result<Option<SystemId>> {
        self.db.read(|db| {
            let text: Option<String> = db
                .prepare_cached("SELECT system_id FROM servers WHERE name = ?1")?
                .query_row([server.as_str()], |row| row.get(0))
                .optional()?;
            text.map(|text| text.parse().map_err(|error| Error::Invalid(format!("{error}"))))
                .transpose()
        })
    }
}

impl Writer {
    /// Makes sure that the name `server` belongs to the cluster `found`. If the name is new, returns the record that
    /// assigns it, and the lock to hold until the record is written.
    ///
    /// # Errors
    /// [`Error::OtherSystem`].
    pub(crate) fn claim_server(
        &self,
        server: &ServerName,
        found: SystemId,
    ) -> Result<Option<(Record, Lock)>> {
        if self.is_known_as(server, found)? {
            return Ok(None);
        }
        let lock = self
            .repository()
            .locks
            .wait_exclusive(&format!("server-{server}"), self.purpose())?;
        if self.is_known_as(server, found)? {
            return Ok(None);
        }
        let body = ServerRecord {
            name: server.clone(),
            system_id: found,
            added_at: now(),
        };
        Ok(Some((records::record(Kind::Server, &body)?, lock)))
    }

    fn is_known_as(&self, server: &ServerName, found: SystemId) -> Result<bool> {
        match self.repository().system_id(server)? {
            None => Ok(false),
            Some(expected) if expected == found => Ok(true),
            Some(expected) => Err(Error::OtherSystem {
                server: server.clone(),
                expected,
                found,
            }),
        }
    }
}

/// As for WAL: the first cluster recorded under a name keeps it.
pub(super) fn derive(db: &Connection, seq: i64, id: RecordId, server: &ServerRecord) -> Result<()> {
    let mut known = db.prepare_cached(
        "SELECT r.id, r.payload FROM servers s JOIN records r ON r.seq = s.record WHERE s.name = ?1",
    )?;
    if let Some(row) = known.query([server.name.as_str()])?.next()? {
        let (other, known): (RecordId, ServerRecord) = records::of_row(row)?;
        if (known.added_at, other) <= (server.added_at, id) {
            return Ok(());
        }
    }
    db.prepare_cached("INSERT OR REPLACE INTO servers (name, system_id, record) VALUES (?1, ?2, ?3)")?
        .execute(params![server.name.as_str(), server.system_id.to_string(), seq])?;
    Ok(())
}
