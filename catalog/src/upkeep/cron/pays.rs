//! Whether a sweep pays: how much it would free, at a guess.

use rusqlite::{Row, params};
use serde::Deserialize;

use crate::error::Result;
use crate::index::condemned::is_condemned;
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;

/// As many deleted records are looked at: with so many, a sweep pays in any case.
const DELETED_MAX: u64 = 10_000;

/// What a sweep may free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freeable {
    /// Bytes of condemned packs, which only wait for writers to end.
    pub condemned_bytes: u64,
    /// Bytes that records added which were deleted since the last sweep. What others share with them stays.
    pub deleted_bytes: u64,
    /// Records that were deleted since the last sweep: the first ten thousand.
    pub deleted_records: u64,
    /// Records that were added since the last sweep: nearly all are of archived files, each in a pack of its own until it is
    /// merged.
    pub added_records: u64,
    /// The number of the last record, for the next look.
    pub last_record: i64,
}

impl Freeable {
    /// Adds what a record says that was deleted, or that removed WAL.
    fn add(&mut self, row: &Row<'_>) -> Result<()> {
        let (id, payload) = records::id_and_payload(row)?;
        self.deleted_records += 1;
        if let Ok(added) = records::parse::<Added>(id, payload) {
            self.deleted_bytes = self.deleted_bytes.saturating_add(added.new_stored_bytes);
        }
        Ok(())
    }

    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.condemned_bytes.saturating_add(self.deleted_bytes)
    }
}

/// What a record of any kind says about the space that it takes.
#[derive(Debug, Deserialize)]
struct Added {
    #[serde(default)]
    new_stored_bytes: u64,
}

impl Repository {
    /// What a sweep may free, where the last one has seen all records up to `swept_through`. A look at what is deleted
    /// and condemned alone, so it takes milliseconds.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn freeable(&self, swept_through: i64) -> Result<Freeable> {
        self.db.read(|db| {
            let last: i64 = db
                .prepare_cached("SELECT coalesce(max(seq), 0) FROM records")?
                .query_row([], |row| row.get(0))?;
            // A rebuilt catalog numbers its records from the beginning.
            let since = if swept_through > last { 0 } else { swept_through };
            let mut freeable = Freeable {
                last_record: last,
                added_records: u64::try_from(last - since).unwrap_or(0),
                ..Freeable::default()
            };
            let condemned = concat!(
                "SELECT coalesce(sum(p.bytes), 0) FROM packs p WHERE ",
                is_condemned!("p")
            );
            freeable.condemned_bytes = db.prepare_cached(condemned)?.query_row([], |row| row.get(0))?;
            let mut deleted = db.prepare_cached(
                "SELECT r.id, r.payload FROM deletions d CROSS JOIN records r ON r.id = d.annulled
                 WHERE d.record > ?1 AND r.kind IN (?2, ?3, ?4) LIMIT ?5",
            )?;
            let kinds = (Kind::Backup, Kind::Wal, Kind::QuarantinedWal);
            let mut rows = deleted.query(params![since, kinds.0, kinds.1, kinds.2, DELETED_MAX])?;
            while let Some(row) = rows.next()? {
                freeable.add(row)?;
            }
            let mut removed = db.prepare_cached(
                "SELECT r.id, r.payload FROM wal_removals m CROSS JOIN records r ON r.seq = m.record
                 WHERE m.record > ?1 LIMIT ?2",
            )?;
            let mut rows = removed.query(params![since, DELETED_MAX])?;
            while let Some(row) = rows.next()? {
                freeable.add(row)?;
            }
            Ok(freeable)
        })
    }
}
