//! `barmanfs rebuild-catalog`.

use barmanfs_catalog::Repository;

use super::App;
use crate::cli::JsonOption;
use crate::error::{Error, Outcome};
use crate::progress::Shown;

/// Runs the command.
pub(crate) fn run(app: &mut App, json: JsonOption) -> Result<Outcome, Error> {
    app.refuse_foreign_root()?;
    let path = &app.config.repository;
    let report = Repository::rebuild(
        path,
        &mut Shown::start("Rebuild of the catalog", app.options.quiet),
    )?;
    if json.json {
        app.out.json(&report)?;
    } else if !(app.options.quiet && report.problems.is_empty()) {
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
                "Made repository.json anew, as it was missing: with the compression levels of a new repository",
            )?;
        }
        app.out.line(format_args!(
            "Made the catalog anew from {} packs: {} backups, {} WAL files, {} chunks",
            report.packs, report.backups, report.wal_files, report.chunks
        ))?;
    }
    Ok(if report.problems.is_empty() {
        Outcome::Done
    } else {
        Outcome::Problems
    })
}
