//! The command lines of the commands that archive, receive, fetch and index WAL.

use std::path::PathBuf;

use clap::Args;

use super::JsonOption;

/// Ends `barmanfs receive-wal --help`.
pub(super) const RECEIVE_WAL_HELP: &str = "\
Runs until it is stopped; whatever fails is tried again. What it has reported to the server is safely on
disk, so it can be a synchronous standby: put its name, streaming_archiver_name, into the server's
synchronous_standby_names.

Examples:
  barmanfs receive-wal main --create-slot --if-not-exists
  barmanfs receive-wal main
  barmanfs receive-wal main --stop";

/// Ends `barmanfs wal-archive --help`.
pub(super) const WAL_ARCHIVE_HELP: &str = "\
Exits with 0 only when the file is verified and safely on disk. The same file again is fine; a different
file of the same name is refused and put aside.

Examples:
  archive_command = '/usr/local/bin/barmanfs wal-archive main %p'";

/// Ends `barmanfs get-wal --help`.
pub(super) const GET_WAL_HELP: &str = "\
Exits with 1 only when the archive was read and the file is not in it; every trouble is 200 or more, which
stops a recovery instead of ending it early.

Examples:
  restore_command = '/usr/local/bin/barmanfs get-wal main %f %p'
  barmanfs get-wal main 000000010000000000000042 > segment";

/// Ends `barmanfs index-wal --help`.
pub(super) const INDEX_WAL_HELP: &str = "\
What WAL says about points in time, tablespaces and settings is found when it is archived. A release that
looks for more, or reads another PostgreSQL version, finds the rest with this. Nothing else has to stop.

Examples:
  barmanfs index-wal main";

/// `receive-wal`
#[derive(Debug, Args)]
pub(crate) struct ReceiveWalArgs {
    /// Server of the configuration
    pub(crate) server: String,
    /// Stop the process that receives the server's WAL, and wait for its end
    #[arg(long, group = "instead")]
    pub(crate) stop: bool,
    /// Start again at the segment the server is writing now; WAL in between is not received
    #[arg(long, group = "instead")]
    pub(crate) reset: bool,
    /// Create the replication slot slot_name
    #[arg(long, group = "instead")]
    pub(crate) create_slot: bool,
    /// Drop the replication slot slot_name
    #[arg(long, group = "instead")]
    pub(crate) drop_slot: bool,
    /// With --create-slot: do not fail when the slot is there
    #[arg(long, requires = "create_slot")]
    pub(crate) if_not_exists: bool,
}

/// `wal-archive`
#[derive(Debug, Args)]
pub(crate) struct WalArchiveArgs {
    /// Server the WAL belongs to
    pub(crate) server: String,
    /// The file; PostgreSQL's %p
    pub(crate) path: PathBuf,
}

/// `get-wal`
#[derive(Debug, Args)]
pub(crate) struct GetWalArgs {
    /// Server the WAL belongs to
    pub(crate) server: String,
    /// Name of the WAL file; PostgreSQL's %f
    pub(crate) name: String,
    /// File or directory to write to; PostgreSQL's %p [default: standard output]
    pub(crate) dest: Option<PathBuf>,
    /// Not from the archive, but from a history that was left, by its number in 'barmanfs history SERVER list'
    #[arg(long, value_name = "NUMBER")]
    pub(crate) left: Option<usize>,
}

/// `index-wal`
#[derive(Debug, Args)]
pub(crate) struct IndexWalArgs {
    /// Server whose WAL is read
    pub(crate) server: String,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}
