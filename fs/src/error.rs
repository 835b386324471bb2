//! Errors of mounting and of serving requests.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a mount failed, or a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The repository cannot be read, or its data is damaged.
    #[error(transparent)]
    Catalog(#[from] barmanfs_catalog::Error),
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
        /// The system's answer.
        source: io::Error,
    },
    /// The tree cannot be mounted there.
    #[error("Cannot mount on {}: {reason}", path.display())]
    CannotMount {
        /// The mount point.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// There is no mount of barmanfs at the path.
    #[error("{} is not a mount of barmanfs", path.display())]
    NotMounted {
        /// The path that was given.
        path: PathBuf,
    },
    /// The mount is in use, so it was not unmounted.
    #[error("{} is in use", path.display())]
    InUse {
        /// The mount point.
        path: PathBuf,
        /// The processes that use it, as far as this user may see them.
        holders: Vec<Holder>,
        /// The mounts inside it.
        inside: Vec<PathBuf>,
    },
    /// A view cannot be made from this backup.
    #[error("Backup {backup} cannot be shown as a startable directory: {reason}")]
    View {
        /// Server and id.
        backup: String,
        /// The reason.
        reason: String,
    },
    /// A clone's own files cannot be read or written.
    #[error(transparent)]
    Live(barmanfs_live::Error),
    /// The request is refused with this error number. Nothing is broken.
    #[error("{0}")]
    Refused(Errno),
}

/// A process that uses a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub process: u32,
    /// The user it runs as.
    pub user: u32,
    /// Its command name.
    pub command: String,
    /// How it uses the mount: "works in", "has open".
    pub doing: &'static str,
    /// The path it uses.
    pub path: PathBuf,
}

impl Holder {
    /// Whether the process has not ended.
    pub(crate) fn is_alive(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process)).unwrap_or_default();
        // The state follows the name, which is in brackets and may hold anything.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
    }
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source: source.into(),
        }
    }

    /// The error number that the requesting program gets.
    pub(crate) fn errno(&self) -> Errno {
        let cause = match self {
            Self::Refused(errno) => return *errno,
            Self::Catalog(error) => error.os_error(),
            Self::Store(error) => error.os_error(),
            Self::Live(error) => error.os_error(),
            Self::Io { source, .. } => Errno::from_io_error(source),
            Self::CannotMount { .. } | Self::NotMounted { .. } | Self::InUse { .. } | Self::View { .. } => {
                None
            }
        };
        cause
            .filter(|errno| PASSED_ON.contains(errno))
            .unwrap_or(Errno::IO)
    }

    /// Whether the error belongs in the log: every error except a plain refusal.
    pub(crate) fn is_failure(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

impl From<barmanfs_live::Error> for Error {
    fn from(error: barmanfs_live::Error) -> Self {
        match error {
            barmanfs_live::Error::Refused(errno) => Self::Refused(errno),
            barmanfs_live::Error::Store(error) => Self::Store(error),
            other => Self::Live(other),
        }
    }
}

/// Error numbers of the repository's file system that mean the same for the requesting program: a lack of space, of a
/// resource or of a permission. All others become EIO. Above all, ENOENT of a pack must not look as if the requested
/// file did not exist: PostgreSQL assumes that a missing file is not needed.
const PASSED_ON: [Errno; 8] = [
    Errno::ACCESS,
    Errno::PERM,
    Errno::ROFS,
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::MFILE,
    Errno::NFILE,
    Errno::NOMEM,
];

/// Refusals that several modules use.
pub(crate) const NOT_FOUND: Error = Error::Refused(Errno::NOENT);
pub(crate) const STALE: Error = Error::Refused(Errno::STALE);

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn numbers(errno: Errno) -> [Errno; 3] {
        let source = || io::Error::from(errno);
        let pack = Path::new("/repository/packs/ab/cd");
        let store = || barmanfs_store::Error::io("read", pack, source());
        [
            Error::io("read", pack, source()).errno(),
            Error::Store(store()).errno(),
            Error::Catalog(barmanfs_catalog::Error::from(store())).errno(),
        ]
    }

    #[test]
    fn a_lack_of_resources_keeps_its_errno() {
        for errno in PASSED_ON.into_iter().filter(|errno| *errno != Errno::DQUOT) {
            assert_eq!(numbers(errno), [errno; 3]);
        }
        // The store has one error for no space and for no quota.
        assert_eq!(numbers(Errno::DQUOT), [Errno::DQUOT, Errno::NOSPC, Errno::NOSPC]);
    }

    #[test]
    fn a_missing_pack_is_not_a_missing_file() {
        for errno in [
            Errno::NOENT,
            Errno::NOTDIR,
            Errno::STALE,
            Errno::EXIST,
            Errno::INTR,
            Errno::AGAIN,
        ] {
            assert_eq!(numbers(errno), [Errno::IO; 3]);
        }
    }
}
