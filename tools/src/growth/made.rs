//! Backups that no server has sent.

use anyhow::Result;
use barmanfs_catalog::{Backup, BackupEnd, BackupRun, NewBackup, Repository, ServerName};
use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId};
use barmanfs_store::Attributes;

/// Those of all files and directories.
pub(crate) const ATTRIBUTES: Attributes = Attributes {
    mode: 0o600,
    uid: 26,
    gid: 26,
    mtime_s: 1_700_000_000,
    mtime_ns: 0,
};

/// Begins a backup of the server `main`.
pub(crate) fn begin(repository: &Repository) -> Result<BackupRun> {
    let server: ServerName = "main".parse()?;
    let new = NewBackup {
        label: None,
        system_id: SystemId(7_710_414_268_036_822_209),
        server_version: ServerVersion(180_004),
        segment_size: SegmentSize::MIN,
        wal_included: true,
        fork: None,
        timezone: None,
    };
    Ok(repository.writer("growth")?.begin_backup(&server, new)?)
}

/// Ends a backup with the files that it has.
pub(crate) fn finish(mut run: BackupRun) -> Result<Backup> {
    run.end_tree(ATTRIBUTES)?;
    Ok(run.finish(BackupEnd {
        start_lsn: Lsn(SegmentSize::MIN.bytes() + 40),
        stop_lsn: Lsn(SegmentSize::MIN.bytes() + 4096),
        timeline: TimelineId(1),
        data_checksums: Some(true),
        tablespaces: Vec::new(),
        sent_bytes: 1,
        checksum_failures: Vec::new(),
        from_standby: false,
    })?)
}
