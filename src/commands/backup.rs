//! `barmanfs backup`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use barmanfs_catalog::{Annotations, Backup, BackupStatus, Error as CatalogError, Repository};
use barmanfs_store::sync::lock;
use barmanfs_store::threads;

use super::list_backups::{status_style, took};
use super::show_backup::came_in_as;
use super::{App, init};
use crate::backup::{BackupOptions, Stop};
use crate::barman;
use crate::cli::backup::BackupArgs;
use crate::cli::retention::KeptPart;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::output;
use crate::postgres::MAX_RATE_KIB;
use crate::progress;
use crate::report;
use crate::snapshot::{self, Asked, StoppedBy};

/// Runs the command for several servers. A failure for one does not prevent the backups of the others.
pub(crate) fn run(app: &mut App, args: &BackupArgs) -> Result<Outcome, Error> {
    let servers = app.configured_servers(&args.servers)?;
    if let Some(server) = servers.iter().find(|server| !server.active) {
        return Err(Error::usage(format!(
            "Server '{}' is not active in {}",
            server.name,
            app.config.file.display()
        )));
    }
    let (passive, servers): (Vec<_>, Vec<_>) = servers.into_iter().partition(ServerConfig::is_passive);
    skip(app, args, &passive)?;
    if servers.is_empty() {
        return Ok(Outcome::Done);
    }
    let repository = open_or_create(app)?;
    let stop = Stop::watch()?;
    let options = options(app, args);
    let asked = asked(args, &servers)?;
    let (backups, errors) = take_all(
        &repository,
        &servers,
        (&options, &asked),
        (&stop, args.jobs.get()),
    );
    if app.options.format.is_some() && !app.options.quiet {
        barman::backups::taken(&mut app.out, &backups)?;
    } else if args.json.json {
        let shown = backups
            .iter()
            .map(report::backup)
            .collect::<Result<Vec<_>, _>>()?;
        app.out.json_list("backups", &shown)?;
    } else {
        // With --quiet only problems are reported.
        for backup in backups
            .iter()
            .filter(|backup| !app.options.quiet || !is_well(backup))
        {
            let line = summary(app, backup);
            app.out.line(line)?;
        }
    }
    // Who does not wait knows that WAL is missing.
    let is_expected =
        |backup: &Backup| is_well(backup) || args.no_wait && backup.status == BackupStatus::WaitingForWals;
    match (summed_up(errors, servers.len()), backups.iter().all(is_expected)) {
        (Some(error), _) => Err(error),
        (None, true) => Ok(Outcome::Done),
        (None, false) => Ok(Outcome::Problems),
    }
}

/// The backups of passive servers are those of their primaries. Barman has these words, and this exit code.
fn skip(app: &mut App, args: &BackupArgs, passive: &[ServerConfig]) -> Result<(), Error> {
    for server in passive {
        let text = format!("Skipping passive server '{}'", server.name);
        match app.options.quiet || args.json.json || app.options.format.is_some() {
            true => tracing::info!("{text}"),
            false => app.out.line(text)?,
        }
    }
    Ok(())
}

fn options(app: &App, args: &BackupArgs) -> BackupOptions {
    let name = args.name.as_ref().map(ToString::to_string);
    let without_effect = args.of_barman.without_effect();
    if !without_effect.is_empty() {
        tracing::info!("Without effect here: {}", without_effect.join(", "));
    }
    BackupOptions {
        label: name.or_else(|| args.label.clone()),
        annotations: annotations(args),
        keep: args.keep.map(KeptPart::target),
        fast_checkpoint: match (args.fast_checkpoint, args.no_fast_checkpoint) {
            (false, false) => None,
            (fast, _) => Some(fast),
        },
        incremental: args.incremental.or_else(|| args.of_barman.incremental()),
        method: args.method,
        max_rate_kb: args.max_rate,
        wait_timeout: Duration::from_secs(if args.no_wait { 0 } else { args.wait_timeout }),
        quiet: app.options.quiet,
    }
}

/// What is asked for of a snapshot. A directory is of one server.
fn asked(args: &BackupArgs, servers: &[ServerConfig]) -> Result<Asked, Error> {
    if args.from.is_some() && servers.len() != 1 {
        return Err(Error::usage("--from is the data directory of one server"));
    }
    let stopped = args.backup_label.clone().zip(args.stop_lsn);
    Ok(Asked {
        from: args.from.clone(),
        stopped: stopped.map(|(label, stop_lsn)| StoppedBy {
            label,
            map: args.tablespace_map.clone(),
            stop_lsn,
        }),
        tablespaces: args.tablespace.clone(),
    })
}

/// Whether the backup is complete with its WAL, and the server has not reported damage of its own pages.
fn is_well(backup: &Backup) -> bool {
    backup.status == BackupStatus::Done && backup.checksum_failures.is_empty()
}

fn annotations(args: &BackupArgs) -> Annotations {
    let annotations = args.annotate.iter().cloned();
    annotations
        .map(|annotation| (annotation.key, annotation.value))
        .collect()
}

fn take_all(
    repository: &Repository,
    servers: &[ServerConfig],
    (options, asked): (&BackupOptions, &Asked),
    (stop, jobs): (&Stop, usize),
) -> (Vec<Backup>, Vec<Error>) {
    let jobs = jobs.min(servers.len());
    if jobs > 1 {
        progress::use_lines();
    }
    let options = &BackupOptions {
        max_rate_kb: options.max_rate_kb.map(|rate| shared(rate, jobs)),
        ..options.clone()
    };
    let next = AtomicUsize::new(0);
    let taken = Mutex::new(BTreeMap::new());
    let work = |stop: &Stop| {
        while !stop.requested() {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(server) = servers.get(n) else { break };
            let outcome = snapshot::take_as_asked(repository, server, asked, options, stop);
            // It must be known of which of several servers there is no backup.
            let outcome = outcome.map_err(|error| match servers.len() {
                1 => error,
                _ => error.of_server(server.name.as_str()),
            });
            lock(&taken).insert(n, outcome);
        }
    };
    thread::scope(|scope| {
        let others = || {
            let (stop, work) = (stop.another(), &work);
            move || work(&stop)
        };
        if jobs > 1
            && let Err(refused) = threads::start_up_to(scope, "backup", jobs - 1, others)
        {
            tracing::warn!("One backup after the other: {refused}");
        }
        work(stop);
    });
    let (mut backups, mut errors) = (Vec::new(), Vec::new());
    for (_, outcome) in taken.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match outcome {
            Ok(backup) => backups.push(backup),
            Err(error) => errors.push(error),
        }
    }
    (backups, errors)
}

/// The part of a rate that each of several has. PostgreSQL does not go below the lowest one.
fn shared(rate_kb: u32, jobs: usize) -> u32 {
    let jobs = u32::try_from(jobs).unwrap_or(u32::MAX).max(1);
    (rate_kb / jobs).max(*MAX_RATE_KIB.start())
}

/// Returns a single error unchanged, except that it is never wrong usage where others were backed up. Of several errors,
/// logs each and returns a summary.
fn summed_up(mut errors: Vec<Error>, servers: usize) -> Option<Error> {
    match errors.len() {
        0 | 1 if servers > 1 => errors.pop().map(Error::into_failure),
        0 | 1 => errors.pop(),
        failed => {
            errors.iter().for_each(|error| tracing::error!("{error}"));
            Some(Error::failed(format!("{failed} of {servers} backups failed")))
        }
    }
}

/// Opens the repository. Creates it if its directory is empty or does not exist, as Barman does, where that can be seen:
/// with `--quiet`, a nightly job would store into the directory of a disk that is not mounted.
pub(super) fn open_or_create(app: &App) -> Result<Repository, Error> {
    match app.place.open() {
        Err(error @ CatalogError::NoRepository { .. }) => {
            if app.options.quiet {
                return Err(error.into());
            }
            let repository = init::create(&app.place, None, &mut |abilities| tracing::debug!("{abilities}"))?;
            // Not a line of the log, which may be hidden.
            let _unheard = progress::write_stderr(init::is_new(&app.place).as_bytes());
            Ok(repository)
        }
        other => {
            app.refuse_foreign_root()?;
            Ok(other?)
        }
    }
}

fn summary(app: &App, backup: &Backup) -> String {
    format!(
        "Backup {} of server {}: {} in {}, {}, {} sent ({}), {} added",
        backup.id,
        backup.server,
        app.out.paint(backup.status.as_str(), status_style(backup.status)),
        took(backup).map_or_else(|| "no time".to_owned(), output::duration),
        output::bytes(backup.logical_bytes),
        output::bytes(backup.sent_bytes),
        came_in_as(backup),
        output::bytes(backup.new_stored_bytes)
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn several_backups_share_a_rate_down_to_the_lowest_one() {
        assert_eq!(
            [1, 3, 100].map(|jobs| super::shared(3000, jobs)),
            [3000, 1000, 32]
        );
    }
}
