//! A directory that is written to, by its descriptor. Its entries are reached by name alone, and a symbolic link is never
//! followed: a user who may write to the directory could otherwise lead a restore of root's elsewhere.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use barmanfs_fs::entry::Stat;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::error::Error;

/// The mode of what is being written, until it is complete.
const PRIVATE_FILE: Mode = Mode::from_raw_mode(0o600);
const PRIVATE_DIRECTORY: Mode = Mode::from_raw_mode(0o700);

/// An opened directory.
#[derive(Debug, Clone)]
pub(super) struct Place {
    fd: Arc<OwnedFd>,
    /// For messages.
    path: PathBuf,
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) kind: FileType,
    pub(super) size_bytes: u64,
    /// Bytes that it takes on disk.
    pub(super) disk_bytes: u64,
    /// Other names of a file have its content, too.
    pub(super) is_shared: bool,
}

impl Place {
    /// Opens a directory by its path. Links on the way count: the path is what a person asked for.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed("open", path, error))?;
        Ok(Self {
            fd: Arc::new(fd),
            path: path.to_owned(),
        })
    }

    /// The path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of an entry, for messages.
    pub(super) fn path_of(&self, name: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(name))
    }

    /// The error of a failed action on an entry.
    pub(super) fn failed(&self, action: &str, name: &[u8], error: impl Into<io::Error>) -> Error {
        failed(action, &self.path_of(name), error)
    }

    /// An entry, not what a link leads to; `None` if it does not exist.
    pub(super) fn find(&self, name: &[u8]) -> Result<Option<Found>, Error> {
        let stat = match rustix::fs::statat(&*self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            stat => stat.map_err(|error| self.failed("look at", name, error))?,
        };
        Ok(Some(Found {
            kind: FileType::from_raw_mode(stat.st_mode),
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            disk_bytes: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
            is_shared: stat.st_nlink > 1,
        }))
    }

    /// Whether the entry of this name is an opened file.
    pub(super) fn has(&self, name: &[u8], file: &File) -> Result<bool, Error> {
        let fail = |error| self.failed("look at", name, error);
        let there = match rustix::fs::statat(&*self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            stat => stat.map_err(fail)?,
        };
        let opened = rustix::fs::fstat(file).map_err(fail)?;
        Ok((there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino))
    }

    /// A directory in this one.
    pub(super) fn enter(&self, name: &[u8]) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*self.fd, name, flags, Mode::empty())
            .map_err(|error| self.failed("open", name, error))?;
        Ok(Self {
            fd: Arc::new(fd),
            path: self.path_of(name),
        })
    }

    /// A directory in this one, on which no other file system is mounted. Before Linux 5.6 that is not noticed.
    fn enter_same_mount(&self, name: &[u8]) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat2(&*self.fd, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
            Ok(fd) => Ok(Self {
                fd: Arc::new(fd),
                path: self.path_of(name),
            }),
            // Container runtimes may refuse what they do not know.
            Err(Errno::NOSYS | Errno::PERM) => self.enter(name),
            Err(error) => Err(self.failed("open", name, error)),
        }
    }

    /// A directory in this one, which is made if it does not exist.
    pub(super) fn make(&self, name: &[u8]) -> Result<Self, Error> {
        match rustix::fs::mkdirat(&*self.fd, name, PRIVATE_DIRECTORY) {
            Ok(()) | Err(Errno::EXIST) => self.enter(name),
            Err(error) => Err(self.failed("make", name, error)),
        }
    }

    /// The directory at these names below this one.
    pub(super) fn descend(&self, names: &[Vec<u8>]) -> Result<Self, Error> {
        let mut place = self.clone();
        for name in names {
            place = place.enter(name)?;
        }
        Ok(place)
    }

    /// The names in it, in no order. They are read as they are needed: a directory may have very many.
    pub(super) fn names(&self) -> Result<impl Iterator<Item = Result<CString, Error>> + use<'_>, Error> {
        let read = Dir::read_from(&*self.fd).map_err(|error| failed("list", &self.path, error))?;
        Ok(read.filter_map(|entry| match entry {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => None,
            Ok(entry) => Some(Ok(entry.file_name().to_owned())),
            Err(error) => Some(Err(failed("list", &self.path, error))),
        }))
    }

    /// Opens a regular file to compare and overwrite it; `None` if it does not exist.
    pub(super) fn open_file(&self, name: &[u8], is_read_only: bool) -> Result<Option<File>, Error> {
        let access = if is_read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        // A pipe would wait for a writer.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&*self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::NOENT) => Ok(None),
            // Its owner has taken the right to write, and can take it back.
            Err(Errno::ACCESS) if !is_read_only => {
                self.unlink(name)?;
                Ok(None)
            }
            Err(error) => Err(self.failed("open", name, error)),
        }
    }

    /// Makes a file that does not exist.
    pub(super) fn make_file(&self, name: &[u8]) -> Result<File, Error> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*self.fd, name, flags, PRIVATE_FILE)
            .map_err(|error| self.failed("make", name, error))?;
        Ok(fd.into())
    }

    /// Makes a symbolic link.
    pub(super) fn make_link(&self, name: &[u8], target: &[u8]) -> Result<(), Error> {
        rustix::fs::symlinkat(target, &*self.fd, name).map_err(|error| self.failed("make", name, error))
    }

    /// Gives a file of another place a second name here.
    pub(super) fn link_from(&self, other: &Self, name: &[u8]) -> Result<(), Error> {
        rustix::fs::linkat(&*other.fd, name, &*self.fd, name, AtFlags::empty())
            .map_err(|error| self.failed("make", name, error))
    }

    /// Where a symbolic link leads.
    pub(super) fn link_target(&self, name: &[u8]) -> Result<Vec<u8>, Error> {
        let target = rustix::fs::readlinkat(&*self.fd, name, Vec::new())
            .map_err(|error| self.failed("read", name, error))?;
        Ok(target.into_bytes())
    }

    /// Gives an entry another name, in this directory.
    pub(super) fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), Error> {
        rustix::fs::renameat(&*self.fd, from, &*self.fd, to)
            .map_err(|error| self.failed("rename", from, error))
    }

    /// Removes a file or a link; nothing if it does not exist.
    pub(super) fn unlink(&self, name: &[u8]) -> Result<(), Error> {
        match rustix::fs::unlinkat(&*self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed("remove", name, error)),
        }
    }

    /// Removes an entry with all that is in it. What a link leads to stays.
    pub(super) fn remove(&self, name: &[u8], kind: FileType) -> Result<(), Error> {
        if kind != FileType::Directory {
            return self.unlink(name);
        }
        let place = self.enter_same_mount(name)?;
        for entry in place.names()? {
            let entry = entry?;
            if let Some(found) = place.find(entry.as_bytes())? {
                place.remove(entry.as_bytes(), found.kind)?;
            }
        }
        rustix::fs::unlinkat(&*self.fd, name, AtFlags::REMOVEDIR)
            .map_err(|error| self.failed("remove", name, error))
    }

    /// Sets the owner and the time of a symbolic link.
    pub(super) fn dress_link(&self, name: &[u8], stat: &Stat) -> Result<(), Error> {
        let fail = |error| self.failed("set owner and time of", name, error);
        if is_root() {
            let (uid, gid) = owner(stat);
            rustix::fs::chownat(&*self.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(fail)?;
        }
        rustix::fs::utimensat(&*self.fd, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
    }

    /// Sets owner, permissions and time of this directory.
    pub(super) fn dress(&self, stat: &Stat) -> Result<(), Error> {
        dress(&*self.fd, stat)
            .map_err(|error| failed("set owner, permissions and time of", &self.path, error))
    }

    /// Makes the names in this directory durable.
    pub(super) fn sync(&self) -> Result<(), Error> {
        rustix::fs::fsync(&*self.fd).map_err(|error| failed("sync", &self.path, error))
    }

    /// Makes everything in its file system durable.
    pub(super) fn sync_file_system(&self) -> Result<(), Error> {
        rustix::fs::syncfs(&*self.fd).map_err(|error| failed("sync the file system of", &self.path, error))
    }

    /// The number of its file system.
    pub(super) fn device(&self) -> Result<u64, Error> {
        let stat = rustix::fs::fstat(&*self.fd).map_err(|error| failed("look at", &self.path, error))?;
        Ok(stat.st_dev)
    }

    /// Free space for this user in its file system, and the number of that.
    pub(super) fn space(&self) -> Result<(u64, u64), Error> {
        let space = rustix::fs::fstatvfs(&*self.fd).map_err(|error| failed("look at", &self.path, error))?;
        let stat = rustix::fs::fstat(&*self.fd).map_err(|error| failed("look at", &self.path, error))?;
        let blocks = if is_root() { space.f_bfree } else { space.f_bavail };
        Ok((blocks.saturating_mul(space.f_frsize), stat.st_dev))
    }
}

/// Sets owner, permissions and time. The owner comes first, because changing it removes permissions.
pub(super) fn dress(file: impl AsFd, stat: &Stat) -> rustix::io::Result<()> {
    if is_root() {
        let (uid, gid) = owner(stat);
        rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(stat.mode))?;
    rustix::fs::futimens(&file, &times(stat))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid))
}

fn times(stat: &Stat) -> Timestamps {
    let time = Timespec {
        tv_sec: stat.mtime_s,
        tv_nsec: stat.mtime_ns.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// The error of a failed action.
pub(super) fn failed(action: &str, path: &Path, error: impl Into<io::Error>) -> Error {
    let error = error.into();
    let failed = Error::failed(format!("Cannot {action} {}: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            failed.hint("The file system is full: make room")
        }
        _ => failed,
    }
}
