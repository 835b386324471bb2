//! The tree without a kernel: the names it shows, and the content of its files.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use barmanfs_catalog::Repository;
use barmanfs_fs::entry::Content;
use barmanfs_fs::namespace::{Found, Ino, Seek};
use barmanfs_fs::usage::Caller;
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::{TimelineId, backup_manifest};
use barmanfs_store::{FileMap, Node as Stored};
use support::tree::{NOBODY, Tree};
use support::{Fixture, Thing, WINDOW, content, data_directory, segment};

fn archived() -> Fixture {
    let fixture = Fixture::new();
    fixture.archive(2, 2);
    fixture.archive(3, 3);
    fixture
}

#[test]
fn the_layout_is_as_documented() {
    let fixture = archived();
    let id = fixture.backup(&data_directory(1)).id.to_string();
    let tree = Tree::of(&fixture.repository);
    assert_eq!(tree.list(""), [".barmanfs", "README", "main"]);
    assert_eq!(
        tree.list("main"),
        [
            id.as_str(),
            "by-name",
            "info",
            "latest",
            "live",
            "oldest",
            "pitr",
            "raw",
            "wal"
        ]
    );
    assert_eq!(tree.list("main/raw"), [id.as_str()]);
    assert_eq!(
        tree.list("main/wal"),
        ["000000010000000000000002", "000000010000000000000003"]
    );
    assert_eq!(
        tree.list("main/info"),
        [
            format!("{id}.json").as_str(),
            "backups.json",
            "restore_command",
            "timeline.json"
        ]
    );
    assert!(tree.text("README").contains("cp -a /mnt/<server>/latest"));
    assert!(matches!(tree.node("main/latest").content, Content::Directory(_)));
    assert!(tree.find("nobody").is_none());
}

#[test]
fn raw_has_the_files_as_sent_and_their_wal() {
    let fixture = archived();
    let mut things = data_directory(1);
    things.push(("tablespace_map", Thing::File(b"16384 /srv/space\n".to_vec())));
    things.push(("pg_tblspc/16384", Thing::Link("/srv/space")));
    let id = fixture.backup(&things).id;
    let tree = Tree::of(&fixture.repository);
    let raw = format!("main/raw/{id}");
    for (path, thing) in &things {
        let node = tree.find(&format!("{raw}/{path}"));
        match thing {
            Thing::File(bytes) => {
                assert_eq!(&tree.read(&format!("{raw}/{path}")), bytes, "{path}");
                assert_eq!(node.unwrap().stat.size_bytes, bytes.len() as u64);
            }
            Thing::Directory => assert!(matches!(node.unwrap().content, Content::Directory(_)), "{path}"),
            Thing::Link(_) => assert!(node.is_none(), "{path} leads into the server's own tablespace"),
        }
    }
    let (name, bytes) = segment(2, 2);
    assert_eq!(tree.read(&format!("{raw}/pg_wal/{name}")), bytes);
    assert_eq!(
        tree.list(&format!("{raw}/pg_wal")),
        [
            "000000010000000000000002",
            "000000010000000000000003",
            "archive_status"
        ]
    );
    assert!(tree.list(&format!("{raw}/pg_wal/archive_status")).is_empty());
    assert!(tree.list(&format!("{raw}/pg_tblspc")).is_empty());
}

#[test]
fn a_startable_view_recovers_by_itself_and_archives_nothing() {
    let fixture = archived();
    let mut things = data_directory(1);
    things.push(("postmaster.pid", Thing::File(b"1\n".to_vec())));
    things.push(("standby.signal", Thing::File(Vec::new())));
    fixture.backup(&things);
    let tree = Tree::of(&fixture.repository);
    assert_eq!(
        tree.list("main/latest/pg_wal/archive_status"),
        ["000000010000000000000002.done", "000000010000000000000003.done"]
    );
    assert!(tree.read("main/latest/recovery.signal").is_empty());
    assert!(tree.find("main/latest/postmaster.pid").is_none());
    assert!(tree.find("main/latest/standby.signal").is_none());
    let auto_conf = tree.text("main/latest/postgresql.auto.conf");
    assert!(
        auto_conf.starts_with("# As ALTER SYSTEM left it\nwork_mem = '1MB'\n"),
        "{auto_conf}"
    );
    for line in [
        "archive_mode = off",
        "restore_command = 'false'",
        "recovery_target = 'immediate'",
        "recovery_target_action = 'promote'",
        // The backup has no tablespaces, but the WAL may create some.
        "allow_in_place_tablespaces = on",
    ] {
        assert!(
            auto_conf.lines().any(|found| found == line),
            "no {line} in {auto_conf}"
        );
    }
    assert_eq!(tree.text("main/latest/postgresql.conf"), "port = 5433\n");
    assert_eq!(
        tree.read("main/latest/base/5/1259"),
        content(&things, "base/5/1259")
    );
    assert_eq!(
        tree.node("main/latest/postgresql.auto.conf").stat.size_bytes,
        auto_conf.len() as u64
    );
}

#[test]
fn settings_that_lead_to_the_original_are_taken_out_of_a_startable_view() {
    let fixture = archived();
    let mut things = data_directory(1);
    things.retain(|(path, _)| !path.ends_with(".conf"));
    let conf = "port = 5433\n\tData_Directory '/srv/main' # here\nhba_file='/srv/main/hba'\nhba_files = 1\n\
                #ident_file = ''\nexternal_pid_file = '/run/main.pid'";
    things.push(("postgresql.conf", Thing::File(conf.into())));
    things.push((
        "postgresql.auto.conf",
        Thing::File(b"ident_file = '/srv/main/ident'\n".to_vec()),
    ));
    things.push(("pg_hba.conf", Thing::File(b"local all all trust\n".to_vec())));
    things.push(("backup_manifest", support::manifest(&things)));
    fixture.backup(&things);
    let tree = Tree::of(&fixture.repository);
    let taken_out = "# Of the original (barmanfs): ";
    assert_eq!(
        tree.text("main/latest/postgresql.conf"),
        format!(
            "port = 5433\n{taken_out}\tData_Directory '/srv/main' # here\n{taken_out}hba_file='/srv/main/hba'\n\
             hba_files = 1\n#ident_file = ''\n{taken_out}external_pid_file = '/run/main.pid'"
        )
    );
    let auto_conf = tree.text("main/latest/postgresql.auto.conf");
    assert!(
        auto_conf.starts_with(&format!("{taken_out}ident_file = ")),
        "{auto_conf}"
    );
    // The file in the data directory was not in effect on the original: it is initdb's, and may trust everybody.
    assert!(!tree.text("main/latest/pg_hba.conf").contains("trust"));
    assert_manifest_agrees(&tree, "main/latest");
    let raw = tree.list("main/raw").remove(0);
    assert_eq!(tree.text(&format!("main/raw/{raw}/postgresql.conf")), conf);
}

#[test]
fn a_backup_of_a_clone_starts_as_it_is_and_is_not_the_latest() {
    let fixture = archived();
    let own = fixture.backup(&data_directory(1));
    // The server has its own timeline 2, which is another one.
    let history = WalName::History(TimelineId(2));
    fixture.archive_as(&history, b"1\t0/300000\tthe server's\n");
    let mut things = data_directory(2);
    things.push((
        "pg_wal/00000002.history",
        Thing::File(b"1\t0/400000\tthe clone's\n".to_vec()),
    ));
    things.push(("pg_wal/000000020000000000000004", Thing::File(segment(4, 4).1)));
    let committed = fixture.backup_of_clone(&own, &things).id;
    let tree = Tree::of(&fixture.repository);
    for alias in ["latest", "oldest"] {
        let label = tree.text(&format!("main/{alias}/backup_label"));
        assert_eq!(label, "START WAL LOCATION: 1\n", "{alias}");
    }
    for view in [format!("main/raw/{committed}"), format!("main/{committed}")] {
        assert!(tree.find(&format!("{view}/recovery.signal")).is_none());
        assert_eq!(
            tree.list(&format!("{view}/pg_wal")),
            ["00000002.history", "000000020000000000000004", "archive_status"]
        );
        assert!(
            tree.text(&format!("{view}/pg_wal/00000002.history"))
                .contains("the clone's")
        );
    }
    assert_eq!(
        tree.list(&format!("main/{committed}/pg_wal/archive_status")),
        ["00000002.history.done", "000000020000000000000004.done"]
    );
    let settings = tree.text(&format!("main/{committed}/postgresql.auto.conf"));
    assert!(settings.starts_with("# As ALTER SYSTEM left it"), "{settings}");
    assert!(settings.contains("\narchive_mode = off\n"), "{settings}");
    assert!(
        settings.contains("shut down cleanly, and starts as it is"),
        "{settings}"
    );
    assert!(!settings.contains("recovery_target"), "{settings}");
}

/// The view has exactly the files of its manifest, except for those that `pg_verifybackup` ignores.
#[track_caller]
fn assert_manifest_agrees(tree: &Tree, view: &str) -> BTreeMap<String, backup_manifest::ManifestFile> {
    let bytes = tree.read(&format!("{view}/backup_manifest"));
    let node = tree.node(&format!("{view}/backup_manifest"));
    assert_eq!(node.stat.size_bytes, bytes.len() as u64);
    let mut listed = BTreeMap::new();
    let summary = backup_manifest::read(bytes.as_slice(), &mut |file| {
        let before = listed.insert(String::from_utf8(file.path.clone()).unwrap(), file);
        assert!(before.is_none(), "{before:?} is listed twice");
        Ok::<(), std::convert::Infallible>(())
    });
    assert!(summary.unwrap().checksum_ok);
    for (path, file) in &listed {
        let shown = tree.read(&format!("{view}/{path}"));
        let same = shown.len() as u64 == file.size_bytes
            && file.checksum == Some(backup_manifest::Checksum::Crc32c(crc32c::crc32c(&shown)));
        assert_eq!(same, path != "postgresql.auto.conf", "{path}");
    }
    listed
}

#[test]
fn a_directory_without_configuration_gets_one_and_a_manifest_that_knows_it() {
    let fixture = archived();
    let mut things = data_directory(1);
    things.retain(|(path, _)| !path.ends_with(".conf") || path.contains("auto"));
    things.push(("tablespace_map", Thing::File(b"16384 /srv/space\n".to_vec())));
    things.push(("backup_manifest", support::manifest(&things)));
    fixture.backup(&things);
    let tree = Tree::of(&fixture.repository);
    let hba = tree.text("main/latest/pg_hba.conf");
    assert!(
        hba.lines()
            .all(|line| line.starts_with('#') || line.starts_with("local ")),
        "{hba}"
    );
    assert!(tree.find("main/latest/tablespace_map").is_none());
    let listed = assert_manifest_agrees(&tree, "main/latest");
    assert!(listed.contains_key("postgresql.conf") && listed.contains_key("base/5/1259"));
    // The raw view has nothing of this.
    let raw = tree.list("main/raw").remove(0);
    assert_eq!(
        tree.read(&format!("main/raw/{raw}/backup_manifest")),
        content(&things, "backup_manifest")
    );
}

#[test]
fn only_what_can_be_started_is_shown() {
    let fixture = archived();
    let waiting = fixture.backup_of(&data_directory(1), 2..=4).id;
    let tree = Tree::of(&fixture.repository);
    assert_eq!(
        tree.list("main"),
        ["by-name", "info", "live", "pitr", "raw", "wal"]
    );
    assert!(tree.find("main/latest").is_none());
    assert!(tree.text("main/info/backups.json").contains("WAITING_FOR_WALS"));
    fixture.archive(4, 4);
    assert_eq!(tree.list("main/raw"), [waiting.to_string()]);
    assert!(tree.find("main/latest/PG_VERSION").is_some());
}

#[test]
fn holes_are_found_by_seeking() {
    let fixture = archived();
    fixture.backup(&data_directory(1));
    let tree = Tree::of(&fixture.repository);
    let node = tree.node("main/latest/base/5/1259");
    let window = WINDOW as u64;
    assert_eq!(node.stat.size_bytes, 5 * window + window / 2);
    assert_eq!(node.stat.allocated_bytes, 3 * window + window / 2);
    let open = tree.0.open(node.ino, NOBODY).unwrap().handle;
    let seek = |offset, seek| tree.0.seek(open, offset, seek);
    assert_eq!(seek(0, Seek::Data).unwrap(), 0);
    assert_eq!(seek(0, Seek::Hole).unwrap(), 3 * window);
    assert_eq!(seek(3 * window + 1, Seek::Data).unwrap(), 5 * window);
    assert_eq!(seek(3 * window + 1, Seek::Hole).unwrap(), 3 * window + 1);
    assert_eq!(seek(5 * window, Seek::Hole).unwrap(), node.stat.size_bytes);
    assert!(seek(node.stat.size_bytes, Seek::Hole).is_err());
    let all_zero = tree
        .0
        .open(tree.node("main/latest/base/5/1259_fsm").ino, NOBODY)
        .unwrap()
        .handle;
    assert!(tree.0.seek(all_zero, 0, Seek::Data).is_err());
}

#[test]
fn inode_numbers_are_the_same_in_another_process() {
    let fixture = archived();
    let id = fixture.backup(&data_directory(1)).id;
    let paths = [
        "main/latest/base/5/1259".to_owned(),
        format!("main/{id}/base/5/1259"),
        "README".to_owned(),
    ];
    let numbers = |tree: &Tree| paths.iter().map(|path| tree.node(path).ino).collect::<Vec<_>>();
    let first = numbers(&Tree::of(&fixture.repository));
    assert_eq!(
        first,
        numbers(&Tree::of(&Repository::open(fixture.repository.path()).unwrap()))
    );
    assert_ne!(first[0], first[1]);
}

#[test]
fn latest_stays_the_same_backup_while_it_is_read() {
    let fixture = archived();
    let first = fixture.backup(&data_directory(1));
    let tree = Tree::of(&fixture.repository);
    let file = tree.node("main/latest/backup_label");
    let me = Caller(std::process::id());
    let open = tree.0.open(file.ino, me).unwrap();
    let second = fixture.backup(&data_directory(2));
    assert_eq!(tree.text("main/latest/backup_label"), "START WAL LOCATION: 1\n");
    assert_eq!(
        tree.text(&format!("main/{}/backup_label", second.id)),
        "START WAL LOCATION: 2\n"
    );
    // The file is closed, but this process lives and may open the next file by its path.
    tree.0.close(open.handle);
    assert_eq!(tree.text("main/latest/backup_label"), "START WAL LOCATION: 1\n");
    // The backup is deleted while it is in use, so the view moves on.
    fixture.repository.delete_backup(&first, true).unwrap();
    assert_eq!(tree.text("main/latest/backup_label"), "START WAL LOCATION: 2\n");
    assert_ne!(tree.node("main/latest/backup_label").ino, file.ino);
}

#[test]
fn a_backup_being_read_is_not_deleted() {
    let fixture = archived();
    let backup = fixture.backup(&data_directory(1));
    let tree = Tree::of(&fixture.repository);
    let open = tree
        .0
        .open(tree.node("main/latest/PG_VERSION").ino, NOBODY)
        .unwrap();
    let refused = fixture.repository.delete_backup(&backup, false).unwrap_err();
    assert!(
        matches!(refused, barmanfs_catalog::Error::BackupInUse { .. }),
        "{refused}"
    );
    tree.0.close(open.handle);
    fixture.repository.delete_backup(&backup, true).unwrap();
    assert!(tree.find("main/latest").is_none());
}

#[test]
fn absence_is_proven_only_where_it_is_certain() {
    let fixture = archived();
    fixture.backup(&data_directory(1));
    let tree = Tree::of(&fixture.repository);
    let absent = |name: &str| tree.find(&format!(".barmanfs/absent/main/{name}")).is_some();
    assert!(!absent("000000010000000000000002"), "it is archived");
    assert!(absent("000000010000000000000004"));
    assert!(absent("00000002.history"));
    assert!(!absent("README"), "nothing PostgreSQL would ask for");
    assert!(
        tree.find(".barmanfs/absent/other").is_none(),
        "nothing is known of that server"
    );
    fixture.archive(4, 4);
    assert!(!absent("000000010000000000000004"));
}

#[test]
fn wal_is_found_as_soon_as_it_is_archived() {
    let fixture = Fixture::new();
    fixture.archive(2, 2);
    let tree = Tree::of(&fixture.repository);
    assert!(tree.find("main/wal/000000010000000000000003").is_none());
    let bytes = fixture.archive(3, 3);
    assert_eq!(tree.read("main/wal/000000010000000000000003"), bytes);
    let history: WalName = "00000002.history".parse().unwrap();
    fixture.archive_as(&history, b"1\t0/3000000\tno recovery target specified\n");
    assert_eq!(tree.list("main/wal").len(), 3);
    let timelines = tree.text("main/info/timeline.json");
    assert!(timelines.contains("\"switch_lsn\": \"0/3000000\""), "{timelines}");
}

#[test]
fn damage_is_an_error_only_for_reads_that_need_it() {
    let fixture = archived();
    let things = data_directory(1);
    fixture.backup(&things);
    let tree = Tree::of(&fixture.repository);
    assert!(tree.find("main/latest/base/5/1259").is_some());
    flip_stored_copy_of(&fixture, &content(&things, "base/5/1259")[WINDOW..WINDOW + 64]);
    let node = tree.node("main/latest/base/5/1259");
    let open = tree.0.open(node.ino, NOBODY).unwrap().handle;
    let at = |window: usize| {
        let mut found = Vec::new();
        tree.0
            .read(open, (window * WINDOW) as u64, 8192, |bytes| {
                found = bytes.to_vec();
            })
            .map(|()| found)
    };
    assert!(at(1).is_err());
    assert_eq!(at(0).unwrap(), content(&things, "base/5/1259")[..8192]);
    assert_eq!(
        at(2).unwrap(),
        content(&things, "base/5/1259")[2 * WINDOW..][..8192]
    );
    assert_eq!(tree.read("main/latest/PG_VERSION"), b"15\n");
}

/// Damages the bytes in the pack that has them. They do not compress, so they are stored unchanged.
fn flip_stored_copy_of(fixture: &Fixture, bytes: &[u8]) {
    let packs = fixture.repository.path().join("packs");
    for directory in std::fs::read_dir(packs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        for pack in std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
        {
            let mut content = std::fs::read(&pack).unwrap();
            if let Some(at) = content.windows(bytes.len()).position(|window| window == bytes) {
                content[at] ^= 1;
                std::fs::write(&pack, content).unwrap();
                return;
            }
        }
    }
    panic!("the bytes are not stored as they are");
}

#[test]
fn nodes_that_the_kernel_forgets_are_freed() {
    let fixture = archived();
    fixture.backup(&data_directory(1));
    let tree = Tree::of(&fixture.repository);
    let mut looked_up = BTreeMap::new();
    for path in [
        "main",
        "main/latest",
        "main/latest/base",
        "main/latest/base/5",
        "main/latest/base/5/1259",
    ] {
        let mut node = tree.0.node(Ino::ROOT).unwrap();
        for name in path.split('/') {
            let Found::Node(found, _) = tree.0.lookup(node.ino, name.as_bytes()).unwrap() else {
                panic!()
            };
            *looked_up.entry(found.ino).or_insert(0) += 1;
            node = found;
        }
    }
    assert_eq!(tree.0.in_use().0, 5);
    for (ino, count) in looked_up {
        tree.0.forget(ino, count);
    }
    assert_eq!(tree.0.in_use(), (0, 0));
}

#[test]
fn many_readers_get_the_same_bytes() {
    let fixture = archived();
    let things = data_directory(1);
    fixture.backup(&things);
    let tree = Tree::of(&fixture.repository);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for path in ["main/latest/base/5/1259", "main/oldest/base/5/1259"] {
                    assert_eq!(tree.read(path), content(&things, "base/5/1259"));
                }
            });
        }
    });
}

/// Reopens the repository, with an empty chunk cache.
fn reopened(fixture: Fixture) -> Fixture {
    let repository = Repository::open(fixture.repository.path()).unwrap();
    Fixture {
        repository,
        ..fixture
    }
}

/// Waits until the file's first chunk has been decoded ahead. No read requests it.
#[track_caller]
fn until_decoded(fixture: &Fixture, map: &FileMap) {
    let first = fixture.repository.trees().window(map, 0).unwrap().chunk.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fixture.repository.chunks().is_cached(&first) {
        assert!(Instant::now() < deadline, "It is not decoded ahead");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn files_opened_in_order_are_decoded_ahead() {
    let fixture = archived();
    let mut names = ["base/a", "base/b", "base/c", "base/d", "base/e", "base/f"];
    let things: Vec<_> = (1..)
        .zip(names)
        .map(|(n, name)| (name, Thing::File(support::noise(n, 20_000))))
        .collect();
    let root = fixture.backup(&things).root.unwrap().directory;
    let fixture = reopened(fixture);
    let tree = Tree::of(&fixture.repository);
    tree.list("main/latest/base");
    let ino = |name: &str| tree.node(&format!("main/latest/{name}")).ino;
    // The order of `cp -a`. The order of names may be the same for a few files; which ones, depends on the backup's id.
    names.sort_by_key(|name| ino(name));
    let (opened, rest) = names.split_at(2);
    for name in opened {
        tree.0.open(ino(name), NOBODY).unwrap();
    }
    for name in rest {
        let entry = fixture
            .repository
            .trees()
            .find(&root, name.as_bytes())
            .unwrap()
            .unwrap();
        let Stored::File(map) = entry.node else {
            panic!("{name} is a file")
        };
        until_decoded(&fixture, &map);
    }
}

#[test]
fn a_large_file_is_decoded_ahead_of_its_reader() {
    let fixture = archived();
    let things = [("table", Thing::File(support::noise(1, 8 * WINDOW)))];
    let root = fixture.backup(&things).root.unwrap().directory;
    let fixture = reopened(fixture);
    let tree = Tree::of(&fixture.repository);
    let open = tree
        .0
        .open(tree.node("main/latest/table").ino, NOBODY)
        .unwrap()
        .handle;
    tree.0.read(open, 0, WINDOW, |_| ()).unwrap();
    let entry = fixture.repository.trees().find(&root, b"table").unwrap().unwrap();
    let Stored::File(map) = entry.node else {
        panic!("table is a file")
    };
    let third = fixture.repository.trees().window(&map, 2).unwrap();
    until_decoded(
        &fixture,
        &FileMap::inline(WINDOW as u64, WINDOW as u32, vec![third]).unwrap(),
    );
}

#[test]
fn the_next_segments_are_decoded_ahead_of_recovery() {
    let fixture = Fixture::new();
    (2..=7).for_each(|number| drop(fixture.archive(number, number.into())));
    let fixture = reopened(fixture);
    let tree = Tree::of(&fixture.repository);
    for number in [2, 3] {
        let name = segment(number, 0).0;
        tree.0
            .open(tree.node(&format!("main/wal/{name}")).ino, NOBODY)
            .unwrap();
    }
    for number in [4, 7] {
        let file = fixture
            .repository
            .wal(&fixture.server)
            .find(&segment(number, 0).0)
            .unwrap()
            .unwrap();
        until_decoded(&fixture, &file.map);
    }
}
