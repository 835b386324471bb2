//! Points in time: what can be recovered, and how.
//!
//! [`Repository::timelines`](crate::Repository::timelines) reports what can be recovered.
//! [`Repository::plan`](crate::Repository::plan) finds, for a [`TargetSpec`], the backup to start from, the timelines
//! to follow, and how far the WAL is replayed; or the reason why PostgreSQL would not reach the target. It uses the
//! catalog's index of the WAL, and reads a segment's records only if the index does not decide.
//!
//! The rules are PostgreSQL's (`src/backend/access/transam/xlogrecovery.c`): a time is reached with the first commit
//! *or abort* later than it, which must exist; times do not rise with the LSN; a restore point is the first of its
//! name; whatever the target, it must not come before the backup's end. A plan is only made if all of this holds.

mod abandoned;
mod ends;
mod obstacles;
mod own_wal;
mod plan;
mod planner;
mod reached;
mod received;
mod route;
mod segments;
mod target;
#[cfg(test)]
mod tests;
mod time;
mod timelines;
mod window;

pub use plan::{Plan, TimelineSpan, Unreachable};
pub use target::{Action, Target, TargetError, TargetSpec, TimelineChoice};
pub use time::{TimeTarget, zone_of};
pub use timelines::{
    BackupPlace, Gap, MinimalStretch, Parent, Reach, RestorePointPlace, Timeline, TimelineReport,
    UnreadableFile, WalRange,
};
pub use window::{CrossingRecord, RecoveryWindow};
