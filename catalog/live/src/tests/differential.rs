//! Random operations on a clone and, in step, on a directory of the real file system. The results must be the same,
//! and so must the content.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;

use super::support::{Thing, WINDOW, attributes, noise};
use super::*;
use crate::{Allocation, AttributeChanges, Kind, NewTime, RenameMode, Time};

/// Few names, so that operations meet the same files.
const NAMES: &[&str] = &[
    "a", "b", "c", "lower", "table", "holes", "small", "empty", "link", "deep",
];

const LARGEST: u64 = 3 * WINDOW as u64;

impl Random {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A path at most three names deep.
    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        let names: Vec<&str> = (0..depth).map(|_| self.one(NAMES)).collect();
        names.join("/")
    }

    /// Offsets and lengths: often on a block's edge, or one byte next to it.
    fn offset(&mut self) -> u64 {
        let block = self.below(LARGEST / 8192) * 8192;
        match self.below(4) {
            0 => block,
            1 => block + 1,
            2 => block.saturating_sub(1),
            _ => self.below(LARGEST),
        }
    }

    fn length(&mut self) -> u64 {
        match self.below(4) {
            0 => 8192,
            1 => 1 + self.below(100),
            2 => 8192 * (1 + self.below(5)),
            _ => 1 + self.below(40_000),
        }
    }
}

fn things() -> Vec<(&'static str, Thing)> {
    let mut holes = noise(3, 10_000);
    holes.resize(WINDOW + 5, 0);
    holes.extend(noise(4, 20_000));
    vec![
        ("deep", Thing::Directory),
        ("deep/deep", Thing::Directory),
        ("deep/deep/table", Thing::File(noise(5, 50_000))),
        ("deep/small", Thing::File(b"small".to_vec())),
        ("empty", Thing::File(Vec::new())),
        ("holes", Thing::File(holes)),
        ("link", Thing::Link("table")),
        ("lower", Thing::Directory),
        ("lower/small", Thing::File(noise(6, 9000))),
        ("small", Thing::File(b"hello".to_vec())),
        ("table", Thing::File(noise(1, 2 * WINDOW + 777))),
    ]
}

fn times(time: Time) -> Timestamps {
    let time = Timespec {
        tv_sec: time.s,
        tv_nsec: time.ns.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// The real directory.
struct Real(PathBuf);

impl Real {
    fn new(path: PathBuf, things: &[(&str, Thing)]) -> Self {
        std::fs::create_dir(&path).unwrap();
        let owned = |path: &Path, mode: u32| {
            let of = attributes(mode);
            std::os::unix::fs::lchown(path, Some(of.uid), Some(of.gid)).unwrap();
        };
        for (name, thing) in things {
            let path = path.join(name);
            match thing {
                Thing::Directory => std::fs::create_dir(&path).unwrap(),
                Thing::File(bytes) => std::fs::write(&path, bytes).unwrap(),
                Thing::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
            }
        }
        // Times last: an entry created in a directory changes the directory's time.
        for (name, thing) in things.iter().chain([&("", Thing::Directory)]) {
            let path = path.join(name);
            let mode = if matches!(thing, Thing::Directory) {
                0o700
            } else {
                0o600
            };
            owned(&path, mode);
            if !matches!(thing, Thing::Link(_)) {
                rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).unwrap();
            }
            let of = attributes(mode);
            let time = Time {
                s: of.mtime_s,
                ns: of.mtime_ns,
            };
            rustix::fs::utimensat(CWD, &path, &times(time), AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        Self(path)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// Opens a file without following links: it is the kernel that resolves paths, not the clone.
    fn open(&self, path: &str) -> std::result::Result<File, Errno> {
        self.check_parents(path)?;
        let stat = rustix::fs::lstat(self.path(path))?;
        if stat.st_mode & 0o170_000 == 0o040_000 {
            return Err(Errno::ISDIR);
        }
        if stat.st_mode & 0o170_000 == 0o120_000 {
            return Err(Errno::INVAL);
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::open(
            self.path(path),
            flags,
            Mode::empty(),
        )?))
    }

    /// Checks the parents like a clone, which follows no links.
    fn check_parents(&self, path: &str) -> std::result::Result<(), Errno> {
        let mut at = self.0.clone();
        let names: Vec<&str> = path.split('/').collect();
        for name in &names[..names.len() - 1] {
            at.push(name);
            if rustix::fs::lstat(&at)?.st_mode & 0o170_000 != 0o040_000 {
                return Err(Errno::NOTDIR);
            }
        }
        Ok(())
    }
}

type Answer<T = ()> = std::result::Result<T, Errno>;

/// Both, in step.
struct Pair {
    stage: Stage,
    clone: Option<LiveClone>,
    real: Real,
    open: Vec<(File, NodeId)>,
    random: Random,
    log: Vec<String>,
}

/// A directory and a name in it.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Pair {
    fn new(seed: u64) -> Self {
        let things = things();
        let stage = Stage::new(&things);
        let real = Real::new(stage.fixture.directory.path().join("real"), &things);
        Self {
            clone: Some(stage.create()),
            stage,
            real,
            open: Vec::new(),
            random: Random::from_seed(seed),
            log: Vec::new(),
        }
    }

    fn clone(&self) -> &LiveClone {
        self.clone.as_ref().unwrap()
    }

    /// The directory and the name of a path in the clone.
    fn place<'p>(&self, path: &'p str) -> Answer<(NodeId, &'p [u8])> {
        let (directory, name) = split(path);
        let directory = errno(at(self.clone(), directory))?;
        if directory.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        Ok((directory.node, name.as_bytes()))
    }

    fn say(&mut self, text: String) {
        self.log.push(text);
    }

    #[track_caller]
    fn same<T: PartialEq + std::fmt::Debug>(&self, clone: &T, real: &T) {
        if clone != real {
            let last: Vec<_> = self.log.iter().rev().take(25).rev().cloned().collect();
            panic!("clone {clone:?}, real {real:?} after\n{}", last.join("\n"));
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..=9 => self.make(),
            10..=14 => self.remove(),
            15..=22 => self.rename(),
            23..=25 => self.link(),
            26..=50 => self.write(),
            51..=58 => self.cut(),
            59..=64 => self.allocate(),
            65..=70 => self.attributes(),
            71..=76 => self.seek(),
            77..=82 => self.open_or_close(),
            83..=88 => self.sync(),
            89..=93 => self.look(),
            94 => self.compact(),
            95..=97 => self.reopen(),
            _ => self.compare(),
        }
    }

    fn make(&mut self) {
        let path = self.random.path();
        let what = self.random.below(3);
        self.say(format!("make {what} {path}"));
        let clone = self.place(&path).and_then(|(parent, name)| {
            let made = match what {
                0 => self.clone().create(parent, name, NEW),
                1 => self.clone().mkdir(parent, name, NEW),
                _ => self.clone().symlink(parent, name, b"to/nowhere", NEW),
            };
            errno(made).map(|_| ())
        });
        let real = self.real.check_parents(&path).and_then(|()| {
            let path = self.real.path(&path);
            match what {
                0 => {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
                    drop(rustix::fs::open(&path, flags, Mode::empty())?);
                }
                1 => rustix::fs::mkdir(&path, Mode::empty())?,
                _ => rustix::fs::symlink("to/nowhere", &path)?,
            }
            std::os::unix::fs::lchown(&path, Some(NEW.uid), Some(NEW.gid)).unwrap();
            if what < 2 {
                rustix::fs::chmod(&path, Mode::from_raw_mode(NEW.mode)).unwrap();
            }
            Ok(())
        });
        self.same(&clone, &real);
    }

    fn remove(&mut self) {
        let path = self.random.path();
        let directory = self.random.below(2) == 0;
        self.say(format!("remove {path} {directory}"));
        let clone = self.place(&path).and_then(|(parent, name)| {
            errno(if directory {
                self.clone().rmdir(parent, name)
            } else {
                self.clone().unlink(parent, name)
            })
        });
        let flags = if directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        let real = self.real.check_parents(&path);
        let real = real.and_then(|()| rustix::fs::unlinkat(CWD, self.real.path(&path), flags));
        self.same(&clone, &real);
    }

    fn rename(&mut self) {
        let (from, to) = (self.random.path(), self.random.path());
        let (mode, flags) = self.random.one(&[
            (RenameMode::Replace, RenameFlags::empty()),
            (RenameMode::Replace, RenameFlags::empty()),
            (RenameMode::NoReplace, RenameFlags::NOREPLACE),
            (RenameMode::Exchange, RenameFlags::EXCHANGE),
        ]);
        self.say(format!("rename {from} {to} {mode:?}"));
        let clone = self.place(&from).and_then(|from| {
            let to = self.place(&to)?;
            errno(self.clone().rename(from, to, mode))
        });
        let real = self.real.check_parents(&from).and_then(|()| {
            self.real.check_parents(&to)?;
            rustix::fs::renameat_with(CWD, self.real.path(&from), CWD, self.real.path(&to), flags)
        });
        self.same(&clone, &real);
    }

    fn link(&mut self) {
        let (from, to) = (self.random.path(), self.random.path());
        self.say(format!("link {from} {to}"));
        let clone = errno(at(self.clone(), &from)).and_then(|node| {
            let (parent, name) = self.place(&to)?;
            errno(self.clone().link(node.node, parent, name)).map(|_| ())
        });
        let real = self.real.check_parents(&from).and_then(|()| {
            rustix::fs::lstat(self.real.path(&from))?;
            self.real.check_parents(&to)?;
            rustix::fs::linkat(
                CWD,
                self.real.path(&from),
                CWD,
                self.real.path(&to),
                AtFlags::empty(),
            )
        });
        self.same(&clone, &real);
    }

    /// A file in both: by its path, or one that is open and may have none any more.
    fn file(&mut self) -> Answer<(File, NodeId)> {
        if !self.open.is_empty() && self.random.below(3) == 0 {
            let n = self.random.below(self.open.len() as u64) as usize;
            let (file, node) = &self.open[n];
            let file = (file.try_clone().unwrap(), *node);
            self.say(format!("  open file {n} {:?}", file.1));
            return Ok(file);
        }
        let path = if self.random.below(3) == 0 {
            self.random.path()
        } else {
            self.random
                .one(&["table", "holes", "small", "deep/deep/table", "a"])
                .to_owned()
        };
        self.say(format!("  file {path}"));
        let real = self.real.open(&path);
        let clone = errno(at(self.clone(), &path)).and_then(|found| match found.kind {
            Kind::File => Ok(found.node),
            Kind::Directory => Err(Errno::ISDIR),
            Kind::Symlink => Err(Errno::INVAL),
            Kind::Socket => Err(Errno::NXIO),
        });
        self.same(
            &clone.map(|_| ()),
            &real.as_ref().map(|_| ()).map_err(|errno| *errno),
        );
        Ok((real?, clone?))
    }

    fn write(&mut self) {
        let Ok((real, node)) = self.file() else { return };
        let (offset, length, append) = (
            self.random.offset(),
            self.random.length(),
            self.random.below(8) == 0,
        );
        let size = self.clone().attributes(node).unwrap().size_bytes;
        if append && size > LARGEST {
            return;
        }
        let bytes = noise(self.random.below(1 << 40), length as usize);
        self.say(format!("write {node:?} {offset} {length} append {append}"));
        let clone = errno(self.clone().write(node, offset, &bytes, append));
        let at = if append {
            real.metadata().unwrap().size()
        } else {
            offset
        };
        real.write_all_at(&bytes, at).unwrap();
        self.same(&clone, &Ok(bytes.len()));
        self.compare_file(&real, node);
    }

    fn cut(&mut self) {
        let Ok((real, node)) = self.file() else { return };
        let size = if self.random.below(6) == 0 {
            0
        } else {
            self.random.offset()
        };
        self.say(format!("cut {node:?} {size}"));
        let changes = AttributeChanges {
            size_bytes: Some(size),
            ..Default::default()
        };
        let clone = errno(self.clone().set_attributes(node, changes)).map(|found| found.size_bytes);
        real.set_len(size).unwrap();
        self.same(&clone, &Ok(size));
        self.compare_file(&real, node);
    }

    fn allocate(&mut self) {
        let Ok((real, node)) = self.file() else { return };
        let (offset, length) = (self.random.offset(), self.random.length());
        let (what, keep_size) = self.random.one(&[
            (Allocation::Reserve, false),
            (Allocation::Reserve, true),
            (Allocation::Zero, false),
            (Allocation::Zero, true),
            (Allocation::Punch, true),
        ]);
        self.say(format!(
            "allocate {node:?} {what:?} {keep_size} {offset} {length}"
        ));
        let real_done = rustix::fs::fallocate(&real, crate::ranges::flags(what, keep_size), offset, length);
        let clone = errno(self.clone().allocate(node, what, keep_size, offset, length));
        self.same(&clone, &real_done);
        self.compare_file(&real, node);
    }

    fn attributes(&mut self) {
        let path = self.random.path();
        let Ok(found) = at(self.clone(), &path) else {
            return;
        };
        let what = self.random.below(3);
        let value = self.random.below(512);
        self.say(format!("attributes {path} {what} {value}"));
        let real = self.real.path(&path);
        let value_32 = u32::try_from(value).unwrap();
        let mut changes = AttributeChanges::default();
        match what {
            0 if found.kind != Kind::Symlink => {
                changes.mode = Some(value_32);
                rustix::fs::chmod(&real, Mode::from_raw_mode(value_32)).unwrap();
            }
            1 => {
                changes.uid = Some(value_32);
                changes.gid = Some(value_32 + 1);
                std::os::unix::fs::lchown(&real, changes.uid, changes.gid).unwrap();
            }
            _ => {
                let time = Time {
                    s: i64::from(value_32),
                    ns: 123_456_700,
                };
                changes.mtime = Some(NewTime::At(time));
                rustix::fs::utimensat(CWD, &real, &times(time), AtFlags::SYMLINK_NOFOLLOW).unwrap();
            }
        }
        self.clone().set_attributes(found.node, changes).unwrap();
    }

    /// What is reported as data or a hole may differ from the real file system, but it must be true.
    fn seek(&mut self) {
        let Ok((real, node)) = self.file() else { return };
        let offset = self.random.offset();
        self.say(format!("seek {node:?} {offset}"));
        let bytes = read_all(self.clone(), node).unwrap();
        let data = errno(self.clone().seek(node, offset, true));
        let hole = errno(self.clone().seek(node, offset, false));
        let real_hole = rustix::fs::seek(&real, SeekFrom::Hole(offset));
        self.same(&hole.err(), &real_hole.err());
        if let Ok(hole) = hole {
            assert!((offset..=bytes.len() as u64).contains(&hole));
        }
        let skipped = match data {
            Ok(data) => {
                assert!(
                    (offset..bytes.len() as u64).contains(&data),
                    "{:?}",
                    self.log.last()
                );
                data
            }
            Err(errno) => {
                assert_eq!(errno, Errno::NXIO);
                bytes.len() as u64
            }
        };
        if offset < skipped {
            let skipped = &bytes[offset as usize..skipped as usize];
            assert!(skipped.iter().all(|byte| *byte == 0), "{:?}", self.log);
        }
    }

    fn open_or_close(&mut self) {
        if self.open.len() > 3 || (!self.open.is_empty() && self.random.below(2) == 0) {
            let n = self.random.below(self.open.len() as u64) as usize;
            let (_, node) = self.open.swap_remove(n);
            self.say(format!("close {node:?}"));
            self.clone().close_node(node);
            return;
        }
        if let Ok((file, node)) = self.file() {
            self.say(format!("open {node:?}"));
            // It may be an open file without a name, which can be opened once more.
            self.clone().open_node(node).unwrap();
            self.open.push((file, node));
        }
    }

    fn sync(&mut self) {
        if let Ok((_, node)) = self.file() {
            let data_only = self.random.below(2) == 0;
            self.say(format!("sync {node:?} {data_only}"));
            self.clone().sync(node, data_only).unwrap();
        }
    }

    fn look(&mut self) {
        let path = self.random.path();
        let clone = errno(at(self.clone(), &path)).map(|found| found.kind);
        let real = self.real.check_parents(&path).and_then(|()| {
            let stat = rustix::fs::lstat(self.real.path(&path))?;
            Ok(match stat.st_mode & 0o170_000 {
                0o040_000 => Kind::Directory,
                0o120_000 => Kind::Symlink,
                _ => Kind::File,
            })
        });
        self.same(&clone, &real);
    }

    fn compact(&mut self) {
        self.say("compact".to_owned());
        self.clone().rewrite_journal().unwrap();
    }

    /// Opens the clone again: after everything was flushed, or after it was killed when everything had been synced.
    fn reopen(&mut self) {
        let killed = self.random.below(2) == 0;
        self.say(format!("reopen, killed: {killed}"));
        for (_, node) in std::mem::take(&mut self.open) {
            if !killed {
                self.clone().close_node(node);
            }
        }
        self.clone().flush_all().unwrap();
        let before = ids(self.clone());
        self.clone = None;
        self.clone = Some(self.stage.open());
        self.same(&ids(self.clone()), &before);
        self.compare();
        assert_eq!(self.clone().statistics().used_bytes, self.used_bytes());
    }

    /// Bytes of the upper layer, as the file system counts them.
    fn used_bytes(&self) -> u64 {
        let files = std::fs::read_dir(self.stage.directory.join("files")).unwrap();
        let files: u64 = files
            .map(|file| file.unwrap().metadata().unwrap().blocks() * 512)
            .sum();
        files
            + std::fs::metadata(self.stage.directory.join("journal"))
                .unwrap()
                .len()
    }

    fn compare_file(&self, real: &File, node: NodeId) {
        let found = self.clone().attributes(node).unwrap();
        let stat = real.metadata().unwrap();
        self.same(&found.size_bytes, &stat.size());
        self.same(&u64::from(found.links), &stat.nlink());
        let mut bytes = vec![0; stat.size() as usize];
        real.read_exact_at(&mut bytes, 0).unwrap();
        let shown = read_all(self.clone(), node).unwrap();
        if shown != bytes {
            let at = shown.iter().zip(&bytes).position(|(a, b)| a != b);
            self.same(&(shown.len(), at), &(bytes.len(), None));
        }
    }

    /// Compares everything.
    fn compare(&mut self) {
        self.say("compare".to_owned());
        self.compare_directory("", self.clone().root());
        for (file, node) in &self.open {
            self.compare_file(file, *node);
        }
    }

    fn compare_directory(&self, path: &str, node: NodeId) {
        let listed: Vec<_> = self
            .clone()
            .entries(node)
            .unwrap()
            .map(|name| name.unwrap())
            .collect();
        let names: Vec<String> = listed
            .iter()
            .map(|name| String::from_utf8(name.name.clone()).unwrap())
            .collect();
        let mut real_names: Vec<String> = std::fs::read_dir(self.real.path(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        real_names.sort();
        self.same(&(path, names.clone()), &(path, real_names));
        self.compare_attributes(path, node);
        for (name, listed) in names.iter().zip(listed) {
            let below = format!("{path}/{name}");
            let below = below.trim_start_matches('/');
            let found = self.clone().lookup(node, name.as_bytes()).unwrap();
            self.same(&(found.node, found.kind), &(listed.node, listed.kind));
            match found.kind {
                Kind::Directory => {
                    self.same(&self.clone().parent(found.node).unwrap(), &node);
                    self.compare_directory(below, found.node);
                }
                Kind::Socket => self.compare_attributes(below, found.node),
                Kind::File => {
                    self.compare_attributes(below, found.node);
                    self.compare_file(&self.real.open(below).unwrap(), found.node);
                }
                Kind::Symlink => {
                    self.compare_attributes(below, found.node);
                    let target = std::fs::read_link(self.real.path(below)).unwrap();
                    let shown = String::from_utf8(self.clone().readlink(found.node).unwrap()).unwrap();
                    self.same(&shown, &target.to_str().unwrap().to_owned());
                }
            }
            self.clone().forget(found.node, 1);
        }
    }

    fn compare_attributes(&self, path: &str, node: NodeId) {
        let found = self.clone().attributes(node).unwrap();
        let stat = std::fs::symlink_metadata(self.real.path(path)).unwrap();
        let mode = |mode: u32| {
            if found.kind == Kind::Symlink {
                0
            } else {
                mode & 0o7777
            }
        };
        self.same(
            &(path, mode(found.mode), found.uid, found.gid),
            &(path, mode(stat.mode()), stat.uid(), stat.gid()),
        );
        if found.kind != Kind::Directory {
            self.same(&(path, found.size_bytes), &(path, stat.size()));
            self.same(&(path, u64::from(found.links)), &(path, stat.nlink()));
        }
        // Both were changed just now, or neither was.
        let apart = (found.mtime.s - stat.mtime()).abs();
        assert!(
            apart <= 2,
            "{path}: {:?}, not {} after {:?}",
            found.mtime,
            stat.mtime(),
            self.log
        );
        if stat.mtime() <= 1_700_000_000 {
            self.same(&i64::from(found.mtime.ns), &stat.mtime_nsec());
        }
    }
}

/// Every path's node.
fn ids(clone: &LiveClone) -> BTreeMap<Vec<u8>, NodeId> {
    let mut ids = BTreeMap::new();
    let mut todo = vec![(Vec::new(), clone.root())];
    while let Some((path, node)) = todo.pop() {
        for name in clone.entries(node).unwrap() {
            let name = name.unwrap();
            let below = [&path[..], b"/", &name.name].concat();
            ids.insert(below.clone(), name.node);
            if name.kind == Kind::Directory {
                let found = clone.lookup(node, &name.name).unwrap();
                todo.push((below, found.node));
            }
        }
    }
    ids
}

/// `BARMANFS_LIVE_RUNS` sets the number of runs.
#[test]
fn a_clone_does_what_a_directory_does() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("Only root can give files to others: not compared");
        return;
    }
    let runs = std::env::var("BARMANFS_LIVE_RUNS").map_or(6, |runs| runs.parse().unwrap());
    for seed in 1..=runs {
        let mut pair = Pair::new(seed);
        pair.say(format!("seed {seed}"));
        pair.compare();
        for _ in 0..400 {
            pair.step();
        }
        pair.compare();
        pair.reopen();
    }
}
