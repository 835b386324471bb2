//! How far a replay is, by what is archived: PostgreSQL names only the segment that it reads.

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{SegmentSize, TimestampMicros};
use rusqlite::{OptionalExtension, params};

use crate::error::Result;
use crate::index::repository::Repository;
use crate::names::ServerName;

impl Repository {
    /// The time of the last commit or abort in the archived segments before this one, on its timeline or an earlier one.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn last_commit_before(
        &self,
        server: &ServerName,
        segment: SegmentName,
        size: SegmentSize,
    ) -> Result<Option<TimestampMicros>> {
        let number = segment.start_lsn(size).segment_number(size).cast_signed();
        let micros: Option<i64> = self.db.read(|db| {
            db.prepare_cached(
                "SELECT time_max FROM segments
                 WHERE server = ?1 AND number < ?2 AND timeline <= ?3 AND time_max IS NOT NULL
                 ORDER BY number DESC, timeline DESC LIMIT 1",
            )?
            .query_row(params![server.as_str(), number, segment.timeline.0], |row| {
                row.get(0)
            })
            .optional()
            .map_err(Into::into)
        })?;
        Ok(micros.map(TimestampMicros::from_unix_micros))
    }
}
