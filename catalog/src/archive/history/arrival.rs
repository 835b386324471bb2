//! Checks whether an arriving file belongs to the archived history.

use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_link::FirstRecord;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};
use rusqlite::params;

use super::Fork;
use super::records::{Event, HistoryRecord};
use crate::archive::wal::{WalFile, link};
use crate::error::Result;
use crate::home::now;
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::index::writer::Writer;
use crate::names::ServerName;

/// Why a file is refused.
#[derive(Debug, Clone)]
pub(crate) enum Obstacle {
    /// It lies after a known fork.
    Behind(Fork),
    /// It reveals a new fork.
    Shows {
        timeline: TimelineId,
        lsn: Lsn,
        why: String,
    },
    /// It is a file of an abandoned history.
    Left,
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Behind(fork) => write!(f, "It lies behind a fork: {fork}"),
            Self::Shows { why, .. } => f.write_str(why),
            Self::Left => f.write_str("It is of a history that was left"),
        }
    }
}

impl Repository {
    /// What prevents archiving a file whose name is not in the archive. `link` is its first record.
    pub(crate) fn obstacle(&self, file: &WalFile, link: Option<FirstRecord>) -> Result<Option<Obstacle>> {
        if self.is_of_left_history(file)? {
            return Ok(Some(Obstacle::Left));
        }
        let WalName::Segment(name) = file.name else {
            return Ok(None);
        };
        let Ok(size) = SegmentSize::try_from(file.size_bytes) else {
            return Ok(None);
        };
        let open = self.open_forks(&file.server)?;
        for fork in open {
            if self.lies_behind(&file.server, name, size, &fork)? {
                return Ok(Some(Obstacle::Behind(fork)));
            }
        }
        self.broken_link(file, name, size, link)
    }

    /// Why a file whose name is not in the archive belongs to another history; none if it does not.
    pub(crate) fn other_history(&self, file: &WalFile) -> Result<Option<String>> {
        let link = match file.name {
            WalName::Segment(name) => self.link(file, name)?,
            _ => None,
        };
        let obstacle = self.obstacle(file, link)?;
        Ok(obstacle.map(|obstacle| obstacle.to_string()))
    }

    /// Whether a segment is at or after a fork, on its timeline or on one that branched off after the fork.
    fn lies_behind(
        &self,
        server: &ServerName,
        name: SegmentName,
        size: SegmentSize,
        fork: &Fork,
    ) -> Result<bool> {
        if name.timeline == fork.timeline {
            return Ok(name.start_lsn(size) >= fork.lsn.segment_start(size));
        }
        if name.timeline < fork.timeline {
            return Ok(false);
        }
        let history = self.readable_history(server, name.timeline)?;
        let left = history.and_then(|history| history.switch_point(fork.timeline));
        Ok(left.is_some_and(|left| left > fork.lsn))
    }

    /// The history of a timeline, if it is archived and readable.
    pub(super) fn readable_history(
        &self,
        server: &ServerName,
        timeline: TimelineId,
    ) -> Result<Option<TimelineHistory>> {
        match self.history(server, timeline) {
            Err(crate::Error::Invalid(_) | crate::Error::BadWalFile { .. }) => Ok(None),
            other => other,
        }
    }

    /// Whether these bytes are archived under this name in an abandoned history.
    pub(crate) fn is_of_left_history(&self, file: &WalFile) -> Result<bool> {
        self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT r.id, r.payload FROM decisions s JOIN wal w ON w.server = s.archive AND w.name = ?2
                 JOIN records r ON r.seq = w.record JOIN placed p ON p.id = r.id AND p.archive = s.archive
                 WHERE s.server = ?1",
            )?;
            let mut rows = query.query(params![file.server.as_str(), file.name.to_string()])?;
            while let Some(row) = rows.next()? {
                let (_, left) = records::of_row::<WalFile>(row)?;
                if left.map == file.map {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Checks both neighbours: the file's first record must name the last record of the previous segment, and the next
    /// segment must name the file's last record.
    fn broken_link(
        &self,
        file: &WalFile,
        name: SegmentName,
        size: SegmentSize,
        link: Option<FirstRecord>,
    ) -> Result<Option<Obstacle>> {
        let archive = self.wal(&file.server);
        if let Some(link) = link.filter(is_linked)
            && let Some(before) = self.segment_before(&file.server, name, size)?
            && let Some(before_file) = archive.find(&WalName::Segment(before))?
            && let Some(last) = readable(before, self.last_record(&before_file, before))
            && last != link.previous
        {
            return Ok(Some(Obstacle::Shows {
                timeline: before.timeline,
                lsn: before.start_lsn(size),
                why: format!(
                    "segment {name} does not continue {before}: its first record names {} as the one before, the archive has {last}",
                    link.previous
                ),
            }));
        }
        let after = name.next(size);
        if let Some(after_file) = archive.find(&WalName::Segment(after))?
            && let Some(link) = readable(after, self.link(&after_file, after)).filter(is_linked)
            && let Some(last) = link::known_last_start(file)
            && last != link.previous
        {
            return Ok(Some(Obstacle::Shows {
                timeline: name.timeline,
                lsn: name.start_lsn(size),
                why: format!(
                    "the archived segment {after} does not continue {name}: its first record names {} as the one before, not {last}",
                    link.previous
                ),
            }));
        }
        Ok(None)
    }

    /// The archived segment before this one: on its timeline or, for the first segment of a timeline, on the parent
    /// timeline.
    fn segment_before(
        &self,
        server: &ServerName,
        name: SegmentName,
        size: SegmentSize,
    ) -> Result<Option<SegmentName>> {
        let Some(start) = name.start_lsn(size).0.checked_sub(size.bytes()).map(Lsn) else {
            return Ok(None);
        };
        let archive = self.wal(server);
        let own = SegmentName::from_lsn(name.timeline, start, size);
        if archive.entry(&WalName::Segment(own))?.is_some() {
            return Ok(Some(own));
        }
        let Some(history) = self.readable_history(server, name.timeline)? else {
            return Ok(None);
        };
        let Some(parent) = history.entries().last() else {
            return Ok(None);
        };
        if parent.switch_lsn < name.start_lsn(size) {
            return Ok(None);
        }
        let of_parent = SegmentName::from_lsn(parent.timeline, start, size);
        let known = archive.entry(&WalName::Segment(of_parent))?.is_some();
        Ok(known.then_some(of_parent))
    }
}

/// After `pg_resetwal` new WAL begins in the same history, and its first record names no previous one.
fn is_linked(first: &FirstRecord) -> bool {
    first.previous != Lsn::INVALID
}

/// What was found in an archived segment. A segment that cannot be read counts as no evidence, so it never prevents
/// another one from being archived.
fn readable<T>(name: SegmentName, found: Result<Option<T>>) -> Option<T> {
    found.unwrap_or_else(|error| {
        tracing::debug!("Archived segment {name} is not compared with its neighbour: {error}");
        None
    })
}

impl Writer {
    /// Records that a timeline has two histories. If an open fork covers the position already, returns that one
    /// instead.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn record_fork(
        &self,
        server: &ServerName,
        (timeline, lsn, size): (TimelineId, Lsn, SegmentSize),
        why: &str,
        found_by: &str,
    ) -> Result<Fork> {
        let _lock = self
            .repository()
            .locks
            .wait_exclusive(&format!("history-{server}"), found_by)?;
        if let Some(known) = self
            .repository()
            .open_fork_before(server, (timeline, lsn, size))?
        {
            return Ok(known);
        }
        let body = HistoryRecord {
            server: server.clone(),
            timeline,
            lsn,
            at: now(),
            event: Event::Fork {
                why: why.to_owned(),
                found_by: found_by.to_owned(),
            },
        };
        let record = records::record(Kind::History, &body)?;
        let id = record.id;
        self.write_records(vec![record])?;
        Ok(Fork {
            id,
            timeline,
            lsn,
            found_at: body.at,
            found_by: found_by.to_owned(),
            why: why.to_owned(),
            decided: None,
        })
    }
}
