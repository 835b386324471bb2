//! The ids of chunks by their places, from the footers of packs.
//!
//! The catalog has shortened ids. Where it must be certain which chunk a place has, the pack's footer is read; the ids of the
//! packs that were read last stay in memory. SQL asks with the function `chunk_id(pack, offset)`, which each connection to
//! the catalog has. It gives NULL where the footer cannot be read, and no bytes where the pack's file is missing.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use barmanfs_store::sync::lock;
use barmanfs_store::{ChunkId, ClosedPack, Error as StoreError, PackId, PackStorage, read_footer};
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, params};

use crate::error::Result;

/// Ids that are kept: 18 MiB, those of a few hundred packs.
const KEPT_MAX: usize = 1 << 19;

/// The ids of the chunks in packs of a storage.
pub(crate) struct FooterIds {
    storage: Arc<dyn PackStorage>,
    kept: Mutex<Kept>,
}

/// What is known of the chunk at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdAt {
    /// Which one it is.
    Known(ChunkId),
    /// The footer cannot be read, or has no chunk there.
    Unknown,
    /// The pack's file is missing. Perhaps its file system is not mounted.
    PackMissing,
}

/// The chunks of a pack: where they begin in it, in this order, and their ids.
type Ids = Arc<[(u32, ChunkId)]>;

#[derive(Default)]
struct Kept {
    packs: HashMap<PackId, (u64, Ids)>,
    ids: usize,
    uses: u64,
}

impl FooterIds {
    pub(crate) fn of(storage: Arc<dyn PackStorage>) -> Self {
        Self {
            storage,
            kept: Mutex::default(),
        }
    }

    /// The id of the chunk that begins at an offset.
    fn get(&self, pack: PackId, offset: u32) -> IdAt {
        let known = lock(&self.kept).get(pack);
        let ids = match known {
            Some(ids) => ids,
            // No lock is held while it is read.
            None => match read_footer(self.storage.as_ref(), pack) {
                Ok(closed) => self.keep(&closed),
                Err(StoreError::MissingPack(_)) => return IdAt::PackMissing,
                Err(error) => {
                    tracing::debug!("It is not certain which chunks are in pack {pack}: {error}");
                    return IdAt::Unknown;
                }
            },
        };
        let found = ids.binary_search_by_key(&offset, |(begins, _)| *begins);
        match found.ok().and_then(|at| ids.get(at)) {
            Some((_, id)) => IdAt::Known(*id),
            None => IdAt::Unknown,
        }
    }

    /// Keeps the ids of a pack whose footer is known.
    pub(crate) fn keep(&self, pack: &ClosedPack) -> Ids {
        let ids: Ids = pack.chunks.iter().map(|chunk| (chunk.offset, chunk.id)).collect();
        lock(&self.kept).put(pack.id, Arc::clone(&ids));
        ids
    }

    /// Gives a connection the function.
    pub(crate) fn teach(self: &Arc<Self>, connection: &Connection) -> Result<()> {
        let ids = Arc::clone(self);
        teach(connection, move |pack, offset| ids.get(pack, offset))
    }
}

/// Gives a connection the function `chunk_id`.
pub(crate) fn teach(
    connection: &Connection,
    get: impl Fn(PackId, u32) -> IdAt + Send + 'static,
) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DIRECTONLY;
    connection.create_scalar_function("chunk_id", 2, flags, move |arguments| {
        Ok(match get(PackId(arguments.get(0)?), arguments.get(1)?) {
            IdAt::Known(id) => Some(id.0.to_vec()),
            IdAt::Unknown => None,
            IdAt::PackMissing => Some(Vec::new()),
        })
    })?;
    Ok(())
}

/// What the footer of a pack has at an offset.
pub(crate) fn ask(db: &Connection, pack: PackId, offset: u32) -> Result<IdAt> {
    let mut id = db.prepare_cached("SELECT chunk_id(?1, ?2)")?;
    let id: Option<Vec<u8>> = id.query_row(params![pack.as_bytes(), offset], |row| row.get(0))?;
    Ok(match id.map(<[u8; ChunkId::BYTES]>::try_from) {
        Some(Ok(id)) => IdAt::Known(ChunkId(id)),
        Some(Err(_)) => IdAt::PackMissing,
        None => IdAt::Unknown,
    })
}

impl Kept {
    fn get(&mut self, pack: PackId) -> Option<Ids> {
        self.uses += 1;
        let (used, ids) = self.packs.get_mut(&pack)?;
        *used = self.uses;
        Some(Arc::clone(ids))
    }

    fn put(&mut self, pack: PackId, ids: Ids) {
        self.uses += 1;
        self.ids += ids.len();
        if let Some((_, before)) = self.packs.insert(pack, (self.uses, ids)) {
            self.ids -= before.len();
        }
        while self.ids > KEPT_MAX && self.packs.len() > 1 {
            let oldest = self.packs.iter().min_by_key(|(_, (used, _))| *used);
            let Some(oldest) = oldest.map(|(pack, _)| *pack) else {
                break;
            };
            if let Some((_, ids)) = self.packs.remove(&oldest) {
                self.ids -= ids.len();
            }
        }
    }
}

impl fmt::Debug for FooterIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FooterIds").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packs_used_last_are_kept() {
        let mut kept = Kept::default();
        let ids = |number: u8| -> Ids { vec![(0, ChunkId([number; 32])); KEPT_MAX / 4].into() };
        for number in 0..4 {
            kept.put(PackId([number; 16]), ids(number));
        }
        assert!(kept.get(PackId([0; 16])).is_some());
        kept.put(PackId([4; 16]), ids(4));
        kept.put(PackId([4; 16]), ids(4));
        assert_eq!(kept.ids, KEPT_MAX);
        let is_kept = |kept: &mut Kept, number| kept.get(PackId([number; 16])).is_some();
        assert!(!is_kept(&mut kept, 1));
        for number in [0, 2, 3, 4] {
            assert!(is_kept(&mut kept, number), "{number}");
        }
    }
}
