//! `barmanfs clone`: one module for each of its commands.

mod commit;
mod copy;
mod create;
mod end;
mod export;
mod list;
mod start;

use super::App;
use crate::cli::clone::CloneCommand;
use crate::error::{Error, Outcome};

/// Runs the command.
pub(crate) fn run(app: &mut App, command: &CloneCommand) -> Result<Outcome, Error> {
    match command {
        CloneCommand::Create(args) => create::run(app, args),
        CloneCommand::List(args) => list::run(app, args),
        CloneCommand::Reset(args) => end::reset(app, args),
        CloneCommand::Start(args) => start::run(app, args),
        CloneCommand::Stop(args) => start::stop(app, args),
        CloneCommand::Destroy(args) => end::destroy(app, args),
        CloneCommand::Commit(args) => commit::run(app, args),
        CloneCommand::Export(args) => export::run(app, args),
    }
}
