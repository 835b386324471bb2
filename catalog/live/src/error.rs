//! Errors of operations on a clone.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a clone failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Stored data cannot be read, or is damaged.
    #[error(transparent)]
    Store(#[from] barmanfs_store::Error),
    /// The operating system refused.
    #[error("Cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// One of the clone's own files is damaged, incomplete or of another clone.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operation is refused with this error number. Nothing is broken.
    #[error("{0}")]
    Refused(Errno),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source: source.into(),
        }
    }

    /// The number of the operating system's error that caused this one.
    pub fn os_error(&self) -> Option<Errno> {
        match self {
            Self::Refused(errno) => Some(*errno),
            Self::Store(error) => error.os_error(),
            Self::Io { source, .. } => Errno::from_io_error(source),
            Self::Unusable { .. } => None,
        }
    }
}

pub(crate) const NOT_FOUND: Error = Error::Refused(Errno::NOENT);
pub(crate) const STALE: Error = Error::Refused(Errno::STALE);

/// Converts an error of the system. A full disk is not a failure of ours, so its error number is passed on.
pub(crate) fn failed(action: &'static str, path: impl Into<PathBuf>, error: io::Error) -> Error {
    match Errno::from_io_error(&error) {
        Some(Errno::NOSPC | Errno::DQUOT) => Error::Refused(Errno::NOSPC),
        Some(errno @ (Errno::FBIG | Errno::OPNOTSUPP)) => Error::Refused(errno),
        _ => Error::io(action, path, error),
    }
}
