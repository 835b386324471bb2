//! What belongs to a backup without being in it: the backups beside it, the WAL from its start to the next one's, and
//! configuration files from outside the data directory.

use barmanfs_catalog::{Backup, BackupId, Repository, SegmentTotals};
use barmanfs_pg::wal_name::SegmentName;
use serde::Serialize;

use crate::error::Error;

/// The surroundings of a backup.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Surroundings {
    /// The complete backup of the server before it.
    pub(crate) previous_backup: Option<BackupId>,
    /// The complete backup of the server after it.
    pub(crate) next_backup: Option<BackupId>,
    /// The archived WAL from the backup's first segment up to the next backup's, or to the end.
    pub(crate) wal: WalAfter,
    /// The paths of configuration files that the server keeps outside its data directory, and that were stored with the
    /// backup.
    pub(crate) configuration_files: Vec<String>,
}

/// Archived WAL.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct WalAfter {
    pub(crate) segments: u64,
    pub(crate) logical_bytes: u64,
    /// Bytes that it added to the repository.
    pub(crate) new_stored_bytes: u64,
    /// The last segment.
    pub(crate) last_available: Option<SegmentName>,
    /// Segments per hour between the first and the last arrival.
    pub(crate) segments_per_hour: Option<f64>,
}

impl Surroundings {
    /// Those of `backup`.
    pub(crate) fn of(repository: &Repository, backup: &Backup) -> Result<Self, Error> {
        let all = repository.backups(&backup.server)?;
        let beside = |other: &&Backup| {
            other.has_ended_well() && other.is_of_server() && other.archive() == backup.archive()
        };
        let next = all.iter().filter(beside).find(|other| other.id > backup.id);
        let previous = all.iter().filter(beside).rfind(|other| other.id < backup.id);
        let wal = match first_segment(backup) {
            Some(first) => {
                let end = next.and_then(first_segment);
                WalAfter::of(&repository.wal(backup.archive()).range(first, end)?)
            }
            None => WalAfter::default(),
        };
        Ok(Self {
            previous_backup: previous.map(|backup| backup.id),
            next_backup: next.map(|backup| backup.id),
            wal,
            configuration_files: match repository.configuration_files(backup)? {
                Some(files) => files.all(&repository.trees())?.into_keys().collect(),
                None => Vec::new(),
            },
        })
    }
}

impl WalAfter {
    fn of(found: &SegmentTotals) -> Self {
        let times = found.began.zip(found.ended);
        let micros = times.map(|(first, last)| last.unix_micros().saturating_sub(first.unix_micros()));
        #[expect(clippy::cast_precision_loss, reason = "a rate is shown with two digits")]
        let rate = |micros: i64| found.files as f64 * 3.6e9 / micros as f64;
        Self {
            segments: found.files,
            logical_bytes: found.logical_bytes,
            new_stored_bytes: found.new_stored_bytes,
            last_available: found.last,
            segments_per_hour: micros.filter(|micros| *micros > 0).map(rate),
        }
    }
}

/// The first segment that is replayed on a backup; `None` if no archived WAL is.
fn first_segment(backup: &Backup) -> Option<SegmentName> {
    if !backup.is_of_server() {
        return None;
    }
    let (timeline, start) = (backup.timeline?, backup.start_lsn?);
    Some(SegmentName::from_lsn(timeline, start, backup.segment_size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use barmanfs_pg::TimestampMicros;

    #[test]
    fn the_rate_is_that_between_the_first_and_the_last_arrival() {
        let stretch = |seconds: i64| SegmentTotals {
            files: 30,
            began: Some(TimestampMicros::from_unix_seconds(1000)),
            ended: Some(TimestampMicros::from_unix_seconds(1000 + seconds)),
            ..SegmentTotals::default()
        };
        assert_eq!(WalAfter::of(&stretch(1800)).segments_per_hour, Some(60.0));
        assert_eq!(WalAfter::of(&stretch(0)).segments_per_hour, None);
        assert_eq!(WalAfter::of(&SegmentTotals::default()), WalAfter::default());
    }
}
