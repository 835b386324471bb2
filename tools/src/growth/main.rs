//! `barmanfs-growth`: how long commands take, and looks into a mount, that must not take longer where a repository has grown.
//!
//! It makes catalogs of several sizes by inserting rows, and packs that are holes, and runs the program on each. The rows are
//! those that the program itself would have derived; records of WAL are empty, except those of segments that a backup needs: nothing
//! here reads the others. For sweeps, rebuilds and backups by files it makes backups with real maps, and packs with real footers.

// A program for people at a terminal: printing is its job.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

mod catalog;
mod figures;
mod files;
mod made;
mod maps;
mod mount;
mod spent;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use barmanfs_catalog::{CreateOptions, Repository};
use clap::{Parser, ValueEnum};

use crate::figures::{Figures, Growing};
use crate::spent::run_once;

/// Servers, backups of each, and WAL files of all, from small to large.
const SIZES: [(u32, u32, u32); 4] = [
    (1, 10, 1_000),
    (5, 60, 40_000),
    (20, 180, 400_000),
    (50, 365, 2_000_000),
];

/// The most memory of a command, in MB.
const MEMORY_MB: f64 = 300.0;

/// What a command reads, and so by what it may grow.
#[derive(Debug, Clone, Copy)]
enum By {
    Wal,
    Servers,
    Backups,
}

/// What is run, how it may grow, and the longest that its median may take on a release build. No server can be reached, which is
/// known at once.
const COMMANDS: [(&[&str], By, Growing, Duration); 6] = [
    (
        &["-q", "cron"],
        By::Servers,
        Growing::Linear,
        Duration::from_millis(100),
    ),
    (
        &["check", "s00"],
        By::Wal,
        Growing::Not,
        Duration::from_millis(100),
    ),
    (
        &["list-backups", "s00"],
        By::Wal,
        Growing::Linear,
        Duration::from_millis(100),
    ),
    (
        &["timeline", "s00"],
        By::Wal,
        Growing::Linear,
        Duration::from_millis(100),
    ),
    (
        &["list-backups", "all"],
        By::Backups,
        Growing::Linear,
        Duration::from_secs(1),
    ),
    (
        &["status", "all"],
        By::Wal,
        Growing::Linear,
        Duration::from_secs(1),
    ),
];

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Commands that ask the catalog, by servers, backups and WAL
    Commands,
    /// A mount of the same repositories; only root can look at how the kernel forgets
    Mount,
    /// Sweeps by the windows of all backups
    Sweep,
    /// Rebuilds of the catalog by chunks
    Rebuild,
    /// Backups by the number of files
    Files,
}

/// Measures how time, memory and bytes grow with a repository
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  barmanfs-growth\n  barmanfs-growth --only commands mount --sizes 2\n  barmanfs-growth --only files --files 10000 100000"
)]
struct Options {
    /// The program
    #[arg(long, default_value = "target/release/barmanfs", value_name = "FILE")]
    barmanfs: PathBuf,
    /// What is measured
    #[arg(long, value_name = "PART", num_args = 1.., default_values = ["commands", "mount", "sweep", "rebuild", "files"])]
    only: Vec<Part>,
    /// How many of the sizes, from the smallest on: of the four of commands and the mount, of which the largest takes 2 GB and two
    /// million files, and of the three of all else
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4))]
    sizes: u32,
    /// How often each command is run
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Numbers of files of a backup
    #[arg(long, value_name = "NUMBER", num_args = 1.., default_values = ["10000", "100000", "1000000"])]
    files: Vec<u64>,
    /// Instead of making repositories, measures a mount of those that an earlier run has left in these directories
    #[arg(long, value_name = "DIR", num_args = 1..)]
    at: Vec<PathBuf>,
    /// Leaves the repositories of commands and mounts, for a look at them
    #[arg(long)]
    keep: bool,
}

impl Options {
    fn has(&self, part: Part) -> bool {
        self.only.contains(&part)
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let program = options
        .barmanfs
        .canonicalize()
        .with_context(|| format!("Cannot find {}", options.barmanfs.display()))?;
    let mut figures = Figures::default();
    for site in &options.at {
        let rows = catalog::wal_files(&site.join("repository"))?;
        mount::measure(&program, site, &site.join("barmanfs.conf"), rows, &mut figures)?;
    }
    if options.at.is_empty() {
        measure_all(&program, &options, &mut figures)?;
    }
    for line in figures.lines() {
        println!("{line}");
    }
    Ok(())
}

fn measure_all(program: &Path, options: &Options, figures: &mut Figures) -> Result<()> {
    let sizes = usize::try_from(options.sizes)?;
    if options.has(Part::Files) {
        let files = options.files.get(..sizes).unwrap_or(&options.files);
        files::measure(files, figures)?;
    }
    if options.has(Part::Sweep) {
        maps::measure_sweeps(program, sizes, figures)?;
    }
    if options.has(Part::Rebuild) {
        maps::measure_rebuilds(program, sizes, figures)?;
    }
    if !options.has(Part::Commands) && !options.has(Part::Mount) {
        return Ok(());
    }
    for (servers, backups, wal) in SIZES.into_iter().take(sizes) {
        let mut site = tempfile::Builder::new()
            .prefix("barmanfs-growth-")
            .tempdir_in("/var/tmp")?;
        site.disable_cleanup(options.keep);
        let config = make(program, site.path(), servers, backups, wal)?;
        if options.has(Part::Commands) {
            let bytes = fs::metadata(site.path().join("repository/catalog.sqlite"))?.len();
            figures.bytes("catalog by WAL files", wal, bytes);
            measure_commands(program, &config, (servers, backups, wal), options.runs, figures)?;
        }
        if options.has(Part::Mount) {
            mount::measure(program, site.path(), &config, wal, figures)?;
        }
    }
    Ok(())
}

fn measure_commands(
    program: &Path,
    config: &Path,
    (servers, backups, wal): (u32, u32, u32),
    runs: u32,
    figures: &mut Figures,
) -> Result<()> {
    for (words, by, growing, limit) in COMMANDS {
        let rows = match by {
            By::Wal => wal,
            By::Servers => servers,
            By::Backups => servers * backups,
        };
        let name = words.join(" ").replace("-q ", "");
        let named = |of: &str| format!("{name}{of} by {by:?}").to_lowercase();
        let spent = measure(program, config, words, runs)?;
        figures.time(named(""), rows, spent.median, growing, Some(limit));
        figures.time(named(", CPU"), rows, spent.of_cores, growing, None);
        figures.memory(named(", memory"), rows, spent.memory_mb, MEMORY_MB);
    }
    Ok(())
}

/// Makes a repository of this size; returns the configuration.
fn make(program: &Path, site: &Path, servers: u32, backups: u32, wal: u32) -> Result<PathBuf> {
    let repository = site.join("repository");
    let config = site.join("barmanfs.conf");
    let mut text = format!(
        "[barmanfs]\nrepository = {}\nlog_file = {}\nverify_budget = off\nretention_policy = RECOVERY WINDOW OF 60 DAYS\n",
        repository.display(),
        site.join("log").display()
    );
    for server in 0..servers {
        text += &format!("[s{server:02}]\nconninfo = host=/nowhere\nbackup_schedule = 0 2 1 1 *\n");
    }
    fs::write(&config, text)?;
    Repository::create(&repository, CreateOptions::default())?;
    catalog::fill(&repository, servers, backups, wal)?;
    // A directory that has just changed is listed again.
    std::thread::sleep(Duration::from_secs(4));
    // The first run starts what is due.
    run_once(program, &config, &["-q", "cron"])?;
    while is_busy(&repository.join("cron"))? {
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(config)
}

/// Whether something that `cron` has started goes on, by what it remembers.
fn is_busy(memory: &Path) -> Result<bool> {
    for entry in fs::read_dir(memory)? {
        let text = fs::read_to_string(entry?.path())?;
        if text.contains("\"ended_at\": null") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The medians of some runs.
struct Measured {
    median: Duration,
    of_cores: Duration,
    memory_mb: f64,
}

/// Runs a command some times, after one run that does not count. The kernel counts in hundredths of a second: what a run took
/// of the cores is that of all, shared.
fn measure(program: &Path, config: &Path, words: &[&str], runs: u32) -> Result<Measured> {
    run_once(program, config, words)?;
    let spent: Vec<_> = (0..runs)
        .map(|_| run_once(program, config, words))
        .collect::<Result<_>>()?;
    let mut times: Vec<Duration> = spent.iter().map(|spent| spent.took).collect();
    times.sort_unstable();
    Ok(Measured {
        median: times.get(times.len() / 2).copied().unwrap_or_default(),
        of_cores: spent.iter().map(|spent| spent.of_cores).sum::<Duration>() / runs,
        memory_mb: spent.iter().map(spent::Spent::memory_mb).fold(0.0, f64::max),
    })
}
