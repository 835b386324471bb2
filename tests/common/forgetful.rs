//! A disk that loses power: unflushed data is lost then, or a part of it, as in a drive's own cache.
//!
//! It is a file of a small FUSE file system in this process, which separates flushed blocks from blocks that were only
//! written. A loop device makes a disk of the file, with ext4 on it: the file system, its journal and the kernel are
//! real, only the disk is not. Needs root.

use super::process::{run, until};
use super::random::Random;
use super::user::give;
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, TimeOrNow, WriteFlags,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Size of the disk; only written blocks take memory.
const SIZE_BYTES: u64 = 2 << 30;

/// The unit that is written completely or not at all.
const BLOCK_BYTES: usize = 4096;

/// ext4 options with the least protection for programs that do not sync: names and sizes may be on disk before the
/// bytes are, and no file is flushed because it replaces another one.
const FORGETFUL: &str = "loop,nodiscard,data=writeback,noauto_da_alloc,commit=1";

/// The only file.
const IMAGE: &str = "image";

const IMAGE_INODE: INodeNo = INodeNo(2);

const TTL: Duration = Duration::from_secs(3600);

type Block = Box<[u8; BLOCK_BYTES]>;

/// The blocks on a disk, and in its cache.
#[derive(Debug, Default)]
struct Blocks {
    flushed: HashMap<u64, Block>,
    written: HashMap<u64, Block>,
    has_no_power: bool,
}

impl Blocks {
    fn block(&self, number: u64) -> Option<&Block> {
        self.written.get(&number).or_else(|| self.flushed.get(&number))
    }

    fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size);
        while bytes.len() < size {
            let (number, within) = place(offset + bytes.len() as u64);
            let length = (BLOCK_BYTES - within).min(size - bytes.len());
            match self.block(number) {
                Some(block) => bytes.extend_from_slice(&block[within..within + length]),
                None => bytes.resize(bytes.len() + length, 0),
            }
        }
        bytes
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (number, within) = place(offset + done as u64);
            let length = (BLOCK_BYTES - within).min(bytes.len() - done);
            let mut block = self
                .block(number)
                .cloned()
                .unwrap_or_else(|| Box::new([0; BLOCK_BYTES]));
            block[within..within + length].copy_from_slice(&bytes[done..done + length]);
            self.written.insert(number, block);
            done += length;
        }
    }

    fn flush(&mut self) {
        self.flushed.extend(self.written.drain());
    }
}

/// The block of an offset, and the offset in the block.
fn place(offset: u64) -> (u64, usize) {
    let block_bytes = BLOCK_BYTES as u64;
    (offset / block_bytes, (offset % block_bytes) as usize)
}

/// The file system that has the image.
struct Cache(Arc<Mutex<Blocks>>);

impl Cache {
    /// Does something that only works with power.
    fn powered<T>(&self, work: impl FnOnce(&mut Blocks) -> T) -> Result<T, Errno> {
        let mut blocks = lock(&self.0);
        if blocks.has_no_power {
            return Err(Errno::EIO);
        }
        Ok(work(&mut blocks))
    }
}

fn lock(blocks: &Mutex<Blocks>) -> MutexGuard<'_, Blocks> {
    blocks.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attributes(number: INodeNo) -> FileAttr {
    let is_image = number == IMAGE_INODE;
    let then: SystemTime = UNIX_EPOCH;
    FileAttr {
        ino: number,
        size: if is_image { SIZE_BYTES } else { 0 },
        blocks: 0,
        atime: then,
        mtime: then,
        ctime: then,
        crtime: then,
        kind: match is_image {
            true => FileType::RegularFile,
            false => FileType::Directory,
        },
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES as u32,
        flags: 0,
    }
}

impl Filesystem for Cache {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == IMAGE {
            reply.entry(&TTL, &attributes(IMAGE_INODE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attributes(number));
    }

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&TTL, &attributes(number));
    }

    /// Without the page cache, which would keep data without power.
    fn open(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = u64::from(size).min(SIZE_BYTES.saturating_sub(offset));
        match self.powered(|blocks| blocks.read(offset, size as usize)) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.powered(|blocks| blocks.write(offset, data)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        match self.powered(Blocks::flush) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }
}

/// The disk, its file system and its power.
pub(crate) struct ForgetfulDisk {
    blocks: Arc<Mutex<Blocks>>,
    image: PathBuf,
    point: PathBuf,
    session: Option<BackgroundSession>,
}

impl ForgetfulDisk {
    /// Whether this host supports it: there may be no loop devices in a container. Prints a message if not.
    pub(crate) fn is_possible() -> bool {
        let possible = Path::new("/dev/loop-control").exists();
        if !possible {
            eprintln!("There are no loop devices here: left out");
        }
        possible
    }

    /// Mounts an empty file system at `point`, which belongs to the database user. The image appears in `directory`.
    pub(crate) fn mount(directory: &Path, point: &Path) -> Self {
        let blocks: Arc<Mutex<Blocks>> = Arc::default();
        let cache = Cache(Arc::clone(&blocks));
        let session =
            fuser::spawn_mount(cache, directory, &Config::default()).expect("Cannot mount the image");
        let disk = Self {
            blocks,
            image: directory.join(IMAGE),
            point: point.to_owned(),
            session: Some(session),
        };
        let mut mkfs = Command::new("mkfs.ext4");
        run(mkfs.args(["-q", "-F", "-E", "nodiscard"]).arg(&disk.image)).ok();
        disk.attach();
        give(point);
        std::fs::remove_dir(point.join("lost+found")).expect("ext4 makes it");
        run(Command::new("sync").arg("-f").arg(point)).ok();
        disk
    }

    fn attach(&self) {
        run(Command::new("mount")
            .args(["-o", FORGETFUL])
            .args([&self.image, &self.point]))
        .ok();
    }

    /// From now on nothing works. None of the unflushed blocks are left, or all, or some. Returns how many blocks were
    /// lost.
    pub(crate) fn lose_power(&self, random: &mut Random) -> usize {
        let mut blocks = lock(&self.blocks);
        blocks.has_no_power = true;
        let kept_percent = random.one(&[0, 50, 95, 100]);
        let mut written: Vec<_> = blocks.written.drain().collect();
        written.sort_by_key(|(number, _)| *number);
        let before = written.len();
        written.retain(|_| random.below(100) < kept_percent);
        let lost = before - written.len();
        blocks.flushed.extend(written);
        lost
    }

    /// Power is back, and the file system is mounted again. No process may use it any more.
    pub(crate) fn restore_power(&self) {
        self.detach();
        lock(&self.blocks).has_no_power = false;
        self.attach();
    }

    fn detach(&self) {
        let mut umount = Command::new("umount");
        umount.arg(&self.point);
        until("the disk is not used any more", || {
            run(&mut umount).code() == Some(0)
        });
    }
}

impl Drop for ForgetfulDisk {
    fn drop(&mut self) {
        // A process that still uses the file system finds no disk; the loop device is released with its last user.
        lock(&self.blocks).has_no_power = true;
        let _ = Command::new("umount").arg("-l").arg(&self.point).status();
        let directory = self.image.parent().expect("the image is in a directory");
        let _ = Command::new("umount").arg("-l").arg(directory).status();
        // The serving thread ends when the kernel has released everything.
        drop(self.session.take());
    }
}
