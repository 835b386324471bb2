//! Backups: what is recorded about each, and the ways to name one.
//!
//! A backup's status is not stored but derived, so that it cannot be wrong: it is [`BackupStatus::Started`] while the
//! backup's lock is held, and [`BackupStatus::Done`] once every segment it needs is in the archive.

use barmanfs_pg::wal_name::{SegmentName, segments_between};
use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId, TimestampMicros};
use barmanfs_store::{Attributes, DirectoryRef, RecordId};
use serde::{Deserialize, Serialize};

use crate::names::{BackupId, CloneName, ServerName};

mod annotations;
pub(crate) mod boot_test;
pub(crate) mod configuration;
mod delete;
mod imported;
mod intended;
mod list;
mod reliability;
mod run;
pub(crate) mod running;
mod selector;
mod snapshot;

pub use annotations::{Annotation, Annotations};
pub use boot_test::{BootCheck, BootOutcome, BootTest, BootTestLock};
pub use configuration::ConfigurationFiles;
pub use delete::{DeletionGuard, ReadGuard};
pub use imported::{Import, Imported};
pub use intended::IntendedSnapshot;
pub use reliability::Reliability;
pub use run::{BackupEnd, BackupRun, NewBackup};
pub use selector::BackupSelector;
pub use snapshot::{SnapshotDisk, StorageSnapshot};

/// The status of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BackupStatus {
    /// It is being taken.
    Started,
    /// Complete, but not every segment from its start to its stop has been archived yet: it cannot be started.
    WaitingForWals,
    /// Complete, and so is its WAL.
    Done,
    /// It ended early; `error` says why. It holds no files.
    Failed,
}

impl BackupStatus {
    /// The status as Barman writes it: `WAITING_FOR_WALS`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "STARTED",
            Self::WaitingForWals => "WAITING_FOR_WALS",
            Self::Done => "DONE",
            Self::Failed => "FAILED",
        }
    }
}

impl std::fmt::Display for BackupStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a backup's bytes arrived. Every backup is complete, whatever its kind; one of them is elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// All files were sent.
    Full,
    /// Only changed blocks were sent; they were merged with the files of [`Backup::parent`].
    Incremental,
    /// It was made from a clone that is based on [`Backup::parent`]. It has left the server's history: it is started as
    /// it is, with the WAL in its own `pg_wal`, and the server's WAL is never replayed on it.
    Clone,
    /// Nothing was read: its files are a snapshot of the server's disks in the site's storage, [`Backup::snapshot`].
    Snapshot,
}

/// The clone a backup was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClonedFrom {
    /// Its name when the backup was made.
    pub name: CloneName,
    /// The point in time the clone was recovered to when it was created; none for the end of the backup it is based on.
    #[serde(default)]
    pub target: Option<String>,
    /// Whether the clone's PostgreSQL was shut down cleanly, so that nothing has to be replayed. Otherwise its `pg_wal`
    /// is replayed, as after a crash.
    pub shut_down: bool,
}

/// A tablespace of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its OID, which is its directory's name under `pg_tblspc`.
    pub oid: u32,
    /// Its name, if it is known.
    #[serde(default)]
    pub name: Option<String>,
    /// Where it was on the server: an absolute path, or one in the data directory.
    pub location: String,
}

impl Tablespace {
    /// Whether its files were in the data directory, without a link (`allow_in_place_tablespaces`), as in every copy that is
    /// made here.
    pub fn is_in_place(&self) -> bool {
        !self.location.starts_with('/')
    }
}

/// The root directory of a backup's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRoot {
    /// Its listing.
    pub directory: DirectoryRef,
    /// Its owner, permissions and time.
    pub attributes: Attributes,
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Whose it is.
    pub server: ServerName,
    /// Its id: when it began.
    pub id: BackupId,
    /// Its status.
    pub status: BackupStatus,
    /// How its bytes arrived.
    pub kind: BackupKind,
    /// For an incremental backup, the one that supplied what the server did not send; for one made from a clone, the
    /// one the clone was based on. It may have been deleted since; this backup is complete without it.
    #[serde(default)]
    pub parent: Option<BackupId>,
    /// The clone it was made from, if any.
    #[serde(default)]
    pub cloned_from: Option<ClonedFrom>,
    /// Where it comes from, if another tool has taken it.
    #[serde(default)]
    pub imported: Option<Imported>,
    /// The label the user gave it.
    #[serde(default)]
    pub label: Option<String>,
    /// What the user noted with it.
    #[serde(default)]
    pub annotations: Annotations,
    /// When it began.
    pub begin_time: TimestampMicros,
    /// When it ended; none while it runs, or when it was killed.
    #[serde(default)]
    pub end_time: Option<TimestampMicros>,
    /// Where its recovery begins.
    #[serde(default)]
    pub start_lsn: Option<Lsn>,
    /// What its recovery must reach to be consistent.
    #[serde(default)]
    pub stop_lsn: Option<Lsn>,
    /// The timeline it was taken on.
    #[serde(default)]
    pub timeline: Option<TimelineId>,
    /// The cluster.
    pub system_id: SystemId,
    /// The server's version.
    pub server_version: ServerVersion,
    /// Size of the cluster's WAL segments in bytes.
    pub segment_size: SegmentSize,
    /// Whether the cluster's pages have checksums; none if unknown.
    #[serde(default)]
    pub data_checksums: Option<bool>,
    /// The server's setting `TimeZone`, for times given without a zone; none if unknown.
    #[serde(default)]
    pub timezone: Option<String>,
    /// Its tablespaces, without `pg_default` and `pg_global`.
    #[serde(default)]
    pub tablespaces: Vec<Tablespace>,
    /// Whether its `pg_wal` holds all the WAL it needs.
    pub wal_included: bool,
    /// If it was taken on a history other than the archive's: the fork before it. Its WAL came with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<RecordId>,
    /// Whether a standby was backed up.
    pub from_standby: bool,
    /// Total size of its files.
    pub logical_bytes: u64,
    /// Bytes the server sent; for a backup made from a clone, the bytes that were read.
    pub sent_bytes: u64,
    /// Bytes it added to the repository.
    pub new_stored_bytes: u64,
    /// Number of its regular files.
    pub files: u64,
    /// Page checksum failures the server reported. The pages are stored as they were sent.
    #[serde(default)]
    pub checksum_failures: Vec<String>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
    /// Its files; none until it is complete, and none for a snapshot.
    #[serde(default)]
    pub root: Option<BackupRoot>,
    /// Where its files are, if they are not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<StorageSnapshot>,
    /// The record it comes from; none while it runs or when it was killed.
    #[serde(skip)]
    pub(crate) record: Option<RecordId>,
    /// The archive of the history it belongs to, if that is not the server's current one.
    #[serde(skip)]
    pub apart: Option<ServerName>,
}

impl Backup {
    /// Whether all its files are stored, whatever the state of its WAL: it can be shown and read.
    pub fn is_complete(&self) -> bool {
        self.root.is_some() && matches!(self.status, BackupStatus::Done | BackupStatus::WaitingForWals)
    }

    /// Whether it has ended well, with its files here or in the storage.
    pub fn has_ended_well(&self) -> bool {
        (self.root.is_some() || self.is_snapshot())
            && matches!(self.status, BackupStatus::Done | BackupStatus::WaitingForWals)
    }

    /// Why nothing of it can be read here, if it has ended well all the same.
    pub fn files_elsewhere(&self) -> Option<String> {
        let snapshot = self.snapshot.as_ref().filter(|_| self.is_snapshot())?;
        Some(format!(
            "The files of backup {} are in the storage, as snapshot {}",
            self.id, snapshot.name
        ))
    }

    /// Whether it was taken from the server itself, not from a clone. Only on such a backup WAL is replayed.
    pub fn is_of_server(&self) -> bool {
        self.kind != BackupKind::Clone
    }

    /// Whether it belongs to the history that the server's archive goes on with. Only such a backup can be the latest or
    /// the oldest, count for a policy or a minimum, or be the parent of another one.
    pub fn is_of_current_history(&self) -> bool {
        self.is_of_server() && self.apart.is_none()
    }

    /// Whether the WAL that came with it may end exactly where it ends. A standby's does, and so does that of a server that
    /// was shut down. A primary has completed the segment.
    pub fn own_wal_may_end_with_it(&self) -> bool {
        self.from_standby || self.was_shut_down()
    }

    /// Whether it is the copy of a server that was shut down.
    pub fn was_shut_down(&self) -> bool {
        self.imported.as_ref().is_some_and(|imported| imported.shut_down)
    }

    /// The archive that holds its WAL: the server's, or that of an abandoned history.
    pub fn archive(&self) -> &ServerName {
        self.apart.as_ref().unwrap_or(&self.server)
    }

    /// The segments that its recovery needs from the archive, in order. Empty when they came with the backup or when
    /// the backup is not complete.
    pub fn needed_wal(&self) -> impl Iterator<Item = SegmentName> + use<> {
        let size = self.segment_size;
        let range = match (self.timeline, self.start_lsn, self.stop_lsn) {
            (Some(timeline), Some(start), Some(stop)) if !self.wal_included => Some((timeline, start, stop)),
            _ => None,
        };
        range
            .into_iter()
            .flat_map(move |(timeline, start, stop)| segments_between(timeline, start, stop, size))
    }
}
