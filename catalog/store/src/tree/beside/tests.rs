use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::file_map::PIECE_WINDOWS;
use crate::testing::{ATTRIBUTES, TestStore, noise};
use crate::{ChunkReader, TreeOptions, TreeWriter};

/// The smallest window, so that tests reach pieces with little data.
const WINDOW: usize = 8192;

/// Files by path, each as the seeds of its windows; 0 is a hole.
type Files = BTreeMap<String, Vec<u8>>;

fn store_tree(store: &TestStore, previous: Option<&DirectoryRef>, files: &Files) -> DirectoryRef {
    let depositor = store.depositor();
    let previous = previous.map(|root| (TreeReader::new(Arc::clone(&store.reader)), root.clone()));
    let tree = TreeWriter::begin(Arc::clone(&depositor), previous, TreeOptions::default());
    for (path, windows) in files {
        let bytes = (windows.len() * WINDOW) as u64;
        let mut sink = tree
            .file(path.as_bytes(), ATTRIBUTES, bytes, WINDOW as u32)
            .unwrap();
        for seed in windows {
            let window = match seed {
                0 => vec![0; WINDOW],
                seed => noise(u64::from(*seed), 64)
                    .into_iter()
                    .cycle()
                    .take(WINDOW)
                    .collect(),
            };
            sink.write(&window).unwrap();
        }
        sink.finish().unwrap();
    }
    let root = tree.finish(ATTRIBUTES).unwrap().root;
    depositor.flush(Vec::new()).unwrap();
    root
}

/// What the walks of a mark have met.
#[derive(Default)]
struct Marked {
    entered: HashSet<(ChunkId, ChunkRole)>,
    windows: Mutex<HashSet<ChunkId>>,
    /// Windows that were handed on, as often as they were.
    taken: Mutex<usize>,
}

impl Marked {
    fn walk(&mut self, tree: &TreeReader, root: &DirectoryRef, before: Option<&DirectoryRef>) -> Result<()> {
        let (entered, windows, taken) = (&mut self.entered, &self.windows, &self.taken);
        tree.chunks_beside(
            root,
            before,
            &mut |id, role| Ok(entered.insert((id, role))),
            &|ids| {
                windows.lock().unwrap().extend(ids);
                *taken.lock().unwrap() += ids.len();
                Ok(())
            },
        )
    }

    fn all(&self) -> HashSet<(ChunkId, ChunkRole)> {
        let windows = self.windows.lock().unwrap();
        let windows = windows.iter().map(|id| (*id, ChunkRole::Window));
        self.entered.iter().copied().chain(windows).collect()
    }
}

/// What the plain walk meets.
fn plain(tree: &TreeReader, roots: &[DirectoryRef]) -> HashSet<(ChunkId, ChunkRole)> {
    let mut met = HashSet::new();
    for root in roots {
        tree.chunks_of(root, &mut |id, role| Ok(met.insert((id, role))))
            .unwrap();
    }
    met
}

fn files() -> impl Strategy<Value = Files> {
    let length = prop_oneof![4 => 0..4_usize, 2 => 15..20_usize];
    let windows = (length, any::<u8>()).prop_map(|(count, seed)| {
        (0..count)
            .map(|n| (seed as usize + n) as u8 % 40)
            .collect::<Vec<u8>>()
    });
    proptest::collection::btree_map("([ab]/){0,2}[c-f]{1,2}", windows, 0..24)
}

/// Changes of one version to the next: to which file, and how.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    proptest::collection::vec((any::<prop::sample::Index>(), 0..5_u8, 0..60_u8), 0..8)
}

fn changed(files: &Files, changes: &[(prop::sample::Index, u8, u8)]) -> Files {
    let mut files = files.clone();
    for (at, how, value) in changes {
        let paths: Vec<String> = files.keys().cloned().collect();
        if paths.is_empty() {
            break;
        }
        let path = at.get(&paths);
        let windows = files.get_mut(path).unwrap();
        match how {
            0 => drop(files.remove(path)),
            1 => windows.push(*value),
            2 => drop(windows.pop()),
            3 => drop(files.insert(format!("{path}x"), vec![*value; 17])),
            _ => {
                let count = windows.len().max(1);
                if let Some(window) = windows.get_mut(usize::from(*value) % count) {
                    *window = *value;
                }
            }
        }
    }
    files
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever each version is compared with, all of them together meet what the plain walk meets.
    #[test]
    fn trees_beside_others_meet_what_the_plain_walk_meets(
        first in files(),
        versions in proptest::collection::vec((changes(), any::<prop::sample::Index>(), any::<bool>()), 1..6),
    ) {
        let store = TestStore::new();
        let tree = TreeReader::new(Arc::clone(&store.reader));
        let mut all = vec![first.clone()];
        let mut roots = vec![store_tree(&store, None, &first)];
        let mut marked = Marked::default();
        marked.walk(&tree, &roots[0], None).unwrap();
        for (changes, beside, from_last) in &versions {
            let parent = if *from_last { all.last().unwrap() } else { beside.get(&all) };
            let files = changed(parent, changes);
            let root = store_tree(&store, roots.last(), &files);
            marked.walk(&tree, &root, Some(beside.get(&roots))).unwrap();
            prop_assert!(!marked.windows.lock().unwrap().contains(&ChunkId([0; 32])));
            all.push(files);
            roots.push(root);
            prop_assert_eq!(marked.all(), plain(&tree, &roots));
        }
    }
}

/// A file of two pieces and a bit.
fn large(change: impl Fn(usize) -> bool) -> Files {
    let windows = (0..2 * PIECE_WINDOWS + 5).map(|n| if change(n) { 201 } else { (n % 200) as u8 + 1 });
    Files::from([
        ("base/5/1".to_owned(), windows.collect()),
        ("other".to_owned(), vec![9; 3]),
    ])
}

#[test]
fn a_changed_piece_costs_its_changed_rows() {
    let store = TestStore::new();
    let tree = TreeReader::new(Arc::clone(&store.reader));
    let first = store_tree(&store, None, &large(|_| false));
    let second = store_tree(&store, Some(&first), &large(|n| n % 500 == 7));
    let mut marked = Marked::default();
    marked.walk(&tree, &first, None).unwrap();
    let before = *marked.taken.lock().unwrap();
    assert_eq!(before, 2 * PIECE_WINDOWS + 5 + 3);
    marked.walk(&tree, &second, Some(&first)).unwrap();
    assert_eq!(*marked.taken.lock().unwrap() - before, 9);
    marked.walk(&tree, &second, Some(&first)).unwrap();
    assert_eq!(*marked.taken.lock().unwrap() - before, 9);
    assert_eq!(marked.all(), plain(&tree, &[first, second]));
}

/// A reader that has nothing in its cache.
fn fresh_reader(store: &TestStore) -> Arc<ChunkReader> {
    let index = Arc::clone(&store.index) as _;
    Arc::new(ChunkReader::new(
        Arc::clone(&store.counted),
        index,
        Arc::default(),
        8 << 20,
    ))
}

/// Of the earlier tree only what can be read helps; of the tree itself everything must be there.
#[test]
fn what_is_gone_from_the_earlier_tree_does_no_harm_and_from_the_tree_itself_is_an_error() {
    let store = TestStore::new();
    let tree = TreeReader::new(Arc::clone(&store.reader));
    let first = store_tree(&store, None, &large(|_| false));
    let second = store_tree(&store, Some(&first), &large(|n| n % 500 == 7));
    let expected = plain(&tree, &[first.clone(), second.clone()]);
    let own = plain(&tree, std::slice::from_ref(&second));
    let of_first = plain(&tree, std::slice::from_ref(&first));
    let lose = |met: &mut dyn Iterator<Item = ChunkId>| {
        met.for_each(|id| assert!(store.index.chunks.lock().unwrap().remove(&id).is_some()));
    };
    let mut marked = Marked::default();
    marked.walk(&tree, &first, None).unwrap();
    let is_map = |(_, role): &&(ChunkId, ChunkRole)| *role != ChunkRole::Window;
    // Bases of deltas are read all the same: what the second tree needs, whole, stays.
    let whole = |id: &ChunkId| {
        let chunks = store.index.chunks.lock().unwrap();
        chunks.values().any(|place| place.base == Some(*id))
    };
    let gone: Vec<_> = of_first
        .difference(&own)
        .filter(is_map)
        .map(|(id, _)| *id)
        .collect();
    let gone: Vec<_> = gone.into_iter().filter(|id| !whole(id)).collect();
    lose(&mut gone.iter().copied());
    let fresh = TreeReader::new(fresh_reader(&store));
    marked.walk(&fresh, &second, Some(&first)).unwrap();
    assert_eq!(marked.all(), expected);

    let piece = own.iter().find(|(_, role)| *role == ChunkRole::Piece).unwrap().0;
    lose(&mut std::iter::once(piece));
    let fresh = TreeReader::new(fresh_reader(&store));
    let error = Marked::default().walk(&fresh, &second, None).unwrap_err();
    assert!(error.is_damage(), "{error}");
}
