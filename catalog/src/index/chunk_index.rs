//! Where chunks are: the store's [`ChunkIndex`] on the catalog's tables.
//!
//! The catalog finds places by shortened ids ([`runs`]), and knows sizes, encodings and bases of what is there
//! ([`chunk_lists`]). Which chunk that is, the pack's footer says
//! ([`footer_ids`](crate::index::footer_ids)). It is read where a mistake would lose data: before a writer refers to a place,
//! and where a shortened id has several places. A single place is given to readers as it is: they check what they
//! decode. That of a chunk that no pack holds may then be one of another chunk, with a probability of 2^-35 where there are
//! 500 million.
//!
//! A chunk may have several places. Which one is returned decides what may be removed later:
//!
//! - A place that is known to be damaged, or that holds a delta with a damaged base, ranks after all others and is
//!   never given to a writer. So a damaged chunk is stored again as soon as a writer brings it, and then the new copy
//!   is the one that stays.
//! - Readers get a whole frame before a delta, because a chunk that is the base of a delta must be found whole. They
//!   get a place in a pack that stays before one in a condemned pack.
//! - Writers get only places of which it is certain that they have the chunk, and that they may refer to from now on: in
//!   a pack that is not condemned and, for a delta, with a base that is whole and in such a pack, too. A dead delta can
//!   outlive its base: the sweep that condemned the base's pack found nothing that needed it. If the file of a pack is
//!   missing that may have the chunk, a writer gets an error: what it refers to would be lost with that file, and when its
//!   file system is mounted again, all would be stored twice.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use barmanfs_store::{ChunkId, ChunkIndex, ChunkLocation, ClosedPack, PackId};
use rusqlite::{Connection, params};

use crate::error::Result;
use crate::home::presence::WriterName;
use crate::index::chunk_lists;
use crate::index::condemned::is_condemned;
use crate::index::db::Db;
use crate::index::footer_ids::{self, IdAt};
use crate::index::records;
use crate::index::repository::Repository;
use crate::index::runs::{self, Candidate, Key};
use crate::index::unread::Surveyor;

#[cfg(test)]
mod tests;

/// Number of pages a warm-up reads at most: 300 MB of the index, the chunks of two terabytes of windows, in a few seconds.
const WARM_PAGES_MAX: usize = 75_000;

/// Pages of one warm-up query: some milliseconds.
const WARM_STEP: usize = 250;

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
        let best = |db: &Connection| location_to_read(db, id);
        match (self.db.read(best)?, &self.surveyor) {
            (None, Some(surveyor)) if surveyor.adopt_all()? => Ok(self.db.read(best)?),
            (found, _) => Ok(found),
        }
    }

    /// In one transaction, and without a search for packs that are not in the catalog.
    fn locate_all(&self, ids: &[ChunkId]) -> barmanfs_store::Result<Vec<ChunkLocation>> {
        let all = |db: &Connection| {
            let view = db.unchecked_transaction()?;
            let places = ids.iter().map(|id| location_to_read(&view, id));
            places.filter_map(Result::transpose).collect()
        };
        Ok(self.db.read(all)?)
    }

    fn places(&self, id: &ChunkId) -> barmanfs_store::Result<Vec<ChunkLocation>> {
        // If the catalog is from an earlier time, its packs may be gone, and what they held may be in others.
        if let Some(surveyor) = &self.surveyor {
            surveyor.adopt_all()?;
        }
        let places = self.db.read(|db| places(db, id))?;
        Ok(places.into_iter().map(|place| place.location).collect())
    }

    fn locate_reusable(&self, id: &ChunkId) -> barmanfs_store::Result<Option<ChunkLocation>> {
        let reusable = |db: &Connection| Ok(proven_place(db, id)?.map(|place| place.location));
        Ok(self.db.read(reusable)?)
    }

    fn publish(&self, pack: &ClosedPack) -> barmanfs_store::Result<()> {
        let entered = self.db.write(|transaction| {
            let entered = records::enter(transaction, self.db.derive(), pack, self.writer.as_ref())?;
            self.db.ids().keep(pack);
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
        let mut left = WARM_PAGES_MAX;
        for pages in [
            "SELECT first, entries FROM run_pages WHERE first > ?1 ORDER BY first LIMIT ?2",
            "SELECT first, list FROM chunk_lists WHERE first > ?1 ORDER BY first LIMIT ?2",
        ] {
            let mut after = i64::MIN;
            while left > 0 {
                // In steps: a query that runs for seconds would keep the catalog's WAL from being truncated.
                let read = self.db.read(|db| {
                    let mut step = db.prepare_cached(pages)?;
                    let mut rows = step.query(params![after, left.min(WARM_STEP)])?;
                    let mut read = 0;
                    while let Some(row) = rows.next()? {
                        after = row.get(0)?;
                        read += 1;
                    }
                    Ok(read)
                })?;
                if read == 0 {
                    break;
                }
                left -= read;
            }
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

fn location_to_read(db: &Connection, id: &ChunkId) -> Result<Option<ChunkLocation>> {
    Ok(place_to_read(db, id)?.map(|place| place.location))
}

/// The place that readers try first. The first good one will do, without a look at all others.
fn place_to_read(db: &Connection, id: &ChunkId) -> Result<Option<Place>> {
    let mut good = None;
    let found = Found::all(db, id, |place| {
        let is_good = !place.damaged && !place.condemned && place.location.base.is_none();
        good = is_good.then_some(*place);
        is_good
    })?;
    match good {
        Some(place) => Ok(Some(place)),
        None => Ok(best(found.likely(db, id)?)),
    }
}

/// The place that writers may refer to, if it is certain that it has this chunk.
///
/// # Errors
/// `MissingPack` when the only packs that may have it have no file.
pub(crate) fn proven_place(db: &Connection, id: &ChunkId) -> Result<Option<Place>> {
    let mut places = reusable_places(db, id)?;
    places.sort_by_key(rank);
    first_with_base(&places, |base| Ok(proven_whole_place(db, base)?.is_some()))
}

/// The same for a chunk that is to be the base of a delta: it must be whole.
pub(crate) fn proven_whole_place(db: &Connection, id: &ChunkId) -> Result<Option<Place>> {
    let places = reusable_places(db, id)?.into_iter();
    Ok(best(places.filter(|place| place.location.base.is_none())))
}

fn reusable_places(db: &Connection, id: &ChunkId) -> Result<Vec<Place>> {
    Found::all(db, id, |_| false)?.retain(is_reusable).proven(db, id)
}

fn is_reusable(place: &Place) -> bool {
    !place.condemned && !place.damaged
}

/// The place that a sweep keeps: the one that writers get or, if there is none, the best one. A delta without its base can
/// never be read. A killed writer leaves both, a sweep finds that nothing needs the base, and the delta's pack stays because of
/// something else in it. So such a place is only kept if there is no other.
pub(crate) fn kept_place(db: &Connection, id: &ChunkId) -> Result<Option<Place>> {
    let mut likely = Found::all(db, id, |_| false)?.likely(db, id)?;
    likely.sort_by_key(rank);
    let of_writers = first_with_base(likely.iter().filter(|place| is_reusable(place)), |base| {
        Ok(whole_place(db, base)?.is_some_and(|base| !base.condemned))
    })?;
    if of_writers.is_some() {
        return Ok(of_writers);
    }
    let readable = first_with_base(&likely, |base| Ok(whole_place(db, base)?.is_some()))?;
    Ok(readable.or(likely.first().copied()))
}

/// The first place that needs no base, or whose base `is_there`.
fn first_with_base<'p>(
    places: impl IntoIterator<Item = &'p Place>,
    is_there: impl Fn(&ChunkId) -> Result<bool>,
) -> Result<Option<Place>> {
    for place in places {
        match place.location.base {
            Some(base) if !is_there(&base)? => {}
            _ => return Ok(Some(*place)),
        }
    }
    Ok(None)
}

/// All places, the best first.
pub(crate) fn places(db: &Connection, id: &ChunkId) -> Result<Vec<Place>> {
    let mut sorted = Found::all(db, id, |_| false)?.sorted(db, id)?;
    sorted.proven.sort_by_key(rank);
    sorted.uncertain.sort_by_key(rank);
    sorted.proven.append(&mut sorted.uncertain);
    Ok(sorted.proven)
}

/// The chunk's place in this pack.
pub(crate) fn place_in(db: &Connection, id: &ChunkId, pack: PackId) -> Result<Option<Place>> {
    let found = Found::all(db, id, |_| false)?.retain(|place| place.location.pack == pack);
    Ok(best(found.likely(db, id)?))
}

/// The best place where the chunk is whole, as a delta's base has to be.
pub(crate) fn whole_place(db: &Connection, id: &ChunkId) -> Result<Option<Place>> {
    let likely = Found::all(db, id, |_| false)?.likely(db, id)?;
    Ok(best(
        likely.into_iter().filter(|place| place.location.base.is_none()),
    ))
}

/// Calls `each` with the deltas that have one of these bases, until it returns false; with `None` for one whose id is not
/// known, because the footer of its pack cannot be read. Reads what is listed of all packs. Returns whether it came to the end.
pub(crate) fn each_based_on(
    db: &Connection,
    bases: &HashSet<ChunkId>,
    each: &mut dyn FnMut(Option<ChunkId>) -> Result<bool>,
) -> Result<bool> {
    let mut lists = db.prepare_cached(
        "SELECT p.id, l.list FROM chunk_lists l CROSS JOIN packs p ON p.seq = l.first >> 16 ORDER BY l.first",
    )?;
    let mut rows = lists.query([])?;
    while let Some(row) = rows.next()? {
        let pack = PackId(row.get(0)?);
        for chunk in chunk_lists::each(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?) {
            let location = chunk?.location(pack);
            if location.base.is_some_and(|base| bases.contains(&base)) {
                let id = match footer_ids::ask(db, pack, location.offset)? {
                    IdAt::Known(id) => Some(id),
                    IdAt::Unknown | IdAt::PackMissing => None,
                };
                if !each(id)? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// The order of places: readable before damaged, whole before delta, staying before condemned, then the oldest pack. So
/// the answer is the same each time.
fn rank(place: &Place) -> (bool, bool, bool, i64, u32) {
    let is_delta = place.location.base.is_some();
    (
        place.damaged,
        is_delta,
        place.condemned,
        place.pack,
        place.location.offset,
    )
}

fn best(places: impl IntoIterator<Item = Place>) -> Option<Place> {
    places.into_iter().min_by_key(rank)
}

/// The places that a shortened id has.
struct Found {
    places: Vec<Place>,
}

impl Found {
    /// Looks for them, until `stop` returns true for one.
    fn all(db: &Connection, id: &ChunkId, mut stop: impl FnMut(&Place) -> bool) -> Result<Self> {
        Self::listed(db, id, |place| {
            place.damaged = is_damaged(db, id, place)?;
            Ok(stop(place))
        })
    }

    fn listed(
        db: &Connection,
        id: &ChunkId,
        mut stop: impl FnMut(&mut Place) -> Result<bool>,
    ) -> Result<Self> {
        let mut places: Vec<Place> = Vec::new();
        runs::candidates(db, Key::from(id), &mut |candidate| {
            if let Some(mut place) = place(db, candidate)?
                && !places.iter().any(|known| is_same(known, &place))
            {
                let is_enough = stop(&mut place)?;
                places.push(place);
                if is_enough {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Self { places })
    }

    fn retain(mut self, keep: impl FnMut(&Place) -> bool) -> Self {
        self.places.retain(keep);
        self
    }

    /// Those that have this chunk. A place that is the only one is believed without a look: whatever is read there is checked
    /// against the id. Of several, other chunks are left out, and those that are not certain where others are.
    fn likely(self, db: &Connection, id: &ChunkId) -> Result<Vec<Place>> {
        let sorted = self.sorted(db, id)?;
        Ok(match sorted.proven.is_empty() {
            true => sorted.uncertain,
            false => sorted.proven,
        })
    }

    /// Those that have this chunk, and those that may have it. The only one is believed.
    fn sorted(self, db: &Connection, id: &ChunkId) -> Result<Sorted> {
        let mut sorted = Sorted::default();
        if self.places.len() < 2 {
            sorted.uncertain = self.places;
            return Ok(sorted);
        }
        for place in self.places {
            match footer_ids::ask(db, place.location.pack, place.location.offset)? {
                IdAt::Known(found) if found == *id => sorted.proven.push(place),
                IdAt::Known(_) => {}
                IdAt::Unknown | IdAt::PackMissing => sorted.uncertain.push(place),
            }
        }
        Ok(sorted)
    }

    /// Those of which it is certain; an error if there are none because the file of a pack is missing.
    fn proven(self, db: &Connection, id: &ChunkId) -> Result<Vec<Place>> {
        let mut proven = Vec::new();
        let mut missing = None;
        for place in self.places {
            let pack = place.location.pack;
            match footer_ids::ask(db, pack, place.location.offset)? {
                IdAt::Known(found) if found == *id => proven.push(place),
                IdAt::Known(_) | IdAt::Unknown => {}
                IdAt::PackMissing => missing = Some(pack),
            }
        }
        match missing {
            Some(pack) if proven.is_empty() => Err(barmanfs_store::Error::MissingPack(pack).into()),
            _ => Ok(proven),
        }
    }
}

/// Places of a shortened id, by what is known of the chunk there.
#[derive(Default)]
struct Sorted {
    /// It is the one that is looked for.
    proven: Vec<Place>,
    /// It may be the one.
    uncertain: Vec<Place>,
}

fn is_same(place: &Place, other: &Place) -> bool {
    (place.pack, place.location.offset) == (other.pack, other.location.offset)
}

/// What is listed at a candidate's place; nothing if its pack is gone.
fn place(db: &Connection, candidate: Candidate) -> Result<Option<Place>> {
    let mut listed = db.prepare_cached(concat!(
        "SELECT p.id, ",
        is_condemned!("p"),
        ", l.first, l.list FROM packs p CROSS JOIN chunk_lists l WHERE p.seq = ?1
         AND l.first = (SELECT max(m.first) FROM chunk_lists m WHERE m.first BETWEEN ?2 AND ?3)",
    ))?;
    let Candidate { pack, number } = candidate;
    let (first, key) = (chunk_lists::key(pack, 0), chunk_lists::key(pack, number));
    let mut rows = listed.query(params![pack, first, key])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let position = usize::from(number - chunk_lists::of_key(row.get(2)?).1);
    let list = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
    let Some(chunk) = chunk_lists::at(list, position)? else {
        return Ok(None);
    };
    Ok(Some(Place {
        pack,
        condemned: row.get(1)?,
        damaged: false,
        location: chunk.location(PackId(row.get(0)?)),
    }))
}

/// Whether a chunk is known to be unreadable at a place: damaged there, or a delta whose base is damaged wherever it is whole.
fn is_damaged(db: &Connection, id: &ChunkId, place: &Place) -> Result<bool> {
    if is_damaged_in(db, id, place.location.pack)? {
        return Ok(true);
    }
    let Some(base) = place.location.base else {
        return Ok(false);
    };
    let mut anywhere = db.prepare_cached("SELECT 1 FROM damaged WHERE id = ?1")?;
    if !anywhere.exists([base.as_bytes()])? {
        return Ok(false);
    }
    for place in Found::listed(db, &base, |_| Ok(false))?.likely(db, &base)? {
        if place.location.base.is_none() && !is_damaged_in(db, &base, place.location.pack)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_damaged_in(db: &Connection, id: &ChunkId, pack: PackId) -> Result<bool> {
    let mut damaged = db.prepare_cached("SELECT 1 FROM damaged WHERE id = ?1 AND pack = ?2")?;
    Ok(damaged.exists([id.as_bytes(), pack.as_bytes().as_slice()])?)
}
