//! The command line of `barmanfs config`.

use clap::{Args, Subcommand};

use super::JsonOption;

/// Ends `barmanfs config --help`.
pub(super) const AFTER_HELP: &str = "\
Examples:
  barmanfs config check
  barmanfs -c /etc/barman.conf config check --json";

/// Ends `barmanfs config-switch --help`.
pub(super) const CONFIG_SWITCH_HELP: &str = "\
A model is a section with 'model = true' and the 'cluster' of its servers. While it is active, its keys count instead
of the server's own. Which one is active is remembered in the repository. A running receive-wal ends, so that its
service or cron starts it with the new configuration.

Examples:
  barmanfs config-switch main main-standby
  barmanfs config-switch main --reset";

/// Ends `barmanfs config-update --help`.
pub(super) const CONFIG_UPDATE_HELP: &str = "\
The changes are checked as a whole, then written to config/auto.conf in the repository, which is read after all other
files. No file of an administrator is changed. The value null takes a setting back to its default.

Examples:
  barmanfs config-update '[{\"scope\": \"server\", \"server_name\": \"main\", \"bandwidth_limit\": 4000}]'";

/// `config-switch`
#[derive(Debug, Args)]
pub(crate) struct ConfigSwitchArgs {
    /// Server to switch
    pub(crate) server: String,
    /// Model to switch to
    #[arg(required_unless_present = "reset")]
    pub(crate) model: Option<String>,
    /// Return to the server's own settings
    #[arg(long, conflicts_with = "model")]
    pub(crate) reset: bool,
}

/// `config-update`
#[derive(Debug, Args)]
pub(crate) struct ConfigUpdateArgs {
    /// The changes: a JSON list of objects with scope, server_name or model_name, and keys
    #[arg(value_name = "JSON")]
    pub(crate) changes: String,
}

/// `config COMMAND`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every key, its value, where it is written, and what it does here
    #[command(after_help = "\
Passwords are hidden. Exits with 3 when something is wrong: a value, a key that is unknown, a name.

Examples:
  barmanfs config check
  barmanfs config check --json")]
    Check(JsonOption),
}
