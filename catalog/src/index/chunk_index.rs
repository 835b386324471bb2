//! Where chunks are: the store's [`ChunkIndex`] on the catalog's tables.
//!
//! A chunk may have several places. Which one is returned decides what may be removed later:
//!
//! - A place that is known to be damaged, or that holds a delta with a damaged base, ranks after all others and is
//!   never given to a writer. So a damaged chunk is stored again as soon as a writer brings it, and then the new copy
//!   is the one that stays.
//! - Readers get a whole frame before a delta, because a chunk that is the base of a delta must be found whole. They
//!   get a place in a pack that stays before one in a condemned pack.
//! - Writers get only places they may refer to from now on: in a pack that is not condemned and, for a delta, with a
//!   base that is whole and in such a pack, too. A dead delta can outlive its base: the sweep that condemned the base's
//!   pack found nothing that needed it.

use std::sync::Arc;

use barmanfs_store::{ChunkId, ChunkIndex, ChunkLocation, ClosedPack, Encoding, PackId};
use rusqlite::{Connection, Row, params};

use crate::error::{Error, Result};
use crate::home::presence::WriterName;
use crate::index::condemned::is_condemned;
use crate::index::db::Db;
use crate::index::records;
use crate::index::repository::Repository;
use crate::index::unread::Surveyor;

/// Number of rows a warm-up reads at most: some 300 MB of the index, the chunks of half a terabyte of windows, in a few
/// seconds.
const WARM_CHUNKS_MAX: usize = 4_000_000;

/// Rows of one warm-up query: some milliseconds.
const WARM_STEP: usize = 10_000;

/// The index as one user of the repository sees it.
#[derive(Debug)]
pub(crate) struct CatalogIndex {
    db: Arc<Db>,
    /// The writer of these packs; a sweep leaves them alone while it is at work.
    writer: Option<WriterName>,
    /// Finds missing chunks in packs that are not in the catalog. Only set for readers: a writer misses every new
    /// chunk.
    surveyor: Option<Arc<Surveyor>>,
}

/// One place of a chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The pack's row.
    pub(crate) pack: i64,
    pub(crate) condemned: bool,
    /// Known to be unreadable: its own frame is damaged, or, for a delta, every place where its base is whole.
    pub(crate) damaged: bool,
    pub(crate) location: ChunkLocation,
}

impl CatalogIndex {
    pub(crate) fn for_readers(db: Arc<Db>, surveyor: Arc<Surveyor>) -> Self {
        Self {
            db,
            writer: None,
            surveyor: Some(surveyor),
        }
    }

    pub(crate) fn for_writer(db: Arc<Db>, writer: WriterName) -> Self {
        Self {
            db,
            writer: Some(writer),
            surveyor: None,
        }
    }
}

impl ChunkIndex for CatalogIndex {
    fn locate(&self, id: &ChunkId) -> barmanfs_store::Result<Option<ChunkLocation>> {
        let best = |db: &Connection| best_location(db, id);
        match (self.db.read(best)?, &self.surveyor) {
            (None, Some(surveyor)) if surveyor.adopt()? => Ok(self.db.read(best)?),
            (found, _) => Ok(found),
        }
    }

    /// In one transaction, and without a search for packs that are not in the catalog.
    fn locate_all(&self, ids: &[ChunkId]) -> barmanfs_store::Result<Vec<ChunkLocation>> {
        let all = |db: &Connection| {
            let view = db.unchecked_transaction()?;
            let places = ids.iter().map(|id| best_location(&view, id));
            places.filter_map(Result::transpose).collect()
        };
        Ok(self.db.read(all)?)
    }

    fn places(&self, id: &ChunkId) -> barmanfs_store::Result<Vec<ChunkLocation>> {
        // If the catalog is from an earlier time, its packs may be gone, and what they held may be in others.
        if let Some(surveyor) = &self.surveyor {
            surveyor.adopt()?;
        }
        let places = self.db.read(|db| places(db, id))?;
        Ok(places.into_iter().map(|place| place.location).collect())
    }

    fn locate_reusable(&self, id: &ChunkId) -> barmanfs_store::Result<Option<ChunkLocation>> {
        let reusable = |db: &Connection| Ok(reusable_place(db, id)?.map(|place| place.location));
        Ok(self.db.read(reusable)?)
    }

    fn publish(&self, pack: &ClosedPack) -> barmanfs_store::Result<()> {
        let entered = self.db.write(|transaction| {
            let entered = records::enter(transaction, self.db.derive(), pack, self.writer.as_ref())?;
            // This process must be able to read what it wrote; if it cannot, nothing may be acknowledged.
            match entered.bad_records.into_iter().next() {
                Some(error) => Err(error),
                None => Ok(()),
            }
        });
        Ok(entered?)
    }
}

impl Repository {
    /// Reads the places of all chunks once, so that the first reads of a fresh mount do not wait for the index as well
    /// as for the data. This only improves speed; a catalog that is too large is read up to the limit.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn warm_index(&self) -> Result<()> {
        let mut after = Vec::new();
        let mut read = 0;
        while read < WARM_CHUNKS_MAX {
            // In steps: a query that runs for seconds would keep the catalog's WAL from being truncated.
            let last: Option<Vec<u8>> = self.db.read(|db| {
                let mut step = db.prepare_cached(
                    "SELECT max(id) FROM (SELECT id FROM chunks WHERE id > ?1 ORDER BY id LIMIT ?2)",
                )?;
                Ok(step.query_row(params![after, WARM_STEP], |row| row.get(0))?)
            })?;
            let Some(last) = last else { break };
            after = last;
            read += WARM_STEP;
        }
        Ok(())
    }
}

/// Whether a registered writer may refer again to everything that is referred to now: nothing is known to be damaged or
/// gone (a chunk that no pack holds is recorded with a pack of zeros), nothing is condemned, and whatever is condemned later waits for this writer ([`crate::index::condemned`]).
pub(crate) fn all_is_reusable(db: &Connection) -> Result<bool> {
    let mut exception = db.prepare_cached(concat!(
        "SELECT 1 FROM packs p WHERE ",
        is_condemned!("p"),
        " UNION ALL SELECT 1 FROM damaged d WHERE d.pack = zeroblob(16)
             OR EXISTS (SELECT 1 FROM packs p WHERE p.id = d.pack) LIMIT 1",
    ))?;
    Ok(!exception.exists([])?)
}

/// The best place for readers.
fn best_location(db: &Connection, id: &ChunkId) -> Result<Option<ChunkLocation>> {
    let mut best = None;
    each_place(db, id, |place| keep_better(&mut best, place))?;
    Ok(best.map(|place| place.location))
}

/// The place that writers may refer to.
pub(crate) fn reusable_place(db: &Connection, id: &ChunkId) -> Result<Option<Place>> {
    let mut best = None;
    each_place(db, id, |place| {
        if !place.condemned && !place.damaged {
            keep_better(&mut best, place);
        }
    })?;
    match best.and_then(|place| place.location.base) {
        Some(base) if whole_place(db, &base)?.is_none_or(|base| base.condemned) => Ok(None),
        _ => Ok(best),
    }
}

/// The place that a sweep keeps: the one that writers get or, if there is none, the best one.
pub(crate) fn kept_place(db: &Connection, id: &ChunkId) -> Result<Option<Place>> {
    if let Some(place) = reusable_place(db, id)? {
        return Ok(Some(place));
    }
    let mut best = None;
    each_place(db, id, |place| keep_better(&mut best, place))?;
    Ok(best)
}

/// All places, the best first.
pub(crate) fn places(db: &Connection, id: &ChunkId) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    each_place(db, id, |place| places.push(place))?;
    places.sort_by_key(rank);
    Ok(places)
}

/// The chunk's place in this pack.
pub(crate) fn place_in(db: &Connection, id: &ChunkId, pack: PackId) -> Result<Option<Place>> {
    let mut found = None;
    each_place(db, id, |place| {
        if place.location.pack == pack {
            found = Some(place);
        }
    })?;
    Ok(found)
}

/// The best place where the chunk is whole, as a delta's base has to be.
pub(crate) fn whole_place(db: &Connection, id: &ChunkId) -> Result<Option<Place>> {
    let mut best = None;
    each_place(db, id, |place| {
        if place.location.base.is_none() {
            keep_better(&mut best, place);
        }
    })?;
    Ok(best)
}

/// The order of places: readable before damaged, whole before delta, staying before condemned, then the oldest pack. So
/// the answer is the same each time.
fn rank(place: &Place) -> (bool, bool, bool, i64) {
    let is_delta = place.location.base.is_some();
    (place.damaged, is_delta, place.condemned, place.pack)
}

fn keep_better(best: &mut Option<Place>, place: Place) {
    if best.as_ref().is_none_or(|best| rank(&place) < rank(best)) {
        *best = Some(place);
    }
}

/// Calls `each` with all places of a chunk.
fn each_place(db: &Connection, id: &ChunkId, mut each: impl FnMut(Place)) -> Result<()> {
    let mut places = db.prepare_cached(concat!(
        "SELECT c.pack, p.id, ",
        is_condemned!("p"),
        ", c.position, c.stored_bytes, c.raw_bytes, c.encoding, c.base,
             CASE WHEN EXISTS (SELECT 1 FROM damaged d WHERE d.id = c.id AND d.pack = p.id) THEN 1
             WHEN c.base IS NULL OR NOT EXISTS (SELECT 1 FROM damaged d WHERE d.id = c.base) THEN 0
             ELSE NOT EXISTS (
                 SELECT 1 FROM chunks b CROSS JOIN packs q ON q.seq = b.pack WHERE b.id = c.base AND b.base IS NULL
                 AND NOT EXISTS (SELECT 1 FROM damaged d WHERE d.id = b.id AND d.pack = q.id)) END
         FROM chunks c CROSS JOIN packs p ON p.seq = c.pack WHERE c.id = ?1",
    ))?;
    let mut rows = places.query([id.as_bytes()])?;
    while let Some(row) = rows.next()? {
        each(place(row)?);
    }
    Ok(())
}

fn place(row: &Row<'_>) -> Result<Place> {
    let number: u8 = row.get(6)?;
    let encoding = Encoding::from_u8(number).ok_or_else(|| Error::CatalogDamaged {
        path: std::path::PathBuf::new(),
        reason: format!("Unknown encoding {number} of a chunk"),
    })?;
    let location = ChunkLocation {
        pack: PackId(row.get(1)?),
        offset: row.get(3)?,
        stored_bytes: row.get(4)?,
        raw_bytes: row.get(5)?,
        encoding,
        base: row.get::<_, Option<[u8; ChunkId::BYTES]>>(7)?.map(ChunkId),
    };
    Ok(Place {
        pack: row.get(0)?,
        condemned: row.get(2)?,
        damaged: row.get(8)?,
        location,
    })
}
