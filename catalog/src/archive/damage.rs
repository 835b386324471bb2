//! Places of chunks that are known to be damaged.
//!
//! The findings of a verification are written as records, so that they survive a lost catalog. From then on, writers do
//! not refer to these places: a damaged chunk is stored again, whole, as soon as a writer brings it, and readers and
//! sweeps prefer the new copy ([`chunk_index`](crate::index::chunk_index)). Nothing is removed: a place may be
//! repaired, and the next verification that finds it intact annuls the record.
//!
//! A place is a chunk in a pack in which the chunk's own frame is bad or missing. A delta based on such a chunk is not
//! listed: it becomes readable again once its base does.
//!
//! A chunk that something needs and no pack holds has no place ([`NO_PACK`]): its pack was given up by a rebuild. It is
//! recorded as well, because nothing else says that it is gone: without a record, backups that need it would count as
//! good, and new ones would refer to it without a look-up. A sweep annuls the record when nothing needs it any more.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::WalName;
use barmanfs_store::tree::ChunkRole;
use barmanfs_store::{ChunkId, PackId, Record, RecordId};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use crate::archive::backup::Backup;
use crate::error::Result;
use crate::home::now;
use crate::index::chunk_index::places;
use crate::index::records::{self, Deletion, Kind};
use crate::index::repository::Repository;
use crate::names::BackupId;

/// Size of the records written into one pack: well below the limit of a pack's footer.
const BATCH_BYTES: usize = 2 << 20;

/// Stands for the pack of a chunk that no pack holds.
pub(crate) const NO_PACK: PackId = PackId([0; 16]);

/// Number of such chunks in one record: a megabyte.
pub(crate) const LOST_IN_RECORD: usize = 1 << 14;

/// Damaged places by pack, as found by a verification.
pub(crate) type Places = BTreeMap<PackId, BTreeSet<ChunkId>>;

/// Chunks that are damaged in a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DamagedPlaces {
    pub(crate) pack: PackId,
    pub(crate) found_at: TimestampMicros,
    pub(crate) chunks: BTreeSet<ChunkId>,
}

/// Enters a record's content into the tables.
pub(crate) fn derive(db: &Connection, seq: i64, places: &DamagedPlaces) -> Result<()> {
    let mut insert =
        db.prepare_cached("INSERT OR IGNORE INTO damaged (id, pack, record) VALUES (?1, ?2, ?3)")?;
    for id in &places.chunks {
        insert.execute(params![id.as_bytes(), places.pack.as_bytes(), seq])?;
    }
    Ok(())
}

/// A record is needed as long as its pack exists, and one of chunks that no pack holds until it is annulled.
pub(crate) fn is_needed(db: &Connection, places: &DamagedPlaces) -> Result<bool> {
    Ok(places.pack == NO_PACK || records::knows_pack(db, places.pack)?)
}

/// Whether a chunk has no place that is not known to be damaged.
pub(crate) fn is_lost(db: &Connection, id: &ChunkId) -> Result<bool> {
    Ok(places(db, id)?.iter().all(|place| place.damaged))
}

/// The packs with damaged places, by row number, with the damaged chunks.
pub(crate) fn damaged_packs(db: &Connection) -> Result<BTreeMap<i64, BTreeSet<ChunkId>>> {
    let mut query = db.prepare_cached("SELECT p.seq, d.id FROM damaged d JOIN packs p ON p.id = d.pack")?;
    let mut rows = query.query([])?;
    let mut packs: BTreeMap<i64, BTreeSet<ChunkId>> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        packs.entry(row.get(0)?).or_default().insert(ChunkId(row.get(1)?));
    }
    Ok(packs)
}

/// Number of chunks that are known to be damaged or gone, and that have no other place that is not.
pub(crate) fn lost_at_all_places(db: &Connection) -> Result<usize> {
    Ok(lost_themselves(db)?.len())
}

/// The chunks that are recorded as damaged or gone and have no good place.
fn lost_themselves(db: &Connection) -> Result<HashSet<ChunkId>> {
    let mut query = db.prepare_cached(
        "SELECT DISTINCT d.id FROM damaged d
         WHERE d.pack = ?1 OR EXISTS (SELECT 1 FROM packs p WHERE p.id = d.pack)",
    )?;
    let mut rows = query.query([NO_PACK.as_bytes()])?;
    let mut lost = HashSet::new();
    while let Some(row) = rows.next()? {
        let id = ChunkId(row.get(0)?);
        if is_lost(db, &id)? {
            lost.insert(id);
        }
    }
    Ok(lost)
}

/// The chunks without any good place: those that are recorded, and the deltas based on them. If nothing is recorded, this
/// costs one look-up; otherwise a scan of all chunks.
fn lost_chunks(db: &Connection) -> Result<HashSet<ChunkId>> {
    let mut lost = lost_themselves(db)?;
    if lost.is_empty() {
        return Ok(lost);
    }
    // A base is never a delta itself.
    let mut deltas = db.prepare_cached("SELECT id, base FROM chunks WHERE base IS NOT NULL")?;
    let mut rows = deltas.query([])?;
    let mut standing = Vec::new();
    while let Some(row) = rows.next()? {
        if lost.contains(&ChunkId(row.get(1)?)) {
            standing.push(ChunkId(row.get(0)?));
        }
    }
    for id in standing {
        if is_lost(db, &id)? {
            lost.insert(id);
        }
    }
    Ok(lost)
}

/// Walks through backups and remembers the parts that need no lost chunk.
struct Search<'a> {
    repository: &'a Repository,
    lost: HashSet<ChunkId>,
    /// Pages of listings and pieces of maps with nothing lost below them.
    whole: HashSet<ChunkId>,
}

impl Search<'_> {
    fn is_damaged(&mut self, backup: &Backup) -> Result<bool> {
        if backup.root.is_none() {
            return Ok(false);
        }
        let Some(_guard) = self.repository.verifying(backup)? else {
            return Ok(false);
        };
        let trees = self.repository.trees();
        let (lost, whole) = (&self.lost, &self.whole);
        let mut passed = Vec::new();
        let mut found = false;
        // Once a lost chunk is found, the rest is skipped.
        let mut each = |id: ChunkId, role: ChunkRole| {
            found |= lost.contains(&id);
            if found || role == ChunkRole::Window || whole.contains(&id) {
                return Ok(false);
            }
            passed.push(id);
            Ok(true)
        };
        let mut walked = self
            .repository
            .trees_of(backup)?
            .iter()
            .try_for_each(|tree| trees.chunks_of(tree, &mut each));
        let archive = self.repository.wal(backup.archive());
        for segment in backup.needed_wal() {
            if walked.is_err() {
                break;
            }
            if let Some(file) = archive.find(&WalName::Segment(segment))? {
                walked = trees.chunks_of_file(&file.map, &mut each);
            }
        }
        match walked {
            Err(error) if error.is_damage() => return Ok(true),
            other => other?,
        }
        if !found {
            self.whole.extend(passed);
        }
        Ok(found)
    }
}

/// The record of damaged chunks of a pack.
pub(crate) fn record(pack: PackId, found_at: TimestampMicros, chunks: BTreeSet<ChunkId>) -> Result<Record> {
    let body = DamagedPlaces {
        pack,
        found_at,
        chunks,
    };
    records::record(Kind::Damage, &body)
}

/// The number of chunks in a pack is limited, that of lost ones is not.
fn in_records(pack: PackId, mut chunks: BTreeSet<ChunkId>) -> Vec<(PackId, BTreeSet<ChunkId>)> {
    let mut parts = Vec::new();
    while pack == NO_PACK
        && let Some(next) = chunks.iter().nth(LOST_IN_RECORD).copied()
    {
        let rest = chunks.split_off(&next);
        parts.push((pack, std::mem::replace(&mut chunks, rest)));
    }
    parts.push((pack, chunks));
    parts
}

impl Repository {
    /// Those of these complete backups that cannot be restored completely, as far as verifications and rebuilds have found. They
    /// need a chunk, or a WAL segment to become consistent, of which no good copy is stored. The backups are only
    /// walked while there is such a chunk.
    ///
    /// # Errors
    /// When the catalog or the disk cannot be read.
    pub fn damaged_backups(&self, backups: &[Backup]) -> Result<BTreeSet<BackupId>> {
        let lost = self.db.read(lost_chunks)?;
        let mut damaged = BTreeSet::new();
        if lost.is_empty() {
            return Ok(damaged);
        }
        let mut search = Search {
            repository: self,
            lost,
            whole: HashSet::new(),
        };
        for backup in backups {
            if search.is_damaged(backup)? {
                damaged.insert(backup.id);
            }
        }
        Ok(damaged)
    }

    /// Calls `each` with the records of damaged places that are not annulled.
    pub(crate) fn each_damage(
        &self,
        each: &mut dyn FnMut(RecordId, DamagedPlaces) -> Result<()>,
    ) -> Result<()> {
        let mut last = 0;
        loop {
            // One at a time: if a pack of small chunks is lost entirely, its record has megabytes.
            let next = self.db.read(|db| {
                let mut next = db.prepare_cached(
                    "SELECT id, payload, seq FROM records WHERE kind = ?1 AND seq > ?2
                     AND id NOT IN (SELECT annulled FROM deletions) ORDER BY seq LIMIT 1",
                )?;
                let mut rows = next.query(params![Kind::Damage, last])?;
                let Some(row) = rows.next()? else { return Ok(None) };
                let (id, places) = records::of_row(row)?;
                Ok(Some((row.get(2)?, id, places)))
            })?;
            let Some((seq, id, places)) = next else {
                return Ok(());
            };
            last = seq;
            each(id, places)?;
        }
    }

    /// Records these places as damaged and annuls the records in `annulled`; durable when it returns.
    pub(crate) fn write_damage(&self, found: Places, annulled: &[RecordId]) -> Result<()> {
        let found_at = now();
        let found = found
            .into_iter()
            .flat_map(|(pack, chunks)| in_records(pack, chunks));
        let found = found.map(|(pack, chunks)| record(pack, found_at, chunks));
        // Written after the records that replace them: it does no harm if a place is recorded as damaged twice.
        let annulled = annulled.iter().map(|of| {
            let body = Deletion {
                of: *of,
                deleted_at: found_at,
                what: "damaged places".to_owned(),
            };
            records::record(Kind::Deletion, &body)
        });
        let writer = self.writer("verification")?;
        let mut batch: Vec<Record> = Vec::new();
        let mut bytes = 0;
        for record in found.chain(annulled) {
            let record = record?;
            bytes += record.payload.len();
            batch.push(record);
            if bytes >= BATCH_BYTES {
                writer.write_records(std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            writer.write_records(batch)?;
        }
        Ok(())
    }
}
