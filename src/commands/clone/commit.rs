//! `barmanfs clone commit`.

use crate::cli::clone::CommitArgs;
use crate::commands::App;
use crate::error::{Error, Outcome};

/// Runs the command.
pub(super) fn run(app: &mut App, args: &CommitArgs) -> Result<Outcome, Error> {
    let repository = app.repository_for_writing()?;
    let server = app.known_server(&repository, &args.which.server)?;
    Err(Error::failed(format!(
        "Cannot commit {server}/live/{}: the command is not built yet",
        args.which.name
    )))
}
