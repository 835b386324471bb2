//! The system calls that keep the upper layer of a clone.
//!
//! They are behind a trait so that tests can use a disk that loses power.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use barmanfs_catalog::Owner;
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;

use crate::stat::{NodeId, Time};

/// Name of the journal.
pub(crate) const JOURNAL: &str = "journal";

/// Name of the journal while it is rewritten.
pub(crate) const NEW_JOURNAL: &str = "journal.new";

/// Directory of the upper files.
pub(crate) const FILES: &str = "files";

/// `statfs` type of FUSE file systems, which do not receive `syncfs`.
const FUSE: rustix::fs::FsWord = libc::FUSE_SUPER_MAGIC as _;

/// Path of a node's upper file.
pub(crate) fn file_name(id: NodeId) -> String {
    format!("{FILES}/{:016x}", id.0)
}

/// Status of an upper file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Status {
    pub(crate) size_bytes: u64,
    pub(crate) allocated_bytes: u64,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
}

/// An open file of the upper layer.
pub(crate) trait DiskFile: Debug + Send + Sync {
    /// Reads until the buffer is full or the file ends.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes. Returns fewer bytes than given when only a part fits, and an error when nothing fits.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;
    /// Cuts the file or lets it grow.
    fn set_size(&self, size_bytes: u64) -> io::Result<()>;
    /// Makes the bytes and the size durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Its size and times.
    fn status(&self) -> io::Result<Status>;
    /// fallocate(2).
    fn allocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<()>;
    /// The next byte that is data (not in a hole), or that is in a hole; `None` when there is none.
    fn seek(&self, offset: u64, data: bool) -> io::Result<Option<u64>>;
    /// Sets its modification time.
    fn set_mtime(&self, mtime: Time) -> io::Result<()>;
    /// The file itself, for a kernel that reads and writes it directly.
    fn file(&self) -> Option<io::Result<File>>;
}

/// The directory of an upper layer.
pub(crate) trait Disk: Debug + Send + Sync {
    /// Opens a file, if it exists.
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn DiskFile>>>;
    /// Creates an empty file. An existing one is emptied.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Status of a file, if it exists.
    fn status(&self, name: &str) -> io::Result<Option<Status>>;
    /// Removes a file, if it exists.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames a file over another.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Names in the directory [`FILES`].
    fn file_names(&self) -> io::Result<Vec<String>>;
    /// Makes names durable: those in [`FILES`], or those of the clone's directory.
    fn sync_names(&self, in_files: bool) -> io::Result<()>;
    /// Makes everything durable, also what other processes wrote.
    fn sync_all(&self) -> io::Result<()>;
    /// The directory's path, for messages.
    fn path(&self) -> &Path;
}

/// A directory of the operating system. All files in it get the owner of the directory, also those that a mount of
/// root creates: the repository's owner must be able to commit, serve and remove a clone.
#[derive(Debug)]
pub(crate) struct SystemDisk {
    path: PathBuf,
    directory: File,
    files: File,
    owner: Owner,
}

impl SystemDisk {
    /// Opens the directory `path`, and creates [`FILES`] in it if it is missing.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let owner = Owner::of(path)?;
        let _acting = owner.act()?;
        let files_path = path.join(FILES);
        match std::fs::create_dir(&files_path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let directory = File::open(path)?;
        let files = File::open(files_path)?;
        directory.sync_all()?;
        Ok(Self {
            path: path.to_owned(),
            directory,
            files,
            owner,
        })
    }

    fn open_with(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let _acting = self.owner.act()?;
        let flags = flags | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(File::from(file))
    }
}

/// Turns "not found" into `None`.
fn if_there<T>(result: Result<T, impl Into<io::Error>>) -> io::Result<Option<T>> {
    match result.map_err(Into::into) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => Ok(Some(result?)),
    }
}

impl Disk for SystemDisk {
    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let file = if_there(self.open_with(name, OFlags::empty()))?;
        Ok(file.map(|file| Arc::new(SystemFile(file)) as Arc<dyn DiskFile>))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.open_with(name, OFlags::CREATE | OFlags::TRUNC)?;
        Ok(Arc::new(SystemFile(file)))
    }

    fn status(&self, name: &str) -> io::Result<Option<Status>> {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        Ok(if_there(rustix::fs::statat(&self.directory, name, flags))?.map(|stat| status(&stat)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let _acting = self.owner.act()?;
        let removed = rustix::fs::unlinkat(&self.directory, name, rustix::fs::AtFlags::empty());
        if_there(removed).map(|_| ())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let _acting = self.owner.act()?;
        Ok(rustix::fs::renameat(&self.directory, from, &self.directory, to)?)
    }

    fn file_names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.path.join(FILES))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn sync_names(&self, in_files: bool) -> io::Result<()> {
        if in_files {
            self.files.sync_all()
        } else {
            self.directory.sync_all()
        }
    }

    fn sync_all(&self) -> io::Result<()> {
        let kind = rustix::fs::fstatfs(&self.directory)?.f_type;
        if kind == FUSE {
            let sync = |name: &str| match if_there(self.open_with(name, OFlags::empty()))? {
                Some(file) => file.sync_all(),
                None => Ok(()),
            };
            for name in self.file_names()? {
                sync(&format!("{FILES}/{name}"))?;
            }
            self.files.sync_all()?;
            sync(JOURNAL)?;
            return self.directory.sync_all();
        }
        // One call for all files. It also reports earlier failures to write back.
        Ok(rustix::fs::syncfs(&self.directory)?)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

fn status(stat: &rustix::fs::Stat) -> Status {
    /// The unit of `st_blocks`, whatever the file system's block size is.
    const STAT_BLOCK_BYTES: u64 = 512;
    let time = |s, ns| Time {
        s,
        ns: u32::try_from(ns).unwrap_or(0),
    };
    Status {
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        allocated_bytes: u64::try_from(stat.st_blocks).unwrap_or(0) * STAT_BLOCK_BYTES,
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

#[derive(Debug)]
struct SystemFile(File);

impl DiskFile for SystemFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match self.0.write_at(rest, offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&self.0, size_bytes)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn status(&self) -> io::Result<Status> {
        Ok(status(&rustix::fs::fstat(&self.0)?))
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, flags, offset, length)?)
    }

    fn seek(&self, offset: u64, data: bool) -> io::Result<Option<u64>> {
        let to = if data {
            SeekFrom::Data(offset)
        } else {
            SeekFrom::Hole(offset)
        };
        match rustix::fs::seek(&self.0, to) {
            Err(Errno::NXIO) => Ok(None),
            found => Ok(Some(found?)),
        }
    }

    fn set_mtime(&self, mtime: Time) -> io::Result<()> {
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: mtime.s,
                tv_nsec: mtime.ns.into(),
            },
        };
        Ok(rustix::fs::futimens(&self.0, &times)?)
    }

    fn file(&self) -> Option<io::Result<File>> {
        Some(self.0.try_clone())
    }
}
