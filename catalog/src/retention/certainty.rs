//! Whether it is certain what a server's backups need: if not, nothing is deleted.

use crate::archive::backup::Backup;
use crate::archive::derive::can_be_read;
use crate::error::Result;
use crate::home::now;
use crate::index::records::Kind;
use crate::index::repository::Repository;
use crate::names::ServerName;
use barmanfs_pg::TimestampMicros;
use barmanfs_store::{Record, RecordId};

/// How long nothing is deleted after a leap of the clock.
const AFTER_LEAP: i64 = 24 * 3600 * 1_000_000;

/// Clocks of hosts differ by less.
const TOLERANCE: i64 = 300 * 1_000_000;

/// Whether this moment is in the future.
fn is_ahead(moment: TimestampMicros, now: TimestampMicros) -> bool {
    moment.unix_micros() > now.unix_micros().saturating_add(TOLERANCE)
}

impl Repository {
    /// Why nothing may be deleted of this server, if there is a reason.
    pub(super) fn uncertainty(&self, server: &ServerName) -> Result<Option<String>> {
        if let Some(unread) = self.unread_packs()?.first() {
            return Ok(Some(format!(
                "Pack {} was not read, so it is not known what is in it: {}",
                unread.pack, unread.reason
            )));
        }
        if self.is_unexamined()? {
            return Ok(Some(
                "A rebuild of the catalog did not end, so it is not known what is lost: run 'barmanfs verify'".to_owned(),
            ));
        }
        if let Some(fork) = self.open_forks(server)?.first() {
            return Ok(Some(format!(
                "Timeline {} has two histories from {} on, and it is not decided which one counts ('barmanfs history \
                 {server}')",
                fork.timeline, fork.lsn
            )));
        }
        self.unreadable_record()
    }

    /// Why the clock of this host cannot be relied on, if there is a reason. What a wrong clock deletes, no right one brings
    /// back; and what waits for a right one is deleted a day later.
    pub(super) fn clock_doubt(&self, backups: &[Backup]) -> Result<Option<String>> {
        let now = now();
        let newest = backups.iter().max_by_key(|backup| backup.id);
        if let Some(newest) = newest.filter(|newest| is_ahead(newest.begin_time, now)) {
            return Ok(Some(format!(
                "It is {now} by the clock of this host, and the newest backup, {}, began at {}. Set the clock right; if it is, \
                 take a backup",
                newest.id, newest.begin_time
            )));
        }
        let Some(leap) = self.repository_memory()?.leap else {
            return Ok(None);
        };
        let until = TimestampMicros::from_unix_micros(leap.to.unix_micros().saturating_add(AFTER_LEAP));
        let is_recent = !is_ahead(leap.to, now) && now < until;
        Ok(is_recent.then(|| {
            format!(
                "The clock of this host went from {} to {} between two runs of cron, or there was none for so long. If it is \
                 wrong, set it right; it is relied on again at {until}",
                leap.from, leap.to
            )
        }))
    }

    /// The first record that cannot be read, or that a later release wrote. Those of archived files are not examined:
    /// they decide about nothing else. None is read twice.
    pub(crate) fn unreadable_record(&self) -> Result<Option<String>> {
        let mut last = self.surveyor.read_through();
        let found = self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT id, kind, payload, seq FROM records INDEXED BY records_but_wal WHERE kind <> 2 AND seq > ?1
                 AND id NOT IN (SELECT annulled FROM deletions)",
            )?;
            let mut rows = query.query([last])?;
            while let Some(row) = rows.next()? {
                let record = Record {
                    id: RecordId(row.get(0)?),
                    kind: row.get(1)?,
                    payload: row.get(2)?,
                };
                if Kind::of(record.kind).is_none() {
                    return Ok(Some(format!(
                        "Record {} is of a later release, and it is not known what it needs",
                        record.id
                    )));
                }
                if let Err(error) = can_be_read(&record) {
                    return Ok(Some(format!("{error}")));
                }
                last = last.max(row.get(3)?);
            }
            Ok(None)
        })?;
        if found.is_none() {
            self.surveyor.set_read_through(last);
        }
        Ok(found)
    }
}
