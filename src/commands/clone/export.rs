//! `barmanfs clone export`.

use crate::cli::clone::ExportArgs;
use crate::clone::{OfflineClone, export};
use crate::commands::App;
use crate::error::{Error, Outcome};
use crate::mounts::hold;
use crate::output;

/// Runs the command.
pub(super) fn run(app: &mut App, args: &ExportArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.which.server)?;
    let (name, to) = (&args.which.name, &args.directory);
    let lock = hold(&repository, &server, name, "exporting it")?;
    let clone = OfflineClone::open(&repository, &server, name, lock)?;
    let exported = export::export(&clone, to, app.options.quiet)?;
    if !app.options.quiet {
        let archiving = if exported.archives_nothing {
            "It archives nothing: its postgresql.auto.conf has archive_mode = off"
        } else {
            "It archives where its configuration says: look at archive_mode before you start it"
        };
        app.out.line(format_args!(
            "Exported clone {name} of {server} to {}: {}, {}\n{archiving}",
            to.display(),
            output::count(exported.files, "file"),
            output::bytes(exported.bytes)
        ))?;
    }
    Ok(Outcome::Done)
}
