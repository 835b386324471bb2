//! Finds the mounts that serve a repository. Commands on clones use one of them, or ask all of them to release a
//! clone.

use std::io;
use std::path::{Path, PathBuf};

use super::mountinfo::{self, Mounted};
use super::status::Status;
use crate::counters::MountCounters;
use crate::error::Result;

/// A mount that serves the given repository.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundMount {
    /// The mount point.
    pub mount_point: PathBuf,
    /// The id of the process that serves it, in that process's own namespace.
    pub process: Option<u32>,
    /// The user who mounted it.
    pub user: u32,
    /// Whether other users may access it.
    pub allow_other: bool,
    /// What it has done; `None` for a mount of an earlier release.
    pub counters: Option<MountCounters>,
}

/// A mount of barmanfs whose repository is unknown.
#[derive(Debug)]
pub struct SilentMount {
    /// The mount point.
    pub mount_point: PathBuf,
    /// The user who mounted it.
    pub user: u32,
    /// The reason: "Permission denied" for another user's mount, "Transport endpoint is not connected" without a
    /// process.
    pub reason: io::Error,
}

/// The mounts of barmanfs that this process can see.
#[derive(Debug, Default)]
pub struct FoundMounts {
    /// Those that serve the repository.
    pub serving: Vec<FoundMount>,
    /// Those whose repository is unknown.
    pub silent: Vec<SilentMount>,
}

/// Finds the mounts of the repository at this path.
///
/// # Errors
/// When the mount table cannot be read, or the repository does not exist.
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
                    counters: status.counters,
                });
            }
            // It serves another repository.
            Ok(_) => {}
            // A bind mount of a part of a tree, or a mount that has just gone.
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
    /// Whether this user may access it.
    pub fn is_open_to(&self, user: u32) -> bool {
        self.allow_other || self.user == user
    }
}

impl Mounted {
    /// Every mount of barmanfs that is visible at its path.
    fn all() -> Result<Vec<Self>> {
        Ok(mountinfo::all_seen(&mountinfo::table()?))
    }
}
