//! `barmanfs sweep`.

use std::num::NonZero;

use barmanfs_catalog::{SweepOptions, SweepReport};

use super::App;
use crate::cli::upkeep::SweepArgs;
use crate::error::{Error, Outcome};
use crate::output::{self, Output};
use crate::progress::Shown;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &SweepArgs) -> Result<Outcome, Error> {
    let repository = app.repository_for_writing()?;
    let rate = args.max_rate.map(|kb| u64::from(kb) * 1024);
    let report = repository.sweep(
        &SweepOptions {
            bytes_per_second: rate.and_then(NonZero::new),
            ..SweepOptions::default()
        },
        &mut Shown::start("Sweep", app.options.quiet),
    )?;
    let clean = report.missing_chunks == 0 && report.problems.is_empty() && report.unfinished.is_none();
    if args.json.json {
        app.out.json(&report)?;
    } else if !(app.options.quiet && clean) {
        show(&mut app.out, &report)?;
    }
    Ok(if clean { Outcome::Done } else { Outcome::Problems })
}

fn show(out: &mut Output, report: &SweepReport) -> Result<(), Error> {
    // Copies of packs that still wait were made on account: their space is gained with the next sweep.
    let gained = report.removed_bytes.saturating_sub(report.copied_bytes);
    out.line(format_args!(
        "Freed {} in {}",
        output::bytes(gained),
        output::count(report.removed_packs, "pack")
    ))?;
    if report.merged_packs > 0 {
        out.line(format_args!(
            "Merged {} of archived WAL into larger ones",
            output::count(report.merged_packs, "pack")
        ))?;
    }
    if report.abandoned_files > 0 {
        out.line(format_args!(
            "Removed {} of killed processes",
            output::count(report.abandoned_files, "unfinished file")
        ))?;
    }
    if report.waiting_packs > 0 {
        let until = match report.waiting_for.as_slice() {
            [] => String::new(),
            writers => format!(", when these have ended: {}", writers.join(", ")),
        };
        out.line(format_args!(
            "Left for the next sweep{until}: {}",
            output::count(report.waiting_packs, "pack")
        ))?;
    }
    if let Some(reason) = &report.unfinished {
        out.line(format_args!("Not all that can be freed was: {reason}"))?;
    }
    for problem in &report.problems {
        out.line(format_args!("Pack {}: {}", problem.pack, problem.reason))?;
    }
    if report.missing_chunks > 0 {
        out.line(format_args!(
            "Missing: {}; 'barmanfs verify' names the files",
            output::count(report.missing_chunks, "chunk")
        ))?;
    }
    Ok(())
}
