//! The directory of a boot test: private, for the mount, the server's socket, its log and its `pg_hba.conf`.
//!
//! ```text
//! /tmp/barmanfs-boot-XXXXXX/     its maker's; the group of the data's owner may pass
//!     mount/                     the repository, while the test runs
//!     s/                         the socket: the data's owner's alone
//!     pg_hba.conf, server.log
//! ```
//!
//! It is never removed recursively, because that would reach through a mount that still exists. Everything that root
//! creates stays root's, except `s`: in another user's directory, names may lead elsewhere by the time they are
//! removed.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use crate::error::Error;

/// Prefix of the directories' names. After a kill they are found by it.
const PREFIX: &str = "barmanfs-boot-";

/// Maximum length of a socket's path that all systems accept (`sockaddr_un` has 108 bytes, the last of them zero).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The port in the socket's name. The server listens on no port. No other server of this host has this number, so a
/// program in the database that connects to "its own" port does not reach another server.
pub(super) const PORT: u16 = 65_432;

/// The permissions of the socket's directory decide who may connect.
const PG_HBA_CONF: &str = "local all all trust\n";

/// The directory of a boot test. It is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Workspace {
    path: PathBuf,
}

impl Workspace {
    /// Makes a directory for a server that runs as this user.
    pub(super) fn make(uid: u32, gid: u32) -> Result<Self, Error> {
        let parent = parent(&std::env::temp_dir());
        let failed = |error| {
            Error::failed(format!(
                "Cannot make a directory in {}: {error}",
                parent.display()
            ))
        };
        let made = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&parent);
        let workspace = Self {
            path: made.map_err(failed)?.keep(),
        };
        workspace.fill(uid, gid).map_err(failed)?;
        Ok(workspace)
    }

    fn fill(&self, uid: u32, gid: u32) -> io::Result<()> {
        let foreign = Uid::effective().as_raw() != uid;
        let give = |path: &Path| match foreign {
            true => std::os::unix::fs::chown(path, Some(uid), Some(gid)),
            false => Ok(()),
        };
        for directory in [self.mount_point(), self.sockets()] {
            DirBuilder::new().mode(0o700).create(directory)?;
        }
        give(&self.sockets())?;
        fs::write(self.hba_file(), PG_HBA_CONF)?;
        give(&self.hba_file())?;
        if foreign {
            std::os::unix::fs::chown(&self.path, None, Some(gid))?;
            fs::set_permissions(&self.path, Permissions::from_mode(0o710))?;
        }
        Ok(())
    }

    pub(super) fn mount_point(&self) -> PathBuf {
        self.path.join("mount")
    }

    pub(super) fn sockets(&self) -> PathBuf {
        self.path.join("s")
    }

    pub(super) fn hba_file(&self) -> PathBuf {
        self.path.join("pg_hba.conf")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("server.log")
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!("{} is left behind: {error}", self.path.display());
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    // This fails while something is still mounted, before anything else is removed.
    fs::remove_dir(path.join("mount")).or_else(gone)?;
    for directory in [path.join("s"), path.to_path_buf()] {
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            fs::remove_file(entry?.path()).or_else(gone)?;
        }
        fs::remove_dir(&directory).or_else(gone)?;
    }
    Ok(())
}

fn gone(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

/// The usual directory for temporary files, unless the path of a socket below it would be too long.
fn parent(usual: &Path) -> PathBuf {
    let socket = usual.join(format!("{PREFIX}XXXXXX/s/.s.PGSQL.{PORT}"));
    if socket.is_absolute() && socket.as_os_str().len() <= MAX_SOCKET_PATH_BYTES {
        usual.to_owned()
    } else {
        PathBuf::from("/tmp")
    }
}

/// Unmounts the dead mounts of killed tests, and removes their directories. Only those of this user: another user's
/// directory may contain anything.
pub(crate) fn remove_leftovers() {
    let Ok(entries) = fs::read_dir(parent(&std::env::temp_dir())) else {
        return;
    };
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().map(OsStr::as_encoded_bytes);
        let own = fs::symlink_metadata(path)
            .is_ok_and(|found| found.is_dir() && found.uid() == Uid::effective().as_raw());
        own && name.is_some_and(|name| name.starts_with(PREFIX.as_bytes()))
    };
    for path in entries.flatten().map(|entry| entry.path()).filter(is_ours) {
        // A mount that answers belongs to a running test. Without a mount, a test may just be starting.
        if matches!(barmanfs_fs::recover_stale(&path.join("mount")), Ok(true)) {
            match remove(&path) {
                Ok(()) => tracing::info!("Removed {}, left by a killed boot test", path.display()),
                Err(error) => tracing::warn!("{} is left behind: {error}", path.display()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_is_private_and_is_removed() {
        let (uid, gid) = (Uid::effective().as_raw(), nix::unistd::Gid::effective().as_raw());
        let workspace = Workspace::make(uid, gid).unwrap();
        for directory in [&workspace.path, &workspace.sockets(), &workspace.mount_point()] {
            assert_eq!(fs::metadata(directory).unwrap().mode() & 0o777, 0o700);
        }
        // Files that servers leave there.
        fs::write(workspace.log(), "PANIC").unwrap();
        fs::write(workspace.sockets().join(".s.PGSQL.65432.lock"), "").unwrap();
        let path = workspace.path.clone();
        drop(workspace);
        assert!(!path.exists());
    }

    #[test]
    fn files_in_a_remaining_mount_are_not_touched() {
        let workspace = Workspace::make(Uid::effective().as_raw(), 0).unwrap();
        let inside = workspace.mount_point().join("file");
        fs::write(&inside, "").unwrap();
        let path = workspace.path.clone();
        drop(workspace);
        assert!(inside.exists() && path.join("pg_hba.conf").exists());
        fs::remove_file(inside).unwrap();
        remove(&path).unwrap();
    }

    #[test]
    fn a_socket_has_a_short_path() {
        assert_eq!(parent(Path::new("/var/tmp")), Path::new("/var/tmp"));
        assert_eq!(parent(Path::new(&"/long".repeat(30))), Path::new("/tmp"));
        assert_eq!(parent(Path::new("relative")), Path::new("/tmp"));
    }
}
