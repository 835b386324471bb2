//! What a WAL segment contains about points in time: commit times, restore points, backup ends.
//!
//! The scanner reads a segment as a stream, in slices of any length, and holds a few hundred bytes
//! of it at a time, however long its records are. It never fails: the archive stores a segment
//! first and interprets it second, so bytes that cannot be read only end the scan, and the
//! [index](SegmentIndex) records where.
//!
//! Only the records that matter for recovery targets are decoded; of the others only the length and
//! the CRC are checked. Record layout: `src/include/access/xlogrecord.h`, the same in PostgreSQL 13
//! to 19.

mod confine;
mod index;
mod record;
mod scanner;
#[cfg(test)]
mod tests;
mod whole;

pub use confine::{Unconfinable, WalEdit, confine, may_cross};
pub use index::{
    BackupEnd, Fragment, ParameterChange, RestorePoint, SegmentIndex, Stop, StopReason, TablespaceMade,
    TimelineSwitch,
};
pub use record::{EmptiedPath, Parameters, Record, RecordFacts, WalLevel, join};
pub use scanner::{EachRecord, WalScanner};
pub use whole::{WholeScan, Wholeness};
