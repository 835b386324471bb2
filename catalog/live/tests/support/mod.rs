//! A repository for tests, and what goes into it.
#![allow(dead_code, unreachable_pub)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use barmanfs_catalog::{
    Backup, BackupEnd, BackupRun, CloneDescription, CloneOrigin, CreateOptions, FirstKey, KeySource,
    NewBackup, NewRecipient, Repository, ServerName, use_keys_of,
};
use barmanfs_pg::backup_manifest::{Checksum, ManifestFile, ManifestWriter};
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId, testing};
use barmanfs_store::age::Identity;
pub use barmanfs_store::testing::noise;
use barmanfs_store::{Attributes, IdHash, RecordId};

pub const SYSTEM: SystemId = SystemId(7_710_414_268_036_822_209);
pub const SEGMENT: SegmentSize = SegmentSize::MIN;
pub const WINDOW: usize = 128 * 1024;

/// The key of encrypted repositories, for tests only.
pub const TEST_KEY: &str = "AGE-SECRET-KEY-1JVAKRC3AE92THY6K6H2J8R4U5TR0EHT2TXYKVPDQ3WG2ETVWQWKQYG9ZNZ";

fn test_key() -> Identity {
    Identity::parse_all(TEST_KEY.as_bytes()).unwrap().remove(0)
}

#[derive(Debug)]
struct TestKey;

impl KeySource for TestKey {
    fn identities(&self) -> Result<Vec<Identity>, String> {
        Ok(vec![test_key()])
    }

    fn expects(&self, _repository: &Path) -> bool {
        false
    }
}

/// Encrypted repositories are opened by the key of tests from now on.
pub fn use_test_key() {
    use_keys_of(Arc::new(TestKey));
}

/// One thing in a data directory.
#[derive(Clone)]
pub enum Thing {
    Directory,
    File(Vec<u8>),
    Link(&'static str),
}

pub struct Fixture {
    pub directory: tempfile::TempDir,
    pub repository: Repository,
    pub server: ServerName,
    /// The cluster that is backed up.
    pub system: SystemId,
}

impl Fixture {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("repository");
        let repository = Repository::create(&path, CreateOptions::default()).unwrap();
        Self {
            directory,
            repository,
            server: "main".parse().unwrap(),
            system: SYSTEM,
        }
    }

    /// One whose repository is encrypted, for [`TEST_KEY`].
    pub fn encrypted() -> Self {
        use_test_key();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("repository");
        let recipient = test_key().recipient().unwrap();
        let first = FirstKey::New(IdHash::Blake3Keyed);
        let recipients = [NewRecipient::Key(recipient)];
        let options = CreateOptions::default();
        let repository = Repository::create_encrypted(&path, options, &first, &recipients).unwrap();
        Self {
            directory,
            repository,
            server: "main".parse().unwrap(),
            system: SYSTEM,
        }
    }

    /// Gives the repository to this user, and lets the user reach it. Needs root.
    pub fn give_away(&self, user: u32) {
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.directory.path(), open).unwrap();
        let mut chown = Command::new("chown");
        chown
            .args(["-R", &format!("{user}:{user}")])
            .arg(self.repository.path());
        assert!(chown.status().unwrap().success());
    }

    /// Archives segment `number` of timeline 1; every seed gives different bytes.
    pub fn archive(&self, number: u32, seed: u64) -> Vec<u8> {
        let (name, bytes) = segment(number, seed);
        self.archive_as(&name, &bytes);
        bytes
    }

    pub fn archive_as(&self, name: &WalName, bytes: &[u8]) {
        let writer = self.repository.writer("test").unwrap();
        writer
            .archive_wal(&self.server, name, &mut &*bytes, bytes.len() as u64, "test")
            .unwrap();
    }

    /// A backup of these things that needs segments 2 and 3.
    pub fn backup(&self, things: &[(&str, Thing)]) -> Backup {
        self.backup_of(things, 2..=3)
    }

    pub fn backup_of(&self, things: &[(&str, Thing)], needs: std::ops::RangeInclusive<u64>) -> Backup {
        let new = NewBackup {
            label: None,
            system_id: self.system,
            server_version: ServerVersion(150_018),
            segment_size: SEGMENT,
            wal_included: false,
            fork: None,
            timezone: None,
        };
        let run = self
            .repository
            .writer("test")
            .unwrap()
            .begin_backup(&self.server, new)
            .unwrap();
        put(&run, things);
        Self::end(run, needs, TimelineId(1))
    }

    /// A backup of a clone of `of`, whose server was shut down.
    pub fn backup_of_clone(&self, of: &Backup, things: &[(&str, Thing)]) -> Backup {
        let new = NewBackup {
            label: None,
            system_id: self.system,
            server_version: ServerVersion(150_018),
            segment_size: SEGMENT,
            wal_included: true,
            fork: None,
            timezone: None,
        };
        let clone = clone_of(of);
        let writer = self.repository.writer("test").unwrap();
        let mut run = writer.begin_backup(&self.server, new).unwrap();
        run.build_on_clone(&clone, true).unwrap();
        put(&run, things);
        Self::end(run, 4..=4, TimelineId(2))
    }

    fn end(mut run: BackupRun, needs: std::ops::RangeInclusive<u64>, timeline: TimelineId) -> Backup {
        run.end_tree(attributes(0o700)).unwrap();
        let bytes = SEGMENT.bytes();
        run.finish(BackupEnd {
            start_lsn: Lsn(needs.start() * bytes + 40),
            stop_lsn: Lsn(needs.end() * bytes + 4096),
            timeline,
            data_checksums: None,
            tablespaces: Vec::new(),
            sent_bytes: 0,
            checksum_failures: Vec::new(),
            from_standby: false,
        })
        .unwrap()
    }
}

/// The description of a clone of this backup.
pub fn clone_of(backup: &Backup) -> CloneDescription {
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
        created_at: backup.begin_time,
        root: backup.root.clone().unwrap(),
        grafts: Vec::new(),
        max_bytes: None,
    }
}

/// Puts these things into a backup's tree.
fn put(run: &BackupRun, things: &[(&str, Thing)]) {
    for (path, thing) in things {
        let tree = run.tree().unwrap();
        match thing {
            Thing::Directory => tree.directory(path.as_bytes(), attributes(0o700)).unwrap(),
            Thing::Link(target) => {
                tree.symlink(path.as_bytes(), attributes(0o777), target.as_bytes())
                    .unwrap();
            }
            Thing::File(bytes) => {
                let mut file = tree
                    .file(
                        path.as_bytes(),
                        attributes(0o600),
                        bytes.len() as u64,
                        WINDOW as u32,
                    )
                    .unwrap();
                file.write(bytes).unwrap();
                file.finish().unwrap();
            }
        }
    }
}

pub fn attributes(mode: u32) -> Attributes {
    Attributes {
        mode,
        uid: 4711,
        gid: 4712,
        mtime_s: 1_700_000_000,
        mtime_ns: 123_456_789,
    }
}

/// Segment `number`: a correct first page, then noise.
pub fn segment(number: u32, seed: u64) -> (WalName, Vec<u8>) {
    let content = noise(seed, SEGMENT.bytes() as usize);
    let (name, bytes) = testing::segment(number, SYSTEM, content);
    (WalName::Segment(name), bytes)
}

/// The content of a small data directory, with a table of three windows of noise, two windows that are a hole, and
/// half a window of noise.
pub fn data_directory(seed: u64) -> Vec<(&'static str, Thing)> {
    let mut table = noise(seed, 3 * WINDOW);
    table.extend(vec![0; 2 * WINDOW]);
    table.extend(noise(seed + 1, WINDOW / 2));
    vec![
        ("PG_VERSION", Thing::File(b"15\n".to_vec())),
        (
            "backup_label",
            Thing::File(format!("START WAL LOCATION: {seed}\n").into_bytes()),
        ),
        ("base", Thing::Directory),
        ("base/5", Thing::Directory),
        ("base/5/1259", Thing::File(table)),
        ("base/5/1259_fsm", Thing::File(vec![0; 24576])),
        ("base/5/empty", Thing::File(Vec::new())),
        ("pg_tblspc", Thing::Directory),
        ("pg_wal", Thing::Directory),
        ("pg_wal/archive_status", Thing::Directory),
        (
            "postgresql.auto.conf",
            Thing::File(b"# As ALTER SYSTEM left it\nwork_mem = '1MB'".to_vec()),
        ),
        ("postgresql.conf", Thing::File(b"port = 5433\n".to_vec())),
        ("pg_hba.conf", Thing::File(b"local all all trust\n".to_vec())),
    ]
}

/// The content of a thing by its path.
pub fn content<'a>(things: &'a [(&str, Thing)], path: &str) -> &'a [u8] {
    match things.iter().find(|(name, _)| *name == path) {
        Some((_, Thing::File(bytes))) => bytes,
        _ => panic!("no file {path}"),
    }
}

/// The manifest PostgreSQL would send with these files.
pub fn manifest(things: &[(&str, Thing)]) -> Thing {
    let mut writer = ManifestWriter::begin(Vec::new(), Some(SYSTEM)).unwrap();
    for (path, thing) in things {
        if let Thing::File(bytes) = thing {
            let file = ManifestFile {
                path: path.as_bytes().to_vec(),
                size_bytes: bytes.len() as u64,
                modified: "2026-11-21 00:25:17 GMT".to_owned(),
                checksum: Some(Checksum::Crc32c(crc32c::crc32c(bytes))),
            };
            writer.file(&file).unwrap();
        }
    }
    Thing::File(writer.finish(&[]).unwrap())
}
