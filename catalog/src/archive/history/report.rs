//! Reports on a server's histories.

use barmanfs_pg::{Lsn, SegmentSize, TimelineId, TimestampMicros};
use barmanfs_store::RecordId;
use rusqlite::params;

use super::records::{Event, HistoryRecord};
use super::{Decided, Fork, HistoryReport, LeftHistory};
use crate::archive::wal::WalArchive;
use crate::error::Result;
use crate::index::records;
use crate::index::repository::Repository;
use crate::names::ServerName;

impl Repository {
    /// A server's forks, in the order they were found.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn forks(&self, server: &ServerName) -> Result<Vec<Fork>> {
        let mut forks = self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT r.id, r.payload, (SELECT max(d.restart) FROM decided d WHERE d.fork = r.id)
                 FROM forks f JOIN records r ON r.seq = f.record WHERE f.server = ?1",
            )?;
            let mut rows = query.query([server.as_str()])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let (id, record) = records::of_row::<HistoryRecord>(row)?;
                let restart: Option<bool> = row.get(2)?;
                let decided = restart.map(|restart| if restart { Decided::Restart } else { Decided::Keep });
                if let Event::Fork { why, found_by } = record.event {
                    found.push(Fork {
                        id,
                        timeline: record.timeline,
                        lsn: record.lsn,
                        found_at: record.at,
                        found_by,
                        why,
                        decided,
                    });
                }
            }
            Ok(found)
        })?;
        forks.sort_by_key(|fork| (fork.found_at, fork.id));
        Ok(forks)
    }

    /// The forks without a decision.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn open_forks(&self, server: &ServerName) -> Result<Vec<Fork>> {
        let mut forks = self.forks(server)?;
        forks.retain(|fork| fork.decided.is_none());
        Ok(forks)
    }

    /// The first open fork of a timeline in or before the segment of a position: all WAL from there on has two
    /// histories.
    pub(crate) fn open_fork_before(
        &self,
        server: &ServerName,
        (timeline, lsn, size): (TimelineId, Lsn, SegmentSize),
    ) -> Result<Option<Fork>> {
        let covers = |fork: &Fork| {
            fork.timeline == timeline && fork.lsn.segment_start(size) <= lsn.segment_start(size)
        };
        Ok(self.open_forks(server)?.into_iter().find(covers))
    }

    /// When a history was last abandoned for another one.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn last_restart(&self, server: &ServerName) -> Result<Option<TimestampMicros>> {
        let last: Option<i64> = self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT max(decided_at) FROM decisions WHERE server = ?1 AND archive IS NOT NULL",
            )?;
            Ok(query.query_row([server.as_str()], |row| row.get(0))?)
        })?;
        Ok(last.map(TimestampMicros::from_unix_micros))
    }

    /// When a decision moved a refused file into the archive, if one did.
    pub(crate) fn taken_at(&self, file: RecordId) -> Result<Option<TimestampMicros>> {
        let at: Option<i64> = self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT max(d.decided_at) FROM placed p JOIN decisions d ON d.record = p.record
                 WHERE p.id = ?1 AND p.archive = d.server",
            )?;
            Ok(query.query_row([file.as_bytes()], |row| row.get(0))?)
        })?;
        Ok(at.map(TimestampMicros::from_unix_micros))
    }

    /// The whole report.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn histories(&self, server: &ServerName) -> Result<HistoryReport> {
        let backups = self.backups(server)?;
        let restarts = self.restarts(server)?;
        let mut left = Vec::new();
        for (id, record) in &restarts {
            let Event::Restart(restart) = &record.event else {
                continue;
            };
            let its = |of: &RecordId| restart.apart.contains(of);
            let its_backups: Vec<_> = backups
                .iter()
                .filter(|backup| backup.record.as_ref().is_some_and(its))
                .map(|backup| backup.id)
                .collect();
            let key = ServerName::of_left_history(server, *id);
            left.push(LeftHistory {
                timeline: record.timeline,
                lsn: record.lsn,
                decided_at: record.at,
                files: self.files_placed(&key)?,
                backups: its_backups,
            });
        }
        let known: Vec<_> = left.iter().flat_map(|left| left.backups.clone()).collect();
        let undecided = backups
            .iter()
            .filter(|backup| backup.archive() != server && !known.contains(&backup.id));
        Ok(HistoryReport {
            server: server.clone(),
            forks: self.forks(server)?,
            undecided_backups: undecided.map(|backup| backup.id).collect(),
            left,
            refused: self.wal(server).quarantined()?.len() as u64,
        })
    }

    /// The WAL of an abandoned history, by its number in [`HistoryReport::left`], counted from 1.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn left_wal(&self, server: &ServerName, number: usize) -> Result<Option<WalArchive<'_>>> {
        let left = self
            .archives(server)?
            .into_iter()
            .skip(1)
            .nth(number.wrapping_sub(1));
        Ok(left.map(|archive| self.wal(&archive)))
    }

    /// The archives of a server: its current one, then those of the abandoned histories.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub(crate) fn archives(&self, server: &ServerName) -> Result<Vec<ServerName>> {
        let left: Vec<String> = self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT s.archive FROM decisions s JOIN records r ON r.seq = s.record
                 WHERE s.server = ?1 AND s.archive IS NOT NULL ORDER BY s.decided_at, r.id",
            )?;
            let rows = query.query_map([server.as_str()], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let left = left.into_iter().map(ServerName::of_archive);
        Ok(std::iter::once(server.clone()).chain(left).collect())
    }

    fn files_placed(&self, archive: &ServerName) -> Result<u64> {
        self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT count(*) FROM wal w JOIN records r ON r.seq = w.record JOIN placed p ON p.id = r.id
                 WHERE w.server = ?1 AND p.archive = ?1",
            )?;
            Ok(query.query_row(params![archive.as_str()], |row| row.get(0))?)
        })
    }

    fn restarts(&self, server: &ServerName) -> Result<Vec<(RecordId, HistoryRecord)>> {
        self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT r.id, r.payload FROM decisions s JOIN records r ON r.seq = s.record WHERE s.server = ?1 AND s.archive IS NOT NULL
                 ORDER BY s.decided_at, r.id",
            )?;
            let mut rows = query.query([server.as_str()])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(records::of_row(row)?);
            }
            Ok(found)
        })
    }
}
