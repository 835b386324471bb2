//! The commands of a site's storage that take, mount, list and delete snapshots.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// How long one command may take: clouds report a snapshot as done when it is uploaded.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// Where the snapshot of a tablespace is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TablespacePlace {
    /// Its OID, its name, or its place on the server.
    pub(crate) which: String,
    pub(crate) place: PathBuf,
}

impl FromStr for TablespacePlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once(':') {
            Some((which, place)) if !which.is_empty() && place.starts_with('/') => Ok(Self {
                which: which.to_owned(),
                place: place.into(),
            }),
            _ => Err(
                "allowed is a tablespace's OID, name or place on the server, a colon and an absolute path"
                    .to_owned(),
            ),
        }
    }
}

/// The snapshots of one server.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    /// Takes a snapshot.
    pub(crate) take: Option<String>,
    /// Deletes one.
    pub(crate) delete: Option<String>,
    /// Prints the names of those there are.
    pub(crate) list: Option<String>,
    /// Mounts one, to be read.
    pub(crate) mount: Option<String>,
    /// Unmounts it.
    pub(crate) umount: Option<String>,
    /// The disks, for the commands.
    pub(crate) disks: Option<String>,
    /// The data directory in a mounted snapshot: what backups are read from.
    pub(crate) directory: Option<PathBuf>,
    /// Where the snapshots of tablespaces are mounted then.
    pub(crate) tablespaces: Vec<TablespacePlace>,
    /// Limit of one command; `None` for none.
    pub(crate) timeout: Option<Duration>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            take: None,
            delete: None,
            list: None,
            mount: None,
            umount: None,
            disks: None,
            directory: None,
            tablespaces: Vec::new(),
            timeout: Some(TIMEOUT),
        }
    }
}

impl Snapshots {
    /// The places of tablespaces, as a list with commas.
    pub(super) fn places(value: &str) -> Result<Vec<TablespacePlace>, String> {
        let places = value.split(',').map(|place| place.trim().parse());
        places
            .collect::<Result<_, String>>()
            .map_err(|why| format!("is '{value}': {why}"))
    }

    /// The command of a key.
    pub(super) fn command_mut(&mut self, key: &str) -> Option<&mut Option<String>> {
        Some(match key {
            "snapshot_command" => &mut self.take,
            "snapshot_delete_command" => &mut self.delete,
            "snapshot_list_command" => &mut self.list,
            "snapshot_mount_command" => &mut self.mount,
            "snapshot_umount_command" => &mut self.umount,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_of_a_tablespace_is_behind_the_last_colon() {
        let place: TablespacePlace = "/srv/a:b:/mnt/ts".parse().unwrap();
        assert_eq!(
            (place.which.as_str(), place.place),
            ("/srv/a:b", "/mnt/ts".into())
        );
        for wrong in ["16384", ":/mnt", "16384:mnt", "/srv/a:b"] {
            assert!(wrong.parse::<TablespacePlace>().is_err(), "{wrong}");
        }
    }
}
