//! `barmanfs-bench`: barmanfs and its peers side by side, on one machine, in one run.
//!
//! Absolute times say more about the machine than about the tools; only the ratios within a run
//! count. See `tools/README.md`.

// A program for people at a terminal: printing is its job.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]
// Ratios and figures for people: the last digits of large numbers do not matter.
#![allow(clippy::cast_precision_loss)]

mod answers;
mod dataset;
mod measure;
mod peers;
mod readiness;
mod reads;
mod replay;
mod report;
mod results;
mod rounds;
mod server;
mod site;
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

use crate::peers::{Peer, Programs};
use crate::results::{Measure, Results};
use crate::rounds::Rounds;
use crate::server::Server;
use crate::site::Site;

/// Measures barmanfs and its peers side by side
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Run as root, the page cache is emptied where a measurement has to be cold; the server then runs as the user
postgres. The work directory needs about six times the size of the database (200 MB, and 23 MB for each unit of scale).

Examples:
  barmanfs-bench
  barmanfs-bench --scale 10 --runs 1 --only barmanfs,cp
  barmanfs-bench --only wal-archive,wal-fetch --json > wal.json"
)]
struct Options {
    /// Size of the database: pgbench's scale; the other tables grow with it
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    scale: u32,
    /// How often everything is done
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only these tools (cp, pg_basebackup, pgBackRest, restic, barmanfs) or measures (full, second-small,
    /// second-half, restore, delta, ready, first-byte, read-accounts, read-noise, wal-archive, wal-fetch, replay, first-answer, select-cold,
    /// select-warm, read-write)
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    only: Vec<String>,
    /// Where to work; kept afterwards [default: a new one in /var/tmp, removed afterwards]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// PostgreSQL's programs [default: the newest below /usr/lib/postgresql]
    #[arg(long, value_name = "DIR")]
    bindir: Option<PathBuf>,
    /// The tools' programs
    #[command(flatten)]
    programs: Programs,
    /// Print the results as JSON; the table goes to standard error
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let temporary;
    let root = match &options.workdir {
        Some(directory) => {
            fs::create_dir_all(directory).with_context(|| format!("Cannot make {}", directory.display()))?;
            directory.as_path()
        }
        None => {
            temporary = tempfile::Builder::new()
                .prefix("barmanfs-bench-")
                .tempdir_in("/var/tmp")?;
            temporary.path()
        }
    };
    let site = Site::new(root)?;
    let results = measure_all(&site, options)?;
    let table = report::text(&results);
    if options.json {
        eprint!("{table}");
        let targets = targets::all(&results);
        println!(
            "{}",
            serde_json::to_string_pretty(&serde_json::json!({ "results": results, "targets": targets }))?
        );
    } else {
        print!("{table}");
    }
    Ok(())
}

fn measure_all(site: &Site, options: &Options) -> Result<Results> {
    let selection = Selection::parse(&options.only, &peers::all(site, &options.programs)?)?;
    let bindir = options.bindir.clone().map_or_else(newest_bindir, Ok)?;
    say(&format!(
        "Making a database of about {} MB",
        dataset::expected_megabytes(options.scale)
    ));
    let mut server = Server::create(site, &bindir)?;
    server.start()?;
    dataset::create(site, &server, options.scale)?;
    server.keep_state()?;
    let mut results = Results {
        scale: options.scale,
        runs: options.runs,
        cpus: std::thread::available_parallelism()?.get(),
        database_bytes: measure::directory_bytes(&server.data())?,
        server_version: server.version()?,
        page_cache_dropped: true,
        ..Results::default()
    };
    let peers = available_peers(site, options, &selection, &mut results)?;
    let mut rounds = Rounds {
        site,
        server,
        peers,
        measures: selection.measures,
        results,
        say,
    };
    for number in 0..options.runs {
        say(&format!("Round {} of {}", number + 1, options.runs));
        rounds.run(number)?;
    }
    Ok(rounds.results)
}

/// The wanted tools that are installed; the others are named in the results.
fn available_peers<'a>(
    site: &'a Site,
    options: &Options,
    selection: &Selection,
    results: &mut Results,
) -> Result<Vec<Box<dyn Peer + 'a>>> {
    let mut available = Vec::new();
    for peer in peers::all(site, &options.programs)? {
        if !selection.tools.contains(peer.name()) {
            continue;
        }
        match peer.version() {
            Ok(version) => {
                results.tools.insert(peer.name().into(), version);
                available.push(peer);
            }
            Err(error) => {
                results
                    .skipped
                    .insert(peer.name().into(), format!("it cannot be run: {error:#}"));
            }
        }
    }
    Ok(available)
}

/// The wanted tools and measures.
struct Selection {
    tools: BTreeSet<String>,
    measures: BTreeSet<Measure>,
}

impl Selection {
    /// Names of tools select tools, names of measures select measures. If there is no name of one
    /// kind, all of that kind are selected.
    fn parse(only: &[String], peers: &[Box<dyn Peer + '_>]) -> Result<Self> {
        let (mut tools, mut measures) = (BTreeSet::new(), BTreeSet::new());
        for name in only {
            if let Some(peer) = peers.iter().find(|peer| peer.name().eq_ignore_ascii_case(name)) {
                tools.insert(peer.name().to_owned());
            } else if let Ok(measure) = Measure::from_str(name, true) {
                measures.insert(measure);
            } else {
                bail!("There is neither a tool nor a measure {name:?}; see --help");
            }
        }
        if tools.is_empty() {
            tools = peers.iter().map(|peer| peer.name().to_owned()).collect();
        }
        if measures.is_empty() {
            measures = Measure::value_variants().iter().copied().collect();
        }
        Ok(Self { tools, measures })
    }
}

/// The programs of the newest PostgreSQL that Debian's packages have installed.
fn newest_bindir() -> Result<PathBuf> {
    let root = Path::new("/usr/lib/postgresql");
    let versions = fs::read_dir(root).into_iter().flatten().flatten();
    versions
        .filter_map(|version| version.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .map(|major| root.join(major.to_string()).join("bin"))
        .with_context(|| format!("There is no PostgreSQL below {}: give --bindir", root.display()))
}

fn say(what: &str) {
    eprintln!("{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(only: &[&str]) -> Result<Selection> {
        let directory = tempfile::tempdir()?;
        let site = Site::new(directory.path())?;
        let options = Options::try_parse_from(["barmanfs-bench"])?;
        let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
        Selection::parse(&only, &peers::all(&site, &options.programs)?)
    }

    #[test]
    fn only_chooses_tools_and_measures() {
        let all = select(&[]).unwrap();
        assert_eq!((all.tools.len(), all.measures.len()), (5, 16));
        let some = select(&["pgbackrest", "barmanfs", "wal-archive"]).unwrap();
        assert_eq!(some.tools.len(), 2);
        assert_eq!(some.measures, BTreeSet::from([Measure::WalArchive]));
        assert!(select(&["barman"]).is_err());
    }

    #[test]
    fn the_command_line_is_valid() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }
}
