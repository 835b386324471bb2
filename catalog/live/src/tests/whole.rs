//! What a clone guarantees apart from behaving like a directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use barmanfs_catalog::ExtraFile;
use barmanfs_store::{Node, RecordId};

use super::support::{Thing, WINDOW, attributes, content, data_directory, noise};
use super::*;
use crate::node::file_of;
use crate::{AddedContent, AddedEntry, Allocation, AttributeChanges, Flusher, Kind, NewTime, RenameMode};

/// After this time, a test is waiting for something that never comes.
const FAR_TOO_LONG: Duration = Duration::from_secs(60);

const TABLE: &str = "base/5/1259";

fn stage() -> (Stage, Vec<(&'static str, Thing)>) {
    let things = data_directory(1);
    (Stage::new(&things), things)
}

fn upper_files(stage: &Stage) -> usize {
    std::fs::read_dir(stage.directory.join("files")).unwrap().count()
}

#[test]
fn only_written_blocks_are_copied() {
    let (stage, things) = stage();
    let clone = stage.create();
    let table = id(&clone, TABLE);
    clone.open_node(table).unwrap();
    clone.sync(table, false).unwrap();
    let changes = AttributeChanges {
        mode: Some(0o644),
        uid: Some(1),
        mtime: Some(NewTime::Now),
        ..Default::default()
    };
    clone.set_attributes(table, changes).unwrap();
    clone
        .rename(
            (id(&clone, "base"), b"5"),
            (clone.root(), b"moved"),
            RenameMode::Replace,
        )
        .unwrap();
    assert_eq!(upper_files(&stage), 0);
    assert_eq!(read_all(&clone, table).unwrap(), content(&things, TABLE));

    clone.write(table, 8192, &[7; 8192], false).unwrap();
    clone.write(table, 5 * WINDOW as u64, b"x", false).unwrap();
    clone.sync(table, true).unwrap();
    assert_eq!(upper_files(&stage), 1);
    let used_bytes = clone.statistics().used_bytes;
    assert!((16384..65536).contains(&used_bytes), "{used_bytes}");
    let mut expected = content(&things, TABLE).to_vec();
    expected[8192..16384].fill(7);
    expected[5 * WINDOW] = b'x';
    drop(clone);
    let clone = stage.open();
    let found = at(&clone, "moved/1259").unwrap();
    assert_eq!(
        (found.node, found.mode, found.uid, found.gid),
        (table, 0o644, 1, 4712)
    );
    assert_eq!(read_all(&clone, table).unwrap(), expected);
    assert_eq!(upper_files(&stage), 1);
}

#[test]
fn a_flush_syncs_times_that_fdatasync_left_out() {
    let (stage, _) = stage();
    let clone = stage.create();
    let table = id(&clone, TABLE);
    clone.write(table, 8192, &[7; 8192], false).unwrap();
    clone.sync(table, false).unwrap();
    let long_ago = AttributeChanges {
        mtime: Some(NewTime::At(crate::Time { s: 1, ns: 2 })),
        ..Default::default()
    };
    clone.set_attributes(table, long_ago).unwrap();
    // The journal only needs the time, which fdatasync leaves for later.
    clone.write(table, 8192, &[8; 8192], false).unwrap();
    clone.sync(table, true).unwrap();
    let now = clone.attributes(table).unwrap().mtime;
    clone.flush_all().unwrap();
    drop(clone);
    assert_eq!(at(&stage.open(), TABLE).unwrap().mtime, now);
}

#[test]
fn a_completely_written_file_is_handed_to_the_kernel() {
    let (stage, _) = stage();
    let clone = stage.create();
    let small = id(&clone, "PG_VERSION");
    clone.open_node(small).unwrap();
    assert!(clone.plain_file(small).unwrap().is_none());
    clone.write(small, 0, b"16", false).unwrap();
    assert!(clone.plain_file(small).unwrap().is_none());
    clone.sync(small, true).unwrap();
    let file = clone.plain_file(small).unwrap().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"7!", 1).unwrap();
    let found = clone.attributes(small).unwrap();
    assert_eq!((found.size_bytes, found.links), (3, 1));
    assert_eq!(read_all(&clone, small).unwrap(), b"17!");
    clone.close_node(small);
    clone.flush_all().unwrap();
    drop(clone);
    let clone = stage.open();
    assert_eq!(read_all(&clone, id(&clone, "PG_VERSION")).unwrap(), b"17!");
}

#[test]
fn a_file_the_kernel_writes_is_synced_while_another_user_closes_it() {
    let (stage, _) = stage();
    let clone = stage.create();
    let new = clone.create(clone.root(), b"new", NEW).unwrap().node;
    clone.sync(new, false).unwrap();
    let node = clone.node(new).unwrap();
    let file = file_of(&node).unwrap();
    clone.open_node(new).unwrap();
    assert!(clone.plain_file(new).unwrap().is_some());
    // The kernel may write again whenever everything has just been flushed.
    for _ in 0..2 {
        assert!(clone.dirty().contains_key(&new));
        clone.flush_all().unwrap();
    }
    // The last user that had the file open before us gets to this only now.
    clone.put_away(&node, file);
    assert!(file.handed_out.load(Ordering::Relaxed));
    clone.close_node(new);
    assert!(!file.handed_out.load(Ordering::Relaxed));
    assert!(file.dirty.load(Ordering::Relaxed));
}

#[test]
fn a_file_without_a_name_lives_until_it_is_closed() {
    let (stage, things) = stage();
    let clone = stage.create();
    let (root, table) = (clone.root(), id(&clone, TABLE));
    let new = clone.create(root, b"new", NEW).unwrap().node;
    for node in [table, new] {
        clone.open_node(node).unwrap();
        clone.write(node, 3, b"abc", false).unwrap();
    }
    clone.unlink(root, b"new").unwrap();
    clone.unlink(id(&clone, "base/5"), b"1259").unwrap();
    clone.flush_all().unwrap();
    assert_eq!(upper_files(&stage), 2);
    assert_eq!(clone.attributes(table).unwrap().links, 0);
    assert_eq!(
        &read_all(&clone, table).unwrap()[6..],
        &content(&things, TABLE)[6..]
    );
    clone.write(table, 0, b"abc", false).unwrap();
    clone.sync(table, false).unwrap();
    assert_eq!(&read_all(&clone, table).unwrap()[..6], b"abcabc");
    assert_eq!(read_all(&clone, new).unwrap(), b"\0\0\0abc");
    for node in [table, new] {
        clone.close_node(node);
        assert!(errno(clone.open_node(node)).is_err());
    }
    clone.flush_all().unwrap();
    assert_eq!(upper_files(&stage), 0);
    assert_eq!(
        clone.statistics().used_bytes,
        std::fs::metadata(stage.directory.join("journal")).unwrap().len()
    );
}

#[test]
fn opening_a_clone_removes_leftover_files() {
    let (stage, _) = stage();
    let clone = stage.create();
    let new = clone.create(clone.root(), b"new", NEW).unwrap().node;
    clone.flush_all().unwrap();
    clone.open_node(new).unwrap();
    clone.unlink(clone.root(), b"new").unwrap();
    // Killed while the file was open, and before a file that was written to was synced.
    clone.write(id(&clone, TABLE), 0, b"abc", false).unwrap();
    drop(clone);
    assert_eq!(upper_files(&stage), 2);
    let clone = stage.open();
    assert_eq!(upper_files(&stage), 0);
    assert_eq!(errno(at(&clone, "new")), Err(Errno::NOENT));
}

#[test]
fn closed_files_hold_no_descriptor() {
    let (stage, _) = stage();
    let clone = stage.create();
    let open_files = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let files = stage.directory.join("files/");
        let of_the_clone = |path: PathBuf| path.starts_with(&files) && path != files;
        descriptors
            .filter_map(|descriptor| std::fs::read_link(descriptor.path()).ok())
            .filter(|path| of_the_clone(path.clone()))
            .count()
    };
    let table = id(&clone, TABLE);
    let made = (0..50).map(|n: u8| clone.create(clone.root(), &[b'a', n + 100], NEW).unwrap().node);
    let nodes: Vec<_> = made.chain([table]).collect();
    for node in &nodes {
        clone.open_node(*node).unwrap();
        clone.write(*node, 0, &[1; 100], false).unwrap();
    }
    assert_eq!(open_files(), nodes.len());
    nodes.iter().for_each(|node| clone.close_node(*node));
    assert_eq!(open_files(), 0);
    // They are synced nevertheless.
    assert_eq!(clone.dirty().len(), nodes.len());
    clone.flush_all().unwrap();
    assert_eq!(clone.dirty().len(), 0);
    for node in &nodes {
        let changes = AttributeChanges {
            uid: Some(1),
            ..Default::default()
        };
        clone.set_attributes(*node, changes).unwrap();
    }
    assert_eq!(open_files(), 0);
}

#[test]
fn a_clone_does_not_exceed_its_limit() {
    let (mut stage, things) = stage();
    stage.description.max_bytes = Some(200_000);
    let clone = stage.create();
    let (table, new) = (
        id(&clone, TABLE),
        clone.create(clone.root(), b"new", NEW).unwrap().node,
    );
    let mut written = 0;
    let refused = loop {
        let to = if written % 2 == 0 { table } else { new };
        match errno(clone.write(to, written * 8192, &[1; 8192], false)) {
            Ok(_) => written += 1,
            Err(errno) => break errno,
        }
    };
    assert_eq!(refused, Errno::NOSPC);
    assert!((15..25).contains(&written), "{written}");
    // The block that could not be written is unchanged.
    let node = if written % 2 == 0 { table } else { new };
    let mut block = [9; 8192];
    let at = written as usize * 8192;
    let count = clone.read(node, written * 8192, &mut block).unwrap();
    let expected = if node == table {
        &content(&things, TABLE)[at..at + 8192]
    } else {
        &[][..]
    };
    assert_eq!(&block[..count], expected);
    assert_eq!(
        errno(clone.allocate(new, Allocation::Reserve, true, 0, 300_000)),
        Err(Errno::NOSPC)
    );
    assert!(clone.plain_file(new).unwrap().is_none());
    // Overwriting makes nothing grow, even when names and attributes have used up the room; removing a file makes room.
    for mode in 0..500 {
        let changes = AttributeChanges {
            mode: Some(mode),
            ..Default::default()
        };
        clone.set_attributes(table, changes).unwrap();
    }
    assert!(clone.statistics().used_bytes > 200_000);
    clone.write(table, 0, &[2; 8192], false).unwrap();
    clone.write(new, 8192, &[2; 8192], false).unwrap();
    clone.rewrite_journal().unwrap();
    clone.unlink(clone.root(), b"new").unwrap();
    clone.write(table, 24 * 8192, &[3; 8192], false).unwrap();
    clone.flush_all().unwrap();
    assert!(clone.statistics().used_bytes <= 200_000);
}

#[test]
fn a_new_clone_has_added_entries_and_lacks_hidden_ones() {
    let (mut stage, _) = stage();
    let trees = stage.trees();
    let Some(Node::File(map)) = trees
        .find(&stage.description.root.directory, b"PG_VERSION")
        .unwrap()
        .map(|entry| entry.node)
    else {
        panic!("no file");
    };
    let path = "pg_wal/000000010000000000000002".to_owned();
    stage.description.grafts.push(ExtraFile {
        path: path.clone(),
        attributes: attributes(0o600),
        map,
    });
    let made = |path: &str, thing| AddedEntry {
        path: path.into(),
        attributes: attributes(0o640),
        thing,
    };
    let initial = Initial {
        made: vec![
            made("postgresql.auto.conf", AddedContent::File(b"new\n".to_vec())),
            made("pg_wal/made", AddedContent::Directory),
            made("link", AddedContent::Symlink(b"/there".to_vec())),
        ],
        looked_at: &[b"", b"no/such"],
        hide: &|path, entry| {
            assert!(path.ends_with(&entry.name));
            path == b"backup_label"
        },
    };
    drop(LiveClone::create_in(&stage.directory, &stage.description, trees, &initial).unwrap());
    let check = |clone: &LiveClone| {
        assert_eq!(errno(at(clone, "backup_label")), Err(Errno::NOENT));
        let conf = at(clone, "postgresql.auto.conf").unwrap();
        assert_eq!((conf.mode, conf.uid, conf.mtime.s), (0o640, 4711, 1_700_000_000));
        assert_eq!(read_all(clone, conf.node).unwrap(), b"new\n");
        assert_eq!(at(clone, "pg_wal/made").unwrap().kind, Kind::Directory);
        assert_eq!(clone.readlink(id(clone, "link")).unwrap(), b"/there");
        assert_eq!(read_all(clone, id(clone, &path)).unwrap(), b"15\n");
        let names = clone.entries(id(clone, "pg_wal")).unwrap();
        let names: Vec<_> = names
            .map(|name| String::from_utf8(name.unwrap().name).unwrap())
            .collect();
        assert_eq!(names, ["000000010000000000000002", "archive_status", "made"]);
    };
    let clone = stage.open();
    check(&clone);
    clone.rewrite_journal().unwrap();
    drop(clone);
    let clone = stage.open();
    check(&clone);
    clone.write(id(&clone, &path), 1, b"6", false).unwrap();
    clone.flush_all().unwrap();
    clone
        .rename(
            (id(&clone, "pg_wal"), b"000000010000000000000002"),
            (clone.root(), b"recycled"),
            RenameMode::Replace,
        )
        .unwrap();
    clone.rewrite_journal().unwrap();
    drop(clone);
    let clone = stage.open();
    assert_eq!(errno(at(&clone, &path)), Err(Errno::NOENT));
    assert_eq!(read_all(&clone, id(&clone, "recycled")).unwrap(), b"16\n");
    clone.unlink(clone.root(), b"recycled").unwrap();
    clone.flush_all().unwrap();
    drop(clone);
    let clone = stage.open();
    assert_eq!(errno(at(&clone, &path)), Err(Errno::NOENT));
    assert_eq!(upper_files(&stage), 1);
}

#[test]
fn another_clones_journal_is_refused() {
    let (mut stage, _) = stage();
    drop(stage.create());
    stage.description.id = RecordId::random().unwrap();
    let error = LiveClone::open(&stage.directory, &stage.description, stage.trees()).unwrap_err();
    assert!(error.to_string().contains("It is that of clone"), "{error}");
    std::fs::remove_file(stage.directory.join("journal")).unwrap();
    assert!(LiveClone::open(&stage.directory, &stage.description, stage.trees()).is_err());
}

#[test]
fn a_copied_clone_starts_equal_and_changes_alone() {
    let (stage, _) = stage();
    let clone = stage.create();
    let table = id(&clone, TABLE);
    clone.write(table, 100, b"changed", false).unwrap();
    let made = clone.create(clone.root(), b"made", NEW).unwrap().node;
    clone.write(made, 0, b"all of it", false).unwrap();
    clone.flush_all().unwrap();
    let expected = read_all(&clone, table).unwrap();
    drop(clone);
    let mut copy = stage.description.clone();
    copy.seed = Some(stage.description.seed());
    copy.id = RecordId::random().unwrap();
    let directory = stage.directory.with_file_name("copy");
    std::fs::create_dir(&directory).unwrap();
    crate::copy_files(&stage.directory, &directory).unwrap();
    let copy = LiveClone::open(&directory, &copy, stage.trees()).unwrap();
    assert_eq!(read_all(&copy, id(&copy, TABLE)).unwrap(), expected);
    assert_eq!(read_all(&copy, id(&copy, "made")).unwrap(), b"all of it");
    copy.write(table, 100, b"another", false).unwrap();
    copy.unlink(copy.root(), b"made").unwrap();
    copy.flush_all().unwrap();
    let clone = stage.open();
    assert_eq!(read_all(&clone, id(&clone, TABLE)).unwrap(), expected);
    assert_eq!(read_all(&clone, id(&clone, "made")).unwrap(), b"all of it");
}

#[test]
fn a_reopened_clone_recalls_nodes_that_still_exist() {
    let (stage, things) = stage();
    let clone = stage.create();
    let (table, base) = (id(&clone, TABLE), id(&clone, "base"));
    let made = clone.create(clone.root(), b"made", NEW).unwrap().node;
    let origins = [table, base, made].map(|node| clone.origin(node));
    assert_eq!(origins[2], None);
    clone.flush_all().unwrap();
    drop(clone);

    let clone = stage.open();
    assert_eq!(errno(clone.attributes(table)), Err(Errno::STALE));
    for (node, origin) in [table, base, made].into_iter().zip(&origins) {
        clone.recall(node, origin.as_deref(), 1).unwrap();
    }
    assert_eq!(read_all(&clone, table).unwrap(), content(&things, TABLE));
    clone.forget(base, 1);
    assert_eq!(errno(clone.attributes(base)), Err(Errno::STALE));
    // One file was removed meanwhile, and another one was replaced.
    clone.unlink(clone.root(), b"made").unwrap();
    let (parent, name) = TABLE.rsplit_once('/').unwrap();
    let parent = id(&clone, parent);
    clone.unlink(parent, name.as_bytes()).unwrap();
    clone.create(parent, name.as_bytes(), NEW).unwrap();
    clone.flush_all().unwrap();
    drop(clone);
    let clone = stage.open();
    for (node, origin) in [table, made].into_iter().zip([&origins[0], &origins[2]]) {
        assert_eq!(errno(clone.recall(node, origin.as_deref(), 1)), Err(Errno::STALE));
    }
}

#[test]
fn concurrent_users_do_not_disturb_each_other() {
    many_at_work_at_once(None);
}

#[test]
fn concurrent_users_under_a_limit_do_not_disturb_each_other() {
    many_at_work_at_once(Some(1 << 40));
}

fn many_at_work_at_once(max_bytes: Option<u64>) {
    let (done, finished) = channel();
    let work = thread::spawn(move || {
        work_at_once(max_bytes);
        done.send(())
    });
    match finished.recv_timeout(FAR_TOO_LONG) {
        Err(RecvTimeoutError::Timeout) => panic!("They wait for each other"),
        _ => work.join().unwrap().unwrap(),
    }
}

fn work_at_once(max_bytes: Option<u64>) {
    let (mut stage, things) = stage();
    stage.description.max_bytes = max_bytes;
    let clone = Arc::new(stage.create());
    let _flusher = Flusher::start(&clone).unwrap();
    let (root, table) = (clone.root(), id(&clone, TABLE));
    let original = content(&things, TABLE);
    let at_work = AtomicU8::new(4);
    thread::scope(|scope| {
        scope.spawn(|| {
            while at_work.load(Ordering::Relaxed) > 0 {
                clone.rewrite_journal().unwrap();
            }
        });
        for worker in 0..4_u8 {
            let (clone, at_work) = (&clone, &at_work);
            scope.spawn(move || {
                let name = [b'w', b'0' + worker];
                for round in 0..60_u64 {
                    let node = clone.create(root, &name, NEW).unwrap().node;
                    let own = u64::from(worker) * 8192 + round % 3 * 8192 * 4;
                    clone.write(table, own + 100, &[worker; 50], false).unwrap();
                    clone.write(node, 0, &noise(round, 3000), false).unwrap();
                    if round % 4 == 0 {
                        clone.sync(table, false).unwrap();
                        clone.sync(node, true).unwrap();
                    }
                    assert_eq!(read_all(clone, node).unwrap(), noise(round, 3000));
                    clone.entries(root).unwrap().for_each(|name| drop(name.unwrap()));
                    clone
                        .rename((root, &name), (root, &[b'x', b'0' + worker]), RenameMode::Replace)
                        .unwrap();
                    clone.forget(node, 1);
                }
                at_work.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    clone.flush_all().unwrap();
    let mut expected = original.to_vec();
    for block in 0..12_usize {
        expected[block * 8192 + 100..block * 8192 + 150].fill(block as u8 % 4);
    }
    assert_eq!(read_all(&clone, table).unwrap(), expected);
    drop((clone, _flusher));
    let clone = stage.open();
    assert_eq!(read_all(&clone, id(&clone, TABLE)).unwrap(), expected);
    assert_eq!(upper_files(&stage), 5);
}

/// Whatever way a link takes to a place where PostgreSQL looks for a tablespace.
#[test]
fn no_link_makes_a_tablespace_outside_the_clone() {
    let (stage, _) = stage();
    let clone = stage.create();
    let root = clone.root();
    clone.mkdir(root, b"other", NEW).unwrap();
    clone.mkdir(id(&clone, "other"), b"inside", NEW).unwrap();
    clone.symlink(root, b"out", b"/srv/original", NEW).unwrap();
    clone.symlink(root, b"in", b"base", NEW).unwrap();
    if at(&clone, "pg_tblspc").is_err() {
        clone.mkdir(root, b"pg_tblspc", NEW).unwrap();
    }
    let spaces = id(&clone, "pg_tblspc");
    let other = id(&clone, "other");
    let rename = |from: (NodeId, &[u8]), to: (NodeId, &[u8]), mode| errno(clone.rename(from, to, mode));
    let refused = |result| assert_eq!(result, Err(Errno::PERM));
    refused(errno(clone.symlink(spaces, b"1", b"/srv/original", NEW)).map(drop));
    refused(errno(clone.link(id(&clone, "out"), spaces, b"1")).map(drop));
    refused(rename((root, b"out"), (spaces, b"1"), RenameMode::Replace));
    // A link that gets there by an exchange.
    clone.mkdir(spaces, b"2", NEW).unwrap();
    refused(rename((root, b"out"), (spaces, b"2"), RenameMode::Exchange));
    refused(rename((spaces, b"2"), (root, b"out"), RenameMode::Exchange));
    // A link in a directory that becomes pg_tblspc.
    clone
        .rename((root, b"out"), (other, b"1"), RenameMode::Replace)
        .unwrap();
    refused(rename(
        (root, b"other"),
        (root, b"pg_tblspc"),
        RenameMode::Exchange,
    ));
    refused(rename(
        (root, b"pg_tblspc"),
        (root, b"other"),
        RenameMode::Exchange,
    ));
    clone.rmdir(spaces, b"2").unwrap();
    refused(rename(
        (root, b"other"),
        (root, b"pg_tblspc"),
        RenameMode::Replace,
    ));
    // A link in the place of pg_tblspc.
    clone.rmdir(root, b"pg_tblspc").unwrap();
    refused(errno(clone.symlink(root, b"pg_tblspc", b"../original", NEW)).map(drop));
    refused(rename((other, b"1"), (root, b"pg_tblspc"), RenameMode::NoReplace));
    // A link that stays inside may be anywhere.
    clone.unlink(other, b"1").unwrap();
    clone
        .rename((root, b"in"), (other, b"1"), RenameMode::NoReplace)
        .unwrap();
    clone
        .rename((root, b"other"), (root, b"pg_tblspc"), RenameMode::NoReplace)
        .unwrap();
    assert_eq!(clone.readlink(id(&clone, "pg_tblspc/1")).unwrap(), b"base");
}
