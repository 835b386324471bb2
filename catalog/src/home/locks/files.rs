//! Locks as files: an flock on a file in the repository's `locks` directory. The file's text (who, what, since when) is
//! only for messages and may be missing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use barmanfs_pg::TimestampMicros;

use crate::error::{Error, Result};
use crate::home::locks::{Held, Lock, Locks};
use crate::home::owner::{AsOwner, Owner};
use crate::home::{Home, regular};

/// The directory of the lock files.
pub(in crate::home) const LOCKS: &str = "locks";

/// How often a lock that is held is tried again: a process that probes whether it is held ([`Locks::is_held`]) holds it
/// for an instant.
const TRIES: u32 = 5;
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// How much of a lock file's text is read for a message; more is not worth showing.
const HOLDER_BYTES: u64 = 200;

/// The lock files of a repository.
#[derive(Debug)]
pub(crate) struct FileLocks {
    directory: PathBuf,
    /// The repository's owner, who must be able to lock what root has locked before for a mount.
    owner: Owner,
}

/// A lock file that this process has locked.
#[derive(Debug)]
struct LockedFile {
    /// Closing it frees the lock.
    file: File,
    path: PathBuf,
    /// The repository's owner, as whom the file is removed.
    owner: Owner,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Shared,
    Exclusive,
}

impl FileLocks {
    /// The locks of a repository.
    pub(crate) fn of(home: &Home) -> Self {
        Self {
            directory: home.join(LOCKS),
            owner: home.owner().clone(),
        }
    }

    fn as_owner(&self) -> Result<AsOwner> {
        self.owner.act_in(&self.directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn locked(&self, file: File, path: PathBuf) -> Lock {
        let owner = self.owner.clone();
        Lock(Box::new(LockedFile { file, path, owner }))
    }

    fn try_lock(&self, name: &str, mode: Mode, purpose: &str) -> Result<Option<Lock>> {
        let _acting = self.as_owner()?;
        let path = self.path(name);
        let mut tries = 0;
        loop {
            let file = open(&path)?;
            match lock_now(&file, mode) {
                Ok(()) if is_at(&file, &path)? => {
                    write_holder(&file, purpose);
                    return Ok(Some(self.locked(file, path)));
                }
                // The file was removed between our opening and locking it.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if tries == TRIES => return Ok(None),
                Err(TryLockError::WouldBlock) => {
                    tries += 1;
                    std::thread::sleep(TRY_AGAIN_AFTER);
                }
                Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path, source)),
            }
        }
    }
}

impl Locks for FileLocks {
    fn try_exclusive(&self, name: &str, purpose: &str) -> Result<Option<Lock>> {
        self.try_lock(name, Mode::Exclusive, purpose)
    }

    fn try_shared(&self, name: &str, purpose: &str) -> Result<Option<Lock>> {
        self.try_lock(name, Mode::Shared, purpose)
    }

    fn wait_exclusive(&self, name: &str, purpose: &str) -> Result<Lock> {
        let _acting = self.as_owner()?;
        let path = self.path(name);
        loop {
            let file = open(&path)?;
            file.lock().map_err(|source| Error::io("lock", &path, source))?;
            if is_at(&file, &path)? {
                write_holder(&file, purpose);
                return Ok(self.locked(file, path));
            }
        }
    }

    /// Creates and writes nothing.
    fn is_held(&self, name: &str) -> Result<bool> {
        let _acting = self.as_owner()?;
        let path = self.path(name);
        let file = match open_existing(&path) {
            Ok(file) => file,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(Error::io("open", &path, source)),
        };
        match lock_now(&file, Mode::Exclusive) {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(Error::io("lock", &path, source)),
        }
    }

    /// According to the lock's file.
    fn holder(&self, name: &str) -> String {
        let mut text = String::new();
        let read = self.owner.act().and_then(|_acting| {
            regular::open(&self.path(name)).and_then(|file| file.take(HOLDER_BYTES).read_to_string(&mut text))
        });
        match read {
            Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
            _ => "by an unknown process".to_owned(),
        }
    }

    fn named_process(&self, name: &str) -> Option<u32> {
        let holder = self.holder(name);
        let mut parts = holder.split(", ");
        let process = parts.find_map(|part| part.strip_prefix("process "))?;
        process.parse().ok()
    }

    /// The process named in the file, if it has this very file open. This cannot be determined for another user's
    /// process.
    fn holding_process(&self, name: &str) -> Option<u32> {
        let process = self.named_process(name)?;
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let wanted = identity(std::fs::metadata(self.path(name)).ok()?);
        let opened = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?;
        opened
            .flatten()
            .filter_map(|file| std::fs::metadata(file.path()).ok())
            .any(|metadata| identity(metadata) == wanted)
            .then_some(process)
    }

    fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let unreadable = |source| Error::io("list", &self.directory, source);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            names.extend(
                name.to_str()
                    .filter(|name| name.starts_with(prefix))
                    .map(str::to_owned),
            );
        }
        Ok(names)
    }

    /// A process that is just taking the lock notices that the file it locked is no longer there ([`is_at`]), and
    /// starts over.
    fn remove_free(&self, name: &str) -> Result<()> {
        let _acting = self.as_owner()?;
        let path = self.path(name);
        let Ok(file) = open_existing(&path) else {
            return Ok(());
        };
        if lock_now(&file, Mode::Exclusive).is_ok() && is_at(&file, &path)? {
            std::fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
        }
        Ok(())
    }
}

impl Held for LockedFile {
    fn remove(self: Box<Self>) {
        let Self { file, path, owner } = *self;
        let _ = owner.act().and_then(|_acting| std::fs::remove_file(path));
        drop(file);
    }
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    regular::open_with(path, &mut options).map_err(|source| Error::io("open", path, source))
}

/// Opens an existing lock file in order to probe it. It is opened for writing if that is allowed: NFS has another kind
/// of locks, and there a file that is open only for reading cannot be locked exclusively.
fn open_existing(path: &Path) -> std::io::Result<File> {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    match regular::open_with(path, OpenOptions::new().read(true).write(true)) {
        Err(source) if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem) => regular::open(path),
        opened => opened,
    }
}

fn lock_now(file: &File, mode: Mode) -> Result<(), TryLockError> {
    match mode {
        Mode::Shared => file.try_lock_shared(),
        Mode::Exclusive => file.try_lock(),
    }
}

/// Whether `file` is the file at `path` now.
fn is_at(file: &File, path: &Path) -> Result<bool> {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let held = file
        .metadata()
        .map(identity)
        .map_err(|source| Error::io("inspect", path, source))?;
    match std::fs::metadata(path) {
        Ok(found) => Ok(identity(found) == held),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::io("inspect", path, source)),
    }
}

/// Writes the holder into the lock's file. On a full disk the text is missing, but the lock is held nevertheless.
fn write_holder(mut file: &File, purpose: &str) {
    let now = TimestampMicros::from(std::time::SystemTime::now());
    let text = format!("{purpose}, process {}, since {now}\n", std::process::id());
    let _ = file.rewind().and_then(|()| file.write_all(text.as_bytes()));
    let _ = file.set_len(text.len() as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locks() -> (tempfile::TempDir, FileLocks) {
        let root = tempfile::tempdir().unwrap();
        let locks = FileLocks::of(&Home::at(root.path()).unwrap());
        std::fs::create_dir(&locks.directory).unwrap();
        (root, locks)
    }

    #[test]
    fn one_holds_alone_or_many_share() {
        let (_root, locks) = locks();
        let first = locks.try_shared("a", "one").unwrap().unwrap();
        let second = locks.try_shared("a", "two").unwrap().unwrap();
        assert!(locks.try_exclusive("a", "three").unwrap().is_none());
        assert!(locks.is_held("a").unwrap());
        assert!(
            locks.holder("a").starts_with("two, process "),
            "{}",
            locks.holder("a")
        );
        drop((first, second));
        assert!(!locks.is_held("a").unwrap());
        let alone = locks.try_exclusive("a", "three").unwrap().unwrap();
        assert!(locks.try_shared("a", "four").unwrap().is_none());
        drop(alone);
    }

    #[test]
    fn only_free_files_are_removed() {
        let (_root, locks) = locks();
        let held = locks.try_exclusive("writer-1", "x").unwrap().unwrap();
        drop(locks.try_exclusive("writer-2", "x").unwrap());
        for name in locks.names("writer-").unwrap() {
            locks.remove_free(&name).unwrap();
        }
        assert_eq!(locks.names("writer-").unwrap(), ["writer-1"]);
        held.remove();
        assert!(locks.names("writer-").unwrap().is_empty());
        assert!(!locks.is_held("writer-1").unwrap());
    }

    #[test]
    fn what_is_tried_can_be_locked_on_nfs_too() {
        let (_root, locks) = locks();
        let path = locks.path("a");
        assert!(open_existing(&path).is_err() && !path.exists(), "nothing is made");
        std::fs::write(&path, b"somebody").unwrap();
        let mut file = open_existing(&path).unwrap();
        file.write_all(b"S").unwrap();
        assert_eq!(locks.holder("a"), "Somebody");
    }

    #[test]
    fn a_lock_on_a_removed_file_does_not_count() {
        let (_root, locks) = locks();
        let stale = open(&locks.path("a")).unwrap();
        stale.lock().unwrap();
        std::fs::remove_file(locks.path("a")).unwrap();
        assert!(!is_at(&stale, &locks.path("a")).unwrap());
        assert!(locks.try_exclusive("a", "new").unwrap().is_some());
    }
}
