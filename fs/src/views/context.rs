//! The state that all views share: the repository and the options of the mount.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use barmanfs_catalog::{Action, Backup, CloneDescription, CloneName, Repository, ServerName};
use barmanfs_pg::TimestampMicros;
use barmanfs_store::{Attributes, TreeReader};

use super::aliases::Aliases;
use super::pitr::Targets;
use super::snapshot::{Snapshot, SnapshotCache};
use super::tree::{BackupTree, RecentChanges, Style};
use super::view_manifest::Manifests;
use crate::counters::RequestCounters;
use crate::entry::Stat;
use crate::error::{Error, Result};
use crate::usage::Usages;
use crate::warm::Warmer;

/// Limits for the clones of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneLimits {
    /// Maximum bytes of a new clone in the repository; no limit when `None`.
    pub max_bytes: Option<u64>,
    /// Maximum number of clones.
    pub max_count: usize,
}

impl CloneLimits {
    /// Default maximum number of clones of a server. A larger number is more likely a script gone wild, and every
    /// look-up in `live/` checks all clones.
    pub const DEFAULT_COUNT: usize = 100;
}

impl Default for CloneLimits {
    fn default() -> Self {
        Self {
            max_bytes: None,
            max_count: Self::DEFAULT_COUNT,
        }
    }
}

/// What differs in a tree that is written to a directory and not shown by a mount.
#[derive(Debug, Clone, Default)]
pub struct CopyOptions {
    /// The command that fetches WAL for PostgreSQL; a mount's own reads from the mount.
    pub restore_command: String,
    /// The copy becomes a standby.
    pub standby: Option<StandbyOptions>,
    /// The name of the file with the settings of the recovery, if it is not `postgresql.auto.conf`.
    pub recovery_file: Option<String>,
    /// Where its socket is, as an absolute path; in the data directory if it is `None`, also when that is moved.
    pub socket_directory: Option<String>,
    /// It has no signal: PostgreSQL replays what is in `pg_wal` as after a crash, and stays on the timeline.
    pub same_timeline: bool,
    /// The files have the names that Barman gives them.
    pub barman_layout: Option<BarmanLayout>,
    /// Further files at the top, by name.
    pub files: Vec<(String, Vec<u8>)>,
}

/// The tree of a restore by Barman: what it takes out of the configuration has its mark, and the manifest has the backup's id in
/// its name.
#[derive(Debug, Clone, Copy, Default)]
pub struct BarmanLayout {
    /// The WAL of a copy that has all its WAL is in `barman_wal` and not in `pg_wal`.
    pub wal_apart: bool,
}

/// Barman's directory for the WAL of a recovery to a target.
pub(super) const BARMAN_WAL: &str = "barman_wal";

/// How `raw/` shows backups that are written in `pg_basebackup`'s plain format.
#[derive(Debug, Clone, Copy)]
pub struct PlainOptions {
    /// `pg_wal` has the segments from start to stop.
    pub wal: bool,
}

/// The settings of a copy that becomes a standby.
#[derive(Clone, Default)]
pub struct StandbyOptions {
    /// How it connects to its primary, if it does. May contain a password.
    pub primary_conninfo: Option<String>,
}

impl fmt::Debug for StandbyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandbyOptions").finish_non_exhaustive()
    }
}

/// How to show the tree.
#[derive(Debug, Clone)]
pub struct ViewOptions {
    /// The mount point, for the texts that name it.
    pub mount_point: PathBuf,
    /// The servers to show; all when `None`.
    pub servers: Option<Vec<ServerName>>,
    /// The owner of everything; as stored when `None`.
    pub uid: Option<u32>,
    /// The group of everything; as stored when `None`.
    pub gid: Option<u32>,
    /// What a copy does at its recovery target if the target's name does not specify it.
    pub recovery_target_action: Action,
    /// Limits for new clones of a server; the default for a server that is not in the map.
    pub clone_limits: HashMap<ServerName, CloneLimits>,
    /// The tree is written to a directory.
    pub copy: Option<CopyOptions>,
    /// `raw/` shows what `pg_basebackup --format=plain` would have written, and not what the server sent.
    pub plain: Option<PlainOptions>,
    /// Complete backups that wait for their WAL are shown, too. They cannot be started, and their files can be read.
    pub with_waiting: bool,
}

impl Default for ViewOptions {
    fn default() -> Self {
        Self {
            mount_point: PathBuf::new(),
            servers: None,
            uid: None,
            gid: None,
            recovery_target_action: Action::Promote,
            clone_limits: HashMap::new(),
            copy: None,
            plain: None,
            with_waiting: false,
        }
    }
}

/// The part of the mount that serves clones.
pub(crate) trait ServesClones: fmt::Debug + Send + Sync {
    /// The serving epoch of a clone. It changes after another mount has served the clone, so that data cached by the
    /// kernel is not mistaken for the clone's.
    ///
    /// # Errors
    /// When it cannot be read from the repository.
    fn epoch(&self, clone: &CloneDescription) -> Result<u64>;

    /// Stops serving a clone until the next request below it.
    ///
    /// # Errors
    /// EBUSY when it is in use.
    fn release(&self, server: &ServerName, name: &CloneName) -> Result<()>;
}

/// Space in the file system of the repository.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Block size in bytes.
    pub block_bytes: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Number of free blocks.
    pub free: u64,
    /// Number of free blocks that unprivileged users can use.
    pub available: u64,
}

/// The shared state of all views.
#[derive(Debug)]
pub struct Context {
    pub(super) repository: Repository,
    pub(super) trees: TreeReader,
    pub(super) options: ViewOptions,
    pub(super) started: TimestampMicros,
    pub(super) usages: Usages,
    pub(super) targets: Targets,
    pub(super) manifests: Manifests,
    counters: Arc<RequestCounters>,
    snapshots: SnapshotCache,
    warmer: OnceLock<Warmer>,
    /// Weak, because the clones refer to this context too.
    clones: OnceLock<Weak<dyn ServesClones>>,
    pub(super) aliases: Aliases,
    pub(super) recent_changes: RecentChanges,
}

impl Context {
    /// A context for this repository.
    pub fn new(repository: Repository, options: ViewOptions) -> Arc<Self> {
        Arc::new(Self {
            trees: repository.trees(),
            repository,
            options,
            started: SystemTime::now().into(),
            usages: Usages::default(),
            targets: Targets::default(),
            manifests: Manifests::default(),
            counters: Arc::default(),
            snapshots: SnapshotCache::default(),
            warmer: OnceLock::new(),
            clones: OnceLock::new(),
            aliases: Aliases::default(),
            recent_changes: RecentChanges::default(),
        })
    }

    /// The options of the tree.
    pub(crate) fn options(&self) -> &ViewOptions {
        &self.options
    }

    /// Limits for new clones of a server.
    pub(crate) fn clone_limits(&self, server: &ServerName) -> CloneLimits {
        self.options.clone_limits.get(server).copied().unwrap_or_default()
    }

    /// The reader of stored files.
    pub fn trees(&self) -> &TreeReader {
        &self.trees
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The counters of the mount's requests.
    pub fn counters(&self) -> &Arc<RequestCounters> {
        &self.counters
    }

    /// Space in the file system of the repository.
    ///
    /// # Errors
    /// When the system call fails.
    pub fn space(&self) -> Result<Space> {
        let path = self.repository.path();
        let space = rustix::fs::statvfs(path).map_err(|error| Error::io("inspect", path, error))?;
        let block_bytes = u32::try_from(space.f_frsize).unwrap_or(4096);
        Ok(Space {
            block_bytes,
            blocks: space.f_blocks,
            free: space.f_bfree,
            available: space.f_bavail,
        })
    }

    /// The present servers and backups.
    pub(crate) fn snapshot(&self) -> Result<Arc<Snapshot>> {
        self.snapshots.current(&self.repository, &self.options)
    }

    /// The view of one backup.
    pub(super) fn tree(self: &Arc<Self>, backup: &Arc<Backup>, style: Style, view: &str) -> Arc<BackupTree> {
        let usage = self.usages.of(backup, view, &self.repository);
        Arc::new(BackupTree::new(
            Arc::clone(self),
            Arc::clone(backup),
            style,
            usage,
        ))
    }

    /// Attributes with the owner that the mount shows.
    pub(super) fn stat(&self, attributes: &Attributes, size_bytes: u64, allocated_bytes: u64) -> Stat {
        Stat {
            mode: attributes.mode,
            uid: self.options.uid.unwrap_or(attributes.uid),
            gid: self.options.gid.unwrap_or(attributes.gid),
            mtime_s: attributes.mtime_s,
            mtime_ns: attributes.mtime_ns,
            size_bytes,
            allocated_bytes,
        }
    }

    /// Attributes of entries that belong to the mount and not to a server.
    pub(super) fn own(&self, mode: u32, time: TimestampMicros) -> Attributes {
        let own = |asked: Option<u32>, process: u32| asked.unwrap_or(process);
        let (mtime_s, mtime_ns) = seconds(time);
        Attributes {
            mode,
            uid: own(self.options.uid, rustix::process::geteuid().as_raw()),
            gid: own(self.options.gid, rustix::process::getegid().as_raw()),
            mtime_s,
            mtime_ns,
        }
    }

    /// Sets the thread that reads WAL segments into the kernel's page cache.
    pub(crate) fn set_warmer(&self, warmer: Warmer) {
        let _ = self.warmer.set(warmer);
    }

    /// Reads a file into the kernel's page cache, by its path below the mount point. Returns whether it will be read.
    pub(super) fn warm(&self, path: PathBuf) -> bool {
        self.warmer.get().is_some_and(|warmer| warmer.warm(path))
    }

    /// Sets the part that serves the clones.
    pub(crate) fn set_clones(&self, clones: Weak<dyn ServesClones>) {
        let _ = self.clones.set(clones);
    }

    /// The serving epoch of a clone, see [`ServesClones::epoch`].
    pub(super) fn epoch(&self, clone: &CloneDescription) -> Result<u64> {
        match self.clones.get().and_then(Weak::upgrade) {
            Some(clones) => clones.epoch(clone),
            // A tree without a mount serves no clone.
            None => Ok(0),
        }
    }

    /// Stops serving a clone.
    pub(super) fn release(&self, server: &ServerName, name: &CloneName) -> Result<()> {
        match self.clones.get().and_then(Weak::upgrade) {
            Some(clones) => clones.release(server, name),
            None => Ok(()),
        }
    }

    /// Releases the backups that nothing uses any more.
    pub(crate) fn release_idle(&self) {
        self.usages.release_idle();
    }

    /// The age of the mount.
    pub(super) fn uptime(&self) -> Duration {
        let now: TimestampMicros = SystemTime::now().into();
        Duration::from_micros(
            now.unix_micros()
                .saturating_sub(self.started.unix_micros())
                .max(0)
                .unsigned_abs(),
        )
    }
}

/// Seconds and nanoseconds of a time.
pub(super) fn seconds(time: TimestampMicros) -> (i64, u32) {
    let micros = time.unix_micros();
    // Less than the nanoseconds of a second.
    (
        micros.div_euclid(1_000_000),
        (micros.rem_euclid(1_000_000) * 1000) as u32,
    )
}
