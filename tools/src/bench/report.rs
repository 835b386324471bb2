//! The results as a table for people.

use std::fmt::Write;

use crate::peers::Barmanfs;
use crate::results::{Measure, Results};
use crate::targets;

/// The whole report.
pub(crate) fn text(results: &Results) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_all(&mut out, results);
    out
}

fn write_all(out: &mut String, results: &Results) -> std::fmt::Result {
    writeln!(
        out,
        "PostgreSQL {}, scale {}, {} in the data directory, {} CPUs, {} run(s)",
        results.server_version,
        results.scale,
        bytes(results.database_bytes),
        results.cpus,
        results.runs
    )?;
    for (tool, version) in &results.tools {
        writeln!(out, "  {tool}: {version}")?;
    }
    for (tool, reason) in &results.skipped {
        writeln!(out, "  {tool} left out: {reason}")?;
    }
    if !results.page_cache_dropped {
        writeln!(
            out,
            "  The page cache could not be emptied (only root can), so nothing was cold"
        )?;
    }
    let mut measures: Vec<Measure> = results.rows.iter().map(|row| row.measure).collect();
    measures.sort_unstable();
    measures.dedup();
    for measure in measures {
        write_measure(out, results, measure)?;
    }
    write_targets(out, results)
}

fn write_measure(out: &mut String, results: &Results, measure: Measure) -> std::fmt::Result {
    writeln!(out, "\n{}", measure.title())?;
    writeln!(
        out,
        "  {:<18} {:>10}  {:<21} {:>15} {:>12} {:>10}",
        "", "median", "least to most", "barmanfs takes", "stored", "memory"
    )?;
    let of_measure = || results.rows.iter().filter(|row| row.measure == measure);
    let ours = of_measure()
        .filter(|row| row.tool.starts_with(Barmanfs::NAME))
        .map(|row| row.median_seconds)
        .next();
    for row in of_measure() {
        let least = row.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = row.seconds.iter().copied().fold(0.0, f64::max);
        let ratio = ours
            .map(|ours| format!("{:.2} x", ours / row.median_seconds))
            .unwrap_or_default();
        writeln!(
            out,
            "  {:<18} {:>10}  {:<21} {:>15} {:>12} {:>10}",
            row.tool,
            seconds(row.median_seconds),
            format!("{} to {}", seconds(least), seconds(most)),
            if row.tool.starts_with(Barmanfs::NAME) {
                String::new()
            } else {
                ratio
            },
            row.median_stored_bytes().map(bytes).unwrap_or_default(),
            row.peak_memory_bytes.map(bytes).unwrap_or_default()
        )?;
    }
    Ok(())
}

fn write_targets(out: &mut String, results: &Results) -> std::fmt::Result {
    let measured: Vec<_> = targets::all(results)
        .into_iter()
        .filter(|target| target.value.is_some())
        .collect();
    if !measured.is_empty() {
        writeln!(out, "\nTargets")?;
    }
    for target in measured {
        let verdict = if target.is_met() == Some(true) {
            "reached"
        } else {
            "MISSED"
        };
        let value = target.value.unwrap_or(f64::NAN);
        writeln!(
            out,
            "  {:<53} {value:>8.3}  at most {:>7.3}  {verdict}",
            target.what, target.limit
        )?;
    }
    Ok(())
}

fn seconds(seconds: f64) -> String {
    if seconds < 0.1 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

fn bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    if bytes < 1e6 {
        format!("{:.0} kB", bytes / 1e3)
    } else {
        format!("{:.1} MB", bytes / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Sample;

    #[test]
    fn the_table_says_what_was_measured_and_what_was_not() {
        let mut results = Results::default();
        let sample = |seconds| Sample {
            seconds,
            stored_bytes: Some(2_500_000),
            peak_memory_bytes: None,
        };
        results.add(Measure::Full, "pgBackRest", sample(10.0));
        results.add(Measure::Full, "barmanfs", sample(5.0));
        results.skipped.insert("restic".into(), "not installed".into());
        let text = text(&results);
        assert!(text.contains("0.50 x"), "{text}");
        assert!(text.contains("2.5 MB"), "{text}");
        assert!(text.contains("restic left out: not installed"), "{text}");
        assert!(text.contains("reached"), "{text}");
        assert!(!text.contains("Random"), "{text}");
    }
}
