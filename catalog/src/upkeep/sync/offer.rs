//! What a primary has of one server: its records, apart from those of archived WAL, which are read as they come.

use std::collections::BTreeMap;

use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::WalName;
use barmanfs_store::{Record, RecordId};
use rusqlite::Connection;
use serde::de::DeserializeOwned;

use crate::archive::backup::configuration::ConfigurationRecord;
use crate::archive::backup::{Backup, BackupStatus};
use crate::archive::history::records::{Event, HistoryRecord};
use crate::archive::servers::ServerRecord;
use crate::archive::wal::QuarantinedWal;
use crate::archive::wal::removal::WalRemoval;
use crate::error::Result;
use crate::index::records::{self, Kind};
use crate::names::ServerName;
use crate::upkeep::sync::footers::Footers;

/// A record and what it says.
#[derive(Debug, Clone)]
pub(super) struct Said<T> {
    pub(super) record: Record,
    pub(super) body: T,
}

/// The records of a server that are not annulled.
#[derive(Debug, Default)]
pub(super) struct Offer {
    /// The cluster that the name belongs to there.
    pub(super) server: Option<Said<ServerRecord>>,
    /// Complete backups, oldest first.
    pub(super) backups: Vec<Said<Backup>>,
    /// Configuration files, by the record of their backup.
    pub(super) configurations: BTreeMap<RecordId, Vec<Said<ConfigurationRecord>>>,
    pub(super) histories: Vec<Said<HistoryRecord>>,
    pub(super) quarantined: BTreeMap<RecordId, Said<QuarantinedWal>>,
    pub(super) removals: Vec<Said<WalRemoval>>,
    /// Records that cannot be read.
    pub(super) problems: Vec<String>,
}

impl Offer {
    /// Reads the records of a server.
    pub(super) fn of(footers: &Footers, server: &ServerName) -> Result<Self> {
        let mut offer = Self::default();
        footers.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT id, kind, payload FROM records WHERE kind <> 2 AND kind IN (1, 5, 6, 9, 10, 11)
                 AND id NOT IN (SELECT annulled FROM deletions)",
            )?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                let record = Record {
                    id: RecordId(row.get(0)?),
                    kind: row.get(1)?,
                    payload: row.get(2)?,
                };
                if let Err(error) = offer.add(server, record) {
                    offer.problems.push(error.to_string());
                }
            }
            Ok(())
        })?;
        offer.problems.extend(unreadable_deletions(footers)?);
        offer.backups.sort_by_key(|backup| backup.body.id);
        Ok(offer)
    }

    fn add(&mut self, server: &ServerName, record: Record) -> Result<()> {
        match Kind::of(record.kind) {
            Some(Kind::Backup) => {
                let mut said: Said<Backup> = said(record)?;
                said.body.record = Some(said.record.id);
                let is_complete = said.body.root.is_some() && said.body.status != BackupStatus::Failed;
                if said.body.server == *server && is_complete {
                    self.backups.push(said);
                }
            }
            Some(Kind::Server) => {
                let found: Said<ServerRecord> = said(record)?;
                let key = |said: &Said<ServerRecord>| (said.body.added_at, said.record.id);
                let counts = self.server.as_ref().is_none_or(|known| key(&found) < key(known));
                if found.body.name == *server && counts {
                    self.server = Some(found);
                }
            }
            Some(Kind::Configuration) => {
                let found: Said<ConfigurationRecord> = said(record)?;
                if found.body.server == *server {
                    self.configurations.entry(found.body.of).or_default().push(found);
                }
            }
            Some(Kind::History) => push(&mut self.histories, said(record)?, server, |body| &body.server),
            Some(Kind::WalRemoval) => push(&mut self.removals, said(record)?, server, |body| &body.server),
            Some(Kind::QuarantinedWal) => {
                let found: Said<QuarantinedWal> = said(record)?;
                if found.body.file.server == *server {
                    self.quarantined.insert(found.record.id, found);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether an archived file was removed there. Where histories were left, a removed file may still belong to one of
    /// them: then it counts as not removed.
    pub(super) fn is_removed(&self, name: &WalName, archived_at: TimestampMicros) -> bool {
        let is_restart = |said: &Said<HistoryRecord>| matches!(said.body.event, Event::Restart(_));
        !self.histories.iter().any(is_restart)
            && self
                .removals
                .iter()
                .any(|removal| removal.body.range.contains(name) && archived_at <= removal.body.removed_at)
    }
}

/// What an unreadable deletion annuls is not known, and is offered as if nobody had deleted it.
fn unreadable_deletions(footers: &Footers) -> Result<Vec<String>> {
    footers.db.read(|db| {
        let mut query = db.prepare_cached(
            "SELECT id, payload FROM records WHERE kind = ?1 AND seq NOT IN (SELECT record FROM deletions)",
        )?;
        let mut rows = query.query([Kind::Deletion])?;
        let mut problems = Vec::new();
        while let Some(row) = rows.next()? {
            let (id, payload): (RecordId, Vec<u8>) = (RecordId(row.get(0)?), row.get(1)?);
            if let Err(error) = records::parse::<records::Deletion>(id, &payload) {
                problems.push(format!("A deletion of the primary cannot be followed: {error}"));
            }
        }
        Ok(problems)
    })
}

fn push<T>(to: &mut Vec<Said<T>>, said: Said<T>, server: &ServerName, of: impl Fn(&T) -> &ServerName) {
    if of(&said.body) == server {
        to.push(said);
    }
}

/// Reads a record.
pub(super) fn said<T: DeserializeOwned>(record: Record) -> Result<Said<T>> {
    let body = records::parse(record.id, &record.payload)?;
    Ok(Said { record, body })
}

/// Whether a record is here, also if it means nothing any more.
pub(super) fn is_here(db: &Connection, id: RecordId) -> Result<bool> {
    Ok(db
        .prepare_cached("SELECT 1 FROM records WHERE id = ?1")?
        .exists([id.as_bytes()])?)
}
