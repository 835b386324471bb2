use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::layout::{BLOCK_BYTES, DATA_WINDOW_BYTES, PACK_MAX_CHUNKS};
use crate::testing::{Call, MemoryPacks, TestPacks, TestStore, noise};
use crate::{Encoding, Error, RecordId};

const WINDOW: usize = DATA_WINDOW_BYTES as usize;

fn put_all(depositor: &Depositor, puts: Vec<(Vec<u8>, Option<ChunkId>)>) -> Vec<Result<Deposit>> {
    let (answers, answered) = mpsc::channel();
    let count = puts.len();
    for (number, (bytes, similar)) in puts.into_iter().enumerate() {
        let answers = answers.clone();
        let done = Box::new(move |outcome| answers.send((number, outcome)).unwrap());
        depositor.put(bytes, similar, ContentClass::Data, done).unwrap();
    }
    depositor.drain().unwrap();
    let mut outcomes: Vec<_> = answered.iter().take(count).collect();
    outcomes.sort_by_key(|(number, _)| *number);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn put_one(depositor: &Depositor, bytes: &[u8], similar: Option<ChunkId>) -> Deposit {
    put_all(depositor, vec![(bytes.to_vec(), similar)])
        .remove(0)
        .unwrap()
}

/// A window of text that compresses well, with block `changed` different.
fn text_window(seed: u64, changed: Option<usize>) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..)
        .flat_map(|n: u64| format!("row {} of {seed}; ", n * 7919 % 10_007).into_bytes())
        .take(WINDOW)
        .collect();
    if let Some(block) = changed {
        bytes[block * BLOCK_BYTES + 100..][..40].copy_from_slice(&noise(block as u64, 40));
    }
    bytes
}

#[test]
fn deposits_read_back_after_a_flush() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let windows: Vec<_> = (0..40).map(|n| noise(n, 1000 + n as usize * 3001)).collect();
    let deposits = put_all(
        &depositor,
        windows.iter().map(|bytes| (bytes.clone(), None)).collect(),
    );
    assert!(
        store.index.chunks.lock().unwrap().is_empty(),
        "nothing is in the index before its pack is durable"
    );
    assert_eq!(depositor.flush(Vec::new()).unwrap().len(), 1);
    for (bytes, deposit) in windows.iter().zip(deposits) {
        let deposit = deposit.unwrap();
        assert_eq!(deposit.crc32c, crc32c::crc32c(bytes));
        assert_eq!(
            &*store.reader.get(&deposit.chunk.unwrap()).unwrap(),
            bytes.as_slice()
        );
    }
    assert!(
        depositor.flush(Vec::new()).unwrap().is_empty(),
        "nothing new, no pack"
    );
}

#[test]
fn zeros_are_a_hole_except_in_maps() {
    let store = TestStore::new();
    let depositor = store.depositor();
    for bytes in [1, 2, 8192, WINDOW] {
        let zeros = vec![0; bytes];
        let deposit = put_one(&depositor, &zeros, None);
        assert_eq!(
            deposit,
            Deposit {
                chunk: None,
                crc32c: crc32c::crc32c(&zeros),
                new_stored_bytes: 0
            }
        );
        for at in [0, bytes / 2, bytes - 1] {
            let mut nearly = zeros.clone();
            nearly[at] = 1;
            assert!(put_one(&depositor, &nearly, None).chunk.is_some());
        }
    }
    let deposit = depositor.put_now(&[0; 72], None, ContentClass::Map).unwrap();
    assert_eq!(deposit.chunk, Some(ChunkId::of(&[0; 72])));
}

#[test]
fn the_same_chunk_as_before_costs_no_look_up() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let bytes = noise(1, WINDOW);
    let id = put_one(&depositor, &bytes, None).chunk;
    depositor.flush(Vec::new()).unwrap();
    let before = store.index.look_ups.load(Ordering::SeqCst);
    assert_eq!(put_one(&depositor, &bytes, id).new_stored_bytes, 0);
    assert_eq!(store.index.look_ups.load(Ordering::SeqCst), before);
    assert_eq!(put_one(&depositor, &bytes, None).new_stored_bytes, 0);
    assert_eq!(store.index.look_ups.load(Ordering::SeqCst), before + 1);
    assert_eq!(depositor.totals().reused, 2);
}

#[test]
fn a_chunk_put_many_times_in_one_run_is_stored_once() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let bytes = noise(1, WINDOW);
    let deposits = put_all(&depositor, vec![(bytes.clone(), None); 100]);
    let stored = deposits
        .iter()
        .filter(|deposit| deposit.as_ref().unwrap().new_stored_bytes > 0);
    assert_eq!(stored.count(), 1);
    let totals = depositor.totals();
    assert_eq!((totals.chunks, totals.new_whole, totals.reused), (100, 1, 99));
    assert_eq!(totals.bytes_in, 100 * WINDOW as u64);
}

fn encoding(store: &TestStore, deposit: Deposit) -> (Encoding, Option<ChunkId>) {
    let location = store.index.locate(&deposit.chunk.unwrap()).unwrap().unwrap();
    (location.encoding, location.base)
}

#[test]
fn a_changed_window_is_a_delta_and_its_next_change_one_on_the_same_base() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let first = put_one(&depositor, &text_window(1, None), None).chunk;
    depositor.flush(Vec::new()).unwrap();
    let second = put_one(&depositor, &text_window(1, Some(3)), first);
    depositor.flush(Vec::new()).unwrap();
    assert_eq!(encoding(&store, second), (Encoding::Delta, first));
    assert!(second.new_stored_bytes < 200, "{second:?}");
    let third = put_one(&depositor, &text_window(1, Some(9)), second.chunk);
    depositor.flush(Vec::new()).unwrap();
    assert_eq!(encoding(&store, third), (Encoding::Delta, first));
    assert_eq!(
        &*store.reader.get(&third.chunk.unwrap()).unwrap(),
        text_window(1, Some(9)).as_slice()
    );
    assert_eq!(depositor.totals().new_delta, 2);
}

#[test]
fn windows_with_nothing_in_common_are_stored_whole() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let first = put_one(&depositor, &text_window(1, None), None).chunk;
    depositor.flush(Vec::new()).unwrap();
    let other = put_one(&depositor, &noise(1, WINDOW), first);
    depositor.flush(Vec::new()).unwrap();
    assert_eq!(encoding(&store, other).1, None);
}

#[test]
fn a_base_in_the_open_pack_is_not_used() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let first = put_one(&depositor, &text_window(1, None), None).chunk;
    let second = put_one(&depositor, &text_window(1, Some(3)), first);
    depositor.flush(Vec::new()).unwrap();
    assert_eq!(encoding(&store, second), (Encoding::Zstd, None));
}

#[test]
fn condemned_chunks_are_stored_again_and_are_no_base() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let first = put_one(&depositor, &text_window(1, None), None).chunk;
    let bases = depositor.flush(Vec::new()).unwrap();
    let second = put_one(&depositor, &text_window(1, Some(3)), first);
    let deltas = depositor.flush(Vec::new()).unwrap();
    assert_eq!(encoding(&store, second).1, first);

    store.index.condemned.lock().unwrap().extend(&bases);
    let changed = put_one(&depositor, &text_window(1, Some(4)), second.chunk);
    let again = put_one(&depositor, &text_window(1, Some(3)), None);
    assert!(
        again.new_stored_bytes > 0,
        "a delta whose base goes is stored again"
    );
    depositor.flush(Vec::new()).unwrap();
    assert_eq!(encoding(&store, changed).1, None);
    assert_eq!(encoding(&store, again).1, None);

    store.index.condemned.lock().unwrap().extend(&deltas);
    assert!(put_one(&depositor, &text_window(1, None), None).new_stored_bytes > 0);
}

#[test]
fn a_damaged_base_does_not_damage_new_chunks() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let first = put_one(&depositor, &text_window(1, None), None).chunk;
    depositor.flush(Vec::new()).unwrap();
    let pack = store.files().remove(0);
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let second = put_one(&depositor, &text_window(1, Some(3)), first);
    depositor.flush(Vec::new()).unwrap();
    assert_eq!(encoding(&store, second), (Encoding::Zstd, None));
    assert!(store.reader.get(&second.chunk.unwrap()).is_ok());
}

fn record(number: u8) -> Record {
    Record {
        id: RecordId([number; 16]),
        kind: 1,
        payload: vec![number; 10],
    }
}

#[test]
fn full_packs_are_closed_on_the_way_and_records_come_last() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let chunks = PACK_MAX_CHUNKS + 10;
    for number in 0..chunks {
        let bytes = (number as u64 + 1).to_le_bytes();
        depositor
            .put(bytes.to_vec(), None, ContentClass::Data, Box::new(|_| ()))
            .unwrap();
    }
    let packs = depositor.flush(vec![record(1), record(2)]).unwrap();
    assert_eq!(packs.len(), 2);
    let first = crate::read_footer(&*store.packs, packs[0]).unwrap();
    let second = crate::read_footer(&*store.packs, packs[1]).unwrap();
    assert_eq!((first.chunks.len(), first.records.len()), (PACK_MAX_CHUNKS, 0));
    assert_eq!(
        (second.chunks.len(), second.records),
        (10, vec![record(1), record(2)])
    );
    assert_eq!(store.index.chunks.lock().unwrap().len(), chunks);
    assert_eq!(
        depositor.flush(vec![record(3)]).unwrap().len(),
        1,
        "a record alone makes a pack"
    );
}

#[test]
fn an_index_that_fails_stops_everything_and_leaves_whole_packs() {
    let store = TestStore::new();
    let depositor = store.depositor();
    store.index.fail_publish.store(true, Ordering::SeqCst);
    put_one(&depositor, &noise(1, WINDOW), None);
    let error = depositor.flush(Vec::new()).unwrap_err().to_string();
    assert!(error.contains("fails on request"), "{error}");
    store.index.fail_publish.store(false, Ordering::SeqCst);
    let again = depositor.put(
        noise(2, 10),
        None,
        ContentClass::Data,
        Box::new(|_| panic!("not called")),
    );
    assert_eq!(again.unwrap_err().to_string(), error);
    assert_eq!(
        depositor
            .put_now(b"x", None, ContentClass::Data)
            .unwrap_err()
            .to_string(),
        error
    );
    assert_eq!(depositor.flush(Vec::new()).unwrap_err().to_string(), error);
    drop(depositor);
    let files = store.files();
    assert_eq!(files.len(), 1, "a finished pack that the index does not know");
    assert!(store.index.chunks.lock().unwrap().is_empty());
}

#[test]
fn dropped_before_the_flush_it_leaves_nothing() {
    let store = TestStore::new();
    let depositor = store.depositor();
    put_one(&depositor, &noise(1, WINDOW), None);
    drop(depositor);
    assert_eq!(store.files(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_full_disk_is_reported_and_no_thread_hangs() {
    let store = TestStore::new();
    let reader = Arc::clone(&store.reader);
    let packs = TestPacks::new(MemoryPacks::default());
    packs.before_each(|call| match call {
        Call::Write(_) => Err(Error::io(
            "write",
            Path::new("packs/x"),
            std::io::ErrorKind::StorageFull.into(),
        )),
        _ => Ok(()),
    });
    let depositor = Depositor::start(
        Arc::new(packs),
        Arc::clone(&store.index) as _,
        reader,
        DepositOptions::default(),
    )
    .unwrap();
    let refused = (0..1000).find_map(|n| {
        depositor
            .put(noise(n, WINDOW), None, ContentClass::Data, Box::new(|_| ()))
            .err()
    });
    assert!(matches!(refused, Some(Error::Full { .. })), "{refused:?}");
    assert!(matches!(depositor.flush(Vec::new()), Err(Error::Full { .. })));
}

#[test]
fn a_panic_in_a_callback_is_an_error_and_no_thread_hangs() {
    let store = TestStore::new();
    let depositor = store.depositor();
    for n in 0..8 {
        // Once it is known, further puts are refused.
        let _late = depositor.put(
            noise(n, 10),
            None,
            ContentClass::Data,
            Box::new(|_| panic!("on purpose")),
        );
    }
    let error = depositor.flush(Vec::new()).unwrap_err().to_string();
    assert!(error.contains("defect of barmanfs"), "{error}");
}

#[test]
fn the_last_owner_may_be_an_answer() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let (dropped, seen) = mpsc::channel();
    let owner = Arc::clone(&depositor);
    let (go, wait) = mpsc::channel();
    let done = Box::new(move |_: Result<Deposit>| {
        wait.recv().unwrap();
        drop(owner);
        dropped.send(()).unwrap();
    });
    depositor
        .put(noise(1, 10), None, ContentClass::Data, done)
        .unwrap();
    drop(depositor);
    go.send(()).unwrap();
    seen.recv_timeout(Duration::from_secs(10)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever a window changes to, and whatever it was similar to: it reads back, deltas are one deep (the test
    /// index checks this), and a delta never takes more than half the size of the whole window.
    #[test]
    fn generations_of_a_window_read_back(
        sizes in proptest::collection::vec(1_usize..=WINDOW, 1..6),
        edits in proptest::collection::vec(proptest::collection::vec((0..WINDOW, any::<u64>(), 1_usize..20_000), 0..4), 1..6),
    ) {
        let store = TestStore::new();
        let depositor = store.depositor();
        let mut bytes = text_window(7, None);
        let mut similar = None;
        for (size, edits) in sizes.into_iter().zip(edits) {
            bytes.resize(size, b'x');
            for (at, seed, length) in edits {
                let at = at.min(bytes.len() - 1);
                let end = (at + length).min(bytes.len());
                bytes[at..end].copy_from_slice(&noise(seed, end - at));
            }
            let deposit = put_one(&depositor, &bytes, similar);
            depositor.flush(Vec::new()).unwrap();
            let id = deposit.chunk.unwrap();
            let bytes_read = store.reader.get(&id).unwrap();
            prop_assert_eq!(&*bytes_read, bytes.as_slice());
            let level = DepositOptions::default().whole_level;
            let whole = crate::codec::encode_whole(&bytes, level).bytes.len();
            prop_assert!(deposit.new_stored_bytes as usize <= whole);
            similar = Some(id);
        }
    }
}
