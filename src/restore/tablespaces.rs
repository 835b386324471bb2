//! Where the tablespaces of a restored tree and its WAL are: inside of it, as in every view, or elsewhere behind a symbolic
//! link, if a person asks for that.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use barmanfs_catalog::Backup;
use serde::{Deserialize, Serialize};

use super::marker::Marker;
use super::part::Part;
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

/// The parts that are not in the data directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Relocations(BTreeMap<Part, PathBuf>);

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
        let relocations = Self::at(all);
        relocations.refuse_shared()?;
        Ok(relocations)
    }

    /// The same, with the WAL there if a place is named.
    ///
    /// # Errors
    /// When a tablespace would be there, too.
    pub(crate) fn with_wal(mut self, place: Option<&Path>) -> Result<Self, Error> {
        if let Some(place) = place {
            self.0.insert(Part::Wal, place.to_owned());
        }
        self.refuse_shared()?;
        Ok(self)
    }

    /// No part is in another one.
    fn refuse_shared(&self) -> Result<(), Error> {
        for (part, location) in self.iter() {
            let shares = |(other, path): (Part, &Path)| {
                other != part && (path.starts_with(location) || location.starts_with(path))
            };
            if let Some((other, _)) = self.iter().find(|other| shares(*other)) {
                let location = location.display();
                return Err(Error::usage(match (part, other) {
                    (Part::Tablespace(_), Part::Tablespace(_)) => {
                        format!("Two tablespaces would be in {location}")
                    }
                    (part, other) => format!("{part} and {other} would be in {location}"),
                }));
            }
        }
        Ok(())
    }

    /// Each of these tablespaces at its place.
    pub(crate) fn at(places: impl IntoIterator<Item = (u32, PathBuf)>) -> Self {
        let places = places.into_iter();
        Self(
            places
                .map(|(oid, place)| (Part::Tablespace(oid), place))
                .collect(),
        )
    }

    /// The tablespaces of a data directory that is there: they stay where its links lead, or where an incomplete run has put them.
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
                true => drop(all.insert(Part::Tablespace(oid), location)),
                false => unknown.push(oid),
            }
        }
        Ok((Self(all), unknown))
    }

    /// The place of a part, if it is not in the data directory.
    pub(crate) fn of(&self, part: Part) -> Option<&Path> {
        self.0.get(&part).map(PathBuf::as_path)
    }

    /// The same, without links on the way to their places.
    pub(super) fn resolved(&self) -> Result<Self, Error> {
        let places = self.0.values().map(|place| super::destination::resolved(place));
        let places = places.collect::<Result<Vec<_>, _>>()?;
        Ok(self.moved(places.into_iter()))
    }

    /// The same parts at these places, in order.
    pub(super) fn moved(&self, places: impl Iterator<Item = PathBuf>) -> Self {
        Self(self.0.keys().copied().zip(places).collect())
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Part, &Path)> {
        self.0.iter().map(|(part, location)| (*part, location.as_path()))
    }

    /// The tablespaces among them.
    pub(crate) fn tablespaces(&self) -> impl Iterator<Item = (u32, &Path)> {
        self.iter().filter_map(|(part, location)| match part {
            Part::Tablespace(oid) => Some((oid, location)),
            Part::Wal => None,
        })
    }

    /// The directory `name` in `directory`, if that is a part that is elsewhere.
    pub(super) fn of_child(&self, directory: &[Vec<u8>], name: &[u8]) -> Option<(Part, &Path)> {
        let part = Part::of_child(directory, name)?;
        self.of(part).map(|location| (part, location))
    }

    /// The part elsewhere whose top this path is.
    pub(super) fn at_top(&self, path: &[Vec<u8>]) -> Option<Part> {
        let (name, directory) = path.split_last()?;
        self.of_child(directory, name).map(|(part, _)| part)
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
    fn only_a_part_is_relocated() {
        let relocations = Relocations::at([(16384, "/srv/a".into())]);
        let spaces = [b"pg_tblspc".to_vec()];
        let space = Part::Tablespace(16384);
        assert_eq!(
            relocations.of_child(&spaces, b"16384"),
            Some((space, Path::new("/srv/a")))
        );
        assert_eq!(relocations.of_child(&spaces, b"16385"), None);
        assert_eq!(relocations.of_child(&[b"base".to_vec()], b"16384"), None);
        assert_eq!(relocations.of_child(&[], b"pg_wal"), None);
        let relocations = relocations.with_wal(Some(Path::new("/srv/wal"))).unwrap();
        assert_eq!(
            relocations.of_child(&[], b"pg_wal"),
            Some((Part::Wal, Path::new("/srv/wal")))
        );
        assert_eq!(relocations.at_top(&[b"pg_wal".to_vec()]), Some(Part::Wal));
        assert_eq!(relocations.at_top(&[]), None);
        let text = serde_json::to_string(&relocations).unwrap();
        assert_eq!(text, r#"{"pg_wal":"/srv/wal","16384":"/srv/a"}"#);
        assert_eq!(serde_json::from_str::<Relocations>(&text).unwrap(), relocations);
        for shared in ["/srv/a", "/srv/a/wal", "/srv"] {
            assert!(
                relocations.clone().with_wal(Some(Path::new(shared))).is_err(),
                "{shared}"
            );
        }
    }
}
