//! Marking: which copy of which chunk is in use.
//!
//! First the ids that live records refer to are collected, then for each the copy that is to stay. That is the copy
//! a writer would get, so copies in condemned packs stay only if there is no other. For a delta that stays, a whole
//! copy of its base stays, too.

use barmanfs_store::{ChunkId, ChunkLocation, RecordId};
use rusqlite::{Connection, Rows, params};

use crate::archive::roots::{Root, Without, each_root};
use crate::error::{Error, Result};
use crate::index::chunk_index::{Place, kept_place, whole_place};
use crate::index::chunk_set::{ChunkSet, Met, Role, unusable};
use crate::index::repository::Repository;
use crate::monitor::{Monitor, Unit};

/// Number of chunks between two progress reports.
const TELL_EVERY: u64 = 4096;

/// Copies resolved in one go: bounds how long one read of the catalog lasts.
const BATCH: usize = 4096;

/// What is in use.
pub(super) struct Mark {
    set: ChunkSet,
    /// The catalog's generation before the first record was read.
    generation: u64,
    /// The clones at that time, which have no records.
    clones: Vec<RecordId>,
    /// The newest pack at that time: later ones were not examined.
    pub(super) newest_pack: i64,
    /// Chunks in use that no pack holds.
    pub(super) missing_chunks: u64,
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
        let set = ChunkSet::new()?;
        set.db
            .execute_batch(
                "CREATE TABLE bases (id BLOB NOT NULL PRIMARY KEY) WITHOUT ROWID;
                 CREATE TABLE kept (pack INTEGER, position INTEGER, id BLOB, stored_bytes INTEGER,
                     PRIMARY KEY (pack, position)) WITHOUT ROWID;",
            )
            .map_err(unusable)?;
        let mut mark = Self {
            set,
            generation,
            clones,
            newest_pack,
            missing_chunks: 0,
        };
        mark.meet_all(repository, without, monitor)?;
        mark.resolve(repository, Wanted::Chunks)?;
        mark.resolve(repository, Wanted::Bases)?;
        Ok(mark)
    }

    /// Whether neither a record nor a clone was added since.
    pub(super) fn is_current(&self, repository: &Repository) -> Result<bool> {
        Ok(repository.generation()? == self.generation && clone_ids(repository)? == self.clones)
    }

    fn meet_all(
        &self,
        repository: &Repository,
        without: Option<&Without>,
        monitor: &mut dyn Monitor,
    ) -> Result<()> {
        let trees = repository.trees();
        let mut met = 0;
        each_root(repository, without, &mut |what, root| {
            let mut each = |id: ChunkId, role| {
                met += 1;
                if met % TELL_EVERY == 0 {
                    monitor.progress(met, None, Unit::Chunks);
                }
                Ok(self.set.meet(&id, Role::Tree(role))? != Met::Before)
            };
            let visited = match root {
                Root::Tree(directory) => trees.chunks_of(directory, &mut each),
                Root::File(map) => trees.chunks_of_file(map, &mut each),
            };
            visited.map_err(|error| unknown(what, &Error::from(error)))
        })
    }

    /// Finds the copies to keep: first of everything met, then, as whole chunks, of the bases of what is kept.
    fn resolve(&mut self, repository: &Repository, wanted: Wanted) -> Result<()> {
        let mut all = self.set.db.prepare(wanted.ids()).map_err(unusable)?;
        let mut ids = all.query([]).map_err(unusable)?;
        let mut missing = 0;
        loop {
            let batch = next_batch(&mut ids).map_err(unusable)?;
            if batch.is_empty() {
                break;
            }
            missing += repository.db.read(|db| {
                let mut missing = 0;
                for id in &batch {
                    match place_to_keep(db, id, wanted)? {
                        Some(place) => self.keep(id, &place).map_err(unusable)?,
                        None => missing += 1,
                    }
                }
                Ok(missing)
            })?;
        }
        drop(ids);
        drop(all);
        self.missing_chunks += missing;
        Ok(())
    }

    fn keep(&self, id: &ChunkId, place: &Place) -> rusqlite::Result<()> {
        let ChunkLocation {
            offset,
            stored_bytes,
            base,
            ..
        } = place.location;
        self.set
            .db
            .prepare_cached(
                "INSERT OR IGNORE INTO kept (pack, position, id, stored_bytes) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![place.pack, offset, id.as_bytes(), stored_bytes])?;
        if let Some(base) = base {
            let mut add = self
                .set
                .db
                .prepare_cached("INSERT OR IGNORE INTO bases (id) VALUES (?1)")?;
            add.execute([base.as_bytes()])?;
        }
        Ok(())
    }

    /// Whether a chunk is in use, be it as the base of a delta.
    pub(super) fn uses(&self, id: &ChunkId) -> Result<bool> {
        self.set
            .db
            .prepare_cached("SELECT 1 FROM met WHERE id = ?1 UNION ALL SELECT 1 FROM bases WHERE id = ?1")
            .and_then(|mut met| met.exists([id.as_bytes()]))
            .map_err(unusable)
    }

    /// What is in use in a pack.
    pub(super) fn in_use(&self, pack: i64) -> Result<InUse> {
        self.set
            .db
            .prepare_cached("SELECT count(*), coalesce(sum(stored_bytes), 0) FROM kept WHERE pack = ?1")
            .and_then(|mut sum| {
                sum.query_row([pack], |row| {
                    Ok(InUse {
                        chunks: row.get(0)?,
                        stored_bytes: row.get(1)?,
                    })
                })
            })
            .map_err(unusable)
    }

    /// The chunks in use in a pack, in the order of their positions; their number is limited.
    pub(super) fn chunks_in(&self, pack: i64) -> Result<Vec<ChunkId>> {
        self.set
            .db
            .prepare_cached("SELECT id FROM kept WHERE pack = ?1 ORDER BY position")
            .and_then(|mut all| all.query_map([pack], |row| Ok(ChunkId(row.get(0)?)))?.collect())
            .map_err(unusable)
    }
}

/// Which copies to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Copies of what records refer to.
    Chunks,
    /// Copies of the bases of deltas.
    Bases,
}

impl Wanted {
    /// Sorted like the catalog's table: look-ups then go through it once from front to back.
    fn ids(self) -> &'static str {
        match self {
            Self::Chunks => "SELECT id FROM met ORDER BY id",
            Self::Bases => "SELECT id FROM bases ORDER BY id",
        }
    }
}

fn next_batch(ids: &mut Rows<'_>) -> rusqlite::Result<Vec<ChunkId>> {
    let mut batch = Vec::with_capacity(BATCH);
    while batch.len() < BATCH
        && let Some(row) = ids.next()?
    {
        batch.push(ChunkId(row.get(0)?));
    }
    Ok(batch)
}

fn place_to_keep(db: &Connection, id: &ChunkId, wanted: Wanted) -> Result<Option<Place>> {
    match wanted {
        Wanted::Chunks => kept_place(db, id),
        Wanted::Bases => whole_place(db, id),
    }
}

/// The error when it is unknown what is in use: nothing may be freed.
fn unknown(what: &str, error: &Error) -> Error {
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
