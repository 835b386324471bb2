//! `barmanfs index-wal`.

use super::App;
use crate::cli::wal::IndexWalArgs;
use crate::error::{Error, Outcome};
use crate::output;
use crate::progress::Shown;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &IndexWalArgs) -> Result<Outcome, Error> {
    let repository = app.repository_for_writing()?;
    let server = app.known_server(&repository, &args.server)?;
    let writer = repository.writer("index-wal")?;
    let report = writer.reindex_wal(&server, &mut Shown::start("Indexing of WAL", app.options.quiet))?;
    let complete = report.problems.is_empty();
    if args.json.json {
        app.out.json(&report)?;
    } else if !(app.options.quiet && complete && report.unknown == 0) {
        let count = output::count(report.segments, "segment");
        app.out.line(format_args!("Read {count} of server {server}"))?;
        if report.unknown > 0 {
            app.out.line(format_args!(
                "{} of them are of a PostgreSQL version whose WAL this release cannot read either: they stay archived as they are",
                report.unknown
            ))?;
        }
        for problem in &report.problems {
            app.out.line(format_args!("Cannot be read: {problem}"))?;
        }
    }
    Ok(if complete {
        Outcome::Done
    } else {
        Outcome::Problems
    })
}
