use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use crate::file_map::PIECE_WINDOWS;
use crate::layout::BLOCK_BYTES;
use crate::testing::{ATTRIBUTES, Call, TestPacks, TestStore, noise};
use crate::tree::{TreeOptions, TreeReader, TreeTotals, TreeWriter};
use crate::{ChunkId, ChunkReader, DirectoryRef, FileMap, LocalPacks, Node, Result};

const BLOCK: usize = BLOCK_BYTES;

/// Four blocks: changes share windows, and files of some dozens of blocks reach pieces.
const WINDOW: u32 = 4 * BLOCK as u32;

type Files = BTreeMap<u8, Vec<u8>>;

/// What happens to one file from one backup to the next.
#[derive(Debug, Clone)]
enum Step {
    /// It does not change: an incremental file without blocks.
    Same,
    /// These blocks are sent, and this many blocks of the old file are kept.
    Incremental {
        truncation: usize,
        blocks: BTreeMap<usize, u64>,
    },
    /// It is sent whole: new, or changed nearly everywhere.
    Whole { blocks: Vec<u64> },
    /// It is gone.
    Dropped,
}

/// A block by its seed: zeros, compressible, or noise.
fn block(seed: u64) -> Vec<u8> {
    match seed % 4 {
        0 => vec![0; BLOCK],
        1 => vec![seed as u8; BLOCK],
        _ => noise(seed, BLOCK),
    }
}

fn result_blocks(truncation: usize, blocks: &BTreeMap<usize, u64>) -> usize {
    let last = blocks.keys().next_back().map_or(0, |last| last + 1);
    truncation.max(last)
}

/// The reference: full_k = full_{k-1} + inc_k, in memory.
fn apply(before: Option<&Vec<u8>>, step: &Step) -> Option<Vec<u8>> {
    match step {
        Step::Same => before.cloned(),
        Step::Dropped => None,
        Step::Whole { blocks } => Some(blocks.iter().flat_map(|seed| block(*seed)).collect()),
        Step::Incremental { truncation, blocks } => {
            let mut after = before.cloned().unwrap_or_default();
            after.truncate(truncation * BLOCK);
            after.resize(result_blocks(*truncation, blocks) * BLOCK, 0);
            for (number, seed) in blocks {
                after[number * BLOCK..][..BLOCK].copy_from_slice(&block(*seed));
            }
            Some(after)
        }
    }
}

fn path(file: u8) -> Vec<u8> {
    format!("base/5/{file}").into_bytes()
}

fn map_of(tree: &TreeReader, root: &DirectoryRef, file: u8) -> Option<FileMap> {
    match tree.find(root, &path(file)).unwrap()?.node {
        Node::File(map) => Some(map),
        _ => None,
    }
}

fn put_whole(tree: &TreeWriter, file: u8, content: &[u8]) -> Result<()> {
    let mut sink = tree.file(&path(file), ATTRIBUTES, content.len() as u64, WINDOW)?;
    sink.write(content)?;
    sink.finish()
}

/// Stores one incremental backup on top of `parent`.
fn compose(
    store: &TestStore,
    parent: &DirectoryRef,
    before: &Files,
    steps: &BTreeMap<u8, Step>,
) -> Result<TreeTotals> {
    let reader = TreeReader::new(Arc::clone(&store.reader));
    let depositor = store.depositor();
    let previous = Some((reader.clone(), parent.clone()));
    let tree = TreeWriter::begin(Arc::clone(&depositor), previous, TreeOptions::default());
    let same = Step::Same;
    for file in before.keys().chain(steps.keys()).collect::<BTreeSet<_>>() {
        let base = map_of(&reader, parent, *file);
        let whole = base.as_ref().map_or(0, |map| map.size_bytes) as usize / BLOCK;
        let (truncation, blocks) = match steps.get(file).unwrap_or(&same) {
            Step::Dropped => continue,
            step @ Step::Whole { .. } => {
                put_whole(&tree, *file, &apply(None, step).unwrap())?;
                continue;
            }
            Step::Same if base.is_none() => continue,
            Step::Same => (whole, BTreeMap::new()),
            Step::Incremental { truncation, blocks } => (*truncation, blocks.clone()),
        };
        let size_bytes = (result_blocks(truncation, &blocks) * BLOCK) as u64;
        let base = base.as_ref().map(|map| (&reader, map));
        let keep_bytes = (truncation * BLOCK) as u64;
        let mut sink = tree.composed_file(&path(*file), ATTRIBUTES, size_bytes, WINDOW, base, keep_bytes)?;
        sink.expect(blocks.keys().map(|number| (number * BLOCK) as u64));
        for (number, seed) in &blocks {
            sink.block((number * BLOCK) as u64, &block(*seed))?;
        }
        sink.finish()?;
    }
    let totals = tree.finish(ATTRIBUTES)?;
    depositor.flush(Vec::new())?;
    Ok(totals)
}

/// Stores the same state as a full backup, into another repository, so that nothing of the first one helps.
fn store_whole(files: &Files) -> TreeTotals {
    let store = TestStore::new();
    let depositor = store.depositor();
    let tree = TreeWriter::begin(Arc::clone(&depositor), None, TreeOptions::default());
    for (file, content) in files {
        put_whole(&tree, *file, content).unwrap();
    }
    let totals = tree.finish(ATTRIBUTES).unwrap();
    depositor.flush(Vec::new()).unwrap();
    totals
}

fn check(store: &TestStore, root: &DirectoryRef, files: &Files) {
    let reader = TreeReader::new(Arc::clone(&store.reader));
    for (file, content) in files {
        let map = map_of(&reader, root, *file).unwrap();
        let mut read = vec![0; content.len() + 1];
        let count = reader.read_at(&map, 0, &mut read).unwrap();
        assert!(read[..count] == content[..], "file {file}");
        assert_eq!(map.crc32c, crc32c::crc32c(content));
    }
}

fn seeds() -> impl Strategy<Value = u64> {
    0..1000_u64
}

fn step() -> impl Strategy<Value = Step> {
    let sparse = (
        0..90_usize,
        prop::collection::btree_map(0..90_usize, seeds(), 0..8),
    );
    // Most of the blocks.
    let most = prop::collection::vec(seeds(), 1..40).prop_map(|seeds| {
        let all = seeds.into_iter().enumerate();
        all.filter(|(_, seed)| seed % 13 > 0).collect::<BTreeMap<_, _>>()
    });
    let dense = (0..40_usize, most);
    let incremental = |(truncation, blocks)| Step::Incremental { truncation, blocks };
    prop_oneof![
        2 => Just(Step::Same),
        5 => sparse.prop_map(incremental),
        1 => dense.prop_map(incremental),
        2 => prop::collection::vec(seeds(), 0..80).prop_map(|blocks| Step::Whole { blocks }),
        1 => Just(Step::Dropped),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_chain_of_incrementals_equals_full_backups(
        first in prop::collection::btree_map(0..4_u8, prop::collection::vec(seeds(), 0..80), 1..4),
        chain in prop::collection::vec(prop::collection::btree_map(0..4_u8, step(), 0..4), 1..6),
    ) {
        let store = TestStore::new();
        let whole = |blocks: Vec<u64>| Step::Whole { blocks };
        let first = first.into_iter().map(|(file, blocks)| (file, whole(blocks))).collect();
        let mut files = Files::new();
        let mut root = DirectoryRef::default();
        for steps in std::iter::once(first).chain(chain) {
            let totals = compose(&store, &root, &files, &steps).unwrap();
            for (file, step) in &steps {
                match apply(files.get(file), step) {
                    Some(content) => files.insert(*file, content),
                    None => files.remove(file),
                };
            }
            check(&store, &totals.root, &files);
            prop_assert_eq!(&totals, &store_whole(&files));
            root = totals.root;
        }
    }
}

/// The same repository, whose reader has nothing in its cache and whose calls of the storage are recorded.
fn reopened(store: TestStore) -> (TestStore, Arc<TestPacks<LocalPacks>>) {
    let packs = LocalPacks::open(&store.directory.path().join("packs")).unwrap();
    let packs = Arc::new(TestPacks::new(packs));
    let reader = ChunkReader::new(
        Arc::clone(&packs) as _,
        Arc::clone(&store.index) as _,
        Arc::default(),
        8 << 20,
    );
    let reader = Arc::new(reader);
    (TestStore { reader, ..store }, packs)
}

/// What is fetched when is up to the workers, [`Expected`] and the reader have tests of their own.
#[test]
fn what_changes_is_fetched_ahead() {
    let blocks = 800;
    let store = TestStore::new();
    let whole = Step::Whole {
        blocks: (0..blocks).map(|n| n * 4 + 2).collect(),
    };
    let files = Files::from([(0, apply(None, &whole).unwrap())]);
    let steps = BTreeMap::from([(0, whole)]);
    let full = compose(&store, &DirectoryRef::default(), &Files::new(), &steps).unwrap();
    let (store, packs) = reopened(store);
    let step = Step::Incremental {
        truncation: blocks as usize,
        blocks: (0..200).map(|window| (window * 4, 5)).collect(),
    };
    compose(&store, &full.root, &files, &BTreeMap::from([(0, step)])).unwrap();
    let calls = packs.calls();
    assert!(
        calls.iter().any(|call| matches!(call, Call::WillRead(..))),
        "{calls:?}"
    );
}

/// A file of three pieces of its map, with data here and there.
fn large() -> (TestStore, Files, DirectoryRef) {
    let store = TestStore::new();
    let blocks = (2 * PIECE_WINDOWS + 5) * 4;
    let data = BTreeMap::from([(0, 2), (9000, 3), (9001, 7), (blocks - 1, 6)]);
    let step = Step::Incremental {
        truncation: blocks,
        blocks: data,
    };
    let files = Files::from([(0, apply(None, &step).unwrap())]);
    let steps = BTreeMap::from([(0, step)]);
    let totals = compose(&store, &DirectoryRef::default(), &Files::new(), &steps).unwrap();
    check(&store, &totals.root, &files);
    assert_eq!(totals, store_whole(&files));
    (store, files, totals.root)
}

#[test]
fn a_change_in_a_large_file_changes_one_piece() {
    let (store, files, root) = large();
    let step = Step::Incremental {
        truncation: files[&0].len() / BLOCK,
        blocks: BTreeMap::from([(9002, 11)]),
    };
    let after = Files::from([(0, apply(files.get(&0), &step).unwrap())]);
    let totals = compose(&store, &root, &files, &BTreeMap::from([(0, step)])).unwrap();
    check(&store, &totals.root, &after);
    assert_eq!(totals, store_whole(&after));
}

#[test]
fn an_unchanged_large_file_is_copied_by_reference() {
    let (store, files, root) = large();
    let before = store.index.chunks.lock().unwrap().len();
    let totals = compose(&store, &root, &files, &BTreeMap::new()).unwrap();
    assert_eq!(totals.root, root);
    assert_eq!(store.index.chunks.lock().unwrap().len(), before);
    // A piece in a condemned pack is stored again.
    let packs: Vec<_> = store
        .index
        .chunks
        .lock()
        .unwrap()
        .values()
        .map(|location| location.pack)
        .collect();
    store.index.condemned.lock().unwrap().extend(packs);
    let looked_up = store.index.look_ups.load(Ordering::SeqCst);
    let again = compose(&store, &root, &files, &BTreeMap::new()).unwrap();
    assert_eq!(again.root, root);
    assert!(store.index.look_ups.load(Ordering::SeqCst) > looked_up);
    let map = map_of(&TreeReader::new(Arc::clone(&store.reader)), &root, 0).unwrap();
    let crate::Windows::Pieces(pieces) = map.windows else {
        panic!("a large file has pieces");
    };
    let chunks = store.index.chunks.lock().unwrap();
    let condemned = store.index.condemned.lock().unwrap();
    assert!(
        pieces
            .iter()
            .all(|piece| !condemned.contains(&chunks[piece].pack))
    );
}

#[test]
fn impossible_blocks_are_refused() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let tree = TreeWriter::begin(depositor, None, TreeOptions::default());
    let mut refused = Vec::new();
    for (name, blocks) in [
        ("order", &[(BLOCK, BLOCK), (0, BLOCK)][..]),
        ("twice", &[(0, BLOCK), (0, BLOCK)]),
        ("offset", &[(5, BLOCK)]),
        ("short", &[(0, 100)]),
        ("long", &[(0, BLOCK + 1)]),
        ("past", &[(4 * BLOCK, BLOCK)]),
        ("end", &[(3 * BLOCK, BLOCK)]),
    ] {
        let size_bytes = (3 * BLOCK + 100) as u64;
        let mut sink = tree
            .composed_file(name.as_bytes(), ATTRIBUTES, size_bytes, WINDOW, None, 0)
            .unwrap();
        let mut put = blocks
            .iter()
            .map(|(offset, length)| sink.block(*offset as u64, &vec![1; *length]));
        refused.extend(put.find_map(Result::err));
    }
    assert_eq!(refused.len(), 7);
    assert!(
        refused
            .iter()
            .all(|error| matches!(error, crate::Error::Invalid(_))),
        "{refused:?}"
    );
}

#[test]
fn a_large_file_is_truncated_and_grows_across_pieces() {
    let (store, mut files, mut root) = large();
    let piece = PIECE_WINDOWS * 4;
    for (truncation, blocks) in [
        (piece + 7, BTreeMap::new()),
        (9001, BTreeMap::from([(2 * piece + 1, 7)])),
        (piece - 3, BTreeMap::from([(3, 5)])),
        (2, BTreeMap::from([(2 * piece + 9, 7)])),
        (0, BTreeMap::new()),
        (piece + 1, BTreeMap::from([(piece, 6)])),
    ] {
        let step = Step::Incremental { truncation, blocks };
        let after = Files::from([(0, apply(files.get(&0), &step).unwrap())]);
        let totals = compose(&store, &root, &files, &BTreeMap::from([(0, step)])).unwrap();
        check(&store, &totals.root, &after);
        assert_eq!(totals, store_whole(&after));
        (files, root) = (after, totals.root);
    }
}

/// Overwrites the beginning of a chunk's frame.
fn damage(store: &TestStore, chunk: ChunkId) {
    let location = store.index.chunks.lock().unwrap()[&chunk];
    let name = location.pack.to_string();
    let is_it = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|file| file.to_string_lossy() == name)
    };
    let pack = store.files().into_iter().find(is_it).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(pack).unwrap();
    file.write_all_at(&[0xee; 16], u64::from(location.offset))
        .unwrap();
}

#[test]
fn a_damaged_base_stops_the_run() {
    let (store, files, root) = large();
    let tree = TreeReader::new(Arc::clone(&store.reader));
    let map = map_of(&tree, &root, 0).unwrap();
    damage(&store, tree.window(&map, 9000 / 4).unwrap().chunk.unwrap());
    let (fresh, _packs) = reopened(store);
    let change = |block| {
        let step = Step::Incremental {
            truncation: files[&0].len() / BLOCK,
            blocks: BTreeMap::from([(block, 5)]),
        };
        compose(&fresh, &root, &files, &BTreeMap::from([(0, step)]))
    };
    let error = change(9000).unwrap_err();
    assert!(error.is_damage(), "{error}");
    // Windows that are taken over are not read.
    change(3).unwrap();
}
