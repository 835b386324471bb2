//! Totals of a part of the archive.

use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::SegmentName;
use rusqlite::{OptionalExtension, params};

use crate::archive::wal::list::WalArchive;
use crate::error::Result;

/// Totals of the segments between two names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentTotals {
    /// Number of segments.
    pub files: u64,
    /// Their total size.
    pub logical_bytes: u64,
    /// Bytes they added to the repository.
    pub new_stored_bytes: u64,
    /// The last of them.
    pub last: Option<SegmentName>,
    /// When the first of them was archived.
    pub began: Option<TimestampMicros>,
    /// When the last of them was archived.
    pub ended: Option<TimestampMicros>,
}

impl WalArchive<'_> {
    /// The totals of the segments from `first` on and before `end`, in the order of their names: those of a later timeline
    /// come after all of an earlier one.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn range(&self, first: SegmentName, end: Option<SegmentName>) -> Result<SegmentTotals> {
        let server = self.server.as_str();
        let first = first.to_string();
        // 'G' sorts after every hexadecimal digit.
        let end = end.map_or_else(|| "G".to_owned(), |end| end.to_string());
        self.repository.db.read(|db| {
            let mut totals = db.prepare_cached(
                "SELECT count(*), coalesce(sum(size_bytes), 0), coalesce(sum(new_stored_bytes), 0), max(name)
                 FROM wal WHERE server = ?1 AND name >= ?2 AND name < ?3 AND length(name) = 24",
            )?;
            let (mut range, last) = totals.query_row(params![server, first, end], |row| {
                let range = SegmentTotals {
                    files: row.get(0)?,
                    logical_bytes: row.get(1)?,
                    new_stored_bytes: row.get(2)?,
                    ..SegmentTotals::default()
                };
                Ok((range, row.get::<_, Option<String>>(3)?))
            })?;
            let mut time = db.prepare_cached(
                "SELECT archived_at FROM wal WHERE server = ?1 AND name >= ?2 AND length(name) = 24
                 ORDER BY name LIMIT 1",
            )?;
            let mut archived_at = |name: &str| -> Result<Option<TimestampMicros>> {
                let micros: Option<i64> = time
                    .query_row(params![server, name], |row| row.get(0))
                    .optional()?;
                Ok(micros.map(TimestampMicros::from_unix_micros))
            };
            if let Some(last) = last {
                range.began = archived_at(&first)?;
                range.ended = archived_at(&last)?;
                range.last = last.parse().ok();
            }
            Ok(range)
        })
    }
}
