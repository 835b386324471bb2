//! A repository for tests, and WAL and backups to fill it with.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::SystemTime;

pub(crate) use barmanfs_catalog::testing::{SYSTEM, backup_end, new_backup_with_wal};
use barmanfs_catalog::{
    Backup, BackupRun, BootCheck, BootOutcome, BootTest, CloneDescription, CloneOrigin, CreateOptions,
    NewBackup, Repository, ServerName, WalOutcome,
};
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::{SegmentSize, SystemId, TimestampMicros, testing};
pub(crate) use barmanfs_store::testing::noise;
use barmanfs_store::{Attributes, LocalPacks, Node, PackStorage, RecordId, read_footer};

pub(crate) const SEGMENT_SIZE: SegmentSize = SegmentSize::MIN;
pub(crate) const WINDOW: u32 = 128 * 1024;

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) struct Fixture {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) repository: Repository,
    pub(crate) server: ServerName,
}

pub(crate) fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let repository =
        Repository::create(&directory.path().join("repository"), CreateOptions::default()).unwrap();
    Fixture {
        directory,
        repository,
        server: "main".parse().unwrap(),
    }
}

/// Segment `number` of a cluster with the smallest segments: a correct first page, then noise.
pub(crate) fn segment(number: u32, system: SystemId, seed: u64) -> (WalName, Vec<u8>) {
    let content = noise(seed, usize::try_from(SEGMENT_SIZE.bytes()).unwrap());
    let (name, bytes) = testing::segment(number, system, content);
    (WalName::Segment(name), bytes)
}

pub(crate) fn archive(
    repository: &Repository,
    server: &ServerName,
    name: &WalName,
    bytes: &[u8],
) -> barmanfs_catalog::Result<WalOutcome> {
    let writer = repository.writer("test").unwrap();
    writer.archive_wal(server, name, &mut &*bytes, bytes.len() as u64, "test")
}

pub(crate) fn attributes() -> Attributes {
    Attributes {
        mode: 0o600,
        uid: 1,
        gid: 2,
        mtime_s: 1_700_000_000,
        mtime_ns: 5,
    }
}

pub(crate) fn new_backup() -> NewBackup {
    barmanfs_catalog::testing::new_backup(SYSTEM)
}

pub(crate) fn begin(repository: &Repository, server: &ServerName) -> BackupRun {
    repository
        .writer("test backup")
        .unwrap()
        .begin_backup(server, new_backup())
        .unwrap()
}

pub(crate) fn put_files(run: &BackupRun, files: &Files) {
    for (path, bytes) in files {
        let tree = run.tree().unwrap();
        let mut file = tree
            .file(path.as_bytes(), attributes(), bytes.len() as u64, WINDOW)
            .unwrap();
        file.write(bytes).unwrap();
        file.finish().unwrap();
    }
}

/// Ends a backup that needs segments `first` to `last`.
pub(crate) fn finish(mut run: BackupRun, first: u64, last: u64) -> Backup {
    run.end_tree(attributes()).unwrap();
    run.finish(backup_end(first, last)).unwrap()
}

pub(crate) fn back_up(repository: &Repository, server: &ServerName, files: &Files) -> Backup {
    let run = begin(repository, server);
    put_files(&run, files);
    finish(run, 1, 1)
}

/// The description of a clone based on this backup.
pub(crate) fn clone_of(backup: &Backup) -> CloneDescription {
    CloneDescription {
        id: RecordId::random().unwrap(),
        seed: None,
        server: backup.server.clone(),
        name: "test1".parse().unwrap(),
        origin: CloneOrigin {
            backup: backup.id,
            target: None,
            copied_from: None,
        },
        created_at: SystemTime::now().into(),
        root: backup.root.clone().unwrap(),
        grafts: Vec::new(),
        max_bytes: None,
    }
}

/// A boot test of that minute.
pub(crate) fn boot_test(minute: i64, outcome: BootOutcome) -> BootTest {
    BootTest {
        outcome,
        began_at: TimestampMicros::from_unix_micros(minute * 60_000_000),
        took_ms: 1500,
        postgresql: "15.18".to_owned(),
        checks: vec![BootCheck::Sql, BootCheck::Amcheck],
        message: (outcome == BootOutcome::Failed).then(|| "no reason".to_owned()),
    }
}

/// All files of a backup, read back.
pub(crate) fn restore(repository: &Repository, backup: &Backup) -> Files {
    let trees = repository.trees();
    let mut files = Files::new();
    let mut waiting = vec![(String::new(), backup.root.clone().unwrap().directory)];
    while let Some((prefix, directory)) = waiting.pop() {
        for entry in trees.entries(&directory) {
            let entry = entry.unwrap();
            let path = format!("{prefix}{}", String::from_utf8(entry.name).unwrap());
            match entry.node {
                Node::File(map) => {
                    let mut bytes = Vec::new();
                    trees.reader(map).read_to_end(&mut bytes).unwrap();
                    files.insert(path, bytes);
                }
                Node::Directory(child) => waiting.push((format!("{path}/"), child)),
                Node::Symlink(_) => {}
            }
        }
    }
    files
}

pub(crate) fn read_wal(repository: &Repository, server: &ServerName, name: &WalName) -> Vec<u8> {
    let mut bytes = Vec::new();
    repository
        .wal(server)
        .open(name)
        .unwrap()
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

/// The records of a kind in packs.
pub(crate) fn stored(f: &Fixture, kind: u8) -> usize {
    let storage = LocalPacks::open(&f.repository.path().join("packs")).unwrap();
    let mut found = 0;
    let mut count = |pack| {
        let footer = read_footer(&storage, pack)?;
        found += footer.records.iter().filter(|record| record.kind == kind).count();
        Ok(())
    };
    storage.list(&mut count).unwrap();
    found
}
