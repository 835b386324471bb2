//! `barmanfs import`.

mod moved;

use std::collections::BTreeSet;
use std::path::Path;

use barmanfs_catalog::{Backup, BackupId, Repository, ServerName};
use jiff::tz::TimeZone;

use super::App;
use super::backup::open_or_create;
use crate::cli::import::{BarmanArgs, ImportArgs};
use crate::config::Config;
use crate::error::{Error, Outcome};
use crate::import::backups::{Importer, Taken};
use crate::import::barman::configuration;
use crate::import::barman::{BarmanHome, Options, Tarball, Waiting};
use crate::import::data_directory::DataDirectory;
use crate::import::gpg::Passphrase;
use crate::import::passphrase;
use crate::import::pg_basebackup::BaseBackups;
use crate::import::pgbackrest::PgBackRest;
use crate::import::plain::Plain;
use crate::import::walg::WalG;
use crate::import::{ForeignBackup, LeftOut, Listing, Source, has_damaged_files, of_one_cluster, wal};
use crate::output::{self, Output};
use crate::report::import::{Import, ImportedBackup, NotTaken};
use crate::signals::Interruption;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ImportArgs) -> Result<Outcome, Error> {
    if let Some(file) = &args.source.print_config {
        return print_config(app, args, file);
    }
    let server = server(app, &args.server)?;
    let mut source = open(args)?;
    if args.moves {
        source.can_delete()?;
    }
    let Listing { backups, left_out } = source.backups()?;
    let mut chosen = choose(backups, &left_out, &args.backups)?;
    let mut report = Import {
        server: server.to_string(),
        source: source.described(),
        dry_run: args.dry_run,
        backups: Vec::new(),
        wal: None,
        left_out: left_out.into_iter().map(NotTaken::from).collect(),
    };
    let here = app.repository_if_made()?;
    for other in of_one_cluster(here.as_ref(), &server, &mut chosen)? {
        tracing::error!("Backup {} is not imported: {}", other.what, other.why);
        report.left_out.push(other.into());
    }
    drop(here);
    if args.dry_run {
        plan(app, &server, &chosen, &mut report)?;
    } else {
        take(app, args, &server, (source.as_mut(), &chosen), &mut report)?;
    }
    show(app, args, &report)
}

fn plan(app: &App, server: &ServerName, chosen: &[ForeignBackup], report: &mut Import) -> Result<(), Error> {
    let repository = app.repository_if_made()?;
    for backup in chosen {
        let here = match &repository {
            Some(repository) => backup.identity().find(repository, server)?,
            None => None,
        };
        let is_damaged = match (&repository, &here) {
            (Some(repository), Some(here)) => has_damaged_files(repository, here)?,
            _ => false,
        };
        report.backups.push(match here {
            Some(here) if is_damaged => ImportedBackup::to_repair(&here, &backup.name),
            Some(here) => ImportedBackup::present(&here, &backup.name),
            None => ImportedBackup::planned(backup),
        });
    }
    Ok(())
}

fn take(
    app: &App,
    args: &ImportArgs,
    server: &ServerName,
    (source, chosen): (&mut dyn Source, &[ForeignBackup]),
    report: &mut Import,
) -> Result<(), Error> {
    // Nobody imports regularly.
    let repository = open_or_create(app)?;
    let signals = Interruption::watch(|| {})?;
    let importer = Importer {
        repository: &repository,
        server,
        signals: &signals,
        quiet: app.options.quiet || args.json.json,
    };
    take_backups(&importer, source, chosen, report)?;
    let here = (&repository, server);
    let (totals, left_out) = wal::take(source, here, args.wal, &signals, importer.quiet)?;
    report.wal = Some(totals);
    report.left_out.extend(left_out.into_iter().map(NotTaken::from));
    let gone = gone(&repository, server, &report.backups)?;
    report.left_out.extend(gone.into_iter().map(NotTaken::from));
    match args.moves {
        true => moved::delete(here, source, chosen, report, importer.quiet),
        false => Ok(()),
    }
}

/// The backups that were here, and that somebody or a policy has deleted while the import ran.
fn gone(
    repository: &Repository,
    server: &ServerName,
    taken: &[ImportedBackup],
) -> Result<Vec<LeftOut>, Error> {
    let here: BTreeSet<BackupId> = repository
        .backups(server)?
        .iter()
        .map(|backup| backup.id)
        .collect();
    let is_gone = |backup: &&ImportedBackup| backup.backup.is_some_and(|id| !here.contains(&id));
    let gone = taken.iter().filter(is_gone).map(|backup| {
        let why = format!(
            "it was deleted here while the import ran: 'barmanfs retention {server}' shows what the policy keeps"
        );
        LeftOut::problem(&backup.name, why)
    });
    Ok(gone.collect())
}

/// Prints the section for the server that Barman's configuration gives.
fn print_config(app: &mut App, args: &ImportArgs, file: &Path) -> Result<Outcome, Error> {
    let home = std::env::var_os("HOME");
    let barmans = Config::load_barmans(file, home.as_deref().map(Path::new))?;
    let from = args.barman.from_server.as_deref().unwrap_or(&args.server);
    for line in configuration::section(&barmans, from, &args.server)? {
        app.out.line(line)?;
    }
    Ok(Outcome::Done)
}

/// The server, which need not be configured yet.
fn server(app: &App, name: &str) -> Result<ServerName, Error> {
    if let Some(server) = app.config.server(name) {
        return Ok(server.name.clone());
    }
    let server: ServerName = name.parse()?;
    tracing::warn!(
        "Server {server} is not in {}: what is imported is kept, and no policy applies to it before it is",
        app.config.file.display()
    );
    Ok(server)
}

fn open(args: &ImportArgs) -> Result<Box<dyn Source>, Error> {
    let source = &args.source;
    if let Some(home) = &source.barman_home {
        let name = args.barman.from_server.as_deref();
        let home = BarmanHome::open(home, (name, &args.server), barman_options(&args.barman)?)?;
        return Ok(Box::new(home));
    }
    if let Some(file) = &source.barman_export {
        return Ok(Box::new(Tarball::new(
            file.clone(),
            barman_options(&args.barman)?,
        )));
    }
    if let Some(storage) = &source.walg {
        let passphrase = gpg_passphrase(&args.barman)?;
        return Ok(Box::new(WalG::new(storage.clone(), passphrase)));
    }
    if let Some(place) = &source.data_directory {
        return Ok(Box::new(DataDirectory::new(place.clone())));
    }
    let options = &args.pgbackrest;
    let Some((repository, stanza)) = source.pgbackrest.clone().zip(options.stanza.clone()) else {
        return Ok(Box::new(BaseBackups::new(source.pg_basebackup.clone())));
    };
    let passphrase = match (
        &options.cipher_passphrase_file,
        &options.cipher_passphrase_command,
    ) {
        (Some(path), _) => Some(passphrase::of_file(path)?.into()),
        (None, Some(command)) => Some(passphrase::of_command("--cipher-passphrase-command", command)?.into()),
        (None, None) => None,
    };
    Ok(Box::new(PgBackRest::new(repository, stanza, passphrase)?))
}

fn gpg_passphrase(args: &BarmanArgs) -> Result<Option<Passphrase>, Error> {
    let command = args.passphrase_command.as_deref();
    command.map(Passphrase::from_command).transpose()
}

fn barman_options(args: &BarmanArgs) -> Result<Options, Error> {
    let zone = match &args.time_zone {
        None => TimeZone::system(),
        Some(name) => TimeZone::get(name)
            .map_err(|_| Error::usage(format!("{name} is no time zone like Europe/Rome or UTC")))?,
    };
    Ok(Options {
        plain: Plain {
            passphrase: gpg_passphrase(args)?,
            custom_decompress: args.custom_decompress.clone(),
        },
        zone,
        with_partial: args.with_partial,
        waiting: match args.include_waiting {
            true => Waiting::Taken,
            false => Waiting::Named,
        },
    })
}

/// The backups with these names; all if there are none.
fn choose(
    mut backups: Vec<ForeignBackup>,
    left_out: &[LeftOut],
    names: &[String],
) -> Result<Vec<ForeignBackup>, Error> {
    let unknown = names
        .iter()
        .find(|name| !backups.iter().any(|backup| backup.name == **name));
    if let Some(unknown) = unknown {
        if let Some(LeftOut { why, .. }) = left_out.iter().find(|left_out| left_out.what == *unknown) {
            return Err(Error::failed(format!("Backup {unknown} cannot be taken: {why}")));
        }
        let there: Vec<&str> = backups.iter().map(|backup| backup.name.as_str()).collect();
        return Err(
            Error::failed(format!("The source has no backup {unknown} that can be taken"))
                .hint(format!("There are: {}", there.join(", "))),
        );
    }
    backups.retain(|backup| names.is_empty() || names.contains(&backup.name));
    Ok(backups)
}

fn take_backups(
    importer: &Importer<'_>,
    source: &mut dyn Source,
    backups: &[ForeignBackup],
    report: &mut Import,
) -> Result<(), Error> {
    let mut previous: Option<Backup> = None;
    for backup in backups {
        match importer.take(source, backup, previous.as_ref())? {
            Taken::Imported {
                backup: here,
                read_bytes,
                shared_bytes,
            } => {
                tracing::info!("Backup {} is here as {}", backup.name, here.id);
                let read = (read_bytes, shared_bytes);
                report
                    .backups
                    .push(ImportedBackup::imported(&here, &backup.name, read));
                previous = Some(*here);
            }
            Taken::Present(here) => {
                report.backups.push(ImportedBackup::present(&here, &backup.name));
                previous = Some(*here);
            }
            Taken::Repaired {
                backup: here,
                read_bytes,
                shared_bytes,
            } => {
                tracing::info!("Backup {} was damaged here and is whole again", here.id);
                let read = (read_bytes, shared_bytes);
                report
                    .backups
                    .push(ImportedBackup::repaired(&here, &backup.name, read));
                previous = Some(*here);
            }
            Taken::LeftOut(left_out) => {
                let LeftOut { what, why, .. } = &left_out;
                tracing::error!("Backup {what} is not imported: {why}");
                report.left_out.push(left_out.into());
            }
        }
    }
    Ok(())
}

fn show(app: &mut App, args: &ImportArgs, report: &Import) -> Result<Outcome, Error> {
    if args.json.json {
        app.out.json(report)?;
    } else if !app.options.quiet {
        print(&mut app.out, report)?;
    }
    let unnamed = report.wal.as_ref().map_or(0, |wal| wal.left_out_unnamed);
    let has_problems = unnamed > 0 || report.left_out.iter().any(|left_out| left_out.problem);
    Ok(if has_problems {
        Outcome::Problems
    } else {
        Outcome::Done
    })
}

fn print(out: &mut Output, report: &Import) -> Result<(), Error> {
    for backup in &report.backups {
        let here = backup.backup.map_or_else(String::new, |id| format!(" as {id}"));
        let size = backup
            .logical_bytes
            .map_or_else(String::new, |bytes| format!(", {}", output::bytes(bytes)));
        let read = match backup.state {
            "imported" | "repaired" => format!(
                ", read {}, taken over {}, stored {}",
                output::bytes(backup.read_bytes),
                output::bytes(backup.shared_bytes),
                output::bytes(backup.new_stored_bytes)
            ),
            _ => String::new(),
        };
        let deleted = if backup.source_deleted {
            ", deleted from the source"
        } else {
            ""
        };
        out.line(format_args!(
            "{}: {}{here}{size}{read}{deleted}",
            output::printable(backup.name.as_bytes()),
            backup.state
        ))?;
    }
    if let Some(wal) = &report.wal
        && (wal.archived, wal.present) != (0, 0)
    {
        out.line(format_args!(
            "WAL: {} archived ({}, stored {}), already here: {}",
            output::count(wal.archived, "file"),
            output::bytes(wal.archived_bytes),
            output::bytes(wal.new_stored_bytes),
            wal.present
        ))?;
    }
    for left_out in &report.left_out {
        out.line(format_args!(
            "Left out: {}: {}",
            output::printable(left_out.name.as_bytes()),
            output::printable(left_out.reason.as_bytes())
        ))?;
    }
    match report.wal.as_ref().map_or(0, |wal| wal.left_out_unnamed) {
        0 => Ok(()),
        more => out.line(format_args!("Left out: {more} more WAL files")),
    }
}
