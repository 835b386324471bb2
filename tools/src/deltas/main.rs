//! `barmanfs-deltas`: which rule for storing a window whole again takes the least space.
//!
//! It reads histories of windows, as `page_histories.py` makes them with a real server, and simulates rules on them:
//! `HISTORIES/<relation>/<window>/<round>` is a window's content when it had changed in that round. The least possible is
//! what somebody would take who knew all later rounds.

// A program for people at a terminal: printing is its job.
#![allow(clippy::print_stdout)]

mod history;
mod rules;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use history::History;

/// A window that has changed less often says nothing.
const VERSIONS_MIN: usize = 3;

/// Compares rules for storing a window whole again
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  tools/page_histories.py /var/tmp/histories\n  barmanfs-deltas /var/tmp/histories"
)]
struct Options {
    /// The histories
    histories: PathBuf,
    /// How many windows of each relation; the work grows with the square of a window's changes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    windows: u32,
    /// zstd level of deltas
    #[arg(long, default_value_t = 3)]
    level: i32,
}

/// What a rule took.
#[derive(Debug, Default)]
struct Taken {
    bytes: usize,
    /// In relation to the least possible, summed over relations.
    ratios: f64,
    worst: f64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut taken: BTreeMap<String, Taken> = BTreeMap::new();
    let (mut least, mut relations) = (0, 0);
    for relation in sorted(&options.histories)? {
        let Some((best, rules)) = relation_costs(&relation, &options)? else {
            continue;
        };
        least += best;
        relations += 1;
        for (name, bytes) in rules {
            let ratio = bytes as f64 / best as f64;
            let taken = taken.entry(name).or_default();
            taken.bytes += bytes;
            taken.ratios += ratio;
            taken.worst = taken.worst.max(ratio);
        }
    }
    ensure!(
        relations > 0,
        "There are no histories in {}",
        options.histories.display()
    );
    let mut lines: Vec<_> = taken.into_iter().collect();
    lines.sort_by_key(|(_, taken)| taken.bytes);
    println!(
        "{relations} relations, at least {least} bytes. In relation to that: together, mean and worst relation"
    );
    for (name, Taken { bytes, ratios, worst }) in lines {
        let (all, mean) = (bytes as f64 / least as f64, ratios / f64::from(relations));
        println!("{name:28} {all:.3} {mean:.3} {worst:.2}");
    }
    Ok(())
}

/// The least that some windows of a relation can take, and what each rule takes; `None` when they hardly change.
fn relation_costs(relation: &Path, options: &Options) -> Result<Option<(usize, BTreeMap<String, usize>)>> {
    let windows = sorted(relation)?;
    let step = windows.len().div_ceil(options.windows as usize).max(1);
    let mut best = 0;
    let mut rules: BTreeMap<String, usize> = BTreeMap::new();
    for window in windows.iter().step_by(step) {
        let versions = sorted(window)?;
        if versions.len() < VERSIONS_MIN {
            continue;
        }
        let versions = versions
            .iter()
            .map(|path| fs::read(path).with_context(|| format!("Cannot read {}", path.display())))
            .collect::<Result<_>>()?;
        let mut history = History::new(versions, options.level);
        best += history.least();
        for (name, rule) in rules::all() {
            *rules.entry(name).or_default() += history.cost(&*rule);
        }
    }
    Ok((best > 0).then_some((best, rules)))
}

fn sorted(directory: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(directory).with_context(|| format!("Cannot list {}", directory.display()))?;
    let mut paths = listed
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
