//! `pitr/` without PostgreSQL, and without a kernel except for clones: which targets exist, and the recovery settings
//! of a copy.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use barmanfs_catalog::{Backup, SpoolFile};
use barmanfs_fs::entry::Lifetime;
use barmanfs_fs::namespace::Node;
use barmanfs_fs::usage::Caller;
use barmanfs_pg::testing::{SYSTEM_ID, SampleWal};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::wal_scan::RecordFacts;
use barmanfs_pg::{Lsn, SystemId, TimelineId, TimestampMicros};
use support::daemon::Daemon;
use support::tree::Tree;
use support::{Fixture, SEGMENT, Thing, data_directory};

/// The WAL in segments 2 to 9: a commit every quarter of a segment, one second after the other, and a restore point
/// between them.
struct Log {
    fixture: Fixture,
    wal: SampleWal,
}

const FIRST: u64 = 2;
const LAST: u64 = 9;

/// 2099-01-01 00:00:00+00: later than the backups, which are made when the test runs.
const EPOCH: i64 = 4_070_908_800;

fn time(second: i64) -> TimestampMicros {
    TimestampMicros::from_unix_seconds(EPOCH + second)
}

impl Log {
    fn new() -> Self {
        let mut fixture = Fixture::new();
        fixture.system = SystemId(SYSTEM_ID);
        let mut wal = SampleWal::new(Lsn(FIRST * SEGMENT.bytes()), SEGMENT);
        let quarter = SEGMENT.bytes() as usize / 4;
        let mut second = 0;
        while wal.position().0 < (LAST + 1) * SEGMENT.bytes() {
            second += 1;
            let commit = RecordFacts::Commit {
                time: time(second),
                xid: 1000 + second as u32,
            };
            wal.say(&commit, quarter - 200);
            if second == 20 {
                let name = "before, the/change".to_owned();
                wal.say(&RecordFacts::RestorePoint { name, time: time(20) }, 0);
            }
        }
        let log = Self { fixture, wal };
        // The WAL after the last whole segment is not archived.
        for number in FIRST..=LAST {
            log.archive(number);
        }
        log
    }

    fn bytes(&self, number: u64) -> (SegmentName, Vec<u8>) {
        let name = SegmentName::from_lsn(TimelineId(1), Lsn(number * SEGMENT.bytes()), SEGMENT);
        let segments = self.wal.segments();
        let segment = segments.into_iter().find(|segment| segment.name == name).unwrap();
        (name, segment.bytes)
    }

    fn archive(&self, number: u64) {
        let (name, bytes) = self.bytes(number);
        self.fixture.archive_as(&WalName::Segment(name), &bytes);
    }

    /// A backup that starts at the beginning of segment `number` and ends in the same segment.
    fn backup(&self, number: u64) -> Backup {
        self.fixture.backup_of(&data_directory(number), number..=number)
    }

    fn tree(&self) -> Tree {
        Tree::of(&self.fixture.repository)
    }

    /// Start and end of the record of this second.
    fn extent(&self, second: i64) -> (Lsn, Lsn) {
        let commit = |facts: &RecordFacts| matches!(facts, RecordFacts::Commit { time: at, .. } if *at == time(second));
        let (start, _) = self.wal.written.iter().find(|(_, facts)| commit(facts)).unwrap();
        *self.wal.extents.iter().find(|(of, _)| of == start).unwrap()
    }
}

fn auto_conf(tree: &Tree, target: &str) -> String {
    tree.text(&format!("main/pitr/{target}/postgresql.auto.conf"))
}

/// The last value of a setting.
fn setting<'a>(conf: &'a str, name: &str) -> &'a str {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(" = ");
    conf.lines()
        .rev()
        .find_map(value)
        .unwrap_or_else(|| panic!("no {name} in {conf}"))
}

#[test]
fn all_forms_of_a_target_are_one_directory() {
    let log = Log::new();
    log.backup(3);
    let tree = log.tree();
    let (lsn, _) = log.extent(12);
    let short = format!("{:X}-{:X}", lsn.0 >> 32, lsn.0 & 0xFFFF_FFFF);
    for forms in [
        vec![
            short.clone(),
            format!("lsn:{short}"),
            short.replace('-', "%2F"),
            short.to_lowercase(),
        ],
        vec![
            "2099-01-01 00:00:12+00".to_owned(),
            "2099-01-01T00:00:12Z".to_owned(),
            "time:1 Jan 2099 01:00:12 Europe%2FParis".to_owned(),
        ],
        vec![
            "xid:1012".to_owned(),
            "xid:1012,inclusive,timeline=latest".to_owned(),
        ],
    ] {
        let canonical = auto_conf(&tree, &forms[0]);
        for form in &forms {
            assert_eq!(auto_conf(&tree, form), canonical, "{form}");
        }
    }
    let exclusive = auto_conf(&tree, "xid:1012,exclusive,action=shutdown,timeline=1");
    assert_eq!(setting(&exclusive, "recovery_target_xid"), "'1012'");
    assert_eq!(setting(&exclusive, "recovery_target_inclusive"), "off");
    assert_eq!(setting(&exclusive, "recovery_target_action"), "'shutdown'");
    assert_eq!(setting(&exclusive, "recovery_target_timeline"), "'1'");
    assert_eq!(setting(&exclusive, "hot_standby"), "off");
    assert_eq!(
        setting(&auto_conf(&tree, "xid:1012,action=pause"), "hot_standby"),
        "on"
    );
    // PostgreSQL refuses a second target. The one that counts comes last.
    let by_time = auto_conf(&tree, "2099-01-01 00:00:12+00");
    let targets: Vec<&str> = by_time
        .lines()
        .filter(|line| {
            let known = ["_time ", "_xid ", "_name ", "_lsn ", " "];
            known
                .iter()
                .any(|end| line.starts_with(&format!("recovery_target{end}")))
        })
        .collect();
    assert_eq!(targets.len(), 5, "{by_time}");
    assert_eq!(
        targets[4],
        "recovery_target_time = '2099-01-01 00:00:12.000000+00'"
    );
    assert!(
        targets[..4].iter().all(|line| line.ends_with("= ''")),
        "{by_time}"
    );
}

#[test]
fn listed_targets_exist_and_unreachable_ones_do_not() {
    let log = Log::new();
    let (first, second) = (log.backup(3), log.backup(5));
    let tree = log.tree();
    let names = tree.list("main/pitr");
    let end = |backup: &Backup| format!("lsn:0-{:X}", backup.stop_lsn.unwrap().0);
    let mut expected = vec![
        end(&first),
        end(&second),
        "name:before%2C%20the%2Fchange".to_owned(),
        "now".to_owned(),
    ];
    expected.sort();
    assert_eq!(names, expected);
    for name in &names {
        tree.node(&format!("main/pitr/{name}/PG_VERSION"));
    }
    for absent in [
        "2099-01-01 00:00:02+00",
        "2099-01-02",
        "xid:5",
        "name:never",
        "0-1",
        "F-0",
        "now,timeline=2",
        "now,backup=20200101T000000",
        "yesterday",
        ".hidden",
        "%",
        "\u{1F418}",
    ] {
        assert!(tree.find(&format!("main/pitr/{absent}")).is_none(), "{absent}");
    }
    // An absent target may exist the next moment.
    let pitr = tree.node("main/pitr");
    assert_eq!(
        pitr.directory().unwrap().lifetime().of_absence(),
        std::time::Duration::ZERO
    );
    assert_eq!(tree.node("main/pitr/now").lifetime, Lifetime::UntilNotified);
}

#[test]
fn a_target_keeps_its_backup_while_it_is_read() {
    let log = Log::new();
    let first = log.backup(3);
    let tree = log.tree();
    let before = tree.node("main/pitr/now").ino;
    let file = tree.node("main/pitr/now/backup_label");
    let me = Caller(std::process::id());
    let open = tree.0.open(file.ino, me).unwrap();
    log.backup(5);
    tree.0.close(open.handle);
    // This process lives and may open the next file by its path.
    assert_eq!(tree.text("main/pitr/now/backup_label"), "START WAL LOCATION: 3\n");
    assert_eq!(tree.node("main/pitr/now").ino, before);
    // Another tree does not see these readers: it uses the newest backup.
    assert_eq!(
        log.tree().text("main/pitr/now/backup_label"),
        "START WAL LOCATION: 5\n"
    );
    log.fixture.repository.delete_backup(&first, true).unwrap();
    assert_eq!(tree.text("main/pitr/now/backup_label"), "START WAL LOCATION: 5\n");
    assert_ne!(tree.node("main/pitr/now").ino, before);
}

#[test]
fn a_self_contained_copy_has_all_its_wal() {
    let log = Log::new();
    log.backup(3);
    let tree = log.tree();
    let target = "xid:1016,self-contained";
    let wal = tree.list(&format!("main/pitr/{target}/pg_wal"));
    let last = (log.extent(16).1.0 - 1) / SEGMENT.bytes();
    let mut expected: Vec<String> = (3..=last).map(|number| log.bytes(number).0.to_string()).collect();
    assert!(expected.len() >= 2);
    let done: Vec<String> = expected.iter().map(|name| format!("{name}.done")).collect();
    assert_eq!(
        tree.list(&format!("main/pitr/{target}/pg_wal/archive_status")),
        done
    );
    for number in 3..=last {
        let (name, bytes) = log.bytes(number);
        assert!(
            tree.read(&format!("main/pitr/{target}/pg_wal/{name}")) == bytes,
            "{name}"
        );
    }
    expected.push("archive_status".to_owned());
    assert_eq!(wal, expected);
    assert_eq!(setting(&auto_conf(&tree, target), "restore_command"), "'false'");
    let other = setting(&auto_conf(&tree, "xid:1016"), "restore_command").to_owned();
    assert!(
        other.contains("/.barmanfs/replay/main/%f") && !other.contains("receiving"),
        "{other}"
    );
    assert_eq!(
        tree.list("main/pitr/xid:1016/pg_wal"),
        [log.bytes(3).0.to_string().as_str(), "archive_status"]
    );
}

#[test]
fn a_mount_point_that_cannot_be_written_leaves_self_contained_copies() {
    let log = Log::new();
    log.backup(3);
    let tree = Tree::at(&log.fixture.repository, "/mnt/a\nb");
    assert!(tree.find("main/pitr/now").is_none());
    assert!(tree.find("main/pitr/now,self-contained").is_some());
    let tree = Tree::at(&log.fixture.repository, "/mnt/it's \\ 100%");
    let conf = auto_conf(&tree, "now");
    assert!(
        setting(&conf, "restore_command").starts_with("'m=\"/mnt/it''s \\\\\\\\ 100%%\"; "),
        "{conf}"
    );
}

#[test]
fn a_clone_of_now_has_the_wal_being_received() {
    let log = Log::new();
    log.backup(3);
    let (last, bytes) = log.bytes(LAST + 1);
    let _file = receive(&log, LAST + 1, 16384);
    let repository = &log.fixture.repository;
    let daemon = Daemon::start(repository.path(), &log.fixture.directory.path().join("mnt"));
    let (view, clone) = (
        daemon.point.join("main/pitr/now,self-contained"),
        daemon.point.join("main/live/test1"),
    );
    std::fs::create_dir(daemon.point.join("main/live/test1@now,self-contained")).unwrap();
    let files = |of: &Path| -> BTreeMap<OsString, Vec<u8>> {
        let entries = std::fs::read_dir(of.join("pg_wal")).unwrap().map(Result::unwrap);
        entries
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap()))
            .collect()
    };
    let (shown, cloned) = (files(&view), files(&clone));
    assert!(
        cloned.keys().eq(shown.keys()),
        "{:?}, not {:?}",
        cloned.keys(),
        shown.keys()
    );
    assert!(cloned == shown);
    let received = &cloned[OsStr::new(&last.to_string())];
    assert_eq!(received.len() as u64, SEGMENT.bytes());
    assert!(received[..16384] == bytes[..16384]);
}

/// Not a test by itself: the daemon of the test above.
#[test]
fn daemon() {
    support::daemon::serve();
}

/// A data directory without configuration files: views of it have manifests of their own.
fn without_configuration(seed: u64) -> Vec<(&'static str, Thing)> {
    let mut things = data_directory(seed);
    things.retain(|(path, _)| !path.ends_with(".conf") || path.contains("auto"));
    things
}

/// Number of nameless files in the repository that this process has open.
fn nameless_files(log: &Log) -> usize {
    let within = |target: &Path| {
        target.starts_with(log.fixture.repository.path()) && target.to_string_lossy().ends_with(" (deleted)")
    };
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter(|entry| {
        std::fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|target| within(&target))
    })
    .count()
}

#[test]
fn a_generated_manifest_is_kept_while_it_is_read() {
    let log = Log::new();
    let mut things = without_configuration(3);
    things.push(("backup_manifest", support::manifest(&things)));
    log.fixture.backup_of(&things, 3..=3);
    let tree = log.tree();
    let targets: Vec<String> = (1010..1030).map(|xid| format!("main/pitr/xid:{xid}")).collect();
    for target in &targets {
        tree.node(&format!("{target}/PG_VERSION"));
        assert!(tree.list(target).contains(&"backup_manifest".to_owned()));
    }
    assert_eq!(nameless_files(&log), 0);
    let me = Caller(std::process::id());
    let nodes: Vec<_> = targets
        .iter()
        .map(|target| tree.node(&format!("{target}/backup_manifest")))
        .collect();
    let open = |node: &Node| tree.0.open(node.ino, me).unwrap().handle;
    let handles: Vec<_> = nodes.iter().map(|node| open(node)).collect();
    assert_eq!(nameless_files(&log), 1);
    let content = tree.read("main/latest/backup_manifest");
    for target in &targets {
        assert_eq!(tree.read(&format!("{target}/backup_manifest")), content);
    }
    assert!(
        nodes
            .iter()
            .all(|node| node.stat.size_bytes == content.len() as u64)
    );
    handles.into_iter().for_each(|handle| tree.0.close(handle));
    assert_eq!(nameless_files(&log), 0);
}

#[test]
fn a_damaged_manifest_affects_no_other_file() {
    let log = Log::new();
    let mut things = without_configuration(3);
    things.push(("backup_manifest", Thing::File(b"no manifest".to_vec())));
    log.fixture.backup_of(&things, 3..=3);
    let tree = log.tree();
    let root = tree.node("main/latest").ino;
    assert!(tree.0.lookup(root, b"backup_manifest").is_err());
    assert_eq!(tree.text("main/latest/PG_VERSION"), "15\n");
    assert!(tree.find("main/latest/pg_hba.conf").is_some());
}

fn receive(log: &Log, number: u64, bytes: usize) -> SpoolFile {
    let (name, content) = log.bytes(number);
    let spool = log.fixture.repository.spool(&log.fixture.server).unwrap();
    let mut file = spool.begin(name, SEGMENT).unwrap();
    file.append(&content[..bytes]).unwrap();
    file.sync().unwrap();
    file
}

#[test]
fn the_segment_being_received_is_shown_as_it_grows() {
    let log = Log::new();
    log.backup(3);
    let number = LAST + 1;
    let (name, bytes) = log.bytes(number);
    let tree = log.tree();
    let (partial, full) = (
        format!("main/wal/{name}.partial"),
        format!(".barmanfs/receiving/main/{name}"),
    );
    assert!(tree.find(&partial).is_none() && tree.find(&full).is_none());
    let mut file = receive(&log, number, 8192);
    for path in [&partial, &full] {
        let node = tree.node(path);
        assert_eq!(node.lifetime, Lifetime::Never, "nothing of it may be cached");
        assert_eq!(node.stat.size_bytes, SEGMENT.bytes());
        assert_eq!(node.stat.mode & 0o077, 0, "it holds what tables hold");
        assert_eq!(tree.read(path)[..8192], bytes[..8192]);
    }
    file.append(&bytes[8192..16384]).unwrap();
    for path in [&partial, &full] {
        assert_eq!(tree.read(path)[..16384], bytes[..16384]);
        assert!(tree.read(path)[16384..].iter().all(|&byte| byte == 0));
    }
    assert_eq!(tree.list(".barmanfs/receiving/main"), [name.to_string()]);
    assert!(tree.list("main/wal").contains(&format!("{name}.partial")));
    let command = auto_conf(&tree, "now");
    assert!(
        setting(&command, "restore_command").contains("/.barmanfs/receiving/main/%f"),
        "{command}"
    );
    // The copy has the WAL that had been received when it was first looked up, under the full name.
    let own = format!("main/pitr/now,self-contained/pg_wal/{name}");
    assert_eq!(tree.read(&own)[..16384], bytes[..16384]);
    log.archive(number);
    assert!(tree.find(&partial).is_none() && tree.find(&full).is_none());
    assert_eq!(tree.read(&format!("main/wal/{name}")), bytes);
}
