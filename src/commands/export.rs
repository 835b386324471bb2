//! `barmanfs export`: a backup in the format of another program.

use std::num::NonZero;
use std::path::Path;

use barmanfs_catalog::{Repository, ServerName};

use super::{ALL, App};
use crate::cli::export::{ExportArgs, ExportCompression, ExportFormat, ExportedWal};
use crate::error::{Error, Outcome};
use crate::export::{self, Asked, Exported, HomeWal};
use crate::output;
use crate::report::ExportReport;
use crate::restore::{Layout, Relocations};
use crate::wal_transfer::compression::Compression;

/// The name of standard output.
const STANDARD_OUTPUT: &str = "-";

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ExportArgs) -> Result<Outcome, Error> {
    let is_stream = args.out == Path::new(STANDARD_OUTPUT);
    refuse(args, is_stream)?;
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.server)?;
    let configured = app
        .config
        .server(server.as_str())
        .and_then(|server| server.parallel_jobs);
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    let asked = Asked {
        repository: &repository,
        to: (!is_stream).then_some(args.out.as_path()),
        compression: compression(args.compression),
        with_wal: args.wal != Some(ExportedWal::None),
        jobs: args.jobs.map(usize::from).or(configured).unwrap_or_else(cores),
        quiet: app.options.quiet,
    };
    let exported = match args.form {
        ExportFormat::BarmanHome => home(app, args, &server, &asked)?,
        _ => one(app, args, &repository, &server, &asked)?,
    };
    let report = ExportReport::new(&server, args.form.as_str(), exported);
    if args.json.json {
        app.out.json(&report)?;
    } else if !is_stream && !app.options.quiet {
        show(app, &report)?;
    }
    Ok(Outcome::Done)
}

fn refuse(args: &ExportArgs, is_stream: bool) -> Result<(), Error> {
    let is = |form| args.form == form;
    let is_archive = is(ExportFormat::Tar) || is(ExportFormat::Barman);
    let refused = match args.wal {
        _ if is_stream && args.json.json => {
            "With --json, standard output is taken: name a place instead of -"
        }
        _ if is_stream && !is_archive => "Only an archive can be written to standard output",
        _ if !is_archive && args.compression != ExportCompression::None => {
            "--compression is for archives: --as tar or --as barman"
        }
        _ if !is(ExportFormat::Plain) && !args.tablespace_mapping.is_empty() => {
            "--tablespace-mapping is for --as plain"
        }
        Some(ExportedWal::All) if !is(ExportFormat::BarmanHome) => "--wal all is for --as barman-home",
        Some(ExportedWal::None) if is(ExportFormat::Barman) || is(ExportFormat::BarmanHome) => {
            "Barman takes no backup without the WAL that it needs"
        }
        _ => return Ok(()),
    };
    Err(Error::usage(refused))
}

fn compression(asked: ExportCompression) -> Option<Compression> {
    match asked {
        ExportCompression::None => None,
        ExportCompression::Gzip => Some(Compression::Gzip),
        ExportCompression::Bzip2 => Some(Compression::Bzip2),
        ExportCompression::Xz => Some(Compression::Xz),
        ExportCompression::Zstd => Some(Compression::Zstd),
        ExportCompression::Lz4 => Some(Compression::Lz4),
    }
}

fn one(
    app: &App,
    args: &ExportArgs,
    repository: &Repository,
    server: &ServerName,
    asked: &Asked<'_>,
) -> Result<Exported, Error> {
    let backup = app.backup(repository, server, &args.backup)?;
    // An archive is made from what the server sent, with the WAL in it, and leaves that out.
    let needs_wal = asked.with_wal || args.form != ExportFormat::Plain;
    export::refuse_incomplete(&backup, needs_wal)?;
    match args.form {
        ExportFormat::Plain => {
            let places = Relocations::of_backup(&backup, &args.tablespace_mapping, Layout::Inside)?;
            export::plain(asked, &backup, &args.out, &places)
        }
        ExportFormat::Tar => export::tar(asked, &backup),
        ExportFormat::Barman | ExportFormat::BarmanHome => export::tarball(asked, &backup),
    }
}

fn home(app: &App, args: &ExportArgs, server: &ServerName, asked: &Asked<'_>) -> Result<Exported, Error> {
    let backups = match args.backup.as_str() {
        ALL => asked.repository.backups(server)?,
        name => vec![app.backup(asked.repository, server, name)?],
    };
    let wal = match args.wal {
        None | Some(ExportedWal::All) => HomeWal::All,
        Some(ExportedWal::Needed | ExportedWal::None) => HomeWal::Needed,
    };
    export::home(asked, server, backups, wal)
}

fn show(app: &mut App, report: &ExportReport) -> Result<(), Error> {
    let ids: Vec<String> = report.backups.iter().map(ToString::to_string).collect();
    let noun = match ids.len() {
        1 => "backup",
        _ => "backups",
    };
    let place = report.path.as_deref().unwrap_or(Path::new(STANDARD_OUTPUT));
    let count = |number: u64, noun| output::count(number, noun);
    app.out.line(format_args!(
        "Exported {noun} {} of {} to {}: {} and {}, {}, {} written",
        ids.join(", "),
        report.server,
        place.display(),
        count(report.files, "file"),
        count(report.wal_files, "WAL file"),
        output::bytes(report.bytes),
        output::bytes(report.written_bytes)
    ))?;
    report.notes.iter().try_for_each(|note| app.out.line(note))
}
