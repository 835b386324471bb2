//! The command line of `barmanfs sync` and of Barman's commands for passive nodes.

use clap::Args;

use super::JsonOption;

/// Ends `barmanfs sync --help`.
pub(super) const SYNC_HELP: &str = "\
For servers with primary_repository, primary_ssh_command or primary_home, as cron runs it. The primary is only read. It can
be interrupted at any time, and then goes on where it ended.
Exit code 3: something could not be taken, and is named.

Examples:
  barmanfs sync main
  barmanfs sync all --json";

/// Ends `barmanfs sync-backup --help`.
pub(super) const SYNC_BACKUP_HELP: &str = "Examples:\n  barmanfs sync-backup main 20261120T101500";

/// Ends `barmanfs sync-wals --help`.
pub(super) const SYNC_WALS_HELP: &str = "Examples:\n  barmanfs sync-wals main";

/// Ends `barmanfs sync-info --help`.
pub(super) const SYNC_INFO_HELP: &str =
    "Examples:\n  barmanfs sync-info main\n  barmanfs sync-info main --json";

/// `sync`
#[derive(Debug, Args)]
pub(crate) struct SyncArgs {
    /// Servers, or all: those that have a primary
    #[arg(required = true, value_name = "SERVER")]
    pub(crate) servers: Vec<String>,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `sync-backup`
#[derive(Debug, Args)]
pub(crate) struct SyncBackupArgs {
    /// The server
    pub(crate) server: String,
    /// The backup's id
    #[arg(value_name = "BACKUP")]
    pub(crate) backup: String,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `sync-wals`
#[derive(Debug, Args)]
pub(crate) struct SyncWalsArgs {
    /// The server
    pub(crate) server: String,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `sync-info`
#[derive(Debug, Args)]
pub(crate) struct SyncInfoArgs {
    /// The server
    pub(crate) server: String,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}
