//! PostgreSQL's formats: bytes in, typed values out.
//!
//! Everything barmanfs knows about the layout of WAL, labels, manifests and control files is
//! here, so that no other crate has to parse PostgreSQL's bytes. Nothing here does I/O of its
//! own, reads a clock or keeps state between calls; readers and writers are the caller's.
//!
//! Invariants:
//! - No input makes this crate panic. What came from a disk or a network is read through
//!   the `bytes` module, which answers `None` past the end.
//! - A version that is not known is said to be unknown and not guessed at: WAL and control files
//!   of a newer PostgreSQL can be stored, not interpreted.
//! - Only little-endian servers are understood (x86-64, arm64): PostgreSQL writes its files in
//!   the byte order of its host.

#![forbid(unsafe_code)]

mod bytes;
mod error;
mod hex;
mod ids;
mod lsn;
mod timestamp;

pub mod backup_label;
pub mod conf;
pub mod control;
pub mod history;
pub mod incremental;
pub mod manifest;
pub mod relation_name;
pub mod tablespace_map;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wal_check;
pub mod wal_files;
pub mod wal_link;
pub mod wal_name;
pub mod wal_record;
pub mod wal_scan;

pub use error::{FormatError, ParseError};
pub use ids::{SegmentSize, ServerVersion, SystemId, TimelineId};
pub use lsn::Lsn;
pub use timestamp::TimestampMicros;
