//! `barmanfs rebuild-catalog`.

use barmanfs_catalog::Repository;
use barmanfs_store::PackId;

use super::App;
use crate::cli::upkeep::RebuildArgs;
use crate::error::{Error, Outcome};
use crate::output;
use crate::progress::Shown;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &RebuildArgs) -> Result<Outcome, Error> {
    app.refuse_foreign_root()?;
    let path = &app.config.repository;
    let report = Repository::rebuild_with(
        path,
        args.force,
        &mut Shown::start("Rebuild of the catalog", app.options.quiet),
    )?;
    // What cron has found was found in the catalog before.
    let forgotten = Repository::open(path)
        .and_then(|new| new.remember_of_repository(|memory| memory.catalog_faults.clear()));
    if let Err(error) = forgotten {
        tracing::warn!("What cron has found in the catalog before is still remembered: {error}");
    }
    if args.json.json {
        app.out.json(&report)?;
    } else if !(app.options.quiet && report.is_complete()) {
        if !report.missing.is_empty() {
            app.out.line(format_args!(
                "{} that the catalog before knew {} not there: {}",
                output::count(report.missing.len(), "pack"),
                if report.missing.len() == 1 { "is" } else { "are" },
                some_of(&report.missing)
            ))?;
        }
        for problem in &report.problems {
            app.out.line(format_args!(
                "Left out: pack {}: {}",
                problem.pack, problem.reason
            ))?;
        }
        if !report.problems.is_empty() {
            app.out.line(
                "Nothing is freed while damaged packs are there: put them back from a copy of the repository and run \
                 again, or move them away to give up what they hold",
            )?;
        }
        if let Some(kept) = &report.kept_catalog {
            app.out.line(format_args!(
                "The old catalog, which knows what they hold, is kept as {}",
                kept.display()
            ))?;
        }
        if report.made_settings {
            app.out.line(
                "Wrote a new repository.json, as it was missing or damaged: with the compression levels of a new repository",
            )?;
        }
        app.out.line(format_args!(
            "Rebuilt the catalog from {} packs: {} backups, {} WAL files, {} chunks",
            report.packs, report.backups, report.wal_files, report.chunks
        ))?;
    }
    Ok(if report.is_complete() {
        Outcome::Done
    } else {
        Outcome::Problems
    })
}

/// Names of packs, as many as fit in a line.
fn some_of(packs: &[PackId]) -> String {
    const SHOWN: usize = 10;
    let mut names: Vec<String> = packs.iter().take(SHOWN).map(ToString::to_string).collect();
    if packs.len() > SHOWN {
        names.push("...".to_owned());
    }
    names.join(", ")
}
