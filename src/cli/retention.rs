//! The command lines of `retention` and `keep`.

use barmanfs_catalog::KeepTarget;
use clap::{ArgGroup, Args, ValueEnum};

use super::JsonOption;
use super::inspect::BackupName;

/// Ends `barmanfs retention --help`.
pub(super) const RETENTION_HELP: &str = "\
VALID: kept. VALID:OWN_END: kept, and recoverable up to its own end. OBSOLETE: deleted next. OBSOLETE*: kept for
minimum_redundancy. KEEP:FULL, KEEP:STANDALONE: kept by 'barmanfs keep'. -: no policy applies.
'barmanfs cron' deletes what this shows, and nothing else; 'barmanfs sweep' then frees the space.

Examples:
  barmanfs retention main
  barmanfs retention all --json
  barmanfs retention main --at '2027-01-31 00:00+00'
  barmanfs retention main --enforce
  barmanfs retention main --wal
  barmanfs retention main --wal --enforce && barmanfs sweep";

/// Ends `barmanfs keep --help`.
pub(super) const KEEP_HELP: &str = "\
A backup that is kept is deleted by no policy and by no 'delete'. full: all WAL from its start on is kept, too.
standalone: only the WAL that it needs itself.

Examples:
  barmanfs keep main latest --target standalone --reason 'end of year' --until '2037-01-01'
  barmanfs keep main 20261120T101500 --target full
  barmanfs keep main 20261120T101500 --status
  barmanfs keep main 20261120T101500 --release";

/// `retention`
#[derive(Debug, Args)]
pub(crate) struct RetentionArgs {
    /// Server, or 'all'
    #[arg(value_name = "SERVER|all")]
    pub(crate) server: String,
    /// Show what would be deleted at this time; without a zone in the server's
    #[arg(long, value_name = "TIME", conflicts_with = "enforce")]
    pub(crate) at: Option<String>,
    /// Delete what is shown
    #[arg(long)]
    pub(crate) enforce: bool,
    /// Where there is no policy, show the WAL that no backup needs, and remove it with --enforce
    #[arg(long)]
    pub(crate) wal: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// How much `keep` keeps; Barman's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeptPart {
    /// The backup and all WAL from its start on
    Full,
    /// The backup and the WAL that it needs itself
    Standalone,
}

impl KeptPart {
    /// The same for the catalog.
    pub(crate) fn target(self) -> KeepTarget {
        match self {
            Self::Full => KeepTarget::Full,
            Self::Standalone => KeepTarget::Standalone,
        }
    }
}

/// `keep`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("action").required(true).args(["target", "status", "release"]))]
pub(crate) struct KeepArgs {
    /// Which one
    #[command(flatten)]
    pub(crate) which: BackupName,
    /// Keep the backup, with this WAL
    #[arg(long)]
    pub(crate) target: Option<KeptPart>,
    /// Show whether it is kept
    #[arg(short, long)]
    pub(crate) status: bool,
    /// Keep it no longer
    #[arg(short, long)]
    pub(crate) release: bool,
    /// Keep it until this time only; without a zone in the server's
    #[arg(long, value_name = "TIME", requires = "target")]
    pub(crate) until: Option<String>,
    /// Why it is kept
    #[arg(long, value_name = "TEXT", requires = "target")]
    pub(crate) reason: Option<String>,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}
