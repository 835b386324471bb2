//! What a WAL segment tells about points in time.

mod index;

pub use index::{BackupEnd, Fragment, RestorePoint, SegmentIndex, Stop, StopReason, TimelineSwitch};
