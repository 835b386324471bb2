//! The command lines of the commands that delete, and that rebuild the catalog.

use std::path::PathBuf;

use barmanfs_catalog::ServerName;
use barmanfs_store::IdHash;
use clap::Args;

use barmanfs_catalog::CronTask;

use super::JsonOption;
use super::backup::max_rate;
use super::keys::RecipientArgs;

/// Ends `barmanfs init --help`.
pub(super) const INIT_HELP: &str = "\
Run it as the user PostgreSQL runs as. Without DIR it is the repository of the configuration, or /var/lib/barmanfs.

Examples:
  barmanfs init
  barmanfs init /srv/backups --server main --server reports
  barmanfs init --encrypt --recipient age1...";

/// Ends `barmanfs delete --help`.
pub(super) const DELETE_HELP: &str = "\
Any backup can be deleted, in any order: none depends on another. WAL is kept. The last backup that the server, or
its newest state, can be recovered from is only deleted with --force; minimum_redundancy holds always.

Examples:
  barmanfs delete main oldest --dry-run
  barmanfs delete main oldest && barmanfs sweep
  barmanfs delete main 20261101T020000 20261102T020000
  barmanfs delete main --retain 7 --dry-run
  barmanfs delete main --retain 3 --after '2026-11-01 00:00+00'
  barmanfs delete main --before 20261101T020000
  barmanfs delete main --target latest --dry-run
  barmanfs delete main --all --force";

/// Ends `barmanfs sweep --help`.
pub(super) const SWEEP_HELP: &str = "\
Safe at any time, also while backups, archiving and mounts run. Killed, it loses nothing: what it has freed is freed.

Examples:
  barmanfs sweep
  barmanfs sweep --max-rate 50M";

/// `sweep`
#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    /// Most that is copied per second out of packs that are in use in part, in kB or with k, M or G
    #[arg(long, value_name = "RATE", value_parser = max_rate)]
    pub(crate) max_rate: Option<u32>,
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// Ends `barmanfs rebuild-catalog --help`.
pub(super) const REBUILD_CATALOG_HELP: &str = "\
The packs hold everything; the catalog is only their index. Nothing else may use the repository meanwhile.
The catalog before is kept as catalog.sqlite.old where something could not be read.

Examples:
  barmanfs rebuild-catalog";

/// Ends `barmanfs cron --help`.
pub(super) const CRON_HELP: &str = "\
Run it every minute, as the user of the repository. It ends at once: what takes longer is started as a process of
its own, and logs to log_file or syslog. It starts receive-wal where streaming_archiver = on, the backups of
backup_schedule, the boot tests of boot_test_schedule, sweeps, and a verification within verify_budget.

Examples:
  barmanfs cron
  /usr/local/bin/barmanfs -q cron
  barmanfs cron --keep-descriptors";

/// `cron`
#[derive(Debug, Args)]
pub(crate) struct CronArgs {
    /// Leave standard output and error open in what is started, so that a container's log has it
    #[arg(long)]
    pub(crate) keep_descriptors: bool,
    /// The task that this process was started for
    #[arg(long, hide = true)]
    pub(crate) task: Option<CronTask>,
    /// Its servers, one after the other
    #[arg(long = "server", hide = true, requires = "task")]
    pub(crate) servers: Vec<String>,
}

/// `init`
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Directory of the repository
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Make this host the one that writes into the object store of the configuration; first end what writes on the host before
    #[arg(long, conflicts_with = "directory")]
    pub(crate) take_over: bool,
    /// Say what this server needs
    #[arg(long = "server", value_name = "NAME")]
    pub(crate) servers: Vec<ServerName>,
    /// Make it encrypted, for these recipients or the ones that belong to the key of the configuration
    #[arg(long)]
    pub(crate) encrypt: bool,
    #[command(flatten)]
    pub(crate) recipients: RecipientArgs,
    /// How chunks are named: blake3 for a passive node of a repository that is plain, or was once
    #[arg(long, value_name = "HASH", value_parser = id_hash, requires = "encrypt")]
    pub(crate) id_hash: Option<IdHash>,
    /// Name chunks as the encrypted repository in this directory does, for a passive node of it
    #[arg(long, value_name = "DIR", requires = "encrypt", conflicts_with = "id_hash")]
    pub(crate) keys_of: Option<PathBuf>,
}

fn id_hash(text: &str) -> Result<IdHash, String> {
    let all = [IdHash::Blake3Keyed, IdHash::Blake3];
    let found = all.into_iter().find(|hash| hash.name() == text);
    found.ok_or_else(|| "must be blake3-keyed or blake3".to_owned())
}

/// `delete`
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Server of the backups
    pub(crate) server: String,
    /// Ids or names of the backups, or latest, oldest, last-failed
    #[arg(required_unless_present_any = ["retain", "before", "target", "all"], value_name = "BACKUP")]
    pub(crate) backups: Vec<String>,
    /// All but the newest N that can be relied on, and those that somebody keeps; FULL and FIND_FULL change nothing,
    /// because every backup is a full one
    #[arg(long, value_name = "N", num_args = 1..=2, conflicts_with_all = ["backups", "before", "target", "all"])]
    pub(crate) retain: Vec<String>,
    /// With --retain: none that began after this backup or time, either
    #[arg(long, value_name = "ID|TIME", requires = "retain")]
    pub(crate) after: Option<String>,
    /// All that began before this backup or time, except those that somebody keeps
    #[arg(long, value_name = "ID|TIME", conflicts_with_all = ["backups", "target", "all"])]
    pub(crate) before: Option<String>,
    /// The same as to name the backup
    #[arg(long, value_name = "BACKUP", conflicts_with_all = ["backups", "all"])]
    pub(crate) target: Option<String>,
    /// All backups of the server
    #[arg(long, conflicts_with = "backups")]
    pub(crate) all: bool,
    /// Delete a backup even when it is the last to recover from, or the newest state depends on it, or it is being read
    /// through a mount, or clones are based on it: they keep what they need
    #[arg(long)]
    pub(crate) force: bool,
    /// Show what would be deleted and what could be recovered afterwards, and delete nothing
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// `rebuild-catalog`
#[derive(Debug, Args)]
pub(crate) struct RebuildArgs {
    /// Replace the catalog even when none of the packs it knows is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print JSON for programs instead of text
    #[command(flatten)]
    pub(crate) json: JsonOption,
}

/// A command of Barman for which nothing is left to do.
#[derive(Debug, Args)]
pub(crate) struct NothingArgs {
    /// Barman's command
    pub(crate) command: String,
    /// Its server
    pub(crate) server: Option<String>,
    /// Whatever else it has
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    pub(crate) rest: Vec<String>,
}
