//! Backups as tests make them, of this crate and of those that use it.

use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId};

use crate::archive::backup::{BackupEnd, NewBackup};

/// The cluster of tests that need no other.
pub const SYSTEM: SystemId = SystemId(7_710_414_268_036_822_209);

/// A backup without its WAL, of a cluster with the smallest segments.
#[must_use]
pub fn new_backup(system_id: SystemId) -> NewBackup {
    NewBackup {
        label: None,
        system_id,
        server_version: ServerVersion(150_018),
        segment_size: SegmentSize::MIN,
        wal_included: false,
        fork: None,
        timezone: None,
    }
}

/// The same of a backup that brings its WAL along.
#[must_use]
pub fn new_backup_with_wal(system_id: SystemId) -> NewBackup {
    NewBackup {
        wal_included: true,
        ..new_backup(system_id)
    }
}

/// The end of a primary's backup that needs segments `first` to `last` of timeline 1.
#[must_use]
pub fn backup_end(first: u64, last: u64) -> BackupEnd {
    BackupEnd {
        start_lsn: Lsn(first * SegmentSize::MIN.bytes() + 40),
        stop_lsn: Lsn(last * SegmentSize::MIN.bytes() + 4096),
        timeline: TimelineId(1),
        data_checksums: Some(true),
        tablespaces: Vec::new(),
        sent_bytes: 1,
        checksum_failures: Vec::new(),
        from_standby: false,
    }
}
