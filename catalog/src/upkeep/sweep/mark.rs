//! Marking: which copy of which chunk is in use.
//!
//! First the ids that live records refer to are collected, then for each the copy that is to stay. That is the copy
//! a writer would get, so copies in condemned packs stay only if there is no other. For a delta that stays, a whole
//! copy of its base stays, too.
//!
//! A backup is walked through beside the one before of the same server ([`TreeReader::chunks_beside`]): equal parts of their
//! listings and maps are met once, and of the others only the rows that differ. The pages and pieces met so far are in a
//! [`ChunkSet`], and all ids are in files that are sorted as they are read ([`sorted`](crate::index::sorted)), so memory is
//! bounded whatever the size of the repository. Maps are read, and copies are looked up, on all cores.
//!
//! [`TreeReader::chunks_beside`]: barmanfs_store::TreeReader::chunks_beside

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use barmanfs_store::{ChunkId, ChunkLocation, DirectoryRef, RecordId, TreeReader};
use rusqlite::Connection;

use crate::archive::roots::{Root, Series, Without, each_root};
use crate::error::{Error, Result};
use crate::index::chunk_index::{Place, kept_place, whole_place};
use crate::index::chunk_set::{ChunkSet, Met, Role};
use crate::index::repository::Repository;
use crate::index::sorted::{Collector, Merged, Sorted};
use crate::monitor::{Monitor, Unit};

/// Number of pages and pieces between two progress reports.
const TELL_EVERY: u64 = 64;

/// Copies resolved in one go: bounds how long one read of the catalog lasts.
const BATCH: usize = 4096;

/// Bytes of a kept copy: pack, position, stored bytes, id. Sorted by pack and position.
const COPY_BYTES: usize = 8 + 4 + 4 + ChunkId::BYTES;

type Ids = Sorted<{ ChunkId::BYTES }>;

/// What is in use.
pub(super) struct Mark {
    /// The catalog's generation before the first record was read.
    generation: u64,
    /// The clones at that time, which have no records.
    clones: Vec<RecordId>,
    /// The newest pack at that time: later ones were not examined.
    pub(super) newest_pack: i64,
    /// Chunks in use that no pack holds.
    pub(super) missing_chunks: u64,
    /// What records refer to.
    met: Ids,
    /// The bases of the deltas that are kept.
    bases: Ids,
    kept: Sorted<COPY_BYTES>,
    /// What is in use in each pack, by the packs' rows. A row takes 24 bytes: a million of them is 64 TB of packs.
    in_use: Vec<(i64, InUse)>,
}

/// What is in use in one pack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct InUse {
    pub(super) chunks: u64,
    pub(super) stored_bytes: u64,
}

impl Mark {
    /// Makes a mark. Everything that a record now in the catalog refers to will be found in use.
    pub(super) fn make(repository: &Repository, monitor: &mut dyn Monitor) -> Result<Self> {
        Self::make_without(repository, None, monitor)
    }

    /// The same as if something had been deleted before.
    pub(super) fn make_without(
        repository: &Repository,
        without: Option<&Without>,
        monitor: &mut dyn Monitor,
    ) -> Result<Self> {
        let generation = repository.generation()?;
        let clones = clone_ids(repository)?;
        let newest_pack = repository
            .db
            .read(|db| Ok(db.query_row("SELECT coalesce(max(seq), 0) FROM packs", [], |row| row.get(0))?))?;
        let met = meet_all(repository, without, monitor)?;
        let copies = Copies {
            repository,
            kept: Collector::new(),
            bases: Collector::new(),
        };
        let missing = copies.keep_all(&met, Wanted::Chunks)?;
        let Copies { kept, bases, .. } = copies;
        let bases = bases.finish();
        let copies = Copies {
            repository,
            kept,
            bases: Collector::new(),
        };
        let missing_bases = copies.keep_all(&bases, Wanted::Bases)?;
        let kept = copies.kept.finish();
        Ok(Self {
            generation,
            clones,
            newest_pack,
            missing_chunks: missing + missing_bases,
            met,
            bases,
            in_use: count(&kept)?,
            kept,
        })
    }

    /// Whether neither a record nor a clone was added since.
    pub(super) fn is_current(&self, repository: &Repository) -> Result<bool> {
        Ok(repository.generation()? == self.generation && clone_ids(repository)? == self.clones)
    }

    /// Whether a chunk is in use, be it as the base of a delta.
    pub(super) fn uses(&self, id: &ChunkId) -> Result<bool> {
        Ok(self.met.contains(id.as_bytes())? || self.bases.contains(id.as_bytes())?)
    }

    /// What is in use in a pack.
    pub(super) fn in_use(&self, pack: i64) -> InUse {
        let found = self.in_use.binary_search_by_key(&pack, |(pack, _)| *pack);
        let in_use = found.ok().and_then(|at| self.in_use.get(at));
        in_use.map_or_else(InUse::default, |(_, in_use)| *in_use)
    }

    /// The chunks in use in a pack, in the order of their positions; their number is limited.
    pub(super) fn chunks_in(&self, pack: i64) -> Result<Vec<ChunkId>> {
        let (low, high) = (Copy::before_all_of(pack), Copy::before_all_of(pack + 1));
        let mut copies = self.kept.range(&low, Some(&high))?;
        let mut chunks = Vec::new();
        while let Some(copy) = copies.next()? {
            chunks.push(Copy::of(&copy).id);
        }
        Ok(chunks)
    }
}

/// Collects the ids of all that records refer to.
fn meet_all(repository: &Repository, without: Option<&Without>, monitor: &mut dyn Monitor) -> Result<Ids> {
    let trees = repository.trees();
    let ids = Collector::new();
    let mut walk = Walk {
        trees: &trees,
        visited: ChunkSet::new()?,
        ids: &ids,
        entered: 0,
        windows: AtomicU64::new(0),
        before: HashMap::new(),
    };
    each_root(repository, without, &mut |what, root| {
        let visited = match root {
            Root::Tree { directory, series } => walk.tree(directory, series, monitor),
            Root::File(map) => walk.trees.chunks_of_file(map, &mut |id, role| {
                walk.ids.add([id.0])?;
                Ok(role.is_window() || walk.visited.meet(&id, Role::Tree(role))? != Met::Before)
            }),
        };
        visited.map_err(|error| unknown(what, &Error::from(error)))
    })?;
    Ok(ids.finish())
}

/// A walk through all trees.
struct Walk<'a> {
    trees: &'a TreeReader,
    /// Pages of listings and pieces of maps.
    visited: ChunkSet,
    ids: &'a Collector<{ ChunkId::BYTES }>,
    entered: u64,
    windows: AtomicU64,
    /// The last tree of each series.
    before: HashMap<Series, DirectoryRef>,
}

impl Walk<'_> {
    fn tree(
        &mut self,
        directory: &DirectoryRef,
        series: &Series,
        monitor: &mut dyn Monitor,
    ) -> barmanfs_store::Result<()> {
        let before = self.before.insert(series.clone(), directory.clone());
        let (visited, ids, entered, windows) = (&self.visited, self.ids, &mut self.entered, &self.windows);
        let mut enter = |id: ChunkId, role| {
            *entered += 1;
            if entered.is_multiple_of(TELL_EVERY) {
                monitor.progress(*entered + windows.load(Ordering::Relaxed), None, Unit::Chunks);
            }
            let is_first = visited.meet(&id, Role::Tree(role))? != Met::Before;
            if is_first {
                ids.add([id.0])?;
            }
            Ok(is_first)
        };
        self.trees
            .chunks_beside(directory, before.as_ref(), &mut enter, &|found| {
                windows.fetch_add(found.len() as u64, Ordering::Relaxed);
                Ok(ids.add(found.iter().map(|id| id.0))?)
            })
    }
}

/// The copies that are kept.
struct Copies<'a> {
    repository: &'a Repository,
    kept: Collector<COPY_BYTES>,
    /// The bases of deltas among them.
    bases: Collector<{ ChunkId::BYTES }>,
}

impl Copies<'_> {
    /// Finds the copies to keep: of everything met or, as whole chunks, of the bases of what is kept. Returns of how many
    /// there is none.
    fn keep_all(&self, ids: &Ids, wanted: Wanted) -> Result<u64> {
        let is_shared = self.repository.db.is_shared();
        let missing = ids.in_parts(is_shared, |part| self.keep(part, wanted))?;
        Ok(missing.into_iter().sum())
    }

    fn keep(&self, mut ids: Merged<'_, { ChunkId::BYTES }>, wanted: Wanted) -> Result<u64> {
        let mut missing = 0;
        loop {
            let batch = ids.next_batch(BATCH)?;
            if batch.is_empty() {
                return Ok(missing);
            }
            let mut copies = Vec::with_capacity(batch.len());
            let mut bases = Vec::new();
            self.repository.db.read(|db| {
                for id in batch.iter().copied().map(ChunkId) {
                    let Some(place) = place_to_keep(db, &id, wanted)? else {
                        missing += 1;
                        continue;
                    };
                    bases.extend(place.location.base.map(|base| base.0));
                    copies.push(Copy::at(id, &place).to_bytes());
                }
                Ok(())
            })?;
            self.kept.add(copies)?;
            self.bases.add(bases)?;
        }
    }
}

/// A kept copy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Copy {
    pack: i64,
    position: u32,
    stored_bytes: u32,
    id: ChunkId,
}

impl Copy {
    fn at(id: ChunkId, place: &Place) -> Self {
        let ChunkLocation {
            offset, stored_bytes, ..
        } = place.location;
        Self {
            pack: place.pack,
            position: offset,
            stored_bytes,
            id,
        }
    }

    /// Rows of packs are never negative, so these bytes sort like pack and position.
    fn to_bytes(&self) -> [u8; COPY_BYTES] {
        let fields = self.pack.to_be_bytes().into_iter();
        let fields = fields.chain(self.position.to_be_bytes());
        let fields = fields.chain(self.stored_bytes.to_be_bytes()).chain(self.id.0);
        let mut bytes = [0; COPY_BYTES];
        bytes
            .iter_mut()
            .zip(fields)
            .for_each(|(byte, field)| *byte = field);
        bytes
    }

    fn of(bytes: &[u8; COPY_BYTES]) -> Self {
        let (pack, rest) = bytes.split_at(8);
        let (position, rest) = rest.split_at(4);
        let (stored_bytes, id) = rest.split_at(4);
        Self {
            pack: i64::from_be_bytes(array(pack)),
            position: u32::from_be_bytes(array(position)),
            stored_bytes: u32::from_be_bytes(array(stored_bytes)),
            id: ChunkId(array(id)),
        }
    }

    /// Sorts before all copies in this pack and behind those in the packs before.
    fn before_all_of(pack: i64) -> [u8; COPY_BYTES] {
        let mut bytes = [0; COPY_BYTES];
        bytes
            .iter_mut()
            .zip(pack.to_be_bytes())
            .for_each(|(byte, field)| *byte = field);
        bytes
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    array
}

/// Adds up what is kept in each pack.
fn count(kept: &Sorted<COPY_BYTES>) -> Result<Vec<(i64, InUse)>> {
    let mut packs: Vec<(i64, InUse)> = Vec::new();
    let mut copies = kept.all()?;
    while let Some(copy) = copies.next()? {
        let copy = Copy::of(&copy);
        if packs.last().is_none_or(|(pack, _)| *pack != copy.pack) {
            packs.push((copy.pack, InUse::default()));
        }
        if let Some((_, in_use)) = packs.last_mut() {
            in_use.chunks += 1;
            in_use.stored_bytes += u64::from(copy.stored_bytes);
        }
    }
    Ok(packs)
}

/// Which copies to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Copies of what records refer to.
    Chunks,
    /// Copies of the bases of deltas.
    Bases,
}

fn place_to_keep(db: &Connection, id: &ChunkId, wanted: Wanted) -> Result<Option<Place>> {
    match wanted {
        Wanted::Chunks => kept_place(db, id),
        Wanted::Bases => whole_place(db, id),
    }
}

/// The error when it is unknown what is in use: nothing may be freed.
fn unknown(what: &str, error: &Error) -> Error {
    // Nothing is missing then, and nothing to be repaired.
    if let Error::Store(refused @ barmanfs_store::Error::NoThread(_)) = error {
        return Error::Store(refused.clone());
    }
    Error::Invalid(format!(
        "Cannot tell what {what} uses, so nothing is freed: {error}; put back what is missing, or run 'barmanfs verify' and \
         then a full backup, which stores again what the server still has; what cannot be restored after that, delete"
    ))
}

impl std::fmt::Debug for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mark")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

fn clone_ids(repository: &Repository) -> Result<Vec<RecordId>> {
    let clones = repository.all_clones()?;
    Ok(clones.into_iter().map(|clone| clone.id).collect())
}

#[cfg(test)]
mod tests;
