//! The look-ups against a plain list of all places as the model, with shortened ids that collide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use barmanfs_store::sync::lock;
use barmanfs_store::testing::noise;
use barmanfs_store::{Encoding, Frame, PackWriter, PackedChunk};

use super::*;
use crate::index::repository::temporary;
use crate::index::runs::filters::Filters;
use crate::index::runs::merge;
use crate::index::{footer_ids, schema};

/// Chunks there are; each key belongs to three of them.
const IDS: u16 = 300;

fn id(number: u16) -> ChunkId {
    let mut id = [0; 32];
    let key = number / 3;
    id[..2].copy_from_slice(&(key * 600).to_be_bytes());
    id[7] = (key % 5) as u8;
    id[30..].copy_from_slice(&number.to_be_bytes());
    ChunkId(id)
}

#[derive(Clone)]
struct Pack {
    id: PackId,
    chunks: Vec<PackedChunk>,
    condemned: bool,
}

/// What the files of packs have; `None` for one whose footer cannot be read.
type Footers = Arc<Mutex<BTreeMap<PackId, Option<Vec<PackedChunk>>>>>;

#[derive(Clone, Default)]
struct Model {
    packs: BTreeMap<i64, Pack>,
    damaged: BTreeSet<(ChunkId, PackId)>,
    /// Packs whose footers cannot be read.
    unreadable: BTreeSet<PackId>,
    /// Packs without a file.
    missing: BTreeSet<PackId>,
}

/// Pack and offset.
type At = (i64, u32);

impl Model {
    /// Places with the chunk's key, with what the footer says of them.
    fn keyed(&self, id: &ChunkId) -> Vec<(At, PackedChunk, Option<ChunkId>)> {
        let mut keyed = Vec::new();
        for (seq, pack) in &self.packs {
            let is_readable = !self.unreadable.contains(&pack.id) && !self.missing.contains(&pack.id);
            for chunk in pack.chunks.iter().filter(|chunk| chunk.id.0[..8] == id.0[..8]) {
                keyed.push(((*seq, chunk.offset), *chunk, is_readable.then_some(chunk.id)));
            }
        }
        keyed
    }

    fn certain(&self, id: &ChunkId) -> Vec<(At, PackedChunk)> {
        let certain = self
            .keyed(id)
            .into_iter()
            .filter(|(_, _, known)| *known == Some(*id));
        certain.map(|(at, chunk, _)| (at, chunk)).collect()
    }

    fn likely(&self, id: &ChunkId) -> Vec<(At, PackedChunk)> {
        let keyed = self.keyed(id);
        let certain = self.certain(id);
        if keyed.len() > 1 && !certain.is_empty() {
            return certain;
        }
        let is_possible = |known: &Option<ChunkId>| keyed.len() == 1 || known.is_none();
        let possible = keyed.iter().filter(|(_, _, known)| is_possible(known));
        possible.map(|(at, chunk, _)| (*at, *chunk)).collect()
    }

    fn is_damaged(&self, id: &ChunkId, (seq, _): At, chunk: &PackedChunk) -> bool {
        let pack = |seq: &i64| self.packs[seq].id;
        if self.damaged.contains(&(*id, pack(&seq))) {
            return true;
        }
        let Some(base) = chunk.base else { return false };
        self.damaged.iter().any(|(damaged, _)| *damaged == base)
            && self
                .likely(&base)
                .iter()
                .all(|((seq, _), whole)| whole.base.is_some() || self.damaged.contains(&(base, pack(seq))))
    }

    fn best(&self, id: &ChunkId, of: Vec<(At, PackedChunk)>) -> Option<At> {
        let rank = |(at, chunk): &(At, PackedChunk)| {
            let damaged = self.is_damaged(id, *at, chunk);
            (damaged, chunk.base.is_some(), self.packs[&at.0].condemned, *at)
        };
        of.into_iter().min_by_key(rank).map(|(at, _)| at)
    }

    fn whole(&self, id: &ChunkId) -> Option<At> {
        let mut likely = self.likely(id);
        likely.retain(|(_, chunk)| chunk.base.is_none());
        self.best(id, likely)
    }

    /// Places that a writer may refer to, except for a delta's base.
    fn reusable(&self, id: &ChunkId, mut of: Vec<(At, PackedChunk)>) -> Vec<(At, PackedChunk)> {
        of.retain(|(at, chunk)| !self.packs[&at.0].condemned && !self.is_damaged(id, *at, chunk));
        of
    }

    /// The best place without a base, or with one that `is_there`.
    fn first_with_base<E>(
        &self,
        id: &ChunkId,
        mut of: Vec<(At, PackedChunk)>,
        is_there: impl Fn(&ChunkId) -> Result<bool, E>,
    ) -> Result<Option<At>, E> {
        while let Some(best) = self.best(id, of.clone()) {
            let base = of.iter().find(|(at, _)| *at == best);
            match base.and_then(|(_, chunk)| chunk.base) {
                Some(base) if !is_there(&base)? => of.retain(|(at, _)| *at != best),
                _ => return Ok(Some(best)),
            }
        }
        Ok(None)
    }

    fn kept(&self, id: &ChunkId) -> Option<At> {
        let likely = self.likely(id);
        let of = self.reusable(id, likely.clone());
        let stays = |base: &ChunkId| {
            let whole = self.whole(base);
            Ok(whole.is_some_and(|(seq, _)| !self.packs[&seq].condemned))
        };
        let is_somewhere = |base: &ChunkId| Ok::<bool, ()>(self.whole(base).is_some());
        let readable = || self.first_with_base(id, likely.clone(), is_somewhere).unwrap();
        let of_writers: Result<_, ()> = self.first_with_base(id, of, stays);
        of_writers
            .unwrap()
            .or_else(readable)
            .or(self.best(id, likely.clone()))
    }

    /// The places that certainly have a chunk, for a writer; an error if it may be in a pack without a file.
    fn proven(&self, id: &ChunkId) -> Result<Vec<(At, PackedChunk)>, ()> {
        let certain = self.reusable(id, self.certain(id));
        let keyed = self.keyed(id).into_iter().map(|(at, chunk, _)| (at, chunk));
        let possible = self.reusable(id, keyed.collect());
        let is_missing = |(seq, _): &At| self.missing.contains(&self.packs[seq].id);
        match certain.is_empty() && possible.iter().any(|(at, _)| is_missing(at)) {
            true => Err(()),
            false => Ok(certain),
        }
    }

    fn proven_place(&self, id: &ChunkId) -> Result<Option<At>, ()> {
        let of = self.proven(id)?;
        self.first_with_base(id, of, |base| {
            Ok(self.proven(base)?.iter().any(|(_, chunk)| chunk.base.is_none()))
        })
    }
}

fn catalog(footers: &Footers, filters: &Arc<Filters>) -> Connection {
    let db = Connection::open_in_memory().unwrap();
    let all = [schema::CREATE, schema::CREATE_PLACES, schema::CREATE_MEANINGS];
    db.execute_batch(&all.concat()).unwrap();
    filters.teach(&db).unwrap();
    let footers = Arc::clone(footers);
    footer_ids::teach(&db, move |pack, offset| {
        let footers = lock(&footers);
        let Some(chunks) = footers.get(&pack) else {
            return IdAt::PackMissing;
        };
        let found = chunks.iter().flatten().find(|chunk| chunk.offset == offset);
        found.map_or(IdAt::Unknown, |chunk| IdAt::Known(chunk.id))
    })
    .unwrap();
    db
}

/// A pack of some chunks in a random order; a third are deltas.
fn pack(seed: u64, length: usize) -> Pack {
    let random = noise(seed, 16 + length * 4);
    let (of_id, of_chunks) = random.split_at(16);
    let mut offset = 32;
    let chunks = of_chunks.chunks_exact(4).map(|of| {
        let number = u16::from_le_bytes([of[0], of[1]]) % IDS;
        let base = (number + 1 + u16::from(of[2])) % IDS;
        let is_delta = of[3].is_multiple_of(3) && base != number;
        let chunk = PackedChunk {
            id: id(number),
            encoding: if is_delta { Encoding::Delta } else { Encoding::Zstd },
            offset,
            stored_bytes: 1 + u32::from(of[2]),
            raw_bytes: 131_072,
            base: is_delta.then(|| id(base)),
        };
        offset += chunk.stored_bytes;
        chunk
    });
    Pack {
        chunks: chunks.collect(),
        id: PackId(of_id.try_into().unwrap()),
        condemned: false,
    }
}

fn enter(db: &Connection, footers: &Footers, model: &mut Model, pack: Pack) {
    let closed = ClosedPack {
        id: pack.id,
        bytes: 1,
        chunks: pack.chunks.clone(),
        records: Vec::new(),
    };
    assert!(records::enter(db, |_, _, _| Ok(()), &closed, None).unwrap().new);
    let seq: i64 = db
        .query_row(
            "SELECT seq FROM packs WHERE id = ?1",
            [pack.id.as_bytes()],
            |row| row.get(0),
        )
        .unwrap();
    lock(footers).insert(pack.id, Some(pack.chunks.clone()));
    model.packs.insert(seq, pack);
}

/// One step of what may happen to a catalog.
fn change(db: &Connection, footers: &Footers, model: &mut Model, round: u64, choice: &[u8]) {
    let packs: Vec<i64> = model.packs.keys().copied().collect();
    let chosen = packs.get(usize::from(choice[1]) % packs.len().max(1)).copied();
    match (choice[0] % 10, chosen) {
        (0..3, _) => enter(db, footers, model, pack(round, 1 + usize::from(choice[2]) % 100)),
        (3, Some(seq)) => {
            db.execute("DELETE FROM packs WHERE seq = ?1", [seq]).unwrap();
            chunk_lists::forget(db, seq).unwrap();
            model.packs.remove(&seq);
        }
        (4, Some(seq)) => {
            let pack = model.packs.get_mut(&seq).unwrap();
            pack.condemned = !pack.condemned;
            let at = pack.condemned.then_some(1);
            db.execute(
                "UPDATE packs SET condemned_at = ?2 WHERE seq = ?1",
                params![seq, at],
            )
            .unwrap();
        }
        (5..7, Some(seq)) => {
            let pack = &model.packs[&seq];
            let chunk = pack.chunks[usize::from(choice[2]) % pack.chunks.len()];
            model.damaged.insert((chunk.id, pack.id));
            db.execute(
                "INSERT OR IGNORE INTO damaged VALUES (?1, ?2, 1)",
                params![chunk.id.as_bytes(), pack.id.as_bytes()],
            )
            .unwrap();
        }
        (7, Some(seq)) => {
            let pack = model.packs[&seq].clone();
            if model.unreadable.remove(&pack.id) || model.missing.remove(&pack.id) {
                lock(footers).insert(pack.id, Some(pack.chunks));
            } else if choice[2].is_multiple_of(2) {
                model.unreadable.insert(pack.id);
                lock(footers).insert(pack.id, None);
            } else {
                model.missing.insert(pack.id);
                lock(footers).remove(&pack.id);
            }
        }
        (8, _) => merge::begin_all(db).unwrap(),
        _ => drop(merge::step(db, 1 + usize::from(choice[2])).unwrap()),
    }
}

fn assert_agrees(db: &Connection, model: &Model, id: &ChunkId, round: u64) {
    let at = |place: Place| (place.pack, place.location.offset);
    let context = format!("round {round}, {id}");
    let found: Vec<Place> = places(db, id).unwrap();
    let certain = model.certain(id);
    let keyed = model.keyed(id);
    let mut possible: BTreeSet<At> = certain.iter().map(|(at, _)| *at).collect();
    let unknown = keyed
        .iter()
        .filter(|(_, _, known)| known.is_none() || keyed.len() == 1);
    possible.extend(unknown.map(|(at, _, _)| *at));
    assert_eq!(
        found.iter().copied().map(at).collect::<BTreeSet<_>>(),
        possible,
        "{context}"
    );
    for place in &found {
        let (_, chunk, _) = keyed.iter().find(|(of, _, _)| *of == at(*place)).unwrap();
        assert_eq!(chunk.location(place.location.pack), place.location, "{context}");
        assert_eq!(place.condemned, model.packs[&place.pack].condemned, "{context}");
        let is_damaged = model.is_damaged(id, at(*place), chunk);
        assert_eq!(place.damaged, is_damaged, "{context}");
        assert_eq!(
            place_in(db, id, place.location.pack)
                .unwrap()
                .map(|found| found.pack),
            Some(place.pack)
        );
    }
    let proven = proven_place(db, id);
    if let Err(error) = &proven {
        let store = barmanfs_store::Error::from(error.clone());
        assert!(matches!(store, barmanfs_store::Error::MissingPack(_)), "{error}");
    }
    let proven = proven.map(|place| place.map(at)).map_err(drop);
    assert_eq!(proven, model.proven_place(id), "{context}");
    assert_eq!(whole_place(db, id).unwrap().map(at), model.whole(id), "{context}");
    let kept = model.kept(id);
    assert_eq!(kept_place(db, id).unwrap().map(at), kept, "{context}");
    let read = place_to_read(db, id).unwrap();
    // A reader checks what it decodes, and asks for all places when it is another chunk.
    assert!(read.is_some() || kept.is_none(), "{context}");
    assert!(read.is_none() || !keyed.is_empty(), "{context}");
    if let (Some(read), Some(best)) = (read, found.first()) {
        assert!(rank(&read).0 <= rank(best).0 || keyed.len() > 1, "{context}");
        let is_good = !read.damaged && !read.condemned && read.location.base.is_none();
        assert!(
            is_good || Some(at(read)) == model.best(id, model.likely(id)),
            "{context}"
        );
    }
}

#[test]
fn look_ups_agree_with_a_plain_list() {
    for seed in 1..4 {
        let (footers, filters) = (Footers::default(), Arc::default());
        let db = catalog(&footers, &filters);
        let mut model = Model::default();
        for (round, choice) in (1000 * seed..).zip(noise(seed, 4 * 150).chunks_exact(4)) {
            let before = (model.clone(), lock(&footers).clone());
            db.execute_batch("SAVEPOINT step").unwrap();
            change(&db, &footers, &mut model, round, choice);
            if choice[3].is_multiple_of(10) {
                // It was killed before it could commit.
                db.execute_batch("ROLLBACK TO step").unwrap();
                (model, *lock(&footers)) = before;
            }
            filters.make(&db, usize::from(choice[2] % 4), 1 << 20).unwrap();
            db.execute_batch("RELEASE step").unwrap();
            for of in noise(round, 24).chunks_exact(2) {
                let id = id(u16::from_le_bytes([of[0], of[1]]) % IDS);
                assert_agrees(&db, &model, &id, round);
            }
        }
        assert!(model.packs.len() > 5 && !model.damaged.is_empty());
        assert!(!model.unreadable.is_empty() && !model.missing.is_empty());
        let gone = (0..IDS).map(id).filter(|id| model.certain(id).is_empty()).count();
        assert!(gone < usize::from(IDS) / 2, "{gone}");
    }
}

#[test]
fn deltas_are_found_by_their_bases() {
    let footers = Footers::default();
    let db = catalog(&footers, &Arc::default());
    let mut model = Model::default();
    for seed in 1..10 {
        enter(&db, &footers, &mut model, pack(seed, 200));
    }
    let bases: HashSet<ChunkId> = (0..20).map(id).collect();
    let chunks = || model.packs.values().flat_map(|pack| &pack.chunks);
    let is_based = |chunk: &&PackedChunk| chunk.base.is_some_and(|base| bases.contains(&base));
    let expected: Vec<ChunkId> = chunks().filter(is_based).map(|chunk| chunk.id).collect();
    let mut found = Vec::new();
    let is_told = each_based_on(&db, &bases, &mut |id| {
        found.extend(id);
        Ok(id.is_some())
    });
    assert!(is_told.unwrap() && expected.len() > 20);
    assert_eq!(found, expected);
    lock(&footers).values_mut().for_each(|footer| *footer = None);
    assert!(!each_based_on(&db, &bases, &mut |id| Ok(id.is_some())).unwrap());
}

#[test]
fn a_delta_without_its_base_is_kept_and_referred_to_only_if_there_is_no_other_copy() {
    let (_directory, repository) = temporary();
    let [chunk, gone, base] = [1, 2, 3].map(|byte| ChunkId([byte; 32]));
    let enter = |chunks: &[(ChunkId, Option<ChunkId>)]| {
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
    };
    let chosen = || {
        let pack = |place: Option<Place>| place.map(|place| place.location.pack);
        let of_writers = repository.db.read(|db| proven_place(db, &chunk)).unwrap();
        let kept = repository.db.read(|db| kept_place(db, &chunk)).unwrap();
        (pack(of_writers), pack(kept))
    };
    assert_eq!(chosen(), (None, None));
    let old = enter(&[(chunk, Some(gone))]);
    assert_eq!(chosen(), (None, Some(old)));
    let new = enter(&[(base, None), (chunk, Some(base))]);
    assert_eq!(chosen(), (Some(new), Some(new)));
    // With its base it is the older one again.
    enter(&[(gone, None)]);
    assert_eq!(chosen(), (Some(old), Some(old)));
}
