//! Finding backups.

use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_store::RecordId;
use rusqlite::{Connection, OptionalExtension, Rows, params};

use crate::archive::backup::{Backup, BackupSelector, BackupStatus, running};
use crate::archive::history;
use crate::error::{Error, Result};
use crate::index::records;
use crate::index::repository::Repository;
use crate::names::{BackupId, ServerName};

/// Longest list of missing segments; if more are missing, their names are not what matters.
const MISSING_WAL_NAMED: usize = 1000;

impl Repository {
    /// A server's backups, oldest first, running and failed ones too.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn backups(&self, server: &ServerName) -> Result<Vec<Backup>> {
        // The order of these two reads matters, see the module `running`.
        let running = running::read(self, server)?;
        let mut backups = self.db.read(|db| recorded(db, server))?;
        let position =
            |id: BackupId, backups: &[Backup]| backups.binary_search_by_key(&id, |backup| backup.id);
        if let Some(running) = running
            && let Err(place) = position(running.id, &backups)
        {
            backups.insert(place, running);
        }
        Ok(backups)
    }

    /// The newest backups of a server, at most `count` of those that have ended, oldest first: for what must not take
    /// longer where there are many.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn newest_backups(&self, server: &ServerName, count: usize) -> Result<Vec<Backup>> {
        // In this order, as above.
        let running = running::read(self, server)?;
        let mut backups = self.db.read(|db| newest(db, server, count))?;
        if let Some(running) = running
            && let Err(place) = backups.binary_search_by_key(&running.id, |backup| backup.id)
            && (place > 0 || backups.is_empty())
        {
            backups.insert(place, running);
        }
        Ok(backups)
    }

    /// When the last boot test of one of the server's backups began.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn last_boot_test(&self, server: &ServerName) -> Result<Option<TimestampMicros>> {
        self.db.read(|db| {
            let mut last = db.prepare_cached(
                "SELECT max(t.began_at) FROM backups b JOIN records r ON r.seq = b.record
                 JOIN boot_tests t ON t.backup = r.id WHERE b.server = ?1",
            )?;
            let micros: Option<i64> = last.query_row([server.as_str()], |row| row.get(0))?;
            Ok(micros.map(TimestampMicros::from_unix_micros))
        })
    }

    /// One backup.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`].
    pub fn backup(&self, server: &ServerName, selector: &BackupSelector) -> Result<Backup> {
        let found = self.find_backup(server, selector)?;
        // It may be in a pack that is not in the catalog.
        let found = match found {
            None if self.adopt_unknown_packs()? => self.find_backup(server, selector)?,
            found => found,
        };
        found.ok_or_else(|| Error::NoSuchBackup {
            server: server.clone(),
            selector: selector.to_string(),
        })
    }

    fn find_backup(&self, server: &ServerName, selector: &BackupSelector) -> Result<Option<Backup>> {
        let backups = self.backups(server)?;
        let complete = |backup: &Backup| backup.has_ended_well() && backup.is_of_current_history();
        let failed = |backup: &Backup| backup.status == BackupStatus::Failed && backup.is_of_server();
        Ok(match selector {
            BackupSelector::Id(id) => backups.into_iter().find(|backup| backup.id == *id),
            BackupSelector::Latest => backups.into_iter().rfind(complete),
            BackupSelector::Oldest => backups.into_iter().find(complete),
            BackupSelector::LatestFailed => backups.into_iter().rfind(failed),
            BackupSelector::Named(name) => backups
                .into_iter()
                .rfind(|backup| backup.label.as_deref() == Some(name.as_str())),
        })
    }

    /// Whether every segment that a complete backup needs is in the archive.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn has_its_wal(&self, backup: &Backup) -> Result<bool> {
        self.db.read(|db| has_its_wal(db, backup))
    }

    /// The segments that a complete backup needs and that are not in the archive; at most the first thousand.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn missing_wal(&self, backup: &Backup) -> Result<Vec<SegmentName>> {
        self.db.read(|db| {
            let mut known = db.prepare_cached("SELECT 1 FROM wal WHERE server = ?1 AND name = ?2")?;
            let mut missing = Vec::new();
            for segment in backup.needed_wal() {
                if missing.len() == MISSING_WAL_NAMED {
                    break;
                }
                if !known.exists(params![backup.archive().as_str(), segment.to_string()])? {
                    missing.push(segment);
                }
            }
            Ok(missing)
        })
    }
}

/// The backups that have ended, oldest first.
fn recorded(db: &Connection, server: &ServerName) -> Result<Vec<Backup>> {
    let mut query = db.prepare_cached(
        "SELECT r.id, r.payload FROM backups b JOIN records r ON r.seq = b.record WHERE b.server = ?1 ORDER BY b.id",
    )?;
    from_rows(db, query.query([server.as_str()])?)
}

/// The newest of them, oldest first.
fn newest(db: &Connection, server: &ServerName, count: usize) -> Result<Vec<Backup>> {
    let mut query = db.prepare_cached(
        "SELECT r.id, r.payload FROM backups b JOIN records r ON r.seq = b.record WHERE b.server = ?1
         ORDER BY b.id DESC LIMIT ?2",
    )?;
    let mut backups = from_rows(db, query.query(params![server.as_str(), count])?)?;
    backups.reverse();
    Ok(backups)
}

fn from_rows(db: &Connection, mut rows: Rows<'_>) -> Result<Vec<Backup>> {
    let mut backups = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, payload) = records::id_and_payload(row)?;
        backups.push(from_record(db, id, payload)?);
    }
    Ok(backups)
}

fn from_record(db: &Connection, id: RecordId, payload: &[u8]) -> Result<Backup> {
    let mut backup: Backup = records::parse(id, payload)?;
    backup.record = Some(id);
    backup.apart = history::records::archive_of(db, id, &backup)?;
    if backup.status != BackupStatus::Failed {
        let complete = has_its_wal(db, &backup)?;
        backup.status = if complete {
            BackupStatus::Done
        } else {
            BackupStatus::WaitingForWals
        };
    }
    Ok(backup)
}

/// Names of one timeline's segments sort like their positions, so the segments that a backup needs are one range of the
/// table.
fn has_its_wal(db: &Connection, backup: &Backup) -> Result<bool> {
    let mut needed = backup.needed_wal();
    let Some(first) = needed.next() else {
        return Ok(true);
    };
    let (last, expected) = needed.fold((first, 1_u64), |(_, count), segment| (segment, count + 1));
    let found: u64 = db
        .prepare_cached(
            "SELECT count(*) FROM wal WHERE server = ?1 AND name BETWEEN ?2 AND ?3 AND length(name) = 24",
        )?
        .query_row(
            params![backup.archive().as_str(), first.to_string(), last.to_string()],
            |row| row.get(0),
        )?;
    Ok(found == expected)
}

/// Whether the catalog has a backup of this id, complete or failed.
pub(super) fn is_recorded(repository: &Repository, server: &ServerName, id: BackupId) -> Result<bool> {
    repository.db.read(|db| {
        let found = db
            .prepare_cached("SELECT 1 FROM backups WHERE server = ?1 AND id = ?2")?
            .query_row(params![server.as_str(), id.to_string()], |_| Ok(()))
            .optional()?;
        Ok(found.is_some())
    })
}

/// The newest id of the server's backups in the catalog, complete or failed.
pub(super) fn newest_id(repository: &Repository, server: &ServerName) -> Result<Option<BackupId>> {
    let newest: Option<String> = repository.db.read(|db| {
        let mut newest = db.prepare_cached("SELECT max(id) FROM backups WHERE server = ?1")?;
        Ok(newest.query_row([server.as_str()], |row| row.get(0))?)
    })?;
    Ok(newest.map(|id| id.parse()).transpose()?)
}
