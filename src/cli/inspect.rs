//! The command lines of the commands that show what is stored.

use std::path::PathBuf;
use std::str::FromStr;

use barmanfs_catalog::Annotation;
use clap::{Args, ValueEnum};

use super::JsonOption;

/// Ends `barmanfs list-files --help`.
pub(super) const LIST_FILES_HELP: &str = "\
Paths are as they are below the server's directory of the mount. With --mount DIR they are those of the files
in that mount, in raw/ID/ and wal/: for tar and other programs that take a list of files.

Examples:
  barmanfs list-files main latest
  barmanfs list-files main latest --mount /mnt/backups --list-empty-directories
  barmanfs list-files main oldest --target wal
  barmanfs list-files main latest --target data --json";

/// Ends `barmanfs timeline --help`.
pub(super) const TIMELINE_HELP: &str = "\
The picture runs from the oldest WAL down to the newest. A dot is a backup, a diamond a restore point, a cross
a gap: WAL that is missing, so that what follows cannot be recovered until the next backup.

Examples:
  barmanfs timeline main
  barmanfs timeline main --json
  barmanfs timeline main --check > /dev/null || echo 'Something cannot be recovered'";

/// Ends `barmanfs explain --help`.
pub(super) const EXPLAIN_HELP: &str = "\
TARGET is the name of a directory below pitr/ of a mount: now, immediate, a time, an LSN, xid:N or name:TEXT, with options
behind commas: exclusive, timeline=N|latest|current, action=pause|promote|shutdown, backup=ID, self-contained.
A time has any unambiguous form that PostgreSQL reads; without a zone the server's is meant.
Exits with 1 when the target cannot be reached.

Examples:
  barmanfs explain main now
  barmanfs explain main '2026-11-20 14:03:07+00'
  barmanfs explain main 'Nov 20, 2026 2:03:07 PM Europe/Paris,exclusive'
  barmanfs explain main 0/5A3F10C8,timeline=2
  barmanfs explain main name:before_migration --json";

/// A backup of a server.
#[derive(Debug, Args)]
pub(crate) struct BackupName {
    /// Server of the backup
    pub(crate) server: String,
    /// Id or name of the backup, or latest, oldest, last-failed
    #[arg(value_name = "BACKUP")]
    pub(crate) backup: String,
}

/// `list-servers`
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ListServersArgs {
    /// Print only the names of the configured servers
    #[arg(long)]
    pub(crate) minimal: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `list-backups`
#[derive(Debug, Args)]
pub(crate) struct ListBackupsArgs {
    /// Servers, or 'all'
    #[arg(value_name = "SERVER|all", default_value = "all")]
    pub(crate) servers: Vec<String>,
    /// Print only the ids, the newest first
    #[arg(long)]
    pub(crate) minimal: bool,
    /// Only backups with this annotation; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = Annotation::from_str)]
    pub(crate) annotation: Vec<Annotation>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `show-backup`
#[derive(Debug, Args)]
pub(crate) struct ShowBackupArgs {
    /// Which one
    #[command(flatten)]
    pub(crate) which: BackupName,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// What `list-files` lists; Barman's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileTarget {
    /// The data and the WAL that makes it consistent
    Standalone,
    /// The data alone
    Data,
    /// WAL from the backup's start to the next backup's, or to the end
    Wal,
    /// Data and that WAL
    Full,
}

/// `list-files`
#[derive(Debug, Args)]
pub(crate) struct ListFilesArgs {
    /// Which one
    #[command(flatten)]
    pub(crate) which: BackupName,
    /// What to list
    #[arg(long, value_enum, default_value = "standalone")]
    pub(crate) target: FileTarget,
    /// Print the paths of the files in the mount at this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) mount: Option<PathBuf>,
    /// List directories without files as well; their paths end with a slash
    #[arg(long)]
    pub(crate) list_empty_directories: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `timeline`
#[derive(Debug, Args)]
pub(crate) struct TimelineArgs {
    /// Server to draw
    pub(crate) server: String,
    /// End with exit code 3 when something cannot be recovered
    #[arg(long)]
    pub(crate) check: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `explain`
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Server to recover
    pub(crate) server: String,
    /// What to recover to
    #[arg(required = true)]
    pub(crate) target: Vec<String>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `stats`
#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Server, or 'all'
    #[arg(value_name = "SERVER|all", default_value = "all")]
    pub(crate) server: String,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}
