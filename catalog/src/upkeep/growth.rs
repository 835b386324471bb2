//! How fast a repository grows: what backups and WAL have added lately.

use barmanfs_pg::TimestampMicros;
use rusqlite::{Connection, params};

use crate::archive::backup::Backup;
use crate::error::Result;
use crate::index::records;
use crate::index::repository::Repository;
use crate::names::BackupId;

const DAY_SECONDS: u64 = 24 * 3600;

/// Files of an archive that are looked at, from the newest back. On a server that archives more within the time, they
/// show the rate of a shorter time.
const WAL_FILES_MAX: u64 = 1000;

/// The rate at which a repository grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Growth {
    /// Bytes that are added in a day. What has been deleted meanwhile does not count.
    pub bytes_per_day: u64,
    /// The time in which this was seen, in seconds: of the servers, the longest.
    pub observed_seconds: u64,
    /// Whether something was deleted in that time: then the repository grows by less.
    pub has_deletions: bool,
}

impl Repository {
    /// What the backups and the WAL of all servers have added per day from `since` to `now`. The first backup of a
    /// server does not count: it comes once.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn growth(&self, since: TimestampMicros, now: TimestampMicros) -> Result<Growth> {
        self.db.read(|db| {
            let mut growth = Growth::default();
            let mut names = db.prepare_cached("SELECT name FROM servers")?;
            let mut rows = names.query([])?;
            while let Some(row) = rows.next()? {
                let server: String = row.get(0)?;
                for added in [backups(db, &server, since)?, wal(db, &server, since)?] {
                    growth.add(&added, now);
                    if let Some(first) = added.first_record {
                        growth.has_deletions |= is_deleted_after(db, first)?;
                    }
                }
            }
            Ok(growth)
        })
    }
}

/// What was added from a moment on.
struct Added {
    bytes: u64,
    /// `None` if there is nothing.
    from: Option<TimestampMicros>,
    /// Whether there was more before that moment.
    goes_on: bool,
    /// The number of the first record of what was added.
    first_record: Option<i64>,
}

impl Growth {
    fn add(&mut self, added: &Added, now: TimestampMicros) {
        let Some(from) = added.from else { return };
        let observed = now.saturating_duration_since(from).as_secs();
        // The first hours of a server are no rate.
        let least = if added.goes_on { 1 } else { DAY_SECONDS };
        let per_day = u128::from(added.bytes) * u128::from(DAY_SECONDS) / u128::from(observed.max(least));
        let per_day = u64::try_from(per_day).unwrap_or(u64::MAX);
        self.bytes_per_day = self.bytes_per_day.saturating_add(per_day);
        self.observed_seconds = self.observed_seconds.max(observed);
    }
}

impl Added {
    fn note(&mut self, record: i64) {
        self.first_record = Some(self.first_record.map_or(record, |first| first.min(record)));
    }
}

/// Records are numbered as they arrive.
fn is_deleted_after(db: &Connection, record: i64) -> Result<bool> {
    let mut later = db.prepare_cached("SELECT 1 FROM deletions WHERE record > ?1 LIMIT 1")?;
    Ok(later.exists([record])?)
}

fn backups(db: &Connection, server: &str, since: TimestampMicros) -> Result<Added> {
    let mut first = db.prepare_cached("SELECT min(id) FROM backups WHERE server = ?1")?;
    let first: Option<String> = first.query_row([server], |row| row.get(0))?;
    let Some(first) = first.map(|id| id.parse::<BackupId>()).transpose()? else {
        return Ok(Added {
            bytes: 0,
            from: None,
            goes_on: false,
            first_record: None,
        });
    };
    let mut later = db.prepare_cached(
        "SELECT r.id, r.payload, r.seq FROM backups b JOIN records r ON r.seq = b.record
         WHERE b.server = ?1 AND b.id >= ?2 ORDER BY b.id",
    )?;
    let mut rows = later.query(params![server, BackupId::at(since).to_string()])?;
    let mut added = Added {
        bytes: 0,
        from: Some(since),
        goes_on: true,
        first_record: None,
    };
    while let Some(row) = rows.next()? {
        let (_, backup) = records::of_row::<Backup>(row)?;
        added.note(row.get(2)?);
        if backup.id == first {
            added.from = Some(backup.begin_time.max(since));
            added.goes_on = false;
        } else {
            added.bytes = added.bytes.saturating_add(backup.new_stored_bytes);
        }
    }
    Ok(added)
}

/// Names sort like times, except after a return to an older timeline.
fn wal(db: &Connection, server: &str, since: TimestampMicros) -> Result<Added> {
    let mut newest = db.prepare_cached(
        "SELECT archived_at, new_stored_bytes, record FROM wal WHERE server = ?1 ORDER BY name DESC LIMIT ?2",
    )?;
    let mut rows = newest.query(params![server, WAL_FILES_MAX])?;
    let mut added = Added {
        bytes: 0,
        from: None,
        goes_on: false,
        first_record: None,
    };
    let mut files = 0;
    while let Some(row) = rows.next()? {
        let at = TimestampMicros::from_unix_micros(row.get(0)?);
        added.from = Some(added.from.map_or(at, |from| from.min(at)));
        files += 1;
        if at >= since {
            added.bytes = added.bytes.saturating_add(row.get(1)?);
            added.note(row.get(2)?);
        }
    }
    added.goes_on = files == WAL_FILES_MAX || added.from.is_some_and(|from| from < since);
    added.from = added.from.map(|from| from.max(since));
    Ok(added)
}
