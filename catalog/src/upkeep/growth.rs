//! How fast a repository grows: what backups and WAL have added lately.

use barmanfs_pg::TimestampMicros;
use rusqlite::{Connection, params};

use crate::archive::backup::Backup;
use crate::error::Result;
use crate::index::records;
use crate::index::repository::Repository;
use crate::names::BackupId;

const DAY_SECONDS: u64 = 24 * 3600;

/// A file's name begins with its timeline.
const TIMELINE_DIGITS: usize = 8;

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

/// All files of the time count, however many there are: a part of them would show the rate of a burst. On a timeline,
/// names sort like times, so no older files are read. A server may return to an older timeline, so each is looked at.
fn wal(db: &Connection, server: &str, since: TimestampMicros) -> Result<Added> {
    let mut added = Added {
        bytes: 0,
        from: None,
        goes_on: false,
        first_record: None,
    };
    let mut timeline = db.prepare_cached("SELECT max(name) FROM wal WHERE server = ?1 AND name < ?2")?;
    let mut newest = db.prepare_cached(
        "SELECT archived_at, new_stored_bytes, record FROM wal WHERE server = ?1 AND name >= ?2 AND name < ?3
         ORDER BY name DESC",
    )?;
    // 'G' sorts after every hexadecimal digit.
    let mut before = "G".to_owned();
    loop {
        let last: Option<String> = timeline.query_row(params![server, before], |row| row.get(0))?;
        let Some(first) = last.as_deref().and_then(|name| name.get(..TIMELINE_DIGITS)) else {
            break;
        };
        let mut rows = newest.query(params![server, first, before])?;
        while let Some(row) = rows.next()? {
            let at = TimestampMicros::from_unix_micros(row.get(0)?);
            if at < since {
                added.goes_on = true;
                break;
            }
            added.from = Some(added.from.map_or(at, |from| from.min(at)));
            added.bytes = added.bytes.saturating_add(row.get(1)?);
            added.note(row.get(2)?);
        }
        before = first.to_owned();
    }
    if added.goes_on {
        added.from = Some(since);
    }
    Ok(added)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::repository::temporary;
    use barmanfs_pg::TimelineId;

    const HOUR: i64 = 3600;
    const WEEK: i64 = 7 * 24 * HOUR;

    fn at(seconds: i64) -> TimestampMicros {
        TimestampMicros::from_unix_seconds(seconds)
    }

    /// Enters segments of a server that each added this many bytes.
    fn archived(
        repository: &Repository,
        timeline: u32,
        numbers: std::ops::Range<u64>,
        bytes: u64,
        time: impl Fn(u64) -> i64,
    ) {
        repository
            .db
            .write(|db| {
                for number in numbers.clone() {
                    let name = format!("{}{number:016X}", TimelineId(timeline).hex());
                    db.execute(
                        "INSERT INTO wal (server, name, record, size_bytes, archived_at, new_stored_bytes)
                         VALUES ('main', ?1, ?2, 1, ?3, ?4)",
                        params![name, number, at(time(number)).unix_micros(), bytes],
                    )?;
                }
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn a_burst_of_wal_is_not_taken_for_the_rate_of_a_day() {
        let (_directory, repository) = temporary();
        repository
            .db
            .write(|db| {
                db.execute(
                    "INSERT INTO servers (name, system_id, record) VALUES ('main', '7', 0)",
                    [],
                )?;
                Ok(())
            })
            .unwrap();
        let now = 10 * WEEK;
        let per_day = || {
            let growth = repository.growth(at(now - WEEK), at(now)).unwrap();
            (growth.bytes_per_day, growth.observed_seconds)
        };
        // A segment in each hour of three weeks.
        archived(&repository, 1, 0..504, 7, |number| {
            now - 3 * WEEK + number as i64 * HOUR
        });
        assert_eq!(per_day(), (24 * 7, WEEK as u64));
        // A load of data within a minute, an hour ago.
        archived(&repository, 1, 504..2504, 7, |_| now - HOUR);
        assert_eq!(per_day(), ((168 + 2000) * 7 / 7, WEEK as u64));
        // A timeline that was tried out and left long ago hides nothing.
        archived(&repository, 2, 5000..5002, 1 << 40, |_| now - 2 * WEEK);
        assert_eq!(per_day(), (168 + 2000, WEEK as u64));
    }
}
