//! Repositories as earlier releases wrote them: whatever changes later, they can still be read and written.
//!
//! `frozen/<n>/repository` is a repository, `frozen/<n>/held.txt` lists its content. Both are created once for each
//! version of a format, packs, records, clones or the index, by
//!
//! ```text
//! cargo test --workspace --test frozen -- --ignored
//! ```
//!
//! and never changed afterwards. One with a file `key` beside it is encrypted for this key.

#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use barmanfs_catalog::retention::RetentionRules;
use barmanfs_catalog::{
    Backup, BackupEnd, BackupRun, BackupStatus, BootCheck, BootOutcome, BootTest, CloneDescription,
    ConfigurationFiles, KeepTarget, NewBackup, Repository, ServerName, Silent, SnapshotDisk, StorageSnapshot,
    SweepOptions, Tablespace, VerifyScope,
};
use barmanfs_live::{Initial, Kind, LiveClone, NewNode, NodeId, RenameMode};
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::{Lsn, ServerVersion, TimelineId, TimestampMicros};
use barmanfs_store::{Attributes, DirectoryRef, Node};
use support::{
    Fixture, SEGMENT, TEST_KEY, Thing, WINDOW, attributes, clone_of, data_directory, noise, segment,
    use_test_key,
};

/// The name of the next fixture.
const NEXT: &str = "6";

/// The name of the next encrypted one.
const NEXT_ENCRYPTED: &str = "7";

/// A file that is changed.
const TABLE: &str = "base/5/1259";

const PAGE: usize = 8192;

/// What is only for processes at work; and the reserve, which is large and means nothing.
const LEFT_OUT: [&str; 4] = ["locks", "running", "spool", "catalog.sqlite-shm"];

fn frozen() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frozen")
}

#[test]
fn repositories_of_earlier_releases_are_read_and_written() {
    use_test_key();
    let mut seen = 0;
    for entry in fs::read_dir(frozen()).unwrap() {
        let place = entry.unwrap().path();
        let expected = fs::read_to_string(place.join("held.txt")).unwrap();
        let mut fixture = Fixture::new();
        let path = fixture.directory.path().join("thawed");
        copy(&place.join("repository"), &path);
        fixture.repository = Repository::open(&path).unwrap();
        assert_held(&fixture.repository, &expected, &place);
        go_on(&fixture, &expected, &place);
        seen += 1;
    }
    assert!(seen > 0);
}

fn assert_held(repository: &Repository, expected: &str, place: &Path) {
    let held = held(repository);
    for (expected, held) in expected.lines().zip(held.lines()) {
        assert_eq!(held, expected, "{}", place.display());
    }
    assert_eq!(held, expected, "{}", place.display());
    let verified = repository.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert!(verified.is_clean(), "{}: {verified:?}", place.display());
}

/// A backup on top, a rebuilt catalog, a sweep: everything that was there stays.
fn go_on(fixture: &Fixture, expected: &str, place: &Path) {
    let more = fixture.backup(&data_directory(1));
    fixture.repository.delete_backup(&more, false).unwrap();
    let path = fixture.repository.path();
    fixture
        .repository
        .sweep(&SweepOptions::default(), &mut Silent)
        .unwrap();
    assert_held(&fixture.repository, expected, place);
    let rebuilt = Repository::rebuild(path, &mut Silent).unwrap();
    assert!(rebuilt.problems.is_empty(), "{rebuilt:?}");
    assert_held(&Repository::open(path).unwrap(), expected, place);
}

/// Everything a user can read from a repository, one line for each item.
fn held(repository: &Repository) -> String {
    let mut lines = String::new();
    for server in repository.servers().unwrap() {
        let system = repository.system_id(&server).unwrap();
        writeln!(lines, "server {server} {system:?}").unwrap();
        for backup in repository.backups(&server).unwrap() {
            describe_backup(&mut lines, repository, &backup);
        }
        let wal = repository.wal(&server);
        for entry in wal.entries() {
            let name = entry.unwrap().name;
            let crc = crc_of(&mut wal.open(&name).unwrap().unwrap());
            writeln!(lines, "wal {name} {crc}").unwrap();
        }
        let quarantined = wal.quarantined().unwrap().len();
        writeln!(lines, "quarantined {quarantined}").unwrap();
        describe_histories(&mut lines, repository, &server);
        for clone in repository.clones(&server).unwrap() {
            describe_clone(&mut lines, repository, &clone);
        }
    }
    lines
}

fn describe_histories(lines: &mut String, repository: &Repository, server: &ServerName) {
    for fork in repository.forks(server).unwrap() {
        let (timeline, lsn, decided) = (fork.timeline, fork.lsn, fork.decided);
        writeln!(lines, "fork {timeline} {lsn} {decided:?} {}", fork.why).unwrap();
    }
    for (nth, _) in repository.histories(server).unwrap().left.iter().enumerate() {
        let left = repository.left_wal(server, nth + 1).unwrap().unwrap();
        for entry in left.entries() {
            let name = entry.unwrap().name;
            let crc = crc_of(&mut left.open(&name).unwrap().unwrap());
            writeln!(lines, "left {} wal {name} {crc}", nth + 1).unwrap();
        }
    }
}

fn describe_backup(lines: &mut String, repository: &Repository, backup: &Backup) {
    let Backup { id, status, .. } = backup;
    writeln!(
        lines,
        "backup {id} {status} {:?} parent {:?} label {:?} {} to {:?}, {} to {:?}",
        backup.kind,
        backup.parent,
        backup.label,
        backup.begin_time,
        backup.end_time,
        backup.server_version,
        backup.stop_lsn
    )
    .unwrap();
    if let Some(cloned) = &backup.cloned_from {
        writeln!(lines, " of {cloned:?}").unwrap();
    }
    if let Some(test) = repository.boot_test(backup).unwrap() {
        writeln!(lines, " booted {test:?}").unwrap();
    }
    if let Some(keep) = repository.keep_of(backup).unwrap() {
        writeln!(lines, " kept {keep:?}").unwrap();
    }
    if let Some(root) = &backup.root {
        describe_tree(lines, repository, "", &root.directory);
    }
    if let Some(snapshot) = &backup.snapshot {
        let mounts: Vec<&String> = snapshot.disks.iter().map(|disk| &disk.mount_point).collect();
        let (name, label) = (&snapshot.name, &snapshot.backup_label);
        writeln!(lines, " snapshot {name:?} {mounts:?} {label:?}").unwrap();
    }
    if let Some(files) = repository.configuration_files(backup).unwrap() {
        let named: Vec<&String> = files.named_by_settings().collect();
        let (data, read_at) = (&files.data_directory, files.read_at);
        writeln!(lines, " configuration {data:?} {named:?} {read_at}").unwrap();
        describe_tree(lines, repository, "", &files.directory);
    }
}

fn describe_tree(lines: &mut String, repository: &Repository, prefix: &str, directory: &DirectoryRef) {
    let trees = repository.trees();
    for entry in trees.entries(directory) {
        let entry = entry.unwrap();
        let path = format!("{prefix}{}", String::from_utf8(entry.name).unwrap());
        let Attributes {
            mode,
            uid,
            gid,
            mtime_s,
            mtime_ns,
        } = entry.attributes;
        write!(lines, "  {path} {mode:o} {uid}:{gid} {mtime_s}.{mtime_ns}").unwrap();
        match entry.node {
            Node::File(map) => {
                let size_bytes = map.size_bytes;
                let crc = crc_of(&mut trees.reader(map));
                writeln!(lines, " {size_bytes} {crc}").unwrap();
            }
            Node::Symlink(target) => writeln!(lines, " -> {}", target.escape_ascii()).unwrap(),
            Node::Directory(child) => {
                lines.push('\n');
                describe_tree(lines, repository, &format!("{path}/"), &child);
            }
        }
    }
}

fn crc_of(reader: &mut dyn Read) -> String {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    format!("{:08x}", crc32c::crc32c(&bytes))
}

fn describe_clone(lines: &mut String, repository: &Repository, clone: &CloneDescription) {
    let CloneDescription {
        server, name, origin, ..
    } = clone;
    writeln!(lines, "clone {name} {origin:?} {:?}", clone.max_bytes).unwrap();
    let directory = repository.clone_directory(server, name);
    let live = LiveClone::open(&directory, clone, repository.trees()).unwrap();
    describe_live(lines, &live, "", live.root());
}

fn describe_live(lines: &mut String, live: &LiveClone, prefix: &str, directory: NodeId) {
    for name in live.entries(directory).unwrap() {
        let name = name.unwrap().name;
        let of = live.lookup(directory, &name).unwrap();
        let path = format!("{prefix}{}", String::from_utf8(name).unwrap());
        let (node, mode) = (of.node, of.mode);
        // Without times: a file that belongs only to the clone has the time of its upper file, which was copied here.
        write!(lines, "  {path} {mode:o} {}:{}", of.uid, of.gid).unwrap();
        match of.kind {
            Kind::File => {
                let mut bytes = vec![0; usize::try_from(of.size_bytes).unwrap()];
                assert_eq!(live.read(node, 0, &mut bytes).unwrap(), bytes.len());
                writeln!(lines, " {} {:08x}", bytes.len(), crc32c::crc32c(&bytes)).unwrap();
            }
            Kind::Symlink => writeln!(lines, " -> {}", live.readlink(node).unwrap().escape_ascii()).unwrap(),
            Kind::Socket => lines.push_str(" socket\n"),
            Kind::Directory => {
                lines.push('\n');
                describe_live(lines, live, &format!("{path}/"), node);
            }
        }
    }
}

/// Copies a repository without the files that only running processes need.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if LEFT_OUT.contains(&&*name) || name.starts_with("reserve") {
            continue;
        }
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
#[ignore = "makes the fixture of a new version of a format"]
fn freeze() {
    freeze_one(NEXT, &Fixture::new());
}

#[test]
#[ignore = "makes the fixture of a new version of a format"]
fn freeze_encrypted() {
    let key = format!("{TEST_KEY}\n");
    freeze_one(NEXT_ENCRYPTED, &Fixture::encrypted());
    fs::write(frozen().join(NEXT_ENCRYPTED).join("key"), key).unwrap();
}

fn freeze_one(name: &str, fixture: &Fixture) {
    let place = frozen().join(name);
    assert!(!place.exists(), "{} is there, and for good", place.display());
    fill(fixture);
    decide(fixture);
    let path = fixture.repository.path();
    // Without SQLite's log, which is larger than all else.
    Repository::rebuild(path, &mut Silent).unwrap();
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("held.txt"), held(&fixture.repository)).unwrap();
    copy(path, &place.join("repository"));
}

/// Fills the repository with one of everything.
fn fill(fixture: &Fixture) {
    for number in 2..=4 {
        let (name, bytes) = small_segment(number);
        fixture.archive_as(&name, &bytes);
    }
    let history = "00000002.history".parse().unwrap();
    fixture.archive_as(&history, b"1\t0/300000\tno recovery target specified\n");
    let (name, mut other) = small_segment(3);
    other[9000] = 1;
    fixture.archive_as(&name, &other);

    let mut things = data_directory(1);
    for (path, thing) in &mut things {
        if let (&mut TABLE, Thing::File(bytes)) = (path, thing) {
            // A few windows are as good as many, and one is a hole.
            bytes.truncate(4 * WINDOW);
            bytes[WINDOW..2 * WINDOW].fill(0);
        }
    }
    things.push(("pg_tblspc/16400", Thing::Link("/elsewhere")));
    let full = fixture.backup(&things);
    let changed = with_a_change(&things, 5);
    let second = fixture.backup(&changed);
    increment(fixture, &second);
    configured(fixture);
    in_the_storage(fixture);
    failed(fixture);
    let clone = make_clone(fixture, &second);
    commit(fixture, &clone);
    fixture.repository.add_boot_test(&second, boot_test()).unwrap();
    fixture.repository.delete_backup(&full, false).unwrap();
}

/// What people decide, of a server of its own: backups that are kept, WAL that was removed, histories that were kept and
/// left, damage that was stored again.
fn decide(fixture: &Fixture) {
    let second = Fixture {
        directory: tempfile::tempdir().unwrap(),
        repository: Repository::open(fixture.repository.path()).unwrap(),
        server: "second".parse().unwrap(),
        system: fixture.system,
    };
    let repository = &second.repository;
    for number in 2..=9 {
        let (name, bytes) = small_segment(number);
        second.archive_as(&name, &bytes);
    }
    let files = |nth: u8| {
        vec![
            ("PG_VERSION", Thing::File(b"18\n".to_vec())),
            ("content", Thing::File(noise(200 + u64::from(nth), 5000))),
        ]
    };
    let [standalone, full, released, newest] = [(0, 3), (1, 5), (2, 6), (3, 7)]
        .map(|(nth, segment)| second.backup_of(&files(nth), segment..=segment));
    let until = TimestampMicros::from_unix_seconds(32_503_680_000);
    let reason = || Some("the end of the year".to_owned());
    repository
        .keep_backup(&standalone, KeepTarget::Standalone, None, reason())
        .unwrap();
    repository
        .keep_backup(&full, KeepTarget::Full, Some(until), None)
        .unwrap();
    repository
        .keep_backup(&released, KeepTarget::Full, None, None)
        .unwrap();
    assert!(repository.release_backup(&released).unwrap());
    let rules = RetentionRules {
        backups: Some("REDUNDANCY 1".parse().unwrap()),
        ..RetentionRules::default()
    };
    let done = repository.enforce_retention(
        &second.server,
        &rules,
        TimestampMicros::from_unix_seconds(1_800_000_000),
    );
    let done = done.unwrap();
    assert!(done.deleted.len() == 1 && done.wal.len() == 2, "{done:?}");
    damage(&second, &noise(203, 5000));
    let again = second.backup_of(&files(3), 7..=7);
    repository.delete_backup(&newest, false).unwrap();
    assert_eq!(again.status, BackupStatus::Done);
    for (number, at) in [(9, None), (8, Some(Lsn(8 * SEGMENT.bytes())))] {
        let (name, mut other) = small_segment(number);
        other[9000] = 1;
        second.archive_as(&name, &other);
        let writer = repository.writer("test").unwrap();
        let lsn = at.unwrap_or(Lsn(9 * SEGMENT.bytes()));
        match at {
            None => drop(writer.keep_history(&second.server, None, lsn).unwrap()),
            Some(_) => drop(writer.restart_history(&second.server, None, lsn).unwrap()),
        }
    }
}

/// Damages the stored bytes, finds that out, and notes it.
fn damage(fixture: &Fixture, bytes: &[u8]) {
    let packs = fs::read_dir(fixture.repository.path().join("packs")).unwrap();
    let packs = packs.flat_map(|directory| fs::read_dir(directory.unwrap().path()).unwrap());
    let mut packs: Vec<_> = packs.map(|pack| pack.unwrap().path()).collect();
    packs.sort_by_key(|pack| fs::metadata(pack).unwrap().modified().unwrap());
    let needle = &bytes[100..150];
    let found = packs.iter().rev().find_map(|pack| {
        let content = fs::read(pack).unwrap();
        let plain = content.windows(needle.len()).position(|window| window == needle);
        // Where it is sealed, the newest pack that is as large has it, and little else.
        let at = plain
            .or_else(|| (is_sealed(fixture) && content.len() > bytes.len()).then_some(content.len() / 2));
        at.map(|at| (pack, content, at))
    });
    let (pack, mut content, at) = found.unwrap();
    content[at] ^= 1;
    fs::write(pack, content).unwrap();
    let repository = Repository::open(fixture.repository.path()).unwrap();
    let report = repository.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert_eq!(report.bad_chunks, 1);
    repository.note_damage(&report).unwrap();
}

fn is_sealed(fixture: &Fixture) -> bool {
    fixture.repository.settings().encryption.is_some()
}

/// A segment that takes little room.
fn small_segment(number: u32) -> (WalName, Vec<u8>) {
    let (name, mut bytes) = segment(number, number.into());
    bytes[12_000..].fill(0);
    (name, bytes)
}

/// The same, but for one page of the table.
fn with_a_change(things: &[(&'static str, Thing)], page: usize) -> Vec<(&'static str, Thing)> {
    let mut things = things.to_vec();
    for (path, thing) in &mut things {
        if let (&mut TABLE, Thing::File(bytes)) = (path, thing) {
            bytes[page * PAGE..][..PAGE].copy_from_slice(&noise(77, PAGE));
        }
    }
    things
}

fn begin(fixture: &Fixture, label: &str) -> BackupRun {
    let new = NewBackup {
        label: Some(label.to_owned()),
        system_id: fixture.system,
        server_version: ServerVersion(180_006),
        segment_size: SEGMENT,
        wal_included: true,
        fork: None,
        timezone: Some("Europe/Vienna".to_owned()),
    };
    let writer = fixture.repository.writer("test").unwrap();
    writer.begin_backup(&fixture.server, new).unwrap()
}

/// A backup of a server that keeps its configuration elsewhere; its WAL came with it.
fn configured(fixture: &Fixture) {
    const MAIN: &str = "/etc/postgresql/18/main/postgresql.conf";
    let mut run = begin(fixture, "configured");
    run.end_tree(attributes(0o700)).unwrap();
    let tree = run.configuration_tree().unwrap();
    for (path, text) in [(MAIN, "port = 5432\n"), ("/srv/shared.conf", "")] {
        let name = path.trim_start_matches('/').as_bytes();
        let window = u32::try_from(WINDOW).unwrap();
        let mut file = tree
            .file(name, attributes(0o640), text.len() as u64, window)
            .unwrap();
        file.write(text.as_bytes()).unwrap();
        file.finish().unwrap();
    }
    let directory = tree.finish(attributes(0o700)).unwrap().root;
    run.set_configuration(ConfigurationFiles {
        directory,
        read_at: TimestampMicros::from_unix_seconds(1_790_000_000),
        data_directory: "/var/lib/postgresql/18/main".to_owned(),
        config_file: Some(MAIN.to_owned()),
        hba_file: None,
        ident_file: None,
    });
    run.finish(end(3)).unwrap();
}

fn failed(fixture: &Fixture) {
    begin(fixture, "failed").fail("the connection was lost");
}

/// A backup whose files are elsewhere.
fn in_the_storage(fixture: &Fixture) {
    let disk = |mount_point: &str| SnapshotDisk {
        disk: Some("disk1".to_owned()),
        snapshot: "disk1-20261130".to_owned(),
        mount_point: mount_point.to_owned(),
        mount_options: "rw,noatime".to_owned(),
    };
    let snapshot = StorageSnapshot {
        name: "barmanfs-main-20261130".to_owned(),
        disks: vec![disk("/srv/main"), disk("/srv/fast")],
        data_directory: Some("/srv/main/data".to_owned()),
        backup_label: "START WAL LOCATION: 0/400028 (file 000000010000000000000004)\n".to_owned(),
        tablespace_map: "16400 /srv/fast/space\n".to_owned(),
    };
    begin(fixture, "a snapshot")
        .finish_snapshot(end(4), snapshot)
        .unwrap();
}

/// An incremental backup, made of blocks and the backup before; its WAL is there too.
fn increment(fixture: &Fixture, parent: &Backup) {
    let mut run = begin(fixture, "nightly");
    let (trees, root) = run.build_on(parent).unwrap();
    let entry = trees.find(&root, TABLE.as_bytes()).unwrap().unwrap();
    let Node::File(map) = entry.node else { panic!() };
    let tree = run.tree().unwrap();
    let base = Some((&trees, &map));
    let size = map.size_bytes;
    let window = u32::try_from(WINDOW).unwrap();
    let mut file = tree
        .composed_file(TABLE.as_bytes(), attributes(0o600), size, window, base, size)
        .unwrap();
    file.block(40 * PAGE as u64, &noise(78, PAGE)).unwrap();
    file.finish().unwrap();
    run.end_tree(attributes(0o700)).unwrap();
    run.finish(end(4)).unwrap();
}

/// The end of a backup that needs only this segment.
fn end(segment: u64) -> BackupEnd {
    BackupEnd {
        start_lsn: Lsn(segment * SEGMENT.bytes() + 40),
        stop_lsn: Lsn(segment * SEGMENT.bytes() + 400),
        timeline: TimelineId(1),
        data_checksums: Some(true),
        tablespaces: vec![Tablespace {
            oid: 16400,
            name: Some("fast".to_owned()),
            location: "/elsewhere".to_owned(),
        }],
        sent_bytes: 8192,
        checksum_failures: Vec::new(),
        from_standby: false,
    }
}

/// A clone with one of each possible change.
fn make_clone(fixture: &Fixture, backup: &Backup) -> CloneDescription {
    let mut description = clone_of(backup);
    description.origin.target = Some("name:before".to_owned());
    description.max_bytes = Some(1 << 30);
    let initial = Initial {
        made: Vec::new(),
        looked_at: &[],
        hide: &|_, _| false,
    };
    let draft = fixture.repository.begin_clone(description, backup).unwrap();
    let trees = fixture.repository.trees();
    let live = LiveClone::create_in(draft.directory(), draft.description(), trees, &initial).unwrap();
    change(&live);
    live.flush_all().unwrap();
    drop(live);
    draft.finish().unwrap()
}

/// A backup made of a clone.
fn commit(fixture: &Fixture, clone: &CloneDescription) {
    let mut run = begin(fixture, "committed");
    run.build_on_clone(clone, true).unwrap();
    let directory = fixture.repository.clone_directory(&clone.server, &clone.name);
    let live = LiveClone::open(&directory, clone, fixture.repository.trees()).unwrap();
    let mut table = live.root();
    for name in TABLE.split('/') {
        table = live.lookup(table, name.as_bytes()).unwrap().node;
    }
    let (tree, window) = (run.tree().unwrap(), u32::try_from(WINDOW).unwrap());
    live.store_file(table, tree, TABLE.as_bytes(), window).unwrap();
    run.end_tree(attributes(0o700)).unwrap();
    run.finish(end(5)).unwrap();
}

fn boot_test() -> BootTest {
    BootTest {
        outcome: BootOutcome::Failed,
        began_at: TimestampMicros::from_unix_micros(1_795_256_000_000_000),
        took_ms: 1234,
        postgresql: "18.6".to_owned(),
        checks: vec![BootCheck::Catalogs, BootCheck::Amcheck],
        message: Some("an index is corrupt".to_owned()),
    }
}

fn change(live: &LiveClone) {
    let new = NewNode {
        mode: 0o640,
        uid: 7,
        gid: 8,
    };
    let root = live.root();
    let base = live.lookup(root, b"base").unwrap().node;
    let database = live.lookup(base, b"5").unwrap().node;
    let table = live.lookup(database, b"1259").unwrap().node;
    live.write(table, 3 * PAGE as u64 + 5, b"written", false).unwrap();
    let made = live.create(database, b"16384", new).unwrap().node;
    live.write(made, 100_000, &noise(79, 300), false).unwrap();
    live.link(made, database, b"linked").unwrap();
    live.symlink(root, b"symlink", b"base/5", new).unwrap();
    live.mkdir(root, b"made", new).unwrap();
    live.rename((database, b"empty"), (root, b"moved"), RenameMode::Replace)
        .unwrap();
    live.unlink(root, b"pg_hba.conf").unwrap();
}
