//! PostgreSQL's formats: bytes in, typed values out.
//!
//! Everything barmanfs knows about the layout of WAL, labels, manifests and control files is here,
//! so that no other crate has to parse PostgreSQL's bytes. Nothing here does I/O of its own, reads
//! a clock or keeps state between calls; the caller provides readers and writers.
//!
//! Invariants:
//! - No input makes this crate panic. Bytes from a disk or a network are read through the `bytes`
//!   module, which returns `None` past the end.
//! - An unknown version is reported as unknown, never guessed: WAL and control files of a newer
//!   PostgreSQL can be stored, but not interpreted.
//! - Only little-endian servers are understood (x86-64, arm64): PostgreSQL writes its files in
//!   the byte order of its host.

#![forbid(unsafe_code)]

mod bytes;
mod error;
pub mod hex;
mod ids;
mod lsn;
mod timestamp;

pub mod backup_label;
pub mod backup_manifest;
pub mod conf;
pub mod history;
pub mod incremental;
pub mod own_files;
pub mod page;
pub mod pg_control;
pub mod recreated;
pub mod relation_name;
pub mod socket;
pub mod tablespace_map;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod wal_check;
pub mod wal_files;
pub mod wal_link;
pub mod wal_name;
pub mod wal_record;
pub mod wal_scan;
pub mod wal_summary;

pub use error::{FormatError, ParseError};
pub use ids::{SegmentSize, ServerVersion, SystemId, TimelineId};
pub use lsn::Lsn;
pub use timestamp::TimestampMicros;
