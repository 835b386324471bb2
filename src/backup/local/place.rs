//! Where the files of a server are on this host, and whether they are those of the server that was asked.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use barmanfs_pg::pg_control::{ControlError, ControlFile};
use barmanfs_store::Attributes;

use crate::cluster::{ConfigurationPaths, ServerSettings};
use crate::error::Error;
use crate::instance::{self, PID_FILE};
use crate::output::printable;
use crate::walk::{attributes, cannot_read, read_small};

/// The most that the control file or `postmaster.pid` may have.
const SMALL_BYTES: u64 = 64 << 10;

/// How often the control file is read again while the server writes it.
const CONTROL_READS: u32 = 100;

/// How long the server needs for one write of it, at most.
const CONTROL_AGAIN: Duration = Duration::from_millis(10);

/// What to do where the files are elsewhere.
const OTHERWISE: &str = "backup_method = files reads the files on the server's own host, as the user that PostgreSQL runs as. \
                         With backup_method = postgres the server sends them";

/// The data directory of a server that runs on this host.
#[derive(Debug)]
pub(super) struct DataDirectory {
    path: PathBuf,
}

impl DataDirectory {
    /// Looks for it where the server says.
    ///
    /// # Errors
    /// When the server does not say it, or it cannot be read here.
    pub(super) fn find(paths: Option<&ConfigurationPaths>, cluster: &ServerSettings) -> Result<Self, Error> {
        let Some(paths) = paths else {
            return Err(
                Error::failed("The server does not tell where its data directory is").hint(
                    "As a superuser there: GRANT pg_read_all_settings TO the role of streaming_conninfo",
                ),
            );
        };
        let found = Self {
            path: PathBuf::from(&paths.data_directory),
        };
        let control = found.control()?;
        let system_id = match ControlFile::parse(&control) {
            Ok(control) => control.system_id,
            Err(ControlError::UnknownVersion { system_id, .. }) => system_id,
            Err(error) => return Err(Error::failed(format!("{}: {error}", found.shown()))),
        };
        match system_id == cluster.system_id {
            true => Ok(found),
            false => Err(Error::failed(format!(
                "On this host, {} is of the cluster with system identifier {system_id}, the server is {}",
                found.shown(),
                cluster.system_id
            ))
            .hint(OTHERWISE)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn shown(&self) -> String {
        use std::os::unix::ffi::OsStrExt;
        printable(self.path.as_os_str().as_bytes())
    }

    /// Proves that these are the files of the server that has this process: another server of the cluster may have the same path
    /// on another host.
    ///
    /// # Errors
    /// When it is another one, or it cannot be told.
    pub(super) fn prove(&self, process: u32) -> Result<(), Error> {
        let file = read_small(&self.path.join(PID_FILE), SMALL_BYTES)?.unwrap_or_default();
        let postmaster = instance::holder_of(&file);
        let parent = i32::try_from(process).ok().and_then(instance::parent_of);
        let is_elsewhere = || {
            let cwd = postmaster.and_then(|pid| fs::metadata(format!("/proc/{pid}/cwd")).ok());
            let here = fs::metadata(&self.path).ok();
            // Only its own user may see where a process is.
            cwd.zip(here)
                .is_some_and(|(cwd, here)| (cwd.dev(), cwd.ino()) != (here.dev(), here.ino()))
        };
        if postmaster.is_some() && postmaster == parent && !is_elsewhere() {
            return Ok(());
        }
        Err(Error::failed(format!(
            "The server that conninfo leads to is not the one that runs in {} on this host: its session has the process \
             {process}, whose parent is not the one in postmaster.pid",
            self.shown()
        ))
        .hint(OTHERWISE))
    }

    /// Owner, permissions and time of the data directory.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub(super) fn root(&self) -> Result<Attributes, Error> {
        let found = fs::metadata(&self.path).map_err(|error| cannot_read(&self.path, &error))?;
        Ok(in_seconds(attributes(&found)))
    }

    fn control_place(&self) -> PathBuf {
        self.path.join("global/pg_control")
    }

    /// The same of the control file.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub(super) fn control_attributes(&self) -> Result<Attributes, Error> {
        let place = self.control_place();
        let found = fs::metadata(&place).map_err(|error| cannot_read(&place, &error))?;
        Ok(in_seconds(attributes(&found)))
    }

    /// The control file. The server may write it at any time, so it is read until its checksum is right, or, where its layout is
    /// not known, until it is the same twice.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub(super) fn control(&self) -> Result<Vec<u8>, Error> {
        let mut before = Vec::new();
        for _ in 0..CONTROL_READS {
            let bytes = self.read_control()?;
            let is_whole = match ControlFile::parse(&bytes) {
                Ok(_) => true,
                Err(ControlError::UnknownVersion { .. }) => bytes == before,
                Err(_) => false,
            };
            if is_whole {
                return Ok(bytes);
            }
            before = bytes;
            thread::sleep(CONTROL_AGAIN);
        }
        Err(Error::failed(format!(
            "global/pg_control in {} is damaged",
            self.shown()
        )))
    }

    fn read_control(&self) -> Result<Vec<u8>, Error> {
        let place = self.control_place();
        match fs::metadata(&place) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return Err(cannot_read(&place, &error).hint(OTHERWISE));
            }
            _ => {}
        }
        let read = read_small(&place, SMALL_BYTES).map_err(|error| error.hint(OTHERWISE))?;
        read.ok_or_else(|| Error::failed(format!("{} does not exist", place.display())))
    }
}

/// A server's tar archives have whole seconds. So the listings of backups by both methods are the same.
pub(super) fn in_seconds(attributes: Attributes) -> Attributes {
    Attributes {
        mtime_ns: 0,
        ..attributes
    }
}
