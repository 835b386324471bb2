//! The catalog: backups and WAL in a repository of packs, indexed by SQLite.
//!
//! The packs are the truth. Each fact (a complete backup, an archived segment, a deletion) is a record in the footer
//! of a pack. `catalog.sqlite` is derived from these records and can be rebuilt. All reading starts here with a
//! [`Repository`], all writing with a [`Writer`]. A writer registers itself, so that a sweep removes nothing that it
//! uses.
//!
//! The crate has six modules, and each uses only those below it:
//!
//! | module | holds |
//! |---|---|
//! | `upkeep` | sweep, verify, rebuild of the catalog, statistics, the memory of cron |
//! | `retention` | what policies keep, and the deletion of the rest |
//! | `recovery` | points in time, and how to get there |
//! | `archive` | backups, WAL and its histories, the spool, clones, damage, and what each kind of record means |
//! | `index` | the SQLite file, records, places of chunks, unread packs, writers, condemned packs, the reserve |
//! | `home` | the repository's directory, its owner, its small files and locks, and which writers are at work |
//!
//! This is the only crate that uses SQLite. It never prints, exits or reads the environment.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod archive;
mod error;
mod home;
mod index;
mod monitor;
mod names;
pub mod recovery;
pub mod retention;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod upkeep;

pub use archive::backup::{
    Annotation, Annotations, Backup, BackupEnd, BackupKind, BackupRoot, BackupRun, BackupSelector,
    BackupStatus, BootCheck, BootOutcome, BootTest, BootTestLock, ClonedFrom, ConfigurationFiles,
    DeletionGuard, Import, Imported, IntendedSnapshot, NewBackup, ReadGuard, Reliability, SnapshotDisk,
    StorageSnapshot, Tablespace,
};
pub use archive::changes::{Change, Changes};
pub use archive::clones::{CloneDescription, CloneDraft, CloneLock, CloneOrigin, ExtraFile};
pub use archive::damage::KnownLoss;
pub use archive::history::{Decided, Fork, HistoryReport, LeftHistory, Restarted};
pub use archive::json;
pub use archive::keep::{Keep, KeepTarget};
pub use archive::site_files::SiteFiles;
pub use archive::spool::{PartialSegment, Receiver, Spool, SpoolFile};
pub use archive::wal::{
    Comparison, Confined, LooseSegment, QuarantinedWal, RangeTotals, RefusedWal, ReindexReport, SegmentRange,
    SegmentTotals, WalArchive, WalConflict, WalEntries, WalEntry, WalFile, WalOutcome, WalTotals,
    scan_segment,
};
pub use error::{Error, Result};
pub use home::keys::{
    Encryption, FirstKey, KeyFile, KeySource, NewRecipient, key_files, refuse_plain, use_keys_of,
};
pub use home::owner::{AsOwner, Owner};
pub use home::settings::{Compression, CreateOptions, Settings, new_settings, repository_id};
pub use index::remote::{Remote, RemotePacks, StreamPrefix};
pub use index::repository::Repository;
pub use index::unread::{PackProblem, UnreadPack, count_unread};
pub use index::writer::Writer;
pub use monitor::{Monitor, Silent, Unit};
pub use names::{BackupId, BackupName, CloneName, InvalidName, ServerName};
pub use recovery::{
    Action, CrossingRecord, Gap, MinimalStretch, Plan, Reach, RecoveryWindow, Target, TargetError,
    TargetSpec, TimeTarget, TimelineChoice, TimelineReport, TimelineSpan, Unreachable,
};
pub use upkeep::copy::{CopyFrom, CopyInto, KnownPack, is_home};
pub use upkeep::cron::pays::Freeable;
pub use upkeep::cron::{
    AuditMemory, CronLock, CronTask, RepositoryMemory, RestoreRates, ServerMemory, TaskMemory,
};
pub use upkeep::growth::Growth;
pub use upkeep::keys::{CheckedKey, EncryptReport, Locked};
pub use upkeep::processes::{Task, WorkingProcess};
pub use upkeep::rebuild::{BackupsOf, RebuildReport};
pub use upkeep::stats::{BackupStats, PackTotals, ServerStats, Sizes, Stats};
pub use upkeep::sweep::{Forecast, SweepOptions, SweepReport};
pub use upkeep::sync::{SyncLock, SyncMemory, SyncOptions, SyncReport, SyncSource, SyncedBackups};
pub use upkeep::verify::round::{VerifiedPart, VerifyRound};
pub use upkeep::verify::{Damage, VerifyReport, VerifyScope};
