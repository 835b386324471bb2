//! `barmanfs verify SERVER BACKUP --boot`.

use std::fs::File;
use std::path::{Path, PathBuf};

use barmanfs_catalog::{Backup, BackupStatus, BootOutcome, BootTest, Repository};

use super::super::App;
use super::WAL;
use crate::boot::{self, Report, Request, Stdout};
use crate::cli::check::VerifyArgs;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::output::{self, Style};
use crate::postgres::{Conninfo, Environment};
use crate::progress::{Counted, Progress};
use crate::report::TestedBackup;
use crate::signals::Interruption;

/// Text of a server's messages about files with damage: the system's text of EIO.
const UNREADABLE: &str = "Input/output error";

/// Runs the command.
pub(super) fn run(app: &mut App, args: &VerifyArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let request = request(app, &repository, args)?;
    let backup = &request.backup;
    let interruption = Interruption::watch(|| {})?;
    let what = format!("Boot test of backup {}", backup.id);
    let progress = Progress::start(what, Counted::Time, app.options.quiet);
    let report = boot::run(&repository, &request, &interruption, &progress)?;
    drop(progress);
    repository.add_boot_test(backup, report.test.clone())?;
    if args.json.json {
        app.out.json(&TestedBackup {
            server: &backup.server,
            backup: backup.id.to_string(),
            test: &report.test,
            details: &report.details,
        })?;
    } else {
        show(app, backup, &report)?;
    }
    Ok(match report.test.outcome {
        BootOutcome::Ok => Outcome::Done,
        BootOutcome::Failed => Outcome::Problems,
    })
}

fn request(app: &App, repository: &Repository, args: &VerifyArgs) -> Result<Request, Error> {
    let name = args.what.as_deref().filter(|name| *name != WAL);
    let (Some(name), true) = (name, args.server != super::super::ALL) else {
        return Err(Error::usage(
            "Name the server and the backup that is to be started",
        ));
    };
    let server = app.known_server(repository, &args.server)?;
    let backup = app.backup(repository, &server, name)?;
    if let Some(why) = backup.files_elsewhere() {
        return Err(Error::failed(format!(
            "{why}: it can be started where its disks are"
        )));
    }
    if backup.status != BackupStatus::Done {
        return Err(Error::failed(format!(
            "Backup {} of {server} is {}: only one that is DONE can be started",
            backup.id, backup.status
        )));
    }
    Ok(Request {
        backup,
        bindir: args.bindir.clone(),
        path_prefix: app
            .config
            .server(&args.server)
            .and_then(|server| server.path_prefix.clone()),
        sql: args.sql.as_deref().map(readable).transpose()?,
        // With --json, standard output gets nothing but JSON.
        sql_stdout: if args.json.json {
            Stdout::Shown
        } else {
            Stdout::Shared
        },
        amcheck: args.amcheck,
        settings: args.settings.clone(),
        users: users(app, &args.server),
    })
}

/// A test of a backup with nothing but a start and a look at its catalogs.
pub(in crate::commands) fn plain_request(app: &App, backup: Backup) -> Request {
    let server = backup.server.as_str();
    Request {
        bindir: None,
        path_prefix: app
            .config
            .server(server)
            .and_then(|server| server.path_prefix.clone()),
        sql: None,
        sql_stdout: Stdout::Shown,
        amcheck: false,
        settings: Vec::new(),
        users: users(app, server),
        backup,
    }
}

/// Users of the database that occur in the configuration or the environment.
fn users(app: &App, server: &str) -> Vec<String> {
    let environment = Environment::new(std::env::vars_os());
    let server = app.config.server(server);
    let strings = server.map(ServerConfig::connection_strings);
    let parsed = strings
        .into_iter()
        .flatten()
        .filter_map(|(_, text)| Conninfo::parse(text?.expose(), &environment).ok());
    let named = std::env::var("PGUSER").ok();
    named
        .into_iter()
        .chain(parsed.map(|conninfo| conninfo.user))
        .collect()
}

/// The absolute path of a file that can be read: psql runs in another directory.
fn readable(file: &Path) -> Result<PathBuf, Error> {
    let wrong = |error| Error::usage(format!("Cannot read {}: {error}", file.display()));
    let path = file.canonicalize().map_err(wrong)?;
    File::open(&path).map_err(wrong)?;
    Ok(path)
}

fn show(app: &mut App, backup: &Backup, Report { test, details }: &Report) -> Result<(), Error> {
    let which = format!("{} {}", backup.server, backup.id);
    let Some(message) = &test.message else {
        if app.options.quiet {
            return Ok(());
        }
        let line = format!("{} {which}: {}", app.out.paint("OK", Style::Green), passed(test));
        return app.out.line(line);
    };
    let line = format!(
        "{} {which}: {}",
        app.out.paint("FAILED", Style::Red),
        output::printable(message.as_bytes())
    );
    app.out.line(line)?;
    for line in details.iter().flat_map(|details| details.trim().lines()) {
        app.out
            .line(format_args!("  {}", output::printable(line.as_bytes())))?;
    }
    let unreadable = |text: &String| text.contains(UNREADABLE);
    if unreadable(message) || details.as_ref().is_some_and(unreadable) {
        app.out.line(format_args!(
            "What is stored is damaged: 'barmanfs verify {which}' names all of it"
        ))?;
    }
    Ok(())
}

/// `PostgreSQL 18.1 started and passed catalogs, amcheck in 3 s`
fn passed(test: &BootTest) -> String {
    let checks: Vec<&str> = test.checks.iter().map(|check| check.as_str()).collect();
    let took = output::duration(std::time::Duration::from_millis(test.took_ms));
    format!(
        "PostgreSQL {} started and passed {} in {took}",
        test.postgresql,
        checks.join(", ")
    )
}
