//! What a primary has of one server: its records, apart from those of archived WAL, which are read as they come.

use std::collections::{BTreeMap, BTreeSet};

use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::WalName;
use barmanfs_store::{Record, RecordId};
use rusqlite::Connection;
use serde::de::DeserializeOwned;

use crate::archive::backup::configuration::ConfigurationRecord;
use crate::archive::backup::{Backup, BackupStatus};
use crate::archive::history::records::{Event, HistoryRecord};
use crate::archive::servers::ServerRecord;
use crate::archive::wal::removal::WalRemoval;
use crate::archive::wal::{QuarantinedWal, WalFile};
use crate::error::{Error, Result};
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
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

impl Repository {
    /// A decision of a primary moves records between archives. It may name only records of its own server: otherwise a
    /// primary could move files of other servers of this repository.
    pub(super) fn refuse_foreign_decision(&self, decision: &Said<HistoryRecord>) -> Result<()> {
        let named: BTreeSet<RecordId> = match &decision.body.event {
            Event::Fork { .. } => return Ok(()),
            Event::Keep { of, taken } => of.iter().chain(taken).copied().collect(),
            Event::Restart(restart) => restart
                .of
                .iter()
                .chain(&restart.apart)
                .chain(&restart.taken)
                .copied()
                .collect(),
        };
        self.db.read(|db| {
            for id in named {
                let foreign = server_of(db, id)?.filter(|server| *server != decision.body.server);
                if let Some(server) = foreign {
                    return Err(Error::Invalid(format!(
                        "Decision {} of server {} of the primary names record {id}, which is of server {server} here",
                        decision.record.id, decision.body.server
                    )));
                }
            }
            Ok(())
        })
    }
}

/// Whose a record of this repository is; none if it is not here or belongs to no server.
fn server_of(db: &Connection, id: RecordId) -> Result<Option<ServerName>> {
    let mut query = db.prepare_cached("SELECT kind, payload FROM records WHERE id = ?1")?;
    let mut rows = query.query([id.as_bytes()])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    let (kind, payload): (u8, Vec<u8>) = (row.get(0)?, row.get(1)?);
    Ok(match Kind::of(kind) {
        Some(Kind::Backup) => Some(records::parse::<Backup>(id, &payload)?.server),
        Some(Kind::Wal) => Some(records::parse::<WalFile>(id, &payload)?.server),
        Some(Kind::QuarantinedWal) => Some(records::parse::<QuarantinedWal>(id, &payload)?.file.server),
        Some(Kind::History) => Some(records::parse::<HistoryRecord>(id, &payload)?.server),
        _ => None,
    })
}
