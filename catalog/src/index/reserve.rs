//! A reserve of space for operations that free space.
//!
//! A deletion writes: a record, rows, a lock file. On a full file system that would be impossible, and space could
//! never be freed again. So a file `reserve` occupies some space while there is enough of it. An operation that frees
//! space ([`Repository::with_reserve`]) first tries without it, and shortens the file by a step each time it runs out
//! of space: other writers may be waiting for the same bytes, and must not get all of them. For the same reason each
//! step is allocated at once to the files that will be written: to the catalog's WAL, or to a spare file for the next
//! pack. No other process can take what is allocated to a file; what remains allocated to the WAL serves the next
//! deletion. When the operation has ended, and whenever a writer begins, the reserve is refilled if there is enough
//! space.
//!
//! A file system may also run out of inodes. So some empty files `reserve.N` are kept too, and removed when no other
//! file can be created.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, fallocate, statvfs};

use barmanfs_store::LocalPacks;

use crate::error::{Error, Result};
use crate::home::{PACKS, RESERVE};
use crate::index::repository::Repository;

/// SQLite's write-ahead log of the catalog, next to it.
const WAL: &str = "catalog.sqlite-wal";

/// The unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

const MIB: u64 = 1 << 20;

/// Its size: the pages of the catalog that a deletion and the removal of a pack change, each written to SQLite's WAL.
const BYTES: u64 = 16 * MIB;

/// The same if the whole file system is small, because then its catalog is small, too.
const SMALL_BYTES: u64 = 8 * MIB;
const SMALL_FILE_SYSTEM: u64 = 1 << 30;

/// What a beginning writer leaves free when it creates the file: it will soon write data itself.
const MARGIN_OF_WRITERS: u64 = 16 * MIB;

/// How much is given up at a time.
const STEP: u64 = MIB;

/// How much of a step is allocated to the file that the step is given up for; the rest is for directories and lock
/// files.
const SHARE: u64 = STEP / 8 * 7;

/// With this much allocated after its end, the catalog's WAL needs no more for now: then a pack needs the space.
const ENOUGH_FOR_WAL: u64 = 2 * MIB;

/// Number of empty files kept if the number of files is limited: a deletion creates a lock file or two, and a pack.
const FILES: usize = 8;

/// How many of them are given up at a time.
const FILES_STEP: usize = 2;

/// How often an operation that frees space is retried: for the whole reserve, and then some. A quota may refuse what
/// the file system has, and the next writer refills what was given up.
const TRIES: u64 = 2 * BYTES / STEP;

impl Repository {
    /// Creates the reserve if it is missing and there is enough space. Without it everything works as long as there is
    /// space.
    pub(crate) fn keep_reserve(&self) {
        self.fill_reserve(MARGIN_OF_WRITERS);
    }

    fn fill_reserve(&self, margin: u64) {
        if let Err(error) = self
            .as_owner()
            .map_err(io::Error::other)
            .and_then(|_acting| fill(self.path(), margin))
        {
            tracing::debug!("There is no reserve for freeing space: {error}");
        }
    }

    /// Runs an operation that frees space, and runs it again while it fails for lack of space and there is a reserve to
    /// give up. So `work` must leave things as they were when it fails, or continue from there.
    pub(crate) fn with_reserve<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let mut used = 0;
        let result = loop {
            match work() {
                Err(error) if used < TRIES && self.is_for_want_of_space(&error) && self.give_up_some() => {
                    used += 1;
                }
                ended => break ended,
            }
        };
        if used > 0 {
            self.fill_reserve(0);
        }
        result
    }

    /// SQLite does not always report lack of space as such: it does not know about quotas.
    fn is_for_want_of_space(&self, error: &Error) -> bool {
        error.is_full()
            || (matches!(error, Error::Catalog { .. })
                && self.as_owner().is_ok_and(|_acting| has_no_space(self.path())))
    }

    fn give_up_some(&self) -> bool {
        let Ok(_acting) = self.as_owner() else {
            return false;
        };
        match give_up_step(self.path()) {
            Ok(given_up) => given_up,
            Err(error) => {
                tracing::warn!("The reserve for freeing space cannot be used: {error}");
                false
            }
        }
    }
}

fn open(directory: &Path, name: &str, create: bool) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(directory.join(name))?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other(format!("{name} is no regular file"))),
    }
}

fn fill(directory: &Path, margin: u64) -> io::Result<()> {
    let system = statvfs(directory)?;
    // Some file systems have no limit, and report 0.
    if system.f_files > 0 && system.f_favail > FILES as u64 {
        make_spare_files(directory);
    }
    let of = |blocks: u64| blocks.saturating_mul(system.f_frsize);
    let wanted = match of(system.f_blocks) < SMALL_FILE_SYSTEM {
        true => SMALL_BYTES,
        false => BYTES,
    };
    let there = std::fs::symlink_metadata(directory.join(RESERVE)).map_or(0, |found| found.size());
    if there >= wanted || of(system.f_bavail) < wanted - there + margin {
        return Ok(());
    }
    let file = open(directory, RESERVE, true)?;
    // Another writer is filling it.
    if file.try_lock().is_err() {
        return Ok(());
    }
    let there = file.metadata()?.size();
    let mut missing = wanted.saturating_sub(there);
    loop {
        let filled = allocate(&file, there, missing).and_then(|()| file.sync_all());
        if filled.is_err() && file.metadata()?.size() > there {
            file.set_len(there)?;
        }
        match filled {
            // Another writer was faster, or the quota is lower than the free space of the file system.
            Err(error) if is_for_want_of_space(&error) && missing > STEP => missing /= 2,
            filled => return filled,
        }
    }
}

fn allocate(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), from, bytes) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => write_noise(file, from, bytes),
        done => Ok(done?),
    }
}

/// Bytes that no file system can compress away.
fn write_noise(mut file: &File, from: u64, bytes: u64) -> io::Result<()> {
    use std::io::{Seek, SeekFrom};
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ from;
    let mut block = Vec::with_capacity(MIB as usize);
    file.seek(SeekFrom::Start(from))?;
    let mut left = bytes;
    while left > 0 {
        block.clear();
        let length = left.min(MIB);
        while (block.len() as u64) < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        block.truncate(length as usize);
        file.write_all(&block)?;
        left -= length;
    }
    Ok(())
}

/// The spare files. The first is created last and removed first: if it exists, all of them exist.
fn spare_files(directory: &Path) -> impl DoubleEndedIterator<Item = PathBuf> + '_ {
    (0..FILES).map(move |n| directory.join(format!("{RESERVE}.{n}")))
}

/// Every writer calls this, so a single look-up decides whether there is something to do.
fn make_spare_files(directory: &Path) {
    let first = spare_files(directory).next();
    if first.is_some_and(|path| std::fs::symlink_metadata(path).is_ok()) {
        return;
    }
    for path in spare_files(directory).rev() {
        let _ = File::create_new(path);
    }
}

/// Gives up a step of the reserve; returns whether there was any left.
fn give_up_step(directory: &Path) -> io::Result<bool> {
    let system = statvfs(directory)?;
    if system.f_files > 0 && system.f_favail == 0 {
        let removed = spare_files(directory)
            .filter(|path| std::fs::remove_file(path).is_ok())
            .take(FILES_STEP);
        return Ok(removed.count() > 0);
    }
    // Without a WAL there is nothing to allocate to.
    let wal = open(directory, WAL, false).ok();
    let file = match wal {
        Some(wal) if allocated_behind_end(&wal)? < ENOUGH_FOR_WAL => Some(wal),
        // If the last spare file is still unused, something else needs the space.
        _ => File::create_new(LocalPacks::spare(&directory.join(PACKS))).ok(),
    };
    let shortened = shorten(directory)?;
    if let Some(file) = file.filter(|_| shortened) {
        allocate_behind_end(&file)?;
    }
    Ok(shortened)
}

fn shorten(directory: &Path) -> io::Result<bool> {
    let file = match open(directory, RESERVE, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    let bytes = file.metadata()?.size();
    if bytes == 0 {
        return Ok(false);
    }
    match file.set_len(bytes.saturating_sub(STEP)) {
        // A file system that never writes in place (btrfs) needs room to shorten a file, but none to remove it.
        Err(error) if is_for_want_of_space(&error) => std::fs::remove_file(directory.join(RESERVE))?,
        shortened => shortened?,
    }
    Ok(true)
}

fn is_for_want_of_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Bytes that a file can grow by without taking any from the file system.
fn allocated_behind_end(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    Ok((metadata.blocks() * BLOCK_BYTES).saturating_sub(metadata.size()))
}

/// Allocates to this file what was given up, or what other processes have left of it.
fn allocate_behind_end(file: &File) -> io::Result<()> {
    let end = file.metadata()?.size() + allocated_behind_end(file)?;
    let mut wanted = SHARE;
    while wanted >= MIB / 16 {
        match fallocate(file, FallocateFlags::KEEP_SIZE, end, wanted) {
            Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => wanted /= 2,
            // If the file system cannot allocate like that, the space given up is free for all.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => break,
            done => return Ok(done?),
        }
    }
    Ok(())
}

/// Whether not even a mebibyte can be allocated.
fn has_no_space(directory: &Path) -> bool {
    let tried = tempfile::tempfile_in(directory).and_then(|file| allocate(&file, 0, STEP));
    tried.is_err_and(|error| is_for_want_of_space(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_given_up_in_steps_and_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(!shorten(path).unwrap());
        fill(path, 0).unwrap();
        let metadata = || std::fs::metadata(path.join(RESERVE)).unwrap();
        let whole = metadata().size();
        assert!(whole >= SMALL_BYTES, "{whole}");
        assert!(metadata().blocks() * 512 >= whole, "it takes up its room");
        assert!(shorten(path).unwrap());
        assert_eq!(metadata().size(), whole - STEP);
        fill(path, u64::MAX / 2).unwrap();
        assert_eq!(metadata().size(), whole - STEP, "there is no such room");
        fill(path, 0).unwrap();
        assert_eq!(metadata().size(), whole);
        let mut steps = 0;
        while shorten(path).unwrap() {
            steps += 1;
        }
        assert_eq!(steps, whole / STEP);
    }

    #[test]
    fn given_up_space_goes_to_the_catalogs_wal_and_then_to_a_spare_pack() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::create_dir(path.join(PACKS)).unwrap();
        fill(path, 0).unwrap();
        let reserve = || std::fs::metadata(path.join(RESERVE)).unwrap().size();
        let wal = File::create(path.join(WAL)).unwrap();
        wal.set_len(100).unwrap();
        let give_up = |file: &dyn Fn() -> File| {
            let before = reserve();
            assert!(give_up_step(path).unwrap());
            assert_eq!(reserve(), before - STEP);
            allocated_behind_end(&file()).unwrap()
        };
        let of_wal = || wal.try_clone().unwrap();
        let allocated: Vec<u64> = (0..3).map(|_| give_up(&of_wal)).collect();
        assert!(
            allocated[0] >= SHARE - 4096 && allocated[2] >= ENOUGH_FOR_WAL,
            "{allocated:?}"
        );
        let spare = || File::open(LocalPacks::spare(&path.join(PACKS))).unwrap();
        assert!(give_up(&spare) >= SHARE);
        // The spare file has not been used: this time something else needed the space.
        assert!(give_up(&spare) <= STEP);
        assert_eq!(allocated_behind_end(&wal).unwrap(), allocated[2]);
        assert_eq!(wal.metadata().unwrap().size(), 100);
    }

    #[test]
    fn noise_has_the_length_asked_for() {
        let file = tempfile::tempfile().unwrap();
        write_noise(&file, 0, 3 * MIB + 5).unwrap();
        assert_eq!(file.metadata().unwrap().size(), 3 * MIB + 5);
    }
}
