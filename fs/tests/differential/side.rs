//! One of the two directories: applies operations by system calls, and returns their results.

use std::ffi::c_void;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FileType, Mode, OFlags, RawDir, SeekFrom, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

use crate::operation::{DIRECT_BYTES, Operation, SLOTS};
use crate::support::noise;

/// The result of an operation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Count(usize),
    Bytes(Vec<u8>),
    Attributes(Attributes),
    Names(Vec<Vec<u8>>),
}

/// The attributes of a file that must be the same in both directories.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Attributes {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// 0 for directories: file systems count their links differently.
    pub(crate) links: u64,
    pub(crate) size_bytes: i64,
    /// The exact time if it was set. `None` if it comes from the clock, because the clocks' times differ.
    pub(crate) mtime: Option<(i64, i64)>,
}

impl Attributes {
    pub(crate) fn of(stat: &Stat, started_s: i64) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_directory = kind.is_dir();
        Self {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            links: if is_directory { 0 } else { stat.st_nlink },
            size_bytes: if is_directory { 0 } else { stat.st_size },
            mtime: (stat.st_mtime < started_s).then_some((stat.st_mtime, stat.st_mtime_nsec.cast_signed())),
        }
    }
}

pub(crate) type Answer = Result<Outcome, Errno>;

struct Slot {
    file: File,
    is_direct: bool,
}

/// One of the two directories, with its open files.
pub(crate) struct Side {
    pub(crate) root: PathBuf,
    slots: [Option<Slot>; SLOTS],
    /// Seconds since 1970. Earlier modification times were set, or come from the backup.
    pub(crate) started_s: i64,
}

impl Side {
    pub(crate) fn new(root: &Path, started_s: i64) -> Self {
        Self {
            root: root.to_path_buf(),
            slots: [const { None }; SLOTS],
            started_s,
        }
    }

    pub(crate) fn close_all(&mut self) {
        self.slots = [const { None }; SLOTS];
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn slot(&self, slot: usize) -> Result<&Slot, Errno> {
        self.slots[slot].as_ref().ok_or(Errno::BADF)
    }

    fn file(&self, slot: usize) -> Result<&File, Errno> {
        Ok(&self.slot(slot)?.file)
    }

    /// Applies the operation.
    pub(crate) fn apply(&mut self, operation: &Operation) -> Answer {
        match operation {
            Operation::Open {
                slot,
                path,
                flags,
                mode,
            } => return self.open(*slot, path, *flags, *mode),
            Operation::Close { slot } => self.slots[*slot] = None,
            Operation::ReadAt { slot, offset, length } => return self.read_at(*slot, *offset, *length),
            Operation::WriteAt {
                slot,
                offset,
                length,
                seed,
            } => return self.write(*slot, Some(*offset), *length, *seed),
            Operation::Write { slot, length, seed } => return self.write(*slot, None, *length, *seed),
            Operation::ReadMapped { slot, offset, length } => {
                return self.mapped(*slot, *offset, *length, None);
            }
            Operation::WriteMapped {
                slot,
                offset,
                length,
                seed,
                sync,
            } => return self.mapped(*slot, *offset, *length, Some((*seed, *sync))),
            Operation::SetSize { slot, size } => rustix::fs::ftruncate(self.file(*slot)?, *size)?,
            Operation::Allocate {
                slot,
                flags,
                offset,
                length,
            } => rustix::fs::fallocate(self.file(*slot)?, *flags, *offset, *length)?,
            Operation::Sync {
                slot,
                data_only: true,
            } => rustix::fs::fdatasync(self.file(*slot)?)?,
            Operation::Sync {
                slot,
                data_only: false,
            } => rustix::fs::fsync(self.file(*slot)?)?,
            Operation::SeekThrough { slot } => return self.seek_through(*slot),
            other => return self.apply_to_path(other),
        }
        Ok(Outcome::Done)
    }

    fn apply_to_path(&self, operation: &Operation) -> Answer {
        match operation {
            Operation::Truncate { path, size } => {
                let file = rustix::fs::open(self.path(path), OFlags::WRONLY, Mode::empty())?;
                rustix::fs::ftruncate(file, *size)?;
            }
            Operation::SyncDirectory { path } => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                rustix::fs::fsync(rustix::fs::open(self.path(path), flags, Mode::empty())?)?;
            }
            Operation::Read { path } => return self.read(path),
            Operation::Rename { from, to, flags } => {
                rustix::fs::renameat_with(CWD, self.path(from), CWD, self.path(to), *flags)?;
            }
            Operation::Link { from, to } => rustix::fs::link(self.path(from), self.path(to))?,
            Operation::Symlink { target, path } => rustix::fs::symlink(target, self.path(path))?,
            Operation::ReadLink { path } => {
                let target = rustix::fs::readlink(self.path(path), Vec::new())?;
                return Ok(Outcome::Bytes(target.into_bytes()));
            }
            Operation::Unlink { path } => rustix::fs::unlink(self.path(path))?,
            Operation::MakeDirectory { path, mode } => {
                rustix::fs::mkdir(self.path(path), Mode::from_raw_mode(*mode))?;
            }
            Operation::RemoveDirectory { path } => rustix::fs::rmdir(self.path(path))?,
            Operation::List { path, read_first } => return self.list(path, *read_first),
            other => return self.apply_to_attributes(other),
        }
        Ok(Outcome::Done)
    }

    fn apply_to_attributes(&self, operation: &Operation) -> Answer {
        match operation {
            Operation::SetMode { path, mode } => {
                rustix::fs::chmod(self.path(path), Mode::from_raw_mode(*mode))?;
            }
            Operation::SetOwner {
                path,
                uid,
                gid,
                flags,
            } => {
                let uid = uid.map(rustix::fs::Uid::from_raw);
                let gid = gid.map(rustix::fs::Gid::from_raw);
                rustix::fs::chownat(CWD, self.path(path), uid, gid, *flags)?;
            }
            Operation::SetTime { path, time, flags } => {
                let times = times(time.unwrap_or((0, UTIME_NOW)));
                rustix::fs::utimensat(CWD, self.path(path), &times, *flags)?;
            }
            Operation::Stat { path, flags } => {
                let stat = rustix::fs::statat(CWD, self.path(path), *flags)?;
                return Ok(Outcome::Attributes(Attributes::of(&stat, self.started_s)));
            }
            other => unreachable!("{other:?} is done elsewhere"),
        }
        Ok(Outcome::Done)
    }

    fn open(&mut self, slot: usize, path: &str, flags: OFlags, mode: u32) -> Answer {
        self.slots[slot] = None;
        let file = rustix::fs::open(self.path(path), flags, Mode::from_raw_mode(mode))?;
        let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_dir();
        // For a directory, only the open itself is tested.
        if !is_directory {
            self.slots[slot] = Some(Slot {
                file: File::from(file),
                is_direct: flags.contains(OFlags::DIRECT),
            });
        }
        Ok(Outcome::Done)
    }

    fn read(&self, path: &str) -> Answer {
        let file = rustix::fs::open(self.path(path), OFlags::RDONLY, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Err(Errno::ISDIR);
        }
        // Ten bytes more than the expected size.
        let mut bytes = vec![0; stat.st_size as usize + 10];
        let count = read_fully(&File::from(file), &mut bytes, 0)?;
        bytes.truncate(count);
        Ok(Outcome::Bytes(bytes))
    }

    fn read_at(&self, slot: usize, offset: u64, length: usize) -> Answer {
        let slot = self.slot(slot)?;
        let mut buffer = Buffer::new(length, slot.is_direct);
        let count = read_fully(&slot.file, buffer.bytes(), aligned(offset, slot.is_direct))?;
        Ok(Outcome::Bytes(buffer.bytes()[..count].to_vec()))
    }

    fn write(&self, slot: usize, offset: Option<u64>, length: usize, seed: u64) -> Answer {
        let slot = self.slot(slot)?;
        let mut buffer = Buffer::new(length, slot.is_direct);
        let length = buffer.bytes().len();
        buffer.bytes().copy_from_slice(&noise(seed, length));
        let count = match offset {
            Some(offset) => rustix::io::pwrite(&slot.file, buffer.bytes(), aligned(offset, slot.is_direct))?,
            // The position and the end are arbitrary, so a direct write may be impossible on one side.
            None if slot.is_direct => return Ok(Outcome::Done),
            None => rustix::io::write(&slot.file, buffer.bytes())?,
        };
        Ok(Outcome::Count(count))
    }

    /// Reads or writes the existing part of this range through a shared mapping.
    #[allow(unsafe_code)]
    fn mapped(&self, slot: usize, offset: u64, length: usize, write: Option<(u64, bool)>) -> Answer {
        let file = self.file(slot)?;
        let size_bytes = rustix::fs::fstat(file)?.st_size as u64;
        let length = length.min(size_bytes.saturating_sub(offset) as usize);
        if length == 0 {
            return Ok(Outcome::Count(0));
        }
        let from = aligned(offset, true);
        let skipped = (offset - from) as usize;
        let protection = match write {
            Some(_) => ProtFlags::READ | ProtFlags::WRITE,
            None => ProtFlags::READ,
        };
        // SAFETY: a new mapping; it is used between here and munmap alone, within the file's size, which nobody
        // changes meanwhile, and as bytes.
        let outcome = unsafe {
            let map = rustix::mm::mmap(
                std::ptr::null_mut(),
                skipped + length,
                protection,
                MapFlags::SHARED,
                file,
                from,
            )?;
            let there: *mut u8 = map.cast::<u8>().add(skipped);
            let outcome = match write {
                Some((seed, sync)) => {
                    let bytes = noise(seed, length);
                    there.copy_from_nonoverlapping(bytes.as_ptr(), length);
                    match sync {
                        true => {
                            let synced = rustix::mm::msync(map, skipped + length, MsyncFlags::SYNC);
                            synced.map(|()| Outcome::Done)
                        }
                        false => Ok(Outcome::Done),
                    }
                }
                None => Ok(Outcome::Bytes(std::slice::from_raw_parts(there, length).to_vec())),
            };
            rustix::mm::munmap(map.cast::<c_void>(), skipped + length)?;
            outcome?
        };
        if write.is_some() {
            // ext4 changes the time at once, FUSE when the pages are written back.
            let _ = rustix::fs::futimens(file, &times((0, UTIME_NOW)));
        }
        Ok(outcome)
    }

    /// Each file system may choose where it reports data, but reported holes must read as zeros.
    fn seek_through(&self, slot: usize) -> Answer {
        let slot = self.slot(slot)?;
        if slot.is_direct {
            return Ok(Outcome::Done);
        }
        let file = &slot.file;
        let before = rustix::fs::seek(file, SeekFrom::Current(0))?;
        let size_bytes = rustix::fs::fstat(file)?.st_size as u64;
        let mut at = 0;
        while at < size_bytes {
            let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => size_bytes,
                data => data?,
            };
            let mut hole = vec![1; (data - at) as usize];
            match read_fully(file, &mut hole, at) {
                // The file is open for writing only.
                Err(Errno::BADF) => {}
                read => assert_eq!(hole.len(), read?, "a hole's end is within the file"),
            }
            assert!(
                hole.iter().all(|byte| *byte == 0) || hole.iter().all(|byte| *byte == 1),
                "what is called a hole from {at} to {data} is none"
            );
            if data >= size_bytes {
                break;
            }
            at = rustix::fs::seek(file, SeekFrom::Hole(data))?;
            assert!(at > data, "there is data at {data}, yet it is a hole");
        }
        let past = rustix::fs::seek(file, SeekFrom::Data(size_bytes));
        rustix::fs::seek(file, SeekFrom::Start(before))?;
        past.map(|at| Outcome::Count(at as usize))
    }

    /// Lists a directory a few names at a time. After the first few, some names are added and removed. All other names
    /// must be listed once.
    fn list(&self, path: &str, read_first: usize) -> Answer {
        let path = self.path(path);
        let passing = |n: usize| path.join(format!("passing {n}"));
        let make = |n: usize| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            rustix::fs::open(passing(n), flags, Mode::RUSR).map(drop)
        };
        // It must be possible to create names there, on both sides.
        (0..4).try_for_each(make)?;
        // A name that is created from here on, before it is listed, may or may not be in the listing.
        let directory = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut few = [MaybeUninit::uninit(); 100];
        let mut while_it_changed = names(&directory, &mut few, |count| {
            if count == read_first {
                rustix::fs::unlink(passing(0))?;
                rustix::fs::rename(passing(1), passing(8))?;
                make(9)?;
            }
            Ok(())
        })?;
        rustix::fs::seek(&directory, SeekFrom::Start(0))?;
        let mut many = [MaybeUninit::uninit(); 4096];
        let again = names(&directory, &mut many, |_| Ok(()))?;
        for n in [0, 1, 2, 3, 8, 9] {
            let _ = rustix::fs::unlink(passing(n));
        }
        let passed = |name: &Vec<u8>| {
            [0, 1, 8, 9]
                .iter()
                .any(|n| *name == format!("passing {n}").as_bytes())
        };
        while_it_changed.retain(|name| !passed(name));
        let lasting: Vec<_> = again.iter().filter(|name| !passed(name)).cloned().collect();
        assert_eq!(
            while_it_changed,
            lasting,
            "a listing of {} while it changed",
            path.display()
        );
        Ok(Outcome::Names(again))
    }

    /// The attributes of an open file.
    pub(crate) fn attributes(&self, slot: usize) -> Option<Attributes> {
        let slot = self.slots[slot].as_ref()?;
        let stat = rustix::fs::fstat(slot.file.as_fd()).unwrap();
        Some(Attributes::of(&stat, self.started_s))
    }

    /// The bytes of an open file, if it is open for reading.
    pub(crate) fn content(&self, slot: usize) -> Option<Vec<u8>> {
        let slot = self.slots[slot].as_ref()?;
        let size_bytes = rustix::fs::fstat(&slot.file).unwrap().st_size as usize;
        let mut buffer = Buffer::new(size_bytes + 10, slot.is_direct);
        let count = read_fully(&slot.file, buffer.bytes(), 0).ok()?;
        Some(buffer.bytes()[..count].to_vec())
    }

    /// Makes everything durable. Fails if this user may not open something.
    pub(crate) fn sync_everything(&self) -> std::io::Result<()> {
        let mut paths = vec![self.root.clone()];
        while let Some(path) = paths.pop() {
            let kind = path.symlink_metadata()?.file_type();
            if kind.is_symlink() {
                continue;
            }
            if kind.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    paths.push(entry?.path());
                }
            }
            File::open(&path)?.sync_all()?;
        }
        Ok(())
    }
}

/// Changes only the modification time.
fn times((tv_sec, tv_nsec): (i64, i64)) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec { tv_sec, tv_nsec },
    }
}

/// The names from the directory's position on, sorted. `after` gets the number of names so far.
fn names(
    directory: &OwnedFd,
    buffer: &mut [MaybeUninit<u8>],
    mut after: impl FnMut(usize) -> Result<(), Errno>,
) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    let mut entries = RawDir::new(directory, buffer);
    while let Some(entry) = entries.next() {
        names.push(entry?.file_name().to_bytes().to_vec());
        after(names.len())?;
    }
    names.sort();
    Ok(names)
}

fn aligned(offset: u64, is_direct: bool) -> u64 {
    if is_direct {
        offset / DIRECT_BYTES * DIRECT_BYTES
    } else {
        offset
    }
}

/// Reads until the buffer is full or the file ends.
fn read_fully(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) => return Err(Errno::from_io_error(&error).unwrap()),
        }
        // A short direct read means the end of the file.
        if done % DIRECT_BYTES as usize != 0 {
            break;
        }
    }
    Ok(done)
}

/// A buffer with the alignment of direct reads and writes.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    fn new(length: usize, is_direct: bool) -> Self {
        let unit = DIRECT_BYTES as usize;
        let length = match is_direct {
            true => length.next_multiple_of(unit),
            false => length,
        };
        let bytes = vec![0; length + unit];
        let start = bytes.as_ptr().align_offset(unit);
        Self { bytes, start, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.length]
    }
}
