//! The command line of `barmanfs clone`: writable copies of a backup, on a mount.

use std::path::PathBuf;

use barmanfs_catalog::CloneName;
use clap::{Args, Subcommand};

use super::JsonOption;
use crate::instance::Setting;

/// Ends `barmanfs clone --help`.
pub(super) const AFTER_HELP: &str = "\
A clone is a directory MOUNT/SERVER/live/CLONE on which PostgreSQL runs. It is there at once, and takes
only the space of what is changed in it. The backup is not changed, and a clone never archives.

Plain commands work as well: 'mkdir MOUNT/SERVER/live/CLONE' makes a clone of the newest backup;
'@TARGET' or '@backup=ID' may follow its name. 'pg_ctl -D' starts it, 'rmdir' removes it.

Examples:
  barmanfs mount /mnt/backups
  barmanfs clone create main test1 --start
  barmanfs clone list
  barmanfs clone destroy main test1 --stop";

/// One variant for each command on clones.
#[derive(Debug, Subcommand)]
pub(crate) enum CloneCommand {
    /// Make a clone of a backup, of a point in time, or of another clone
    #[command(after_help = "\
Without --at, --backup or --from it is a clone of the newest backup. TARGET is what
'barmanfs explain' takes.

Examples:
  barmanfs clone create main test1
  barmanfs clone create main test1 --start --port 5433
  barmanfs clone create main before --at '2026-11-20 14:03:07+00' --start --replay
  barmanfs clone create main monday --backup 20261120T101500
  barmanfs clone create main test2 --from test1")]
    Create(CreateArgs),

    /// List clones: what they were made of, what they cost, and whether a server runs on them
    #[command(
        after_help = "Examples:\n  barmanfs clone list\n  barmanfs clone list main\n  barmanfs clone list all --json"
    )]
    List(ListArgs),

    /// Discard what was changed in a clone
    #[command(after_help = "\
The clone is created again from the same backup, at the same point in time ('now' is the end of the WAL
there is now). A copy of a clone is created from the backup of the first clone in its line.

Examples:
  barmanfs clone reset main test1
  barmanfs clone reset main test1 --stop")]
    Reset(EndArgs),

    /// Start PostgreSQL on a clone
    #[command(after_help = "\
Run it as the user the data belongs to, or as root: the server runs as that user. Its socket is in
the clone, for that user alone, or with --share in a directory below /tmp for a group, too; it listens
on no network address but those of --listen. Its log is barmanfs-server.log in the clone.

Examples:
  barmanfs clone start main test1
  barmanfs clone start main test1 --port 5433 --replay
  barmanfs clone start main test1 --share developers
  barmanfs clone start main test1 --set shared_buffers=128MB --set shared_preload_libraries=
  barmanfs clone start main test1 --bindir /usr/lib/postgresql/18/bin")]
    Start(StartArgs),

    /// Stop the server that runs on a clone
    #[command(after_help = "Examples:\n  barmanfs clone stop main test1")]
    Stop(StopArgs),

    /// Remove a clone with all that was changed in it
    #[command(
        alias = "delete",
        after_help = "Examples:\n  barmanfs clone destroy main test1\n  barmanfs clone destroy main test1 --stop"
    )]
    Destroy(EndArgs),

    /// Make a backup of a clone; only what was changed in it is stored
    #[command(after_help = "\
The server on it must be stopped. The new backup needs neither the clone nor the backup it was made of.
It starts as the clone would: at once after a clean stop, otherwise as after a crash. It is not a backup
of the server: 'latest', points in time and the next backup do not use it.

Examples:
  barmanfs clone stop main test1
  barmanfs clone commit main test1
  barmanfs clone commit main test1 --label migrated")]
    Commit(CommitArgs),

    /// Copy a clone to a plain directory
    #[command(after_help = "\
The server on it must be stopped. Holes in files stay holes. Run as root, this keeps owners. The directory
appears when all of it is written.

Examples:
  barmanfs clone export main test1 /var/lib/postgresql/exported")]
    Export(ExportArgs),
}

/// A clone of a server.
#[derive(Debug, Args)]
pub(crate) struct CloneWhich {
    /// Server of the clone
    pub(crate) server: String,
    /// Name of the clone
    #[arg(value_name = "CLONE")]
    pub(crate) name: CloneName,
}

/// Which mount to work on.
#[derive(Debug, Args)]
pub(crate) struct MountOption {
    /// Mount of the repository to use [default: the one there is]
    #[arg(long = "mount", value_name = "DIR")]
    pub(crate) mount_point: Option<PathBuf>,
}

/// How PostgreSQL is started on a clone.
#[derive(Debug, Args)]
pub(crate) struct ServerOptions {
    /// Port of the server [default: the first free one from 25432 on]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Addresses to listen on beside the socket, as listen_addresses takes them; pg_hba.conf of the clone decides who may
    /// connect there [default: none]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// Let the members of this group connect, too, and not only the user the server runs as; pg_hba.conf of the clone
    /// decides as whom
    #[arg(long, value_name = "GROUP")]
    pub(crate) share: Option<String>,
    /// Directory of PostgreSQL's programs [default: path_prefix of the configuration, or the usual places]
    #[arg(long, value_name = "DIR")]
    pub(crate) bindir: Option<PathBuf>,
    /// A setting of PostgreSQL for this start, whatever its configuration says; several times for several
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub(crate) settings: Vec<Setting>,
    /// Wait until recovery has reached its target
    #[arg(long)]
    pub(crate) replay: bool,
    /// How long to wait for that, in seconds [default: as long as it takes]
    #[arg(long, value_name = "SECONDS", requires = "replay")]
    pub(crate) replay_timeout: Option<u64>,
    /// How long to wait for the server to answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) wait_timeout: u64,
}

impl ServerOptions {
    /// Whether any option was given that has a meaning only when a server is started.
    pub(crate) fn is_given(&self) -> bool {
        self.port.is_some()
            || self.listen.is_some()
            || self.share.is_some()
            || self.bindir.is_some()
            || self.replay
            || !self.settings.is_empty()
    }
}

/// `clone create`
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Which one
    #[command(flatten)]
    pub(crate) which: CloneWhich,
    /// Recover to this point in time
    #[arg(long, value_name = "TARGET", group = "of")]
    pub(crate) at: Option<String>,
    /// Begin with this backup: its id, or latest or oldest
    #[arg(long, value_name = "BACKUP", group = "of")]
    pub(crate) backup: Option<String>,
    /// Copy this clone, with all that was changed in it
    #[arg(long, value_name = "CLONE", group = "of")]
    pub(crate) from: Option<CloneName>,
    /// Start PostgreSQL on it; --port, --bindir, --set and --replay say so too
    #[arg(long)]
    pub(crate) start: bool,
    /// How
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    /// Where
    #[command(flatten)]
    pub(crate) mount: MountOption,
}

/// `clone list`
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Server, or 'all'
    #[arg(value_name = "SERVER|all", default_value = "all")]
    pub(crate) server: String,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `clone reset` and `clone destroy`
#[derive(Debug, Args)]
pub(crate) struct EndArgs {
    /// Which one
    #[command(flatten)]
    pub(crate) which: CloneWhich,
    /// Stop the server that runs on it first
    #[arg(long)]
    pub(crate) stop: bool,
    /// Where
    #[command(flatten)]
    pub(crate) mount: MountOption,
}

/// `clone start`
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Which one
    #[command(flatten)]
    pub(crate) which: CloneWhich,
    /// How
    #[command(flatten)]
    pub(crate) server: ServerOptions,
    /// Where
    #[command(flatten)]
    pub(crate) mount: MountOption,
}

/// `clone stop`
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Which one
    #[command(flatten)]
    pub(crate) which: CloneWhich,
    /// How long to wait for its end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) wait_timeout: u64,
    /// Where
    #[command(flatten)]
    pub(crate) mount: MountOption,
}

/// `clone commit`
#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// Which one
    #[command(flatten)]
    pub(crate) which: CloneWhich,
    /// A text kept with the backup
    #[arg(long, value_name = "TEXT", value_parser = super::backup::label)]
    pub(crate) label: Option<String>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `clone export`
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Which one
    #[command(flatten)]
    pub(crate) which: CloneWhich,
    /// An empty directory, or one to be made
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}
