//! The command line of `barmanfs quarantine`: WAL files that were put aside.

use barmanfs_pg::wal_name::WalName;
use clap::{Args, Subcommand};

use super::JsonOption;

/// Ends `barmanfs quarantine --help`.
pub(super) const AFTER_HELP: &str = "\
A WAL file that comes under the name of another one is not archived: it is put aside, with the
reason. 'show' tells where the two differ. The archived file stays unless it cannot be used: a damaged
file, or a .history that is none, can be taken out of the archive. A .history that can be read and is
wrong is taken out with --force.

Examples:
  barmanfs quarantine main list
  barmanfs quarantine main show 000000010000000000000007
  barmanfs quarantine main release 000000010000000000000007
  barmanfs quarantine main delete 5e0f
  barmanfs quarantine main take 00000002.history";

/// `quarantine`
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct QuarantineArgs {
    /// Server of the files
    pub(crate) server: String,
    #[command(subcommand)]
    pub(crate) command: QuarantineCommand,
}

/// What to do with them.
#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineCommand {
    /// List the files that were put aside, and why
    #[command(after_help = "Examples:\n  barmanfs quarantine main list --json")]
    List(JsonOption),

    /// Show one, and where it differs from the archived file of its name
    #[command(after_help = "Examples:\n  barmanfs quarantine main show 000000010000000000000007")]
    Show(WhichArgs),

    /// Accept one into the archive, where there is none of its name
    #[command(after_help = "\
A good archived file is never replaced.

Examples:
  barmanfs quarantine main release 000000010000000000000007
  barmanfs quarantine main release 00000002.history --replace")]
    Release(ReleaseArgs),

    /// Delete one for good; 'sweep' frees its space
    #[command(after_help = "Examples:\n  barmanfs quarantine main delete 000000010000000000000007")]
    Delete(WhichArgs),

    /// Take a file that cannot be used out of the archive: a .history that is none, or a damaged file
    #[command(after_help = "\
Examples:
  barmanfs quarantine main take 00000002.history
  barmanfs quarantine main take 00000005.history --force")]
    Take(TakeArgs),
}

/// One file.
#[derive(Debug, Args)]
pub(crate) struct WhichArgs {
    /// Its name, or the beginning of its id where several have the name
    #[arg(value_name = "NAME|ID")]
    pub(crate) name: String,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `quarantine SERVER release`
#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    #[command(flatten)]
    pub(crate) which: WhichArgs,
    /// Put an archived file that cannot be used into quarantine in exchange
    #[arg(long)]
    pub(crate) replace: bool,
}

/// `quarantine SERVER take`
#[derive(Debug, Args)]
pub(crate) struct TakeArgs {
    /// Its name in the archive
    pub(crate) name: WalName,
    /// Take a .history that can be read but is wrong; refused while WAL or a backup of its timeline is stored
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}
