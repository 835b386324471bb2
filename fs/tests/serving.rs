//! How mounts serve clones: one after the other, until they are asked to release them, and until the mount ends. Needs
//! /dev/fuse and root.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod support;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::daemon::{Daemon, cloned, until};
use support::ordinary::NOBODY;
use support::{attributes, content, data_directory};

const BLOCK_BYTES: usize = 8192;

/// Waits until a mount has released the clone.
fn let_go(daemon: &Daemon) {
    let released = daemon.point.join(".barmanfs/released/main/test1");
    until("the mount lets go of the clone", || released.exists());
}

/// Data of a clone in one mount's kernel is no longer valid after another mount has served the clone.
#[test]
fn the_first_mount_sees_writes_through_another() {
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
    // New mounts use the same inode numbers as the first one.
    drop((first, second));
    let again = Daemon::start(fixture.repository.path(), &fixture.directory.path().join("mnt"));
    assert_eq!(number(&clone), known);
    assert_eq!(read(&clone), (4, 4));
    drop(again);
}

#[test]
fn writes_survive_unmounting_while_files_are_open() {
    // Writes are made durable every five seconds, and open files are served for five more seconds. The test writes
    // after the former and before the end of the latter.
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
fn only_the_owner_can_have_a_clone_released() {
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

/// Not a test by itself: the daemon of the tests above.
#[test]
fn daemon() {
    support::daemon::serve();
}
