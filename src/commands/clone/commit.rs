//! `barmanfs clone commit`.

use barmanfs_catalog::Backup;

use crate::cli::clone::CommitArgs;
use crate::clone::{OfflineClone, commit};
use crate::commands::App;
use crate::commands::list_backups::took;
use crate::commands::show_backup::came_in_as;
use crate::error::{Error, Outcome};
use crate::mounts::hold;
use crate::output;
use crate::report;

/// Runs the command.
pub(super) fn run(app: &mut App, args: &CommitArgs) -> Result<Outcome, Error> {
    let repository = app.repository_for_writing()?;
    let server = app.known_server(&repository, &args.which.server)?;
    let name = &args.which.name;
    let lock = hold(&repository, &server, name, "committing it")?;
    let clone = OfflineClone::open(&repository, &server, name, lock)?;
    let backup = commit::commit(&repository, &clone, args.label.clone(), app.options.quiet)?;
    if args.json.json {
        app.out.json(&report::backup(&backup)?)?;
    } else if !app.options.quiet {
        app.out.line(summary(&backup))?;
    }
    Ok(Outcome::Done)
}

fn summary(backup: &Backup) -> String {
    let starts = match &backup.cloned_from {
        Some(clone) if clone.shut_down => "starts as it is",
        _ => "starts as after a crash",
    };
    format!(
        "Backup {} of server {}: {} in {}, {}, {} read ({}), {} added; it {starts}",
        backup.id,
        backup.server,
        backup.status,
        took(backup).map_or_else(|| "no time".to_owned(), output::duration),
        output::bytes(backup.logical_bytes),
        output::bytes(backup.sent_bytes),
        came_in_as(backup),
        output::bytes(backup.new_stored_bytes)
    )
}
