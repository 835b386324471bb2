//! `barmanfs-growth`: how long commands take, and looks into a mount, that must not take longer where a repository has grown.
//!
//! It makes catalogs of several sizes by inserting rows, and packs that are holes, and runs the program on each. The rows are
//! those that the program itself would have derived; records of WAL are empty, since nothing here reads them. With `--maps` it makes
//! backups with real maps, and packs with real footers.

// A program for people at a terminal: printing is its job.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod catalog;
mod figures;
mod maps;
mod mount;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::figures::Figures;

/// Servers, backups of each, and WAL files of all, from small to large.
const SIZES: [(u32, u32, u32); 4] = [
    (1, 10, 1_000),
    (5, 60, 40_000),
    (20, 180, 400_000),
    (50, 365, 2_000_000),
];

/// What is run, and the longest that its median may take on a release build. No server can be reached, which is known at once.
const COMMANDS: [(&[&str], Duration); 6] = [
    (&["-q", "cron"], Duration::from_millis(100)),
    (&["check", "s00"], Duration::from_millis(100)),
    (&["list-backups", "s00"], Duration::from_millis(100)),
    (&["timeline", "s00"], Duration::from_millis(100)),
    (&["list-backups", "all"], Duration::from_secs(1)),
    (&["status", "all"], Duration::from_secs(1)),
];

/// Measures commands on growing catalogs
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  barmanfs-growth\n  barmanfs-growth --sizes 2 --barmanfs target/debug/barmanfs"
)]
struct Options {
    /// The program
    #[arg(long, default_value = "target/release/barmanfs", value_name = "FILE")]
    barmanfs: PathBuf,
    /// How many of the four sizes, from the smallest on; the largest takes 2 GB and two million files
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4))]
    sizes: u32,
    /// How often each command is run
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Measures sweeps by the number of backups and rebuilds by the number of packs instead; takes 2 GB
    #[arg(long)]
    maps: bool,
    /// Measures no commands, only a mount of each repository; for root
    #[arg(long)]
    mount: bool,
    /// With `--mount`: instead of making repositories, measures those that an earlier run has left in these directories
    #[arg(long, requires = "mount", value_name = "DIR", num_args = 1..)]
    at: Vec<PathBuf>,
    /// Leaves the repositories, for a look at them
    #[arg(long)]
    keep: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let program = options
        .barmanfs
        .canonicalize()
        .with_context(|| format!("Cannot find {}", options.barmanfs.display()))?;
    if options.maps {
        return maps::measure(&program);
    }
    let mut figures = Figures::default();
    for site in &options.at {
        let rows = catalog::wal_files(&site.join("repository"))?;
        mount::measure(&program, site, &site.join("barmanfs.conf"), rows, &mut figures)?;
    }
    if !options.at.is_empty() {
        print(&figures);
        return Ok(());
    }
    println!("servers  backups  WAL files  catalog  command             p50 ms  max ms  limit ms");
    for (servers, backups, wal) in SIZES.into_iter().take(usize::try_from(options.sizes)?) {
        let mut site = tempfile::Builder::new()
            .prefix("barmanfs-growth-")
            .tempdir_in("/var/tmp")?;
        site.disable_cleanup(options.keep);
        let config = make(&program, site.path(), servers, backups, wal)?;
        if options.mount {
            mount::measure(&program, site.path(), &config, wal, &mut figures)?;
            continue;
        }
        let bytes = fs::metadata(site.path().join("repository/catalog.sqlite"))?.len();
        for (words, limit) in COMMANDS {
            let (median, longest) = measure(&program, &config, words, options.runs)?;
            println!(
                "{servers:7}  {backups:7}  {wal:9}  {:4} MB  {:18}  {:6.1}  {:6.1}  {:8}",
                bytes >> 20,
                words.join(" "),
                milliseconds(median),
                milliseconds(longest),
                limit.as_millis()
            );
        }
    }
    print(&figures);
    Ok(())
}

fn print(figures: &Figures) {
    for line in figures.lines() {
        println!("{line}");
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
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
    // It cannot reach the server, but creates the repository.
    run(program, &config, &["-q", "backup", "s00"])?;
    if !repository.join("repository.json").exists() {
        bail!("{} made no repository", program.display());
    }
    catalog::fill(&repository, servers, backups, wal)?;
    // The first run starts what is due.
    run(program, &config, &["-q", "cron"])?;
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

fn run(program: &Path, config: &Path, words: &[&str]) -> Result<Duration> {
    let began = Instant::now();
    Command::new(program)
        .arg("-c")
        .arg(config)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("Cannot run {}", program.display()))?;
    Ok(began.elapsed())
}

/// The median and the longest of some runs, after one that does not count.
fn measure(program: &Path, config: &Path, words: &[&str], runs: u32) -> Result<(Duration, Duration)> {
    run(program, config, words)?;
    let times: Result<Vec<_>> = (0..runs).map(|_| run(program, config, words)).collect();
    let mut times = times?;
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok((median, times.last().copied().unwrap_or_default()))
}
