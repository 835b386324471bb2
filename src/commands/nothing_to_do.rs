//! Commands of Barman for work that is done by itself here, or that nothing needs: scripts that call them go on.

use super::{ALL, App};
use crate::cli::upkeep::NothingArgs;
use crate::error::{Error, Outcome};

/// Runs the command. A server that is not known is an error, as in Barman.
pub(crate) fn run(app: &mut App, args: &NothingArgs) -> Result<Outcome, Error> {
    if let Some(server) = args.server.as_deref().filter(|server| *server != ALL) {
        app.configured(server)?;
    }
    if !app.options.quiet {
        app.out
            .line(format_args!("'{}' has nothing to do here", args.command))?;
    }
    Ok(Outcome::Done)
}
