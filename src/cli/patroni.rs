//! The command line of `barmanfs patroni`, which Patroni calls with options of its own: `--datadir=DIR`, `--scope=NAME`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::restore::{RestoreArgs, TargetArgs, rate};
use crate::error::Error;
use crate::restore::Layout;

/// Ends `barmanfs patroni --help`.
pub(super) const PATRONI_HELP: &str = "\
Patroni adds --scope, --datadir, --role and --connstring by itself. docs/patroni.md has its configuration.

Examples:
  barmanfs patroni replica main --datadir=/var/lib/postgresql/18/main
  barmanfs patroni bootstrap main --target-time '2026-11-20 14:03:07+00' --datadir=/var/lib/postgresql/18/main";

/// Ends `barmanfs patroni replica --help`.
const REPLICA_HELP: &str = "\
For create_replica_methods. With 'keep_data: true' in Patroni's section a data directory that is there is updated:
only what differs from the newest backup is written.

Examples:
  barmanfs patroni replica main --datadir=/var/lib/postgresql/18/main";

/// Ends `barmanfs patroni bootstrap --help`.
const BOOTSTRAP_HELP: &str = "\
For bootstrap.method. Give the same target in recovery_conf of Patroni's section: Patroni starts the recovery.

Examples:
  barmanfs patroni bootstrap main --datadir=/var/lib/postgresql/18/main
  barmanfs patroni bootstrap main --target-time '2026-11-20 14:03:07+00' --datadir=/var/lib/postgresql/18/main";

/// `patroni`
#[derive(Debug, Subcommand)]
pub(crate) enum PatroniCommand {
    /// Make a replica from the newest backup; it catches up from the archive and from its leader
    #[command(after_help = REPLICA_HELP)]
    Replica(ReplicaArgs),

    /// Make the first member from a backup that leads to a target
    #[command(after_help = BOOTSTRAP_HELP)]
    Bootstrap(BootstrapArgs),
}

/// What Patroni says to both.
#[derive(Debug, Args)]
pub(crate) struct MemberArgs {
    /// Server whose backups are used
    server: String,
    /// Data directory of the member
    #[arg(long, value_name = "DIR")]
    datadir: PathBuf,
    /// Name of the cluster
    #[arg(long, value_name = "NAME")]
    scope: Option<String>,
    /// Number of threads that write [default: one for each core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Most that is written per second, in kB or with k, M or G
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bwlimit: Option<u64>,
    /// Where tablespaces are: where they were on the server, or in the data directory
    #[arg(
        long,
        value_name = "inside|original",
        value_enum,
        default_value = "original",
        hide_possible_values = true
    )]
    tablespace_layout: Layout,
}

/// `patroni replica`
#[derive(Debug, Args)]
pub(crate) struct ReplicaArgs {
    #[command(flatten)]
    member: MemberArgs,
    /// The member's role
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// How the leader is reached; Patroni configures that
    #[arg(long, value_name = "CONNINFO")]
    connstring: Option<String>,
    /// Whether Patroni leaves the data directory as it is: then it is updated
    #[arg(long = "keep_data", value_name = "BOOLEAN")]
    keep_data: Option<String>,
    /// Whether this works without a leader; it does
    #[arg(long = "no_leader", value_name = "BOOLEAN")]
    no_leader: Option<String>,
}

/// `patroni bootstrap`
#[derive(Debug, Args)]
pub(crate) struct BootstrapArgs {
    #[command(flatten)]
    member: MemberArgs,
    #[command(flatten)]
    target: TargetArgs,
}

impl PatroniCommand {
    /// The restore that it is.
    ///
    /// # Errors
    /// When the data directory cannot be looked at.
    pub(crate) fn restore(&self) -> Result<RestoreArgs, Error> {
        match self {
            Self::Replica(args) => {
                // The target chooses no settings here: any complete backup will do.
                let target = TargetArgs {
                    target_immediate: true,
                    ..TargetArgs::default()
                };
                Ok(args
                    .member
                    .restore("latest", target, holds_data(&args.member.datadir)?))
            }
            Self::Bootstrap(args) => Ok(args.member.restore("auto", args.target.clone(), false)),
        }
    }
}

/// Whether there is a data directory to update: one that was restored incompletely is continued in any case.
fn holds_data(directory: &Path) -> Result<bool, Error> {
    directory
        .join("PG_VERSION")
        .try_exists()
        .map_err(|error| Error::failed(format!("Cannot look at {}: {error}", directory.display())))
}

impl MemberArgs {
    fn restore(&self, backup: &str, target: TargetArgs, is_update: bool) -> RestoreArgs {
        RestoreArgs {
            target,
            no_recovery: true,
            tablespace_layout: self.tablespace_layout,
            delta_restore: is_update,
            jobs: self.jobs,
            bwlimit: self.bwlimit,
            ..RestoreArgs::new(&self.server, backup, &self.datadir)
        }
    }
}
