//! Decides where the WAL of a stopped clone ends, and which of its segments a copy needs to start.
//!
//! After a clean shutdown, that is the segment with the shutdown checkpoint. In the backup it has only zeros after the
//! checkpoint, because the bytes there are remains of a recycled segment. Otherwise it is every segment from the
//! checkpoint's redo position on, for PostgreSQL's crash recovery. Segments that were recycled for later use have
//! another segment's first page. Recovery stops before them, and they are omitted.

use barmanfs_live::{Kind, NodeAttributes};
use barmanfs_pg::backup_manifest::WalRange;
use barmanfs_pg::pg_control::{ClusterState, ControlFile};
use barmanfs_pg::wal_check::{LONG_HEADER_BYTES, check_segment};
use barmanfs_pg::wal_name::{SegmentName, WalName, segments_between};
use barmanfs_pg::{Lsn, wal_record};

use super::OfflineClone;
use crate::error::Error;
use crate::made_manifest::WAL_DIRECTORY;

/// Path of the control file.
const CONTROL: &[u8] = b"global/pg_control";

/// A control file's size (`PG_CONTROL_FILE_SIZE`).
const CONTROL_BYTES: usize = 8192;

/// Files that exist until a recovery has ended, and determine how it continues.
const RECOVERING: [&[u8]; 3] = [b"backup_label", b"recovery.signal", b"standby.signal"];

/// The state in which a clone's server ended.
#[derive(Debug)]
pub(super) struct Position {
    pub(super) control: ControlFile,
    /// The end of the last checkpoint's record.
    pub(super) checkpoint_end: Lsn,
}

/// The part of a file in `pg_wal` that a copy needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needed {
    /// Nothing.
    No,
    /// All.
    All,
    /// This many bytes, followed by zeros.
    Beginning(u64),
}

impl Position {
    /// Reads the position. Refuses a clone whose recovery has not ended, because the clone does not hold everything
    /// that the recovery needs.
    pub(super) fn of(clone: &OfflineClone) -> Result<Self, Error> {
        for name in RECOVERING {
            if clone.find(name)?.is_some() {
                let description = &clone.description;
                return Err(Error::failed(format!(
                    "The recovery of {} has not ended: {} is still there",
                    clone.described(),
                    String::from_utf8_lossy(name)
                ))
                .hint(format!(
                    "Let it end first: barmanfs clone start {0} {1} --replay, then barmanfs clone stop {0} {1}",
                    description.server, description.name
                )));
            }
        }
        if let Some(found) = clone.find(WAL_DIRECTORY)?
            && found.kind == Kind::Symlink
        {
            let target = clone.files.readlink(found.node)?;
            return Err(clone
                .leads_out(WAL_DIRECTORY, &target)
                .hint("Move that directory to the link's place"));
        }
        let bytes = clone.read_small(CONTROL, CONTROL_BYTES)?.unwrap_or_default();
        let control = ControlFile::parse(&bytes)
            .map_err(|error| Error::failed(format!("{}: {error}", clone.described())))?;
        if control.state == ClusterState::StartingUp {
            return Err(Error::failed(format!(
                "{} has never been started",
                clone.described()
            )));
        }
        Ok(Self {
            checkpoint_end: checkpoint_end(clone, &control)?,
            control,
        })
    }

    /// Whether there is nothing to replay.
    pub(super) fn is_shut_down(&self) -> bool {
        self.control.state == ClusterState::ShutDown
    }

    /// From the last checkpoint's redo position to the checkpoint's end. This WAL can be read in any case.
    pub(super) fn range(&self) -> WalRange {
        WalRange {
            timeline: self.control.timeline,
            start_lsn: self.control.redo,
            end_lsn: self.checkpoint_end,
        }
    }

    /// The part of the file `name` in `pg_wal` that a copy needs.
    pub(super) fn needs(
        &self,
        clone: &OfflineClone,
        name: &[u8],
        found: &NodeAttributes,
    ) -> Result<Needed, Error> {
        let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
        match name {
            Some(WalName::History(_)) => Ok(Needed::All),
            Some(WalName::Segment(segment)) if found.kind == Kind::File => {
                self.needs_segment(clone, &segment, found)
            }
            _ => Ok(Needed::No),
        }
    }

    fn needs_segment(
        &self,
        clone: &OfflineClone,
        segment: &SegmentName,
        found: &NodeAttributes,
    ) -> Result<Needed, Error> {
        let ControlFile {
            segment_size: size,
            redo,
            timeline,
            ..
        } = self.control;
        // Replay continues to later timelines, never back to one before the checkpoint's.
        if segment.start_lsn(size) < redo.segment_start(size) || segment.timeline < timeline {
            return Ok(Needed::No);
        }
        if self.is_shut_down() {
            let left = self.checkpoint_end.checked_sub(segment.start_lsn(size));
            let left = left.filter(|left| *left > 0 && segment.timeline == timeline);
            return Ok(left.map_or(Needed::No, |left| {
                if left < size.bytes() {
                    Needed::Beginning(left)
                } else {
                    Needed::All
                }
            }));
        }
        let first = clone.read(found.node, 0, LONG_HEADER_BYTES)?;
        Ok(match check_segment(&first, segment, found.size_bytes) {
            Ok(_) => Needed::All,
            Err(_) => Needed::No,
        })
    }
}

/// The end of the last checkpoint's record. The WAL from the checkpoint's redo position up to there must be in
/// `pg_wal`.
fn checkpoint_end(clone: &OfflineClone, control: &ControlFile) -> Result<Lsn, Error> {
    let ControlFile {
        checkpoint,
        redo,
        timeline,
        segment_size: size,
        ..
    } = *control;
    let bad = |reason: String| {
        Error::failed(format!(
            "{} cannot be started: its last checkpoint, at {checkpoint}, cannot be read: {reason}",
            clone.described()
        ))
    };
    let mut end = None;
    for segment in segments_between(timeline, redo, Lsn(checkpoint.0.saturating_add(1)), size) {
        let path = format!("pg_wal/{segment}");
        let found = clone
            .find(path.as_bytes())?
            .filter(|found| found.kind == Kind::File)
            .ok_or_else(|| bad(format!("{path} is missing")))?;
        let first = clone.read(found.node, 0, LONG_HEADER_BYTES)?;
        let facts =
            check_segment(&first, &segment, found.size_bytes).map_err(|error| bad(error.to_string()))?;
        let offset = checkpoint.segment_offset(size);
        let record = clone.read(found.node, offset, wal_record::LENGTH_BYTES)?;
        end = wal_record::end_of_record(checkpoint, &record, &facts);
    }
    // From the last segment, in which the checkpoint's record begins.
    end.ok_or_else(|| bad("no record begins there".to_owned()))
}
