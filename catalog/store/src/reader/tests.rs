use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::codec::{encode_delta, encode_whole};
use crate::id::PackId;
use crate::pack::{ClosedPack, PackWriter};
use crate::storage::LocalPacks;
use crate::testing::{Call, TestPacks, noise};

/// A chunk that does not compress.
const NOISE_BYTES: usize = 100_000;

/// Holds up who reads from the packs.
#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    broken: AtomicBool,
}

impl Gate {
    fn set_closed(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().unwrap();
        drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
        assert!(!self.broken.load(Ordering::SeqCst), "a reader that panics");
    }
}

#[derive(Debug, Default)]
struct Index {
    chunks: Mutex<HashMap<ChunkId, ChunkLocation>>,
    /// Places that a sweep moved: used from the second look-up on.
    moved: Mutex<HashMap<ChunkId, ChunkLocation>>,
    located: AtomicUsize,
}

impl ChunkIndex for Index {
    fn locate(&self, id: &ChunkId) -> Result<Option<ChunkLocation>> {
        self.located.fetch_add(1, Ordering::SeqCst);
        let found = self.chunks.lock().unwrap().get(id).copied();
        if let Some(moved) = self.moved.lock().unwrap().get(id) {
            self.chunks.lock().unwrap().insert(*id, *moved);
        }
        Ok(found)
    }

    fn locate_reusable(&self, id: &ChunkId) -> Result<Option<ChunkLocation>> {
        self.locate(id)
    }

    fn publish(&self, pack: &ClosedPack) -> Result<()> {
        let chunks = pack
            .chunks
            .iter()
            .map(|chunk| (chunk.id, chunk.location(pack.id)));
        self.chunks.lock().unwrap().extend(chunks);
        Ok(())
    }
}

struct Store {
    _directory: tempfile::TempDir,
    packs: Arc<TestPacks<LocalPacks>>,
    gate: Arc<Gate>,
    index: Arc<Index>,
    reader: ChunkReader,
}

/// Room for a few windows.
const CACHE_BYTES: usize = 1024 * 1024;

fn store() -> Store {
    let directory = tempfile::tempdir().unwrap();
    let packs = LocalPacks::create(&directory.path().join("packs")).unwrap();
    let packs = Arc::new(TestPacks::new(packs));
    let gate = Arc::new(Gate::default());
    let at_gate = Arc::clone(&gate);
    packs.before_each(move |call| {
        if matches!(call, Call::Read(_)) {
            at_gate.pass();
        }
        Ok(())
    });
    let index = Arc::new(Index::default());
    let reader = ChunkReader::new(
        Arc::clone(&packs) as _,
        Arc::clone(&index) as _,
        Arc::default(),
        CACHE_BYTES,
    );
    Store {
        _directory: directory,
        packs,
        gate,
        index,
        reader,
    }
}

impl Store {
    /// Checks a chunk where the index has it.
    fn check(&self, id: &ChunkId) -> Result<()> {
        let place = self.index.chunks.lock().unwrap()[id];
        self.reader.check(id, &place)
    }

    /// Puts chunks, those with a base as deltas, into one pack.
    fn put(&self, chunks: &[(&[u8], Option<&[u8]>)]) -> ClosedPack {
        let mut pack = PackWriter::begin(&*self.packs).unwrap();
        for &(bytes, base) in chunks {
            let frame = match base {
                Some(base) => encode_delta(bytes, base, 1).unwrap(),
                None => encode_whole(bytes, 1),
            };
            pack.append(ChunkId::of(bytes), bytes.len(), base.map(ChunkId::of), &frame)
                .unwrap();
        }
        let pack = pack.close().unwrap();
        self.index.publish(&pack).unwrap();
        pack
    }

    fn reads(&self) -> usize {
        let calls = self.packs.calls();
        calls.iter().filter(|call| matches!(call, Call::Read(_))).count()
    }

    fn path(&self, pack: PackId) -> std::path::PathBuf {
        let name = pack.to_string();
        self._directory.path().join("packs").join(&name[..2]).join(name)
    }
}

fn window(seed: usize) -> Vec<u8> {
    (0..128 * 1024)
        .map(|at| ((at / 100) * (seed + 3) % 251) as u8)
        .collect()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn frames_are_fetched_in_the_order_of_their_packs() {
    let store = store();
    let contents: Vec<Vec<u8>> = (0..20).map(window).collect();
    let mut changed = contents[3].clone();
    changed[70_000] ^= 1;
    let bases: Vec<(&[u8], Option<&[u8]>)> = contents.iter().map(|bytes| (bytes.as_slice(), None)).collect();
    let first = store.put(&bases);
    let second = store.put(&[(&changed, Some(&contents[3]))]);
    let runs = |ids: &[ChunkId]| -> Vec<(PackId, u64, u32)> {
        let before = store.packs.calls().len();
        store.reader.fetch_ahead(ids);
        let calls = store.packs.calls();
        let fetched = calls.iter().skip(before).map(|call| match call {
            Call::WillRead(pack, offset, bytes) => (*pack, *offset, *bytes),
            other => panic!("{other:?}"),
        });
        fetched.collect()
    };
    let place = |bytes: &[u8]| store.index.locate(&ChunkId::of(bytes)).unwrap().unwrap();
    // In any order, twice, and one that is nowhere.
    let ids = [9, 7, 8, 7].map(|n| ChunkId::of(&contents[n]));
    let (start, end) = (place(&contents[7]), place(&contents[9]));
    let bytes = end.offset + end.stored_bytes - start.offset;
    let expected = vec![(first.id, u64::from(start.offset), bytes)];
    assert_eq!(runs(&[&ids[..], &[ChunkId::of(b"nowhere")]].concat()), expected);
    // A delta comes with its base.
    let mut expected = [(first.id, place(&contents[3])), (second.id, place(&changed))]
        .map(|(pack, place)| (pack, u64::from(place.offset), place.stored_bytes));
    expected.sort_unstable();
    assert_eq!(runs(&[ChunkId::of(&changed)]), expected);
    // What is decoded needs nothing.
    store.reader.get(&ids[0]).unwrap();
    assert_eq!(runs(&ids[..1]), []);
}

#[test]
fn every_encoding_is_read_once_and_kept() {
    let store = store();
    let (whole, stored) = (window(1), noise(1, NOISE_BYTES));
    let delta = [&whole[..50_000], b"changed", &whole[50_007..]].concat();
    store.put(&[(&whole, None), (&stored, None), (&delta, Some(&whole))]);
    for _ in 0..3 {
        for bytes in [&delta, &whole, &stored] {
            assert_eq!(&*store.reader.get(&ChunkId::of(bytes)).unwrap(), bytes.as_slice());
            assert!(store.reader.is_cached(&ChunkId::of(bytes)));
        }
    }
    assert_eq!(store.reads(), 3, "the delta's base was kept too");
    assert_eq!(store.index.located.load(Ordering::SeqCst), 3);
}

#[test]
fn the_cache_stays_within_its_bytes() {
    let store = store();
    let windows: Vec<Vec<u8>> = (0..20).map(window).collect();
    store.put(
        &windows
            .iter()
            .map(|bytes| (bytes.as_slice(), None))
            .collect::<Vec<_>>(),
    );
    for bytes in &windows {
        store.reader.get(&ChunkId::of(bytes)).unwrap();
    }
    let cached = windows
        .iter()
        .filter(|bytes| store.reader.is_cached(&ChunkId::of(bytes)))
        .count();
    assert_eq!(
        cached,
        CACHE_BYTES / (128 * 1024) - 1,
        "all that fit with their overhead"
    );
    assert!(store.reader.is_cached(&ChunkId::of(&windows[19])), "the latest");
}

#[test]
fn readers_of_one_chunk_wait_for_one_decode() {
    let store = store();
    let bytes = window(1);
    store.put(&[(&bytes, None)]);
    store.gate.set_closed(true);
    let started = Barrier::new(9);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                started.wait();
                assert_eq!(
                    &*store.reader.get(&ChunkId::of(&bytes)).unwrap(),
                    bytes.as_slice()
                );
            });
        }
        started.wait();
        wait_until("someone reads", || store.reads() == 1);
        thread::sleep(Duration::from_millis(20));
        store.gate.set_closed(false);
    });
    assert_eq!(store.reads(), 1);
}

#[test]
fn all_waiting_readers_get_a_decode_error_and_it_is_not_cached() {
    let store = store();
    let bytes = window(1);
    let pack = store.put(&[(&bytes, None)]);
    let (path, good) = (store.path(pack.id), std::fs::read(store.path(pack.id)).unwrap());
    let mut bad = good.clone();
    bad[60] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    store.gate.set_closed(true);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| store.reader.get(&ChunkId::of(&bytes))))
            .collect();
        wait_until("someone reads", || store.reads() == 1);
        thread::sleep(Duration::from_millis(20));
        store.gate.set_closed(false);
        for reader in readers {
            let error = reader.join().unwrap().unwrap_err();
            let place = format!(
                "Chunk {} in pack {} at offset 32 is damaged: ",
                ChunkId::of(&bytes),
                pack.id
            );
            assert!(
                error.is_damage() && error.to_string().starts_with(&place),
                "{error}"
            );
        }
    });
    std::fs::write(&path, &good).unwrap();
    store.reader.get(&ChunkId::of(&bytes)).unwrap();
}

#[test]
fn a_reader_that_panics_leaves_nobody_waiting() {
    let store = store();
    let bytes = window(1);
    store.put(&[(&bytes, None)]);
    store.gate.set_closed(true);
    store.gate.broken.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        let first = scope.spawn(|| store.reader.get(&ChunkId::of(&bytes)));
        wait_until("the first reads", || store.reads() == 1);
        let second = scope.spawn(|| store.reader.get(&ChunkId::of(&bytes)));
        thread::sleep(Duration::from_millis(20));
        store.gate.set_closed(false);
        assert!(first.join().is_err());
        // The second becomes the new leader and panics in turn: it was not left waiting.
        assert!(second.join().is_err());
    });
    store.gate.broken.store(false, Ordering::SeqCst);
    store.reader.get(&ChunkId::of(&bytes)).unwrap();
}

#[test]
fn a_pack_that_is_gone_is_looked_for_once_more() {
    let store = store();
    let bytes = window(1);
    let old = store.put(&[(&bytes, None)]);
    let id = ChunkId::of(&bytes);
    let old_place = store.index.chunks.lock().unwrap()[&id];
    let new = store.put(&[(&noise(1, NOISE_BYTES), None), (&bytes, None)]);
    let new_place = store.index.chunks.lock().unwrap()[&id];
    store.index.chunks.lock().unwrap().insert(id, old_place);
    store.index.moved.lock().unwrap().insert(id, new_place);
    store.packs.remove(old.id).unwrap();
    assert_eq!(&*store.reader.get(&id).unwrap(), bytes.as_slice());

    store.packs.remove(new.id).unwrap();
    assert!(matches!(store.check(&id), Err(Error::MissingPack(pack)) if pack == new.id));
    assert!(matches!(
        store.reader.get(&ChunkId([1; 32])),
        Err(Error::MissingChunk(_))
    ));
}

#[test]
fn damage_in_a_base_is_damage_of_its_deltas() {
    let store = store();
    let base = window(1);
    let mut bytes = base.clone();
    bytes[5] ^= 1;
    let pack = store.put(&[(&base, None), (&bytes, Some(&base))]);
    let mut file = std::fs::read(store.path(pack.id)).unwrap();
    file[pack.chunks[0].offset as usize + 40] ^= 1;
    std::fs::write(store.path(pack.id), &file).unwrap();
    let error = store.reader.get(&ChunkId::of(&bytes)).unwrap_err();
    assert!(error.is_damage());
    for part in [
        ChunkId::of(&bytes).to_string(),
        ChunkId::of(&base).to_string(),
        pack.id.to_string(),
    ] {
        assert!(error.to_string().contains(&part), "{error}");
    }
}

#[test]
fn a_wrong_index_is_detected() {
    let store = store();
    let (one, other) = (noise(1, NOISE_BYTES), noise(2, NOISE_BYTES));
    store.put(&[(&one, None), (&other, None)]);
    let (one, other) = (ChunkId::of(&one), ChunkId::of(&other));
    let place = store.index.chunks.lock().unwrap()[&other];
    let lie = |place| {
        store.index.chunks.lock().unwrap().insert(one, place);
        let error = store.reader.get(&one).unwrap_err();
        assert!(
            error.is_damage() && error.to_string().contains(&one.to_string()),
            "{error}"
        );
    };
    lie(place);
    lie(ChunkLocation {
        raw_bytes: u32::MAX,
        ..place
    });
    lie(ChunkLocation {
        stored_bytes: u32::MAX,
        ..place
    });
    lie(ChunkLocation {
        offset: u32::MAX,
        ..place
    });
    lie(ChunkLocation {
        encoding: Encoding::Zstd,
        ..place
    });
    lie(ChunkLocation {
        encoding: Encoding::Delta,
        ..place
    });
    lie(ChunkLocation {
        base: Some(other),
        ..place
    });
    lie(ChunkLocation {
        encoding: Encoding::Delta,
        base: Some(one),
        ..place
    });
}

#[test]
fn deltas_on_each_other_are_an_error_and_no_deadlock() {
    let store = store();
    let one = window(1);
    let mut other = one.clone();
    other[9] ^= 1;
    store.put(&[(&one, Some(&other)), (&other, Some(&one))]);
    thread::scope(|scope| {
        for _ in 0..100 {
            for id in [ChunkId::of(&one), ChunkId::of(&other)] {
                let store = &store;
                scope.spawn(move || assert!(store.reader.get(&id).unwrap_err().is_damage()));
            }
        }
    });
}

#[test]
fn reading_ahead_fills_the_cache() {
    let store = store();
    let windows: Vec<Vec<u8>> = (0..5).map(window).collect();
    store.put(
        &windows
            .iter()
            .map(|bytes| (bytes.as_slice(), None))
            .collect::<Vec<_>>(),
    );
    let ids: Vec<ChunkId> = windows.iter().map(|bytes| ChunkId::of(bytes)).collect();
    store.reader.read_ahead([ChunkId([9; 32])]);
    store.reader.read_ahead(ids.iter().copied());
    wait_until("all are decoded", || {
        ids.iter().all(|id| store.reader.is_cached(id))
    });
    let reads = store.reads();
    store.reader.read_ahead(ids.iter().copied());
    ids.iter().for_each(|id| drop(store.reader.get(id).unwrap()));
    assert_eq!(store.reads(), reads);
}

#[test]
fn reading_ahead_never_waits() {
    let store = store();
    let bytes = window(1);
    store.put(&[(&bytes, None)]);
    store.gate.set_closed(true);
    store.reader.read_ahead([ChunkId::of(&bytes)]);
    store
        .reader
        .read_ahead((0..10_000_u32).map(|n| ChunkId::of(&n.to_le_bytes())));
    store.gate.set_closed(false);
    assert_eq!(
        &*store.reader.get(&ChunkId::of(&bytes)).unwrap(),
        bytes.as_slice()
    );
}

#[test]
fn checking_reads_around_the_cache() {
    let store = store();
    let bytes = window(1);
    let pack = store.put(&[(&bytes, None)]);
    let id = ChunkId::of(&bytes);
    store.check(&id).unwrap();
    assert!(!store.reader.is_cached(&id));
    store.reader.get(&id).unwrap();
    let mut file = std::fs::read(store.path(pack.id)).unwrap();
    file[50] ^= 1;
    std::fs::write(store.path(pack.id), &file).unwrap();
    assert!(store.check(&id).unwrap_err().is_damage());
    store.reader.get(&id).unwrap();
}
