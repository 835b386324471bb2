//! The command lines of `barmanfs mount` and `barmanfs umount`.

use std::path::PathBuf;

use barmanfs_catalog::Action;
use barmanfs_fs::DEFAULT_CACHE_BYTES;
use clap::Args;

use crate::config;
use crate::size;

/// Ends `barmanfs mount --help`.
pub(super) const MOUNT_HELP: &str = "\
Returns when the directory answers; the file system is then served in the background until
'barmanfs umount DIR' (or plain 'umount DIR'). New backups and WAL appear by themselves.

Examples:
  barmanfs mount /mnt/backups
  barmanfs mount /mnt/backups --allow-other --uid postgres --gid postgres
  barmanfs mount /mnt/backups --server main --foreground";

/// Ends `barmanfs umount --help`.
pub(super) const UMOUNT_HELP: &str = "\
Returns when everything written to clones is on disk. A mount that is in use stays; the command prints who uses it.

Examples:
  barmanfs umount /mnt/backups";

/// `mount`
#[derive(Debug, Clone, Args)]
pub(crate) struct MountArgs {
    /// An existing directory
    #[arg(value_name = "DIR")]
    pub(crate) mount_point: PathBuf,
    /// Show this server only; may be repeated [default: all of the repository]
    #[arg(long = "server", value_name = "SERVER")]
    pub(crate) servers: Vec<String>,
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    pub(crate) foreground: bool,
    /// Let other users read too, as far as modes allow
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// Show this user, by name or number, as the owner of everything [default: as backed up]
    #[arg(long, value_name = "USER")]
    pub(crate) uid: Option<String>,
    /// Show this group, by name or number, as the group of everything [default: as backed up]
    #[arg(long, value_name = "GROUP")]
    pub(crate) gid: Option<String>,
    #[arg(long, value_name = "SIZE", value_parser = size::bytes, help = format!(
        "Memory for decoded data, in bytes or with K, M or G [default: {}M]", DEFAULT_CACHE_BYTES >> 20
    ))]
    pub(crate) cache_size: Option<u64>,
    /// What a copy out of pitr/ does at its target, where the target's name does not say: promote, pause or shutdown
    /// [default: as configured, or promote]
    #[arg(long, value_name = "ACTION", value_parser = config::recovery_target_action)]
    pub(crate) recovery_target_action: Option<Action>,
    /// Set on the copy of this program that serves a mount in the background
    #[arg(long, hide = true)]
    pub(crate) background_child: bool,
}

/// `umount`
#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// The mounted directory
    #[arg(value_name = "DIR")]
    pub(crate) mount_point: PathBuf,
    /// Even while it is in use: what others have open fails, and a server that runs on a clone in it ends as if its machine
    /// lost power; or when the mount hangs
    #[arg(short, long, conflicts_with = "lazy")]
    pub(crate) force: bool,
    /// Take it out of sight at once, and let others finish with what they have open
    #[arg(short, long)]
    pub(crate) lazy: bool,
}
