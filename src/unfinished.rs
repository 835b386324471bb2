//! What is being written, under a temporary name beside its destination, and renamed when all of it is durable. So the
//! destination never has something incomplete, and nothing that exists is replaced.
//!
//! After an error it is removed. What a killed process leaves has a name that begins with a dot and ends in `.exporting`;
//! the next process that writes to the same destination removes it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::Error;

/// Suffix of the name of what is incomplete; the name begins with a dot.
const UNFINISHED: &str = ".exporting";

/// A directory that is being written. If it is dropped before [`put`](Self::put), it is removed.
#[derive(Debug)]
pub(crate) struct UnfinishedDirectory {
    path: PathBuf,
    to: PathBuf,
    /// Locked, so that another process with the same destination notices this one.
    directory: File,
    is_put: bool,
}

impl UnfinishedDirectory {
    /// Makes it. The destination must not exist, or be an empty directory.
    ///
    /// # Errors
    /// When something is there, or another process writes to the same destination.
    pub(crate) fn make(to: &Path) -> Result<Self, Error> {
        refuse_occupied(to)?;
        // The path may lead through a symbolic link, which must not be replaced.
        let to = &fs::canonicalize(to).unwrap_or_else(|_| to.to_owned());
        refuse_mount_point(to)?;
        let path = temporary(to)?;
        for first in [true, false] {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(failed("make", &path, &error)
                        .hint("The copy is written there, and renamed when it is complete"));
                }
                _ => {}
            }
            let directory = open_own(&path, OFlags::DIRECTORY)?;
            lock(&directory, &path, to)?;
            let is_empty = fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
            if is_empty {
                return Ok(Self {
                    path,
                    to: to.to_owned(),
                    directory,
                    is_put: false,
                });
            }
            if first {
                tracing::info!("Removing {}, which an earlier export left", path.display());
                fs::remove_dir_all(&path).map_err(|error| failed("remove", &path, &error))?;
            }
        }
        Err(Error::failed(format!("{} is not empty", path.display())))
    }

    /// Where it is until it is complete.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where it will be.
    pub(crate) fn destination(&self) -> &Path {
        &self.to
    }

    /// The number of its descriptor.
    pub(crate) fn descriptor(&self) -> i32 {
        self.directory.as_raw_fd()
    }

    /// Makes the copy durable, and renames it.
    ///
    /// # Errors
    /// When that fails. It is removed then.
    pub(crate) fn put(mut self) -> Result<(), Error> {
        rustix::fs::syncfs(&self.directory).map_err(|error| failed("sync", &self.path, &error.into()))?;
        // This replaces only an empty directory.
        fs::rename(&self.path, &self.to).map_err(|error| failed("make", &self.to, &error))?;
        self.is_put = true;
        sync_parent(&self.to)
    }
}

impl Drop for UnfinishedDirectory {
    fn drop(&mut self) {
        if !self.is_put
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!("{} is left: {error}", self.path.display());
        }
    }
}

/// A file that is being written. If it is dropped before [`put`](Self::put), it is removed.
#[derive(Debug)]
pub(crate) struct UnfinishedFile {
    path: PathBuf,
    /// Locked, as an [`UnfinishedDirectory`] is.
    file: File,
    is_put: bool,
}

impl UnfinishedFile {
    /// Makes it. Nothing may be at the destination.
    ///
    /// # Errors
    /// When something is there, or another process writes to the same destination.
    pub(crate) fn make(to: &Path) -> Result<Self, Error> {
        refuse_existing(to)?;
        let path = temporary(to)?;
        let file = open_own(&path, OFlags::RDWR | OFlags::CREATE)?;
        lock(&file, &path, to)?;
        let made = Self {
            path,
            file,
            is_put: false,
        };
        made.file
            .set_len(0)
            .map_err(|error| failed("write", &made.path, &error))?;
        Ok(made)
    }

    /// The file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where it is until it is complete.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it durable, and gives it its name.
    ///
    /// # Errors
    /// When that fails, or something has this name by now. It is removed then.
    pub(crate) fn put(mut self, to: &Path) -> Result<(), Error> {
        self.file
            .sync_all()
            .map_err(|error| failed("sync", &self.path, &error))?;
        match rustix::fs::renameat_with(CWD, &self.path, CWD, to, RenameFlags::NOREPLACE) {
            // Not every file system can do this.
            Err(Errno::INVAL | Errno::NOSYS) => {
                refuse_existing(to)?;
                fs::rename(&self.path, to).map_err(|error| failed("make", to, &error))?;
            }
            renamed => renamed.map_err(|error| failed("make", to, &error.into()))?,
        }
        self.is_put = true;
        sync_parent(to)
    }
}

impl Drop for UnfinishedFile {
    fn drop(&mut self) {
        if !self.is_put
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("{} is left: {error}", self.path.display());
        }
    }
}

fn refuse_existing(to: &Path) -> Result<(), Error> {
    match to.symlink_metadata() {
        Ok(_) => Err(Error::failed(format!("{} exists already", to.display()))
            .hint("Name a file that is not there yet")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("look at", to, &error)),
    }
}

fn refuse_occupied(to: &Path) -> Result<(), Error> {
    let occupied = |what: &str| {
        Err(Error::failed(format!("{} {what}", to.display())).hint("Name a directory that is not there yet"))
    };
    match fs::read_dir(to).map(|mut entries| entries.next().is_some()) {
        Ok(true) => occupied("is not empty"),
        Err(error) if error.kind() == ErrorKind::NotADirectory => occupied("is no directory"),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("read", to, &error)),
        Ok(false) | Err(_) => Ok(()),
    }
}

/// The copy cannot replace the root of a file system.
fn refuse_mount_point(to: &Path) -> Result<(), Error> {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    match (device(to), to.parent().and_then(device)) {
        (Some(own), Some(parent)) if own != parent => Err(Error::failed(format!(
            "{} is where a file system is mounted",
            to.display()
        ))
        .hint("Name a directory in it that is not there yet")),
        _ => Ok(()),
    }
}

/// The name beside the destination.
fn temporary(to: &Path) -> Result<PathBuf, Error> {
    let Some(name) = to.file_name() else {
        return Err(Error::usage(format!("{} cannot be made", to.display())));
    };
    let name: OsString = OsStr::from_bytes(&[b".", name.as_bytes(), UNFINISHED.as_bytes()].concat()).into();
    Ok(parent(to).join(name))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn sync_parent(to: &Path) -> Result<(), Error> {
    let parent = parent(to);
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(|error| failed("sync", parent, &error))
}

/// Opens what belongs to this user. Another owner could redirect what is written into it.
fn open_own(path: &Path, kind: OFlags) -> Result<File, Error> {
    let fail = |error: Errno| failed("open", path, &error.into());
    let flags = kind | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o600)).map_err(fail)?;
    if rustix::fs::fstat(&opened).map_err(fail)?.st_uid != rustix::process::geteuid().as_raw() {
        return Err(
            Error::failed(format!("{} belongs to another user", path.display()))
                .hint("The copy would be written there, and renamed when it is complete: remove that"),
        );
    }
    Ok(opened.into())
}

/// Another process may have given the file its name, or removed it, since it was opened.
fn lock(opened: &File, path: &Path, to: &Path) -> Result<(), Error> {
    let under_way = || Error::failed(format!("Another export to {} is under way", to.display()));
    match rustix::fs::flock(opened, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Err(under_way()),
        locked => locked.map_err(|error| failed("lock", path, &error.into()))?,
    }
    let there = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
    let own = rustix::fs::fstat(opened).map_err(|error| failed("look at", path, &error.into()))?;
    match there {
        Ok(there) if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino) => Ok(()),
        _ => Err(under_way()),
    }
}

/// The error of a failed action.
pub(crate) fn failed(action: &str, path: &Path, error: &io::Error) -> Error {
    let failed = Error::failed(format!("Cannot {action} {}: {error}", path.display()));
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            failed.hint("The file system is full: make room")
        }
        _ => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_destination_has_all_or_nothing() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("out");
        let unfinished = UnfinishedFile::make(&to).unwrap();
        unfinished.file().write_all(b"half").unwrap();
        assert!(
            UnfinishedFile::make(&to)
                .unwrap_err()
                .to_string()
                .contains("under way")
        );
        drop(unfinished);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        // What a killed process leaves is not continued.
        fs::write(place.path().join(".out.exporting"), b"left").unwrap();
        let unfinished = UnfinishedFile::make(&to).unwrap();
        unfinished.file().write_all(b"all").unwrap();
        unfinished.put(&to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"all");
        assert!(UnfinishedFile::make(&to).is_err());
        let unfinished = UnfinishedFile::make(&place.path().join("other")).unwrap();
        unfinished.put(&to).unwrap_err();
        assert_eq!(fs::read(&to).unwrap(), b"all");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
