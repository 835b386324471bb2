//! The command line of `barmanfs catchup`.

use std::path::PathBuf;

use clap::Args;

use super::JsonOption;
use super::restore::{RestoreArgs, rate};
use crate::restore::Pattern;

/// Ends `barmanfs catchup --help`.
pub(super) const CATCHUP_HELP: &str = "\
DIR is the data directory of a standby that is stopped: its primary has no longer the WAL that it needs. Or it
is that of a primary that failed, and another server has taken its place. What differs from the newest backup
is written, and when the server is started it replays WAL from the repository and then follows its primary.

Configuration files in DIR stay as they are; postgresql.auto.conf ends with a marked block. Tablespaces stay
where the links of DIR lead. What DIR has written on a timeline that was left is lost, and is shown before.

Examples:
  barmanfs catchup main /var/lib/postgresql/18/main --dry-run
  barmanfs catchup main /var/lib/postgresql/18/main
  barmanfs catchup main /var/lib/postgresql/18/main --primary-conninfo 'host=db2 user=replicator'
  barmanfs catchup main /var/lib/postgresql/18/main --remote-ssh-command 'ssh postgres@db2'";

/// `catchup`
#[derive(Debug, Args)]
pub(crate) struct CatchupArgs {
    /// Server whose standby it is
    pub(crate) server: String,
    /// Data directory to update; no server runs in it
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
    /// How it connects to its primary; without it, what its own files say counts
    #[arg(long, value_name = "CONNINFO")]
    pub(crate) primary_conninfo: Option<String>,
    /// Its restore_command, instead of one that calls 'barmanfs get-wal'
    #[arg(long, value_name = "COMMAND")]
    pub(crate) restore_command: Option<String>,
    /// DIR is on the host that this command reaches; it needs barmanfs there
    #[arg(long, value_name = "COMMAND")]
    pub(crate) remote_ssh_command: Option<String>,
    /// With --remote-ssh-command: port of the ssh of this host, from which the standby fetches WAL
    #[arg(long, value_name = "PORT", requires = "remote_ssh_command")]
    pub(crate) recovery_option_port: Option<u16>,
    /// Leave this path of DIR, although the backup does not have it; repeatable
    #[arg(long, value_name = "PATTERN")]
    pub(crate) keep: Vec<Pattern>,
    /// Number of threads that write [default: one for each core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: Option<u16>,
    /// Most that is written per second, in kB or with k, M or G
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) bwlimit: Option<u64>,
    /// Also where DIR was a primary, and nothing shows that another server has taken its place
    #[arg(long)]
    pub(crate) force: bool,
    /// Write nothing: show what would be written, removed and lost
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

impl CatchupArgs {
    /// The restore that it is.
    pub(crate) fn restore(&self) -> RestoreArgs {
        RestoreArgs {
            standby_mode: true,
            primary_conninfo: self.primary_conninfo.clone(),
            restore_command: self.restore_command.clone(),
            delta_restore: true,
            remote_ssh_command: self.remote_ssh_command.clone(),
            recovery_option_port: self.recovery_option_port,
            dry_run: self.dry_run,
            keep: self.keep.clone(),
            jobs: self.jobs,
            bwlimit: self.bwlimit,
            json: self.json,
            ..RestoreArgs::new(&self.server, "auto", &self.directory)
        }
    }
}
