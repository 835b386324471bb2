//! What is done in clones by several at a time, or to much at a time. Needs /dev/fuse and root.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::daemon::{Daemon, until};
use support::ordinary::NOBODY;
use support::{Fixture, Thing, attributes, content, data_directory};

const APPENDERS: u64 = 3;
const RECORDS: u64 = 400;
/// No divisor of a block: records cross from one into the next.
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

/// Writes its own blocks, each in two parts, over and over.
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

/// Blocks as they were written last, then what was there before, then every record once.
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

/// A clone on a mount.
fn cloned(things: &[(&str, Thing)]) -> (Fixture, Daemon, PathBuf) {
    let fixture = Fixture::new();
    fixture.archive(2, 2);
    fixture.archive(3, 3);
    fixture.backup(things);
    let daemon = Daemon::start(fixture.repository.path(), &fixture.directory.path().join("mnt"));
    let clone = daemon.point.join("main/live/test1");
    std::fs::create_dir(&clone).unwrap();
    (fixture, daemon, clone)
}

#[test]
fn nobody_loses_what_he_wrote_beside_others() {
    let things = data_directory(1);
    let (fixture, mut daemon, clone) = cloned(&things);
    // One that stays partly the backup's, and one the kernel is handed.
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

/// As `rm -rf` does it: names go while they are listed, and none is passed over.
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

/// Waits until a mount has let go of the clone.
fn let_go(daemon: &Daemon) {
    let released = daemon.point.join(".barmanfs/released/main/test1");
    until("the mount lets go of the clone", || released.exists());
}

/// What one mount's kernel has seen of a clone is no longer so when another mount has served it in between.
#[test]
fn what_is_written_through_another_mount_is_seen_by_the_first() {
    let things = data_directory(1);
    let (fixture, first, clone) = cloned(&things);
    let second = Daemon::start(
        fixture.repository.path(),
        &fixture.directory.path().join("second"),
    );
    let there = second.point.join("main/live/test1");
    let read = |clone: &Path| {
        let mut block = [0; BLOCK_BYTES];
        let file = File::open(clone.join("base/5/1259")).unwrap();
        file.read_exact_at(&mut block, 0).unwrap();
        (block[0], block[BLOCK_BYTES - 1])
    };
    let write = |clone: &Path, byte: u8| {
        let file = OpenOptions::new().write(true).open(clone.join("base/5/1259"));
        file.unwrap().write_all_at(&[byte; BLOCK_BYTES], 0).unwrap();
    };
    let number = |clone: &Path| std::fs::metadata(clone).unwrap().ino();

    write(&clone, 1);
    assert_eq!(read(&clone), (1, 1));
    assert!(!clone.join("base/new").exists());
    let gone = clone.join("base/5/1259_fsm");
    assert!(gone.exists());
    let known = number(&clone);
    let_go(&first);
    assert_eq!(number(&clone), known, "nobody else has served it");
    assert_eq!(read(&clone), (1, 1));
    let_go(&first);

    for byte in 2..4 {
        write(&there, byte);
        let_go(&second);
    }
    std::fs::write(there.join("base/new"), b"new").unwrap();
    std::fs::remove_file(there.join("base/5/1259_fsm")).unwrap();
    assert_eq!(number(&there), known);
    let_go(&second);

    assert_eq!(read(&clone), (3, 3));
    assert_eq!(std::fs::read(clone.join("base/new")).unwrap(), b"new");
    assert!(!gone.exists());
    assert_ne!(number(&clone), known);
    write(&clone, 4);
    std::fs::remove_file(clone.join("base/new")).unwrap();
    let_go(&first);
    assert_eq!(read(&there), (4, 4));
    assert!(!there.join("base/new").exists());
    let_go(&second);
    // Fresh mounts number everything as the first did.
    drop((first, second));
    let again = Daemon::start(fixture.repository.path(), &fixture.directory.path().join("mnt"));
    assert_eq!(number(&clone), known);
    assert_eq!(read(&clone), (4, 4));
    drop(again);
}

#[test]
fn what_was_written_is_there_after_unmounting_while_files_are_open() {
    // What is written is made durable every five seconds, and files that are open are served for five: it is written after
    // the one and before the end of the other.
    const BETWEEN: Duration = Duration::from_secs(3);
    let things = data_directory(1);
    let (fixture, mut daemon, clone) = cloned(&things);
    let open = |path: &str| OpenOptions::new().write(true).open(clone.join(path)).unwrap();
    let (table, _held) = (open("base/5/1259"), open("base/5/1259_fsm"));
    std::thread::sleep(BETWEEN);
    daemon.end();
    std::thread::sleep(BETWEEN);
    table.write_all_at(&[7; BLOCK_BYTES], 0).unwrap();
    daemon.wait();
    assert!(table.write_all_at(&[8; BLOCK_BYTES], 0).is_err());
    let point = daemon.point.clone();
    let _daemon = Daemon::start(fixture.repository.path(), &point);
    let bytes = std::fs::read(clone.join("base/5/1259")).unwrap();
    assert!(bytes[..BLOCK_BYTES] == [7; BLOCK_BYTES]);
    assert!(bytes[BLOCK_BYTES..] == content(&things, "base/5/1259")[BLOCK_BYTES..]);
}

#[test]
fn a_clone_is_let_go_for_its_owner_and_nobody_else() {
    let owner = attributes(0).uid;
    let (fixture, daemon, clone) = cloned(&data_directory(1));
    let all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(fixture.directory.path(), all).unwrap();
    let released = daemon.point.join(".barmanfs/released/main/test1");
    let asked_by = |user: u32| {
        let mut stat = Command::new("stat");
        let asked = stat
            .arg(&released)
            .env("LC_ALL", "C")
            .uid(user)
            .gid(user)
            .output();
        let asked = asked.unwrap();
        (asked.status.success(), String::from_utf8(asked.stderr).unwrap())
    };
    let open = File::open(clone.join("PG_VERSION")).unwrap();
    let (done, error) = asked_by(owner);
    assert!(!done && error.contains("busy"), "{error}");
    drop(open);
    let (done, error) = asked_by(NOBODY);
    assert!(!done && error.contains("Permission denied"), "{error}");
    until("its owner has the clone let go", || asked_by(owner).0);
}

/// No test by itself: the daemon of those above.
#[test]
fn daemon() {
    support::daemon::serve();
}
