//! `barmanfs sync`, and Barman's `sync-backup`, `sync-wals` and `sync-info`.

use std::path::PathBuf;

use barmanfs_catalog::{BackupId, SyncReport, SyncedBackups};

use super::backup::open_or_create;
use super::{ALL, App};
use crate::cli::sync::{SyncArgs, SyncBackupArgs, SyncInfoArgs, SyncWalsArgs};
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::output::{self, Output};
use crate::progress::Shown;
use crate::report::sync::{SyncInfo, SyncedServer};
use crate::sync::{self, Extent};

/// Syncs servers, one after the other.
pub(crate) fn run(app: &mut App, args: &SyncArgs) -> Result<Outcome, Error> {
    let mut servers = app.configured_servers(&args.servers)?;
    let is_named = |server: &ServerConfig| args.servers.iter().any(|name| name == server.name.as_str());
    servers.retain(|server| server.is_passive() || is_named(server));
    if servers.is_empty() && args.servers.iter().any(|name| name == ALL) {
        return Err(Error::usage(format!(
            "No server in {} has a primary",
            app.config.file.display()
        )));
    }
    take(app, &servers, Extent::ALL, args.json.json)
}

/// Syncs one backup, whatever the policy says.
pub(crate) fn backup(app: &mut App, args: &SyncBackupArgs) -> Result<Outcome, Error> {
    let server = app.configured(&args.server)?.clone();
    let id: BackupId = args
        .backup
        .parse()
        .map_err(|_| Error::usage(format!("{} is no backup's id", args.backup)))?;
    let extent = Extent {
        backups: SyncedBackups::Only(id),
        wal: false,
    };
    take(app, &[server], extent, args.json.json)
}

/// Syncs WAL alone.
pub(crate) fn wals(app: &mut App, args: &SyncWalsArgs) -> Result<Outcome, Error> {
    let server = app.configured(&args.server)?.clone();
    let extent = Extent {
        backups: SyncedBackups::Nothing,
        wal: true,
    };
    take(app, &[server], extent, args.json.json)
}

/// Shows what is remembered of the last sync.
pub(crate) fn info(app: &mut App, args: &SyncInfoArgs) -> Result<Outcome, Error> {
    let server = app.configured(&args.server)?.clone();
    let memory = match app.repository_if_made()? {
        Some(repository) => repository.sync_memory(&server.name)?,
        None => barmanfs_catalog::SyncMemory::default(),
    };
    let primary = server.is_passive().then(|| sync::described(&server));
    let info = SyncInfo::new(server.name, primary, memory);
    if args.json.json {
        app.out.json(&info)?;
        return Ok(Outcome::Done);
    }
    let second = |time: Option<_>| time.map_or_else(|| "never".to_owned(), output::second);
    app.out.line(format_args!("Server {}:", info.server))?;
    let primary = info.primary.as_deref().unwrap_or("none: it is not passive");
    app.out.line(format_args!("\tPrimary: {primary}"))?;
    app.out.line(format_args!(
        "\tLast sync that had everything: {}",
        second(info.synced_at)
    ))?;
    app.out
        .line(format_args!("\tAll WAL up to: {}", second(info.current_at)))?;
    for problem in info.error.iter().chain(&info.problems) {
        app.out.line(format_args!(
            "\tProblem: {}",
            output::printable(problem.as_bytes())
        ))?;
    }
    Ok(Outcome::Done)
}

fn take(app: &mut App, servers: &[ServerConfig], extent: Extent, json: bool) -> Result<Outcome, Error> {
    let repository = open_or_create(app)?;
    let config = config_path(app);
    let mut done = Vec::new();
    let mut failed = None;
    for server in servers {
        let mut monitor = Shown::start("Sync", app.options.quiet || json);
        let synced = sync::run(&repository, server, Some(&config), extent, &mut monitor);
        drop(monitor);
        done.push(match synced {
            Ok(synced) => SyncedServer {
                server: server.name.clone(),
                primary: synced.primary,
                report: synced.report,
                partial_segments: synced.partial_segments,
                error: None,
            },
            Err(error) => {
                if servers.len() > 1 {
                    tracing::error!("Server {}: {error}", server.name);
                }
                let text = error.to_string();
                failed = Some(error);
                SyncedServer {
                    server: server.name.clone(),
                    primary: sync::described(server),
                    report: SyncReport::default(),
                    partial_segments: 0,
                    error: Some(text),
                }
            }
        });
    }
    if json {
        app.out.json_list("servers", &done)?;
    } else if !app.options.quiet {
        done.iter()
            .filter(|server| server.error.is_none())
            .try_for_each(|server| print(&mut app.out, server))?;
    }
    match failed {
        Some(error) if servers.len() > 1 => Err(error.into_failure()),
        Some(error) => Err(error),
        None if done.iter().any(|server| !server.report.problems.is_empty()) => Ok(Outcome::Problems),
        None => Ok(Outcome::Done),
    }
}

/// The configuration's file, as another host may be told.
fn config_path(app: &App) -> PathBuf {
    std::path::absolute(&app.config.file).unwrap_or_else(|_| app.config.file.clone())
}

fn print(out: &mut Output, server: &SyncedServer) -> Result<(), Error> {
    let report = &server.report;
    out.line(format_args!(
        "Server {} from {}: {} and {} came, {} copied",
        server.server,
        output::printable(server.primary.as_bytes()),
        output::count(report.backups.len(), "backup"),
        output::count(report.wal_files, "WAL file"),
        output::bytes(report.copied_bytes)
    ))?;
    let ids = |ids: &[BackupId]| {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        ids.join(", ")
    };
    for (what, backups) in [
        ("Came", &report.backups),
        ("Not fetched, obsolete by the policy here", &report.obsolete),
        ("Not fetched, deleted here before", &report.deleted_here),
        ("Deleted, as on the primary", &report.deleted),
    ] {
        if !backups.is_empty() {
            out.line(format_args!("  {what}: {}", ids(backups)))?;
        }
    }
    for note in &report.notes {
        out.line(format_args!("  {}", output::printable(note.as_bytes())))?;
    }
    for problem in &report.problems {
        out.line(format_args!(
            "  Problem: {}",
            output::printable(problem.as_bytes())
        ))?;
    }
    Ok(())
}
