//! Loss of power at any system call, on a disk that then has of all that was not synced whatever it likes.
//!
//! What was synced must be there after it. Of anything else every sector must be what it was or what it was to be at
//! some time since, and the names must be those of some time since.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::FallocateFlags;

use super::support::{Thing, noise};
use super::*;
use crate::live::disk::{Disk, DiskFile, FILES, Status};
use crate::live::{Allocation, AttributeChanges, RenameMode, Time};

/// What a disk writes as a whole.
const SECTOR: usize = 512;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Something done to a file that may not be on disk yet.
#[derive(Debug, Clone)]
enum Done {
    /// A sector, as it was after a write.
    Sector(usize, Vec<u8>),
    /// Another size, and what the last sector was then: it is written before the size counts.
    Size(usize, Vec<u8>),
    /// Zeros, in whole sectors.
    Hole(usize, usize),
}

#[derive(Debug, Clone, Default)]
struct Content {
    /// What programs see.
    cached: Vec<u8>,
    /// What is on disk.
    durable: Vec<u8>,
    /// What was done since the last sync.
    done: Vec<Done>,
}

fn apply(bytes: &mut Vec<u8>, done: &Done) {
    match done {
        Done::Sector(at, sector) => {
            // Without the size it was written for, or cut again, it is nowhere.
            if let Some(there) = bytes.get_mut(*at..at + sector.len()) {
                there.copy_from_slice(sector);
            }
        }
        Done::Size(size, last) => {
            bytes.resize(*size, 0);
            bytes[size - last.len()..].copy_from_slice(last);
        }
        Done::Hole(from, to) => {
            let end = (*to).min(bytes.len());
            if let Some(hole) = bytes.get_mut(*from..end) {
                hole.fill(0);
            }
        }
    }
}

impl Content {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.cached.len() < end {
            // The size may come to the disk before the bytes do.
            self.set_size(end);
        }
        self.cached[offset..end].copy_from_slice(bytes);
        self.sectors(offset, end);
    }

    /// Sectors that have just been written.
    fn sectors(&mut self, from: usize, to: usize) {
        for at in (from / SECTOR * SECTOR..to).step_by(SECTOR) {
            let sector = self.cached[at..(at + SECTOR).min(self.cached.len())].to_vec();
            self.done.push(Done::Sector(at, sector));
        }
    }

    fn set_size(&mut self, size: usize) {
        // When it grows, what was the last sector stays what it was.
        let kept = size.min(self.cached.len());
        self.cached.resize(size, 0);
        let last = if kept == size {
            self.cached[size / SECTOR * SECTOR..].to_vec()
        } else {
            Vec::new()
        };
        self.done.push(Done::Size(size, last));
    }

    fn punch(&mut self, from: usize, to: usize) {
        let to = to.min(self.cached.len());
        let Some(hole) = self.cached.get_mut(from..to) else {
            return;
        };
        hole.fill(0);
        let (first, last) = (from.next_multiple_of(SECTOR), to / SECTOR * SECTOR);
        self.sectors(from, first.min(to));
        self.done.push(Done::Hole(first, last));
        self.sectors(last.max(from), to);
    }

    fn sync(&mut self) {
        for done in self.done.drain(..) {
            apply(&mut self.durable, &done);
        }
    }

    /// What is left of it: any sectors that were written, sizes and holes in their order up to some point.
    fn lose(&mut self, random: &mut Random) {
        let likely = random.below(5);
        for done in std::mem::take(&mut self.done) {
            let there = random.below(4) < likely;
            match done {
                Done::Sector(..) if !there => {}
                // What comes after it was put elsewhere on disk, where nothing leads to.
                Done::Size(..) | Done::Hole(..) if !there => break,
                done => apply(&mut self.durable, &done),
            }
        }
        self.cached.clone_from(&self.durable);
    }
}

/// Names, as far as they are durable.
#[derive(Debug, Default)]
struct Directory {
    cached: BTreeMap<String, usize>,
    /// As it was after each change since the last sync; what is durable first.
    since: Vec<BTreeMap<String, usize>>,
}

#[derive(Debug, Default)]
struct Inner {
    contents: Vec<Content>,
    top: Directory,
    files: Directory,
    /// System calls until power is lost.
    left: u64,
}

impl Inner {
    /// Counts a system call.
    fn call(&mut self) -> io::Result<()> {
        if self.left == 0 {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.left -= 1;
        Ok(())
    }

    fn directory(&mut self, name: &str) -> &mut Directory {
        if name.starts_with(FILES) {
            &mut self.files
        } else {
            &mut self.top
        }
    }

    fn find(&mut self, name: &str) -> Option<usize> {
        self.directory(name).cached.get(name).copied()
    }
}

impl Directory {
    fn change(&mut self, change: impl FnOnce(&mut BTreeMap<String, usize>)) {
        if self.since.is_empty() {
            self.since.push(self.cached.clone());
        }
        change(&mut self.cached);
        self.since.push(self.cached.clone());
    }

    fn lose(&mut self, random: &mut Random) {
        if !self.since.is_empty() {
            self.cached = self
                .since
                .swap_remove(random.below(self.since.len() as u64) as usize);
            self.since.clear();
        }
    }
}

#[derive(Debug, Clone, Default)]
struct FragileDisk(Arc<Mutex<Inner>>);

impl FragileDisk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// A system call that is made, unless power is gone.
    fn call(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let mut inner = self.inner();
        inner.call()?;
        Ok(inner)
    }

    fn file(&self, at: usize) -> Arc<dyn DiskFile> {
        Arc::new(FragileFile {
            disk: self.clone(),
            at,
        })
    }

    /// Power comes back, for so many system calls.
    fn lose_power(&self, random: &mut Random, left: u64) {
        let mut inner = self.inner();
        inner.top.lose(random);
        inner.files.lose(random);
        inner.contents.iter_mut().for_each(|content| content.lose(random));
        inner.left = left;
    }
}

impl Disk for FragileDisk {
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let found = self.call()?.find(name);
        Ok(found.map(|at| self.file(at)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.call()?;
        let at = match inner.find(name) {
            Some(at) => {
                inner.contents[at].set_size(0);
                at
            }
            None => {
                let at = inner.contents.len();
                inner.contents.push(Content::default());
                inner.directory(name).change(|names| {
                    names.insert(name.to_owned(), at);
                });
                at
            }
        };
        drop(inner);
        Ok(self.file(at))
    }

    fn status(&self, name: &str) -> io::Result<Option<Status>> {
        let mut inner = self.call()?;
        let found = inner.find(name);
        Ok(found.map(|at| status(&inner.contents[at])))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.call()?.directory(name).change(|names| {
            names.remove(name);
        });
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.call()?.directory(to).change(|names| {
            let at = names.remove(from).unwrap();
            names.insert(to.to_owned(), at);
        });
        Ok(())
    }

    fn file_names(&self) -> io::Result<Vec<String>> {
        let inner = self.call()?;
        let names = inner.files.cached.keys();
        Ok(names
            .map(|name| name.trim_start_matches("files/").to_owned())
            .collect())
    }

    fn sync_names(&self, in_files: bool) -> io::Result<()> {
        let mut inner = self.call()?;
        if in_files {
            &mut inner.files
        } else {
            &mut inner.top
        }
        .since
        .clear();
        Ok(())
    }

    fn path(&self) -> &Path {
        Path::new("fragile")
    }
}

fn status(content: &Content) -> Status {
    let time = Time { s: 0, ns: 0 };
    Status {
        size_bytes: content.cached.len() as u64,
        allocated_bytes: content.cached.len() as u64,
        mtime: time,
        ctime: time,
    }
}

#[derive(Debug)]
struct FragileFile {
    disk: FragileDisk,
    at: usize,
}

impl FragileFile {
    fn with<T>(&self, call: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        Ok(call(&mut self.disk.call()?.contents[self.at]))
    }
}

impl DiskFile for FragileFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        // Reading changes nothing, so it is no point at which to lose power.
        let inner = self.disk.inner();
        let rest = inner.contents[self.at]
            .cached
            .get(offset as usize..)
            .unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.with(|content| content.write(offset as usize, bytes))?;
        Ok(bytes.len())
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        self.with(|content| content.set_size(size_bytes as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(Content::sync)
    }

    fn status(&self) -> io::Result<Status> {
        Ok(status(&self.disk.inner().contents[self.at]))
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
        let (from, to) = (offset as usize, (offset + length) as usize);
        self.with(|content| {
            if flags.contains(FallocateFlags::PUNCH_HOLE) {
                content.punch(from, to);
            } else if !flags.contains(FallocateFlags::KEEP_SIZE) && to > content.cached.len() {
                content.set_size(to);
            }
        })
    }

    fn seek(&self, offset: u64, _data: bool) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }

    fn set_mtime(&self, _mtime: Time) -> io::Result<()> {
        self.with(|_| ())
    }

    fn file(&self) -> Option<io::Result<File>> {
        None
    }
}

/// Names, what they lead to, and permissions.
type NamesThen = BTreeMap<Vec<u8>, (NodeId, u32)>;

/// What may be there after a loss of power.
struct Expected {
    /// Names since the journal was last durable, as they were then first.
    names: Vec<NamesThen>,
    /// Each file's bytes since its last sync.
    files: BTreeMap<NodeId, Vec<Vec<u8>>>,
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
        }
    }

    fn now(&self) -> &NamesThen {
        self.names.last().unwrap()
    }

    fn check(&self, found: &Self, told: &str) {
        let names = found.now();
        let versions = self.names.iter().map(|then| then.keys().collect::<Vec<_>>());
        assert!(
            self.names.contains(names),
            "{told}: {:?} were never the names, these were: {:?}",
            names.keys(),
            versions.collect::<Vec<_>>()
        );
        for (node, bytes) in &found.files {
            check_file(&self.files[node], &bytes[0], &format!("{told}, {node:?}"));
        }
    }
}

fn check_file(versions: &[Vec<u8>], found: &[u8], told: &str) {
    assert!(
        versions.iter().any(|version| version.len() == found.len()),
        "{told}: it never had {} bytes, but {:?}",
        found.len(),
        versions.iter().map(Vec::len).collect::<Vec<_>>()
    );
    for at in (0..found.len()).step_by(SECTOR) {
        let is = |version: &Vec<u8>| {
            let end = (at + SECTOR).min(found.len());
            (at..end).all(|n| found[n] == version.get(n).copied().unwrap_or(0))
        };
        assert!(
            versions.iter().any(is),
            "{told}: what is at byte {at} of {} was never there, of {} versions",
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

struct Run {
    stage: Stage,
    disk: FragileDisk,
    random: Random,
    log: Vec<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        // Many, so that for long some of them are partly the backup's.
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
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            log: Vec::new(),
        }
    }

    fn open(&self) -> Result<LiveClone> {
        LiveClone::open_on(
            Arc::new(self.disk.clone()),
            &self.stage.description,
            self.stage.trees(),
        )
    }

    /// Works until power is lost; returns what may be there after.
    fn work(&mut self, clone: &LiveClone, mut expected: Expected) -> Expected {
        while self.step(clone, &mut expected).is_ok() {}
        assert_eq!(self.disk.inner().left, 0, "{:?}", self.log.last());
        expected
    }

    /// What is to become is expected before it is tried: it may be there even if power is lost meanwhile.
    fn step(&mut self, clone: &LiveClone, expected: &mut Expected) -> Result<()> {
        let root = clone.root();
        let names = expected.now().clone();
        let pick = self.random.below(names.len().max(1) as u64) as usize;
        let (name, node) = match names.iter().nth(pick) {
            Some((name, (node, _))) => (name.clone(), *node),
            None => (Vec::new(), root),
        };
        let what = if names.is_empty() {
            0
        } else {
            self.random.below(20)
        };
        self.log.push(format!("{what} {} {node:?}", name.escape_ascii()));
        match what {
            0 | 1 => {
                let name = vec![b'a' + self.random.below(4) as u8];
                if !names.contains_key(&name) {
                    // Its number is known when it is made; if that fails it may be there, and nothing else.
                    let made = clone.create(root, &name, NEW);
                    let node = match &made {
                        Ok(made) => made.node,
                        Err(_) => NodeId::of_made(self.stage.description.id, clone.names().made - 1),
                    };
                    let mut names = names;
                    names.insert(name, (node, NEW.mode));
                    expected.names.push(names);
                    expected.files.insert(node, vec![Vec::new()]);
                    made?;
                }
            }
            2 => {
                let mut names = names;
                names.remove(&name);
                expected.names.push(names);
                clone.unlink(root, &name)?;
            }
            3 => {
                let to = vec![b'a' + self.random.below(6) as u8];
                let mut names = names;
                if let Some(moved) = names.remove(&name) {
                    names.insert(to.clone(), moved);
                }
                expected.names.push(names);
                clone.rename((root, &name), (root, &to), RenameMode::Replace)?;
            }
            4 => {
                let mode = self.random.below(512) as u32;
                let mut names = names;
                names.insert(name, (node, mode));
                expected.names.push(names);
                let changes = AttributeChanges {
                    mode: Some(mode),
                    ..Default::default()
                };
                clone.set_attributes(node, changes)?;
            }
            5..=17 => self.write(clone, expected, node)?,
            18..=23 => self.cut(clone, expected, node)?,
            24 | 25 => self.punch(clone, expected, node)?,
            26..=33 => {
                clone.sync(node, self.random.below(2) == 0)?;
                let versions = expected.files.get_mut(&node).unwrap();
                versions.drain(..versions.len() - 1);
                expected.names.drain(..expected.names.len() - 1);
            }
            34 => {
                clone.sync_directory(root)?;
                expected.names.drain(..expected.names.len() - 1);
            }
            35..=38 => clone.flush_dirty()?,
            _ => clone.rewrite_journal()?,
        }
        Ok(())
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

/// `BARMANFS_LIVE_RUNS` asks for more of them.
#[test]
fn what_was_synced_outlives_a_loss_of_power() {
    let runs = std::env::var("BARMANFS_LIVE_RUNS").map_or(8, |runs| runs.parse().unwrap());
    for seed in 1..=runs {
        let mut run = Run::new(seed);
        let mut expected = Expected::of(&run.open().unwrap());
        for loss in 0..60 {
            let left = 1 + run.random.below(300);
            run.disk.lose_power(&mut run.random, left);
            // Power may be lost while what was left by the last loss is put in order.
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
    }
}
