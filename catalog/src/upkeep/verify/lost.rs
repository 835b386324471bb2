//! Chunks that something needs and no pack holds.
//!
//! Only a rebuild makes them: it leaves out packs that are gone or cannot be read. So each rebuild looks for them before it
//! lets writers in, and records them ([`damage`]). Until it has done that, a mark in the new catalog keeps writers from
//! referring to anything without a look-up, and backups from being deleted: a good one may be the only one. If the rebuild
//! ends before that, or a verification or a sweep meets such a chunk that is not recorded, they do the same.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use barmanfs_store::sync::lock;
use barmanfs_store::{ChunkId, ChunkIndex, PackWriter};
use rusqlite::{Connection, params};

use crate::archive::damage::{self, LOST_IN_RECORD, NO_PACK, NOT_LOOKED, is_lost};
use crate::error::Result;
use crate::home::locks::Lock;
use crate::home::now;
use crate::index::chunk_index::{CatalogIndex, kept_place, whole_place};
use crate::index::repository::Repository;
use crate::index::sorted::Merged;
use crate::monitor::Monitor;
use crate::upkeep::verify::VerifyScope;
use crate::upkeep::verify::needed::Needed;

/// Ids that are looked up in one read of the catalog.
const BATCH: usize = 4096;

/// Marks a catalog in which nobody has looked for such chunks yet.
pub(crate) fn mark_unexamined(db: &Connection) -> Result<()> {
    db.execute(
        "INSERT INTO damaged (id, pack, record) VALUES (zeroblob(32), ?1, ?2)",
        params![NO_PACK.as_bytes(), NOT_LOOKED],
    )?;
    Ok(())
}

impl Repository {
    /// Looks for everything that live records refer to and no pack holds, and records it; durable when it returns. Reads
    /// listings and maps, and no content. Returns the number of chunks that cannot be read because they, or their bases, are
    /// in no pack. `_gate` shows that no rebuild of another process replaces the catalog meanwhile.
    ///
    /// # Errors
    /// When the catalog or the disk cannot be read, or the records cannot be written.
    pub(crate) fn note_lost(&self, _gate: &Lock, monitor: &mut dyn Monitor) -> Result<u64> {
        let _acting = self.as_owner()?;
        let mut needed = Needed::new(self)?;
        for subject in &self.subjects(&VerifyScope::All)? {
            needed.add(subject, monitor)?;
        }
        let lost = Mutex::new(BTreeSet::new());
        let ids = needed.finish();
        let counts = ids.in_parts(self.db.is_shared(), |part| self.add_lost(part, &lost))?;
        let lost = lost.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !lost.is_empty() {
            self.record_lost(lost)?;
        }
        self.db.write(|transaction| {
            let mut examined = transaction.prepare_cached("DELETE FROM damaged WHERE record = ?1")?;
            Ok(examined.execute([NOT_LOOKED])?)
        })?;
        Ok(counts.into_iter().sum())
    }

    /// Adds those of these chunks that no pack holds, and the bases that are missing to the others, if they are not
    /// recorded, and records them when they are many. Returns the number of all of them.
    fn add_lost(
        &self,
        mut ids: Merged<'_, { ChunkId::BYTES }>,
        lost: &Mutex<BTreeSet<ChunkId>>,
    ) -> Result<u64> {
        let mut count = 0;
        loop {
            let batch = ids.next_batch(BATCH)?;
            if batch.is_empty() {
                return Ok(count);
            }
            let missing = self.missing_of(&batch)?;
            count += missing.count;
            let mut lost = lock(lost);
            lost.extend(missing.unrecorded);
            if lost.len() >= LOST_IN_RECORD {
                self.record_lost(std::mem::take(&mut lost))?;
            }
        }
    }

    fn missing_of(&self, ids: &[[u8; ChunkId::BYTES]]) -> Result<Missing> {
        self.db.read(|db| {
            let mut found = Missing::default();
            for id in ids.iter().copied().map(ChunkId) {
                let missing = match kept_place(db, &id)? {
                    None => Some(id),
                    Some(place) => match place.location.base {
                        Some(base) if whole_place(db, &base)?.is_none() => Some(base),
                        _ => None,
                    },
                };
                let Some(missing) = missing else { continue };
                found.count += 1;
                if !is_recorded(db, &missing)? {
                    found.unrecorded.push(missing);
                }
            }
            Ok(found)
        })
    }

    /// Sweeps and rebuilds write as well, so this does not register a writer: it refers to no chunk.
    fn record_lost(&self, lost: BTreeSet<ChunkId>) -> Result<()> {
        let mut pack = PackWriter::begin(self.storage.as_ref())?;
        pack.record(damage::record(NO_PACK, now(), lost)?)?;
        let index = CatalogIndex::for_readers(
            std::sync::Arc::clone(&self.db),
            std::sync::Arc::clone(&self.surveyor),
        );
        Ok(index.publish(&pack.close()?)?)
    }

    /// Whether a chunk that was recorded as lost still has no good place.
    pub(super) fn is_still_lost(&self, id: &ChunkId) -> Result<bool> {
        self.db.read(|db| is_lost(db, id))
    }
}

/// Chunks that are needed and missing.
#[derive(Default)]
struct Missing {
    count: u64,
    /// Those of them of which there is no record.
    unrecorded: Vec<ChunkId>,
}

fn is_recorded(db: &Connection, id: &ChunkId) -> Result<bool> {
    let mut known =
        db.prepare_cached("SELECT 1 FROM damaged WHERE id = ?1 AND pack = ?2 AND record <> ?3")?;
    Ok(known.exists(params![id.as_bytes(), NO_PACK.as_bytes(), NOT_LOOKED])?)
}
