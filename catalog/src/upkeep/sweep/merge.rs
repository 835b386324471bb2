//! Merges the packs of archived WAL by the day.
//!
//! A segment is acknowledged when its own pack is durable, so an archive begins as one small pack for each file. When a day is
//! over for long enough that nothing arrives for it any more, the small packs of each server's day are copied into larger ones, by the
//! code that repacks: copies first, then the old packs are condemned, and removed when nobody can have looked anything
//! up in them. Days and servers stay apart, since retention removes them apart: then whole packs are dead at once.
//!
//! A day is done when at most one small pack of it that can be read is left. So nothing is copied twice, unless something comes later.
//!
//! Nothing depends on it. So it leaves room on the file system, and ends silently where there is none.

use std::collections::{BTreeMap, BTreeSet};

use barmanfs_store::layout::PACK_TARGET_BYTES;
use rusqlite::params;

use crate::archive::damage;
use crate::error::{Error, Result};
use crate::home::now;
use crate::home::presence::WriterName;
use crate::index::condemned::PackRow;
use crate::upkeep::sweep::mark::Mark;
use crate::upkeep::sweep::repack::Output;
use crate::upkeep::sweep::{Fate, Sweep};

/// A pack with less than this is small: one of at least this size is left as it is.
const SMALL_BYTES: u64 = PACK_TARGET_BYTES / 2;

const DAY_MICROS: i64 = 24 * 3600 * 1_000_000;

/// Copied packs are condemned together when they have so many bytes: each time, the store is listed to be sure that nobody has left a pack
/// behind.
const TOGETHER_BYTES: u64 = 4 << 30;

/// This share of the file system stays free.
const LEFT_FREE: u64 = 20;

/// The packs of one server's day, with its number since 1970.
type Days = BTreeMap<(String, i64), Vec<PackRow>>;

impl Sweep<'_> {
    /// Merges what can be merged, except the packs of the writers `at_work` and those in `given_up`.
    pub(super) fn merge(
        &mut self,
        mark: &Mark,
        at_work: &BTreeSet<WriterName>,
        given_up: &BTreeSet<i64>,
    ) -> Result<Fate> {
        let mut output = Output::together(TOGETHER_BYTES);
        let days = self.days(mark, at_work, given_up)?;
        let merged = self.merge_days(mark, days, &mut output);
        self.report.merged_packs += output.given_up;
        match merged {
            Err(error) if error.is_full() => {
                tracing::info!("WAL is merged when there is more space: {error}");
            }
            merged => merged?,
        }
        Ok(output.fate)
    }

    fn merge_days(&mut self, mark: &Mark, days: Days, output: &mut Output) -> Result<()> {
        for ((server, _), packs) in days {
            if !self.has_room_for(packs.iter().map(|pack| pack.stored_bytes).sum())? {
                tracing::info!("WAL of {server} is merged when there is more space");
                break;
            }
            if !self.has_two_readable(mark, &packs)? {
                continue;
            }
            for pack in packs {
                self.try_copying(mark, pack, output)?;
            }
            // The next day begins with a pack of its own.
            self.finish(mark, output)?;
        }
        self.give_up_complete(mark, output)
    }

    /// A pack that cannot be read stays. If there is only one other, that one was merged already.
    fn has_two_readable(&mut self, mark: &Mark, packs: &[PackRow]) -> Result<bool> {
        let mut readable = 0;
        for pack in packs {
            readable += u32::from(self.is_readable(mark, pack)?);
            if readable == 2 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Small packs with archived files of days that are over, where a day has more than one.
    fn days(&self, mark: &Mark, at_work: &BTreeSet<WriterName>, given_up: &BTreeSet<i64>) -> Result<Days> {
        let today = self.options.as_of.unwrap_or_else(now).unix_micros();
        // Of the day before, files may still be on their way.
        let first_open_day = today.div_euclid(DAY_MICROS) - 1;
        let damaged = self.repository.db.read(damage::damaged_packs)?;
        let newest = mark.newest_pack.min(self.newest);
        let mut days = Days::new();
        for pack in self.repository.condemned().candidates(newest, at_work)? {
            let is_other = pack.stored_bytes >= SMALL_BYTES
                || given_up.contains(&pack.seq)
                || damaged.contains(&pack.seq);
            if is_other {
                continue;
            }
            if let Some((server, day)) = self.day_of(pack.seq)?
                && day < first_open_day
            {
                days.entry((server, day)).or_default().push(pack);
            }
        }
        days.retain(|_, packs| packs.len() > 1);
        Ok(days)
    }

    /// The server and the last day of the archived files in a pack; `None` if there are none.
    fn day_of(&self, pack: i64) -> Result<Option<(String, i64)>> {
        self.repository.db.read(|db| {
            let mut archived = db.prepare_cached(
                "SELECT min(w.server), max(w.archived_at) FROM record_packs h
                 CROSS JOIN wal w ON w.record = h.record WHERE h.pack = ?1",
            )?;
            let row: (Option<String>, Option<i64>) =
                archived.query_row(params![pack], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(row
                .0
                .zip(row.1)
                .map(|(server, at)| (server, at.div_euclid(DAY_MICROS))))
        })
    }

    /// Whether as much can be copied with room to spare. What waits for writers takes space as well, and counts here.
    fn has_room_for(&self, bytes: u64) -> Result<bool> {
        let path = self.repository.path();
        let system = rustix::fs::statvfs(path)
            .map_err(|error| Error::io("ask for the space of", path, error.into()))?;
        let (free, all) = (
            system.f_bavail.saturating_mul(system.f_frsize),
            system.f_blocks.saturating_mul(system.f_frsize),
        );
        Ok(free >= bytes.saturating_add(all / LEFT_FREE))
    }
}

#[cfg(test)]
mod tests;
