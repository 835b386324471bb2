//! Rebuilds the index of archived segments for which an earlier release made an older one or could not make one.
//!
//! A segment's index is part of its record, and records never change: a new record replaces the old one, in one pack
//! with the deletion that annuls the old one. If the process is killed in between, the segment has either the old or
//! the new record.

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::wal_scan::SegmentIndex;
use barmanfs_store::Record;
use rusqlite::params;
use serde::Serialize;

use crate::archive::wal::WalFile;
use crate::error::{Error, Result};
use crate::home::now;
use crate::index::records::{self, Deletion, Kind};
use crate::index::writer::Writer;
use crate::monitor::{Monitor, Unit};
use crate::names::ServerName;

/// Number of segments whose records go into one pack.
const BATCH: usize = 64;

/// Result of a reindex.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReindexReport {
    /// Segments that were read.
    pub segments: u64,
    /// Segments whose WAL is of a PostgreSQL version that is still unknown.
    pub unknown: u64,
    /// Segments that could not be read, with the reason.
    pub problems: Vec<String>,
}

impl crate::Repository {
    /// How many of a server's segments have an index that is older than this release's.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn outdated_segments(&self, server: &ServerName) -> Result<u64> {
        self.db.read(|db| {
            Ok(db
                .prepare_cached("SELECT count(*) FROM segments WHERE server = ?1 AND reads < ?2")?
                .query_row(params![server.as_str(), SegmentIndex::READS], |row| row.get(0))?)
        })
    }

    /// The newest of a server's segments whose WAL is of an unknown PostgreSQL version, and how many such segments
    /// there are.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn unknown_segments(&self, server: &ServerName) -> Result<Option<(SegmentName, u64)>> {
        self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT max(w.name), count(*) FROM segments s INDEXED BY segments_unknown
                 JOIN wal w ON w.record = s.record WHERE s.server = ?1 AND s.unknown",
            )?;
            let (name, count): (Option<String>, u64) =
                query.query_row([server.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(name.and_then(|name| name.parse().ok()).map(|name| (name, count)))
        })
    }
}

impl Writer {
    /// Reads the segments of a server whose index was made by an earlier release, and stores the new index.
    ///
    /// # Errors
    /// [`Error::Occupied`] while another process does this; when the catalog cannot be read or written. A segment that
    /// cannot be read is not an error: the report names it.
    pub fn reindex_wal(&self, server: &ServerName, monitor: &mut dyn Monitor) -> Result<ReindexReport> {
        let locks = &self.repository().locks;
        let lock_name = format!("index-wal-{server}");
        let _lock = locks
            .try_exclusive(&lock_name, "index-wal")?
            .ok_or_else(|| Error::Occupied {
                what: "Indexing this server's WAL",
                holder: locks.holder(&lock_name),
                advice: "run again when it has ended",
            })?;
        // The new records refer to the same chunks as the old ones.
        self.keep_condemned()?;
        let mut report = ReindexReport::default();
        monitor.stage(&format!("Indexing the WAL of server {server}"));
        let mut read_bytes = 0;
        let mut after = String::new();
        loop {
            let batch = self.outdated(server, &after)?;
            let Some(last) = batch.last() else {
                return Ok(report);
            };
            after.clone_from(last);
            let mut records = Vec::new();
            for name in &batch {
                match self.reindexed(server, name, &mut report) {
                    Ok((bytes, new)) => {
                        read_bytes += bytes;
                        records.extend(new);
                    }
                    Err(error) => report.problems.push(format!("{name}: {error}")),
                }
                monitor.progress(read_bytes, None, Unit::Bytes);
            }
            if !records.is_empty() {
                self.write_records(records)?;
            }
        }
    }

    /// The names of the next outdated segments after `after`.
    fn outdated(&self, server: &ServerName, after: &str) -> Result<Vec<String>> {
        self.repository().db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT w.name FROM wal w JOIN segments s ON s.record = w.record
                 WHERE w.server = ?1 AND w.name > ?2 AND s.reads < ?3 ORDER BY w.name LIMIT ?4",
            )?;
            let rows = query.query_map(
                params![server.as_str(), after, SegmentIndex::READS, BATCH],
                |row| row.get(0),
            )?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The same for some segments, even if their index is of this release.
    #[cfg(test)]
    pub(crate) fn reindex_these(&self, server: &ServerName, names: &[WalName]) -> Result<()> {
        for name in names {
            let (_, records) = self.reindexed(server, &name.to_string(), &mut ReindexReport::default())?;
            self.write_records(records)?;
        }
        Ok(())
    }

    /// Returns the bytes read, and two records: the deletion of the segment's record and the new record.
    fn reindexed(
        &self,
        server: &ServerName,
        name: &str,
        report: &mut ReindexReport,
    ) -> Result<(u64, Vec<Record>)> {
        let repository = self.repository();
        let name: WalName = name.parse().map_err(|error| Error::Invalid(format!("{error}")))?;
        let Some(file) = repository.wal(server).find(&name)? else {
            return Ok((0, Vec::new()));
        };
        let Some(old) = file.record else {
            return Ok((0, Vec::new()));
        };
        let index = repository.index_of_file(&file)?;
        report.segments += 1;
        report.unknown += u64::from(index.is_of_unknown_version());
        let new = WalFile {
            index: Some((*index).clone()),
            record: None,
            // If a decision moved it from quarantine into the archive, it was archived only then. That decision names
            // the old record.
            archived_at: repository.taken_at(old)?.unwrap_or(file.archived_at),
            ..file
        };
        let deletion = Deletion {
            of: old,
            deleted_at: now(),
            what: format!("the record of {name} of {server}, for one that says more"),
        };
        let records = vec![
            records::record(Kind::Deletion, &deletion)?,
            records::record(Kind::Wal, &new)?,
        ];
        Ok((new.size_bytes, records))
    }
}
