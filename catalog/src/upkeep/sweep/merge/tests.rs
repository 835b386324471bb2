//! Merged WAL reads back, wherever the sweep that merges it ends.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::{SegmentSize, SystemId, TimestampMicros};
use barmanfs_store::testing::{Call, TestPacks, noise};
use barmanfs_store::{Error as StoreError, LocalPacks};

use super::*;
use crate::archive::derive::derive;
use crate::home::{Home, PACKS, settings::read_settings};
use crate::index::repository::{Repository, temporary};
use crate::monitor::Silent;
use crate::names::ServerName;
use crate::upkeep::sweep::{SweepOptions, SweepReport};
use crate::upkeep::verify::VerifyScope;

const SYSTEM: SystemId = SystemId(7_710_414_268_036_822_209);

/// What was archived.
type Archived = BTreeMap<(ServerName, WalName), Vec<u8>>;

/// Different for each number, and small when it is compressed.
fn segment(number: u32) -> (WalName, Vec<u8>) {
    let size = usize::try_from(SegmentSize::MIN.bytes()).unwrap();
    let mut content = noise(u64::from(number), 4096).repeat(size / 4096);
    content.truncate(size);
    let (name, bytes) = barmanfs_pg::testing::segment(number, SYSTEM, content);
    (WalName::Segment(name), bytes)
}

fn archive(repository: &Repository, server: &str, numbers: std::ops::Range<u32>, archived: &mut Archived) {
    let server: ServerName = server.parse().unwrap();
    for number in numbers {
        let (name, bytes) = segment(number);
        let writer = repository.writer("test").unwrap();
        writer
            .archive_wal(&server, &name, &mut &*bytes, bytes.len() as u64, "test")
            .unwrap();
        archived.insert((server.clone(), name), bytes);
    }
}

/// Says that the files of a server from this number on were archived so many days earlier.
fn age(repository: &Repository, server: &str, from: u32, days: i64) {
    let (name, _) = segment(from);
    let earlier = "UPDATE wal SET archived_at = archived_at - ?3 WHERE server = ?1 AND name >= ?2";
    let earlier = |db: &rusqlite::Transaction<'_>| {
        Ok(db.execute(earlier, params![server, name.to_string(), days * DAY_MICROS])?)
    };
    repository.db.write(earlier).unwrap();
}

/// A sweep in so many days.
fn sweep(repository: &Repository, days: i64) -> Result<SweepReport> {
    let as_of = now().unix_micros() + days * DAY_MICROS;
    let options = SweepOptions {
        as_of: Some(TimestampMicros::from_unix_micros(as_of)),
        ..SweepOptions::default()
    };
    repository.sweep(&options, &mut Silent)
}

fn packs(repository: &Repository) -> usize {
    repository.pack_ids().unwrap().len()
}

fn assert_reads_back(repository: &Repository, archived: &Archived) {
    for ((server, name), bytes) in archived {
        let mut read = Vec::new();
        let mut content = repository
            .wal(server)
            .open(name)
            .unwrap()
            .expect("it was archived");
        content.read_to_end(&mut read).unwrap();
        assert!(read == *bytes, "{server} {name}");
    }
    let verified = repository.verify(&VerifyScope::All, &mut Silent).unwrap();
    assert!(verified.is_clean(), "{verified:?}");
}

#[test]
fn the_segments_of_a_day_become_few_packs() {
    let (_directory, repository) = temporary();
    let mut archived = Archived::new();
    archive(&repository, "main", 1..301, &mut archived);
    assert_eq!(packs(&repository), 300);
    // Nothing is over yet.
    for days in [0, 1] {
        assert_eq!(sweep(&repository, days).unwrap().merged_packs, 0);
    }
    let report = sweep(&repository, 2).unwrap();
    assert_eq!(
        (report.merged_packs, report.removed_packs, report.waiting_packs),
        (300, 300, 0),
        "{report:?}"
    );
    assert!(
        report.problems.is_empty() && report.unfinished.is_none(),
        "{report:?}"
    );
    assert!(packs(&repository) <= 2);
    assert_reads_back(&repository, &archived);
    let again = sweep(&repository, 3).unwrap();
    assert_eq!((again.merged_packs, again.copied_bytes), (0, 0), "{again:?}");

    let rebuilt = Repository::rebuild(repository.path(), &mut Silent).unwrap();
    assert!(rebuilt.is_complete() && rebuilt.wal_files == 300, "{rebuilt:?}");
    let reopened = Repository::open(repository.path()).unwrap();
    assert_reads_back(&reopened, &archived);
    let again = sweep(&reopened, 3).unwrap();
    assert_eq!((again.merged_packs, again.removed_packs), (0, 0), "{again:?}");
}

#[test]
fn servers_and_days_stay_apart() {
    let (_directory, repository) = temporary();
    let mut archived = Archived::new();
    archive(&repository, "main", 1..9, &mut archived);
    archive(&repository, "other", 21..24, &mut archived);
    // A single file of a day stays as it is.
    archive(&repository, "third", 31..32, &mut archived);
    age(&repository, "main", 5, 1);
    let report = sweep(&repository, 2).unwrap();
    assert_eq!(
        (report.merged_packs, report.removed_packs),
        (11, 11),
        "{report:?}"
    );
    // Two days, and one day each.
    assert_eq!(packs(&repository), 4);
    assert_reads_back(&repository, &archived);
    // What comes late for a day is merged with what there is.
    archive(&repository, "other", 24..26, &mut archived);
    let report = sweep(&repository, 2).unwrap();
    assert_eq!((report.merged_packs, packs(&repository)), (3, 4), "{report:?}");
    assert_reads_back(&repository, &archived);
}

#[test]
fn readers_and_writers_in_the_middle_are_not_disturbed() {
    let (_directory, repository) = temporary();
    let mut archived = Archived::new();
    archive(&repository, "main", 1..7, &mut archived);
    let server: ServerName = "main".parse().unwrap();
    let (name, bytes) = segment(4);
    // Another process, with an empty cache.
    let reader = Repository::open(repository.path()).unwrap();
    let mut content = reader.wal(&server).open(&name).unwrap().unwrap();
    let mut read = vec![0; 5000];
    content.read_exact(&mut read).unwrap();
    let writer = repository.writer("at work").unwrap();
    let report = sweep(&repository, 2).unwrap();
    assert_eq!(
        (report.merged_packs, report.removed_packs, report.waiting_packs),
        (6, 0, 6),
        "{report:?}"
    );
    // What it archives again or adds is not lost with them.
    let (added, added_bytes) = segment(50);
    writer
        .archive_wal(
            &server,
            &added,
            &mut &*added_bytes,
            added_bytes.len() as u64,
            "test",
        )
        .unwrap();
    archived.insert((server, added), added_bytes);
    drop(writer);
    let report = sweep(&repository, 0).unwrap();
    assert_eq!((report.removed_packs, report.waiting_packs), (6, 0), "{report:?}");
    content.read_to_end(&mut read).unwrap();
    assert!(read == bytes);
    assert_reads_back(&reader, &archived);
    assert_reads_back(&repository, &archived);
}

/// The repository at this place, on a storage that a test can stop.
fn on_mortal_packs(path: &Path) -> (Arc<TestPacks<LocalPacks>>, Repository) {
    let storage = Arc::new(TestPacks::new(LocalPacks::open(&path.join(PACKS)).unwrap()));
    let home = Home::at(path).unwrap();
    let settings = read_settings(&home).unwrap();
    let repository = Repository::on(home, settings, storage.clone(), None, derive).unwrap();
    (storage, repository)
}

fn copied(from: &Path, name: &str) -> std::path::PathBuf {
    let copy = from.with_file_name(name);
    let status = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(&copy)
        .status()
        .unwrap();
    assert!(status.success());
    copy
}

/// From one call of the storage on there is no other: as after a kill, what was done until then is all there is.
#[test]
fn a_merge_that_ends_anywhere_is_done_by_the_next_one() {
    let (_directory, made) = temporary();
    let mut archived = Archived::new();
    archive(&made, "main", 1..13, &mut archived);
    archive(&made, "other", 21..24, &mut archived);
    let origin = made.path().to_path_buf();
    drop(made);
    let is_step = |call: &Call| !matches!(call, Call::List | Call::Mark(_));
    let calls = {
        let (storage, repository) = on_mortal_packs(&copied(&origin, "counted"));
        assert_eq!(sweep(&repository, 2).unwrap().merged_packs, 15);
        storage.calls().iter().filter(|call| is_step(call)).count()
    };
    let mut random = fastrand::Rng::with_seed(15);
    for run in 0..10 {
        let last = random.usize(0..calls);
        let path = copied(&origin, &format!("run{run}"));
        let (storage, repository) = on_mortal_packs(&path);
        let seen = AtomicUsize::new(0);
        storage.before_each(move |call| {
            let before = match is_step(call) {
                true => seen.fetch_add(1, Ordering::SeqCst),
                false => seen.load(Ordering::SeqCst),
            };
            match before < last {
                true => Ok(()),
                false => Err(StoreError::io(
                    "reach",
                    Path::new("packs"),
                    io::ErrorKind::TimedOut.into(),
                )),
            }
        });
        drop(sweep(&repository, 2));
        drop(repository);
        let repository = Repository::open(&path).unwrap();
        assert_reads_back(&repository, &archived);
        let rebuilt = copied(&path, &format!("rebuilt{run}"));
        let report = Repository::rebuild(&rebuilt, &mut Silent).unwrap();
        assert!(
            report.is_complete() && report.wal_files == 15,
            "call {last}: {report:?}"
        );
        assert_reads_back(&Repository::open(&rebuilt).unwrap(), &archived);
        // The second one removes what the first one found dead while packs were adopted.
        for _ in 0..2 {
            sweep(&repository, 2).unwrap();
        }
        assert_eq!(packs(&repository), 2, "call {last}");
        assert_reads_back(&repository, &archived);
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::remove_dir_all(&rebuilt).unwrap();
    }
}

/// A pack that cannot be read keeps its day at two small packs for ever.
#[test]
fn a_day_with_an_unreadable_pack_is_merged_once() {
    let (_directory, repository) = temporary();
    let mut archived = Archived::new();
    archive(&repository, "main", 1..7, &mut archived);
    let damaged = repository.pack_ids().unwrap().pop().unwrap();
    let name = damaged.to_string();
    let place = repository.path().join(PACKS).join(&name[..2]).join(name);
    let mut bytes = std::fs::read(&place).unwrap();
    bytes[1000..1100].fill(7);
    std::fs::write(&place, bytes).unwrap();
    let report = sweep(&repository, 2).unwrap();
    assert_eq!((report.merged_packs, report.problems.len()), (5, 1), "{report:?}");
    assert_eq!(packs(&repository), 2);
    let again = sweep(&repository, 3).unwrap();
    assert_eq!(
        (again.merged_packs, again.copied_bytes, again.problems.len()),
        (0, 0, 1),
        "{again:?}"
    );
    assert_eq!(packs(&repository), 2);
}
