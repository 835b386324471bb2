use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::file_map::{INLINE_WINDOWS, PIECE_WINDOWS};
use crate::testing::{TestStore, noise};
use crate::{Attributes, ContentClass, DirectoryRef, Entry, Error, FileMap, Node, Result, Windows};

/// The smallest window, so that tests reach pieces with little data.
const WINDOW: u32 = 8192;

const ROOT: Attributes = Attributes {
    mode: 0o700,
    uid: 26,
    gid: 26,
    mtime_s: 1_700_000_000,
    mtime_ns: 5,
};

/// What a tree should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Model {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
}

type ModelTree = BTreeMap<Vec<u8>, (Attributes, Model)>;

fn attributes(seed: u32) -> Attributes {
    Attributes {
        mode: seed % 0o10000,
        uid: seed,
        gid: seed / 2,
        mtime_s: i64::from(seed) - 1000,
        mtime_ns: seed % 1_000_000_000,
    }
}

fn entries_in(entries_bytes: usize) -> TreeOptions {
    TreeOptions {
        entries_bytes,
        ..TreeOptions::default()
    }
}

/// Writes the model's entries in this order.
fn write(
    store: &TestStore,
    previous: Option<&DirectoryRef>,
    options: TreeOptions,
    entries: &[(&Vec<u8>, &(Attributes, Model))],
) -> Result<(TreeTotals, crate::DepositTotals)> {
    let depositor = store.depositor();
    let previous = previous.map(|root| (TreeReader::new(Arc::clone(&store.reader)), root.clone()));
    let tree = TreeWriter::begin(Arc::clone(&depositor), previous, options);
    for (path, (attributes, model)) in entries {
        match model {
            Model::Directory => tree.directory(path, *attributes)?,
            Model::Symlink(target) => tree.symlink(path, *attributes, target)?,
            Model::File(content) => {
                let mut sink = tree.file(path, *attributes, content.len() as u64, WINDOW)?;
                content.chunks(10_000).try_for_each(|part| sink.write(part))?;
                sink.finish()?;
            }
        }
    }
    let totals = tree.finish(ROOT)?;
    depositor.flush(Vec::new())?;
    Ok((totals, depositor.totals()))
}

fn write_in_order(
    store: &TestStore,
    previous: Option<&DirectoryRef>,
    model: &ModelTree,
) -> (TreeTotals, crate::DepositTotals) {
    let entries: Vec<_> = model.iter().collect();
    write(store, previous, TreeOptions::default(), &entries).unwrap()
}

/// Reads all of a tree back.
fn read(tree: &TreeReader, root: &DirectoryRef) -> ModelTree {
    let mut found = ModelTree::new();
    let mut waiting = vec![(Vec::new(), root.clone())];
    while let Some((path, directory)) = waiting.pop() {
        for entry in tree.entries(&directory) {
            let Entry {
                name,
                attributes,
                node,
            } = entry.unwrap();
            let path = if path.is_empty() {
                name
            } else {
                [&path[..], b"/", &name].concat()
            };
            let model = match node {
                Node::Symlink(target) => Model::Symlink(target),
                Node::Directory(child) => {
                    waiting.push((path.clone(), child));
                    Model::Directory
                }
                Node::File(map) => {
                    let mut content = Vec::new();
                    tree.reader(map.clone()).read_to_end(&mut content).unwrap();
                    assert_eq!(map.crc32c, crc32c::crc32c(&content));
                    Model::File(content)
                }
            };
            found.insert(path, (attributes, model));
        }
    }
    found
}

fn file(model: &mut ModelTree, path: &str, content: Vec<u8>) {
    model.insert(path.into(), (attributes(path.len() as u32), Model::File(content)));
}

/// Adds the parent directories that paths imply.
fn with_parents(model: &ModelTree) -> ModelTree {
    let mut all = model.clone();
    for path in model.keys() {
        for (at, _) in path.iter().enumerate().filter(|&(_, &byte)| byte == b'/') {
            all.entry(path[..at].to_vec()).or_insert((ROOT, Model::Directory));
        }
    }
    all
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let window = WINDOW as usize;
    let boundary =
        (0..5_usize, 0..3_usize).prop_map(move |(windows, off)| (windows * window + off).saturating_sub(1));
    let bytes = prop_oneof![
        4 => Just(0_usize),
        8 => 1..200_usize,
        8 => boundary,
        2 => INLINE_WINDOWS * window - 1..INLINE_WINDOWS * window + 2,
    ];
    (bytes, any::<u64>(), proptest::collection::vec(any::<bool>(), 5)).prop_map(
        move |(bytes, seed, holes)| {
            let mut content = noise(seed % 50, bytes);
            for (part, hole) in content.chunks_mut(window).zip(holes.into_iter().cycle()) {
                if hole {
                    part.fill(0);
                }
            }
            content
        },
    )
}

fn model() -> impl Strategy<Value = ModelTree> {
    let node = prop_oneof![
        6 => content().prop_map(Model::File),
        1 => Just(Model::Directory),
        1 => proptest::collection::vec(1_u8.., 1..20).prop_map(Model::Symlink),
    ];
    let path = ("[a-c]{0,1}", "[a-c]{0,1}", "[a-z]{1,3}");
    proptest::collection::vec((path, any::<u32>(), node), 0..30).prop_map(|entries| {
        let mut model = ModelTree::new();
        for ((a, b, name), seed, node) in entries {
            let path: Vec<_> = [a, b, name].into_iter().filter(|part| !part.is_empty()).collect();
            let path = path.join("/").into_bytes();
            // Only a directory may have entries below it.
            let below = [&path[..], b"/"].concat();
            let has_children = model.keys().any(|other| other.starts_with(&below));
            let under_other = path.iter().enumerate().any(|(at, &byte)| {
                byte == b'/'
                    && model
                        .get(&path[..at])
                        .is_some_and(|(_, node)| *node != Model::Directory)
            });
            if !under_other && (!has_children || node == Model::Directory) {
                model.insert(path, (attributes(seed), node));
            }
        }
        model
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A tree reads back, and writing the same again adds nothing at all.
    #[test]
    fn a_tree_reads_back_and_storing_it_again_adds_nothing(model in model()) {
        let store = TestStore::new();
        let (totals, _) = write_in_order(&store, None, &model);
        let tree = TreeReader::new(Arc::clone(&store.reader));
        let expected = with_parents(&model);
        prop_assert_eq!(read(&tree, &totals.root), expected.clone());
        let files = expected.values().filter(|(_, node)| matches!(node, Model::File(_))).count() as u64;
        let directories = expected.values().filter(|(_, node)| *node == Model::Directory).count() as u64;
        prop_assert_eq!((totals.files, totals.directories), (files, directories));

        let packs = store.files();
        let (again, deposits) = write_in_order(&store, Some(&totals.root), &model);
        prop_assert_eq!(again.root, totals.root);
        prop_assert_eq!(deposits.new_stored_bytes, 0);
        prop_assert_eq!(store.files(), packs);
    }

    /// A second version with changes reads back, beside the first.
    #[test]
    fn two_versions_read_back(first in model(), second in model(), keep in any::<u64>()) {
        let store = TestStore::new();
        let (before, _) = write_in_order(&store, None, &first);
        // Half of the first's files stay, where the second leaves room for them.
        let mut mixed = second;
        for (n, (path, node)) in first.iter().enumerate() {
            let fits = !with_parents(&mixed).contains_key(path)
                && path.iter().enumerate().all(|(at, &byte)| byte != b'/' || mixed.get(&path[..at]).is_none_or(|(_, node)| *node == Model::Directory));
            if keep >> (n % 64) & 1 == 1 && fits && matches!(node.1, Model::File(_)) {
                mixed.insert(path.clone(), node.clone());
            }
        }
        let (after, _) = write_in_order(&store, Some(&before.root), &mixed);
        let tree = TreeReader::new(Arc::clone(&store.reader));
        prop_assert_eq!(read(&tree, &after.root), with_parents(&mixed));
        prop_assert_eq!(read(&tree, &before.root), with_parents(&first));
    }

    /// The root depends only on the content of the tree: not on the order it came in, not on what memory was short
    /// for, not on what the tree was compared with.
    #[test]
    fn the_same_tree_has_the_same_root(
        (sorted, shuffled) in model().prop_flat_map(|model| {
            let entries: Vec<_> = model.clone().into_iter().collect();
            (Just(model), Just(entries).prop_shuffle())
        }),
        other in model(),
        entries_bytes in prop_oneof![Just(0_usize), 0..4000_usize],
    ) {
        let store = TestStore::new();
        let (expected, _) = write_in_order(&store, None, &sorted);
        let (previous, _) = write_in_order(&store, None, &other);
        let shuffled: Vec<_> = shuffled.iter().map(|(path, node)| (path, node)).collect();
        let options = entries_in(entries_bytes);
        let (found, _) = write(&store, Some(&previous.root), options, &shuffled).unwrap();
        prop_assert_eq!(found, expected);
    }

    /// Reads at any place give what the file has there.
    #[test]
    fn reads_at_any_place(content in content(), places in proptest::collection::vec((any::<proptest::sample::Index>(), 0..40_000_usize), 1..10)) {
        let store = TestStore::new();
        let mut model = ModelTree::new();
        file(&mut model, "f", content.clone());
        let (totals, _) = write_in_order(&store, None, &model);
        let tree = TreeReader::new(Arc::clone(&store.reader));
        let map = find_file(&tree, &totals.root, "f");
        for (at, length) in places {
            let at = at.index(content.len() + 2);
            let mut buffer = vec![0xaa; length];
            let count = tree.read_at(&map, at as u64, &mut buffer).unwrap();
            let expected = &content[at.min(content.len())..(at + length).min(content.len())];
            prop_assert_eq!(&buffer[..count], expected);
            let data = tree.next_data(&map, at as u64).unwrap();
            let hole = tree.next_hole(&map, at as u64).unwrap();
            let is_hole = |at: usize| {
                let start = at / WINDOW as usize * WINDOW as usize;
                content[start..(start + WINDOW as usize).min(content.len())].iter().all(|&byte| byte == 0)
            };
            prop_assert_eq!(data, (at..content.len()).find(|&at| !is_hole(at)).map(|at| at as u64));
            let expected = (at..content.len()).find(|&at| is_hole(at)).unwrap_or(content.len());
            prop_assert_eq!(hole, expected as u64);
        }
    }
}

fn find_file(tree: &TreeReader, root: &DirectoryRef, path: &str) -> FileMap {
    match tree.find(root, path.as_bytes()).unwrap() {
        Some(Entry {
            node: Node::File(map),
            ..
        }) => map,
        other => panic!("{path} is no file: {other:?}"),
    }
}

/// Two pieces and a bit, a hole in the second, every window different.
fn large_content() -> Vec<u8> {
    let window = WINDOW as usize;
    let mut content = vec![0; (2 * PIECE_WINDOWS + 3) * window + 100];
    for (n, part) in content.chunks_mut(window).enumerate() {
        if n != PIECE_WINDOWS + 7 {
            part[..8].copy_from_slice(&(n as u64 + 1).to_le_bytes());
        }
    }
    content
}

#[test]
fn a_large_file_has_pieces_and_a_change_costs_a_window_and_a_bit_of_a_piece() {
    let store = TestStore::new();
    let tree = TreeReader::new(Arc::clone(&store.reader));
    let mut model = ModelTree::new();
    file(&mut model, "base/5/16384", large_content());
    let (first, _) = write_in_order(&store, None, &model);
    assert_eq!(read(&tree, &first.root), with_parents(&model));
    let map = find_file(&tree, &first.root, "base/5/16384");
    assert!(
        matches!(&map.windows, Windows::Pieces(pieces) if pieces.len() == 3),
        "{map:?}"
    );
    assert_eq!(tree.window(&map, PIECE_WINDOWS as u64 + 7).unwrap().chunk, None);
    assert!(matches!(
        tree.window(&map, map.window_count()),
        Err(Error::Invalid(_))
    ));
    let hole = (PIECE_WINDOWS as u64 + 7) * u64::from(WINDOW);
    assert_eq!(tree.next_hole(&map, 0).unwrap(), hole);
    assert_eq!(
        tree.next_data(&map, hole + 5).unwrap(),
        Some(hole + u64::from(WINDOW))
    );

    let mut content = large_content();
    content[100] = 1;
    file(&mut model, "base/5/16384", content);
    let (second, deposits) = write_in_order(&store, Some(&first.root), &model);
    assert_eq!(read(&tree, &second.root), with_parents(&model));
    // The window, the first piece, and the listings of three directories.
    assert_eq!(
        (
            deposits.new_whole + deposits.new_delta,
            deposits.new_stored_bytes < 1500
        ),
        (5, true),
        "{deposits:?}"
    );
}

#[test]
fn an_unchanged_file_is_compared_without_the_index() {
    let store = TestStore::new();
    let mut model = ModelTree::new();
    file(&mut model, "base/5/16384", large_content());
    let (first, _) = write_in_order(&store, None, &model);
    let before = store.index.look_ups.load(Ordering::SeqCst);
    let (_, deposits) = write_in_order(&store, Some(&first.root), &model);
    let look_ups = store.index.look_ups.load(Ordering::SeqCst) - before;
    assert_eq!(look_ups, 3 + 3, "three pieces, three listings, no window");
    assert_eq!(deposits.reused + deposits.holes, deposits.chunks);
}

#[test]
fn a_large_directory_has_pages_and_a_new_file_changes_one() {
    let store = TestStore::new();
    let tree = TreeReader::new(Arc::clone(&store.reader));
    let mut model = ModelTree::new();
    for n in 0..5000 {
        file(&mut model, &format!("base/{n}"), Vec::new());
    }
    let (first, _) = write_in_order(&store, None, &model);
    assert_eq!(read(&tree, &first.root), with_parents(&model));
    let pages = |root| match tree.find(root, b"base").unwrap().unwrap().node {
        Node::Directory(directory) => directory.pages,
        other => panic!("{other:?}"),
    };
    let before = pages(&first.root);
    assert!((10..40).contains(&before.len()), "{} pages", before.len());
    file(&mut model, "base/2500x", noise(1, 10));
    let (second, deposits) = write_in_order(&store, Some(&first.root), &model);
    let changed = pages(&second.root)
        .iter()
        .filter(|page| !before.contains(page))
        .count();
    assert_eq!(changed, 1);
    assert!(deposits.new_stored_bytes < 2000, "{deposits:?}");
    assert!(tree.find(&second.root, b"base/2500x").unwrap().is_some());
    for absent in [
        "base/2500y",
        "base/",
        "",
        "bas",
        "base/0/1",
        "a",
        "z",
        "base/2500x/y",
    ] {
        assert_eq!(
            tree.find(&second.root, absent.as_bytes()).unwrap(),
            None,
            "{absent}"
        );
    }
}

#[test]
fn directories_can_be_entered_again_after_they_were_written_out() {
    let store = TestStore::new();
    let tree = TreeReader::new(Arc::clone(&store.reader));
    let mut model = ModelTree::new();
    for n in 0..300 {
        file(&mut model, &format!("d{}/{n:03}", n % 3), vec![1; n]);
        file(&mut model, &format!("d{}/sub/{n:03}", n % 3), vec![2; n]);
    }
    let (expected, _) = write_in_order(&store, None, &model);
    let mut entries: Vec<_> = model.iter().collect();
    entries.sort_by_key(|(path, _)| path.iter().rev().copied().collect::<Vec<_>>());
    let (found, _) = write(&store, None, entries_in(1000), &entries).unwrap();
    assert_eq!(found, expected);
    assert_eq!(read(&tree, &found.root), with_parents(&model));
}

#[test]
fn a_repeated_path_is_refused_even_after_its_directory_was_written_out() {
    let empty = || Model::File(Vec::new());
    let cases: [(&str, Model, &str, Model); 7] = [
        ("a/b", empty(), "a/b", empty()),
        ("a/b", empty(), "a/b", Model::Symlink(b"x".to_vec())),
        ("a/b", empty(), "a/b", Model::Directory),
        ("a/b", empty(), "a/b/c", empty()),
        ("a/b/c", empty(), "a/b", empty()),
        ("a/b", Model::Directory, "a/b", empty()),
        ("a/b", Model::Directory, "a/b", Model::Directory),
    ];
    for entries_bytes in [0, 1 << 20] {
        for (first, first_node, second, second_node) in &cases {
            let store = TestStore::new();
            let mut entries: Vec<(Vec<u8>, (Attributes, Model))> =
                vec![(first.as_bytes().to_vec(), (ROOT, first_node.clone()))];
            // Leave the directory, so that it is written out.
            entries.extend((0..50).map(|n| (format!("z{n}/x").into_bytes(), (ROOT, empty()))));
            entries.push((second.as_bytes().to_vec(), (ROOT, second_node.clone())));
            let entries: Vec<_> = entries.iter().map(|(path, node)| (path, node)).collect();
            let error = write(&store, None, entries_in(entries_bytes), &entries)
                .unwrap_err()
                .to_string();
            assert!(
                error.ends_with("is in the backup twice"),
                "{first} {second}: {error}"
            );
        }
    }
}

#[test]
fn paths_that_cannot_be_stored_are_refused_by_name() {
    let store = TestStore::new();
    let tree = TreeWriter::begin(store.depositor(), None, TreeOptions::default());
    let error = |result: Result<()>| result.unwrap_err().to_string();
    let file = |path: &str, size, window| tree.file(path.as_bytes(), ROOT, size, window);
    assert!(error(tree.directory(b"../x", ROOT)).contains("is refused"));
    assert!(error(tree.symlink(b"x", ROOT, b"")).contains("cannot point to"));
    let bad = Attributes {
        mtime_ns: 1_000_000_000,
        ..ROOT
    };
    assert!(error(tree.directory(b"x", bad)).contains("nanoseconds"));
    assert_eq!(
        error(file("f", 1, 5000).map(drop)),
        "File \"f\": Windows of 5000 bytes are not possible"
    );
    assert_eq!(
        error(file("f", u64::MAX, WINDOW).map(drop)),
        "File \"f\": A file of 18446744073709551615 bytes is too large"
    );
    let mut sink = file("long", 10, WINDOW).unwrap();
    assert_eq!(
        error(sink.write(&[1; 11])),
        "File \"long\": It has more than the 10 bytes announced"
    );
    let mut sink = file("short", 10, WINDOW).unwrap();
    sink.write(&[1; 9]).unwrap();
    assert_eq!(
        error(sink.finish()),
        "File \"short\": It ends 1 bytes before the 10 announced"
    );
    assert!(error(tree.finish(ROOT).map(drop)).contains("begun and not finished"));
}

#[test]
fn a_previous_tree_that_cannot_be_read_only_costs_space() {
    let store = TestStore::new();
    let mut model = ModelTree::new();
    file(&mut model, "base/5/16384", noise(1, 300_000));
    let (first, _) = write_in_order(&store, None, &model);
    let other = TestStore::new();
    let (second, _) = write_in_order(&other, Some(&first.root), &model);
    assert_eq!(second.root, first.root);
    assert_eq!(
        read(&TreeReader::new(Arc::clone(&other.reader)), &second.root),
        with_parents(&model)
    );
}

#[test]
fn the_chunks_of_a_tree_are_complete() {
    let store = TestStore::new();
    let tree = TreeReader::new(Arc::clone(&store.reader));
    let mut model = ModelTree::new();
    file(&mut model, "base/5/16384", large_content());
    file(&mut model, "base/5/1", noise(1, 30_000));
    model.insert(b"link".to_vec(), (ROOT, Model::Symlink(b"base".to_vec())));
    let (totals, _) = write_in_order(&store, None, &model);
    let mut found = std::collections::HashSet::new();
    let mut collect = |chunk, _| {
        found.insert(chunk);
        Ok(true)
    };
    tree.chunks_of(&totals.root, &mut collect).unwrap();
    let stored: std::collections::HashSet<_> = store.index.chunks.lock().unwrap().keys().copied().collect();
    assert_eq!(found, stored);
    let mut seen = 0;
    tree.chunks_of(&totals.root, &mut |_, _| {
        seen += 1;
        Ok(false)
    })
    .unwrap();
    assert_eq!(
        seen,
        totals.root.pages.len(),
        "nothing below what is known already"
    );
}

#[test]
fn a_single_file_is_stored_like_one_in_a_tree() {
    let store = TestStore::new();
    let depositor = store.depositor();
    let tree = TreeReader::new(Arc::clone(&store.reader));
    for bytes in [0, 1, 16 << 20, 33 << 20] {
        let content = noise(bytes as u64, bytes);
        let mut single = SingleFile::begin(
            Arc::clone(&depositor),
            bytes as u64,
            crate::layout::STREAM_WINDOW_BYTES,
            ContentClass::Stream,
        )
        .unwrap();
        content
            .chunks(65_536)
            .for_each(|part| single.write(part).unwrap());
        let stored = single.finish().unwrap();
        depositor.flush(Vec::new()).unwrap();
        let mut found = Vec::new();
        tree.reader(stored.map.clone()).read_to_end(&mut found).unwrap();
        assert!(found == content);
        assert_eq!(stored.map.crc32c, crc32c::crc32c(&content));
        assert!(stored.new_stored_bytes >= bytes as u64);
        let json = serde_json::to_string(&stored.map).unwrap();
        assert_eq!(serde_json::from_str::<FileMap>(&json).unwrap(), stored.map);
    }
}
