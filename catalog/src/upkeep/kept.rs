//! Which copy of a chunk stays.
//!
//! A delta may outlive its base: a killed writer leaves both, a sweep finds that nothing needs the base, and the delta's pack stays
//! because of something else in it. When a writer brings the chunk again, perhaps as a delta against another base, there are two
//! copies, and the older one can never be read. So a copy whose base is in no pack comes after all others.

use barmanfs_store::ChunkId;
use rusqlite::Connection;

use crate::error::Result;
use crate::index::chunk_index::{self, Place, places, whole_place};

/// The copy that writers get or, if there is none, the best one that can be read by what is known.
pub(crate) fn kept_place(db: &Connection, id: &ChunkId) -> Result<Option<Place>> {
    let Some(best) = chunk_index::kept_place(db, id)? else {
        return Ok(None);
    };
    if has_base(db, &best)? {
        return Ok(Some(best));
    }
    for place in places(db, id)? {
        if has_base(db, &place)? {
            return Ok(Some(place));
        }
    }
    Ok(Some(best))
}

fn has_base(db: &Connection, place: &Place) -> Result<bool> {
    match place.location.base {
        Some(base) => Ok(whole_place(db, &base)?.is_some()),
        None => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::chunk_index::CatalogIndex;
    use crate::index::repository::{Repository, temporary};
    use barmanfs_store::{ChunkIndex, Encoding, Frame, PackId, PackWriter};
    use std::sync::Arc;

    /// Enters a pack of these chunks, some of them deltas against another.
    fn enter(repository: &Repository, chunks: &[(ChunkId, Option<ChunkId>)]) -> PackId {
        let mut pack = PackWriter::begin(repository.storage.as_ref()).unwrap();
        for (id, base) in chunks {
            let encoding = match base {
                Some(_) => Encoding::Delta,
                None => Encoding::Stored,
            };
            let bytes = vec![1];
            pack.append(*id, 1, *base, &Frame { encoding, bytes }).unwrap();
        }
        let closed = pack.close().unwrap();
        let index = CatalogIndex::for_readers(Arc::clone(&repository.db), Arc::clone(&repository.surveyor));
        index.publish(&closed).unwrap();
        closed.id
    }

    #[test]
    fn a_delta_without_its_base_is_kept_only_if_there_is_no_other_copy() {
        let (_directory, repository) = temporary();
        let [chunk, gone, base] = [1, 2, 3].map(|byte| ChunkId([byte; 32]));
        let kept = || {
            let place = repository.db.read(|db| kept_place(db, &chunk)).unwrap();
            place.map(|place| place.location.pack)
        };
        assert_eq!(kept(), None);
        let old = enter(&repository, &[(chunk, Some(gone))]);
        assert_eq!(kept(), Some(old));
        let new = enter(&repository, &[(base, None), (chunk, Some(base))]);
        assert_eq!(kept(), Some(new));
        // With its base it is the older one again.
        enter(&repository, &[(gone, None)]);
        assert_eq!(kept(), Some(old));
    }
}
