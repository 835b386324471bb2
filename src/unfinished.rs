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

    /// The same directory by its descriptor: the owner of the directory above may replace the name meanwhile. What is in it is
    /// out of reach for others, since it belongs to this user.
    pub(crate) fn below(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/.", self.directory.as_raw_fd()))
    }

    /// An error of something [`below`](Self::below), with the path that a person knows.
    pub(crate) fn named(&self, error: Error) -> Error {
        let below = self.below();
        error.with_name(&below.to_string_lossy(), &self.path.to_string_lossy())
    }

    /// Gives the directory to another user, when all is in it.
    ///
    /// # Errors
    /// When that fails.
    pub(crate) fn give(&self, (uid, gid): (u32, u32)) -> Result<(), Error> {
        std::os::unix::fs::fchown(&self.directory, Some(uid), Some(gid))
            .map_err(|error| failed("set the owner of", &self.path, &error))
    }

    /// Makes the copy durable, and renames it.
    ///
    /// # Errors
    /// When that fails. It is removed then.
    pub(crate) fn put(self) -> Result<(), Error> {
        Self::put_all(vec![self])
    }

    /// The same of several ones that belong together, in this order: all of them or none.
    ///
    /// # Errors
    /// When one fails. All are removed then.
    pub(crate) fn put_all(mut all: Vec<Self>) -> Result<(), Error> {
        for one in &all {
            rustix::fs::syncfs(&one.directory).map_err(|error| failed("sync", &one.path, &error.into()))?;
        }
        for one in &mut all {
            // This replaces only an empty directory.
            if let Err(error) = fs::rename(&one.path, &one.to) {
                let error = failed("make", &one.to, &error);
                all.iter_mut().for_each(Self::take_back);
                return Err(error);
            }
            one.is_put = true;
        }
        all.iter().try_for_each(|one| sync_parent(&one.to))
    }

    /// Gives it its temporary name again, so that it is removed.
    fn take_back(&mut self) {
        if self.is_put && fs::rename(&self.to, &self.path).is_ok() {
            self.is_put = false;
        }
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
    let found = rustix::fs::fstat(&opened).map_err(fail)?;
    // Another name may be that of a file elsewhere, which must not be overwritten.
    if !kind.contains(OFlags::DIRECTORY) && found.st_nlink != 1 {
        return Err(Error::failed(format!("{} has other names", path.display()))
            .hint("The copy would be written there, and renamed when it is complete: remove that"));
    }
    if found.st_uid != rustix::process::geteuid().as_raw() {
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
        // Nor is a file overwritten that has another name elsewhere.
        let elsewhere = place.path().join("elsewhere");
        fs::write(&elsewhere, b"theirs").unwrap();
        fs::hard_link(&elsewhere, place.path().join(".new.exporting")).unwrap();
        let error = UnfinishedFile::make(&place.path().join("new")).unwrap_err();
        assert!(error.to_string().contains("other names"), "{error}");
        assert_eq!(fs::read(&elsewhere).unwrap(), b"theirs");
        fs::remove_file(elsewhere).unwrap();
        fs::remove_file(place.path().join(".new.exporting")).unwrap();
        let unfinished = UnfinishedFile::make(&place.path().join("other")).unwrap();
        unfinished.put(&to).unwrap_err();
        assert_eq!(fs::read(&to).unwrap(), b"all");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
    /// The owner of the directory above puts something else in the place of what is written.
    #[test]
    fn what_is_written_goes_into_the_directory_that_was_made() {
        let place = tempfile::tempdir().unwrap();
        let theirs = place.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        let unfinished = UnfinishedDirectory::make(&place.path().join("out")).unwrap();
        let moved = place.path().join("moved");
        fs::rename(unfinished.path(), &moved).unwrap();
        std::os::unix::fs::symlink(&theirs, unfinished.path()).unwrap();
        fs::write(unfinished.below().join("file"), b"x").unwrap();
        assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0);
        assert!(moved.join("file").exists());
        let error = unfinished.named(failed(
            "make",
            &unfinished.below().join("a"),
            &ErrorKind::NotFound.into(),
        ));
        assert!(error.to_string().contains(".out.exporting/a"), "{error}");
        fs::remove_file(unfinished.path()).unwrap();
        fs::rename(moved, unfinished.path()).unwrap();
    }

    #[test]
    fn directories_that_belong_together_are_put_together() {
        let place = tempfile::tempdir().unwrap();
        let make = |name: &str| UnfinishedDirectory::make(&place.path().join(name)).unwrap();
        let names = || {
            let mut names: Vec<_> = fs::read_dir(place.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let both = vec![make("space"), make("data")];
        // Something has come meanwhile.
        fs::create_dir_all(place.path().join("data/x")).unwrap();
        UnfinishedDirectory::put_all(both).unwrap_err();
        assert_eq!(names(), ["data"]);
        fs::remove_dir_all(place.path().join("data")).unwrap();
        UnfinishedDirectory::put_all(vec![make("space"), make("data")]).unwrap();
        assert_eq!(names(), ["data", "space"]);
    }
}
