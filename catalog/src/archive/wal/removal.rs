//! Removal of WAL that no recovery needs any more, in ranges of names.
//!
//! A removal is one record for a range of a timeline, however many files it has. It applies to each file of the archive
//! in the range that was archived before the removal. A file that arrives again later is archived again, with a later
//! time. So the result does not depend on the order in which records are read.
//!
//! A removal takes a file out of one archive. The file's record stays alive as long as the archive of another history
//! has the file, too ([`is_dead`]).

use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::RecordId;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::archive::backup::Backup;
use crate::archive::history::records::placed_in;
use crate::archive::wal::{WalFile, index};
use crate::error::Result;
use crate::home::now;
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::names::ServerName;

/// Largest number of files that one record removes: bounds how long its transaction blocks other writers.
const FILES_PER_RECORD: usize = 10_000;

/// A range of a timeline's segments, with the files that belong to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SegmentRange {
    /// The first segment.
    pub first: SegmentName,
    /// The last segment, on the same timeline.
    pub last: SegmentName,
}

/// The files of an archive in a range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RangeTotals {
    /// Number of files.
    pub files: u64,
    /// Their total size.
    pub logical_bytes: u64,
    /// Bytes they added to the repository.
    pub new_stored_bytes: u64,
}

/// The content of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WalRemoval {
    /// Whose archive it is.
    pub(crate) server: ServerName,
    #[serde(flatten)]
    pub(crate) range: SegmentRange,
    pub(crate) removed_at: TimestampMicros,
    /// Bytes that the files added to the repository when they were archived.
    #[serde(default)]
    pub(crate) new_stored_bytes: u64,
}

impl SegmentRange {
    /// Whether the file belongs to it. History files belong to no range.
    pub fn contains(&self, name: &WalName) -> bool {
        name.segment()
            .is_some_and(|segment| (self.first..=self.last).contains(&segment))
    }

    /// The bounds of its files' names, both inclusive, as the table compares them: the names of files that belong to
    /// the last segment continue its name with a dot.
    fn names(&self) -> (String, String) {
        (self.first.to_string(), format!("{}~", self.last))
    }
}

impl Repository {
    /// The files of an archive in a range.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn wal_in(&self, archive: &ServerName, range: &SegmentRange) -> Result<RangeTotals> {
        let (first, last) = range.names();
        let totals = self.wal(archive).totals_of(&first, &last)?;
        Ok(RangeTotals {
            files: totals.files,
            logical_bytes: totals.logical_bytes,
            new_stored_bytes: totals.new_stored_bytes,
        })
    }

    /// Whether retention has removed the file of this name and a recovery that asks for it has not reached its end: then a
    /// missing file must not end it. Behind a backup that is kept for its own end, the recovery of that backup ends.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn interrupts_recovery(&self, archive: &ServerName, name: &WalName) -> Result<bool> {
        let WalName::Segment(segment) = name else {
            return Ok(false);
        };
        if self.db.read(|db| newest(db, archive, name))?.is_none() {
            return Ok(false);
        }
        let is_behind = |backup: &Backup| {
            let last = backup.needed_wal().last();
            backup.archive() == archive && last.is_some_and(|last| last.next(backup.segment_size) == *segment)
        };
        Ok(!self.backups(archive)?.iter().any(is_behind))
    }

    /// Removes the files in these ranges from an archive; a sweep frees their space. Returns how many there were.
    ///
    /// # Errors
    /// When it cannot be made durable. What was removed before stays removed.
    pub(crate) fn remove_wal(&self, archive: &ServerName, ranges: &[SegmentRange]) -> Result<u64> {
        let writer = self.writer(&format!("removal of WAL of {archive}"))?;
        let mut removed = 0;
        for range in ranges {
            for part in self.parts(archive, range)? {
                // No file of the range is entered meanwhile with a time before the removal.
                let _lock = writer.lock_neighbours(archive)?;
                let totals = self.wal_in(archive, &part)?;
                removed += totals.files;
                let body = WalRemoval {
                    server: archive.clone(),
                    range: part,
                    removed_at: now(),
                    new_stored_bytes: totals.new_stored_bytes,
                };
                writer.write_records(vec![records::record(Kind::WalRemoval, &body)?])?;
            }
        }
        Ok(removed)
    }

    /// Splits a range so that each part has a limited number of files; none if there are no files in it.
    fn parts(&self, archive: &ServerName, range: &SegmentRange) -> Result<Vec<SegmentRange>> {
        let mut parts = Vec::new();
        let mut first = range.first;
        loop {
            let (from, to) = SegmentRange { first, ..*range }.names();
            let names: Vec<String> = self.db.read(|db| {
                let mut query = db.prepare_cached(
                    "SELECT name FROM wal WHERE server = ?1 AND name BETWEEN ?2 AND ?3 ORDER BY name LIMIT ?4",
                )?;
                let rows = query.query_map(params![archive.as_str(), from, to, FILES_PER_RECORD], |row| row.get(0))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })?;
            let last = names
                .last()
                .and_then(|name| name.parse::<WalName>().ok()?.segment());
            let Some(last) = last else { return Ok(parts) };
            if names.len() < FILES_PER_RECORD {
                parts.push(SegmentRange { first, ..*range });
                return Ok(parts);
            }
            parts.push(SegmentRange { first, last });
            first = last.name_above();
        }
    }

    /// The ranges that were removed from an archive.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub(crate) fn removed_wal(&self, archive: &ServerName) -> Result<Vec<SegmentRange>> {
        self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT first, last FROM wal_removals WHERE server = ?1 ORDER BY first, last",
            )?;
            let rows = query.query_map([archive.as_str()], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
            })?;
            let mut ranges = Vec::new();
            for row in rows {
                let (first, last) = row?;
                if let (Ok(first), Ok(last)) = (first.parse(), last.parse()) {
                    ranges.push(SegmentRange { first, last });
                }
            }
            Ok(ranges)
        })
    }
}

/// Enters a removal: notes it, and takes the files out of the archive's tables.
pub(crate) fn derive(db: &Connection, seq: i64, removal: &WalRemoval) -> Result<()> {
    let (first, last) = removal.range.names();
    let (server, removed_at) = (removal.server.as_str(), removal.removed_at.unix_micros());
    db.prepare_cached(
        "INSERT INTO wal_removals (record, server, first, last, removed_at) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        seq,
        server,
        removal.range.first.to_string(),
        removal.range.last.to_string(),
        removed_at
    ])?;
    index::forget_range(db, server, (&first, &last), removed_at)?;
    db.prepare_cached("DELETE FROM wal WHERE server = ?1 AND name BETWEEN ?2 AND ?3 AND archived_at <= ?4")?
        .execute(params![server, first, last, removed_at])?;
    Ok(())
}

/// Whether a removal applies to a file of this archive.
pub(crate) fn applies_to(
    db: &Connection,
    archive: &ServerName,
    name: &WalName,
    archived_at: TimestampMicros,
) -> Result<bool> {
    Ok(newest(db, archive, name)?.is_some_and(|removed_at| archived_at <= removed_at))
}

/// The time to record for a file that is archived now: after each removal that would apply to it.
pub(crate) fn archived_now(db: &Connection, archive: &ServerName, name: &WalName) -> Result<TimestampMicros> {
    let behind = newest(db, archive, name)?
        .map(|removed_at| TimestampMicros::from_unix_micros(removed_at.unix_micros().saturating_add(1)));
    Ok(behind.map_or_else(now, |behind| behind.max(now())))
}

/// Whether files of this name were removed from the archive.
pub(crate) fn is_removed(db: &Connection, archive: &ServerName, name: &WalName) -> Result<bool> {
    Ok(newest(db, archive, name)?.is_some())
}

/// When the files of this name were last removed from the archive.
fn newest(db: &Connection, archive: &ServerName, name: &WalName) -> Result<Option<TimestampMicros>> {
    let Some(segment) = name.segment() else {
        return Ok(None);
    };
    let newest: Option<i64> = db
        .prepare_cached(
            "SELECT max(removed_at) FROM wal_removals WHERE server = ?1 AND first <= ?2 AND last >= ?2",
        )?
        .query_row(params![archive.as_str(), segment.to_string()], |row| row.get(0))?;
    Ok(newest.map(TimestampMicros::from_unix_micros))
}

/// Whether the record of an archived file means nothing any more: the file was removed from its archive, and no archive
/// of another history has it.
pub(crate) fn is_dead(db: &Connection, id: RecordId, file: &WalFile) -> Result<bool> {
    let archive = placed_in(db, id)?;
    is_gone_from(db, archive.as_ref().unwrap_or(&file.server), id, file)
}

/// The same for the record of a quarantined file: only one that a decision has moved into an archive can be removed.
pub(crate) fn is_dead_decided(db: &Connection, id: RecordId, file: &WalFile) -> Result<bool> {
    match placed_in(db, id)? {
        Some(archive) => is_gone_from(db, &archive, id, file),
        None => Ok(false),
    }
}

fn is_gone_from(db: &Connection, archive: &ServerName, id: RecordId, file: &WalFile) -> Result<bool> {
    if !applies_to(db, archive, &file.name, file.archived_at)? {
        return Ok(false);
    }
    let has_a_place = db
        .prepare_cached("SELECT 1 FROM wal w JOIN records r ON r.seq = w.record WHERE r.id = ?1")?
        .exists([id.as_bytes()])?;
    Ok(!has_a_place)
}

/// Whether another archive than this one has the file of a record.
pub(crate) fn is_elsewhere(db: &Connection, archive: &ServerName, id: RecordId) -> Result<bool> {
    Ok(db
        .prepare_cached(
            "SELECT 1 FROM wal w JOIN records r ON r.seq = w.record WHERE r.id = ?1 AND w.server <> ?2",
        )?
        .exists(params![id.as_bytes(), archive.as_str()])?)
}

/// Whether a removal must be kept: a later one may cover all of it.
pub(crate) fn is_needed(db: &Connection, id: RecordId, removal: &WalRemoval) -> Result<bool> {
    let covered = db
        .prepare_cached(
            "SELECT 1 FROM wal_removals o JOIN records r ON r.seq = o.record
             WHERE o.server = ?1 AND o.first <= ?2 AND o.last >= ?3 AND (o.removed_at, r.id) > (?4, ?5)
             -- What a restart shares depends on what had been removed by then.
             AND NOT EXISTS (SELECT 1 FROM decisions d WHERE d.server = ?1 AND d.archive IS NOT NULL
                 AND d.decided_at >= ?4 AND d.decided_at < o.removed_at) LIMIT 1",
        )?
        .query_row(
            params![
                removal.server.as_str(),
                removal.range.first.to_string(),
                removal.range.last.to_string(),
                removal.removed_at.unix_micros(),
                id.as_bytes()
            ],
            |_| Ok(()),
        )
        .optional()?;
    Ok(covered.is_none())
}
