//! The server that runs on a clone, also where its mount is gone.
//!
//! As long as a mount serves the clone, its `postmaster.pid` is read there. A clone that no process holds is read in the
//! repository: a server that has outlived its mount still runs, without files. While another process holds it, nothing is
//! known, and that is an error.

use std::path::{Path, PathBuf};

use barmanfs_catalog::{CloneName, Error as CatalogError, ServerName};
use barmanfs_live::{Kind, LiveClone};
use rustix::io::Errno;

use super::Mounts;
use crate::error::Error;
use crate::instance::{self, Running, Stop};

/// A pid file has eight lines, one of them a path.
const PID_FILE_MAX_BYTES: usize = 8 << 10;

/// A server that runs on a clone.
#[derive(Debug)]
pub(crate) struct CloneServer {
    pub(crate) running: Running,
    /// The clone's directory; `None` if no mount shows it.
    path: Option<PathBuf>,
}

impl CloneServer {
    /// Stops it. `place` is where it runs, in messages.
    ///
    /// # Errors
    /// As [`instance::stop`].
    pub(crate) fn stop(&self, place: &str, how: Stop) -> Result<(), Error> {
        match &self.path {
            Some(path) => instance::stop(path, how),
            None => instance::stop_server(&self.running, place, how),
        }
    }
}

impl Mounts<'_> {
    /// The server that runs on a clone.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub(crate) fn server_on(
        &self,
        server: &ServerName,
        name: &CloneName,
    ) -> Result<Option<CloneServer>, Error> {
        if let Some((_, path)) = self.serving(server, name) {
            return at(path);
        }
        let repository = self.repository;
        if !repository.is_clone_held(server, name) && !instance::may_any_have_lost_its_files() {
            return Ok(None);
        }
        match repository.lock_clone(server, name, "looking for its server") {
            Ok(lock) => {
                let running = self.read_in_repository(server, name)?;
                drop(lock);
                Ok(running.map(|running| CloneServer { running, path: None }))
            }
            Err(error @ (CatalogError::CloneInUse { .. } | CatalogError::NoSuchClone { .. })) => Err(self
                .may_be_served_by(Error::from(error).context(format_args!(
                    "Whether a server runs on clone {name} of server {server} is unknown"
                )))),
            // This user has no access to the repository. A mount may show the clone all the same.
            Err(error) => match self.place_of(server, name, None) {
                Ok((_, path)) => at(path),
                Err(_) => Err(error.into()),
            },
        }
    }

    /// The server that runs on a clone, through the requested mount.
    ///
    /// # Errors
    /// When that is no mount, or the clone cannot be read there.
    pub(crate) fn server_at(
        &self,
        server: &ServerName,
        name: &CloneName,
        mount: &Path,
    ) -> Result<Option<CloneServer>, Error> {
        at(self.place_of(server, name, Some(mount))?.1)
    }

    /// Names a mount that cannot be asked.
    fn may_be_served_by(&self, error: Error) -> Error {
        match self.found.silent.first() {
            Some(silent) => error.hint(format!(
                "Perhaps the mount at {} serves it, which only {} can ask: run this as that user",
                silent.mount_point.display(),
                super::user_name(silent.user)
            )),
            None => {
                error.hint("Try again when that process has ended, or look for a mount in another container")
            }
        }
    }

    /// Reads a clone that this process has locked.
    fn read_in_repository(&self, server: &ServerName, name: &CloneName) -> Result<Option<Running>, Error> {
        let description = self.repository.clone_named(server, name)?;
        let directory = self.repository.clone_directory(server, name);
        let _acting = self.repository.as_owner()?;
        let files = LiveClone::open(&directory, &description, self.repository.trees())?;
        running_on(&files)
    }
}

fn at(path: PathBuf) -> Result<Option<CloneServer>, Error> {
    let running = instance::running_in(&path).map_err(|error| {
        let failed = Error::failed(format!(
            "Whether a server runs in {} is unknown: {error}",
            path.display()
        ));
        // The clone cannot be looked at, but the directory of all clones can.
        match path.parent().and_then(super::owner) {
            Some(user) => failed.hint(format!(
                "This only {} can ask: run the command as that user, or as root",
                super::user_name(user)
            )),
            None => failed.hint("Run this as the user it belongs to, or as root"),
        }
    })?;
    Ok(running.map(|running| CloneServer {
        running,
        path: Some(path),
    }))
}

/// The server that a clone's `postmaster.pid` names, where no mount serves the clone.
pub(crate) fn running_on(files: &LiveClone) -> Result<Option<Running>, Error> {
    let found = match files.lookup(files.root(), instance::PID_FILE.as_bytes()) {
        Err(barmanfs_live::Error::Refused(Errno::NOENT)) => return Ok(None),
        found => found?,
    };
    if found.kind != Kind::File {
        return Ok(None);
    }
    let mut text = vec![0; PID_FILE_MAX_BYTES];
    let length = files.read(found.node, 0, &mut text)?;
    text.truncate(length);
    Ok(instance::running_by(&String::from_utf8_lossy(&text)))
}
