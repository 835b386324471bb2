//! Concurrent and large operations in clones. Needs /dev/fuse and root.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use support::daemon::{Daemon, cloned};
use support::ordinary::NOBODY;
use support::{Fixture, Thing, content, data_directory};

const APPENDERS: u64 = 3;
const RECORDS: u64 = 400;
/// Not a divisor of the block size, so records cross block boundaries.
const RECORD_BYTES: usize = 97;

const WRITERS: u64 = 3;
const BLOCK_BYTES: usize = 8192;
/// Blocks in the middle of the file, each written several times by the same writer.
const BLOCKS: u64 = 36;
const TIMES: u64 = 5;

fn record(appender: u64, n: u64) -> Vec<u8> {
    let mut record = format!("<{appender} {n} ").into_bytes();
    record.resize(RECORD_BYTES - 1, b'.');
    record.push(b'>');
    record
}

fn append(path: &Path, appender: u64) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    for n in 0..RECORDS {
        file.write_all(&record(appender, n)).unwrap();
        if n % 50 == appender {
            file.sync_data().unwrap();
        }
    }
}

/// Writes this writer's own blocks, each in two parts, several times.
fn overwrite(path: &Path, writer: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    for time in 1..=TIMES {
        for block in (0..BLOCKS).filter(|block| block % WRITERS == writer) {
            let bytes = [(block * TIMES + time) as u8; BLOCK_BYTES];
            let at = block * BLOCK_BYTES as u64;
            file.write_all_at(&bytes[..5000], at).unwrap();
            file.write_all_at(&bytes[5000..], at + 5000).unwrap();
        }
        file.sync_all().unwrap();
    }
}

fn write_together(path: &Path) {
    std::thread::scope(|scope| {
        for appender in 0..APPENDERS {
            scope.spawn(move || append(path, appender));
        }
        for writer in 0..WRITERS {
            scope.spawn(move || overwrite(path, writer));
        }
    });
    File::open(path).unwrap().sync_all().unwrap();
}

/// The file must have the last written blocks, then the previous content, then every record once.
#[track_caller]
fn check(path: &Path, before: &[u8]) {
    let bytes = std::fs::read(path).unwrap();
    let appended = (APPENDERS * RECORDS) as usize * RECORD_BYTES;
    assert_eq!(bytes.len(), before.len() + appended);
    for block in 0..BLOCKS {
        let expected = (block * TIMES + TIMES) as u8;
        let found = &bytes[block as usize * BLOCK_BYTES..][..BLOCK_BYTES];
        assert!(found.iter().all(|byte| *byte == expected), "block {block}");
    }
    let written = BLOCKS as usize * BLOCK_BYTES;
    assert!(bytes[written..before.len()] == before[written..]);
    let records: BTreeSet<&[u8]> = bytes[before.len()..].chunks(RECORD_BYTES).collect();
    for appender in 0..APPENDERS {
        for n in 0..RECORDS {
            assert!(
                records.contains(&*record(appender, n)),
                "record {n} of appender {appender} is lost"
            );
        }
    }
}

#[test]
fn concurrent_writers_lose_nothing() {
    let things = data_directory(1);
    let (fixture, mut daemon, clone) = cloned(&things);
    // The first file stays partly the backup's. The kernel reads and writes the second one directly.
    let before = content(&things, "base/5/1259");
    let (table, new) = (clone.join("base/5/1259"), clone.join("new"));
    std::fs::write(&new, before).unwrap();
    for path in [&table, &new] {
        write_together(path);
        check(path, before);
    }
    File::open(&clone).unwrap().sync_all().unwrap();
    daemon.kill();
    let point = daemon.point.clone();
    drop(daemon);
    let _daemon = Daemon::start(fixture.repository.path(), &point);
    for path in [&table, &new] {
        check(path, before);
    }
}

/// Like `rm -rf`: names are removed while they are listed, and no name is skipped.
#[test]
fn a_large_directory_is_emptied_while_it_is_listed() {
    const FILES: usize = 6000;
    let names: Vec<String> = (0..FILES / 2).map(|n| format!("base/5/{n:08}")).collect();
    let mut things = data_directory(1);
    things.retain(|(name, _)| !name.starts_with("base/5/"));
    things.extend(
        names
            .iter()
            .map(|name| (name.as_str(), Thing::File(b"x".to_vec()))),
    );
    let (_fixture, _daemon, clone) = cloned(&things);
    let directory = clone.join("base/5");
    for n in 0..FILES / 2 {
        std::fs::write(directory.join(format!("{n:08}.new")), b"y").unwrap();
    }
    let mut removed = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
        removed += 1;
    }
    assert_eq!(removed, FILES);
    std::fs::remove_dir(&directory).unwrap();
}

/// The owner of the repository may put links into it. Root's mount does not write to their targets.
#[test]
fn root_follows_no_links_in_the_repository() {
    let fixture = Fixture::new();
    fixture.archive(2, 2);
    fixture.archive(3, 3);
    fixture.backup(&data_directory(1));
    let repository = fixture.repository.path();
    fixture.give_away(NOBODY);
    let point = fixture.directory.path().join("mnt");
    let live = point.join("main/live");
    let daemon = Daemon::start(repository, &point);
    std::fs::create_dir(live.join("test1")).unwrap();
    std::fs::write(live.join("test1/new"), "new").unwrap();
    daemon.unmount();
    // The owner of the repository must be able to use everything that root has created.
    each_in(repository, &mut |path, found| {
        assert_eq!((found.uid(), found.gid()), (NOBODY, NOBODY), "{}", path.display());
    });

    let secret = fixture.directory.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("file"), "root's").unwrap();
    let lock = repository.join("locks/clone-main:test1");
    std::fs::remove_file(&lock).unwrap();
    symlink(secret.join("file"), lock).unwrap();
    symlink(secret.join("new"), repository.join("locks/clone-main:test2")).unwrap();
    let daemon = Daemon::start(repository, &point);
    std::fs::read(live.join("test1/PG_VERSION")).unwrap_err();
    std::fs::create_dir(live.join("test2")).unwrap_err();
    std::fs::rename(repository.join("live/main"), repository.join("live/other")).unwrap();
    symlink(&secret, repository.join("live/main")).unwrap();
    std::fs::create_dir(live.join("test3")).unwrap_err();
    daemon.unmount();
    each_in(&secret, &mut |path, found| {
        assert_eq!((found.uid(), found.gid()), (0, 0), "{}", path.display());
    });
    assert_eq!(std::fs::read(secret.join("file")).unwrap(), b"root's");
    assert_eq!(std::fs::read_dir(&secret).unwrap().count(), 1);
}

/// Visits a directory and everything in it.
fn each_in(path: &Path, visit: &mut dyn FnMut(&Path, &Metadata)) {
    let found = std::fs::symlink_metadata(path).unwrap();
    visit(path, &found);
    if found.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            each_in(&entry.unwrap().path(), visit);
        }
    }
}

/// Not a test by itself: the daemon of the tests above.
#[test]
fn daemon() {
    support::daemon::serve();
}
