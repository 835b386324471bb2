//! Finds the tablespaces of a mounted snapshot.
//!
//! The links of tablespaces have the paths of the server. On the server's own host they lead to its live files, which are no
//! snapshot: so no link is followed out of the snapshot's file system or to the server's own place, what a running server uses
//! is refused, and each place must hold what the control file says.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::places::{Snapshot, is_same};
use super::running;
use crate::config::TablespacePlace;
use crate::error::Error;
use crate::import::directory::cannot_read;
use crate::output::printable;

/// A tablespace of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) oid: u32,
    pub(super) name: Option<String>,
    /// Its place on the server.
    pub(super) location: Vec<u8>,
}

/// How the place of a tablespace is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// By its link.
    Link,
    /// It is a directory in the data directory.
    InPlace,
    /// Somebody has named it.
    Given,
}

/// Where a tablespace is in the snapshot.
#[derive(Debug)]
struct Place {
    oid: u32,
    path: PathBuf,
    /// The directory in it with the files of this cluster.
    files: PathBuf,
    /// Device and inode of that.
    id: (u64, u64),
    origin: Origin,
}

impl Snapshot {
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
        let mut places = Vec::new();
        for wanted in wanted {
            let by_hand = given.iter().find(|given| wanted.is_named(&given.which));
            let (path, origin) = match by_hand {
                Some(given) => {
                    let place = fs::canonicalize(&given.place);
                    let place = place.map_err(|error| cannot_read(&given.place, &error))?;
                    (place, Origin::Given)
                }
                None => self.find(wanted, live)?,
            };
            let place = self.check(wanted, path, origin)?;
            if let Some(server) = running::uses(wanted.oid, &place.path, live) {
                return Err(in_use(wanted, &place.path, &server));
            }
            places.push(place);
        }
        self.refuse_common(&places)?;
        self.refuse_unknown(wanted)?;
        Ok(places.into_iter().map(|place| (place.oid, place.path)).collect())
    }

    /// What two tablespaces have in common would be in the backup twice, and one of them is not what it should be.
    fn refuse_common(&self, places: &[Place]) -> Result<(), Error> {
        let shown = |path: &Path| printable(path.as_os_str().as_bytes());
        for (n, place) in places.iter().enumerate() {
            let files = &place.files;
            for other in places.iter().skip(n + 1) {
                let is_common =
                    place.id == other.id || files.starts_with(&other.files) || other.files.starts_with(files);
                if is_common {
                    return Err(Error::failed(format!(
                        "Tablespaces {} and {} cannot both be in the snapshot at {} and {}: that is one directory, or one is in \
                         the other",
                        place.oid,
                        other.oid,
                        shown(&place.path),
                        shown(&other.path)
                    )));
                }
            }
            let is_given_inside = place.origin == Origin::Given && files.starts_with(&self.data);
            if is_given_inside || self.data.starts_with(files) {
                return Err(Error::failed(format!(
                    "{} cannot be tablespace {}: it is in the data directory {}, or that is in it",
                    shown(&place.path),
                    place.oid,
                    shown(&self.data)
                )));
            }
        }
        Ok(())
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

    /// By its link, which has a path of the server. What is at that path is the server's own, unless the data directory is where
    /// the server has it, too: a copy on the live file system has links to live tablespaces.
    fn find(&self, wanted: &Wanted, live: Option<&Path>) -> Result<(PathBuf, Origin), Error> {
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
            return Ok((link, Origin::InPlace));
        }
        let target = fs::read_link(&link).map_err(|error| cannot_read(&link, &error))?;
        let is_at_home = self.is_at_home(live);
        let mut is_servers = false;
        for candidate in self.candidates(&link, &target, live) {
            let Ok(place) = fs::canonicalize(&candidate) else {
                continue;
            };
            let Some(found) = fs::metadata(&place).ok().filter(|found| {
                found.is_dir() && found.dev() == self.device && place.starts_with(&self.mounted_at)
            }) else {
                continue;
            };
            if is_at_home || !is_same(wanted.place(), &found) {
                return Ok((place, Origin::Link));
            }
            is_servers = true;
        }
        let whose = match is_servers {
            true => ", which is the server's own place and no snapshot",
            false => "",
        };
        Err(Error::failed(format!(
            "Tablespace {} is not in the snapshot at {}: its link leads to {}{whose}",
            wanted.shown(),
            self.data.display(),
            printable(target.as_os_str().as_bytes())
        ))
        .hint(format!(
            "Mount its snapshot, too, and name the place: --tablespace {}:DIR",
            wanted.oid
        )))
    }

    /// Whether the snapshot is mounted where the server has its data directory, as on another host.
    fn is_at_home(&self, live: Option<&Path>) -> bool {
        let said = running::pid_file(&self.data).and_then(|said| said.data);
        let home = live.map(Path::to_owned).or(said);
        let found = fs::metadata(&self.data);
        home.is_some_and(|home| found.is_ok_and(|found| is_same(&home, &found)))
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
    fn check(&self, wanted: &Wanted, path: PathBuf, origin: Origin) -> Result<Place, Error> {
        let name = self.version_directory();
        let files = path.join(&name);
        match fs::symlink_metadata(&files) {
            Ok(found) if found.is_dir() => Ok(Place {
                oid: wanted.oid,
                id: (found.dev(), found.ino()),
                files,
                path,
                origin,
            }),
            Ok(_) => Err(Error::failed(format!("{} is no directory", files.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::failed(format!(
                "{} has no {name}: it is not tablespace {}, or its snapshot is not mounted there",
                path.display(),
                wanted.shown()
            ))),
            Err(error) => Err(cannot_read(&files, &error)),
        }
    }
}

fn in_use(wanted: &Wanted, place: &Path, server: &Path) -> Error {
    Error::failed(format!(
        "{} is tablespace {} of the running server in {}: its files change while they are read",
        printable(place.as_os_str().as_bytes()),
        wanted.shown(),
        printable(server.as_os_str().as_bytes())
    ))
    .hint(format!(
        "Name the tablespace within a snapshot: --tablespace {}:DIR",
        wanted.oid
    ))
}

impl Wanted {
    fn place(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.location))
    }

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
        root.extend(kept.iter().map(|name| OsStr::from_bytes(name)));
        root
    };
    Some((root(&one), root(&other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use barmanfs_pg::pg_control::{ClusterState, ControlFile, RequiredSettings};
    use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId};
    use std::os::unix::fs::symlink;

    const VERSION: &str = "PG_18_7";

    fn snapshot(data: &Path) -> Snapshot {
        let control = ControlFile {
            system_id: SystemId(1),
            control_version: 1800,
            catalog_version: 7,
            state: ClusterState::InProduction,
            checkpoint: Lsn(1),
            redo: Lsn(1),
            timeline: TimelineId(1),
            min_recovery: Lsn(0),
            checkpoint_time: 0,
            required_settings: RequiredSettings::default(),
            wal_level: 1,
            data_checksum_version: 1,
            segment_size: SegmentSize::DEFAULT,
        };
        Snapshot::of(data, control, ServerVersion(180_000)).unwrap()
    }

    /// A directory with `data`, a copy of `live`, whose links lead to `one` and `two`, and copies of these in `copies`.
    struct Disk(tempfile::TempDir);

    impl Disk {
        fn new() -> Self {
            let disk = Self(tempfile::tempdir().unwrap());
            for space in ["one", "two", "copies/one", "copies/two"] {
                fs::create_dir_all(disk.path(space).join(VERSION)).unwrap();
            }
            for data in ["live", "data"] {
                fs::create_dir_all(disk.path(data).join("pg_tblspc")).unwrap();
                for (oid, space) in [("1", "one"), ("2", "two")] {
                    symlink(disk.path(space), disk.path(data).join("pg_tblspc").join(oid)).unwrap();
                }
            }
            disk
        }

        fn path(&self, name: &str) -> PathBuf {
            fs::canonicalize(self.0.path()).unwrap().join(name)
        }

        fn places(&self, live: Option<&str>, given: &[(&str, &str)]) -> Result<Vec<PathBuf>, String> {
            let wanted = [(1, "one"), (2, "two")].map(|(oid, name)| Wanted {
                oid,
                name: None,
                location: self.path(name).into_os_string().into_vec(),
            });
            let given: Vec<TablespacePlace> = given
                .iter()
                .map(|(which, place)| TablespacePlace {
                    which: (*which).to_owned(),
                    place: self.path(place),
                })
                .collect();
            let live = live.map(|live| self.path(live));
            snapshot(&self.path("data"))
                .tablespaces(&wanted, &given, live.as_deref())
                .map(|places| places.into_values().collect())
                .map_err(|error| error.to_string())
        }
    }

    /// The kind: `cp --reflink` of a data directory, whose links stay as they are.
    #[test]
    fn the_servers_own_place_is_no_snapshot() {
        let disk = Disk::new();
        for live in [Some("live"), None] {
            let said = disk.places(live, &[]).unwrap_err();
            assert!(said.contains("the server's own place"), "{said}");
        }
        let copies = [("1", "copies/one"), ("2", "copies/two")];
        assert!(disk.places(Some("live"), &copies).is_ok());
        // On another host all of it is where the server has it.
        fs::write(
            disk.path("data/postmaster.pid"),
            format!("1\n{}\n", disk.path("data").display()),
        )
        .unwrap();
        let places = disk.places(None, &[]).unwrap();
        assert_eq!(places, [disk.path("one"), disk.path("two")]);
        // A link that was made again leads into the snapshot.
        fs::remove_file(disk.path("data/postmaster.pid")).unwrap();
        for (oid, space) in [("1", "one"), ("2", "two")] {
            let link = disk.path("data/pg_tblspc").join(oid);
            fs::remove_file(&link).unwrap();
            symlink(disk.path("copies").join(space), link).unwrap();
        }
        assert!(disk.places(Some("live"), &[]).is_ok());
    }

    #[test]
    fn what_a_running_server_uses_is_refused() {
        let disk = Disk::new();
        let mut server = std::process::Command::new("sleep");
        let mut server = server.arg("600").current_dir(disk.path("live")).spawn().unwrap();
        let pid = format!("{}\n{}\n", server.id(), disk.path("live").display());
        fs::write(disk.path("live/postmaster.pid"), pid).unwrap();
        let given = [("1", "one"), ("2", "copies/two")];
        let said = disk.places(None, &given).unwrap_err();
        assert!(said.contains("of the running server in"), "{said}");
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(disk.places(None, &given).is_ok());
    }

    #[test]
    fn no_two_places_have_something_in_common() {
        let disk = Disk::new();
        fs::create_dir_all(disk.path("copies/one").join(VERSION).join("in").join(VERSION)).unwrap();
        fs::create_dir_all(disk.path("data/in").join(VERSION)).unwrap();
        fs::create_dir_all(disk.path("copies/one/beside").join(VERSION)).unwrap();
        let inner = format!("copies/one/{VERSION}/in");
        for (one, two, says) in [
            ("copies/one", "copies/one", "that is one directory"),
            ("copies/one", inner.as_str(), "or one is in the other"),
            (inner.as_str(), "copies/one", "or one is in the other"),
            ("data/in", "copies/two", "it is in the data directory"),
        ] {
            let said = disk.places(Some("live"), &[("1", one), ("2", two)]).unwrap_err();
            assert!(said.contains(says), "{one} {two}: {said}");
        }
        // Each has its own files.
        let beside = [("1", "copies/one"), ("2", "copies/one/beside")];
        assert!(disk.places(Some("live"), &beside).is_ok());
    }

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
