//! A disk that loses power after a number of system calls, and then keeps an arbitrary part of everything that was not
//! synced.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex, MutexGuard};

use rustix::fs::FallocateFlags;

use super::Random;
use crate::Time;
use crate::disk::{Disk, DiskFile, FILES, Status};

/// The unit that a disk writes as a whole.
pub(super) const SECTOR: usize = 512;

/// A change of a file that may not be on disk yet.
#[derive(Debug, Clone)]
enum Done {
    /// A sector, as it was after a write.
    Sector(usize, Vec<u8>),
    /// A new size, and the last sector at that moment: it is written before the size takes effect.
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
    /// The changes since the last sync.
    done: Vec<Done>,
}

fn apply(bytes: &mut Vec<u8>, done: &Done) {
    match done {
        Done::Sector(at, sector) => {
            // If the size it was written for is missing, or the file was cut again, the sector does not exist.
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
            // The size may reach the disk before the bytes do.
            self.set_size(end);
        }
        self.cached[offset..end].copy_from_slice(bytes);
        self.sectors(offset, end);
    }

    /// Records the sectors that have just been written.
    fn sectors(&mut self, from: usize, to: usize) {
        for at in (from / SECTOR * SECTOR..to).step_by(SECTOR) {
            let sector = self.cached[at..(at + SECTOR).min(self.cached.len())].to_vec();
            self.done.push(Done::Sector(at, sector));
        }
    }

    fn set_size(&mut self, size: usize) {
        // When the file grows, its former last sector stays as it was.
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

    /// What survives: any of the written sectors, and sizes and holes in their order up to some point.
    fn lose(&mut self, random: &mut Random) {
        let likely = random.below(5);
        for done in std::mem::take(&mut self.done) {
            let there = random.below(4) < likely;
            match done {
                Done::Sector(..) if !there => {}
                // What comes after it was written elsewhere on the disk, and nothing refers to it.
                Done::Size(..) | Done::Hole(..) if !there => break,
                done => apply(&mut self.durable, &done),
            }
        }
        self.cached.clone_from(&self.durable);
    }
}

/// The names of a directory, cached and durable.
#[derive(Debug, Default)]
struct Directory {
    cached: BTreeMap<String, usize>,
    /// The names after each change since the last sync; the durable ones first.
    since: Vec<BTreeMap<String, usize>>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    contents: Vec<Content>,
    top: Directory,
    files: Directory,
    /// System calls until power is lost, or the process that makes them is killed.
    pub(super) left: u64,
    /// The next sync of a file fails as in a kernel: the data it should write is forgotten, and the sync after that
    /// reports no error.
    pub(super) next_sync_fails: bool,
    /// A sync has failed since power came back.
    pub(super) sync_failed: bool,
    /// The next sync of a file waits here twice: when it begins, and until it may continue.
    pub(super) next_sync_waits: Option<Arc<Barrier>>,
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
pub(super) struct FragileDisk(Arc<Mutex<Inner>>);

impl FragileDisk {
    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Makes a system call, unless power is lost.
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

    /// Whatever was not synced is lost, or not.
    pub(super) fn lose_power(&self, random: &mut Random) {
        let mut inner = self.inner();
        inner.top.lose(random);
        inner.files.lose(random);
        inner.contents.iter_mut().for_each(|content| content.lose(random));
        inner.sync_failed = false;
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

    fn sync_all(&self) -> io::Result<()> {
        let mut inner = self.call()?;
        inner.top.since.clear();
        inner.files.since.clear();
        inner.contents.iter_mut().for_each(Content::sync);
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
        // Reading changes nothing, so power is not lost here.
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
        let waits = self.disk.inner().next_sync_waits.take();
        if let Some(barrier) = waits {
            barrier.wait();
            barrier.wait();
        }
        let mut inner = self.disk.call()?;
        if std::mem::take(&mut inner.next_sync_fails) {
            inner.sync_failed = true;
            inner.contents[self.at].done.clear();
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        inner.contents[self.at].sync();
        Ok(())
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
