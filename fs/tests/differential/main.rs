//! Random operations on a clone through the kernel, and the same operations on a plain directory of ext4. All results
//! must be the same, and so must the files. In between the daemon is unmounted or killed, and the clone is mounted
//! again.
//!
//! `BARMANFS_TEST_SECONDS` sets the duration. `BARMANFS_TEST_SEED`, which a failure prints, repeats a run. Needs
//! /dev/fuse, and root to run all tests.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout
)]

mod compare;
mod operation;
#[path = "../../../tests/common/random.rs"]
#[allow(dead_code)]
mod random;
mod side;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use operation::{Operation, SLOTS};
use random::Random;
use side::{Answer, Outcome, Side};
use support::daemon::Daemon;
use support::ordinary::Ordinary;
use support::{Fixture, Thing, content, data_directory, noise};

/// Duration of each test without `BARMANFS_TEST_SECONDS`.
const USUAL_SECONDS: u64 = 5;

/// Operations on one clone.
const STEPS: u64 = 1500;

/// Root may do everything, and its kernel reads and writes files directly.
#[test]
fn a_clone_behaves_like_ext4_for_root() {
    if rustix::process::geteuid().is_root() {
        run("a_clone_behaves_like_ext4_for_root");
    }
}

/// Without root, all requests go through the daemon, and permissions are checked.
#[test]
fn a_clone_behaves_like_ext4_for_an_ordinary_user() {
    let name = "a_clone_behaves_like_ext4_for_an_ordinary_user";
    if !rustix::process::geteuid().is_root() {
        return run(name);
    }
    let status = Ordinary::new().run_test(name).status().unwrap();
    assert!(status.success(), "see above");
}

/// Not a test by itself: the daemon of the tests above.
#[test]
fn daemon() {
    support::daemon::serve();
}

fn seconds() -> u64 {
    std::env::var("BARMANFS_TEST_SECONDS").map_or(USUAL_SECONDS, |text| {
        text.parse().expect("BARMANFS_TEST_SECONDS is a number")
    })
}

fn run(test: &str) {
    let first = Random::new(test).seed();
    let deadline = Instant::now() + Duration::from_secs(seconds());
    let mut rounds = 0;
    while rounds == 0 || Instant::now() < deadline {
        Round::new(first.wrapping_add(rounds)).play();
        rounds += 1;
    }
    println!("{test}: {rounds} rounds of {STEPS} operations");
}

fn things() -> Vec<(&'static str, Thing)> {
    let mut things = data_directory(1);
    things.extend([
        ("a", Thing::Directory),
        ("a/b", Thing::File(noise(7, 50_000))),
        ("b", Thing::File(b"small".to_vec())),
        ("base/link", Thing::Link("5")),
        ("base/a", Thing::File(noise(8, 9000))),
        ("link", Thing::Link("b")),
    ]);
    things
}

/// A clone and a copy of it on ext4.
struct Round {
    fixture: Fixture,
    daemon: Option<Daemon>,
    clone: Side,
    real: Side,
    random: Random,
    /// Paths that exist, as of the last comparison.
    known: Vec<String>,
    history: Vec<Operation>,
}

impl Round {
    fn new(seed: u64) -> Self {
        let fixture = Fixture::new();
        fixture.archive(2, 2);
        fixture.archive(3, 3);
        let things = things();
        fixture.backup(&things);
        let directory = fixture.directory.path();
        let daemon = Daemon::start(fixture.repository.path(), &directory.join("mnt"));
        let clone = daemon.point.join("main/live/torture");
        let real = directory.join("real");
        std::fs::create_dir(&clone).unwrap();
        copy(&clone, &real);
        for (path, thing) in &things {
            // The mount adds to configuration files, and removes the files of the server that was backed up.
            if let Thing::File(bytes) = thing
                && !matches!(*path, "postgresql.auto.conf" | "postgresql.conf" | "backup_label")
            {
                assert_eq!(
                    compare::bytes(&std::fs::read(real.join(path)).unwrap(), bytes),
                    None
                );
            }
        }
        assert!(!content(&things, "base/5/1259").is_empty());
        // The copy has its times from the clone. A later time on either side means that the file has changed since.
        let started_s = now_s() - 1;
        Self {
            clone: Side::new(&clone, started_s),
            real: Side::new(&real, started_s),
            random: Random::from_seed(seed),
            daemon: Some(daemon),
            known: Vec::new(),
            history: Vec::new(),
            fixture,
        }
    }

    fn play(mut self) {
        for step in 1..=STEPS {
            let operation = Operation::any(&mut self.random, &self.known);
            self.history.push(operation.clone());
            let ours = self.clone.apply(&operation);
            let theirs = self.real.apply(&operation);
            if let Some(how) = differs(&ours, &theirs) {
                self.fail(&how);
            }
            if self.random.below(4) == 0 {
                self.compare_open_files();
            }
            if self.random.below(40) == 0 {
                self.compare();
                self.known = compare::paths(&self.real.root);
            }
            if self.random.below(150) == 0 || step == STEPS {
                self.restart();
            }
        }
    }

    fn compare_open_files(&self) {
        for slot in 0..SLOTS {
            let (ours, theirs) = (self.clone.attributes(slot), self.real.attributes(slot));
            if ours != theirs {
                self.fail(&format!("slot {slot}: clone {ours:?}, ext4 {theirs:?}"));
            }
            let (ours, theirs) = (self.clone.content(slot), self.real.content(slot));
            if let Some(how) = compare::bytes(&ours.unwrap_or_default(), &theirs.unwrap_or_default()) {
                self.fail(&format!("slot {slot}: {how}"));
            }
        }
    }

    fn compare(&self) {
        if let Some(how) = compare::difference(&self.clone.root, &self.real.root, self.clone.started_s) {
            self.fail(&how);
        }
        // Both are on the same disk, which others use as well.
        let [ours, theirs] = [&self.clone, &self.real].map(|side| rustix::fs::statvfs(&side.root).unwrap());
        let bytes = |of: &rustix::fs::StatVfs| of.f_blocks * of.f_frsize;
        if bytes(&ours) != bytes(&theirs) || ours.f_namemax != theirs.f_namemax || ours.f_bavail == 0 {
            self.fail("statfs describes another disk");
        }
    }

    /// Ends the daemon, by unmounting or by killing it after a sync, and starts another one.
    fn restart(&mut self) {
        self.compare_open_files();
        let mut daemon = self.daemon.take().unwrap();
        let is_killed = self.random.below(2) == 0 && self.is_synced();
        if is_killed {
            daemon.kill();
        }
        self.clone.close_all();
        self.real.close_all();
        let point = daemon.point.clone();
        if is_killed {
            drop(daemon);
        } else {
            daemon.unmount();
        }
        self.daemon = Some(Daemon::start(self.fixture.repository.path(), &point));
        self.compare();
    }

    /// Makes everything durable, if this user can.
    fn is_synced(&self) -> bool {
        match self.clone.sync_everything() {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => false,
            Err(error) => self.fail(&format!("cannot sync: {error}")),
            Ok(()) => true,
        }
    }

    fn fail(&self, how: &str) -> ! {
        let steps = self.history.len();
        for (n, operation) in self.history.iter().enumerate().skip(steps.saturating_sub(80)) {
            println!("{n}: {operation:?}");
        }
        panic!("BARMANFS_TEST_SEED={}, step {steps}: {how}", self.random.seed());
    }
}

fn differs(ours: &Answer, theirs: &Answer) -> Option<String> {
    match (ours, theirs) {
        (Ok(Outcome::Bytes(ours)), Ok(Outcome::Bytes(theirs))) => compare::bytes(ours, theirs),
        _ if ours == theirs => None,
        _ => Some(format!("clone {ours:?}, ext4 {theirs:?}")),
    }
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}

fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}
