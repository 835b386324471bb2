//! Finds the data directory in a mounted snapshot.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use barmanfs_pg::ServerVersion;
use barmanfs_pg::pg_control::ControlFile;

use super::running;
use crate::error::Error;
use crate::fstab;
use crate::import::directory::{cannot_read, read_small};
use crate::output::printable;

/// The most that `PG_VERSION` or the control file may have.
const SMALL_BYTES: u64 = 64 << 10;

/// The control file.
const CONTROL: &str = "global/pg_control";

/// Directories without which no server starts. A snapshot that does not have them lacks a disk.
const NEVER_EMPTY: [&str; 4] = ["base", "global", "pg_xact", "pg_multixact"];

/// A data directory in a mounted snapshot.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// Its place, without links.
    pub(super) data: PathBuf,
    pub(super) control: ControlFile,
    pub(super) version: ServerVersion,
    pub(super) device: u64,
    /// The mount point that it is below.
    pub(super) mounted_at: PathBuf,
}

impl Snapshot {
    /// Looks at what is mounted at `from`. `live` is the data directory of the server, if it is known.
    ///
    /// # Errors
    /// When that is no data directory, or one that a server runs in.
    pub(super) fn open(from: &Path, live: Option<&Path>) -> Result<Self, Error> {
        let data = fs::canonicalize(from).map_err(|error| cannot_read(from, &error))?;
        let found = fs::metadata(&data).map_err(|error| cannot_read(&data, &error))?;
        let shown = printable(data.as_os_str().as_bytes());
        let not_there = |name: &str| {
            Error::failed(format!(
                "{shown} has no {name}: it is no data directory, or the snapshot is not mounted"
            ))
            .hint("--from names the data directory within the mounted snapshot")
        };
        let small = |name: &str| read_small(&data.join(name), SMALL_BYTES);
        let version = small("PG_VERSION")?.ok_or_else(|| not_there("PG_VERSION"))?;
        let version = ServerVersion::of_data_directory(&version)
            .ok_or_else(|| Error::failed(format!("PG_VERSION in {shown} holds no version")))?;
        let control = small(CONTROL)?.ok_or_else(|| not_there(CONTROL))?;
        let control = ControlFile::parse(&control)
            .map_err(|error| Error::failed(format!("{CONTROL} in {shown}: {error}")))?;
        let is_live = live.is_some_and(|live| is_same(live, &found));
        if is_live || has_running_server(&data, &found) {
            return Err(Error::failed(format!(
                "{shown} is the data directory of a running server: its files change while they are read"
            ))
            .hint("Name the data directory within a snapshot that is mounted elsewhere"));
        }
        let snapshot = Self::of(&data, control, version)?;
        snapshot.refuse_holes()?;
        Ok(snapshot)
    }

    /// What is at `data`, a path without links.
    pub(super) fn of(data: &Path, control: ControlFile, version: ServerVersion) -> Result<Self, Error> {
        let found = fs::metadata(data).map_err(|error| cannot_read(data, &error))?;
        Ok(Self {
            mounted_at: mount_point_of(data),
            device: found.dev(),
            data: data.to_owned(),
            control,
            version,
        })
    }

    /// A directory that is a mount point or a volume of its own on the server is empty in the snapshot of the disk around it.
    fn refuse_holes(&self) -> Result<(), Error> {
        for name in NEVER_EMPTY {
            let place = self.data.join(name);
            let found = fs::symlink_metadata(&place).map_err(|error| cannot_read(&place, &error))?;
            if found.is_symlink() {
                return Err(linked(&place));
            }
            let mut entries = fs::read_dir(&place).map_err(|error| cannot_read(&place, &error))?;
            if entries.next().is_none() {
                return Err(hole(&place));
            }
        }
        Ok(())
    }

    /// The directory of a tablespace in which this cluster has its files.
    pub(super) fn version_directory(&self) -> String {
        format!("PG_{}_{}", self.version.major(), self.control.catalog_version)
    }
}

/// Says that a directory is empty that no server leaves empty.
pub(super) fn hole(place: &Path) -> Error {
    Error::failed(format!(
        "{} is empty: on the server it is a disk or a volume of its own, which this snapshot does not have",
        printable(place.as_os_str().as_bytes())
    ))
}

/// Says that a directory is a link, behind which are the server's own files, or none.
pub(super) fn linked(place: &Path) -> Error {
    Error::failed(format!(
        "{} is a link: what it leads to is not in this snapshot",
        printable(place.as_os_str().as_bytes())
    ))
    .hint("Take a snapshot in which the data directory is whole, but for tablespaces and pg_wal")
}

/// Whether this is the same directory, by whatever path.
pub(super) fn is_same(path: &Path, found: &Metadata) -> bool {
    let id = |found: &Metadata| (found.dev(), found.ino());
    fs::metadata(path).is_ok_and(|other| id(&other) == id(found))
}

/// Whether the process in `postmaster.pid` runs in this directory. A snapshot has that file, too.
fn has_running_server(data: &Path, found: &Metadata) -> bool {
    let said = running::pid_file(data);
    said.is_some_and(|said| is_same(Path::new(&format!("/proc/{}/cwd", said.pid)), found))
}

/// The mount point that a path without links is below.
fn mount_point_of(path: &Path) -> PathBuf {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let points = text.lines().filter_map(fstab::mounted_at);
    let nearest = points
        .filter(|point| path.starts_with(point))
        .max_by_key(|point| point.as_os_str().len());
    nearest.unwrap_or_else(|| PathBuf::from("/"))
}
