//! `barmanfs keep`.

use barmanfs_catalog::{Backup, Keep, Repository};

use super::App;
use crate::barman;
use crate::cli::retention::{KeepArgs, KeptPart};
use crate::error::{Error, Outcome};
use crate::moment;
use crate::output;
use crate::report::KeptBackup;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &KeepArgs) -> Result<Outcome, Error> {
    let repository = match args.status {
        true => app.repository()?,
        false => app.repository_for_writing()?,
    };
    let server = app.known_server(&repository, &args.which.server)?;
    let backup = app.backup(&repository, &server, &args.which.backup)?;
    if let Some(target) = args.target {
        keep(&repository, &backup, target, args)?;
    } else if args.release {
        repository.release_backup(&backup)?;
    }
    let keep = repository
        .keep_of(&backup)?
        .filter(|keep| keep.holds(moment::now()));
    if let Some(format) = app.options.format {
        if args.status {
            barman::backups::keep_status(&mut app.out, format, &backup, keep.as_ref())?;
        }
    } else if args.json.json {
        app.out.json(&KeptBackup::new(&backup, keep.as_ref()))?;
    } else if args.status || !app.options.quiet {
        app.out.line(format_args!(
            "Backup {} of server {server} is {}",
            backup.id,
            keep.as_ref().map_or_else(|| "not kept".to_owned(), described)
        ))?;
    }
    Ok(Outcome::Done)
}

fn keep(repository: &Repository, backup: &Backup, target: KeptPart, args: &KeepArgs) -> Result<(), Error> {
    let until = args
        .until
        .as_deref()
        .map(|text| moment::parse(repository, &backup.server, text))
        .transpose()?;
    if let Some(until) = until.filter(|until| *until <= moment::now()) {
        return Err(Error::usage(format!(
            "--until {} is in the past",
            output::second(until)
        )));
    }
    Ok(repository.keep_backup(backup, target.target(), until, args.reason.clone())?)
}

/// `kept (full) until 2027-01-31 00:00:00+00: end of year`.
pub(crate) fn described(keep: &Keep) -> String {
    let until = keep
        .until
        .map(|until| format!(" until {}", output::second(until)))
        .unwrap_or_default();
    let reason = keep
        .reason
        .as_ref()
        .map(|reason| format!(": {}", output::printable(reason.as_bytes())))
        .unwrap_or_default();
    format!("kept ({}){until}{reason}", keep.target)
}
