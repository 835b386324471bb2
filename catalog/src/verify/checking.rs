//! Checking many chunks on all cores, in the order they lie in packs.

use std::num::NonZero;
use std::thread;

use barmanfs_store::{ChunkId, ChunkReader};
use rusqlite::params;

use crate::chunk_index::{Place, each_place, keep_better};
use crate::chunk_set::unusable;
use crate::error::{Error, Result};
use crate::monitor::{Monitor, Unit};
use crate::verify::{Verification, note_bad};

/// Chunks checked between two words to the monitor: tens of milliseconds of work for each core.
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
            for (id, error) in check_all(self.repository.chunks(), &batch) {
                if !error.is_damage() {
                    return Err(Error::from(error));
                }
                note_bad(&mut self.bad, id, error.to_string());
            }
            done += batch.iter().map(|(_, bytes)| u64::from(*bytes)).sum::<u64>();
            monitor.progress(done, Some(total), Unit::Bytes);
        }
    }

    /// Writes down where each chunk is; one that is nowhere is bad.
    fn sort_by_place(&mut self) -> Result<()> {
        let set = &self.met.db;
        set.execute_batch(
            "CREATE TABLE sorted (pack INTEGER, position INTEGER, id BLOB, bytes INTEGER,
             PRIMARY KEY (pack, position)) WITHOUT ROWID",
        )
        .map_err(unusable)?;
        let mut all = set.prepare("SELECT id FROM met ORDER BY id").map_err(unusable)?;
        let mut add = set
            .prepare("INSERT OR IGNORE INTO sorted VALUES (?1, ?2, ?3, ?4)")
            .map_err(unusable)?;
        let mut ids = all.query([]).map_err(unusable)?;
        while let Some(row) = ids.next().map_err(unusable)? {
            let id = ChunkId(row.get(0).map_err(unusable)?);
            self.report.chunks += 1;
            let Some(Place { pack, location, .. }) = place(self.repository, &id)? else {
                note_bad(
                    &mut self.bad,
                    id,
                    barmanfs_store::Error::MissingChunk(id).to_string(),
                );
                continue;
            };
            self.report.bytes += u64::from(location.raw_bytes);
            add.execute(params![pack, location.offset, id.as_bytes(), location.raw_bytes])
                .map_err(unusable)?;
        }
        Ok(())
    }

    /// Takes the next chunks off the list, with their sizes.
    fn next_batch(&self) -> Result<Vec<(ChunkId, u32)>> {
        let take = || {
            let mut next = self.met.db.prepare_cached(
                "SELECT id, bytes, pack, position FROM sorted ORDER BY pack, position LIMIT ?1",
            )?;
            let mut last = (0_i64, 0_i64);
            let batch = next.query_map([BATCH], |row| {
                last = (row.get(2)?, row.get(3)?);
                Ok((ChunkId(row.get(0)?), row.get(1)?))
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

fn place(repository: &crate::Repository, id: &ChunkId) -> Result<Option<Place>> {
    repository.db.read(|db| {
        let mut best = None;
        each_place(db, id, |place| keep_better(&mut best, place))?;
        Ok(best)
    })
}

/// Checks a batch, a part of it on each core; returns what failed.
fn check_all(chunks: &ChunkReader, batch: &[(ChunkId, u32)]) -> Vec<(ChunkId, barmanfs_store::Error)> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let check = |part: &[(ChunkId, u32)]| -> Vec<(ChunkId, barmanfs_store::Error)> {
        part.iter()
            .filter_map(|(id, _)| chunks.check(id).err().map(|error| (*id, error)))
            .collect()
    };
    let part_length = batch.len().div_ceil(cores).max(1);
    thread::scope(|scope| {
        let parts: Vec<_> = batch
            .chunks(part_length)
            .map(|part| (part, scope.spawn(move || check(part))))
            .collect();
        parts
            .into_iter()
            .flat_map(|(part, checked)| {
                checked.join().unwrap_or_else(|_| {
                    let reason = "The check of its bytes broke off".to_owned();
                    part.iter()
                        .map(|(id, _)| (*id, barmanfs_store::Error::Invalid(reason.clone())))
                        .collect()
                })
            })
            .collect()
    })
}
