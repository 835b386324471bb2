//! The section of a server.

mod effective;
pub(crate) use effective::Value;
mod idle;
mod primary;
use primary::Primary;
pub(crate) use primary::PrimaryKind;
mod set;

use std::path::PathBuf;
use std::time::Duration;

use barmanfs_catalog::ServerName;
use barmanfs_catalog::retention::{BackupPolicy, RetentionRules, WalPolicy};
use barmanfs_fs::CloneLimits;

use super::limits::Age;
use super::setting::Setting;
use super::{HookScripts, Limits, Problem, Secret, Secrets, Snapshots};
use crate::error::Error;
use crate::schedule::Schedule;

/// The default name of streams. It is used in `synchronous_standby_names` without quotes.
const STREAMING_ARCHIVER_NAME: &str = "barmanfs_receive_wal";
/// The same in a configuration of Barman. A server may have it in `synchronous_standby_names`.
const BARMANS_STREAMING_ARCHIVER_NAME: &str = "barman_receive_wal";
/// Barman's name for the connections of backups.
const BARMANS_STREAMING_BACKUP_NAME: &str = "barman_streaming_backup";
/// Barman's limit for all checks of a server.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a failed backup stays visible.
const FAILED_BACKUP_DAYS: u64 = 7;

/// Whether a server's WAL is known to arrive through `wal-archive`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Archiver {
    /// Determined at each backup: the server archives, and one of its segments has arrived.
    #[default]
    Auto,
    /// Backups rely on it and wait for their segments.
    On,
    /// Backups bring their own WAL.
    Off,
}

/// Whether backups of a server are incremental. Either way each is stored as a full one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Incremental {
    /// Where the server can (PostgreSQL 17 and later, summarize_wal = on); otherwise it sends everything.
    #[default]
    Auto,
    /// Where the server cannot, the backup fails.
    Always,
    /// The server sends everything.
    Never,
}

/// How backups of a server are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum BackupMethod {
    /// The server sends its files over the replication protocol.
    #[default]
    Postgres,
    /// The files of the server are read, on its own host.
    Files,
    /// They are snapshots of its storage.
    Snapshot,
}

impl BackupMethod {
    /// As the configuration has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Files => "files",
            Self::Snapshot => "snapshot",
        }
    }
}

/// What `receive-wal` does when its replication slot is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum CreateSlot {
    /// It fails: the slot is created by `receive-wal --create-slot`.
    #[default]
    Manual,
    /// It creates it.
    Auto,
}

/// One server's section.
#[derive(Debug, Clone)]
pub(crate) struct ServerConfig {
    /// The section's name.
    pub(crate) name: ServerName,
    /// Why it is disabled. Empty if it is not.
    pub(crate) errors: Vec<Problem>,
    /// Why nothing of it is deleted, although it is not disabled.
    pub(crate) holds_deletions: Option<String>,
    /// Every key that is set for it, and what it does.
    pub(crate) settings: Vec<Setting>,
    /// The passwords of the whole configuration, which no value that is shown may contain.
    pub(crate) secrets: Secrets,
    /// The model whose keys are over its own.
    pub(crate) active_model: Option<String>,
    /// Free text for the lists.
    pub(crate) description: Option<String>,
    /// `active = off`: left out of `all`, refused for backups.
    pub(crate) active: bool,
    /// The group of servers and models that it belongs to, if it is not a group of its own.
    pub(crate) cluster: Option<String>,
    /// How to connect for SQL.
    pub(crate) conninfo: Option<Secret>,
    /// How to connect for replication, when that differs.
    pub(crate) streaming_conninfo: Option<Secret>,
    /// How to connect to the primary for SQL, where the server is a standby.
    pub(crate) primary_conninfo: Option<Secret>,
    /// After how long a backup of a standby asks its primary for a checkpoint; `None` for never.
    pub(crate) primary_checkpoint_timeout: Option<Duration>,
    /// How to connect for SQL to the host that WAL is received from, when that is another one.
    pub(crate) wal_conninfo: Option<Secret>,
    /// How to connect to that host for replication.
    pub(crate) wal_streaming_conninfo: Option<Secret>,
    /// See [`Archiver`].
    pub(crate) archiver: Archiver,
    /// See [`Incremental`].
    pub(crate) incremental: Incremental,
    /// Whether WAL is received as a stream: `receive-wal` is running, or should be.
    pub(crate) streaming_archiver: bool,
    /// `application_name` of the stream, which `synchronous_standby_names` refers to.
    pub(crate) streaming_archiver_name: String,
    /// The replication slot of the stream.
    pub(crate) slot_name: Option<String>,
    /// See [`CreateSlot`].
    pub(crate) create_slot: CreateSlot,
    /// Start backups with a fast checkpoint.
    pub(crate) immediate_checkpoint: bool,
    /// Limit of a backup's transfer, in kB/s.
    pub(crate) bandwidth_limit_kb: Option<u32>,
    /// Whether backups have the configuration files that are outside the data directory.
    pub(crate) external_configuration: bool,
    /// `application_name` of the backup's connection, when it is not the one of the connection string.
    pub(crate) streaming_backup_name: Option<String>,
    /// When `cron` takes a backup.
    pub(crate) backup_schedule: Option<Schedule>,
    /// When `cron` tests whether the newest backup starts.
    pub(crate) boot_test_schedule: Option<Schedule>,
    /// Number of pages of each incremental backup that `cron` compares with the server; 0 for none.
    pub(crate) audit_sample: u32,
    /// Limits for its clones.
    pub(crate) clone_limits: CloneLimits,
    /// The directory to search first for PostgreSQL's programs.
    pub(crate) path_prefix: Option<PathBuf>,
    /// The number of complete backups that every deletion leaves.
    pub(crate) minimum_redundancy: usize,
    /// Which backups are kept; all of them if there is none.
    pub(crate) retention_policy: Option<BackupPolicy>,
    /// From when on WAL is kept.
    pub(crate) wal_retention_policy: WalPolicy,
    /// How long failed backups stay.
    pub(crate) failed_backup_retention: Age,
    /// The limits that `check` compares it with.
    pub(crate) limits: Limits,
    /// The directory into which its WAL is copied.
    pub(crate) incoming_wals_directory: Option<PathBuf>,
    /// How many received segments may wait to be archived; `None` for any number.
    pub(crate) max_incoming_wals_queue: Option<usize>,
    /// What runs before and after an operation.
    pub(crate) hooks: HookScripts,
    /// How its backups are taken.
    pub(crate) backup_method: BackupMethod,
    /// The commands of its storage.
    pub(crate) snapshots: Snapshots,
    /// How long all checks may take; `None` for no limit.
    pub(crate) check_timeout: Option<Duration>,
    /// Whether a restore may update an older copy.
    pub(crate) delta_restore: bool,
    /// Number of threads of a restore, and of those that read the files of a backup; one for each core when `None`.
    pub(crate) parallel_jobs: Option<usize>,
    /// The name of this host for copies on other hosts, which fetch WAL from here.
    pub(crate) recovery_host: Option<String>,
    /// The site that this one takes backups and WAL over from, instead of the server.
    pub(crate) primary: Primary,
}

impl ServerConfig {
    /// A server without settings. `is_barmans`: in a configuration of Barman, whose names for connections are kept.
    pub(super) fn new(name: ServerName, is_barmans: bool) -> Self {
        let archiver_name = match is_barmans {
            true => BARMANS_STREAMING_ARCHIVER_NAME,
            false => STREAMING_ARCHIVER_NAME,
        };
        Self {
            name,
            errors: Vec::new(),
            holds_deletions: None,
            settings: Vec::new(),
            secrets: Secrets::default(),
            active_model: None,
            description: None,
            active: true,
            cluster: None,
            conninfo: None,
            streaming_conninfo: None,
            primary_conninfo: None,
            primary_checkpoint_timeout: None,
            wal_conninfo: None,
            wal_streaming_conninfo: None,
            archiver: Archiver::Auto,
            incremental: Incremental::Auto,
            streaming_archiver: false,
            streaming_archiver_name: archiver_name.to_owned(),
            slot_name: None,
            create_slot: CreateSlot::Manual,
            immediate_checkpoint: false,
            bandwidth_limit_kb: None,
            external_configuration: true,
            streaming_backup_name: is_barmans.then(|| BARMANS_STREAMING_BACKUP_NAME.to_owned()),
            backup_schedule: None,
            boot_test_schedule: None,
            audit_sample: 0,
            clone_limits: CloneLimits::default(),
            path_prefix: None,
            minimum_redundancy: 0,
            retention_policy: None,
            wal_retention_policy: WalPolicy::Main,
            failed_backup_retention: Age::days(FAILED_BACKUP_DAYS),
            limits: Limits::default(),
            incoming_wals_directory: None,
            max_incoming_wals_queue: None,
            hooks: HookScripts::default(),
            backup_method: BackupMethod::default(),
            snapshots: Snapshots::default(),
            check_timeout: Some(CHECK_TIMEOUT),
            delta_restore: false,
            parallel_jobs: None,
            recovery_host: None,
            primary: Primary::default(),
        }
    }

    /// Whether its backups and WAL come from another site. Then nothing connects to the server.
    pub(crate) fn is_passive(&self) -> bool {
        self.primary.is_set()
    }

    /// Whether its configuration has errors. Then it gets no backup, no stream and no deletion; what is stored can be read.
    pub(crate) fn is_disabled(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Refuses a disabled server.
    ///
    /// # Errors
    /// The first error of its configuration.
    pub(crate) fn refuse_disabled(&self) -> Result<(), Error> {
        self.refuse(|_| true)
    }

    /// Refuses a server of which nothing may be stored, not even WAL that the server itself sends. Any other error must not
    /// stop archiving: that would fill the server's disk, and lose the last commits with it.
    ///
    /// # Errors
    /// The first such error of its configuration.
    pub(crate) fn refuse_storing(&self) -> Result<(), Error> {
        self.refuse(|problem| problem.forbids_storing)
    }

    fn refuse(&self, counts: impl Fn(&Problem) -> bool) -> Result<(), Error> {
        match self.errors.iter().find(|problem| counts(problem)) {
            None => Ok(()),
            Some(problem) => Err(
                Error::usage(format!("Server '{}' is disabled: {problem}", self.name))
                    .hint("Correct it; 'barmanfs config check' lists all that is wrong"),
            ),
        }
    }

    /// The group of servers and models that it belongs to.
    pub(crate) fn cluster(&self) -> &str {
        self.cluster.as_deref().unwrap_or(self.name.as_str())
    }

    /// The rules by which its backups and WAL are kept. A server whose configuration has errors keeps everything.
    pub(crate) fn retention_rules(&self) -> RetentionRules {
        if self.is_disabled() {
            return RetentionRules::default();
        }
        RetentionRules {
            backups: self.retention_policy,
            wal: self.wal_retention_policy,
            unneeded_wal: false,
            minimum_redundancy: u32::try_from(self.minimum_redundancy).unwrap_or(u32::MAX),
            held: self.holds_deletions.clone(),
            failed_backups: Some(Duration::from_secs(self.failed_backup_retention.seconds)),
        }
    }

    /// How to connect for replication.
    pub(crate) fn replication_conninfo(&self) -> Option<&Secret> {
        self.streaming_conninfo.as_ref().or(self.conninfo.as_ref())
    }

    /// How to connect for replication to the host that WAL is received from.
    pub(crate) fn wal_replication_conninfo(&self) -> Option<&Secret> {
        self.wal_streaming_conninfo
            .as_ref()
            .or_else(|| self.replication_conninfo())
    }

    /// How to connect for SQL to the host that WAL is received from. As in Barman, `wal_streaming_conninfo` is used if it is
    /// the only one that is set.
    pub(crate) fn wal_sql_conninfo(&self) -> Option<&Secret> {
        self.wal_conninfo
            .as_ref()
            .or(self.wal_streaming_conninfo.as_ref())
            .or(self.conninfo.as_ref())
    }

    /// Whether WAL is received from another host than backups.
    pub(crate) fn has_wal_host(&self) -> bool {
        self.wal_replication_conninfo() != self.replication_conninfo()
            || self.wal_sql_conninfo() != self.conninfo.as_ref()
    }

    /// The keys of connections, with what is set.
    pub(crate) fn connection_strings(&self) -> [(&'static str, Option<&Secret>); 5] {
        [
            ("conninfo", self.conninfo.as_ref()),
            ("streaming_conninfo", self.streaming_conninfo.as_ref()),
            ("primary_conninfo", self.primary_conninfo.as_ref()),
            ("wal_conninfo", self.wal_conninfo.as_ref()),
            ("wal_streaming_conninfo", self.wal_streaming_conninfo.as_ref()),
        ]
    }

    /// The error of a server without a connection string.
    pub(crate) fn without_conninfo(&self) -> Error {
        Error::usage(format!("Server '{}' has no connection string", self.name)).hint(format!(
            "Add a line like 'conninfo = host=db1 user=barmanfs' to its section [{}]",
            self.name
        ))
    }
}
