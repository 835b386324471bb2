//! What belongs to a backup of its `pg_wal`: the segments from its start to its end, histories, and what says of these that they
//! are archived. In a source there may be more: the WAL of a server that was started, or that of another directory, where
//! `pg_wal` is a link that leads elsewhere now.

use std::ops::RangeInclusive;

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};

use super::ForeignBackup;
use crate::backup::files::WAL_DIRECTORY;

/// The directory in it with a file for each segment that is archived.
const STATUS: &[u8] = b"archive_status";

/// The directories in it.
const DIRECTORIES: [&[u8]; 2] = [STATUS, b"summaries"];

/// The WAL of one backup.
#[derive(Debug)]
pub(crate) struct OwnWal(RangeInclusive<SegmentName>);

impl OwnWal {
    pub(super) fn of(backup: &ForeignBackup) -> Self {
        let range = (backup.start_lsn, backup.stop_lsn);
        Self::between(range, backup.timeline, backup.segment_size)
    }

    /// That of a backup from a start to an end.
    pub(crate) fn between((start, stop): (Lsn, Lsn), timeline: TimelineId, size: SegmentSize) -> Self {
        let segment = |lsn| SegmentName::from_lsn(timeline, lsn, size);
        let last = Lsn(stop.0.saturating_sub(1)).max(start);
        Self(segment(start)..=segment(last))
    }

    /// Whether a file at this path belongs to the backup; those outside `pg_wal` do.
    pub(super) fn has(&self, path: &[u8]) -> bool {
        let Some(name) = path.strip_prefix(WAL_DIRECTORY) else {
            return true;
        };
        let status = name.strip_prefix(STATUS).and_then(|name| name.strip_prefix(b"/"));
        let name = match status {
            Some(status) => status
                .strip_suffix(b".done")
                .or_else(|| status.strip_suffix(b".ready")),
            None => Some(name),
        };
        let name = name.and_then(|name| std::str::from_utf8(name).ok()?.parse().ok());
        match name {
            Some(WalName::Segment(segment) | WalName::BackupHistory { segment, .. }) => {
                self.0.contains(&segment)
            }
            Some(WalName::History(_)) => true,
            Some(WalName::Partial(_)) | None => false,
        }
    }

    /// The same of a directory.
    pub(super) fn has_directory(&self, path: &[u8]) -> bool {
        path.strip_prefix(WAL_DIRECTORY)
            .is_none_or(|name| DIRECTORIES.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_backup_needs_belongs_to_it() {
        let name = |name: &str| name.parse::<SegmentName>().unwrap();
        let own = OwnWal(name("000000020000000000000005")..=name("000000020000000000000006"));
        for (path, is_own) in [
            ("base/5/1259", true),
            ("pg_wal/000000020000000000000005", true),
            ("pg_wal/000000020000000000000006", true),
            ("pg_wal/000000020000000000000007", false),
            ("pg_wal/000000020000000000000004", false),
            ("pg_wal/000000010000000000000005", false),
            ("pg_wal/000000020000000000000005.partial", false),
            ("pg_wal/000000020000000000000005.00000028.backup", true),
            ("pg_wal/00000002.history", true),
            ("pg_wal/archive_status/000000020000000000000005.done", true),
            ("pg_wal/archive_status/000000020000000000000008.done", false),
            ("pg_wal/archive_status/00000002.history.ready", true),
            ("pg_wal/passwd", false),
            ("pg_wal/x/000000020000000000000005", false),
        ] {
            assert_eq!(own.has(path.as_bytes()), is_own, "{path}");
        }
        for (path, is_own) in [
            ("pg_wal", true),
            ("pg_wal/archive_status", true),
            ("pg_wal/summaries", true),
            ("pg_wal/ssh", false),
            ("pg_xact", true),
        ] {
            assert_eq!(own.has_directory(path.as_bytes()), is_own, "{path}");
        }
    }
}
