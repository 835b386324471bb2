//! Reading the archive.

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{TimelineId, TimestampMicros};
use barmanfs_store::tree::FileReader;
use rusqlite::{OptionalExtension, Row, params};

use crate::archive::wal::{QuarantinedWal, WalEntry, WalFile};
use crate::error::{Error, Result};
use crate::index::records;
use crate::index::repository::Repository;
use crate::names::ServerName;

/// Entries read at a time by the iterator: a page of a listing, not the archive.
const PAGE: usize = 1000;

/// A server's archive.
#[derive(Debug, Clone)]
pub struct WalArchive<'a> {
    pub(super) repository: &'a Repository,
    pub(super) server: ServerName,
}

/// The archive's files in the order of their names. See [`WalArchive::entries`].
#[derive(Debug)]
pub struct WalEntries<'a> {
    archive: WalArchive<'a>,
    page: std::vec::IntoIter<WalEntry>,
    last: Option<WalName>,
    ended: bool,
}

/// Totals of an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct WalTotals {
    /// Files.
    pub files: u64,
    /// Their total size.
    pub logical_bytes: u64,
    /// Bytes they added to the repository.
    pub new_stored_bytes: u64,
}

impl Repository {
    /// The archive of a server.
    pub fn wal(&self, server: &ServerName) -> WalArchive<'_> {
        WalArchive {
            repository: self,
            server: server.clone(),
        }
    }
}

impl<'a> WalArchive<'a> {
    /// The file of this name.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn find(&self, name: &WalName) -> Result<Option<WalFile>> {
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT r.id, r.payload FROM wal w JOIN records r ON r.seq = w.record
                 WHERE w.server = ?1 AND w.name = ?2",
            )?;
            let mut rows = query.query(params![self.server.as_str(), name.to_string()])?;
            rows.next()?.map(wal_file).transpose()
        })
    }

    /// Only its entry, which is all that `stat` needs.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn entry(&self, name: &WalName) -> Result<Option<WalEntry>> {
        self.repository.db.read(|db| {
            db.prepare_cached(
                "SELECT name, size_bytes, archived_at, new_stored_bytes FROM wal WHERE server = ?1 AND name = ?2",
            )?
            .query_row(params![self.server.as_str(), name.to_string()], |row| Ok(wal_entry(row)))
            .optional()?
            .transpose()
        })
    }

    /// The last segment of a timeline, or the last one before `end` if that is given.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn last_segment(
        &self,
        timeline: TimelineId,
        end: Option<SegmentName>,
    ) -> Result<Option<SegmentName>> {
        // Within a timeline, names sort like positions; 'G' sorts after every hexadecimal digit.
        let first = timeline.hex();
        let end = end.map_or_else(|| format!("{first}G"), |end| end.to_string());
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT name FROM wal WHERE server = ?1 AND name > ?2 AND name < ?3 AND length(name) = 24
                 ORDER BY name DESC LIMIT 1",
            )?;
            let name: Option<String> = query
                .query_row(params![self.server.as_str(), first, end], |row| row.get(0))
                .optional()?;
            Ok(name.and_then(|name| name.parse().ok()))
        })
    }

    /// The first segment at the place of `segment`, on its timeline or on a later one up to `newest`.
    pub(crate) fn successor(&self, segment: SegmentName, newest: TimelineId) -> Result<Option<SegmentName>> {
        let last = SegmentName {
            timeline: newest,
            ..segment
        };
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT name FROM wal WHERE server = ?1 AND name BETWEEN ?2 AND ?3
                 AND length(name) = 24 AND substr(name, 9) = substr(?2, 9) ORDER BY name LIMIT 1",
            )?;
            let between = params![self.server.as_str(), segment.to_string(), last.to_string()];
            let name: Option<String> = query.query_row(between, |row| row.get(0)).optional()?;
            Ok(name.and_then(|name| name.parse().ok()))
        })
    }

    /// The newest segment of the newest timeline, of all that are archived.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn newest_segment(&self) -> Result<Option<WalEntry>> {
        self.first_entry(
            "SELECT name, size_bytes, archived_at, new_stored_bytes FROM wal
             WHERE server = ?1 AND length(name) = 24 AND name > ?2 ORDER BY name DESC LIMIT 1",
            "",
        )
    }

    /// The first file of a timeline or of a later one.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn first_since(&self, timeline: TimelineId) -> Result<Option<WalEntry>> {
        self.first_entry(
            "SELECT name, size_bytes, archived_at, new_stored_bytes FROM wal
             WHERE server = ?1 AND name >= ?2 ORDER BY name LIMIT 1",
            &timeline.hex(),
        )
    }

    fn first_entry(&self, query: &str, name: &str) -> Result<Option<WalEntry>> {
        self.repository.db.read(|db| {
            db.prepare_cached(query)?
                .query_row(params![self.server.as_str(), name], |row| Ok(wal_entry(row)))
                .optional()?
                .transpose()
        })
    }

    /// The bytes of the file of this name, from front to back.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn open(&self, name: &WalName) -> Result<Option<FileReader>> {
        Ok(self
            .find(name)?
            .map(|file| self.repository.trees().reader(file.map)))
    }

    /// At most `limit` entries in the order of their names, from the one after `after` on.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn page(&self, after: Option<&WalName>, limit: usize) -> Result<Vec<WalEntry>> {
        let after = after.map(WalName::to_string).unwrap_or_default();
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT name, size_bytes, archived_at, new_stored_bytes FROM wal
                 WHERE server = ?1 AND name > ?2 ORDER BY name LIMIT ?3",
            )?;
            let mut rows = query.query(params![self.server.as_str(), after, limit])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                entries.push(wal_entry(row)?);
            }
            Ok(entries)
        })
    }

    /// The same with everything that is recorded about each file.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn files(&self, after: Option<&WalName>, limit: usize) -> Result<Vec<WalFile>> {
        let after = after.map(WalName::to_string).unwrap_or_default();
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT r.id, r.payload FROM wal w JOIN records r ON r.seq = w.record
                 WHERE w.server = ?1 AND w.name > ?2 ORDER BY w.name LIMIT ?3",
            )?;
            let mut rows = query.query(params![self.server.as_str(), after, limit])?;
            let mut files = Vec::new();
            while let Some(row) = rows.next()? {
                files.push(wal_file(row)?);
            }
            Ok(files)
        })
    }

    /// All entries in the order of their names, read page by page.
    pub fn entries(&self) -> WalEntries<'a> {
        WalEntries {
            archive: self.clone(),
            page: Vec::new().into_iter(),
            last: None,
            ended: false,
        }
    }

    /// The totals of the files from this segment on, those of later timelines included.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn totals_from(&self, first: SegmentName) -> Result<WalTotals> {
        self.sum(&first.to_string())
    }

    /// The totals of the archive.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn totals(&self) -> Result<WalTotals> {
        self.sum("")
    }

    fn sum(&self, first: &str) -> Result<WalTotals> {
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT count(*), coalesce(sum(size_bytes), 0), coalesce(sum(new_stored_bytes), 0) FROM wal
                 WHERE server = ?1 AND name >= ?2",
            )?;
            Ok(query.query_row(params![self.server.as_str(), first], |row| {
                Ok(WalTotals {
                    files: row.get(0)?,
                    logical_bytes: row.get(1)?,
                    new_stored_bytes: row.get(2)?,
                })
            })?)
        })
    }

    /// The files in quarantine, in the order they arrived.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn quarantined(&self) -> Result<Vec<QuarantinedWal>> {
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT r.id, r.payload FROM quarantine q JOIN records r ON r.seq = q.record WHERE q.server = ?1",
            )?;
            let mut kept = quarantine_rows(&mut query, params![self.server.as_str()])?;
            kept.sort_by_key(|kept| (kept.file.archived_at, kept.file.record));
            Ok(kept)
        })
    }

    /// The quarantined file with this name and these bytes: `archive_command` sends a refused file again and again.
    pub(super) fn quarantined_as(&self, file: &WalFile) -> Result<Option<QuarantinedWal>> {
        let kept = self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT r.id, r.payload FROM quarantine q JOIN records r ON r.seq = q.record
                 WHERE q.server = ?1 AND q.name = ?2",
            )?;
            quarantine_rows(&mut query, params![self.server.as_str(), file.name.to_string()])
        })?;
        Ok(kept.into_iter().find(|kept| kept.file.map == file.map))
    }
}

impl WalEntries<'_> {
    fn refill(&mut self) -> Result<()> {
        let page = self.archive.page(self.last.as_ref(), PAGE)?;
        self.ended = page.len() < PAGE;
        self.last = page.last().map(|entry| entry.name);
        self.page = page.into_iter();
        Ok(())
    }
}

impl Iterator for WalEntries<'_> {
    type Item = Result<WalEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(entry) = self.page.next() {
            return Some(Ok(entry));
        }
        if self.ended {
            return None;
        }
        match self.refill() {
            Ok(()) => self.page.next().map(Ok),
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

fn wal_entry(row: &Row<'_>) -> Result<WalEntry> {
    let name: String = row.get(0)?;
    let name = name.parse().map_err(|error| Error::CatalogDamaged {
        path: std::path::PathBuf::new(),
        reason: format!("{error}"),
    })?;
    let archived_at = TimestampMicros::from_unix_micros(row.get(2)?);
    Ok(WalEntry {
        name,
        size_bytes: row.get(1)?,
        archived_at,
        new_stored_bytes: row.get(3)?,
    })
}

/// A file from its record; the row holds the record's id and payload.
fn wal_file(row: &Row<'_>) -> Result<WalFile> {
    let (id, file) = records::of_row(row)?;
    Ok(WalFile {
        record: Some(id),
        ..file
    })
}

fn quarantine_rows(
    query: &mut rusqlite::CachedStatement<'_>,
    parameters: impl rusqlite::Params,
) -> Result<Vec<QuarantinedWal>> {
    let mut rows = query.query(parameters)?;
    let mut kept = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, mut one) = records::of_row::<QuarantinedWal>(row)?;
        one.file.record = Some(id);
        kept.push(one);
    }
    Ok(kept)
}
