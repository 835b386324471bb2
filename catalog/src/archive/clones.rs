//! Clones: writable copies of a backup, and what keeps their chunks.
//!
//! A clone is a directory `live/<server>/<name>/`. Its `clone.json` names the tree it is based on; the file system
//! manages everything else in the directory. So a clone has no record in a pack and disappears with its directory. A
//! [`sweep`](crate::upkeep::sweep) keeps whatever `clone.json` refers to, even after the backup is deleted.
//!
//! - A clone is created under a hidden name while its writer's lock is held: a sweep that did not see it yet removes
//!   none of its chunks. It exists once its directory has its final name, and is complete then.
//! - Removal works the same way: the directory first gets a hidden name that nothing reads, then its files are removed.
//! - The process that serves a clone holds its lock and writes a mark into its directory ([`serving`]).

mod serving;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{Attributes, FileMap, RecordId};
use serde::{Deserialize, Serialize};

use crate::archive::backup::{Backup, BackupRoot, ReadGuard};
use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::home::{LIVE, regular, sync_directory, write_durably};
use crate::index::repository::Repository;
use crate::index::writer::Writer;
use crate::names::{BackupId, CloneName, ServerName};

/// Version of clone.json this release writes, and the newest it reads.
const VERSION: u32 = 1;

/// The clone's description.
const DESCRIPTION: &str = "clone.json";

/// A name with this prefix is not a clone or server: it is being created or removed.
const HIDDEN: char = '.';

/// Prefix of a clone's directory while it is created; the clone's name follows.
const MAKING: &str = ".new-";

/// Prefix of a clone's directory while it is removed; the clone's id follows.
const GONE: &str = ".gone-";

/// Prefix of the lock files of clones.
pub(crate) const CLONE_PREFIX: &str = "clone-";

/// What a clone was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneOrigin {
    /// The backup it is based on.
    pub backup: BackupId,
    /// The point in time it recovers to, as `pitr/` spells it; none for the backup's own end.
    #[serde(default)]
    pub target: Option<String>,
    /// The clone it was copied from.
    #[serde(default)]
    pub copied_from: Option<CloneName>,
}

/// A stored file that is in the clone's tree but not in its backup's: mostly WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraFile {
    /// Its path: "pg_wal/000000010000000000000001".
    pub path: String,
    /// Its owner, permissions and time.
    pub attributes: Attributes,
    /// Its content.
    pub map: FileMap,
}

/// The content of clone.json. It is written once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneDescription {
    /// Distinguishes it from other clones of the same name.
    pub id: RecordId,
    /// The seed for file numbers and for the mark in the clone's journal, if it is not the clone's id. A copied clone
    /// has the seed of its original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<RecordId>,
    /// Whose it is.
    pub server: ServerName,
    /// Its name.
    pub name: CloneName,
    /// What it was made from.
    pub origin: CloneOrigin,
    /// When it was made.
    pub created_at: TimestampMicros,
    /// The tree it is based on.
    pub root: BackupRoot,
    /// Additional stored files.
    #[serde(default)]
    pub grafts: Vec<ExtraFile>,
    /// Bytes it may occupy in the repository; none means no limit. The caller that opens a clone sets it. Earlier
    /// releases stored the configured value when the clone was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

impl CloneDescription {
    /// The seed for its file numbers.
    pub fn seed(&self) -> RecordId {
        self.seed.unwrap_or(self.id)
    }
}

#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    #[serde(flatten)]
    body: CloneDescription,
}

/// A clone being created, under a hidden name. If it is dropped before [`finish`](Self::finish), everything is removed.
#[derive(Debug)]
pub struct CloneDraft {
    repository: Repository,
    description: CloneDescription,
    directory: PathBuf,
    finished: bool,
    /// Keeps a sweep from removing what the clone will refer to.
    _reading: Option<ReadGuard>,
    _writer: Writer,
    _lock: Lock,
}

/// Keeps a clone from being served or removed by another process while this lives.
#[derive(Debug)]
pub struct CloneLock {
    _lock: Lock,
}

/// The separator cannot occur in either name: clone b of server a-x is not clone x-b of server a.
fn lock_name(server: &ServerName, name: &CloneName) -> String {
    format!("{CLONE_PREFIX}{server}:{name}")
}

impl Repository {
    /// A server's clones, by name.
    ///
    /// # Errors
    /// When a clone cannot be read, because then it is unknown what it needs.
    pub fn clones(&self, server: &ServerName) -> Result<Vec<CloneDescription>> {
        let mut clones = Vec::new();
        for name in visible_names(&self.clones_directory(server))? {
            clones.extend(self.read_clone(server, &name.parse()?)?);
        }
        Ok(clones)
    }

    /// All servers' clones.
    ///
    /// # Errors
    /// As [`clones`](Self::clones).
    pub(crate) fn all_clones(&self) -> Result<Vec<CloneDescription>> {
        let mut clones = Vec::new();
        for server in visible_names(&self.path().join(LIVE))? {
            clones.extend(self.clones(&server.parse()?)?);
        }
        Ok(clones)
    }

    /// One clone.
    ///
    /// # Errors
    /// [`Error::NoSuchClone`].
    pub fn clone_named(&self, server: &ServerName, name: &CloneName) -> Result<CloneDescription> {
        self.read_clone(server, name)?.ok_or_else(|| Error::NoSuchClone {
            server: server.clone(),
            name: name.clone(),
        })
    }

    /// Where a clone's files are.
    pub fn clone_directory(&self, server: &ServerName, name: &CloneName) -> PathBuf {
        self.clones_directory(server).join(name.as_str())
    }

    fn clones_directory(&self, server: &ServerName) -> PathBuf {
        self.path().join(LIVE).join(server.as_str())
    }

    /// Begins a clone: creates its directory, empty and under a hidden name.
    ///
    /// # Errors
    /// [`Error::CloneExists`]; [`Error::NoSuchBackup`] when the backup has been deleted.
    pub fn begin_clone(&self, description: CloneDescription, backup: &Backup) -> Result<CloneDraft> {
        // From here on, a deletion of the backup finds either this guard or the clone.
        self.begin(description, || self.reading(backup).map(Some))
    }

    /// Begins a clone with the same base as another one. The other one is locked, so it stays while this one is
    /// created.
    ///
    /// # Errors
    /// [`Error::CloneExists`].
    pub fn begin_copy(&self, description: CloneDescription, _of: &CloneLock) -> Result<CloneDraft> {
        self.begin(description, || Ok(None))
    }

    fn begin(
        &self,
        description: CloneDescription,
        guard: impl FnOnce() -> Result<Option<ReadGuard>>,
    ) -> Result<CloneDraft> {
        let _acting = self.as_owner()?;
        let CloneDescription { server, name, .. } = &description;
        let purpose = format!("making of clone {name} of {server}");
        let writer = self.writer(&purpose)?;
        let lock = self.take_clone(server, name, &purpose)?;
        // This must come before the check that the clone's base exists.
        writer.keep_condemned()?;
        let reading = guard()?;
        if self.read_clone(server, name)?.is_some() {
            return Err(Error::CloneExists {
                server: server.clone(),
                name: name.clone(),
            });
        }
        let directory = self.clones_directory(server).join(format!("{MAKING}{name}"));
        remove_all(&directory)?;
        fs::create_dir_all(&directory).map_err(|source| Error::io("create", &directory, source))?;
        sync_directory(&self.path().join(LIVE))?;
        sync_directory(self.path())?;
        Ok(CloneDraft {
            repository: self.clone(),
            description,
            directory,
            finished: false,
            _reading: reading,
            _writer: writer,
            _lock: lock,
        })
    }

    fn take_clone(&self, server: &ServerName, name: &CloneName, purpose: &str) -> Result<Lock> {
        let lock_name = lock_name(server, name);
        let lock = self.locks.try_exclusive(&lock_name, purpose)?;
        lock.ok_or_else(|| Error::CloneInUse {
            server: server.clone(),
            name: name.clone(),
            holder: self.locks.holder(&lock_name),
        })
    }

    /// Locks a clone in order to serve or remove it.
    ///
    /// # Errors
    /// [`Error::CloneInUse`] while another process has it locked; [`Error::NoSuchClone`].
    pub fn lock_clone(&self, server: &ServerName, name: &CloneName, purpose: &str) -> Result<CloneLock> {
        let lock = self.take_clone(server, name, purpose)?;
        // Checked under the lock: the clone may just have been removed.
        self.clone_named(server, name)?;
        Ok(CloneLock { _lock: lock })
    }

    /// Whether a process serves a clone or works on it. Where that cannot be found out, one may.
    pub fn is_clone_held(&self, server: &ServerName, name: &CloneName) -> bool {
        self.locks.is_held(&lock_name(server, name)).unwrap_or(true)
    }

    /// The process that holds a clone's lock, according to the lock file; `None` if it is not held.
    pub fn clone_holder(&self, server: &ServerName, name: &CloneName) -> Option<u32> {
        let held = self.is_clone_held(server, name);
        held.then(|| self.locks.named_process(&lock_name(server, name)))
            .flatten()
    }

    /// Removes a locked clone with everything in it.
    ///
    /// # Errors
    /// When the clone cannot be moved away, or when something in it cannot be removed; in the second case it is no
    /// longer a clone.
    pub fn remove_clone(&self, description: &CloneDescription, lock: CloneLock) -> Result<()> {
        let CloneDescription { server, name, id, .. } = description;
        let directory = self.clone_directory(server, name);
        let gone = self.clones_directory(server).join(format!("{GONE}{id}"));
        self.with_reserve(|| {
            let _acting = self.as_owner()?;
            match fs::rename(&directory, &gone) {
                // An earlier attempt renamed it.
                Err(source) if source.kind() == ErrorKind::NotFound && gone.exists() => Ok(()),
                moved => moved.map_err(|source| Error::io("remove", &directory, source)),
            }?;
            sync_directory(&self.clones_directory(server))
        })?;
        drop(lock);
        self.with_reserve(|| {
            let _acting = self.as_owner()?;
            remove_all(&gone)
        })
    }

    /// The clones that are based on this backup.
    ///
    /// # Errors
    /// As [`clones`](Self::clones).
    pub fn clones_of(&self, backup: &Backup) -> Result<Vec<CloneName>> {
        let clones = self.clones(&backup.server)?;
        let of = clones
            .into_iter()
            .filter(|clone| clone.origin.backup == backup.id);
        Ok(of.map(|clone| clone.name).collect())
    }

    fn read_clone(&self, server: &ServerName, name: &CloneName) -> Result<Option<CloneDescription>> {
        let path = self.clone_directory(server, name).join(DESCRIPTION);
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let text = match regular::read(&path) {
            Err(source) if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            text => text.map_err(|source| Error::io("read", &path, source))?,
        };
        let bad = |error: serde_json::Error| Error::BadClone {
            path: path.clone(),
            reason: error.to_string(),
        };
        let Version { version } = serde_json::from_slice(&text).map_err(bad)?;
        if version > VERSION {
            return Err(Error::NewerFormat {
                what: format!("Clone {name} of server {server}"),
                found: version,
                newest: VERSION,
            });
        }
        let clone: Versioned = serde_json::from_slice(&text).map_err(bad)?;
        Ok(Some(clone.body))
    }

    /// Removes the remains of clones whose creation or removal was interrupted. Returns how many there were.
    pub(crate) fn remove_clone_leftovers(&self) -> Result<usize> {
        let mut removed = 0;
        for server in visible_names(&self.path().join(LIVE))? {
            let server: ServerName = server.parse()?;
            for name in names(&self.clones_directory(&server))? {
                let place = self.clones_directory(&server).join(&name);
                if let Some(clone) = name.strip_prefix(MAKING) {
                    let lock_name = lock_name(&server, &clone.parse()?);
                    // If it is locked, it is still being created.
                    if let Some(_lock) = self.locks.try_exclusive(&lock_name, "sweep")? {
                        remove_all(&place)?;
                        removed += 1;
                    }
                } else if name.starts_with(GONE) {
                    remove_all(&place)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

impl CloneDraft {
    /// Where its files go.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The description it will have.
    pub fn description(&self) -> &CloneDescription {
        &self.description
    }

    /// Turns it into a clone, which exists durably when this returns. The contents of its directory must be durable
    /// already.
    ///
    /// # Errors
    /// When it cannot be made durable; it may exist nevertheless.
    pub fn finish(mut self) -> Result<CloneDescription> {
        let _acting = self.repository.as_owner()?;
        let CloneDescription { server, name, .. } = &self.description;
        let text = serde_json::to_vec_pretty(&Versioned {
            version: VERSION,
            body: self.description.clone(),
        });
        let text = text.map_err(|error| Error::Invalid(error.to_string()))?;
        let description = self.directory.join(DESCRIPTION);
        write_durably(&description, &text)?;
        let place = self.repository.clone_directory(server, name);
        fs::rename(&self.directory, &place).map_err(|source| Error::io("create", &place, source))?;
        self.finished = true;
        sync_directory(&self.repository.clones_directory(server))?;
        Ok(self.description.clone())
    }
}

impl Drop for CloneDraft {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let removed = self
            .repository
            .as_owner()
            .and_then(|_acting| remove_all(&self.directory));
        if let Err(error) = removed {
            tracing::warn!("A clone that was not completed is left for the next sweep: {error}");
        }
    }
}

/// Names in a directory, sorted; none if it does not exist.
fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::io("list", directory, source);
    let entries = match fs::read_dir(directory) {
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn visible_names(directory: &Path) -> Result<impl Iterator<Item = String>> {
    Ok(names(directory)?
        .into_iter()
        .filter(|name| !name.starts_with(HIDDEN)))
}

/// Removes a directory and its contents, if it exists.
fn remove_all(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::io("remove", directory, source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_taken() {
        for good in ["test1", "before-migration_2.b"] {
            assert_eq!(good.parse::<CloneName>().unwrap().as_str(), good);
        }
        for bad in ["", ".new-a", "..", "a/b", "a@now", "a b", "ä"] {
            assert!(bad.parse::<CloneName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn each_clone_has_a_lock_of_its_own() {
        let lock = |server: &str, name: &str| lock_name(&server.parse().unwrap(), &name.parse().unwrap());
        assert_ne!(lock("main", "eu-a"), lock("main-eu", "a"));
    }
}
