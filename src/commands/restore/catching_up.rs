//! The directory that `catchup` updates: what it was, what stays of it, and what is lost.

use std::path::Path;

use barmanfs_catalog::Repository;
use barmanfs_pg::history::TimelineHistory;

use super::Choice;
use crate::cli::restore::RestoreArgs;
use crate::error::Error;
use crate::output::printable;
use crate::report::CatchupReport;
use crate::restore::own_files::{OwnFiles, StandbySettings};
use crate::restore::previous::Previous;
use crate::restore::{Relocations, State, destination};

/// What was found in the directory, and what is done with it.
#[derive(Debug)]
pub(super) struct CatchingUp {
    pub(super) own: OwnFiles,
    pub(super) relocations: Relocations,
    pub(super) report: CatchupReport,
}

impl CatchingUp {
    /// Looks at the directory. Notes of what a person should know go to the choice.
    pub(super) fn new(
        repository: &Repository,
        directory: &Path,
        args: &RestoreArgs,
        choice: &mut Choice,
        restore_command: &str,
        is_forced: bool,
    ) -> Result<Self, Error> {
        let previous = match destination::state(directory, &choice.backup, true)? {
            State::Vacant => {
                return Err(
                    Error::failed(format!("{} is no data directory", directory.display())).hint(format!(
                        "'barmanfs restore {} auto DIR --standby-mode' makes a new standby",
                        args.server
                    )),
                );
            }
            State::Incomplete => None,
            State::Older => Some(previous(repository, directory, choice, is_forced)?),
        };
        let own = OwnFiles::of(
            directory,
            &StandbySettings {
                restore_command: restore_command.to_owned(),
                primary_conninfo: args.primary_conninfo.clone(),
                in_place_tablespaces: choice.backup.server_version.knows_in_place_tablespaces(),
            },
        )?;
        let (relocations, unknown) = Relocations::of_directory(directory, &choice.backup)?;
        choice.notes.extend(unknown.into_iter().map(|oid| {
            format!(
                "Tablespace {oid} is not in the backup: its link is removed, what is in its place stays, and if replay \
                 makes it, it is in {}/pg_tblspc",
                directory.display()
            )
        }));
        let has_primary = args.primary_conninfo.is_some() || own.names_a_primary;
        if !has_primary {
            choice.notes.push(
                "No file in it names a primary: unless one elsewhere does, it follows the archive only. \
                 Add --primary-conninfo"
                    .to_owned(),
            );
        }
        let report = CatchupReport {
            previous,
            own_files: own.paths().map(printable).collect(),
            has_primary,
        };
        Ok(Self {
            own,
            relocations,
            report,
        })
    }
}

/// What the directory was. A primary that nothing has replaced is refused: its last commits may be nowhere else.
fn previous(
    repository: &Repository,
    directory: &Path,
    choice: &Choice,
    is_forced: bool,
) -> Result<Previous, Error> {
    let Some(plan) = &choice.plan else {
        return Err(Error::failed("There is no way to recover along"));
    };
    let server = &choice.backup.server;
    let route = repository.history(server, plan.timeline)?;
    let route = route.unwrap_or_else(|| TimelineHistory::without_ancestors(plan.timeline));
    let previous = Previous::examine(directory, &route)?;
    if previous.was_primary && previous.timeline >= plan.timeline && !is_forced {
        return Err(Error::failed(format!(
            "{} was a primary on timeline {}, and no later timeline of {server} is in the archive: nothing shows that \
             another server has taken its place",
            directory.display(),
            previous.timeline
        ))
        .hint(
            "Wait until the new primary archives. With --force, what this server has written and not archived is \
             lost",
        ));
    }
    Ok(previous)
}
