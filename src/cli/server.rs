//! The command lines of the commands that ask a server, or act on it.

use clap::{Args, ValueEnum};

use super::JsonOption;

/// Ends `barmanfs status --help`.
pub(super) const STATUS_HELP: &str = "\
The lines have Barman's words. The last ones are barmanfs's own: what can be recovered, and what would be
lost if the server were gone now (RPO): the time since the oldest commit that is not safe here, and the bytes of
WAL from there on. It is 0 for a server that commits nothing, whatever its checkpoints write. \"At most\" means that
the end of the server's WAL could not be read: then the last safe commit counts.

Examples:
  barmanfs status main
  barmanfs status all --json";

/// `status`
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Servers of the configuration, or 'all' for every active one
    #[arg(required = true, value_name = "SERVER|all")]
    pub(crate) servers: Vec<String>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// Ends `barmanfs show-servers --help`.
pub(super) const SHOW_SERVERS_HELP: &str = "\
Each key has the value that counts, and the file and line where it is written; without them it is the built-in
default. Passwords are hidden. What the server says comes behind that. A server that is down, inactive or disabled is
shown all the same; 'all' means these, too.

Examples:
  barmanfs show-servers main
  barmanfs show-servers all --json";

/// `show-servers`
#[derive(Debug, Args)]
pub(crate) struct ShowServersArgs {
    /// Servers of the configuration, or 'all'
    #[arg(required = true, value_name = "SERVER|all")]
    pub(crate) servers: Vec<String>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// Ends `barmanfs switch-wal --help`.
pub(super) const SWITCH_WAL_HELP: &str = "\
The server closes the segment that it is writing, so that it can be archived. If nothing was written since the last
switch, there is nothing to close; --force then makes a checkpoint first. For a standby, its primary is asked to
where primary_conninfo is set, else nothing is done.
The user of conninfo needs the right: GRANT EXECUTE ON FUNCTION pg_switch_wal TO barmanfs; for --force also
GRANT pg_checkpoint TO barmanfs (PostgreSQL 15 and later).

Examples:
  barmanfs switch-wal main
  barmanfs switch-wal main --force --archive
  barmanfs switch-wal all --archive --archive-timeout 60 --json";

/// `switch-wal`
#[derive(Debug, Args)]
pub(crate) struct SwitchWalArgs {
    /// Servers of the configuration, or 'all' for every active one
    #[arg(required = true, value_name = "SERVER|all")]
    pub(crate) servers: Vec<String>,
    /// Make a checkpoint first, so that there is something to close
    #[arg(long)]
    pub(crate) force: bool,
    /// Wait until the closed segment is archived; fail if it is not
    #[arg(long)]
    pub(crate) archive: bool,
    /// How long to wait for that
    #[arg(
        long,
        requires = "archive",
        value_name = "SECONDS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    pub(crate) archive_timeout: u64,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// Ends `barmanfs check-wal-archive --help`.
pub(super) const CHECK_WAL_ARCHIVE_HELP: &str = "\
For a new server, before its archive_command is set: exits with 1 when there is WAL of this name already.

Examples:
  barmanfs check-wal-archive main
  barmanfs check-wal-archive main --timeline 2 --json";

/// `check-wal-archive`
#[derive(Debug, Args)]
pub(crate) struct CheckWalArchiveArgs {
    /// Server of the configuration
    pub(crate) server: String,
    /// Only WAL of this timeline and of later ones counts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeline: Option<u32>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// Ends `barmanfs replication-status --help`.
pub(super) const REPLICATION_STATUS_HELP: &str = "\
Differences are those to the server's current position. A WAL streamer receives WAL and replays nothing: receive-wal,
pg_receivewal, a backup. barmanfs's own connections are marked.
With --minimal a line begins with W for a WAL streamer, otherwise with the first letter of the standby's sync_state.

Examples:
  barmanfs replication-status main
  barmanfs replication-status main --minimal --target hot-standby
  barmanfs replication-status main --source wal-host
  barmanfs replication-status all --json";

/// Which clients `replication-status` shows; Barman's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClientTarget {
    /// All of them
    All,
    /// Standbys, which replay what they receive
    HotStandby,
    /// Those that only receive
    WalStreamer,
}

/// Which host `replication-status` asks; Barman's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClientSource {
    /// The one that backups come from
    BackupHost,
    /// The one that WAL is received from (wal_conninfo)
    WalHost,
}

/// `replication-status`
#[derive(Debug, Args)]
pub(crate) struct ReplicationStatusArgs {
    /// Servers of the configuration, or 'all' for every active one
    #[arg(required = true, value_name = "SERVER|all")]
    pub(crate) servers: Vec<String>,
    /// One line for each client
    #[arg(long)]
    pub(crate) minimal: bool,
    /// Which clients
    #[arg(long, value_enum, default_value = "all")]
    pub(crate) target: ClientTarget,
    /// Whose clients
    #[arg(long, value_enum, default_value = "backup-host")]
    pub(crate) source: ClientSource,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// Ends `barmanfs list-processes --help`.
pub(super) const LIST_PROCESSES_HELP: &str = "\
Shows the processes of barmanfs that work for a server now, or for the whole repository: backup, receive-wal,
boot-test, index-wal, verify, audit, sweep, cron, mount. A process is shown as long as it holds its lock. One of another host
or user has no number here, and cannot be terminated from here.

Examples:
  barmanfs list-processes main
  barmanfs list-processes main --json";

/// `list-processes`
#[derive(Debug, Args)]
pub(crate) struct ListProcessesArgs {
    /// Server, of the configuration or of the repository
    pub(crate) server: String,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// Ends `barmanfs terminate-process --help`.
pub(super) const TERMINATE_PROCESS_HELP: &str = "\
TASK is a word of 'barmanfs list-processes': the processes of this task are asked to end (SIGTERM). Nothing that was
acknowledged is lost. No process is signalled that does not hold the task's lock at that moment.
The command does not wait; 'barmanfs receive-wal SERVER --stop' does.

Examples:
  barmanfs terminate-process main backup
  barmanfs terminate-process main receive-wal --json";

/// `terminate-process`
#[derive(Debug, Args)]
pub(crate) struct TerminateProcessArgs {
    /// Server, of the configuration or of the repository
    pub(crate) server: String,
    /// What the process does: a word of 'list-processes'
    pub(crate) task: String,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}
