use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::testing::{Call, MemoryIndex, MemoryPacks, TestPacks, TestStore, noise};
use crate::{
    ChunkReader, ContentClass, CountedPacks, Deposit, DepositOptions, Depositor, Error, PackStorage,
    read_footer,
};

const CHUNK_BYTES: usize = 100_000;

fn put(depositor: &Depositor, bytes: &[u8]) -> Deposit {
    depositor.put_now(bytes, None, ContentClass::Data).unwrap()
}

#[test]
fn a_chunk_that_is_put_and_read_twice_is_written_and_decoded_once() {
    let store = TestStore::new();
    let counters = Arc::clone(store.reader.counters());
    let depositor = store.depositor();
    let bytes = noise(1, CHUNK_BYTES);
    let first = put(&depositor, &bytes);
    assert_eq!(put(&depositor, &bytes).new_stored_bytes, 0);
    assert_eq!(put(&depositor, &[0; 8192]).chunk, None, "a hole is no chunk");
    let packs = depositor.flush(Vec::new()).unwrap();
    let pack_bytes = store.packs.bytes(packs[0]).unwrap();
    let frame_bytes = u64::from(first.new_stored_bytes);
    let written = Counts {
        packs_written: 1,
        pack_bytes_written: pack_bytes,
        chunks_written: 1,
        chunk_bytes_written: CHUNK_BYTES as u64,
        frame_bytes_written: frame_bytes,
        chunks_deduplicated: 1,
        chunk_bytes_deduplicated: CHUNK_BYTES as u64,
        ..Counts::default()
    };
    assert_eq!(counters.snapshot(), written);

    for _ in 0..2 {
        store.reader.get(&first.chunk.unwrap()).unwrap();
    }
    let counts = counters.snapshot();
    assert_eq!(counts.pack_read_latency.count, 1);
    assert!(counts.pack_read_latency.sum_ns > 0);
    let read = Counts {
        pack_read_latency: counts.pack_read_latency,
        pack_bytes_read: frame_bytes,
        cache_hits: 1,
        cache_misses: 1,
        chunks_decoded: 1,
        chunk_bytes_decoded: CHUNK_BYTES as u64,
        ..written
    };
    assert_eq!(counts, read);
}

#[test]
fn compressed_chunks_count_their_own_bytes_and_those_of_their_frames() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let deposit = put(&depositor, &b"the same again ".repeat(1000));
    depositor.flush(Vec::new()).unwrap();
    let counts = store.reader.counters().snapshot();
    assert_eq!(counts.chunk_bytes_written, 15_000);
    assert_eq!(counts.frame_bytes_written, u64::from(deposit.new_stored_bytes));
    assert!(counts.frame_bytes_written < 1000, "{counts}");
}

#[test]
fn the_base_of_a_delta_is_decoded_once_and_then_cached() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let mut window: Vec<u8> = noise(1, CHUNK_BYTES);
    let base = put(&depositor, &window).chunk;
    depositor.flush(Vec::new()).unwrap();
    let mut deltas = Vec::new();
    for change in 1..=2 {
        window[5] ^= change;
        let delta = depositor.put_now(&window, base, ContentClass::Data).unwrap();
        assert!(delta.new_stored_bytes < 10_000, "{delta:?}");
        deltas.push(delta.chunk.unwrap());
    }
    depositor.flush(Vec::new()).unwrap();
    let counts = store.reader.counters().snapshot();
    assert_eq!(
        (counts.chunks_written, counts.chunks_decoded),
        (3, 1),
        "the base, to make deltas"
    );
    for delta in deltas {
        store.reader.get(&delta).unwrap();
    }
    let counts = store.reader.counters().snapshot();
    assert_eq!(
        (counts.chunks_decoded, counts.cache_misses, counts.cache_hits),
        (3, 3, 3)
    );
}

/// A storage in memory that fails while `broken`, behind counters.
struct Failing {
    counters: Arc<Counters>,
    storage: Arc<CountedPacks>,
    index: Arc<MemoryIndex>,
    broken: Arc<AtomicBool>,
}

impl Failing {
    fn new() -> Self {
        let packs = TestPacks::new(MemoryPacks::default());
        let broken = Arc::new(AtomicBool::new(false));
        let is_broken = Arc::clone(&broken);
        packs.before_each(move |call| match call {
            Call::Read(_) | Call::Write(_) | Call::Finish(_) if is_broken.load(Ordering::SeqCst) => {
                let cause = std::io::ErrorKind::TimedOut.into();
                Err(Error::io("reach", Path::new("packs"), cause))
            }
            _ => Ok(()),
        });
        let counters = Arc::new(Counters::default());
        Self {
            storage: Arc::new(CountedPacks::new(Arc::new(packs), Arc::clone(&counters))),
            counters,
            index: Arc::default(),
            broken,
        }
    }

    fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    fn reader(&self) -> Arc<ChunkReader> {
        Arc::new(ChunkReader::new(
            Arc::clone(&self.storage) as _,
            Arc::clone(&self.index) as _,
            Arc::clone(&self.counters),
            1 << 20,
        ))
    }

    fn depositor(&self) -> Depositor {
        let started = Depositor::start(
            Arc::clone(&self.storage) as _,
            Arc::clone(&self.index) as _,
            self.reader(),
            DepositOptions::default(),
        );
        started.unwrap()
    }
}

#[test]
fn a_storage_that_fails_reads_and_decodes_nothing() {
    let store = Failing::new();
    let depositor = store.depositor();
    let id = put(&depositor, &noise(1, CHUNK_BYTES)).chunk.unwrap();
    let packs = depositor.flush(Vec::new()).unwrap();
    let written = store.counters.snapshot();
    store.set_broken(true);
    let reader = store.reader();
    for _ in 0..2 {
        reader.get(&id).unwrap_err();
    }
    let counts = store.counters.snapshot();
    assert_eq!(counts.pack_read_latency.count, 2, "a failure takes time, too");
    let failed = Counts {
        pack_read_latency: counts.pack_read_latency,
        pack_reads_failed: 2,
        cache_misses: 2,
        ..written
    };
    assert_eq!(counts, failed);

    store.set_broken(false);
    let before = counts.pack_read_latency.count;
    read_footer(&*store.storage, packs[0]).unwrap();
    let counts = store.counters.snapshot();
    assert!(
        counts.pack_read_latency.count > before,
        "a footer is read from a pack, too"
    );
    assert_eq!((counts.chunks_decoded, counts.pack_reads_failed), (0, 2));
}

#[test]
fn a_storage_that_fails_has_no_new_chunks_and_packs() {
    let store = Failing::new();
    store.set_broken(true);
    let depositor = store.depositor();
    // Accepted: only the thread that writes sees the failure.
    put(&depositor, &noise(1, CHUNK_BYTES));
    depositor.flush(Vec::new()).unwrap_err();
    assert_eq!(store.counters.snapshot(), Counts::default());

    let store = Failing::new();
    let mut pack = crate::PackWriter::begin(&*store.storage).unwrap();
    let frame = crate::codec::encode_whole(b"bytes", 1);
    pack.append(crate::ChunkId::of(b"bytes"), 5, None, &frame)
        .unwrap();
    store.set_broken(true);
    pack.close().unwrap_err();
    assert_eq!(store.counters.snapshot().packs_written, 0);
}

#[test]
fn a_damaged_chunk_is_read_and_not_decoded() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let id = put(&depositor, &noise(1, CHUNK_BYTES)).chunk.unwrap();
    depositor.flush(Vec::new()).unwrap();
    let pack = store.files().remove(0);
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    assert!(store.reader.get(&id).unwrap_err().is_damage());
    let counts = store.reader.counters().snapshot();
    assert_eq!(
        (counts.pack_read_latency.count, counts.pack_reads_failed),
        (2, 0),
        "The frame, and whether the pack is sealed"
    );
    assert_eq!((counts.chunks_decoded, counts.chunk_bytes_decoded), (0, 0));
}

#[test]
fn each_number_has_its_name() {
    let counters = Counters::default();
    counters.pack_read(Duration::from_micros(3), Some(7));
    counters.chunk_written(100, 40);
    let json = serde_json::to_value(counters.snapshot()).unwrap();
    assert_eq!(json["pack_read_latency"]["count"], 1);
    assert_eq!(json["pack_read_latency"]["sum_ns"], 3000);
    assert_eq!(json["pack_bytes_read"], 7);
    assert_eq!(json["chunk_bytes_written"], 100);
    assert_eq!(json["frame_bytes_written"], 40);
    assert_eq!(json["cache_hits"], 0);
    let line = counters.snapshot().to_string();
    assert!(
        line.starts_with("1 reads of packs (7 bytes, 0 failed, 3 us on average), 0 chunks decoded"),
        "{line}"
    );
    assert!(!line.contains('\n'));
}
