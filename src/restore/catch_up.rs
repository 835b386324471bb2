//! A standby that is caught up: what is asked for, and what its directory was before.
//!
//! The directory is looked at where it is, on this host or by the agent on another one. So an order has all that this takes,
//! and what is found is all that a person is shown.

use std::path::Path;

use barmanfs_catalog::Backup;
use barmanfs_pg::history::TimelineHistory;
use serde::{Deserialize, Serialize};

use super::destination::{self, State};
use super::own_files::{OwnFiles, StandbySettings};
use super::previous::Previous;
use super::same_host;
use super::tablespaces::Relocations;
use crate::error::Error;
use crate::output::printable;

/// How a directory is to be caught up.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct CatchUp {
    /// The timeline that it is to follow.
    pub(crate) route: TimelineHistory,
    pub(crate) settings: StandbySettings,
    /// Also where nothing shows that another server has taken the place of a primary.
    pub(crate) is_forced: bool,
}

/// Its settings may have a password in them.
impl std::fmt::Debug for CatchUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CatchUp").finish_non_exhaustive()
    }
}

/// What was found in a directory.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) own: OwnFiles,
    pub(crate) relocations: Relocations,
    pub(crate) found: CaughtUp,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
}

/// The directory that is caught up, as a person is shown it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CaughtUp {
    /// What it was; `None` where a run that did not end has removed that.
    pub(crate) previous: Option<Previous>,
    /// Its own files, which stay.
    pub(crate) own_files: Vec<String>,
    /// Whether the standby connects to a primary, by the option or by its own files.
    pub(crate) has_primary: bool,
}

impl CatchUp {
    /// Looks at the directory.
    ///
    /// # Errors
    /// When it is no data directory that may be caught up, or cannot be read.
    pub(crate) fn examine(&self, directory: &Path, backup: &Backup) -> Result<Examined, Error> {
        let previous = match destination::state(directory, backup, true)? {
            State::Vacant => {
                return Err(
                    Error::failed(format!("{} is no data directory", directory.display())).hint(format!(
                        "'barmanfs restore {} auto DIR --standby-mode' makes a new standby",
                        backup.server
                    )),
                );
            }
            State::Incomplete => None,
            State::Older => Some(self.previous(directory, backup)?),
        };
        let own = OwnFiles::of(directory, &self.settings)?;
        let (relocations, unknown) = Relocations::of_directory(directory, backup)?;
        let unknown = unknown.into_iter().map(|oid| {
            format!(
                "Tablespace {oid} is not in the backup: its link is removed, what is in its place stays, and if replay \
                 makes it, it is in {}/pg_tblspc",
                directory.display()
            )
        });
        let mut notes: Vec<String> = unknown.collect();
        let asked = self.settings.primary_conninfo.as_ref();
        let primary = asked.or(own.primary_conninfo.as_ref());
        match primary {
            Some(primary) => notes.extend(same_host::note(primary, true)),
            None => notes.push(
                "No file in it names a primary: unless one elsewhere does, it follows the archive only. \
                 Add --primary-conninfo"
                    .to_owned(),
            ),
        }
        let has_primary = primary.is_some();
        let found = CaughtUp {
            previous,
            own_files: own.paths().map(printable).collect(),
            has_primary,
        };
        Ok(Examined {
            own,
            relocations,
            found,
            notes,
        })
    }

    /// What the directory was. A primary that nothing has replaced is refused: its last commits may be nowhere else.
    fn previous(&self, directory: &Path, backup: &Backup) -> Result<Previous, Error> {
        let previous = Previous::examine(directory, &self.route)?;
        if previous.was_primary && previous.timeline >= self.route.timeline() && !self.is_forced {
            return Err(Error::failed(format!(
                "{} was a primary on timeline {}, and no later timeline of {} is in the archive: nothing shows that \
                 another server has taken its place",
                directory.display(),
                previous.timeline,
                backup.server
            ))
            .hint(
                "Wait until the new primary archives. With --force, what this server has written and not archived is \
                 lost",
            ));
        }
        Ok(previous)
    }
}
