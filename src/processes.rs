//! The processes of barmanfs that are at work on a server, and ending them.
//!
//! A process is signalled only if it holds its lock, or serves its mount, after a descriptor of the process has been
//! opened: so the signal cannot reach another process that has got the same number since.

use std::path::{Path, PathBuf};

use barmanfs_catalog::{Repository, ServerName, WorkingProcess};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::Error;
use crate::output::printable;

/// The word for a process that serves a mount.
const MOUNT: &str = "mount";

/// The device through which a mount is served.
const FUSE: &str = "/dev/fuse";

/// A process that is at work.
#[derive(Debug)]
pub(crate) struct Process {
    /// What it does.
    pub(crate) task: &'static str,
    /// Its process number, if it runs on this host and this user may look at it.
    pub(crate) process: Option<u32>,
    /// What it says of itself.
    pub(crate) description: String,
    proof: Proof,
}

/// How it is known that the process is at work.
#[derive(Debug)]
enum Proof {
    /// It holds a lock of the repository.
    Lock(WorkingProcess),
    /// It serves the mount at this path.
    Mount(PathBuf),
}

/// The processes that work on a server, or on the whole repository.
///
/// # Errors
/// When the locks or the mounts cannot be listed.
pub(crate) fn of(repository: &Repository, server: &ServerName) -> Result<Vec<Process>, Error> {
    let locked = repository.processes(server)?.into_iter().map(|found| Process {
        task: found.task.as_str(),
        process: found.process,
        description: printable(found.description.as_bytes()),
        proof: Proof::Lock(found),
    });
    let mounts = barmanfs_fs::mounts_of(repository.path())?.serving;
    let serving = mounts.into_iter().map(|mount| Process {
        task: MOUNT,
        process: mount.process,
        description: printable(format!("mount at {}", mount.mount_point.display()).as_bytes()),
        proof: Proof::Mount(mount.mount_point),
    });
    Ok(locked.chain(serving).collect())
}

impl Process {
    /// Asks the process to end. Returns whether it was still at work.
    ///
    /// # Errors
    /// When it cannot be signalled: it runs on another host, or as another user.
    pub(crate) fn terminate(&self, repository: &Repository) -> Result<bool, Error> {
        let unreachable = || {
            Error::failed(format!(
                "The process of task {} cannot be signalled ({})",
                self.task, self.description
            ))
            .hint("Run this on its host, as its user")
        };
        let number = self.process.and_then(|number| i32::try_from(number).ok());
        let number = number.and_then(Pid::from_raw).ok_or_else(unreachable)?;
        let process = match pidfd_open(number, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(_) => return Err(unreachable()),
        };
        if !self.is_at_work(repository)? {
            return Ok(false);
        }
        match pidfd_send_signal(process, Signal::TERM) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(_) => Err(unreachable()),
        }
    }

    fn is_at_work(&self, repository: &Repository) -> Result<bool, Error> {
        match &self.proof {
            Proof::Lock(found) => Ok(repository.is_still_at_work(found)?),
            Proof::Mount(path) => {
                let mounts = barmanfs_fs::mounts_of(repository.path())?.serving;
                let serves = mounts
                    .iter()
                    .any(|mount| mount.mount_point == *path && mount.process == self.process);
                Ok(serves && self.process.is_some_and(has_fuse_open))
            }
        }
    }
}

/// Whether a process has the device of a mount open. A mount in another container has a number that means another
/// process here.
fn has_fuse_open(process: u32) -> bool {
    let files = match std::fs::read_dir(format!("/proc/{process}/fd")) {
        Ok(files) => files,
        // One that holds keys lets nobody look: then its name has to do.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let name = |process: &str| std::fs::read_to_string(format!("/proc/{process}/comm")).ok();
            return name("self").is_some_and(|own| name(&process.to_string()) == Some(own));
        }
        Err(_) => return false,
    };
    files
        .flatten()
        .filter_map(|file| std::fs::read_link(file.path()).ok())
        .any(|opened| opened == Path::new(FUSE))
}
