//! Places of chunks that are known to be damaged.
//!
//! What a verification finds is written down as records, so that it outlives the catalog. From then on writers refer to nothing
//! there: what is damaged is stored anew as soon as somebody brings it, whole, and readers and sweeps prefer the new copy
//! ([`chunk_index`](crate::index::chunk_index)). Nothing is taken away: a place may be mended, and the next verification that
//! finds it so annuls the record.
//!
//! A place is a chunk in a pack whose own frame is bad or gone. What only stands on such a chunk is not named: it reads
//! again once its base does.

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
use crate::index::records::{self, Deletion, kind};
use crate::index::repository::Repository;
use crate::names::BackupId;

/// Payloads written into one pack: well below what a pack's footer may have.
const BATCH_BYTES: usize = 2 << 20;

/// Places in one pack, by pack: what a verification has found.
pub(crate) type Places = BTreeMap<PackId, BTreeSet<ChunkId>>;

/// Chunks that are damaged in a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DamagedPlaces {
    pub(crate) pack: PackId,
    pub(crate) found_at: TimestampMicros,
    pub(crate) chunks: BTreeSet<ChunkId>,
}

/// Enters what a record means.
pub(crate) fn derive(db: &Connection, seq: i64, places: &DamagedPlaces) -> Result<()> {
    let mut insert =
        db.prepare_cached("INSERT OR IGNORE INTO damaged (id, pack, record) VALUES (?1, ?2, ?3)")?;
    for id in &places.chunks {
        insert.execute(params![id.as_bytes(), places.pack.as_bytes(), seq])?;
    }
    Ok(())
}

/// A record says something as long as the pack is there.
pub(crate) fn is_needed(db: &Connection, places: &DamagedPlaces) -> Result<bool> {
    records::knows_pack(db, places.pack)
}

/// The packs with places that are damaged, by their rows, and the chunks.
pub(crate) fn damaged_packs(db: &Connection) -> Result<BTreeMap<i64, BTreeSet<ChunkId>>> {
    let mut query = db.prepare_cached("SELECT p.seq, d.id FROM damaged d JOIN packs p ON p.id = d.pack")?;
    let mut rows = query.query([])?;
    let mut packs: BTreeMap<i64, BTreeSet<ChunkId>> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        packs.entry(row.get(0)?).or_default().insert(ChunkId(row.get(1)?));
    }
    Ok(packs)
}

/// The chunks of which no place is good: what a verification found, and the deltas based on it. While nothing is damaged, that
/// costs one look-up; else a look at each chunk.
fn lost_chunks(db: &Connection) -> Result<HashSet<ChunkId>> {
    let mut lost = HashSet::new();
    for id in damaged_packs(db)?.into_values().flatten() {
        if places(db, &id)?.iter().all(|place| place.damaged) {
            lost.insert(id);
        }
    }
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
        if places(db, &id)?.iter().all(|place| place.damaged) {
            lost.insert(id);
        }
    }
    Ok(lost)
}

/// Walks through backups, and remembers what needs no lost chunk.
struct Search<'a> {
    repository: &'a Repository,
    lost: HashSet<ChunkId>,
    /// Pages of listings and pieces of maps with nothing lost below them.
    whole: HashSet<ChunkId>,
}

impl Search<'_> {
    fn is_damaged(&mut self, backup: &Backup) -> Result<bool> {
        let Some(root) = &backup.root else {
            return Ok(false);
        };
        let Some(_guard) = self.repository.verifying(backup)? else {
            return Ok(false);
        };
        let trees = self.repository.trees();
        let (lost, whole) = (&self.lost, &self.whole);
        let mut passed = Vec::new();
        let mut found = false;
        // Nothing more is looked at once something is found.
        let mut each = |id: ChunkId, role: ChunkRole| {
            found |= lost.contains(&id);
            if found || role == ChunkRole::Window || whole.contains(&id) {
                return Ok(false);
            }
            passed.push(id);
            Ok(true)
        };
        let mut walked = trees.chunks_of(&root.directory, &mut each);
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

impl Repository {
    /// Which of these complete backups cannot be restored whole, as far as verifications have found: they need a chunk, or
    /// a segment of WAL to become consistent, of which no good copy is stored. Backups are looked through only while there is
    /// such a chunk.
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

    /// Calls `each` with the records of damaged places that count.
    pub(crate) fn each_damage(
        &self,
        each: &mut dyn FnMut(RecordId, DamagedPlaces) -> Result<()>,
    ) -> Result<()> {
        let mut last = 0;
        loop {
            // One at a time: a pack of small chunks that is gone as a whole makes a record of megabytes.
            let next = self.db.read(|db| {
                let mut next = db.prepare_cached(
                    "SELECT id, payload, seq FROM records WHERE kind = ?1 AND seq > ?2
                     AND id NOT IN (SELECT annulled FROM deletions) ORDER BY seq LIMIT 1",
                )?;
                let mut rows = next.query(params![kind::DAMAGE, last])?;
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

    /// Writes down that these places are damaged, and that `annulled` says so no longer; durable when it returns.
    pub(crate) fn write_damage(&self, found: Places, annulled: &[RecordId]) -> Result<()> {
        let found_at = now();
        let found = found.into_iter().map(|(pack, chunks)| {
            let body = DamagedPlaces {
                pack,
                found_at,
                chunks,
            };
            records::record(kind::DAMAGE, &body)
        });
        // After what replaces them: a place that is said to be damaged twice is no harm.
        let annulled = annulled.iter().map(|of| {
            let body = Deletion {
                of: *of,
                deleted_at: found_at,
                what: "damaged places".to_owned(),
            };
            records::record(kind::DELETION, &body)
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
