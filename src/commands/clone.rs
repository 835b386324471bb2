//! `barmanfs clone`: one module for each of its commands.

mod commit;
mod export;

use super::App;
use crate::cli::clone::CloneCommand;
use crate::error::{Error, Outcome};

/// Runs the command.
pub(crate) fn run(app: &mut App, command: &CloneCommand) -> Result<Outcome, Error> {
    match command {
        CloneCommand::Commit(args) => commit::run(app, args),
        CloneCommand::Export(args) => export::run(app, args),
        _ => Err(Error::failed("This command is not built yet")),
    }
}
