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

/// Sorts behind each name and each continuation of one: all characters in them are digits, letters up to F, small letters
/// or dots.
const BEHIND_ALL: &str = "~";

/// Number of characters that the names of a stretch share, as in the table `wal_totals`.
const STRETCH: usize = 16;

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
        self.totals_of(&first.to_string(), BEHIND_ALL)
    }

    /// The totals of the archive.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn totals(&self) -> Result<WalTotals> {
        self.totals_of("", BEHIND_ALL)
    }

    /// The totals of the files whose names are in this range, both bounds included. Stretches that are whole in it have
    /// totals already; of the two at its ends, the files are read.
    pub(super) fn totals_of(&self, first: &str, last: &str) -> Result<WalTotals> {
        let stretch = |name: &str| name.get(..STRETCH).unwrap_or(name).to_owned();
        let (from, to) = (stretch(first), stretch(last));
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT coalesce(sum(files), 0), coalesce(sum(logical_bytes), 0), coalesce(sum(new_stored_bytes), 0)
                 FROM (
                     SELECT files, logical_bytes, new_stored_bytes FROM wal_totals
                     WHERE server = ?1 AND stretch > ?4 AND stretch < ?5
                     UNION ALL
                     SELECT 1, size_bytes, new_stored_bytes FROM wal
                     WHERE server = ?1 AND name >= ?2 AND name <= min(?3, ?4 || ?6) AND ?4 <> ''
                     UNION ALL
                     SELECT 1, size_bytes, new_stored_bytes FROM wal
                     WHERE server = ?1 AND name >= ?5 AND name <= ?3 AND ?5 > ?4
                 )",
            )?;
            let range = params![self.server.as_str(), first, last, from, to, BEHIND_ALL];
            Ok(query.query_row(range, |row| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::repository::temporary;
    use proptest::prelude::*;

    /// Names of two timelines over the ends of stretches, with what continues them.
    fn name() -> impl Strategy<Value = String> {
        (1_u32..3, 0_u32..3, 0_u32..4, 0_u32..5).prop_map(|(timeline, log, segment, kind)| match kind {
            0 => format!("{timeline:08X}.history"),
            1 => format!("{timeline:08X}{log:08X}{segment:08X}.00000028.backup"),
            2 => format!("{timeline:08X}{log:08X}{segment:08X}.partial"),
            _ => format!("{timeline:08X}{log:08X}{segment:08X}"),
        })
    }

    #[derive(Debug, Clone)]
    enum Act {
        Put(String, u32),
        Remove(String, String),
        Replace(String, u32),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            6 => (name(), 0_u32..1000).prop_map(|(name, size)| Act::Put(name, size)),
            1 => (name(), name()).prop_map(|(one, other)| Act::Remove(one, other)),
            2 => (name(), 0_u32..1000).prop_map(|(name, size)| Act::Replace(name, size)),
        ]
    }

    fn carry_out(db: &rusqlite::Connection, act: &Act) -> rusqlite::Result<usize> {
        match act {
            Act::Put(name, size) => db.execute(
                "INSERT INTO wal VALUES ('main', ?1, 1, ?2, 0, 7) ON CONFLICT DO NOTHING",
                params![name, size],
            ),
            Act::Remove(first, last) => db.execute(
                "DELETE FROM wal WHERE server = 'main' AND name BETWEEN ?1 AND ?2",
                params![first, last],
            ),
            Act::Replace(name, size) => db.execute(
                "UPDATE wal SET size_bytes = ?2, new_stored_bytes = new_stored_bytes + 1 WHERE name = ?1",
                params![name, size],
            ),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

        #[test]
        fn totals_are_those_of_the_files(
            acts in proptest::collection::vec(act(), 0..60),
            ranges in proptest::collection::vec((name(), name()), 8),
        ) {
            let (_directory, repository) = temporary();
            let archive = repository.wal(&"main".parse().unwrap());
            repository
                .db
                .write(|db| Ok(acts.iter().try_for_each(|act| carry_out(db, act).map(drop))?))
                .unwrap();
            let mut ranges = ranges;
            ranges.push((String::new(), BEHIND_ALL.to_owned()));
            ranges.extend(ranges.clone().into_iter().map(|(first, _)| (first, BEHIND_ALL.to_owned())));
            ranges.extend(ranges.clone().into_iter().map(|(first, last)| (first, format!("{last}~"))));
            for (first, last) in ranges {
                let counted = repository.db.read(|db| {
                    Ok(db.query_row(
                        "SELECT count(*), coalesce(sum(size_bytes), 0), coalesce(sum(new_stored_bytes), 0) FROM wal
                         WHERE name BETWEEN ?1 AND ?2",
                        params![first, last],
                        |row| Ok(WalTotals { files: row.get(0)?, logical_bytes: row.get(1)?, new_stored_bytes: row.get(2)? }),
                    )?)
                });
                prop_assert_eq!(archive.totals_of(&first, &last).unwrap(), counted.unwrap(), "{} to {}", first, last);
            }
            let empty = repository.db.read(|db| {
                Ok(db.query_row("SELECT count(*) FROM wal_totals WHERE files = 0", [], |row| row.get::<_, i64>(0))?)
            });
            prop_assert_eq!(empty.unwrap(), 0);
        }
    }
}
