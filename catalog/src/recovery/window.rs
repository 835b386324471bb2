//! From when on and up to when a server can be recovered.

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::wal_scan::Fragment;
use barmanfs_pg::{Lsn, SegmentSize};

use crate::archive::backup::{Backup, BackupStatus};
use crate::archive::wal::confine::index_of_plain;
use crate::error::Result;
use crate::index::repository::Repository;
use crate::names::ServerName;
use crate::recovery::{Reach, Target, TargetSpec, Unreachable};

/// The earliest and the newest state that can be recovered. What is between them can be recovered except in gaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryWindow {
    /// The end of the first backup; `None` if there is no complete backup.
    pub earliest: Option<Reach>,
    /// The target `now`; `None` if it cannot be reached.
    pub newest: Option<Reach>,
}

/// What is known of a record that begins in what can be recovered, and goes on behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CrossingRecord {
    /// Nothing: there may be one.
    Unknown,
    /// It ends no transaction, nor does it matter for recovery otherwise.
    Other,
    /// Its beginning.
    Begun(Fragment),
}

impl Repository {
    /// The record that begins in the last segment before the end of what can be recovered, and is not complete there.
    ///
    /// # Errors
    /// When the catalog or the spool cannot be read.
    pub fn crossing_record(
        &self,
        server: &ServerName,
        newest: &Reach,
        size: SegmentSize,
    ) -> Result<CrossingRecord> {
        if newest.lsn.segment_offset(size) != 0 {
            return Ok(CrossingRecord::Unknown);
        }
        let before = Lsn(newest.lsn.0.saturating_sub(1));
        let name = SegmentName::from_lsn(newest.timeline, before, size);
        let spooled = self.receiving(server)?;
        let index = match spooled.iter().find(|segment| segment.name == name) {
            Some(spooled) => index_of_plain(name, &spooled.path, spooled.size_bytes)?,
            None => {
                let archived = self.wal(server).find(&WalName::Segment(name))?;
                archived.and_then(|file| file.index)
            }
        };
        Ok(match index.map(|index| (index.tail, index.crosses_from)) {
            Some((Some(tail), _)) => CrossingRecord::Begun(tail),
            Some((None, Some(_))) => CrossingRecord::Other,
            Some((None, None)) | None => CrossingRecord::Unknown,
        })
    }

    /// The earliest and the newest state of a server that can be recovered; `backups` are all of the server. Unlike
    /// [`timelines`](Self::timelines), this does not read a row for each segment.
    ///
    /// # Errors
    /// When the catalog, or a segment in the spool, cannot be read.
    pub fn recovery_window(&self, server: &ServerName, backups: &[Backup]) -> Result<RecoveryWindow> {
        let own = |backup: &&Backup| backup.is_of_current_history();
        Ok(RecoveryWindow {
            earliest: earliest(backups.iter().filter(own)),
            newest: self.newest(server)?,
        })
    }

    pub(super) fn newest(&self, server: &ServerName) -> Result<Option<Reach>> {
        let plan = match self.plan(server, &Target::Now.into())? {
            // Everything before it can be recovered.
            Err(Unreachable::Minimal { lsn, .. }) => {
                let spec = TargetSpec {
                    inclusive: false,
                    ..Target::Lsn(lsn).into()
                };
                self.plan(server, &spec)?
            }
            Err(Unreachable::Damaged {
                last_record: Some(lsn),
                ..
            }) => self.plan(server, &Target::Lsn(lsn).into())?,
            plan => plan,
        };
        Ok(plan.ok().map(|plan| Reach {
            backup: plan.backup.id,
            timeline: plan.timeline,
            lsn: plan.path.last().and_then(|span| span.to).unwrap_or_default(),
            time: plan.reaches.or(plan.backup.end_time),
            is_commit: plan.reaches.is_some(),
            receiving: plan.ends_in_partial,
        }))
    }
}

/// The end of the first of these backups that is DONE.
pub(super) fn earliest<'a>(backups: impl Iterator<Item = &'a Backup>) -> Option<Reach> {
    let done = backups.filter(|backup| backup.status == BackupStatus::Done && !backup.is_snapshot());
    let first = done.min_by_key(|backup| backup.id)?;
    Some(Reach {
        backup: first.id,
        timeline: first.timeline?,
        lsn: first.stop_lsn?,
        time: first.end_time,
        is_commit: false,
        receiving: false,
    })
}
