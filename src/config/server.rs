//! The section of a server.

use std::path::PathBuf;
use std::time::Duration;

use barmanfs_catalog::ServerName;
use barmanfs_fs::CloneLimits;

use super::values::{absolute, boolean, count, given, pages, rate, schedule, size, slot_name};
use super::{Limits, Secret, limits};
use crate::error::Error;
use crate::schedule::Schedule;

/// The default name of streams. It is used in `synchronous_standby_names` without quotes.
const STREAMING_ARCHIVER_NAME: &str = "barmanfs_receive_wal";

/// The default of `check_timeout`; Barman's.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// Free text for the lists.
    pub(crate) description: Option<String>,
    /// `active = off`: left out of `all`, refused for backups.
    pub(crate) active: bool,
    /// How to connect for SQL.
    pub(crate) conninfo: Option<Secret>,
    /// How to connect for replication, when that differs.
    pub(crate) streaming_conninfo: Option<Secret>,
    /// How to connect to the primary for SQL, where the server is a standby.
    pub(crate) primary_conninfo: Option<Secret>,
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
    /// `application_name` of the backup's connection, when it is not the one of the connection string.
    pub(crate) streaming_backup_name: Option<String>,
    /// Limits for its clones.
    pub(crate) clone_limits: CloneLimits,
    /// The directory to search first for PostgreSQL's programs.
    pub(crate) path_prefix: Option<PathBuf>,
    /// The number of complete backups that every deletion leaves.
    pub(crate) minimum_redundancy: usize,
    /// The limits that `check` compares it with.
    pub(crate) limits: Limits,
    /// How many received segments may wait to be archived; `None` for any number.
    pub(crate) max_incoming_wals_queue: Option<usize>,
    /// How long all checks may take; `None` for no limit.
    pub(crate) check_timeout: Option<Duration>,
    /// When `cron` takes a backup.
    pub(crate) backup_schedule: Option<Schedule>,
    /// When `cron` tests whether the newest backup starts.
    pub(crate) boot_test_schedule: Option<Schedule>,
    /// Number of pages of each incremental backup that `cron` compares with the server; 0 for none.
    pub(crate) audit_sample: u32,
}

impl ServerConfig {
    pub(super) fn new(name: ServerName) -> Self {
        Self {
            name,
            description: None,
            active: true,
            conninfo: None,
            streaming_conninfo: None,
            primary_conninfo: None,
            archiver: Archiver::Auto,
            incremental: Incremental::Auto,
            streaming_archiver: false,
            streaming_archiver_name: STREAMING_ARCHIVER_NAME.to_owned(),
            slot_name: None,
            create_slot: CreateSlot::Manual,
            immediate_checkpoint: false,
            bandwidth_limit_kb: None,
            streaming_backup_name: None,
            clone_limits: CloneLimits::default(),
            path_prefix: None,
            minimum_redundancy: 0,
            limits: Limits::default(),
            max_incoming_wals_queue: None,
            check_timeout: Some(CHECK_TIMEOUT),
            backup_schedule: None,
            boot_test_schedule: None,
            audit_sample: 0,
        }
    }

    /// How to connect for replication.
    pub(crate) fn replication_conninfo(&self) -> Option<&Secret> {
        self.streaming_conninfo.as_ref().or(self.conninfo.as_ref())
    }

    /// The same, if it is required.
    pub(crate) fn require_replication_conninfo(&self) -> Result<&Secret, Error> {
        self.replication_conninfo().ok_or_else(|| {
            Error::usage(format!("Server '{}' has no connection string", self.name)).hint(format!(
                "Add a line like 'conninfo = host=db1 user=barmanfs' to its section [{}]",
                self.name
            ))
        })
    }

    /// Sets a key to a value.
    ///
    /// # Errors
    /// What is wrong with the value, in a form that follows the key.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "description" => self.description = given(value),
            "active" => self.active = boolean(value)?,
            "conninfo" => self.conninfo = secret(value),
            "streaming_conninfo" => self.streaming_conninfo = secret(value),
            "primary_conninfo" => self.primary_conninfo = secret(value),
            "archiver" => {
                self.archiver = match value.to_lowercase().as_str() {
                    "auto" => Archiver::Auto,
                    _ => match boolean(value)
                        .map_err(|_| format!("is '{value}': allowed are on, off and auto"))?
                    {
                        true => Archiver::On,
                        false => Archiver::Off,
                    },
                };
            }
            "incremental" => {
                self.incremental = <Incremental as clap::ValueEnum>::from_str(value, true)
                    .map_err(|_| format!("is '{value}': allowed are auto, always and never"))?;
            }
            "streaming_archiver" => self.streaming_archiver = boolean(value)?,
            "streaming_archiver_name" => {
                self.streaming_archiver_name =
                    given(value).unwrap_or_else(|| STREAMING_ARCHIVER_NAME.to_owned());
            }
            "slot_name" => self.slot_name = given(value).map(slot_name).transpose()?,
            "create_slot" => {
                self.create_slot = match value.to_lowercase().as_str() {
                    "manual" => CreateSlot::Manual,
                    "auto" => CreateSlot::Auto,
                    _ => return Err(format!("is '{value}': allowed are manual and auto")),
                };
            }
            "immediate_checkpoint" => self.immediate_checkpoint = boolean(value)?,
            "bandwidth_limit" => self.bandwidth_limit_kb = rate(value)?,
            "streaming_backup_name" => self.streaming_backup_name = given(value),
            "clone_max_size" => self.clone_limits.max_bytes = size(value)?,
            "clone_max_count" => self.clone_limits.max_count = count(value)?,
            "minimum_redundancy" => self.minimum_redundancy = limits::redundancy(value)?,
            "last_backup_maximum_age" => self.limits.backup_age = limits::age(value)?,
            "last_backup_minimum_size" => self.limits.backup_size = limits::si_size(value)?,
            "last_wal_maximum_age" => self.limits.wal_age = limits::age(value)?,
            "last_boot_test_maximum_age" => self.limits.boot_test_age = limits::age(value)?,
            "clone_maximum_age" => self.limits.clone_age = limits::age(value)?,
            "max_incoming_wals_queue" => self.max_incoming_wals_queue = limits::queue(value)?,
            "check_timeout" => {
                self.check_timeout = limits::timeout(value)?.map_or(Some(CHECK_TIMEOUT), limits::unless_zero);
            }
            "backup_schedule" => self.backup_schedule = schedule(value)?,
            "boot_test_schedule" => self.boot_test_schedule = schedule(value)?,
            "audit_sample" => self.audit_sample = pages(value)?,
            "path_prefix" => self.path_prefix = given(value).map(|value| absolute(&value)).transpose()?,
            // A test keeps this match in step with the table of keys.
            _ => return Err("has no meaning here".to_owned()),
        }
        Ok(())
    }
}

fn secret(value: &str) -> Option<Secret> {
    given(value).map(Secret)
}
