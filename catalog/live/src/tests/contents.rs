//! Copies of a clone's files.

use std::os::unix::fs::MetadataExt;

use barmanfs_catalog::{BackupRun, NewBackup};
use barmanfs_pg::ServerVersion;
use barmanfs_store::Node;

use super::support::{SEGMENT, SYSTEM, WINDOW, attributes, content, data_directory, noise};
use super::*;
use crate::Allocation;

const TABLE: &str = "base/5/1259";

fn stage() -> Stage {
    Stage::new(&data_directory(1))
}

fn run(stage: &Stage) -> BackupRun {
    let new = NewBackup {
        label: None,
        system_id: SYSTEM,
        server_version: ServerVersion(150_018),
        segment_size: SEGMENT,
        wal_included: true,
        fork: None,
        timezone: None,
    };
    let writer = stage.fixture.repository.writer("test").unwrap();
    writer.begin_backup(&stage.fixture.server, new).unwrap()
}

/// Stores a file of the clone; returns how much of it was read, and the stored bytes.
fn stored(stage: &Stage, clone: &LiveClone, path: &str) -> (u64, Vec<u8>) {
    let mut run = run(stage);
    let tree = run.tree().unwrap();
    let read_bytes = clone
        .store_file(id(clone, path), tree, b"file", WINDOW as u32)
        .unwrap();
    let (trees, root) = run.end_tree(attributes(0o700)).unwrap();
    let entry = trees.lookup(&root, b"file").unwrap().unwrap();
    assert_eq!(
        entry.attributes.mtime_s,
        clone.attributes(id(clone, path)).unwrap().mtime.s
    );
    let Node::File(map) = entry.node else {
        panic!("no file");
    };
    let mut bytes = vec![0; usize::try_from(map.size_bytes).unwrap()];
    assert_eq!(trees.read_at(&map, 0, &mut bytes).unwrap(), bytes.len());
    assert_eq!(map.crc32c, crc32c::crc32c(&bytes));
    (read_bytes, bytes)
}

fn copied(stage: &Stage, clone: &LiveClone, path: &str) -> (std::fs::File, Vec<u8>) {
    let place = stage.fixture.directory.path().join("copy");
    let file = std::fs::File::create(&place).unwrap();
    let mut total = 0;
    clone
        .copy_file(id(clone, path), &file, &mut |bytes| total += bytes)
        .unwrap();
    let bytes = std::fs::read(&place).unwrap();
    assert!(total <= bytes.len() as u64);
    (file, bytes)
}

#[test]
fn only_the_changed_blocks_of_a_file_are_read() {
    let stage = stage();
    let clone = stage.create();
    let table = id(&clone, TABLE);
    assert_eq!(stored(&stage, &clone, TABLE).0, 0);
    clone.write(table, 8192 + 10, b"within a block", false).unwrap();
    clone.write(table, 5 * 8192, &[1; 2 * 8192], false).unwrap();
    let end = clone.attributes(table).unwrap().size_bytes;
    clone.write(table, end - 1, b"x and more", false).unwrap();
    // The write begins in the middle of a block, where the file ends.
    let expected = read_all(&clone, table).unwrap();
    assert_eq!(expected.len() as u64, end + 9);
    assert_eq!(
        stored(&stage, &clone, TABLE),
        (3 * 8192 + 8192 + 9, expected.clone())
    );
    drop(clone);
    // Bytes that no sync recorded in the journal are exactly the backup's again.
    let clone = stage.open();
    assert_eq!(
        stored(&stage, &clone, TABLE),
        (0, read_all(&clone, id(&clone, TABLE)).unwrap())
    );
}

#[test]
fn a_file_without_backup_data_is_read_whole() {
    let stage = stage();
    let clone = stage.create();
    let new = clone.create(clone.root(), b"new", NEW).unwrap().node;
    clone.write(new, 300_000, &noise(1, 5000), false).unwrap();
    assert_eq!(
        stored(&stage, &clone, "new"),
        (305_000, read_all(&clone, new).unwrap())
    );
    let (file, bytes) = copied(&stage, &clone, "new");
    assert_eq!(bytes, read_all(&clone, new).unwrap());
    assert!(file.metadata().unwrap().blocks() * 512 < 100_000);
}

#[test]
fn holes_of_the_backup_are_holes_in_a_copy() {
    let stage = stage();
    let clone = stage.create();
    let things = data_directory(1);
    let (file, bytes) = copied(&stage, &clone, TABLE);
    assert_eq!(bytes, content(&things, TABLE));
    let hole = 2 * WINDOW as u64;
    assert!(file.metadata().unwrap().blocks() * 512 <= bytes.len() as u64 - hole + 8192);
    let (_, empty) = copied(&stage, &clone, "base/5/empty");
    assert_eq!(empty, [0; 0]);
}

#[test]
fn a_changed_file_is_stored_and_copied_as_it_reads() {
    let mut state = 11_u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let stage = stage();
    let clone = stage.create();
    let table = id(&clone, TABLE);
    for round in 0..60 {
        for _ in 0..=random(4) {
            let (at, length) = (random(8 * WINDOW as u64), 1 + random(40_000));
            match random(6) {
                0 => clone
                    .set_attributes(
                        table,
                        crate::AttributeChanges {
                            size_bytes: Some(at),
                            ..Default::default()
                        },
                    )
                    .map(drop)
                    .unwrap(),
                1 => clone
                    .allocate(table, Allocation::Punch, true, at, length)
                    .unwrap(),
                _ => clone
                    .write(table, at, &noise(at, length as usize), false)
                    .map(drop)
                    .unwrap(),
            }
            if random(5) == 0 {
                clone.sync(table, false).unwrap();
            }
        }
        let expected = read_all(&clone, table).unwrap();
        assert!(
            stored(&stage, &clone, TABLE).1 == expected,
            "stored, round {round}"
        );
        assert!(
            copied(&stage, &clone, TABLE).1 == expected,
            "copied, round {round}"
        );
    }
}

#[test]
fn files_that_root_makes_belong_to_the_clones_owner() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("Only root can give files to others: not tried");
        return;
    }
    let stage = stage();
    std::os::unix::fs::chown(&stage.directory, Some(4711), Some(4712)).unwrap();
    let clone = stage.create();
    clone.write(id(&clone, TABLE), 0, b"changed", false).unwrap();
    clone.create(clone.root(), b"new", NEW).unwrap();
    clone.flush_all().unwrap();
    clone.rewrite_journal().unwrap();
    let mut found = 0;
    for directory in [stage.directory.clone(), stage.directory.join("files")] {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (4711, 4712), "{entry:?}");
            found += 1;
        }
    }
    assert_eq!(found, 4, "the journal, the directory of files and two files");
}
