//! The catch-up that `catchup` asks for, as an order for the directory, which may be on another host.

use barmanfs_catalog::Repository;
use barmanfs_pg::history::TimelineHistory;

use super::Choice;
use crate::cli::restore::RestoreArgs;
use crate::error::Error;
use crate::restore::catch_up::CatchUp;
use crate::restore::own_files::StandbySettings;

/// The order for a standby that is to follow the way of the choice.
pub(super) fn order(
    repository: &Repository,
    args: &RestoreArgs,
    choice: &Choice,
    restore_command: &str,
    is_forced: bool,
) -> Result<CatchUp, Error> {
    let Some(plan) = &choice.plan else {
        return Err(Error::failed("There is no way to recover along"));
    };
    let route = repository.history(&choice.backup.server, plan.timeline)?;
    Ok(CatchUp {
        route: route.unwrap_or_else(|| TimelineHistory::without_ancestors(plan.timeline)),
        settings: StandbySettings {
            restore_command: restore_command.to_owned(),
            primary_conninfo: args.primary_conninfo.clone(),
            in_place_tablespaces: choice.backup.server_version.knows_in_place_tablespaces(),
        },
        is_forced,
    })
}
