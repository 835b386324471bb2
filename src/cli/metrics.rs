//! The command line of `barmanfs metrics`.

use std::path::PathBuf;

use clap::Args;

/// Ends `barmanfs metrics --help`.
pub(super) const METRICS_HELP: &str = "\
Prometheus' text format, for the textfile collector of its node exporter. Each server has the time of
check_timeout to answer, or 30 s; what it does not answer is left out, and barmanfs_up is 0.

Examples:
  barmanfs metrics
  barmanfs metrics main
  barmanfs metrics --output /var/lib/prometheus/node-exporter/barmanfs.prom";

/// `metrics`
#[derive(Debug, Args)]
pub(crate) struct MetricsArgs {
    /// Servers of the configuration, or 'all' for every active one
    #[arg(value_name = "SERVER|all", default_value = "all")]
    pub(crate) servers: Vec<String>,
    /// Write this file instead of standard output; a reader sees it as it was, or complete
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Ends `barmanfs diagnose --help`.
pub(super) const DIAGNOSE_HELP: &str = "\
One JSON document: this host, the configuration with files and lines, the repository, its mounts, each server with what it says,
checks, backups, timelines and processes, and the last lines of the log. What cannot be read is an 'error' in its place.

Examples:
  barmanfs diagnose > site.json";
