//! Finds the data directory and the tablespaces in a mounted snapshot.
//!
//! The links of tablespaces have the paths of the server. On the server's own host they lead to its live files, which are no
//! snapshot: so no link is followed out of the snapshot's file system, and each place must hold what the control file says.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use barmanfs_pg::ServerVersion;
use barmanfs_pg::pg_control::ControlFile;

use crate::config::TablespacePlace;
use crate::error::Error;
use crate::fstab;
use crate::import::directory::{cannot_read, read_small};
use crate::output::printable;

/// The most that `PG_VERSION`, the control file or `postmaster.pid` may have.
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
    device: u64,
    /// The mount point that it is below.
    mounted_at: PathBuf,
}

/// A tablespace of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) oid: u32,
    pub(super) name: Option<String>,
    /// Its place on the server.
    pub(super) location: Vec<u8>,
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
        let snapshot = Self {
            mounted_at: mount_point_of(&data),
            device: found.dev(),
            data,
            control,
            version,
        };
        snapshot.refuse_holes()?;
        Ok(snapshot)
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

    /// Where the files of these tablespaces are in the snapshot, by OID. `live` is the server's data directory.
    ///
    /// # Errors
    /// When one is not in the snapshot, or is not the tablespace of this cluster.
    pub(super) fn tablespaces(
        &self,
        wanted: &[Wanted],
        given: &[TablespacePlace],
        live: Option<&Path>,
    ) -> Result<BTreeMap<u32, PathBuf>, Error> {
        if let Some(unknown) = given
            .iter()
            .find(|given| !wanted.iter().any(|wanted| wanted.is_named(&given.which)))
        {
            return Err(Error::failed(format!(
                "The backup has no tablespace {}",
                printable(unknown.which.as_bytes())
            )));
        }
        let mut places = BTreeMap::new();
        for wanted in wanted {
            let by_hand = given.iter().find(|given| wanted.is_named(&given.which));
            let place = match by_hand {
                Some(given) => {
                    fs::canonicalize(&given.place).map_err(|error| cannot_read(&given.place, &error))?
                }
                None => self.find(wanted, live)?,
            };
            self.check(wanted, &place)?;
            places.insert(wanted.oid, place);
        }
        self.refuse_unknown(wanted)?;
        Ok(places)
    }

    /// A link that the map does not know was made after the snapshot's backup began or ended: the two do not belong together.
    fn refuse_unknown(&self, wanted: &[Wanted]) -> Result<(), Error> {
        let place = self.data.join("pg_tblspc");
        for entry in fs::read_dir(&place).map_err(|error| cannot_read(&place, &error))? {
            let entry = entry.map_err(|error| cannot_read(&place, &error))?;
            let name = entry.file_name();
            let oid = name.to_str().and_then(|name| name.parse::<u32>().ok());
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if let Some(oid) = oid
                && is_link
                && !wanted.iter().any(|wanted| wanted.oid == oid)
            {
                return Err(Error::failed(format!(
                    "pg_tblspc/{oid} of the snapshot is a tablespace that the backup's tablespace_map does not name: it was \
                     made while the snapshot was taken, or the two do not belong together"
                )));
            }
        }
        Ok(())
    }

    /// By its link, which has a path of the server.
    fn find(&self, wanted: &Wanted, live: Option<&Path>) -> Result<PathBuf, Error> {
        let link = self.data.join("pg_tblspc").join(wanted.oid.to_string());
        let found = match fs::symlink_metadata(&link) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::failed(format!(
                    "The snapshot has no pg_tblspc/{}, and the backup's tablespace_map names it: it is not of this backup",
                    wanted.oid
                )));
            }
            Err(error) => return Err(cannot_read(&link, &error)),
        };
        if found.is_dir() {
            return Ok(link);
        }
        let target = fs::read_link(&link).map_err(|error| cannot_read(&link, &error))?;
        for candidate in self.candidates(&link, &target, live) {
            let Ok(place) = fs::canonicalize(&candidate) else {
                continue;
            };
            let is_inside = fs::metadata(&place)
                .is_ok_and(|found| found.is_dir() && found.dev() == self.device)
                && place.starts_with(&self.mounted_at);
            if is_inside {
                return Ok(place);
            }
        }
        Err(Error::failed(format!(
            "Tablespace {} is not in the snapshot at {}: its link leads to {}",
            wanted.shown(),
            self.data.display(),
            printable(target.as_os_str().as_bytes())
        ))
        .hint(format!(
            "Mount its snapshot, too, and name the place: --tablespace {}:DIR",
            wanted.oid
        )))
    }

    /// Where the target of a link may be in the snapshot.
    fn candidates(&self, link: &Path, target: &Path, live: Option<&Path>) -> Vec<PathBuf> {
        if target.is_relative() {
            return link
                .parent()
                .map(|parent| parent.join(target))
                .into_iter()
                .collect();
        }
        let mut candidates = Vec::new();
        // The snapshot has at `here` what the server has at `there`.
        if let Some((here, there)) = live.and_then(|live| roots(&self.data, live))
            && let Ok(rest) = target.strip_prefix(&there)
        {
            candidates.push(here.join(rest));
        }
        if let Ok(rest) = target.strip_prefix("/") {
            candidates.push(self.mounted_at.join(rest));
        }
        candidates.push(target.to_owned());
        candidates
    }

    /// A tablespace has a directory for the version of the cluster's catalog.
    fn check(&self, wanted: &Wanted, place: &Path) -> Result<(), Error> {
        let version = self.version.major();
        let name = format!("PG_{version}_{}", self.control.catalog_version);
        match fs::symlink_metadata(place.join(&name)) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(Error::failed(format!(
                "{}/{name} is no directory",
                place.display()
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::failed(format!(
                "{} has no {name}: it is not tablespace {}, or its snapshot is not mounted there",
                place.display(),
                wanted.shown()
            ))),
            Err(error) => Err(cannot_read(&place.join(&name), &error)),
        }
    }
}

impl Wanted {
    fn is_named(&self, which: &str) -> bool {
        which == self.oid.to_string()
            || Some(which) == self.name.as_deref()
            || which.as_bytes() == self.location.as_slice()
    }

    fn shown(&self) -> String {
        let location = printable(&self.location);
        match &self.name {
            Some(name) => format!("{name} ({}, on the server at {location})", self.oid),
            None => format!("{} (on the server at {location})", self.oid),
        }
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

fn is_same(path: &Path, found: &Metadata) -> bool {
    let id = |found: &Metadata| (found.dev(), found.ino());
    fs::metadata(path).is_ok_and(|other| id(&other) == id(found))
}

/// Whether the process in `postmaster.pid` runs in this directory. A snapshot has that file, too.
fn has_running_server(data: &Path, found: &Metadata) -> bool {
    let Ok(Some(bytes)) = read_small(&data.join("postmaster.pid"), SMALL_BYTES) else {
        return false;
    };
    let text = String::from_utf8_lossy(&bytes);
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse::<u32>().ok());
    pid.is_some_and(|pid| is_same(Path::new(&format!("/proc/{pid}/cwd")), found))
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

/// What is left of two paths without their common end.
fn roots(one: &Path, other: &Path) -> Option<(PathBuf, PathBuf)> {
    let names = |path: &Path| -> Vec<Vec<u8>> {
        let names = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned().into_vec()),
            _ => None,
        });
        names.collect()
    };
    if !one.is_absolute() || !other.is_absolute() {
        return None;
    }
    let (one, other) = (names(one), names(other));
    let common = one
        .iter()
        .rev()
        .zip(other.iter().rev())
        .take_while(|(one, other)| one == other)
        .count();
    let root = |names: &[Vec<u8>]| {
        let kept = names.get(..names.len() - common).unwrap_or_default();
        let mut root = PathBuf::from("/");
        root.extend(kept.iter().map(|name| std::ffi::OsStr::from_bytes(name)));
        root
    };
    Some((root(&one), root(&other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_snapshot_follows_from_the_data_directory() {
        let of = |one: &str, other: &str| {
            let (one, other) = roots(Path::new(one), Path::new(other)).unwrap();
            (one.display().to_string(), other.display().to_string())
        };
        let same = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert_eq!(of("/mnt/s/pg/data", "/srv/pg/data"), same("/mnt/s", "/srv"));
        assert_eq!(of("/mnt/s/data", "/srv/pg/data"), same("/mnt/s", "/srv/pg"));
        assert_eq!(of("/mnt/snap", "/srv/data"), same("/mnt/snap", "/srv/data"));
        assert_eq!(roots(Path::new("a"), Path::new("/a")), None);
    }

    #[test]
    fn a_tablespace_has_three_names() {
        let wanted = Wanted {
            oid: 16384,
            name: Some("fast".to_owned()),
            location: b"/srv/ts".to_vec(),
        };
        for name in ["16384", "fast", "/srv/ts"] {
            assert!(wanted.is_named(name), "{name}");
        }
        assert!(!wanted.is_named("16385") && !wanted.is_named("ts"));
    }
}
