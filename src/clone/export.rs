//! Copies a clone to a plain directory, on any file system: data and holes, owners (if run as root), permissions and
//! times.
//!
//! The copy is written under a temporary name ([`crate::unfinished`]), so the destination never has an incomplete copy.

use std::ffi::OsStr;
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use barmanfs_live::{Kind, NodeAttributes};
use barmanfs_pg::socket::is_socket_lock;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::OfflineClone;
use crate::error::Error;
use crate::instance::{AUTO_CONF, AUTO_CONF_MAX_BYTES, last_value};
use crate::progress::{Counted, Progress};
use crate::signals::Interruption;
use crate::unfinished::{UnfinishedDirectory, failed};

/// Files of a server that are not part of its data.
const LEFT_OUT: [&[u8]; 2] = [b"postmaster.pid", b"postmaster.opts"];

/// The result of an export.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Exported {
    pub(crate) files: u64,
    /// Bytes written, without holes.
    pub(crate) bytes: u64,
    /// Whether it has `archive_mode = off`. A clone has that unless somebody changed it.
    pub(crate) archives_nothing: bool,
}

/// Copies a clone to `to`, which must not exist yet or be an empty directory.
pub(crate) fn export(clone: &OfflineClone, to: &Path, quiet: bool) -> Result<Exported, Error> {
    let unfinished = UnfinishedDirectory::make(to)?;
    let mut copy = Copy {
        clone,
        root: unfinished.path(),
        below: unfinished.below(),
        as_root: rustix::process::geteuid().is_root(),
        progress: Progress::start(
            format!("Export of {}", clone.description.name),
            Counted::Bytes,
            quiet,
        ),
        signals: Interruption::watch(|| {})?,
        directories: Vec::new(),
        done: Exported::default(),
    };
    clone.walk(&mut |path, found| copy.take(path, found))?;
    let done = copy.finish()?;
    unfinished.put()?;
    let settings = clone
        .read_small(AUTO_CONF.as_bytes(), AUTO_CONF_MAX_BYTES)?
        .unwrap_or_default();
    Ok(Exported {
        archives_nothing: last_value(&String::from_utf8_lossy(&settings), "archive_mode").as_deref()
            == Some("off"),
        ..done
    })
}

/// A copy in progress.
struct Copy<'a> {
    clone: &'a OfflineClone,
    /// The path of the copy, for messages.
    root: &'a Path,
    /// The same directory by its descriptor: the owner of the parent directory may replace the name meanwhile.
    below: PathBuf,
    as_root: bool,
    progress: Progress,
    signals: Interruption,
    /// The created directories, each before its entries. They get their times and permissions at the end, when nothing
    /// is added to them any more.
    directories: Vec<(PathBuf, NodeAttributes)>,
    done: Exported,
}

impl Copy<'_> {
    /// Copies one entry. Returns whether to enter a directory.
    fn take(&mut self, path: &[u8], found: &NodeAttributes) -> Result<bool, Error> {
        if self.signals.requested() {
            return Err(Error::failed("Interrupted"));
        }
        let is_left_out = LEFT_OUT.contains(&path) || is_socket_lock(path);
        if is_left_out || found.kind == Kind::Socket {
            return Ok(false);
        }
        let to = self.below.join(OsStr::from_bytes(path));
        match found.kind {
            Kind::Directory => {
                let made = DirBuilder::new().mode(0o700).create(&to);
                made.map_err(|error| self.failed("make", &to, &error))?;
                self.directories.push((to, *found));
                return Ok(true);
            }
            Kind::Symlink => {
                let target = self.clone.files.readlink(found.node)?;
                let made = std::os::unix::fs::symlink(OsStr::from_bytes(&target), &to);
                made.map_err(|error| self.failed("make", &to, &error))?;
                self.dress(&to, found)?;
            }
            Kind::File => self.file(&to, found)?,
            Kind::Socket => {}
        }
        Ok(false)
    }

    fn file(&mut self, to: &Path, found: &NodeAttributes) -> Result<(), Error> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)
            .map_err(|error| self.failed("make", to, &error))?;
        let shown = self.shown(to);
        let Self {
            clone,
            progress,
            done,
            ..
        } = self;
        let copied = clone.files.copy_file(found.node, &file, &mut |bytes| {
            done.bytes += bytes;
            progress.set(done.bytes, None);
        });
        copied
            .map_err(|error| Error::from(error).context(format_args!("Cannot make {}", shown.display())))?;
        self.done.files += 1;
        self.dress(to, found)
    }

    /// Sets the owner, permissions and time that an entry has in the clone. The owner comes first, because changing it
    /// removes permissions.
    fn dress(&self, to: &Path, found: &NodeAttributes) -> Result<(), Error> {
        let fail = |error: Errno| self.failed("set owner, permissions and time of", to, &error.into());
        if self.as_root {
            let (uid, gid) = (Uid::from_raw(found.uid), Gid::from_raw(found.gid));
            rustix::fs::chownat(CWD, to, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        }
        if found.kind != Kind::Symlink {
            let mode = Mode::from_raw_mode(found.mode);
            rustix::fs::chmodat(CWD, to, mode, AtFlags::empty()).map_err(fail)?;
        }
        let time = Timespec {
            tv_sec: found.mtime.s,
            tv_nsec: found.mtime.ns.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
    }

    /// Everything is copied: sets the attributes of the directories, the deepest first.
    fn finish(self) -> Result<Exported, Error> {
        self.progress.note("syncing");
        for (path, found) in self.directories.iter().rev() {
            self.dress(path, found)?;
        }
        let root = self.clone.files.attributes(self.clone.files.root())?;
        self.dress(&self.below, &root)?;
        Ok(self.done)
    }

    fn shown(&self, to: &Path) -> PathBuf {
        self.root.join(to.strip_prefix(&self.below).unwrap_or(to))
    }

    fn failed(&self, action: &str, to: &Path, error: &io::Error) -> Error {
        failed(action, &self.shown(to), error)
    }
}
