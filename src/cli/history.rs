//! The command line of `barmanfs history`: two histories of one timeline.

use clap::{Args, Subcommand};

use super::JsonOption;

/// Ends `barmanfs history --help`.
pub(super) const AFTER_HELP: &str = "\
A snapshot that was put back, or a copy that was promoted without a new timeline, writes other WAL at positions
that are archived already. From that fork on all WAL of the timeline is refused, until it is decided which history
counts. 'restart' takes the new one from the fork on; what was archived from there on is kept apart for the
backups that need it, and the next backup is a full one. 'keep' goes on with the archived one.

Examples:
  barmanfs history main list
  barmanfs history main list --json
  barmanfs history main restart --at 0/5000028
  barmanfs history main keep --at 0/5000028";

/// `history`
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Server whose history it is
    pub(crate) server: String,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: HistoryCommand,
}

/// `history SERVER COMMAND`
#[derive(Debug, Subcommand)]
pub(crate) enum HistoryCommand {
    /// List forks, the histories that were left, and their backups
    #[command(after_help = "Examples:\n  barmanfs history main list\n  barmanfs history main list --json")]
    List(JsonOption),
    /// Take the new history from a fork on
    #[command(after_help = "Examples:\n  barmanfs history main restart --at 0/5000028")]
    Restart(HistoryDecisionArgs),
    /// Go on with the archived history
    #[command(after_help = "Examples:\n  barmanfs history main keep --at 0/5000028")]
    Keep(HistoryDecisionArgs),
}

/// `history SERVER restart|keep`
#[derive(Debug, Args)]
pub(crate) struct HistoryDecisionArgs {
    /// Where: the LSN of a fork, or one before it
    #[arg(long, value_name = "LSN")]
    pub(crate) at: String,
    /// On this timeline, where several have forks
    #[arg(long, value_name = "NUMBER")]
    pub(crate) timeline: Option<u32>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}
