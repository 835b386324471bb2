//! Clones and mounts: where a clone can be seen, and how a command gets a clone for itself.
//!
//! A clone has one writer: the process that holds its lock. A mount takes the lock at the first access to the clone. It
//! releases the lock when it is asked to (`.barmanfs/released/`) and nothing in the clone is open. So a command either
//! works through the mount that serves the clone, or makes all mounts release it and takes the lock itself.

mod clone_server;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use barmanfs_catalog::{CloneLock, CloneName, Repository, ServerName};
use barmanfs_fs::{FoundMount, FoundMounts};
use nix::errno::Errno;
use nix::unistd::{Uid, User};

pub(crate) use clone_server::{CloneServer, running_on};

use crate::error::Error;
use crate::instance;

/// A server that has just been stopped may still be closing its files.
const PATIENCE: Duration = Duration::from_secs(3);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The mounts of a repository.
#[derive(Debug)]
pub(crate) struct Mounts<'a> {
    repository: &'a Repository,
    found: FoundMounts,
}

impl<'a> Mounts<'a> {
    /// Finds the mounts.
    pub(crate) fn of(repository: &'a Repository) -> Result<Self, Error> {
        Ok(Self {
            repository,
            found: barmanfs_fs::mounts_of(repository.path())?,
        })
    }

    /// The requested mount, or the only one that shows the server.
    pub(crate) fn choose(&self, server: &ServerName, asked: Option<&Path>) -> Result<&FoundMount, Error> {
        if let Some(asked) = asked {
            return self.asked(server, asked);
        }
        let mut showing = self.showing(server);
        match (showing.next(), showing.next()) {
            (Some(mount), None) => Ok(mount),
            (Some(first), Some(second)) => Err(Error::usage(format!(
                "Server {server} is mounted more than once: at {}, {} ...",
                first.mount_point.display(),
                second.mount_point.display()
            ))
            .hint("Choose one with --mount DIR")),
            (None, _) => Err(self.none(server)),
        }
    }

    /// The mounts that show a server with its clones.
    pub(crate) fn showing(&self, server: &ServerName) -> impl Iterator<Item = &FoundMount> {
        let serving = self.found.serving.iter();
        serving.filter(|mount| live(mount, server).is_dir())
    }

    /// Where any mount that this user may look at shows the server: its root.
    pub(crate) fn any(&self, server: &ServerName) -> Option<&Path> {
        let mut places = self.found.serving.iter().map(|mount| mount.mount_point.as_path());
        places.find(|place| place.join(server.as_str()).is_dir())
    }

    fn asked(&self, server: &ServerName, asked: &Path) -> Result<&FoundMount, Error> {
        let path = fs::canonicalize(asked)
            .map_err(|error| Error::usage(format!("Cannot find {}: {error}", asked.display())))?;
        let mount = self.found.serving.iter().find(|mount| mount.mount_point == path);
        let mount = mount.ok_or_else(|| {
            let error = Error::usage(format!(
                "{} is no mount of the repository {}",
                asked.display(),
                self.repository.path().display()
            ));
            match self.names().as_str() {
                "" => error,
                names => error.hint(format!("It is mounted at {names}")),
            }
        })?;
        if live(mount, server).is_dir() {
            Ok(mount)
        } else {
            Err(Error::failed(format!(
                "The mount at {} does not show server {server}, or this user may not look at it",
                asked.display()
            )))
        }
    }

    fn names(&self) -> String {
        let names = self.found.serving.iter();
        let names: Vec<_> = names
            .map(|mount| mount.mount_point.display().to_string())
            .collect();
        names.join(", ")
    }

    /// The error when there is no mount to work on.
    fn none(&self, server: &ServerName) -> Error {
        let path = self.repository.path().display();
        if let [first, ..] = self.found.serving.as_slice() {
            return Error::failed(format!(
                "The mount at {} does not show server {server} with its clones",
                first.mount_point.display()
            ))
            .hint("Clones are for the owner of the server's files, and for root");
        }
        // A mount that cannot be asked may be the one that the user means.
        let perhaps = self
            .found
            .silent
            .first()
            .map(|silent| match silent.reason.kind() {
                io::ErrorKind::PermissionDenied => format!(
                    "; if it is the mount at {}, run this as {}",
                    silent.mount_point.display(),
                    name_or_number(silent.user)
                ),
                _ => format!(
                    "; if it is the mount at {}, that does not answer ({})",
                    silent.mount_point.display(),
                    silent.reason
                ),
            });
        Error::failed(format!("The repository {path} is not mounted")).hint(format!(
            "Mount it: barmanfs mount /mnt/backups{}",
            perhaps.unwrap_or_default()
        ))
    }

    /// The mount that serves a clone now, and the clone's directory there.
    pub(crate) fn serving(&self, server: &ServerName, name: &CloneName) -> Option<(&FoundMount, PathBuf)> {
        let process = self.repository.clone_holder(server, name)?;
        let mount = self
            .found
            .serving
            .iter()
            .find(|mount| mount.process == Some(process))?;
        Some((mount, live(mount, server).join(name.as_str())))
    }

    /// The clone's directory in the mount that serves it, otherwise in the mount to use.
    pub(crate) fn place_of(
        &self,
        server: &ServerName,
        name: &CloneName,
        asked: Option<&Path>,
    ) -> Result<(&FoundMount, PathBuf), Error> {
        if let (None, Some(place)) = (asked, self.serving(server, name)) {
            return Ok(place);
        }
        let mount = self.choose(server, asked)?;
        Ok((mount, live(mount, server).join(name.as_str())))
    }

    /// Makes every mount release a clone, if this user may request that. All writes to the clone are then durable.
    /// Returns a mount that this user may not ask.
    fn release(&self, server: &ServerName, name: &CloneName) -> Result<Option<&FoundMount>, Error> {
        let mut unwilling = None;
        for mount in &self.found.serving {
            let path = mount.mount_point.join(".barmanfs/released");
            let path = path.join(server.as_str()).join(name.as_str());
            let began = Instant::now();
            loop {
                match fs::metadata(&path) {
                    Ok(_) => break,
                    // A mount that does not show the server does not serve its clones either.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        unwilling = Some(mount);
                        break;
                    }
                    Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                        if began.elapsed() >= PATIENCE {
                            return Err(in_use(server, name, mount));
                        }
                        std::thread::sleep(TRY_AGAIN_AFTER);
                    }
                    Err(error) => {
                        return Err(Error::failed(format!(
                            "The mount at {} cannot let go of clone {name} of server {server}: {error}",
                            mount.mount_point.display()
                        )));
                    }
                }
            }
        }
        Ok(unwilling)
    }
}

/// Locks a clone for this process: no server runs on it, not even one that has outlived its mount, and no mount serves it as long as the lock lives.
///
/// # Errors
/// When a server runs on it, or files in it are open.
pub(crate) fn hold(
    repository: &Repository,
    server: &ServerName,
    name: &CloneName,
    purpose: &str,
) -> Result<CloneLock, Error> {
    repository.clone_named(server, name)?;
    let mounts = Mounts::of(repository)?;
    if let Some(found) = mounts.server_on(server, name)? {
        return Err(is_running(server, name, &found.running));
    }
    let unwilling = mounts.release(server, name)?;
    repository.lock_clone(server, name, purpose).map_err(|error| {
        let in_use = matches!(error, barmanfs_catalog::Error::CloneInUse { .. });
        let unwilling = unwilling.map(|mount| (&mount.mount_point, owner(&live(mount, server))));
        let silent = mounts.found.silent.first();
        let silent = silent.map(|silent| (&silent.mount_point, Some(silent.user)));
        match unwilling.or(silent) {
            Some((mount_point, Some(user))) if in_use => Error::from(error).hint(format!(
                "Perhaps by the mount at {}, which only {} can ask to let go",
                mount_point.display(),
                user_name(user)
            )),
            _ => error.into(),
        }
    })
}

/// The error for actions that are impossible while a server runs on the clone.
pub(crate) fn is_running(server: &ServerName, name: &CloneName, running: &instance::Running) -> Error {
    Error::failed(format!(
        "PostgreSQL runs on clone {name} of server {server}, on port {} (process {})",
        running.port, running.pid
    ))
    .hint(format!("Stop it first: barmanfs clone stop {server} {name}"))
}

fn in_use(server: &ServerName, name: &CloneName, mount: &FoundMount) -> Error {
    let path = live(mount, server).join(name.as_str());
    Error::failed(format!(
        "Clone {name} of server {server} is in use: files in {} are open",
        path.display()
    ))
    .hint(format!(
        "'fuser -vm {}' shows who has files of the mount open",
        mount.mount_point.display()
    ))
}

fn owner(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|metadata| metadata.uid())
}

/// The directory of a server's clones on a mount.
pub(crate) fn live(mount: &FoundMount, server: &ServerName) -> PathBuf {
    mount.mount_point.join(server.as_str()).join("live")
}

/// `user bob`, or `user 1007`.
pub(crate) fn user_name(uid: u32) -> String {
    format!("user {}", name_or_number(uid))
}

fn name_or_number(uid: u32) -> String {
    known_user(uid).unwrap_or_else(|| uid.to_string())
}

/// The name of a user on this host, if there is one.
pub(crate) fn known_user(uid: u32) -> Option<String> {
    let known = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    known.map(|user| user.name)
}
