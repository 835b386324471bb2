//! The file with the blocks of one pack.
//!
//! A header with the size of the pack, then a table with eight bytes for each block, then the blocks, each in its place. The table
//! has a part of the block's BLAKE3, and zero for a block that is not there. A block is written first, and its entry after it. What a
//! crash makes of that does not matter: an entry that does not go with its block is no entry.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use barmanfs_store::PackId;
use rustix::fs::OFlags;

use crate::bucket::OBJECT_MAX_BYTES;

/// Size of a block.
pub(super) const BLOCK_BYTES: u64 = 256 * 1024;

const MAGIC: &[u8; 8] = b"blocks\x01\n";

/// The header and the table.
const HEAD_BYTES: u64 = 8192;
const TABLE_AT: u64 = 4096;
const ENTRY_BYTES: u64 = 8;

/// The table has room for the largest object.
const BLOCKS_MAX: u64 = OBJECT_MAX_BYTES / BLOCK_BYTES;
const _: () = assert!(TABLE_AT + BLOCKS_MAX * ENTRY_BYTES <= HEAD_BYTES);

/// A used file gets the time at most this often.
const TOUCHED_EVERY_SECONDS: u64 = 60;

/// Begins the names of files that are being filled.
pub(super) const TEMPORARY: &str = ".tmp-";

/// The blocks of a pack that are here.
#[derive(Debug)]
pub(super) struct BlockFile {
    file: File,
    object_bytes: u64,
    touched: AtomicU64,
}

fn path_of(directory: &Path, id: PackId) -> PathBuf {
    let name = id.to_string();
    // The last digits: packs of a stream have the same first ones.
    let bucket = name.get(name.len() - 2..).unwrap_or_default();
    directory.join(bucket).join(&name)
}

/// Opens for reading and writing: no link, and nothing that has another name.
fn open(path: &Path, create: bool) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(create)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() > 1 {
        return Err(io::Error::other("it is no file of the cache"));
    }
    if create {
        give_to_owner(&file, path.parent())?;
    }
    Ok(file)
}

/// What root makes in the directory of another user belongs to that user.
pub(super) fn give_to_owner(file: &File, directory: Option<&Path>) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(directory.unwrap_or(Path::new(".")))?;
    let made = file.metadata()?;
    match (made.uid(), made.gid()) == (owner.uid(), owner.gid()) {
        true => Ok(()),
        false => std::os::unix::fs::fchown(file, Some(owner.uid()), Some(owner.gid())),
    }
}

/// Makes the directory of a file, for the owner of the one above it.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(above) = directory.parent() {
                make_directory(above)?;
            }
            make_directory(directory)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => give_to_owner(&File::open(directory)?, directory.parent()),
    }
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    // Zero is for a block that is not there.
    if sum == [0; 8] {
        sum[0] = 1;
    }
    sum
}

impl BlockFile {
    /// The file of a pack; `None` if there is none that can be used.
    pub(super) fn open(directory: &Path, id: PackId) -> Option<Self> {
        let file = open(&path_of(directory, id), false).ok()?;
        let mut head = [0; 16];
        file.read_exact_at(&mut head, 0).ok()?;
        let (magic, size) = head.split_at(8);
        let object_bytes = u64::from_le_bytes(size.try_into().ok()?);
        let is_one = magic == MAGIC && object_bytes > 0 && object_bytes <= OBJECT_MAX_BYTES;
        is_one.then_some(Self {
            file,
            object_bytes,
            touched: AtomicU64::new(0),
        })
    }

    /// Makes the file of a pack. Another process may do that at the same moment.
    pub(super) fn create(directory: &Path, id: PackId, object_bytes: u64) -> io::Result<Self> {
        let path = path_of(directory, id);
        if let Some(parent) = path.parent() {
            make_directory(parent)?;
        }
        let file = match open(&path, true) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open(&path, false)?,
            opened => opened?,
        };
        write_head(&file, object_bytes)?;
        Ok(Self {
            file,
            object_bytes,
            touched: AtomicU64::new(0),
        })
    }

    /// Removes the file of a pack. What cannot be removed is evicted some day.
    pub(super) fn remove(directory: &Path, id: PackId) {
        let path = path_of(directory, id);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!("Cannot remove {}: {error}", path.display());
        }
    }

    pub(super) fn object_bytes(&self) -> u64 {
        self.object_bytes
    }

    /// Whether the file has not been removed.
    pub(super) fn is_there(&self) -> bool {
        self.file.metadata().is_ok_and(|found| found.nlink() > 0)
    }

    /// Whether the block was written, as far as the table says.
    pub(super) fn has(&self, block: u64) -> bool {
        self.entry(block).is_some()
    }

    fn entry(&self, block: u64) -> Option<[u8; 8]> {
        if block >= self.object_bytes.div_ceil(BLOCK_BYTES) {
            return None;
        }
        let mut entry = [0; 8];
        self.file
            .read_exact_at(&mut entry, TABLE_AT + block * ENTRY_BYTES)
            .ok()?;
        (entry != [0; 8]).then_some(entry)
    }

    /// A block; `None` if it is not there, or not what was written.
    pub(super) fn read(&self, block: u64) -> Option<Vec<u8>> {
        let entry = self.entry(block)?;
        let bytes = BLOCK_BYTES.min(self.object_bytes - block * BLOCK_BYTES);
        let mut buffer = vec![0; usize::try_from(bytes).ok()?];
        let read = self
            .file
            .read_exact_at(&mut buffer, HEAD_BYTES + block * BLOCK_BYTES);
        if read.is_err() || checksum(&buffer) != entry {
            tracing::debug!("A block in the cache is damaged, and is fetched again");
            let _again_later = self.file.write_all_at(&[0; 8], TABLE_AT + block * ENTRY_BYTES);
            return None;
        }
        self.touch();
        Some(buffer)
    }

    pub(super) fn write(&self, block: u64, bytes: &[u8]) -> io::Result<()> {
        write_block(&self.file, block, bytes)
    }

    /// What was used last is evicted last.
    fn touch(&self) {
        let now = SystemTime::now();
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let last = self.touched.load(Ordering::Relaxed);
        if seconds.abs_diff(last) >= TOUCHED_EVERY_SECONDS {
            self.touched.store(seconds, Ordering::Relaxed);
            let _used_anyway = self.file.set_modified(now);
        }
    }
}

fn write_head(file: &File, object_bytes: u64) -> io::Result<()> {
    if object_bytes > OBJECT_MAX_BYTES {
        return Err(io::Error::other("the object is too large"));
    }
    let mut head = [0; 16];
    let (magic, size) = head.split_at_mut(8);
    magic.copy_from_slice(MAGIC);
    size.copy_from_slice(&object_bytes.to_le_bytes());
    file.write_all_at(&head, 0)
}

fn write_block(file: &File, block: u64, bytes: &[u8]) -> io::Result<()> {
    if block >= BLOCKS_MAX {
        return Err(io::Error::other("the object is too large"));
    }
    file.write_all_at(bytes, HEAD_BYTES + block * BLOCK_BYTES)?;
    file.write_all_at(&checksum(bytes), TABLE_AT + block * ENTRY_BYTES)
}

/// The file of a pack that is being put. It gets its name when the pack is there.
#[derive(Debug)]
pub(super) struct Filling {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    block: u64,
    rest: Vec<u8>,
    is_named: bool,
}

impl Filling {
    /// Begins a file; `None` if that is not possible.
    pub(super) fn begin(directory: &Path, id: PackId) -> Option<Self> {
        let begin = || -> io::Result<Self> {
            let path = path_of(directory, id);
            let temporary = path.with_file_name(format!("{TEMPORARY}{id}"));
            if let Some(parent) = path.parent() {
                make_directory(parent)?;
            }
            let file = open(&temporary, true)?;
            file.lock()?;
            Ok(Self {
                file,
                temporary,
                path,
                block: 0,
                rest: Vec::new(),
                is_named: false,
            })
        };
        begin()
            .inspect_err(|error| {
                tracing::debug!("What is put is not kept in {}: {error}", directory.display());
            })
            .ok()
    }

    /// Adds bytes; `false` if there is no room for them.
    pub(super) fn write(
        &mut self,
        bytes: &[u8],
        charge: &mut dyn FnMut(u64) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let room = BLOCK_BYTES as usize - self.rest.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.rest.extend_from_slice(now);
            bytes = later;
            if self.rest.len() as u64 == BLOCK_BYTES {
                if !charge(BLOCK_BYTES)? {
                    return Ok(false);
                }
                self.flush()?;
            }
        }
        Ok(true)
    }

    fn flush(&mut self) -> io::Result<()> {
        write_block(&self.file, self.block, &self.rest)?;
        self.block += 1;
        self.rest.clear();
        Ok(())
    }

    /// The pack is there: its blocks count. The last, short one comes on top of what was charged.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let object_bytes = self.block * BLOCK_BYTES + self.rest.len() as u64;
        if !self.rest.is_empty() {
            self.flush()?;
        }
        write_head(&self.file, object_bytes)?;
        fs::rename(&self.temporary, &self.path)?;
        self.is_named = true;
        Ok(())
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if !self.is_named {
            let _left_for_eviction = fs::remove_file(&self.temporary);
        }
    }
}
