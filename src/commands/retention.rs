//! `barmanfs retention`.

use barmanfs_catalog::retention::{Enforced, RemovableWal, RetentionPlan, RetentionRules, RetentionState};
use barmanfs_catalog::{Repository, ServerName};

use super::App;
use super::keep::described;
use crate::cli::retention::RetentionArgs;
use crate::error::{Error, Outcome};
use crate::hooks::retention::Done;
use crate::hooks::{self, NEVER_STOPPED};
use crate::moment;
use crate::output::{self, Align, Cell, Output, Style, Table};
use crate::progress::Shown;
use crate::report::ServerRetention;

/// Runs the command. A server whose plan is blocked, or a snapshot that the storage does not delete, makes it end with exit
/// code 3.
pub(crate) fn run(app: &mut App, args: &RetentionArgs) -> Result<Outcome, Error> {
    let repository = match args.enforce {
        true => app.repository_for_writing()?,
        false => app.repository()?,
    };
    let mut reports = Vec::new();
    let mut has_failed = false;
    for server in app.known_servers(&repository, &args.server)? {
        let (report, problems) = report(app, &repository, &server, args)?;
        if let (true, Some(why)) = (app.options.quiet, &report.plan.blocked) {
            tracing::error!("Server {server}: nothing is deleted: {why}");
        }
        reports.push(report);
        has_failed |= !problems.is_empty();
    }
    let is_blocked = reports.iter().any(|report| report.plan.blocked.is_some());
    if args.json.json {
        app.out.json_list("servers", &reports)?;
    } else if !(app.options.quiet && args.enforce) {
        for (nth, report) in reports.iter().enumerate() {
            if nth > 0 {
                app.out.line("")?;
            }
            show(&mut app.out, report)?;
        }
    }
    Ok(match is_blocked || has_failed {
        true => Outcome::Problems,
        false => Outcome::Done,
    })
}

fn report(
    app: &App,
    repository: &Repository,
    server: &ServerName,
    args: &RetentionArgs,
) -> Result<(ServerRetention, Vec<String>), Error> {
    // Of a server whose section has an error it is not known what it keeps.
    let configured = app.config.server(server.as_str());
    let disabled = configured.and_then(|configured| configured.refuse_disabled().err());
    let held = match disabled {
        Some(error) => Some(error.to_string()),
        None => held_by_audit(repository, server)?,
    };
    let configured_rules = app.retention_rules(server);
    let rules = RetentionRules {
        held: held.or(configured_rules.held.clone()),
        unneeded_wal: args.wal,
        ..configured_rules
    };
    let at = match &args.at {
        Some(text) => moment::parse(repository, server, text)?,
        None => moment::now(),
    };
    let done = match args.enforce {
        true => hooks::retention::enforce(repository, (server, configured), &rules, at, NEVER_STOPPED)?,
        false => Done {
            enforced: Enforced {
                plan: repository.retention(server, &rules, at)?,
                deleted: Vec::new(),
                wal: Vec::new(),
            },
            problems: Vec::new(),
        },
    };
    let (done, problems) = (done.enforced, done.problems);
    let deletes = done.plan.doomed().next().is_some() || !done.plan.removable_wal().is_empty();
    let forecast = (deletes && !args.enforce).then(|| {
        let mut shown = Shown::start("Forecast", app.options.quiet);
        repository.forecast(server, &done.plan, &mut shown)
    });
    // The plan is shown all the same: '--enforce' carries it out.
    let (forecast, forecast_error) = match forecast.transpose() {
        Ok(forecast) => (forecast, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let report = ServerRetention {
        server: server.to_string(),
        retention_policy: rules.backups.map(|policy| policy.to_string()),
        wal_retention_policy: rules.wal.to_string(),
        minimum_redundancy: rules.minimum_redundancy,
        plan: done.plan,
        forecast,
        forecast_error,
        deleted: done.deleted,
        removed_wal: done.wal,
    };
    Ok((report, problems))
}

/// Why nothing may be deleted: the newest backup may not be what the server had.
pub(super) fn held_by_audit(repository: &Repository, server: &ServerName) -> Result<Option<String>, Error> {
    let backups = repository.backups(server)?;
    let memory = repository.server_memory(server)?;
    Ok(memory.open_difference(&backups).map(|found| {
        format!(
            "Backup {} is not what the server has, and no full backup has been taken since",
            found.backup
        )
    }))
}

fn show(out: &mut Output, report: &ServerRetention) -> Result<(), Error> {
    let policy = report
        .retention_policy
        .as_deref()
        .unwrap_or("no retention_policy");
    out.line(format_args!(
        "Server {}: {policy}; WAL: {}; minimum redundancy: {}",
        report.server, report.wal_retention_policy, report.minimum_redundancy
    ))?;
    match report.plan.backups.is_empty() {
        true => out.line("No backup yet")?,
        false => out.table(&table(&report.plan))?,
    }
    if let Some(why) = &report.plan.blocked {
        let text = out.paint("Nothing is deleted", Style::Red);
        out.line(format_args!("{text}: {why}"))?;
        return Ok(());
    }
    if let Some(why) = &report.plan.wal_blocked {
        out.line(format_args!("No WAL is removed: {why}"))?;
    }
    if !report.deleted.is_empty() || !report.removed_wal.is_empty() {
        let ids: Vec<String> = report.deleted.iter().map(ToString::to_string).collect();
        out.line(format_args!(
            "Deleted: {}; {}. 'barmanfs sweep' frees the space",
            if ids.is_empty() {
                "no backup".to_owned()
            } else {
                ids.join(", ")
            },
            wal_text(&report.removed_wal)
        ))?;
    }
    let freed = match (&report.forecast, &report.forecast_error) {
        (Some(forecast), _) => format!("A sweep then frees {}", output::bytes(forecast.freed_bytes)),
        (None, Some(why)) => format!("What a sweep then frees is not known: {why}"),
        (None, None) => return Ok(()),
    };
    let doomed: Vec<String> = report.plan.doomed().map(|backup| backup.id.to_string()).collect();
    out.line(format_args!(
        "The next run deletes: {}; {}",
        if doomed.is_empty() {
            "no backup".to_owned()
        } else {
            doomed.join(", ")
        },
        wal_text(report.plan.removable_wal())
    ))?;
    out.line(freed)
}

/// `12 files of WAL (192.00 MiB): 000000010000000000000001 to 00000001000000000000000C`.
fn wal_text(wal: &[RemovableWal]) -> String {
    let files: u64 = wal.iter().map(|range| range.totals.files).sum();
    let bytes: u64 = wal.iter().map(|range| range.totals.logical_bytes).sum();
    if files == 0 {
        return "no WAL".to_owned();
    }
    let ranges: Vec<String> = wal
        .iter()
        .map(|wal| format!("up to {}", wal.range.last))
        .collect();
    format!(
        "{} of WAL ({}), {}",
        output::count(files, "file"),
        output::bytes(bytes),
        ranges.join(", ")
    )
}

fn table(plan: &RetentionPlan) -> Table {
    let mut table = Table::new(&[
        ("Backup", Align::Left),
        ("Status", Align::Left),
        ("Retention", Align::Left),
        ("Why", Align::Left),
    ]);
    for backup in &plan.backups {
        let style = match backup.state {
            RetentionState::Obsolete | RetentionState::PotentiallyObsolete => Style::Yellow,
            _ => Style::Green,
        };
        let mut why = match &backup.keep {
            Some(keep) => described(keep),
            None => backup.why.clone(),
        };
        if let Some(holder) = &backup.held_by {
            why.push_str(&format!("; not deleted now: {holder}"));
        }
        let state = match backup.state {
            RetentionState::None => Cell::from(backup.state.as_str()),
            state => Cell::styled(state.as_str(), style),
        };
        table.row([
            backup.id.to_string().into(),
            backup.status.as_str().into(),
            state,
            why.into(),
        ]);
    }
    table
}
