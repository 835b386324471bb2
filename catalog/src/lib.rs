//! The catalog: backups and WAL in a repository of packs, indexed by SQLite.
//!
//! The packs are the truth. Each fact (a complete backup, an archived segment, a deletion) is a record in the footer
//! of a pack; `catalog.sqlite` is derived from them and can be made again ([`rebuild`]). All reading starts here with a
//! [`Repository`], all writing with a [`Writer`], which registers itself so that a [`sweep`] takes nothing away from it.
//!
//! - [`backup`], [`wal`], [`spool`]: what there is, and how it comes in.
//! - [`recovery`]: points in time, and how to get there.
//! - [`clones`]: the writable copies that stand on backups.
//! - [`sweep`], [`verify`], [`stats`], [`rebuild`]: keeping it.
//!
//! This is the only crate that knows SQLite. It never prints, exits or reads the environment.

pub mod backup;
mod chunk_index;
mod chunk_set;
pub mod clones;
mod damage;
mod db;
pub mod error;
pub mod history;
pub mod json;
mod locks;
pub mod monitor;
#[cfg(test)]
mod noted;
mod owner;
pub mod rebuild;
mod records;
pub mod recovery;
mod regular;
mod repository;
mod reserve;
mod roots;
mod schema;
pub mod server;
pub mod spool;
pub mod stats;
pub mod sweep;
mod unread;
pub mod verify;
pub mod wal;
mod writer;

pub use backup::{
    Backup, BackupEnd, BackupId, BackupKind, BackupRoot, BackupRun, BackupSelector, BackupStatus, BootCheck,
    BootOutcome, BootTest, BootTestLock, ClonedFrom, DeletionGuard, NewBackup, ReadGuard, Tablespace,
};
pub use clones::{CloneDescription, CloneDraft, CloneLock, CloneName, CloneOrigin, Graft};
pub use error::{Error, Result};
pub use history::{Decided, Fork, HistoryReport, LeftHistory, Restarted};
pub use monitor::{Monitor, Silent, Unit};
pub use owner::{AsOwner, Owner};
pub use rebuild::RebuildReport;
pub use recovery::{
    Action, Gap, MinimalStretch, Plan, Target, TargetError, TargetSpec, TimeTarget, TimelineChoice,
    TimelineReport, TimelineSpan, Unreachable,
};
pub use repository::{Compression, CreateOptions, Repository, Settings};
pub use server::ServerName;
pub use spool::{PartialSegment, Receiver, Spool, SpoolFile};
pub use stats::{BackupStats, ServerStats, Sizes, Stats};
pub use sweep::{PackProblem, SweepOptions, SweepReport};
pub use unread::UnreadPack;
pub use verify::{Damage, VerifyReport, VerifyScope};
pub use wal::{
    Comparison, QuarantinedWal, RefusedWal, WalArchive, WalConflict, WalEntries, WalEntry, WalFile,
    WalOutcome, WalTotals,
};
pub use writer::Writer;
