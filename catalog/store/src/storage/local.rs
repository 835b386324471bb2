//! Packs as files in a local directory.
//!
//! `packs/ab/abcd…` is a complete pack, `packs/tmp-….partial` one being written, on which its writer holds a lock. A
//! name without `.partial` appears by a rename after the file was synced, and is acknowledged only once the directory
//! is synced too: a file with a final name is a whole pack.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use lru::LruCache;
use rustix::fs::{Advice, OFlags, fadvise};

use crate::error::{Error, Result};
use crate::id::PackId;
use crate::layout::PACK_HEADER_BYTES;
use crate::pack_header::id_in_header;
use crate::seal::Keys;
use crate::sync::lock;

use super::regular::NONBLOCK;
use super::{Listed, PackStorage, PackUpload, Part, PartMark, open_regular};

/// Pack files kept open for reading: a restore reads from many at once, and opening a file costs more than a read. A
/// quarter of the usual limit of 1024 files per process.
const OPEN_PACKS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Frames are collected into writes of this size: most frames are a few KiB.
const WRITE_BUFFER_BYTES: usize = 1024 * 1024;

const TEMPORARY_PREFIX: &str = "tmp-";
const TEMPORARY_SUFFIX: &str = ".partial";

/// A file with space allocated to it, into which the next pack is written; see [`LocalPacks::spare`].
const SPARE: &str = "tmp-spare.partial";

/// Packs in one directory of a local file system.
#[derive(Debug)]
pub struct LocalPacks {
    directory: PathBuf,
    open: Mutex<LruCache<PackId, Arc<File>>>,
}

impl LocalPacks {
    /// Creates the directory, with the 256 directories that packs are spread over, all durable. An existing directory
    /// is completed.
    ///
    /// # Errors
    /// When something cannot be created or synced.
    pub fn create(directory: &Path) -> Result<Self> {
        create_directory(directory)?;
        for first in 0..=u8::MAX {
            create_directory(&directory.join(format!("{first:02x}")))?;
        }
        sync_directory(directory)?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent)?;
        }
        Self::open(directory)
    }

    /// Opens a directory of packs.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn open(directory: &Path) -> Result<Self> {
        let metadata = fs::metadata(directory).map_err(|source| Error::io("open", directory, source))?;
        if !metadata.is_dir() {
            return Err(Error::io("open", directory, io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self {
            directory: directory.to_path_buf(),
            open: Mutex::new(LruCache::new(OPEN_PACKS)),
        })
    }

    /// Where a directory of packs may have a file with space allocated to it. The next pack is written into this file:
    /// on a full file system, other programs cannot take that space first.
    #[must_use]
    pub fn spare(directory: &Path) -> PathBuf {
        directory.join(SPARE)
    }

    /// Creates a pack's file under its temporary name, and locks it. The lock is held until the file is closed, at the
    /// latest when this process ends. It distinguishes a living writer's file from an abandoned one.
    fn create_locked(temporary: &Path) -> Result<File> {
        let file = OpenOptions::new().write(true).create_new(true).open(temporary);
        let file = file.map_err(|source| Error::io("create", temporary, source))?;
        match file.lock() {
            Ok(()) => Ok(file),
            Err(source) => {
                let _ = fs::remove_file(temporary);
                Err(Error::io("lock", temporary, source))
            }
        }
    }

    /// The spare, if there is one. Another writer may try to take it at the same moment: the lock and the name decide.
    fn take_spare(&self, temporary: &Path) -> Option<File> {
        let spare = Self::spare(&self.directory);
        let flags = NONBLOCK | OFlags::NOFOLLOW.bits().cast_signed();
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(&spare)
            .ok()?;
        let found = file.metadata().ok()?;
        file.try_lock().ok()?;
        let is_still = |path: &Path| {
            fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (found.dev(), found.ino()))
        };
        if !found.is_file() || found.len() > 0 || !is_still(&spare) {
            return None;
        }
        // Only the holder of the lock renames it.
        fs::rename(&spare, temporary).ok()?;
        Some(file)
    }

    /// Begins pack `id`, in a temporary file that is named after `named`.
    fn upload(&self, id: PackId, named: PackId) -> Result<Box<dyn PackUpload>> {
        let temporary = self
            .directory
            .join(format!("{TEMPORARY_PREFIX}{named}{TEMPORARY_SUFFIX}"));
        let spare = self.take_spare(&temporary);
        let was_spare = spare.is_some();
        let file = match spare {
            Some(file) => file,
            None => Self::create_locked(&temporary)?,
        };
        let upload = LocalUpload {
            id,
            is_copy: id != named,
            file: BufWriter::with_capacity(WRITE_BUFFER_BYTES, file),
            was_spare,
            temporary,
            path: self.path(id),
            finished: false,
        };
        Ok(Box::new(upload))
    }

    fn path(&self, id: PackId) -> PathBuf {
        let name = id.to_string();
        let mut path = self.directory.join(name.get(..2).unwrap_or_default());
        path.push(name);
        path
    }

    fn part(&self, part: Part) -> PathBuf {
        match part {
            Part::Root => self.directory.clone(),
            Part::First(first) => self.directory.join(format!("{first:02x}")),
        }
    }

    /// The pack's file. A pack that is removed meanwhile stays readable as long as its file is kept open. That does no
    /// harm: the content of a pack never changes.
    fn file(&self, id: PackId) -> Result<Arc<File>> {
        if let Some(file) = self.open_files().get(&id) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(id);
        let file = open_regular(&path).map_err(|source| unreadable(id, "open", &path, source))?;
        let file = Arc::new(file);
        self.open_files().put(id, Arc::clone(&file));
        Ok(file)
    }

    fn open_files(&self) -> MutexGuard<'_, LruCache<PackId, Arc<File>>> {
        // A panic elsewhere leaves at worst one file more or less in the list.
        lock(&self.open)
    }
}

impl PackStorage for LocalPacks {
    fn keys(&self) -> &Keys {
        Keys::none()
    }

    fn begin(&self) -> Result<Box<dyn PackUpload>> {
        // Random: a counter would be in the catalog, and go back with a catalog of an earlier time.
        let id = PackId::random()?;
        self.upload(id, id)
    }

    fn begin_copy(&self, id: PackId) -> Result<Box<dyn PackUpload>> {
        // A killed copy may have left a file that is named after the pack.
        self.upload(id, PackId::random()?)
    }

    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let file = self.file(id)?;
        file.read_exact_at(buf, offset)
            .map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => {
                    let reason = format!("It ends before byte {}", offset + buf.len() as u64);
                    Error::damaged(format!("Pack {id}"), reason)
                }
                _ => unreadable(id, "read", &self.path(id), source),
            })
    }

    fn will_read(&self, id: PackId, offset: u64, bytes: u32) {
        if let Ok(file) = self.file(id) {
            let _ = fadvise(
                &*file,
                offset,
                NonZeroU64::new(u64::from(bytes)),
                Advice::WillNeed,
            );
        }
    }

    fn bytes(&self, id: PackId) -> Result<u64> {
        let path = self.path(id);
        let metadata = fs::metadata(&path).map_err(|source| unreadable(id, "look at", &path, source))?;
        if !metadata.is_file() {
            // Opening it returns the error that names what it is.
            self.file(id)?;
        }
        Ok(metadata.len())
    }

    fn list(&self, each: &mut dyn FnMut(PackId) -> Result<()>) -> Result<()> {
        for_each_entry(&self.directory, &mut |name, path| {
            if name.len() != 2 || !is_directory(path)? {
                return Ok(());
            }
            for_each_entry(path, &mut |name, _| match name.parse::<PackId>() {
                Ok(id) if self.path(id).parent() == Some(path) => each(id),
                _ => Ok(()),
            })
        })
    }

    fn part_mark(&self, part: Part) -> Result<PartMark> {
        let path = self.part(part);
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => Ok(PartMark::At {
                file: (found.dev(), found.ino()),
                changed: (found.ctime(), found.ctime_nsec()),
                modified: (found.mtime(), found.mtime_nsec()),
            }),
            Ok(_) => Ok(PartMark::Missing),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(PartMark::Missing),
            Err(source) => Err(Error::io("look at", &path, source)),
        }
    }

    fn list_part(&self, part: Part, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        let directory = self.part(part);
        if self.part_mark(part)? == PartMark::Missing {
            return Ok(());
        }
        for_each_entry(&directory, &mut |name, path| match name.parse::<PackId>() {
            Ok(id) if self.path(id).parent() == Some(&*directory) => each(Listed::Pack(id)),
            _ if is_expected(part, name) => Ok(()),
            _ => match astray(path)? {
                Some(pack) => each(Listed::Astray {
                    path: path.to_owned(),
                    pack,
                }),
                None => Ok(()),
            },
        })
    }

    fn remove(&self, id: PackId) -> Result<()> {
        self.open_files().pop(&id);
        remove_file(&self.path(id)).map(|_| ())
    }

    fn settle(&self, packs: &[PackId]) -> Result<()> {
        let paths = packs.iter().map(|id| self.path(*id));
        let directories: BTreeSet<PathBuf> = paths
            .filter_map(|path| path.parent().map(Path::to_owned))
            .collect();
        directories
            .iter()
            .try_for_each(|directory| sync_directory(directory))
    }

    fn remove_abandoned(&self, older_than: Duration) -> Result<usize> {
        let mut removed = 0;
        for_each_entry(&self.directory, &mut |name, path| {
            let temporary = name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX);
            if temporary && is_abandoned(path, older_than)? && remove_file(path)? {
                removed += 1;
            }
            Ok(())
        })?;
        Ok(removed)
    }
}

/// Linux: "Input/output error", the medium's own failure; and the errors of file systems for their own damage.
const EIO: i32 = 5;
const EBADMSG: i32 = 74;
const EUCLEAN: i32 = 117;

/// A pack being written into its temporary file.
#[derive(Debug)]
struct LocalUpload {
    id: PackId,
    /// The pack may be there already.
    is_copy: bool,
    file: BufWriter<File>,
    /// More may be allocated to the file than the pack needs.
    was_spare: bool,
    temporary: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl LocalUpload {
    /// Gives the file its final name unless that is taken: then the file there must have the same bytes.
    fn publish_copy(&self, directory: &Path) -> Result<()> {
        let linked = match fs::hard_link(&self.temporary, &self.path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                create_directory(directory)?;
                sync_directory(directory.parent().unwrap_or(Path::new(".")))?;
                fs::hard_link(&self.temporary, &self.path)
            }
            linked => linked,
        };
        match linked {
            Ok(()) => {}
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
                let same = have_same_bytes(&self.temporary, &self.path);
                if !same.map_err(|source| Error::io("compare", &self.path, source))? {
                    return Err(Error::other_bytes(self.id));
                }
            }
            Err(source) => return Err(Error::io("link a pack to", &self.path, source)),
        }
        sync_directory(directory)
    }
}

impl PackUpload for LocalUpload {
    fn id(&self) -> PackId {
        self.id
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|source| Error::io("write", &self.temporary, source))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.file
            .flush()
            .map_err(|source| Error::io("write", &self.temporary, source))?;
        let file = self.file.get_ref();
        let give_back = || match self.was_spare {
            // Setting a file's length again frees the space allocated behind its end.
            true => file.set_len(file.metadata()?.len()),
            false => Ok(()),
        };
        give_back()
            .and_then(|()| file.sync_data())
            .map_err(|source| Error::io("sync", &self.temporary, source))?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        if self.is_copy {
            // The temporary name goes with the upload.
            return self.publish_copy(directory);
        }
        match fs::rename(&self.temporary, &self.path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                // A copy of a repository may lack directories that were empty.
                create_directory(directory)?;
                sync_directory(directory.parent().unwrap_or(Path::new(".")))?;
                fs::rename(&self.temporary, &self.path)
            }
            renamed => renamed,
        }
        .map_err(|source| Error::io("rename a pack to", &self.path, source))?;
        self.finished = true;
        sync_directory(directory)
    }
}

impl Drop for LocalUpload {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing else can be done about a failure here; `remove_abandoned` removes the file later.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn have_same_bytes(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (open_regular(one)?, open_regular(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let mut bytes = [vec![0; WRITE_BUFFER_BYTES], vec![0; WRITE_BUFFER_BYTES]];
    let [left, right] = &mut bytes;
    let mut at = 0;
    loop {
        let read = one.read_at(left, at)?;
        if read == 0 {
            return Ok(true);
        }
        let (Some(left), Some(right)) = (left.get(..read), right.get_mut(..read)) else {
            return Ok(false);
        };
        other.read_exact_at(right, at)?;
        if left != right {
            return Ok(false);
        }
        at += read as u64;
    }
}

/// Whether an entry of this name is expected beside packs: the root's directories, packs being written, and the names
/// that NFS gives to files that are removed while open.
fn is_expected(part: Part, name: &str) -> bool {
    let temporary = name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX);
    name.starts_with(".nfs") || (part == Part::Root && (temporary || name.len() == 2))
}

/// The pack id in the header of a file that is not in a pack's place. `None` if the file is gone again, is not a
/// regular file or has no such header.
fn astray(path: &Path) -> Result<Option<PackId>> {
    let mut header = [0; PACK_HEADER_BYTES];
    let file = match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.len() >= PACK_HEADER_BYTES as u64 => open_regular(path),
        Ok(_) => return Ok(None),
        Err(source) => Err(source),
    };
    match file.and_then(|file| file.read_exact_at(&mut header, 0)) {
        Ok(()) => Ok(id_in_header(&header)),
        Err(source)
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(Error::io("read", path, source)),
    }
}

/// Whether no writer uses this temporary file any more. The lock decides. The age is only a safety margin, for the
/// moment between the file's creation and its lock.
fn is_abandoned(path: &Path, older_than: Duration) -> Result<bool> {
    let gone_or = |source: io::Error, action| match source.kind() {
        io::ErrorKind::NotFound => Ok(false),
        _ => Err(Error::io(action, path, source)),
    };
    // Opened for writing: on NFS, a file that is open only for reading cannot be locked exclusively.
    // Non-blocking: the name may be that of a pipe, which would wait for a writer.
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(NONBLOCK);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(source) => return gone_or(source, "open"),
    };
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    let modified = modified.map_err(|source| Error::io("look at", path, source))?;
    // A modification time in the future counts as new.
    let age = SystemTime::now().duration_since(modified).unwrap_or_default();
    if age < older_than {
        return Ok(false);
    }
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(Error::io("lock", path, source)),
    }
}

fn for_each_entry(directory: &Path, each: &mut dyn FnMut(&str, &Path) -> Result<()>) -> Result<()> {
    let failed = |source| Error::io("list", directory, source);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(name) = entry.file_name().to_str() {
            each(name, &entry.path())?;
        }
    }
    Ok(())
}

/// Whether there is a directory. An error if that cannot be determined: the packs in it must not be skipped.
fn is_directory(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::io("look at", path, source)),
    }
}

fn create_directory(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        created => created.map_err(|source| Error::io("create", path, source)),
    }
}

fn sync_directory(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|source| Error::io("sync", path, source))
}

/// Removes a file that may be gone already. Returns whether it was there.
fn remove_file(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::io("remove", path, source)),
    }
}

/// Distinguishes a pack that is gone or damaged from one that cannot be read now.
fn unreadable(id: PackId, action: &'static str, path: &Path, source: io::Error) -> Error {
    match source.raw_os_error() {
        _ if source.kind() == io::ErrorKind::NotFound => Error::MissingPack(id),
        Some(EIO | EBADMSG | EUCLEAN) => Error::damaged(
            format!("Pack {id}"),
            format!("The disk cannot {action} it: {source}"),
        ),
        // The error of `open_regular` for a pipe or a directory.
        _ if source.kind() == io::ErrorKind::InvalidInput => {
            Error::damaged(format!("Pack {id}"), source.to_string())
        }
        _ => Error::io(action, path, source),
    }
}

#[cfg(test)]
mod tests;
