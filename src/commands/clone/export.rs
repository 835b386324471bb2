//! `barmanfs clone export`.

use crate::cli::clone::ExportArgs;
use crate::commands::App;
use crate::error::{Error, Outcome};

/// Runs the command.
pub(super) fn run(app: &App, args: &ExportArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.which.server)?;
    Err(Error::failed(format!(
        "Cannot export {server}/live/{}: the command is not built yet",
        args.which.name
    )))
}
