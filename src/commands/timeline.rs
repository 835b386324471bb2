//! `barmanfs timeline`.

mod picture;

use barmanfs_catalog::recovery::{Reach, TimelineReport};
use barmanfs_catalog::{Gap, MinimalStretch, Repository, ServerName};

use super::App;
use crate::cli::inspect::TimelineArgs;
use crate::error::{Error, Outcome};
use crate::forks;
use crate::health::losses;
use crate::locale::{self, Drawing};
use crate::output::{self, Output, Style};
use crate::versions::UNKNOWN_WAL;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &TimelineArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.server)?;
    let report = repository.timelines(&server)?;
    if args.json.json {
        app.out.json(&report)?;
    } else {
        show(&mut app.out, &report)?;
        not_read(&mut app.out, &repository, &server)?;
    }
    forks::log_open(&repository, &server)?;
    Ok(match args.check && !is_whole(&report) {
        true => Outcome::Problems,
        false => Outcome::Done,
    })
}

/// Whether all that was archived since the first backup can be recovered.
fn is_whole(report: &TimelineReport) -> bool {
    report.newest.is_some()
        && report.unreadable.is_empty()
        && !report.gaps.iter().any(Gap::matters)
        && !report.minimal.iter().any(MinimalStretch::matters)
}

fn show(out: &mut Output, report: &TimelineReport) -> Result<(), Error> {
    if report.timelines.is_empty() {
        return out.line(format_args!("Nothing is stored of server {} yet", report.server));
    }
    for line in picture::draw(report, Drawing::here(), locale::columns()) {
        let painted = match line.style {
            Style::Plain => line.text,
            style => out.paint(&line.text, style),
        };
        out.line(painted)?;
    }
    out.line("")?;
    summary(out, report)
}

fn summary(out: &mut Output, report: &TimelineReport) -> Result<(), Error> {
    match (&report.earliest, &report.newest) {
        (Some(earliest), Some(newest)) => {
            out.sentence(&format!("Earliest to recover: {}", place(earliest)), Style::Plain)?;
            let receiving = if newest.receiving {
                ", part of it still being received"
            } else {
                ""
            };
            let newest = format!("Newest to recover:   {}{receiving}", place(newest));
            out.sentence(&newest, Style::Plain)?;
        }
        _ => out.line("Nothing can be recovered: there is no complete backup with its WAL")?,
    }
    for file in &report.unreadable {
        let text = format!(
            "{} cannot be read: {}. {}",
            file.name,
            output::printable(file.reason.as_bytes()),
            file.advice
        );
        let text = out.paint(&text, Style::Red);
        out.line(text)?;
    }
    for gap in report.gaps.iter().filter(|gap| gap.matters()) {
        out.sentence(&format!("Cannot be recovered: {}", losses::lost(gap)), Style::Red)?;
    }
    for stretch in report.minimal.iter().filter(|stretch| stretch.matters()) {
        let text = format!("Cannot be recovered: {}", losses::behind(stretch));
        let text = out.paint(&text, Style::Red);
        out.line(text)?;
    }
    Ok(())
}

/// Prints which WAL could not be interpreted, if any.
fn not_read(out: &mut Output, repository: &Repository, server: &ServerName) -> Result<(), Error> {
    if let Some((newest, count)) = repository.unknown_segments(server)? {
        let count = output::count(count, "segment");
        let text = format!("Not read: {count}, the newest is {newest}, {UNKNOWN_WAL}");
        let text = out.paint(&text, Style::Red);
        out.line(text)?;
    }
    Ok(())
}

fn place(reach: &Reach) -> String {
    let time = reach.time.map(|time| format!("{time}, ")).unwrap_or_default();
    format!(
        "{time}LSN {} on timeline {}, from backup {}",
        reach.lsn, reach.timeline, reach.backup
    )
}
