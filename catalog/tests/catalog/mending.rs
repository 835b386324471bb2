//! Damage is not inherited: a chunk found damaged is stored again as soon as a writer brings it, and that copy is the
//! one that stays.

use std::fs;
use std::path::PathBuf;

use crate::common::{
    Files, Fixture, SYSTEM, WINDOW, archive, attributes, back_up, backup_end, begin, clone_of, fixture,
    new_backup, noise, put_files, read_wal, restore, segment,
};
use barmanfs_catalog::{
    Backup, BackupRun, Repository, Silent, SweepOptions, VerifyReport, VerifyScope, WalOutcome,
};
use barmanfs_store::{ChunkId, DirectoryRef, FileMap, LocalPacks, Node, PackStorage, Windows, read_footer};

const LARGE: &str = "base/large";
const CHANGING: &str = "base/changing";

/// Files in the directory `global` never change.
fn files(generation: u8) -> Files {
    let mut changing = noise(3, 100_000);
    changing[7] ^= generation;
    [
        (LARGE.to_owned(), noise(1, 4 << 20)),
        (CHANGING.to_owned(), changing),
        ("global/1262".to_owned(), noise(4, 300_000)),
    ]
    .into()
}

/// The repository as another process sees it, with nothing cached.
fn reopened(f: &Fixture) -> Repository {
    Repository::open(f.repository.path()).unwrap()
}

fn verify(f: &Fixture) -> VerifyReport {
    let repository = reopened(f);
    let report = repository.verify(&VerifyScope::All, &mut Silent).unwrap();
    repository.note_damage(&report).unwrap();
    report
}

fn assert_clean(f: &Fixture) -> VerifyReport {
    let report = verify(f);
    assert!(report.is_clean(), "{report:?}");
    report
}

fn root(backup: &Backup) -> DirectoryRef {
    backup.root.clone().unwrap().directory
}

fn map(f: &Fixture, backup: &Backup, path: &str) -> FileMap {
    let entry = f.repository.trees().find(&root(backup), path.as_bytes());
    let Node::File(map) = entry.unwrap().unwrap().node else {
        panic!("{path} is no file")
    };
    map
}

fn window(f: &Fixture, backup: &Backup, path: &str) -> ChunkId {
    let map = map(f, backup, path);
    f.repository.trees().window(&map, 0).unwrap().chunk.unwrap()
}

/// The packs that have this chunk, and where its frame begins there.
fn places(f: &Fixture, id: ChunkId) -> Vec<(PathBuf, usize)> {
    let directory = f.repository.path().join("packs");
    let packs = LocalPacks::open(&directory).unwrap();
    let mut places = Vec::new();
    packs
        .list(&mut |pack| {
            let closed = read_footer(&packs, pack)?;
            if let Some(chunk) = closed.chunks.iter().find(|chunk| chunk.id == id) {
                let name = pack.to_string();
                places.push((directory.join(&name[..2]).join(&name), chunk.offset as usize));
            }
            Ok(())
        })
        .unwrap();
    places
}

/// Flips a byte of the only copy of a chunk; a second call repairs it.
fn flip(f: &Fixture, id: ChunkId) {
    let places = places(f, id);
    let [(pack, offset)] = places.as_slice() else {
        panic!("{} copies of {id}", places.len())
    };
    let mut bytes = fs::read(pack).unwrap();
    bytes[offset + 20] ^= 1;
    fs::write(pack, bytes).unwrap();
}

/// Checks that nothing is damaged any more, and that this stays so whatever is done with the repository.
fn assert_mended(f: &Fixture, backups: &[(&Backup, u8)]) {
    let assert_all = || {
        assert_clean(f);
        for (backup, generation) in backups {
            assert_eq!(restore(&reopened(f), backup), files(*generation));
        }
    };
    assert_all();
    for dead_percent in [SweepOptions::default().dead_percent, 0] {
        let options = SweepOptions {
            dead_percent,
            ..SweepOptions::default()
        };
        let report = reopened(f).sweep(&options, &mut Silent).unwrap();
        assert_eq!(
            (report.problems.len(), report.missing_chunks),
            (0, 0),
            "{report:?}"
        );
        assert_all();
        Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
        assert_all();
    }
}

#[test]
fn the_next_backup_stores_a_damaged_window_again() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    flip(&f, window(&f, &first, LARGE));
    assert_eq!(verify(&f).bad_chunks, 1);
    let second = back_up(&reopened(&f), &f.server, &files(0));
    assert_mended(&f, &[(&first, 0), (&second, 0)]);
}

#[test]
fn a_sweep_removes_a_damaged_place_once_its_chunk_is_stored_again() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    let id = window(&f, &first, LARGE);
    flip(&f, id);
    let damaged = places(&f, id);
    verify(&f);
    sweep(&f);
    assert_eq!(places(&f, id), damaged, "it may be mended");
    let second = back_up(&reopened(&f), &f.server, &files(0));
    sweep(&f);
    assert_eq!(places(&f, id).len(), 1);
    assert_ne!(places(&f, id), damaged);
    assert_mended(&f, &[(&first, 0), (&second, 0)]);
}

#[test]
fn a_rebuilt_catalog_still_has_damage_stored_again() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    flip(&f, window(&f, &first, LARGE));
    assert_eq!(verify(&f).bad_chunks, 1);
    Repository::rebuild(f.repository.path(), &mut Silent).unwrap();
    let second = back_up(&reopened(&f), &f.server, &files(0));
    assert_mended(&f, &[(&first, 0), (&second, 0)]);
}

#[test]
fn a_damaged_listing_is_mended_by_the_next_backup() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    let entry = f.repository.trees().find(&root(&first), b"global");
    let Node::Directory(global) = entry.unwrap().unwrap().node else {
        panic!("global is no directory")
    };
    flip(&f, global.pages[0].chunk);
    assert_eq!(verify(&f).bad_chunks, 1);
    assert!(reopened(&f).sweep(&SweepOptions::default(), &mut Silent).is_err());
    let second = back_up(&reopened(&f), &f.server, &files(1));
    assert_mended(&f, &[(&first, 0), (&second, 1)]);
}

#[test]
fn a_damaged_piece_of_a_map_is_stored_again() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    let Windows::Pieces(pieces) = map(&f, &first, LARGE).windows else {
        panic!("a large file has pieces")
    };
    flip(&f, pieces[0]);
    assert_eq!(verify(&f).bad_chunks, 1);
    let second = back_up(&reopened(&f), &f.server, &files(0));
    assert_mended(&f, &[(&first, 0), (&second, 0)]);
}

#[test]
fn deltas_of_a_damaged_base_read_again_when_it_is_stored_again() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    let second = back_up(&f.repository, &f.server, &files(1));
    flip(&f, window(&f, &first, CHANGING));
    assert_eq!(verify(&f).bad_chunks, 2);
    let third = back_up(&reopened(&f), &f.server, &files(0));
    assert_mended(&f, &[(&first, 0), (&second, 1), (&third, 0)]);
}

#[test]
fn a_delta_of_a_damaged_base_is_stored_again_without_the_base() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    let second = back_up(&f.repository, &f.server, &files(1));
    flip(&f, window(&f, &first, CHANGING));
    assert_eq!(verify(&f).bad_chunks, 2);
    let third = back_up(&reopened(&f), &f.server, &files(1));
    let report = verify(&f);
    let named: Vec<_> = report.damages.iter().map(|damage| damage.backup).collect();
    assert_eq!((report.bad_chunks, named), (1, vec![Some(first.id)]));
    f.repository.delete_backup(&first, false).unwrap();
    assert_mended(&f, &[(&second, 1), (&third, 1)]);
}

#[test]
fn a_damaged_base_is_stored_again_whole() {
    let f = fixture();
    let file = |path: &str, flipped: u8| {
        let mut bytes = noise(3, 100_000);
        bytes[7] ^= flipped;
        (path.to_owned(), bytes)
    };
    let first = back_up(&f.repository, &f.server, &[file("a", 0)].into());
    let second = back_up(&f.repository, &f.server, &[file("a", 1), file("b", 2)].into());
    flip(&f, window(&f, &first, "a"));
    assert!(!verify(&f).is_clean());
    let third = back_up(&reopened(&f), &f.server, &[file("b", 0)].into());
    assert_clean(&f);
    for (backup, expected) in [
        (first, vec![file("a", 0)]),
        (second, vec![file("a", 1), file("b", 2)]),
        (third, vec![file("b", 0)]),
    ] {
        assert_eq!(restore(&reopened(&f), &backup), expected.into_iter().collect());
    }
}

#[test]
fn a_damaged_segment_is_stored_again_when_it_arrives_again() {
    let f = fixture();
    let (name, bytes) = segment(1, SYSTEM, 1);
    archive(&f.repository, &f.server, &name, &bytes).unwrap();
    let map = f.repository.wal(&f.server).find(&name).unwrap().unwrap().map;
    flip(&f, f.repository.trees().window(&map, 0).unwrap().chunk.unwrap());
    assert_eq!(verify(&f).bad_chunks, 1);
    let again = archive(&reopened(&f), &f.server, &name, &bytes).unwrap();
    assert!(matches!(again, WalOutcome::AlreadyThere(_)), "{again:?}");
    assert_mended(&f, &[]);
    assert_eq!(read_wal(&reopened(&f), &f.server, &name), bytes);
}

/// Puts the files of `parent` as unchanged.
fn put_unchanged(run: &BackupRun, f: &Fixture, parent: &Backup) -> barmanfs_store::Result<()> {
    let trees = f.repository.trees();
    for path in files(0).keys() {
        let map = map(f, parent, path);
        let (size, base) = (map.size_bytes, Some((&trees, &map)));
        let tree = run.tree().unwrap();
        tree.composed_file(path.as_bytes(), attributes(), size, WINDOW, base, size)?
            .finish()?;
    }
    Ok(())
}

#[test]
fn an_incremental_backup_reuses_nothing_damaged_and_may_become_full() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    flip(&f, window(&f, &first, LARGE));
    verify(&f);
    let mut run = begin(&reopened(&f), &f.server);
    run.build_on(&first).unwrap();
    let put = put_unchanged(&run, &f, &first).map_err(barmanfs_catalog::Error::from);
    let refused = put.and_then(|()| run.end_tree(attributes())).unwrap_err();
    assert!(refused.is_damage(), "{refused}");
    run.start_over().unwrap();
    put_files(&run, &files(0));
    run.end_tree(attributes()).unwrap();
    let second = run.finish(backup_end(1, 1)).unwrap();
    assert_mended(&f, &[(&first, 0), (&second, 0)]);
}

#[test]
fn a_commit_reuses_damaged_data_that_is_nowhere_else() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    let damaged = window(&f, &first, LARGE);
    flip(&f, damaged);
    verify(&f);
    let writer = reopened(&f).writer("test commit").unwrap();
    let mut run = writer.begin_backup(&f.server, new_backup()).unwrap();
    run.build_on_clone(&clone_of(&first), true).unwrap();
    put_unchanged(&run, &f, &first).unwrap();
    run.end_tree(attributes()).unwrap();
    let second = run.finish(backup_end(1, 1)).unwrap();
    assert_eq!(verify(&f).damages.len(), 2);
    flip(&f, damaged);
    assert_mended(&f, &[(&first, 0), (&second, 0)]);
}

#[test]
fn a_damaged_place_that_reads_again_is_no_longer_damaged() {
    let f = fixture();
    let first = back_up(&f.repository, &f.server, &files(0));
    let (one, other) = (window(&f, &first, LARGE), window(&f, &first, CHANGING));
    flip(&f, one);
    flip(&f, other);
    assert_eq!(verify(&f).bad_chunks, 2);
    flip(&f, one);
    assert_eq!(verify(&f).bad_chunks, 1);
    let second = back_up(&reopened(&f), &f.server, &files(0));
    assert_eq!(places(&f, one).len(), 1);
    assert_eq!(places(&f, other).len(), 2);
    assert_mended(&f, &[(&first, 0), (&second, 0)]);
}

/// Flips a byte of the newer of two copies of a chunk: the one in the pack that was not there before.
fn flip_newer(f: &Fixture, id: ChunkId, before: &[(PathBuf, usize)]) {
    let places = places(f, id);
    assert_eq!(places.len(), 2);
    let (pack, offset) = places.iter().find(|place| !before.contains(place)).unwrap();
    let mut bytes = fs::read(pack).unwrap();
    bytes[offset + 20] ^= 1;
    fs::write(pack, bytes).unwrap();
}

fn sweep(f: &Fixture) {
    let report = reopened(f).sweep(&SweepOptions::default(), &mut Silent);
    assert_eq!(report.unwrap().problems, []);
}

#[test]
fn a_good_second_copy_replaces_the_damaged_one() {
    let f = fixture();
    let run = begin(&f.repository, &"other".parse().unwrap());
    let first = back_up(&f.repository, &f.server, &files(0));
    let id = window(&f, &first, LARGE);
    let before = places(&f, id);
    // Condemned chunks are stored once more.
    f.repository.delete_backup(&first, false).unwrap();
    sweep(&f);
    let second = back_up(&f.repository, &f.server, &files(0));
    flip_newer(&f, id, &before);
    assert_eq!(restore(&reopened(&f), &second), files(0));
    assert_eq!(assert_clean(&f).mended_chunks, 1);
    assert_eq!(assert_clean(&f).mended_chunks, 0);
    run.fail("Not needed");
    assert_mended(&f, &[(&second, 0)]);
}

#[test]
fn a_good_second_copy_of_a_base_replaces_the_damaged_one() {
    let f = fixture();
    let run = begin(&f.repository, &"other".parse().unwrap());
    let first = back_up(&f.repository, &f.server, &files(0));
    let base = window(&f, &first, CHANGING);
    let before = places(&f, base);
    f.repository.delete_backup(&first, false).unwrap();
    sweep(&f);
    let second = back_up(&f.repository, &f.server, &files(0));
    let third = back_up(&f.repository, &f.server, &files(1));
    f.repository.delete_backup(&second, false).unwrap();
    flip_newer(&f, base, &before);
    assert_eq!(assert_clean(&f).mended_chunks, 1);
    run.fail("Not needed");
    assert_mended(&f, &[(&third, 1)]);
}
