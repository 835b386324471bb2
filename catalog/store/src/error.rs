//! The errors of the store. Each names its subject and its meaning.
//!
//! Errors are cheap to clone: a failed decode is returned to every reader that waited for it, a failed write
//! to every later call of the same run.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::id::{ChunkId, KeyId, PackId};
use crate::threads::NoThread;

/// Result of the store's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the store could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("Cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "create".
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// The file system is full, or the user's quota is used up.
    #[error(
        "No space left to write {}: it is given up, everything acknowledged before is safe; free space and \
         run again",
        path.display()
    )]
    Full {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// Stored bytes differ from what was written.
    #[error("{what} is damaged: {reason}")]
    Damaged {
        /// Which chunk or pack, and where: "Chunk ab.. in pack cd.. at offset 1234".
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A delta is as it was written, but its base is lost.
    #[error("{what} is damaged: Its base cannot be read ({reason})")]
    LostBase {
        /// Which chunk, and where.
        what: String,
        /// Its base.
        base: ChunkId,
        /// What is wrong with the base.
        reason: String,
    },
    /// No pack in the index holds this chunk.
    #[error("Chunk {0} is in no pack of the repository")]
    MissingChunk(ChunkId),
    /// A pack that should exist is missing.
    #[error("Pack {0} is not in the repository")]
    MissingPack(PackId),
    /// Written by a later release.
    #[error(
        "{what} has format version {found}, this barmanfs reads versions up to {newest}: use the newer \
         barmanfs that wrote it"
    )]
    NewerFormat {
        /// Which pack, map or listing.
        what: String,
        /// The version found.
        found: u32,
        /// The newest version this release reads.
        newest: u32,
    },
    /// Something is sealed under a key that this process does not hold. It is not damaged.
    #[error(
        "{what} is sealed under key {key}, which is not at hand: set key_file, key_command or passphrase_file to what opens \
         it (barmanfs key list names them), and start again what was started before the repository had this key"
    )]
    NoKey {
        /// Which pack or repository.
        what: String,
        /// The key.
        key: KeyId,
    },
    /// Something exceeds a limit of the format.
    #[error("{what} has {bytes} bytes, at most {limit} are possible")]
    TooLarge {
        /// "A chunk", "A record".
        what: &'static str,
        /// Its bytes.
        bytes: u64,
        /// The format's limit.
        limit: u64,
    },
    /// A caller's mistake: an argument that cannot be right.
    #[error("{0}")]
    Invalid(String),
    /// The chunk index failed.
    #[error("The catalog's index failed: {0}")]
    Index(Arc<dyn std::error::Error + Send + Sync>),
    /// No random bytes for a new id.
    #[error("The operating system gives no random bytes: {0}")]
    Random(String),
    /// No thread for the work.
    #[error(transparent)]
    NoThread(#[from] NoThread),
}

impl Error {
    /// An operating system's error, with what was tried on which file. A full file system becomes
    /// [`Error::Full`].
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            _ => Self::Io {
                action,
                path,
                source: Arc::new(source),
            },
        }
    }

    /// An error of a [`ChunkIndex`](crate::ChunkIndex) implementation.
    pub fn index(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Index(Arc::from(source.into()))
    }

    /// Damage to `what` ("Pack ab..").
    pub fn damaged(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Damaged {
            what: what.into(),
            reason: reason.into(),
        }
    }

    /// `what` is sealed under a key that is not held.
    pub fn no_key(what: impl Into<String>, key: KeyId) -> Self {
        Self::NoKey {
            what: what.into(),
            key,
        }
    }

    /// A copy of a pack whose id another pack has.
    pub fn other_bytes(id: PackId) -> Self {
        Self::Invalid(format!(
            "Pack {id} is there already, with other bytes: one of the two is damaged, or not of this repository"
        ))
    }

    /// The number of the operating system's error that caused this one.
    pub fn os_error(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } => Errno::from_io_error(source),
            Self::Full { .. } => Some(Errno::NOSPC),
            Self::Damaged { .. }
            | Self::LostBase { .. }
            | Self::MissingChunk(_)
            | Self::MissingPack(_)
            | Self::NewerFormat { .. }
            | Self::NoKey { .. }
            | Self::TooLarge { .. }
            | Self::Invalid(_)
            | Self::Index(_)
            | Self::Random(_) => None,
            Self::NoThread(error) => error.os_error().map(Errno::from_raw_os_error),
        }
    }

    /// Whether data once stored is lost or unreadable, as opposed to an operation that failed and may be
    /// tried again.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. } | Self::LostBase { .. } | Self::MissingChunk(_) | Self::MissingPack(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_its_own_error() {
        let full = Error::io("write", Path::new("/r/packs/x"), io::Error::from_raw_os_error(28));
        assert!(matches!(full, Error::Full { .. }));
        assert_eq!(
            full.to_string(),
            "No space left to write /r/packs/x: it is given up, everything acknowledged before is safe; \
             free space and run again"
        );
        let other = Error::io("write", Path::new("/r/packs/x"), io::Error::from_raw_os_error(13));
        assert_eq!(
            other.to_string(),
            "Cannot write /r/packs/x: Permission denied (os error 13)"
        );
    }

    #[test]
    fn damage_means_stored_data_that_is_gone() {
        assert!(Error::damaged("Pack x", "y").is_damage());
        assert!(Error::MissingChunk(ChunkId([0; 32])).is_damage());
        assert!(Error::MissingPack(PackId([0; 16])).is_damage());
        assert!(!Error::Full { path: PathBuf::new() }.is_damage());
        assert!(!Error::index("busy").is_damage());
    }
}
