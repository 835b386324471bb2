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

mod wal;

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
use crate::index::chunk_index::{each_based_on, places};
use crate::index::records::{self, Deletion, Kind};
use crate::index::repository::Repository;
use crate::names::BackupId;

/// Size of the records written into one pack: well below the limit of a pack's footer.
const BATCH_BYTES: usize = 2 << 20;

/// Stands for the pack of a chunk that no pack holds.
pub(crate) const NO_PACK: PackId = PackId([0; 16]);

/// Stands for the row of a record in the mark of a catalog in which nobody has looked for such chunks yet.
pub(crate) const NOT_LOOKED: i64 = 0;

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

/// The next chunks after this one, by their ids, that are recorded as damaged or gone. They may be stored again since.
pub(crate) fn recorded_after(db: &Connection, after: Option<&ChunkId>, count: usize) -> Result<Vec<ChunkId>> {
    let mut query = db.prepare_cached(
        "SELECT DISTINCT id FROM damaged WHERE id > ?1 AND record <> ?2 ORDER BY id LIMIT ?3",
    )?;
    let after = after.map_or(&[][..], |id| id.as_bytes());
    let rows = query.query_map(params![after, NOT_LOOKED, count], |row| row.get(0).map(ChunkId))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The packs with damaged places, by row number. The chunks are not listed: a lost disk had millions.
pub(crate) fn damaged_packs(db: &Connection) -> Result<BTreeSet<i64>> {
    let mut query = db.prepare_cached("SELECT p.seq FROM damaged d JOIN packs p ON p.id = d.pack")?;
    let rows = query.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Whether one of these chunks is known to be damaged in a pack.
pub(crate) fn is_any_damaged(db: &Connection, pack: PackId, chunks: &[ChunkId]) -> Result<bool> {
    let mut query = db.prepare_cached("SELECT 1 FROM damaged WHERE id = ?1 AND pack = ?2")?;
    for id in chunks {
        if query.exists(params![id.as_bytes(), pack.as_bytes()])? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Chunks without a good place, as far as verifications and rebuilds have found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KnownLoss {
    /// Number of chunks that something needed and no pack holds.
    pub in_no_pack: usize,
    /// Number of the other chunks, which are damaged in all packs that hold them, needed or not.
    pub damaged: usize,
    /// Whether the last rebuild ended before it could look for the former.
    pub is_unexamined: bool,
}

impl KnownLoss {
    /// The counts end here: `check` asks every minute, and a lost disk may have held millions.
    pub const COUNTED_MAX: usize = 10_000;
}

pub(crate) fn known_loss(db: &Connection) -> Result<KnownLoss> {
    let mut loss = KnownLoss {
        is_unexamined: is_unexamined(db)?,
        ..KnownLoss::default()
    };
    each_lost(db, |_, pack| {
        let count = match pack == NO_PACK {
            true => &mut loss.in_no_pack,
            false => &mut loss.damaged,
        };
        *count += 1;
        loss.in_no_pack < KnownLoss::COUNTED_MAX && loss.damaged < KnownLoss::COUNTED_MAX
    })?;
    Ok(loss)
}

fn is_unexamined(db: &Connection) -> Result<bool> {
    let mut marked = db.prepare_cached("SELECT 1 FROM damaged WHERE record = ?1")?;
    Ok(marked.exists([NOT_LOOKED])?)
}

/// Calls `each` with the chunks that are recorded as damaged or gone and have no good place, and with the least of the packs
/// where they were, until it returns false.
fn each_lost(db: &Connection, mut each: impl FnMut(ChunkId, PackId) -> bool) -> Result<()> {
    let mut query = db.prepare_cached(
        "SELECT d.id, min(d.pack) FROM damaged d
         WHERE d.record <> ?2 AND (d.pack = ?1 OR EXISTS (SELECT 1 FROM packs p WHERE p.id = d.pack))
         GROUP BY d.id",
    )?;
    let mut rows = query.query(params![NO_PACK.as_bytes(), NOT_LOOKED])?;
    while let Some(row) = rows.next()? {
        let id = ChunkId(row.get(0)?);
        if is_lost(db, &id)? && !each(id, PackId(row.get(1)?)) {
            break;
        }
    }
    Ok(())
}

/// Chunks that are kept in memory to tell the lost ones: about 50 MB. Of more, each chunk is looked up.
const LOST_IN_MEMORY_MAX: usize = 1 << 20;

/// Tells the chunks without any good place: those that are recorded, and the deltas based on them.
enum Lost {
    /// These.
    Known(HashSet<ChunkId>),
    /// Too many to keep them in memory, or not all have a name.
    Many,
}

impl Lost {
    /// If nothing is recorded, this costs one look-up; otherwise a scan of all chunks.
    fn find(db: &Connection, in_memory_max: usize) -> Result<Self> {
        let mut lost = HashSet::new();
        each_lost(db, |id, _| {
            lost.insert(id);
            lost.len() <= in_memory_max
        })?;
        // While nobody has looked, others may be lost.
        if lost.len() > in_memory_max || is_unexamined(db)? {
            return Ok(Self::Many);
        }
        if lost.is_empty() {
            return Ok(Self::Known(lost));
        }
        // A base is never a delta itself.
        let mut based = HashSet::new();
        let is_told = each_based_on(db, &lost, &mut |id| {
            let Some(id) = id else { return Ok(false) };
            if is_lost(db, &id)? {
                based.insert(id);
            }
            Ok(lost.len() + based.len() <= in_memory_max)
        })?;
        if !is_told {
            return Ok(Self::Many);
        }
        lost.extend(based);
        Ok(Self::Known(lost))
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Self::Known(lost) if lost.is_empty())
    }

    fn contains(&self, repository: &Repository, id: &ChunkId) -> Result<bool> {
        match self {
            Self::Known(lost) => Ok(lost.contains(id)),
            Self::Many => repository.db.read(|db| is_lost(db, id)),
        }
    }
}

/// Pages and pieces that a search remembers: about 50 MB. Beyond that it begins again, and looks at some twice.
const WHOLE_MAX: usize = 1 << 20;

/// Walks through backups and remembers the parts that need no lost chunk.
struct Search<'a> {
    repository: &'a Repository,
    lost: Lost,
    /// Pages of listings and pieces of maps with nothing lost below them.
    whole: Whole,
}

/// A limited number of chunks with nothing lost below them.
struct Whole {
    chunks: HashSet<ChunkId>,
    max: usize,
}

impl Whole {
    fn up_to(max: usize) -> Self {
        Self {
            chunks: HashSet::new(),
            max,
        }
    }

    fn contains(&self, id: &ChunkId) -> bool {
        self.chunks.contains(id)
    }

    fn extend(&mut self, chunks: Vec<ChunkId>) {
        if self.chunks.len() + chunks.len() > self.max {
            self.chunks.clear();
        }
        self.chunks.extend(chunks.into_iter().take(self.max));
    }
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
            found = found || lost.contains(self.repository, &id)?;
            if found || role == ChunkRole::Window || whole.contains(&id) {
                return Ok(false);
            }
            if passed.len() < WHOLE_MAX {
                passed.push(id);
            }
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

impl Repository {
    /// Whether the last rebuild ended before it could look for what is needed and in no pack: then it is not known which
    /// backups are good.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn is_unexamined(&self) -> Result<bool> {
        self.db.read(is_unexamined)
    }

    /// Those of these complete backups that cannot be restored completely, as far as verifications and rebuilds have found. They
    /// need a chunk, or a WAL segment to become consistent, of which no good copy is stored. The backups are only
    /// walked while there is such a chunk.
    ///
    /// # Errors
    /// When the catalog or the disk cannot be read.
    pub fn damaged_backups(&self, backups: &[Backup]) -> Result<BTreeSet<BackupId>> {
        let lost = self.db.read(|db| Lost::find(db, LOST_IN_MEMORY_MAX))?;
        let mut damaged = BTreeSet::new();
        if lost.is_nothing() {
            return Ok(damaged);
        }
        let mut search = Search {
            repository: self,
            lost,
            whole: Whole::up_to(WHOLE_MAX),
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

    /// Records these places as damaged and annuls the records in `annulled`; durable when it returns. `purpose` says who does
    /// it, for those who wait.
    pub(crate) fn write_damage(&self, found: Places, annulled: &[RecordId], purpose: &str) -> Result<()> {
        let found_at = now();
        let found = found
            .into_iter()
            .map(|(pack, chunks)| record(pack, found_at, chunks));
        // Written after the records that replace them: it does no harm if a place is recorded as damaged twice.
        let annulled = annulled.iter().map(|of| {
            let body = Deletion {
                of: *of,
                deleted_at: found_at,
                what: "damaged places".to_owned(),
            };
            records::record(Kind::Deletion, &body)
        });
        let writer = self.writer(purpose)?;
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

#[cfg(test)]
mod tests {
    use barmanfs_store::{Encoding, Frame, PackWriter};

    use super::*;
    use crate::index::repository::temporary;

    const GOOD: ChunkId = ChunkId([1; 32]);
    const GONE: ChunkId = ChunkId([2; 32]);
    const DAMAGED: ChunkId = ChunkId([3; 32]);
    const BASED_ON_DAMAGED: ChunkId = ChunkId([4; 32]);

    fn with_losses() -> (tempfile::TempDir, Repository, PackId) {
        let (directory, repository) = temporary();
        let mut pack = PackWriter::begin(repository.storage.as_ref()).unwrap();
        for (id, base) in [(GOOD, None), (DAMAGED, None), (BASED_ON_DAMAGED, Some(DAMAGED))] {
            let frame = Frame {
                encoding: base.map_or(Encoding::Stored, |_| Encoding::Delta),
                bytes: vec![1; 3],
            };
            pack.append(id, 3, base, &frame).unwrap();
        }
        let writer = repository.writer("test").unwrap();
        let pack = pack.close().unwrap();
        writer.publish(&pack).unwrap();
        let entered = repository.db.write(|db| {
            for (id, pack) in [(GONE, NO_PACK), (DAMAGED, pack.id)] {
                db.execute(
                    "INSERT INTO damaged VALUES (?1, ?2, 1)",
                    params![id.as_bytes(), pack.as_bytes()],
                )?;
            }
            Ok(())
        });
        entered.unwrap();
        (directory, repository, pack.id)
    }

    #[test]
    fn what_is_lost_is_told_in_memory_and_beyond_its_bound() {
        let (_directory, repository, _) = with_losses();
        for (in_memory_max, is_known) in [(3, true), (2, false), (1, false)] {
            let lost = repository.db.read(|db| Lost::find(db, in_memory_max)).unwrap();
            assert_eq!(matches!(lost, Lost::Known(_)), is_known, "{in_memory_max}");
            let is_lost =
                [GOOD, GONE, DAMAGED, BASED_ON_DAMAGED].map(|id| lost.contains(&repository, &id).unwrap());
            assert_eq!(is_lost, [false, true, true, true], "{in_memory_max}");
        }
    }

    #[test]
    fn no_more_is_remembered_than_fits() {
        let mut whole = Whole::up_to(2);
        whole.extend(vec![GOOD]);
        whole.extend(vec![DAMAGED]);
        assert!(whole.contains(&GOOD) && whole.contains(&DAMAGED));
        whole.extend(vec![GONE]);
        assert!(!whole.contains(&GOOD) && whole.contains(&GONE));
        whole.extend(vec![GOOD, GONE, DAMAGED]);
        assert_eq!(whole.chunks.len(), 2);
    }

    #[test]
    fn damaged_chunks_of_a_pack_are_looked_up_one_by_one() {
        let (_directory, repository, pack) = with_losses();
        let asked = |chunks: &[ChunkId]| {
            let found = repository.db.read(|db| is_any_damaged(db, pack, chunks));
            found.unwrap()
        };
        assert_eq!(repository.db.read(damaged_packs).unwrap(), BTreeSet::from([1]));
        assert!(asked(&[GOOD, DAMAGED]) && !asked(&[GOOD, GONE]) && !asked(&[]));
    }

    #[test]
    fn the_mark_of_a_new_catalog_counts_as_no_chunk() {
        let (_directory, repository, _) = with_losses();
        let counted = KnownLoss {
            in_no_pack: 1,
            damaged: 1,
            is_unexamined: false,
        };
        assert_eq!(repository.known_loss().unwrap(), counted);
        let marked = repository.db.write(|db| {
            db.execute(
                "INSERT INTO damaged VALUES (zeroblob(32), zeroblob(16), ?1)",
                [NOT_LOOKED],
            )?;
            Ok(())
        });
        marked.unwrap();
        let unexamined = KnownLoss {
            is_unexamined: true,
            ..counted
        };
        assert_eq!(repository.known_loss().unwrap(), unexamined);
        let lost = repository
            .db
            .read(|db| Lost::find(db, LOST_IN_MEMORY_MAX))
            .unwrap();
        assert!(!lost.is_nothing() && lost.contains(&repository, &GONE).unwrap());
    }
}
