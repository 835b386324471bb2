//! Where the tablespaces of a restored tree are: inside of it, as in every view, or elsewhere behind a symbolic link, if a
//! person asks for that.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use barmanfs_catalog::Backup;
use serde::{Deserialize, Serialize};

use super::marker::Marker;
use super::place::{Place, failed};
use crate::error::Error;
use crate::output::printable;

/// The directory of the tablespaces.
const DIRECTORY: &[u8] = b"pg_tblspc";

/// Where tablespaces are that nothing else is said of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Layout {
    /// In the data directory
    Inside,
    /// Where they were on the server
    Original,
}

/// The place that is asked for, for one tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relocation {
    name: String,
    location: PathBuf,
}

impl Relocation {
    /// As texts.
    pub(crate) fn name_and_location(&self) -> (String, String) {
        (self.name.clone(), self.location.display().to_string())
    }
}

impl FromStr for Relocation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((name, location)) if !name.is_empty() && location.starts_with('/') => Ok(Self {
                name: name.to_owned(),
                location: location.trim_end_matches('/').into(),
            }),
            _ => Err("allowed is a tablespace's name, a colon and an absolute path".to_owned()),
        }
    }
}

/// The tablespaces that are not in the data directory, by OID.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Relocations(BTreeMap<u32, PathBuf>);

impl Relocations {
    /// Decides for each tablespace of a backup.
    ///
    /// # Errors
    /// For a name that no tablespace has, or a place that two would have.
    pub(crate) fn of_backup(backup: &Backup, asked: &[Relocation], layout: Layout) -> Result<Self, Error> {
        let (mut all, mut named_oids) = (BTreeMap::new(), BTreeSet::new());
        if layout == Layout::Original {
            let outside = backup.tablespaces.iter().filter(|space| !space.is_in_place());
            all.extend(outside.map(|space| (space.oid, PathBuf::from(&space.location))));
        }
        for Relocation { name, location } in asked {
            let named = |space: &&barmanfs_catalog::Tablespace| {
                space.name.as_deref() == Some(name)
                    || space.oid.to_string() == *name
                    || space.location == *name
            };
            let space = backup
                .tablespaces
                .iter()
                .find(named)
                .ok_or_else(|| unknown(backup, name))?;
            if !named_oids.insert(space.oid) {
                return Err(Error::usage(format!("Tablespace '{name}' is named twice")));
            }
            all.insert(space.oid, location.clone());
        }
        for (oid, location) in &all {
            let shares = |(other, path): (&u32, &PathBuf)| {
                other != oid && (path.starts_with(location) || location.starts_with(path))
            };
            if all.iter().any(shares) {
                return Err(Error::usage(format!(
                    "Two tablespaces would be in {}",
                    location.display()
                )));
            }
        }
        Ok(Self(all))
    }

    /// Each of these at its place.
    pub(crate) fn at(places: impl IntoIterator<Item = (u32, PathBuf)>) -> Self {
        Self(places.into_iter().collect())
    }

    /// Those of a data directory that is there: they stay where its links lead, or where an incomplete run has put them.
    /// Also the OIDs of links to tablespaces that the backup does not have.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) fn of_directory(data: &Path, backup: &Backup) -> Result<(Self, Vec<u32>), Error> {
        let mut all = Marker::read(&Place::open(data)?)?
            .flatten()
            .map(|marker| marker.tablespaces.0)
            .unwrap_or_default();
        let mut unknown = Vec::new();
        let links = data.join(std::ffi::OsStr::from_bytes(DIRECTORY));
        let entries = match std::fs::read_dir(&links) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Self(all), unknown)),
            entries => entries.map_err(|error| failed("list", &links, error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| failed("list", &links, error))?;
            let Some(oid) = oid(entry.file_name().as_bytes()) else {
                continue;
            };
            let Ok(location) = std::fs::read_link(entry.path()) else {
                continue;
            };
            if !location.is_absolute() {
                return Err(Error::failed(format!(
                    "{} is a relative link: PostgreSQL makes none, and no tablespace can be written there",
                    entry.path().display()
                ))
                .hint("Make it a link to an absolute path"));
            }
            match backup.tablespaces.iter().any(|space| space.oid == oid) {
                true => drop(all.insert(oid, location)),
                false => unknown.push(oid),
            }
        }
        Ok((Self(all), unknown))
    }

    /// The place of a tablespace, if it is not in the data directory.
    pub(crate) fn of(&self, oid: u32) -> Option<&Path> {
        self.0.get(&oid).map(PathBuf::as_path)
    }

    /// The same, without links on the way to their places.
    pub(super) fn resolved(&self) -> Result<Self, Error> {
        let places = self.0.values().map(|place| super::destination::resolved(place));
        let places = places.collect::<Result<Vec<_>, _>>()?;
        Ok(self.moved(places.into_iter()))
    }

    /// The same tablespaces at these places, in order.
    pub(super) fn moved(&self, places: impl Iterator<Item = PathBuf>) -> Self {
        Self(self.0.keys().copied().zip(places).collect())
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Path)> {
        self.0.iter().map(|(oid, location)| (*oid, location.as_path()))
    }

    /// The place of the directory `name` in `directory`, if that is a tablespace that is elsewhere.
    pub(super) fn of_child(&self, directory: &[Vec<u8>], name: &[u8]) -> Option<&Path> {
        match directory {
            [parent] if parent == DIRECTORY => self.of(oid(name)?),
            _ => None,
        }
    }
}

/// The tablespace that a path is in.
pub(crate) fn oid_of(path: &[Vec<u8>]) -> Option<u32> {
    match path {
        [parent, name, ..] if parent == DIRECTORY => oid(name),
        _ => None,
    }
}

fn oid(name: &[u8]) -> Option<u32> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

fn unknown(backup: &Backup, name: &str) -> Error {
    let known: Vec<String> = backup
        .tablespaces
        .iter()
        .map(|space| match &space.name {
            Some(name) => printable(name.as_bytes()),
            None => format!("{} ({})", space.oid, printable(space.location.as_bytes())),
        })
        .collect();
    let hint = match known.is_empty() {
        true => "It has none".to_owned(),
        false => format!("There are: {}", known.join(", ")),
    };
    Error::usage(format!("Backup {} has no tablespace '{name}'", backup.id)).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relocation_has_a_name_and_an_absolute_path() {
        let relocation: Relocation = "fast:/srv/a:b/".parse().unwrap();
        assert_eq!(
            (relocation.name.as_str(), relocation.location.to_str()),
            ("fast", Some("/srv/a:b"))
        );
        for text in ["fast", ":/srv", "fast:srv", "fast:"] {
            assert!(text.parse::<Relocation>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_tablespace_that_was_in_the_data_directory_stays_there() {
        let mut backup = crate::testing::backup(barmanfs_catalog::BackupStatus::Done);
        let space = |oid, location: &str| barmanfs_catalog::Tablespace {
            oid,
            name: None,
            location: location.to_owned(),
        };
        backup.tablespaces = vec![space(16384, "/srv/a"), space(16385, "pg_tblspc/16385")];
        let places = |layout| Relocations::of_backup(&backup, &[], layout).unwrap();
        assert_eq!(
            places(Layout::Original),
            Relocations::at([(16384, "/srv/a".into())])
        );
        assert_eq!(places(Layout::Inside), Relocations::default());
    }

    #[test]
    fn only_a_directory_in_pg_tblspc_is_relocated() {
        let relocations = Relocations(BTreeMap::from([(16384, "/srv/a".into())]));
        let spaces = [b"pg_tblspc".to_vec()];
        assert_eq!(relocations.of_child(&spaces, b"16384"), Some(Path::new("/srv/a")));
        assert_eq!(relocations.of_child(&spaces, b"16385"), None);
        assert_eq!(relocations.of_child(&[b"base".to_vec()], b"16384"), None);
        assert_eq!(relocations.of_child(&[], b"16384"), None);
        assert_eq!(oid_of(&[b"pg_tblspc".to_vec(), b"16384".to_vec()]), Some(16384));
    }
}
