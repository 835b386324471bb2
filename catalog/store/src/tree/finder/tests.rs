use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::layout::{BLOCK_BYTES, DATA_WINDOW_BYTES};
use crate::testing::{ATTRIBUTES, TestStore, noise};
use crate::tree::{TreeOptions, TreeTotals, TreeWriter};
use crate::{FileMap, Node};

fn path(n: usize) -> Vec<u8> {
    format!("base/5/{}", 16384 + n).into_bytes()
}

/// All numbers below `count`, in an order that no listing has: each once, as the step is a prime.
fn shuffled(count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |n| n * 7919 % count)
}

fn store_full(store: &TestStore, count: usize) -> TreeTotals {
    let depositor = store.depositor();
    let tree = TreeWriter::begin(Arc::clone(&depositor), None, TreeOptions::default());
    for n in 0..count {
        let content = noise(n as u64 % 10, BLOCK_BYTES);
        let size_bytes = content.len() as u64;
        let mut sink = tree
            .file(&path(n), ATTRIBUTES, size_bytes, DATA_WINDOW_BYTES)
            .unwrap();
        sink.write(&content).unwrap();
        sink.finish().unwrap();
    }
    let totals = tree.finish(ATTRIBUTES).unwrap();
    depositor.flush(Vec::new()).unwrap();
    totals
}

/// An incremental backup in which nothing has changed.
fn store_unchanged(store: &TestStore, parent: &DirectoryRef, count: usize) -> TreeTotals {
    let reader = TreeReader::new(Arc::clone(&store.reader));
    let mut files = Finder::new(reader.clone(), parent.clone());
    let depositor = store.depositor();
    let previous = Some((reader.clone(), parent.clone()));
    let tree = TreeWriter::begin(Arc::clone(&depositor), previous, TreeOptions::default());
    for n in shuffled(count) {
        let map = map_at(&mut files, n).unwrap();
        let (size_bytes, base) = (map.size_bytes, Some((&reader, &map)));
        let sink = tree.composed_file(
            &path(n),
            ATTRIBUTES,
            size_bytes,
            DATA_WINDOW_BYTES,
            base,
            size_bytes,
        );
        sink.unwrap().finish().unwrap();
    }
    let totals = tree.finish(ATTRIBUTES).unwrap();
    depositor.flush(Vec::new()).unwrap();
    totals
}

fn map_at(files: &mut Finder, n: usize) -> Option<FileMap> {
    match files.find(&path(n)).unwrap()?.node {
        Node::File(map) => Some(map),
        _ => None,
    }
}

fn directory_of(store: &TestStore, root: &DirectoryRef) -> DirectoryRef {
    let tree = TreeReader::new(Arc::clone(&store.reader));
    match tree.find(root, b"base/5").unwrap().unwrap().node {
        Node::Directory(directory) => directory,
        other => panic!("{other:?}"),
    }
}

fn requests(store: &TestStore) -> u64 {
    let counts = store.reader.counters().snapshot();
    counts.cache_hits + counts.cache_misses
}

/// The work of an incremental backup in which nothing has changed: each page of the listings is requested once by
/// what looks for the parent's files, and the index is asked once for each page. Nothing is asked for each file.
#[test]
fn unchanged_files_cost_their_pages_and_nothing_each() {
    for count in [250, 1000, 4000] {
        let store = TestStore::new();
        let full = store_full(&store, count);
        let pages = directory_of(&store, &full.root).pages.len() as u64;
        let (read_before, asked_before) = (requests(&store), store.asked());
        let unchanged = store_unchanged(&store, &full.root, count);
        assert_eq!(unchanged, full);
        let (read, asked) = (requests(&store) - read_before, store.asked() - asked_before);
        // The root and base have one page each, which the tree's writer reads as well.
        assert!(
            read <= pages + 4,
            "{read} requests for {pages} pages of {count} files"
        );
        assert!(
            asked <= pages + 2,
            "{asked} look-ups for {pages} pages of {count} files"
        );
    }
}

#[test]
fn it_finds_what_the_reader_finds() {
    let store = TestStore::new();
    let root = store_full(&store, 600).root;
    let tree = TreeReader::new(Arc::clone(&store.reader));
    let mut files = Finder::new(tree.clone(), root.clone());
    let names: BTreeSet<Vec<u8>> = shuffled(600)
        .map(path)
        .chain((590..620).map(path))
        .chain(
            [
                "",
                "base",
                "base/5",
                "base/6",
                "base/6/1",
                "base/5/16384/1",
                "zzz",
                "base/5/",
            ]
            .map(Vec::from),
        )
        .collect();
    for name in &names {
        assert_eq!(
            files.find(name).unwrap(),
            tree.find(&root, name).unwrap(),
            "{name:?}"
        );
    }
}

#[test]
fn pages_that_do_not_fit_are_read_again() {
    let store = TestStore::new();
    let root = store_full(&store, 600).root;
    let mut files = Finder::new(TreeReader::new(Arc::clone(&store.reader)), root);
    files.limit_bytes = 1;
    for n in shuffled(600) {
        assert!(map_at(&mut files, n).is_some());
        assert_eq!(files.pages.len(), 1);
    }
}
