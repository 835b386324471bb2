//! Checks many chunks on all cores, in the order of their places in packs.

use std::num::NonZero;
use std::thread::{self, ScopedJoinHandle};

use barmanfs_store::{ChunkId, PackId, threads};
use rusqlite::params;

use crate::error::{Error, Result};
use crate::index::chunk_index::{Place, kept_place, place_in, whole_place};
use crate::index::chunk_set::unusable;
use crate::index::repository::Repository;
use crate::monitor::{Monitor, Unit};
use crate::upkeep::verify::{Verification, VerifyReport, note_bad};

/// Number of chunks checked between two progress reports: tens of milliseconds of work for each core.
const BATCH: usize = 1024;

impl Verification<'_> {
    /// Checks all chunks that were met.
    pub(super) fn check(&mut self, monitor: &mut dyn Monitor) -> Result<()> {
        self.sort_by_place()?;
        let total = self.report.bytes;
        let mut done = 0;
        loop {
            let batch = self.next_batch()?;
            if batch.is_empty() {
                return Ok(());
            }
            for (id, error) in check_all(self.repository, &batch) {
                if !error.is_damage() {
                    return Err(error);
                }
                self.examine(id)?;
            }
            done += batch.iter().map(|one| u64::from(one.bytes)).sum::<u64>();
            monitor.progress(done, Some(total), Unit::Bytes);
        }
    }

    /// Records the place of each chunk and of its base, if it is a delta; a chunk without a place is
    /// bad.
    fn sort_by_place(&mut self) -> Result<()> {
        let set = &self.met.db;
        set.execute_batch(
            "CREATE TABLE sorted (pack INTEGER, position INTEGER, id BLOB, bytes INTEGER, name BLOB,
             PRIMARY KEY (pack, position)) WITHOUT ROWID",
        )
        .map_err(unusable)?;
        let mut all = set.prepare("SELECT id FROM met ORDER BY id").map_err(unusable)?;
        let mut ids = all.query([]).map_err(unusable)?;
        let mut add = set
            .prepare("INSERT OR IGNORE INTO sorted VALUES (?1, ?2, ?3, ?4, ?5)")
            .map_err(unusable)?;
        let report = &mut self.report;
        let mut add = |report: &mut VerifyReport, id: &ChunkId, place: &Place| {
            let (pack, offset, bytes) = (place.pack, place.location.offset, place.location.raw_bytes);
            let name = place.location.pack;
            let added = add.execute(params![pack, offset, id.as_bytes(), bytes, name.as_bytes()])?;
            report.chunks += added as u64;
            report.bytes += added as u64 * u64::from(bytes);
            Ok(())
        };
        while let Some(row) = ids.next().map_err(unusable)? {
            let id = ChunkId(row.get(0).map_err(unusable)?);
            let Some(place) = self.repository.db.read(|db| kept_place(db, &id))? else {
                let missing = barmanfs_store::Error::MissingChunk(id);
                note_bad(&mut self.bad, id, missing.to_string());
                report.is_something_lost = true;
                continue;
            };
            add(report, &id, &place).map_err(unusable)?;
            if let Some(base) = place.location.base
                && let Some(place) = self.repository.db.read(|db| whole_place(db, &base))?
            {
                add(report, &base, &place).map_err(unusable)?;
            }
        }
        Ok(())
    }

    /// Takes the next chunks off the list.
    fn next_batch(&self) -> Result<Vec<ToCheck>> {
        let take = || {
            let mut next = self.met.db.prepare_cached(
                "SELECT id, name, bytes, pack, position FROM sorted ORDER BY pack, position LIMIT ?1",
            )?;
            let mut last = (0_i64, 0_i64);
            let batch = next.query_map([BATCH], |row| {
                last = (row.get(3)?, row.get(4)?);
                Ok(ToCheck {
                    id: ChunkId(row.get(0)?),
                    pack: PackId(row.get(1)?),
                    bytes: row.get(2)?,
                })
            })?;
            let batch: Vec<_> = batch.collect::<rusqlite::Result<_>>()?;
            let mut taken = self
                .met
                .db
                .prepare_cached("DELETE FROM sorted WHERE (pack, position) <= (?1, ?2)")?;
            taken.execute([last.0, last.1])?;
            Ok(batch)
        };
        take().map_err(unusable)
    }
}

/// A place of a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct ToCheck {
    pub(super) id: ChunkId,
    pub(super) pack: PackId,
    /// Size of the chunk.
    pub(super) bytes: u32,
}

impl ToCheck {
    fn check(&self, repository: &Repository) -> Result<()> {
        let place = repository.db.read(|db| place_in(db, &self.id, self.pack))?;
        // A sweep has removed it meanwhile: the chunk is somewhere else now.
        let place = place.ok_or(barmanfs_store::Error::MissingPack(self.pack))?;
        Ok(repository.chunks().check(&self.id, &place.location)?)
    }
}

/// Checks a batch, divided among the cores; returns what failed.
pub(super) fn check_all(repository: &Repository, batch: &[ToCheck]) -> Vec<(ChunkId, Error)> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let check = |part: &[ToCheck]| -> Vec<(ChunkId, Error)> {
        part.iter()
            .filter_map(|one| one.check(repository).err().map(|error| (one.id, error)))
            .collect()
    };
    let part_length = batch.len().div_ceil(cores).max(1);
    thread::scope(|scope| {
        let parts: Vec<_> = batch
            .chunks(part_length)
            .map(|part| (part, threads::start_in(scope, "verify", move || check(part))))
            .collect();
        parts
            .into_iter()
            .flat_map(|(part, started)| {
                // What no thread can be had for is checked in this one.
                let checked = started.map_or_else(|_| Ok(check(part)), ScopedJoinHandle::join);
                checked.unwrap_or_else(|_| {
                    let reason = || Error::Invalid("The check of its bytes broke off".to_owned());
                    part.iter().map(|one| (one.id, reason())).collect()
                })
            })
            .collect()
    })
}
