//! Whose backups may have changed since a moment: what is kept in memory is read again only for those. WAL arrives every
//! second, backups once a day.

use std::collections::BTreeMap;

use barmanfs_store::RecordId;
use rusqlite::{Connection, OptionalExtension};
use serde::Deserialize;

use crate::error::Result;
use crate::index::records::{Deletion, Kind, parse};
use crate::index::repository::Repository;
use crate::names::ServerName;

/// More records at once are not looked into: then everything may have changed.
const RECORDS_MAX: i64 = 10_000;

/// What may have changed for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Its archive has more WAL: a backup that waited for some may be complete.
    Wal,
    /// Its backups, or anything about them.
    Backups,
}

/// What may have changed between two generations of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Everything.
    All,
    /// These servers. There may be other servers, and fewer.
    Of(BTreeMap<ServerName, Change>),
}

impl Changes {
    /// What may have changed for this server.
    pub fn of(&self, server: &ServerName) -> Option<Change> {
        match self {
            Self::All => Some(Change::Backups),
            Self::Of(servers) => servers.get(server).copied(),
        }
    }
}

impl Repository {
    /// What may have changed between two values of [`generation`](Self::generation), the older one first. This reads the
    /// records that have come in between, and no others.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn changes_between(&self, known: u64, now: u64) -> Result<Changes> {
        let (Some(known), Some(now)) = (self.record_at(known), self.record_at(now)) else {
            return Ok(Changes::All);
        };
        if !(0..=RECORDS_MAX).contains(&(now - known)) {
            return Ok(Changes::All);
        }
        self.db.read(|db| {
            let mut servers = with_new_wal(db, known, now)?;
            let mut new = db.prepare_cached(
                "SELECT id, kind, payload FROM records WHERE seq > ?1 AND seq <= ?2 AND kind <> ?3",
            )?;
            let mut rows = new.query((known, now, Kind::Wal))?;
            while let Some(row) = rows.next()? {
                let payload = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
                match affected(db, RecordId(row.get(0)?), Kind::of(row.get(1)?), payload)? {
                    Affected::Nothing => {}
                    Affected::Server(server) => drop(servers.insert(server, Change::Backups)),
                    Affected::All => return Ok(Changes::All),
                }
            }
            Ok(Changes::Of(servers))
        })
    }
}

/// Servers in whose archive, or in that of a history they have left, one of these records is a file.
fn with_new_wal(db: &Connection, known: i64, now: i64) -> Result<BTreeMap<ServerName, Change>> {
    let mut archives =
        db.prepare_cached("SELECT DISTINCT server FROM wal WHERE record > ?1 AND record <= ?2")?;
    let names = archives.query_map((known, now), |row| row.get::<_, String>(0))?;
    names
        .map(|name| {
            let name = name?;
            let server = name.split_once('/').map_or(name.as_str(), |(server, _)| server);
            Ok((server.parse()?, Change::Wal))
        })
        .collect()
}

enum Affected {
    Nothing,
    Server(ServerName),
    All,
}

/// Whose backups a record that is not one of WAL may have changed.
fn affected(db: &Connection, id: RecordId, kind: Option<Kind>, payload: &[u8]) -> Result<Affected> {
    Ok(match kind {
        // A record of a later release means nothing here. Of the others, nothing is part of a backup, or what is in quarantine
        // counts as WAL when it is released.
        None
        | Some(
            Kind::Wal
            | Kind::Keep
            | Kind::QuarantinedWal
            | Kind::Server
            | Kind::BootTest
            | Kind::Damage
            | Kind::Configuration,
        ) => Affected::Nothing,
        Some(Kind::Backup | Kind::Snapshot | Kind::History | Kind::WalRemoval) => whose(payload),
        Some(Kind::Deletion) => match parse::<Deletion>(id, payload) {
            Ok(deletion) => deleted(db, deletion.of)?,
            // It has no meaning, and `check` names it.
            Err(_) => Affected::Nothing,
        },
    })
}

/// Whose backups the deletion of a record may have changed.
fn deleted(db: &Connection, of: RecordId) -> Result<Affected> {
    let found = db
        .prepare_cached("SELECT payload FROM records WHERE id = ?1")?
        .query_row([of.as_bytes()], |row| row.get::<_, Vec<u8>>(0))
        .optional()?;
    Ok(found.map_or(Affected::All, |payload| whose(&payload)))
}

fn whose(payload: &[u8]) -> Affected {
    #[derive(Deserialize)]
    struct Of {
        server: ServerName,
    }
    serde_json::from_slice::<Of>(payload).map_or(Affected::All, |of| Affected::Server(of.server))
}
