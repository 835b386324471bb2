//! One WAL file that arrives here and goes into the archive, whatever brought it.
//!
//! It never creates a repository: WAL that is acknowledged in an empty directory, where a disk should be mounted, would not
//! be found again.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use barmanfs_catalog::{RefusedWal, Repository, ServerName, WalOutcome};
use barmanfs_pg::wal_name::WalName;

use crate::error::Error;
use crate::forks;
use crate::hooks::{Hook, Hooks, Wal};
use crate::versions;
use crate::wal_transfer::LARGEST_BYTES;
use crate::wal_transfer::compression::{self, Compression};

/// As much of a file is read before its hooks run: the whole of any file that is no segment.
const EXAMINED_BYTES: u64 = 1 << 20;

/// Bytes of a file that are hashed at a time.
const READ_BYTES: usize = 256 << 10;

/// A file on its way into the archive.
#[derive(Debug)]
pub(crate) struct Arriving<'a> {
    /// Whose it is.
    pub(crate) server: &'a ServerName,
    /// Its name.
    pub(crate) name: WalName,
    /// Its content, from the start.
    pub(crate) file: File,
    /// Where it lies, if it has a name; a hook can read it there.
    pub(crate) path: Option<PathBuf>,
    /// What brings it.
    pub(crate) origin: &'a str,
    /// If somebody else may still write it: what it was like when its content was checked.
    pub(crate) checked: Option<AsChecked>,
}

/// A file as it was when its content was checked.
#[derive(Debug, Clone)]
pub(crate) struct AsChecked {
    attributes: Metadata,
    /// Where a script may change its attributes, which is no reason to wait.
    content: Option<blake3::Hash>,
}

impl AsChecked {
    /// The file as it is now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn now(file: &File, with_content: bool) -> io::Result<Self> {
        Ok(Self {
            attributes: file.metadata()?,
            content: with_content.then(|| hash_of(file)).transpose()?,
        })
    }

    /// Whether nobody has written this file between.
    pub(crate) fn is_still(&self, file: &File) -> bool {
        let Ok(now) = file.metadata() else { return false };
        let of = |file: &Metadata| (file.dev(), file.ino(), file.size());
        is_same(&now, &self.attributes)
            || of(&now) == of(&self.attributes)
                && self
                    .content
                    .is_some_and(|content| hash_of(file).is_ok_and(|now| now == content))
    }
}

/// The hash of a file's content. Its position stays.
fn hash_of(file: &File) -> io::Result<blake3::Hash> {
    let (mut hasher, mut buffer, mut at) = (blake3::Hasher::new(), vec![0; READ_BYTES], 0);
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(hasher.finalize()),
            count => {
                hasher.update(buffer.get(..count).unwrap_or_default());
                at += count as u64;
            }
        }
    }
}

/// Why a file is not archived.
#[derive(Debug)]
pub(crate) enum NotArchived {
    /// A hook has stopped it.
    Stopped(Error),
    /// Somebody has written it since it was checked.
    Changed,
    /// It is wrong, or nothing can be archived now.
    Failed(barmanfs_catalog::Error),
}

impl From<NotArchived> for Error {
    fn from(error: NotArchived) -> Self {
        match error {
            NotArchived::Stopped(error) => error,
            NotArchived::Changed => Error::failed(error.to_string()),
            NotArchived::Failed(error) => error.into(),
        }
    }
}

impl From<barmanfs_catalog::Error> for NotArchived {
    fn from(error: barmanfs_catalog::Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for NotArchived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped(error) => error.fmt(f),
            Self::Changed => f.write_str("It was changed while it was being archived"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl Arriving<'_> {
    /// Decompresses the file into a nameless one in `directory`, if it is compressed.
    ///
    /// # Errors
    /// When it is cut, or larger than any WAL file.
    pub(crate) fn decompressed(mut self, directory: &Path) -> io::Result<Self> {
        let mut beginning = Vec::with_capacity(compression::MAGIC_BYTES);
        let limit = compression::MAGIC_BYTES as u64;
        self.file.by_ref().take(limit).read_to_end(&mut beginning)?;
        self.file.rewind()?;
        let Some(form) = Compression::of(&beginning) else {
            return Ok(self);
        };
        let mut plain = tempfile::tempfile_in(directory)?;
        let mut content = form.reader(&self.file)?.take(LARGEST_BYTES + 1);
        let size_bytes = io::copy(&mut content, &mut plain)?;
        if size_bytes > LARGEST_BYTES {
            return Err(io::Error::other("it holds more than any WAL file"));
        }
        plain.rewind()?;
        drop(content);
        Ok(Self {
            file: plain,
            path: None,
            checked: None,
            ..self
        })
    }

    /// Archives it, with the server's hooks. It is durable when this returns, whatever became of it.
    ///
    /// # Errors
    /// Those of [`archive_wal`](barmanfs_catalog::Writer::archive_wal), when a hook stops it, and when it is not as it was
    /// checked.
    pub(crate) fn archive(mut self, hooks: &Hooks<'_>) -> Result<WalOutcome, NotArchived> {
        if hooks.has(Hook::Archive) {
            // No script runs for a file that is wrong.
            self.examine(hooks.repository())?;
        }
        let metadata = self.file.metadata();
        let path = self.path.take().unwrap_or_else(|| nameless(&self.file));
        let wal = Wal {
            name: self.name,
            path: Some(&path),
            size_bytes: metadata.as_ref().map_or(0, Metadata::len),
            time: metadata.and_then(|found| found.modified()).unwrap_or(UNIX_EPOCH),
            error: None,
        };
        with_hooks(hooks, &wal, || self.store(hooks.repository(), wal.size_bytes))
    }

    fn is_as_checked(&self) -> bool {
        let Some(checked) = &self.checked else { return true };
        checked.is_still(&self.file)
    }

    /// Checks it as far as its beginning and its size show.
    fn examine(&mut self, repository: &Repository) -> Result<(), barmanfs_catalog::Error> {
        let mut beginning = Vec::new();
        let size_bytes = (|| -> io::Result<u64> {
            self.file
                .by_ref()
                .take(EXAMINED_BYTES)
                .read_to_end(&mut beginning)?;
            self.file.rewind()?;
            Ok(self.file.metadata()?.len())
        })();
        let size_bytes = size_bytes.map_err(|source| barmanfs_catalog::Error::WalSource {
            name: self.name,
            source: Arc::new(source),
        })?;
        repository.examine_wal(self.server, &self.name, &beginning, size_bytes)
    }

    /// The writer keeps others waiting, so it exists no longer than this.
    fn store(&mut self, repository: &Repository, size_bytes: u64) -> Result<WalOutcome, NotArchived> {
        let (server, name) = (self.server, self.name);
        let writer = repository.writer(self.origin)?;
        // A script may have run for minutes, and a copier may have gone on meanwhile.
        if !self.is_as_checked() {
            tracing::warn!(
                "WAL file {name} of server {server} was changed while it was being archived: it waits"
            );
            return Err(NotArchived::Changed);
        }
        let outcome = writer.archive_wal(server, &name, &mut self.file, size_bytes, self.origin)?;
        match &outcome {
            WalOutcome::Stored(file) => {
                tracing::debug!("Archived {name} of server {server}");
                versions::warn_of_wal(file);
            }
            WalOutcome::AlreadyThere(_) => {
                tracing::debug!("WAL file {name} of server {server} was archived before");
            }
            WalOutcome::Conflict(_) | WalOutcome::Refused(_) => {}
        }
        Ok(outcome)
    }
}

/// Whether these are the attributes of one file that nobody has written between. A copier may set the time of the last
/// change, and not the kernel's.
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    let of = |file: &Metadata| {
        (
            file.dev(),
            file.ino(),
            file.size(),
            (file.mtime(), file.mtime_nsec()),
            (file.ctime(), file.ctime_nsec()),
        )
    };
    of(one) == of(other)
}

/// Archives with the server's hooks around it. Those after it run in any case, and fail nothing.
///
/// # Errors
/// Those of `archive`, and when a hook stops it.
pub(crate) fn with_hooks(
    hooks: &Hooks<'_>,
    wal: &Wal<'_>,
    archive: impl FnOnce() -> Result<WalOutcome, NotArchived>,
) -> Result<WalOutcome, NotArchived> {
    hooks
        .before_wal(Hook::Archive, wal)
        .map_err(NotArchived::Stopped)?;
    let archived = archive();
    if hooks.has(Hook::Archive) {
        let error = match &archived {
            Ok(outcome) => refusal(hooks.server(), &wal.name, outcome).map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        let wal = Wal {
            error: error.as_deref(),
            ..*wal
        };
        hooks.after_wal(Hook::Archive, &wal);
    }
    archived
}

/// A path by which another process of this user can read a file that has no name.
fn nameless(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// Why a file was put aside and not archived; `None` if it is archived.
pub(crate) fn refusal(server: &ServerName, name: &WalName, outcome: &WalOutcome) -> Option<Error> {
    match outcome {
        WalOutcome::Stored(_) | WalOutcome::AlreadyThere(_) => None,
        WalOutcome::Conflict(conflict) => Some(
            Error::failed(format!(
                "WAL file {name} of server {server} has other content than the one archived at {}: not archived, put aside",
                conflict.archived.archived_at
            ))
            .hint(match &conflict.fork {
                Some(fork) => forks::advice(server, fork),
                None => format!("It is of the history that was left: end the server that archives it as '{server}'"),
            }),
        ),
        WalOutcome::Refused(refused) => Some(of_other_history(server, name, refused)),
    }
}

fn of_other_history(server: &ServerName, name: &WalName, refused: &RefusedWal) -> Error {
    match &refused.fork {
        Some(fork) => Error::failed(format!(
            "WAL file {name} of server {server} is not archived, put aside: {fork}"
        ))
        .hint(forks::advice(server, fork)),
        None => Error::failed(format!(
            "WAL file {name} of server {server} is of the history that was left: not archived, put aside"
        ))
        .hint(format!("End the server that archives it as '{server}'")),
    }
}
