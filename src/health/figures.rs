//! What the checks have counted and measured, for performance data and metrics. A figure that is `None` is not known:
//! the check did not get that far, or does not apply.

use barmanfs_catalog::{BackupStatus, BootTest, ServerMemory};
use barmanfs_pg::TimestampMicros;

/// The figures of a server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    /// The number of its own backups, by status.
    pub(crate) backups: Vec<(BackupStatus, usize)>,
    /// Its newest complete backup.
    pub(crate) newest: Option<NewestBackup>,
    /// When its oldest complete backup ended.
    pub(crate) oldest_end: Option<TimestampMicros>,
    /// Complete backups that need damaged data.
    pub(crate) damaged: Option<usize>,
    /// The newest boot test of any of its backups.
    pub(crate) boot_test: Option<BootTest>,
    /// Whether it is known what would be lost with the server, or an upper limit of it.
    pub(crate) is_rpo_known: Option<bool>,
    /// Age of the oldest commit that would be lost with the server, in seconds, or an upper limit of it; infinity if
    /// nothing can be recovered.
    pub(crate) rpo_seconds: Option<f64>,
    /// WAL that would be lost with the server.
    pub(crate) rpo_bytes: Option<u64>,
    /// Bytes that WAL has added to the repository since its newest complete backup began.
    pub(crate) wal_bytes: Option<u64>,
    /// The last arrival of WAL.
    pub(crate) last_wal: Option<TimestampMicros>,
    /// The time of the earliest state that can be recovered.
    pub(crate) earliest: Option<TimestampMicros>,
    /// The time of the newest state that can be recovered.
    pub(crate) newest_state: Option<TimestampMicros>,
    /// Gaps in its WAL that make something unrecoverable.
    pub(crate) gaps: Option<usize>,
    /// Timelines with two histories without a decision.
    pub(crate) open_forks: Option<usize>,
    /// WAL files in quarantine.
    pub(crate) quarantined: Option<usize>,
    /// Segments in the spool that the archive does not have, the one that is being received among them.
    pub(crate) spooled: Option<usize>,
    /// Whether a process receives its WAL.
    pub(crate) is_received: Option<bool>,
    /// The number of its clones.
    pub(crate) clones: Option<usize>,
    /// When the oldest of them was made.
    pub(crate) oldest_clone: Option<TimestampMicros>,
    /// All WAL that its primary had archived at this time is here, if it is passive.
    pub(crate) synced: Option<TimestampMicros>,
    /// What `cron` remembers of it.
    pub(crate) cron: Option<ServerMemory>,
    /// What its stream of WAL is behind.
    pub(crate) lag: Option<Lag>,
    /// Files that wait for its `archive_command`.
    pub(crate) waiting_files: Option<u64>,
    /// Whether the server answered, on each connection that the checks need.
    pub(crate) is_up: Option<bool>,
}

/// The newest complete backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NewestBackup {
    /// When it began.
    pub(crate) began: TimestampMicros,
    /// When it ended.
    pub(crate) ended: TimestampMicros,
    /// Size of its files.
    pub(crate) logical_bytes: u64,
    /// Bytes that the server sent.
    pub(crate) sent_bytes: u64,
    /// Bytes that it added to the repository.
    pub(crate) new_stored_bytes: u64,
}

/// How far the stream of WAL is behind the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lag {
    /// Bytes that the server has flushed and that were not reported as flushed here.
    pub(crate) bytes: u64,
    /// Seconds since the last report.
    pub(crate) reported_seconds: u64,
}
