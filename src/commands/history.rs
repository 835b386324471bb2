//! `barmanfs history`: two histories of one timeline, and which one counts.

use barmanfs_catalog::{Decided, HistoryReport, Repository, ServerName};
use barmanfs_pg::{Lsn, TimelineId};

use super::App;
use crate::cli::history::{HistoryArgs, HistoryCommand, HistoryDecisionArgs};
use crate::error::{Error, Outcome};
use crate::forks;
use crate::output::{self, Output, Style};
use crate::report::SettledForks;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &HistoryArgs) -> Result<Outcome, Error> {
    match &args.command {
        HistoryCommand::List(json) => {
            let repository = app.repository()?;
            let server = app.known_server(&repository, &args.server)?;
            let report = repository.histories(&server)?;
            if json.json {
                app.out.json(&report)?;
            } else {
                show(&mut app.out, &report)?;
            }
        }
        HistoryCommand::Restart(decision) => restart(app, &args.server, decision)?,
        HistoryCommand::Keep(decision) => keep(app, &args.server, decision)?,
    }
    Ok(Outcome::Done)
}

fn show(out: &mut Output, report: &HistoryReport) -> Result<(), Error> {
    let server = &report.server;
    if report.forks.is_empty() {
        return out.line(format_args!("Server {server} has one history"));
    }
    for fork in &report.forks {
        let decided = match fork.decided {
            None => "not decided",
            Some(Decided::Restart) => "decided: the new history counts",
            Some(Decided::Keep) => "decided: the archived history counts",
        };
        let text = format!(
            "Two histories of timeline {} from {} on, seen {} by {}, {decided}: {}",
            fork.timeline,
            fork.lsn,
            output::second(fork.found_at),
            output::printable(fork.found_by.as_bytes()),
            output::printable(fork.why.as_bytes())
        );
        let style = match fork.decided {
            None => Style::Red,
            Some(_) => Style::Plain,
        };
        let text = out.paint(&text, style);
        out.line(text)?;
    }
    for (number, left) in report.left.iter().enumerate() {
        let ids: Vec<String> = left.backups.iter().map(ToString::to_string).collect();
        let backups = match ids.is_empty() {
            true => "no backup".to_owned(),
            false => format!("backups {}", ids.join(", ")),
        };
        out.line(format_args!(
            "History {} was left at {} on timeline {}, decided {}: {} kept apart, {backups}",
            number + 1,
            left.lsn,
            left.timeline,
            output::second(left.decided_at),
            output::count(left.files, "file")
        ))?;
    }
    if !report.undecided_backups.is_empty() {
        let ids: Vec<String> = report.undecided_backups.iter().map(ToString::to_string).collect();
        out.line(format_args!(
            "Of a history that is not the archive's: backups {}; each is good for its own moment",
            ids.join(", ")
        ))?;
    }
    let refused = usize::try_from(report.refused).unwrap_or(usize::MAX);
    out.line(format_args!("Refused: {}", output::count(refused, "file")))?;
    if let Some(open) = report.forks.iter().find(|fork| fork.decided.is_none()) {
        out.line(forks::advice(server, open))?;
    }
    Ok(())
}

/// A position, and its timeline. Without one, it is the only timeline that has forks.
type Place = (Option<TimelineId>, Lsn);

/// The common start of both decisions.
fn decision(
    app: &App,
    server: &str,
    args: &HistoryDecisionArgs,
) -> Result<(Repository, ServerName, Place), Error> {
    let repository = app.repository_for_writing()?;
    let server = app.known_server(&repository, server)?;
    let place = place(args)?;
    Ok((repository, server, place))
}

fn restart(app: &mut App, server: &str, args: &HistoryDecisionArgs) -> Result<(), Error> {
    let (repository, server, (timeline, lsn)) = decision(app, server, args)?;
    let done = repository
        .writer(&format!("history of {server}"))?
        .restart_history(&server, timeline, lsn)?;
    if args.json.json {
        return app.out.json(&done);
    }
    if app.options.quiet {
        return Ok(());
    }
    let ids: Vec<String> = done.backups.iter().map(ToString::to_string).collect();
    app.out.line(format_args!(
        "The new history of server {server} counts from {lsn} on timeline {} on. Kept apart: {} of the old one{}",
        done.timeline,
        output::count(done.apart, "archived file"),
        match ids.is_empty() {
            true => String::new(),
            false => format!(", for backups {}", ids.join(", ")),
        }
    ))?;
    if done.taken > 0 {
        app.out.line(format_args!(
            "Archived now: {} that had been refused",
            output::count(done.taken, "segment")
        ))?;
    }
    app.out.line(format_args!(
        "Take a backup now, it will be a full one: 'barmanfs backup {server}'"
    ))
}

fn keep(app: &mut App, server: &str, args: &HistoryDecisionArgs) -> Result<(), Error> {
    let (repository, server, (timeline, lsn)) = decision(app, server, args)?;
    let settled = repository
        .writer(&format!("history of {server}"))?
        .keep_history(&server, timeline, lsn)?;
    if args.json.json {
        return app.out.json(&SettledForks { settled });
    }
    if app.options.quiet {
        return Ok(());
    }
    app.out.line(format_args!(
        "The archived history of server {server} counts: {} settled, and WAL that continues it is taken again",
        output::count(settled, "fork")
    ))
}

fn place(args: &HistoryDecisionArgs) -> Result<Place, Error> {
    let lsn = args.at.parse().map_err(|_| {
        Error::usage(format!(
            "'{}' is no LSN, like 0/5A3F10C8",
            output::printable(args.at.as_bytes())
        ))
    })?;
    Ok((args.timeline.map(TimelineId), lsn))
}
