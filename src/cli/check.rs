//! The command lines of `barmanfs check` and `barmanfs verify`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::JsonOption;
use crate::instance::Setting;

/// Ends `barmanfs verify --help`.
pub(super) const VERIFY_HELP: &str = "\
Without SERVER: all servers, backups and WAL. Damage is named by backup, file and page.

With --boot the backup is not compared but tried: PostgreSQL starts on a clone of it, recovers and
answers in every database. It runs on a private socket, as the user of the repository, with nothing
running by itself (no jobs, no subscriptions). 'list-backups' and 'show-backup' tell the result.

Examples:
  barmanfs verify
  barmanfs verify main
  barmanfs verify main latest
  barmanfs verify main wal
  barmanfs verify main latest --boot --amcheck
  barmanfs verify main latest --boot --sql /etc/barmanfs/check.sql";

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().map_err(|error| error.to_string())?;
    Ok(Duration::from_secs(seconds.into()))
}

/// `check`
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Servers of the configuration, or 'all' for every active one
    #[arg(required = true, value_name = "SERVER|all")]
    pub(crate) servers: Vec<String>,
    /// A status line, performance data and the exit codes of a Nagios plugin
    #[arg(long, conflicts_with = "json")]
    pub(crate) nagios: bool,
    /// How long the checks of a server may take, 0 for no limit [default: check_timeout, or 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) check_timeout: Option<Duration>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `verify`
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Server, or 'all'
    #[arg(value_name = "SERVER|all", default_value = "all")]
    pub(crate) server: String,
    /// Id of a backup, latest, oldest, ..., or 'wal' for the WAL archive alone [default: everything]
    #[arg(value_name = "BACKUP|wal")]
    pub(crate) what: Option<String>,
    /// Start PostgreSQL on a throw-away clone of BACKUP instead; the result is kept with the backup
    #[arg(long, requires = "what")]
    pub(crate) boot: bool,
    /// With --boot: run this file with psql, in the database postgres; a statement that fails is a failure
    #[arg(long, requires = "boot", value_name = "FILE")]
    pub(crate) sql: Option<PathBuf>,
    /// With --boot: check all tables and indexes with pg_amcheck
    #[arg(long, requires = "boot")]
    pub(crate) amcheck: bool,
    /// With --boot: a setting of PostgreSQL, whatever its configuration says; several times for several
    #[arg(long = "set", requires = "boot", value_name = "NAME=VALUE")]
    pub(crate) settings: Vec<Setting>,
    /// With --boot: where PostgreSQL's programs are [default: the usual places of its version]
    #[arg(long, requires = "boot", value_name = "DIR")]
    pub(crate) bindir: Option<PathBuf>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}
