//! `barmanfs rebuild-catalog`.

use barmanfs_catalog::{BackupsOf, RebuildReport};

use super::App;
use crate::cli::upkeep::RebuildArgs;
use crate::error::{Error, Outcome};
use crate::output::{self, Output};
use crate::progress::Shown;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &RebuildArgs) -> Result<Outcome, Error> {
    app.refuse_foreign_root()?;
    let report = app.place.rebuild(
        args.force,
        &mut Shown::start("Rebuild of the catalog", app.options.quiet),
    )?;
    if args.json.json {
        app.out.json(&report)?;
    } else if !(app.options.quiet && report.is_complete()) {
        show(&mut app.out, &report)?;
    }
    Ok(if report.is_complete() {
        Outcome::Done
    } else {
        Outcome::Problems
    })
}

pub(super) fn show(out: &mut Output, report: &RebuildReport) -> Result<(), Error> {
    if !report.missing.is_empty() {
        out.line(format_args!(
            "{} that the catalog before knew {} not there: {}",
            output::count(report.missing.len(), "pack"),
            if report.missing.len() == 1 { "is" } else { "are" },
            some_of(&report.missing)
        ))?;
    }
    for problem in &report.problems {
        out.line(format_args!(
            "Left out: pack {}: {}",
            problem.pack, problem.reason
        ))?;
    }
    if !report.problems.is_empty() {
        out.line(
            "Nothing is freed while damaged packs are there: put them back from a copy of the repository and run \
             again, or move them away to give up what they hold",
        )?;
    }
    if let Some(kept) = &report.kept_catalog {
        out.line(format_args!(
            "The old catalog, which knows what they hold, is kept as {}",
            kept.display()
        ))?;
    }
    if report.made_settings {
        out.line(
            "Wrote a new repository.json, as it was missing or damaged: with the compression levels of a new repository",
        )?;
    }
    show_lost(out, report)?;
    out.line(format_args!(
        "Rebuilt the catalog from {}: {}, {}, {}",
        output::count(report.packs, "pack"),
        output::count(report.backups, "backup"),
        output::count(report.wal_files, "WAL file"),
        output::count(report.chunks, "chunk")
    ))
}

/// What can no longer be restored, as far as it is known.
fn show_lost(out: &mut Output, report: &RebuildReport) -> Result<(), Error> {
    backups(out, "Gone", &report.gone_backups)?;
    if report.gone_wal_files > 0 {
        out.line(format_args!(
            "Gone: {}; 'barmanfs check' names the gaps",
            output::count(report.gone_wal_files, "WAL file")
        ))?;
    }
    if let Some(error) = &report.not_examined {
        out.line(format_args!(
            "It is not known what else is lost, as nobody could look: {error}. Until 'barmanfs verify' has looked, no backup is \
             deleted"
        ))?;
    }
    backups(out, "Damaged now", &report.damaged_backups)?;
    if report.lost_chunks > 0 {
        out.line(format_args!(
            "Needed, and in no pack: {}; 'barmanfs verify' names the files, and the next full backup stores again what the \
             server still has",
            output::count(report.lost_chunks, "chunk")
        ))?;
    }
    Ok(())
}

fn backups(out: &mut Output, state: &str, lost: &[BackupsOf]) -> Result<(), Error> {
    for BackupsOf { server, backups } in lost {
        let server = output::printable(server.as_bytes());
        let count = output::count(backups.len(), "backup");
        out.line(format_args!(
            "{state}, of server {server}: {count} ({})",
            some_of(backups)
        ))?;
    }
    Ok(())
}

/// Names, as many as fit in a line.
fn some_of<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    const SHOWN: usize = 10;
    let mut all = all.into_iter();
    let mut names: Vec<String> = all.by_ref().take(SHOWN).map(|one| one.to_string()).collect();
    if all.next().is_some() {
        names.push("...".to_owned());
    }
    names.join(", ")
}
