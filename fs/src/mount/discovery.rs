//! Finding the mounts that serve a repository: what works on clones goes through one of them, or asks all to let go.

use std::io;
use std::path::{Path, PathBuf};

use super::mountinfo::{self, Mounted};
use super::status::Status;
use crate::error::Result;

/// A mount that serves the repository that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundMount {
    /// Where.
    pub mount_point: PathBuf,
    /// The process that serves it, as a number of its own process namespace.
    pub process: Option<u32>,
    /// The user it was mounted by.
    pub user: u32,
    /// Whether other users may look into it.
    pub allow_other: bool,
}

/// A mount of barmanfs that does not say what it serves.
#[derive(Debug)]
pub struct SilentMount {
    /// Where.
    pub mount_point: PathBuf,
    /// The user it was mounted by.
    pub user: u32,
    /// Why: "Permission denied" of another user's, "Transport endpoint is not connected" where the process is gone.
    pub reason: io::Error,
}

/// The mounts of barmanfs this process can see.
#[derive(Debug, Default)]
pub struct FoundMounts {
    /// Those that serve the repository.
    pub serving: Vec<FoundMount>,
    /// Those of which nobody knows.
    pub silent: Vec<SilentMount>,
}

/// Finds the mounts of the repository at this path.
///
/// # Errors
/// When the table of mounts cannot be read, or the repository is not there.
pub fn mounts_of(repository: &Path) -> Result<FoundMounts> {
    let canonical = |path: &Path| {
        path.canonicalize()
            .map_err(|source| crate::Error::io("find", path, source))
    };
    let repository = canonical(repository)?;
    let mut found = FoundMounts::default();
    for mounted in Mounted::all()? {
        let mount_point = mounted.path().to_path_buf();
        let user = mounted.user();
        match Status::of(&mount_point) {
            Ok(status) if canonical(&status.repository).is_ok_and(|served| served == repository) => {
                found.serving.push(FoundMount {
                    mount_point,
                    process: status.process,
                    user,
                    allow_other: mounted.allow_other(),
                });
            }
            // Another repository's.
            Ok(_) => {}
            // A part of a mount that is bound elsewhere, or one that has just gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(reason) => found.silent.push(SilentMount {
                mount_point,
                user,
                reason,
            }),
        }
    }
    Ok(found)
}

impl FoundMount {
    /// Whether this user may look into it.
    pub fn is_open_to(&self, user: u32) -> bool {
        self.allow_other || self.user == user
    }
}

impl Mounted {
    /// Every mount of ours that is seen at its path.
    fn all() -> Result<Vec<Self>> {
        Ok(mountinfo::all_seen(&mountinfo::table()?))
    }
}
