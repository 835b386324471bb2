//! Loss of power at any system call, on a disk that then keeps an arbitrary part of everything that was not synced.
//!
//! Synced data must survive it. Of everything else, each sector must have its old content or one that was written
//! since, and the names must be those of some moment since.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Barrier};

use super::fragile::{FragileDisk, SECTOR};
use super::support::{Thing, noise};
use super::*;
use crate::disk::Disk;
use crate::{Allocation, AttributeChanges, RenameMode};

/// Names, what they lead to, and permissions.
type NamesThen = BTreeMap<Vec<u8>, (NodeId, u32)>;

/// The states that may be found after a loss of power.
struct Expected {
    /// The names at each moment since the journal was last durable; the durable ones first.
    names: Vec<NamesThen>,
    /// Each version of a file's bytes since its last sync.
    files: BTreeMap<NodeId, Vec<Vec<u8>>>,
    /// Files of which the disk has lost some bytes, and has reported it.
    forgotten: BTreeSet<NodeId>,
}

impl Expected {
    fn of(clone: &LiveClone) -> Self {
        let names = names_of(clone);
        let files = names
            .values()
            .map(|(node, _)| (*node, vec![read_all(clone, *node).unwrap()]));
        Self {
            files: files.collect(),
            names: vec![names],
            forgotten: BTreeSet::new(),
        }
    }

    fn now(&self) -> &NamesThen {
        self.names.last().unwrap()
    }

    /// The present names are durable.
    fn names_are_durable(&mut self) {
        self.names.drain(..self.names.len() - 1);
    }

    fn check(&self, found: &Self, context: &str) {
        let names = found.now();
        let versions = self.names.iter().map(|then| then.keys().collect::<Vec<_>>());
        assert!(
            self.names.contains(names),
            "{context}: {:?} were never the names, these were: {:?}",
            names.keys(),
            versions.collect::<Vec<_>>()
        );
        let kept = |(node, _): &(&NodeId, _)| !self.forgotten.contains(node);
        for (node, bytes) in found.files.iter().filter(kept) {
            check_file(&self.files[node], &bytes[0], &format!("{context}, {node:?}"));
        }
    }
}

fn check_file(versions: &[Vec<u8>], found: &[u8], context: &str) {
    assert!(
        versions.iter().any(|version| version.len() == found.len()),
        "{context}: it never had {} bytes, but {:?}",
        found.len(),
        versions.iter().map(Vec::len).collect::<Vec<_>>()
    );
    for at in (0..found.len()).step_by(SECTOR) {
        let end = (at + SECTOR).min(found.len());
        let is = |(n, version): (usize, &Vec<u8>)| {
            // Zeros are only where the file was shorter and grew, not where it was going to be cut.
            let grew = || versions[n..].iter().any(|later| later.len() == found.len());
            (version.len() >= end || grew())
                && (at..end).all(|n| found[n] == version.get(n).copied().unwrap_or(0))
        };
        assert!(
            versions.iter().enumerate().any(is),
            "{context}: what is at byte {at} of {} was never there, of {} versions",
            found.len(),
            versions.len()
        );
    }
}

fn names_of(clone: &LiveClone) -> NamesThen {
    let listing = clone.entries(clone.root()).unwrap();
    let names = listing.map(|name| {
        let name = name.unwrap();
        let found = clone.lookup(clone.root(), &name.name).unwrap();
        (name.name, (found.node, found.mode))
    });
    names.collect()
}

/// An operation on a clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Make,
    Remove,
    CutRemoved,
    Rename,
    Change,
    Write,
    Cut,
    Punch,
    Sync,
    FailingSync,
    SyncDirectory,
    Flush,
    Rewrite,
}

/// The weight of each step in the random choice.
const STEPS: &[(Step, u64)] = &[
    (Step::Make, 2),
    (Step::Remove, 1),
    (Step::CutRemoved, 1),
    (Step::Rename, 1),
    (Step::Change, 1),
    (Step::Write, 13),
    (Step::Cut, 6),
    (Step::Punch, 2),
    (Step::Sync, 8),
    (Step::FailingSync, 1),
    (Step::SyncDirectory, 1),
    (Step::Flush, 4),
    (Step::Rewrite, 1),
];

impl Step {
    fn drawn(random: &mut Random) -> Self {
        let all = STEPS
            .iter()
            .flat_map(|(step, weight)| (0..*weight).map(|_| *step));
        let count = all.clone().count() as u64;
        all.clone().nth(random.below(count) as usize).unwrap()
    }
}

struct Run {
    stage: Stage,
    disk: FragileDisk,
    random: Random,
    log: Vec<String>,
    /// How often each step was completed.
    done: BTreeMap<Step, u64>,
}

impl Run {
    fn new(seed: u64) -> Self {
        // Many files, so that some of them are partly the backup's for a long time.
        let names: Vec<String> = (0..12).map(|n| format!("lower{n:02}")).collect();
        let thing = |(n, name)| (name, Thing::File(noise(n, 700 + n as usize * 9000)));
        let things: Vec<(&str, Thing)> = (0..).zip(names.iter().map(String::as_str)).map(thing).collect();
        let stage = Stage::new(&things);
        let disk = FragileDisk::default();
        disk.inner().left = u64::MAX;
        let made = LiveClone::create_on(
            Arc::new(disk.clone()),
            &stage.description,
            stage.trees(),
            &NOTHING,
        );
        drop(made.unwrap());
        Self {
            stage,
            disk,
            random: Random::from_seed(seed),
            log: Vec::new(),
            done: BTreeMap::new(),
        }
    }

    fn open(&self) -> Result<LiveClone> {
        LiveClone::open_on(
            Arc::new(self.disk.clone()),
            &self.stage.description,
            self.stage.trees(),
            false,
        )
    }

    /// Works until power is lost or the process is killed; returns the states that may be found afterwards.
    fn work(&mut self, clone: &LiveClone, mut expected: Expected) -> Expected {
        while self.step(clone, &mut expected).is_ok() {}
        assert_eq!(self.disk.inner().left, 0, "{:?}", self.log.last());
        expected
    }

    /// The result of an operation is expected before it is tried: it may be found even if power is lost meanwhile.
    fn step(&mut self, clone: &LiveClone, expected: &mut Expected) -> Result<()> {
        let names = expected.now();
        let pick = self.random.below(names.len().max(1) as u64) as usize;
        let picked = names
            .iter()
            .nth(pick)
            .map(|(name, (node, _))| (name.clone(), *node));
        let step = match picked {
            Some(_) => Step::drawn(&mut self.random),
            None => Step::Make,
        };
        let (name, node) = picked.unwrap_or((Vec::new(), clone.root()));
        self.log
            .push(format!("{step:?} {} {node:?}", name.escape_ascii()));
        match step {
            Step::Make => self.make(clone, expected)?,
            Step::Write => self.write(clone, expected, node)?,
            Step::Cut => self.cut(clone, expected, node)?,
            Step::Punch => self.punch(clone, expected, node)?,
            Step::Remove | Step::CutRemoved | Step::Rename | Step::Change => {
                self.change_name(step, clone, expected, &name, node)?;
            }
            Step::Sync => drop(self.sync(clone, expected, node)?),
            Step::FailingSync => {
                self.disk.inner().next_sync_fails = true;
                let failing = self.sync(clone, expected, node);
                self.disk.inner().next_sync_fails = false;
                failing?;
                if !self.sync(clone, expected, node)? {
                    expected.forgotten.insert(node);
                }
            }
            Step::SyncDirectory => {
                clone.sync_directory(clone.root())?;
                expected.names_are_durable();
            }
            Step::Flush => self.unless_a_sync_failed(clone.flush_dirty()).map(|_| ())?,
            Step::Rewrite => clone.rewrite_journal()?,
        }
        *self.done.entry(step).or_default() += 1;
        Ok(())
    }

    /// A sync that reports success must be true, even after a sync that failed.
    fn sync(&mut self, clone: &LiveClone, expected: &mut Expected, node: NodeId) -> Result<bool> {
        let synced = clone.sync(node, self.random.below(2) == 0);
        let synced = self.unless_a_sync_failed(synced)?;
        if synced {
            assert!(!expected.forgotten.contains(&node), "{:?}", self.log.last());
            let versions = expected.files.get_mut(&node).unwrap();
            versions.drain(..versions.len() - 1);
            expected.names_are_durable();
        }
        Ok(synced)
    }

    /// Whether the operation was done. It may fail after the disk has failed, while there is power.
    fn unless_a_sync_failed(&self, done: Result<()>) -> Result<bool> {
        let inner = self.disk.inner();
        match done {
            Err(_) if inner.sync_failed && inner.left > 0 => Ok(false),
            done => done.map(|()| true),
        }
    }

    fn make(&mut self, clone: &LiveClone, expected: &mut Expected) -> Result<()> {
        let name = vec![b'a' + self.random.below(4) as u8];
        let mut names = expected.now().clone();
        if names.contains_key(&name) {
            return Ok(());
        }
        // Its number is known once it is created. If that fails, the empty file may exist, and nothing else.
        let made = clone.create(clone.root(), &name, NEW);
        let node = match &made {
            Ok(made) => made.node,
            Err(_) => NodeId::of_made(self.stage.description.id, clone.names().made - 1),
        };
        names.insert(name, (node, NEW.mode));
        expected.names.push(names);
        expected.files.insert(node, vec![Vec::new()]);
        made.map(|_| ())
    }

    fn change_name(
        &mut self,
        step: Step,
        clone: &LiveClone,
        expected: &mut Expected,
        name: &[u8],
        node: NodeId,
    ) -> Result<()> {
        let (root, mut names) = (clone.root(), expected.now().clone());
        let moved = names.remove(name);
        match step {
            Step::Remove => {
                expected.names.push(names);
                clone.unlink(root, name)
            }
            // If the file comes back, it is as it was when it had its name.
            Step::CutRemoved => {
                expected.names.push(names);
                clone.open_node(node)?;
                clone.unlink(root, name)?;
                let changes = AttributeChanges {
                    size_bytes: Some(0),
                    ..Default::default()
                };
                let cut = clone.set_attributes(node, changes);
                clone.close_node(node);
                cut.map(|_| ())
            }
            Step::Rename => {
                let to = vec![b'a' + self.random.below(6) as u8];
                names.insert(to.clone(), moved.unwrap());
                expected.names.push(names);
                clone.rename((root, name), (root, &to), RenameMode::Replace)
            }
            _ => {
                let mode = self.random.below(512) as u32;
                names.insert(name.to_vec(), (node, mode));
                expected.names.push(names);
                let changes = AttributeChanges {
                    mode: Some(mode),
                    ..Default::default()
                };
                clone.set_attributes(node, changes).map(|_| ())
            }
        }
    }

    fn write(&mut self, clone: &LiveClone, expected: &mut Expected, node: NodeId) -> Result<()> {
        let (offset, length) = match self.random.below(3) {
            0 => (self.random.below(8) as usize * 8192, 8192),
            1 => (
                self.random.below(70_000) as usize,
                1 + self.random.below(300) as usize,
            ),
            _ => (
                self.random.below(9) as usize * 8192,
                1 + self.random.below(30_000) as usize,
            ),
        };
        let bytes = noise(self.random.below(1 << 40), length);
        self.log.push(format!("write {node:?} {offset} {length}"));
        let versions = expected.files.get_mut(&node).unwrap();
        let mut next = versions.last().unwrap().clone();
        if next.len() < offset + length {
            next.resize(offset + length, 0);
        }
        next[offset..offset + length].copy_from_slice(&bytes);
        versions.push(next);
        clone.write(node, offset as u64, &bytes, false).map(|_| ())
    }

    fn cut(&mut self, clone: &LiveClone, expected: &mut Expected, node: NodeId) -> Result<()> {
        let size = match self.random.below(4) {
            0 => 0,
            1 => self.random.below(10_000),
            _ => self.random.below(120_000),
        };
        self.log.push(format!("cut {node:?} {size}"));
        let versions = expected.files.get_mut(&node).unwrap();
        let mut next = versions.last().unwrap().clone();
        next.resize(size as usize, 0);
        versions.push(next);
        let changes = AttributeChanges {
            size_bytes: Some(size),
            ..Default::default()
        };
        clone.set_attributes(node, changes).map(|_| ())
    }

    fn punch(&mut self, clone: &LiveClone, expected: &mut Expected, node: NodeId) -> Result<()> {
        let (from, length) = (self.random.below(60_000), 1 + self.random.below(30_000));
        self.log.push(format!("punch {node:?} {from} {length}"));
        let versions = expected.files.get_mut(&node).unwrap();
        let mut next = versions.last().unwrap().clone();
        let end = (from + length).min(next.len() as u64);
        if from < end {
            next[from as usize..end as usize].fill(0);
        }
        versions.push(next);
        clone.allocate(node, Allocation::Punch, true, from, length)
    }
}

/// `BARMANFS_LIVE_RUNS` sets the number of runs.
#[test]
fn synced_data_survives_a_loss_of_power() {
    let runs = std::env::var("BARMANFS_LIVE_RUNS").map_or(20, |runs| runs.parse().unwrap());
    let mut done = BTreeMap::new();
    for seed in 1..=runs {
        let mut run = Run::new(seed);
        let mut expected = Expected::of(&run.open().unwrap());
        for loss in 0..60 {
            let left = 1 + run.random.below(300);
            // A daemon may be killed before power is lost: what it wrote exists then, but is not on disk yet.
            let sync_failed = run.disk.inner().sync_failed;
            if sync_failed || run.random.below(3) > 0 {
                run.disk.lose_power(&mut run.random);
            }
            run.disk.inner().left = left;
            // Power may be lost again while the clone recovers from the last loss.
            let Ok(clone) = run.open() else {
                assert_eq!(run.disk.inner().left, 0);
                continue;
            };
            run.disk.inner().left = u64::MAX;
            let found = Expected::of(&clone);
            let last: Vec<_> = run.log.iter().rev().take(30).rev().collect();
            expected.check(&found, &format!("run {seed}, loss {loss} after {last:#?}"));
            run.disk.inner().left = left;
            expected = run.work(&clone, found);
        }
        for (step, count) in run.done {
            *done.entry(step).or_insert(0) += count;
        }
    }
    // A step that is never done is not tested, whatever is asserted about it.
    for (step, weight) in STEPS {
        let count = done.get(step).copied().unwrap_or(0);
        assert!(count > 20 * weight, "{step:?} was done {count} times");
    }
}

#[test]
fn every_sync_of_a_file_fails_after_one_failed() {
    let run = Run::new(1);
    let clone = run.open().unwrap();
    let (failing, other) = (id(&clone, "lower05"), id(&clone, "lower06"));
    for node in [failing, other] {
        clone.write(node, 0, &[1; 8192], false).unwrap();
        clone.sync(node, false).unwrap();
    }
    clone.write(failing, 0, &[2; 8192], false).unwrap();
    // Only this flush gets the error, no program does.
    run.disk.inner().next_sync_fails = true;
    assert!(clone.flush_dirty().is_err());
    assert!(clone.sync(failing, true).is_err());
    clone.write(failing, 8192, &[3; 8192], false).unwrap();
    assert!(clone.sync(failing, false).is_err());
    assert!(clone.flush_all().is_err());
    clone.write(other, 0, &[2; 8192], false).unwrap();
    clone.sync(other, true).unwrap();
    drop(clone);
    let clone = run.open().unwrap();
    clone.write(failing, 0, &[2; 8192], false).unwrap();
    clone.sync(failing, true).unwrap();
}

#[test]
fn a_file_removed_during_a_flush_is_no_error() {
    let run = Run::new(1);
    let clone = run.open().unwrap();
    for name in [b"a", b"b", b"c", b"d"] {
        clone.create(clone.root(), name, NEW).unwrap();
    }
    for (node, _) in names_of(&clone).into_values() {
        clone.write(node, 0, &[1; 100], false).unwrap();
    }
    let barrier = Arc::new(Barrier::new(2));
    run.disk.inner().next_sync_waits = Some(Arc::clone(&barrier));
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| clone.flush_all());
        barrier.wait();
        for name in names_of(&clone).into_keys() {
            clone.unlink(clone.root(), &name).unwrap();
        }
        clone.sync_directory(clone.root()).unwrap();
        barrier.wait();
        flushing.join().unwrap().unwrap();
    });
    clone.flush_all().unwrap();
    let disk: &dyn Disk = &run.disk;
    assert_eq!(disk.file_names().unwrap(), Vec::<String>::new());
    assert_eq!(clone.statistics().used_bytes, clone.journal.size_bytes());
}
