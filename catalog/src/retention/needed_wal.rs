//! Which archived WAL the backups of a server need.
//!
//! A backup that anchors recovery needs all WAL from its start on: of its own timeline, and of each timeline that left
//! it, directly or by way of others, at or after its start. A backup that serves only its own end needs the segments
//! from its start to its end. Never removed are history files; timelines of unknown origin that may have left an anchor;
//! the newest timeline, as long as no backup was taken on it; and anything at all as long as there is no anchor.

use std::collections::BTreeMap;

use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};
use rusqlite::{OptionalExtension, params};

use crate::archive::backup::{Backup, BackupStatus};
use crate::archive::wal::SegmentRange;
use crate::error::{Error, Result};
use crate::index::repository::Repository;
use crate::names::ServerName;

/// A place where recovery can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Anchor {
    timeline: TimelineId,
    start: Lsn,
    size: SegmentSize,
}

/// The WAL of a backup between its start and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Island {
    timeline: TimelineId,
    start: Lsn,
    stop: Lsn,
    size: SegmentSize,
}

/// What a server's backups need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    anchors: Vec<Anchor>,
    islands: Vec<Island>,
}

/// The WAL of a timeline that is needed, apart from islands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    All,
    From(SegmentName),
    Nothing,
}

impl Needs {
    /// What these backups need if each of them anchors recovery.
    pub(super) fn of_all(backups: &[&Backup]) -> Self {
        let mut needs = Self::default();
        backups.iter().for_each(|backup| needs.add(backup, false));
        needs
    }

    /// Adds a backup. Those of clones and of histories that were left need nothing of the server's archive.
    pub(super) fn add(&mut self, backup: &Backup, only_its_end: bool) {
        let counts = matches!(backup.status, BackupStatus::Done | BackupStatus::WaitingForWals);
        let place = backup.timeline.zip(backup.start_lsn).zip(backup.stop_lsn);
        let Some(((timeline, start), stop)) = place.filter(|_| counts && backup.is_of_current_history())
        else {
            return;
        };
        let size = backup.segment_size;
        match only_its_end {
            true => self.islands.push(Island {
                timeline,
                start,
                stop,
                size,
            }),
            false => self.anchors.push(Anchor {
                timeline,
                start,
                size,
            }),
        }
    }

    fn of_timeline(&self, timeline: TimelineId, histories: &Histories) -> Need {
        let own = self.anchors.iter().filter(|anchor| anchor.timeline == timeline);
        let first = own.map(|anchor| anchor.start.segment_start(anchor.size)).min();
        let size = self
            .anchors
            .first()
            .map_or(SegmentSize::DEFAULT, |anchor| anchor.size);
        let from = first.map(|start| SegmentName::from_lsn(timeline, start, size));
        let is_reached = match histories.of(timeline) {
            // It may have left any timeline before it.
            Origin::Unknown => self.anchors.iter().any(|anchor| anchor.timeline < timeline),
            Origin::Known(history) => self.anchors.iter().any(|anchor| {
                let left = history.switch_point(anchor.timeline);
                left.is_some_and(|left| left >= anchor.start)
            }),
        };
        match from {
            _ if is_reached => Need::All,
            Some(first) => Need::From(first),
            None if timeline >= histories.newest() => Need::All,
            None => Need::Nothing,
        }
    }

    /// The ranges of a timeline that nothing needs, in order.
    fn unneeded(&self, timeline: TimelineId, histories: &Histories) -> Vec<SegmentRange> {
        let end = match self.of_timeline(timeline, histories) {
            Need::All => return Vec::new(),
            Need::From(first) => first,
            Need::Nothing => end_of(timeline),
        };
        let mut islands: Vec<&Island> = self
            .islands
            .iter()
            .filter(|island| island.timeline == timeline)
            .collect();
        islands.sort_by_key(|island| island.start);
        let mut ranges = Vec::new();
        // Everything before this name is needed or in a range.
        let mut from = beginning_of(timeline);
        let mut close = |from: SegmentName, to: SegmentName| {
            if let Some(last) = to.name_below().filter(|last| *last >= from) {
                ranges.push(SegmentRange { first: from, last });
            }
        };
        for island in islands {
            let first = SegmentName::from_lsn(timeline, island.start, island.size);
            let behind = Lsn(island.stop.0.saturating_sub(1)).max(island.start);
            let last = SegmentName::from_lsn(timeline, behind, island.size);
            if first >= end {
                break;
            }
            close(from, first);
            from = from.max(last.name_above());
        }
        if from < end {
            close(from, end);
        }
        ranges
    }
}

/// The first name of a timeline.
fn beginning_of(timeline: TimelineId) -> SegmentName {
    SegmentName {
        timeline,
        log: 0,
        seg: 0,
    }
}

/// A name behind all names of a timeline.
fn end_of(timeline: TimelineId) -> SegmentName {
    SegmentName {
        timeline,
        log: u32::MAX,
        seg: u32::MAX,
    }
}

/// Where a timeline comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Known(TimelineHistory),
    Unknown,
}

/// The timelines of a server.
#[derive(Debug, Default)]
struct Histories(BTreeMap<TimelineId, Origin>);

impl Histories {
    fn of(&self, timeline: TimelineId) -> Origin {
        match self.0.get(&timeline) {
            Some(origin) => origin.clone(),
            None => Origin::Unknown,
        }
    }

    fn newest(&self) -> TimelineId {
        self.0.keys().next_back().copied().unwrap_or(TimelineId(1))
    }
}

impl Repository {
    /// The ranges of a server's archive that nothing needs.
    pub(super) fn unneeded_wal(&self, server: &ServerName, needs: &Needs) -> Result<Vec<SegmentRange>> {
        if needs.anchors.is_empty() {
            return Ok(Vec::new());
        }
        let histories = self.timeline_origins(server, needs)?;
        let timelines = histories.0.keys();
        Ok(timelines
            .flat_map(|timeline| needs.unneeded(*timeline, &histories))
            .collect())
    }

    /// The timelines of which anything is archived, or on which a backup was taken.
    fn timeline_origins(&self, server: &ServerName, needs: &Needs) -> Result<Histories> {
        let mut histories = Histories::default();
        let mut timelines = self.archived_timelines(server)?;
        timelines.extend(needs.anchors.iter().map(|anchor| anchor.timeline));
        for timeline in timelines {
            let origin = match self.history(server, timeline) {
                Ok(Some(history)) => Origin::Known(history),
                Ok(None) if timeline == TimelineId(1) => {
                    Origin::Known(TimelineHistory::without_ancestors(timeline))
                }
                Ok(None) | Err(Error::BadWalFile { .. }) => Origin::Unknown,
                Err(error) => return Err(error),
            };
            histories.0.insert(timeline, origin);
        }
        Ok(histories)
    }

    /// The timelines of the archived files: one look-up for each, however many files it has.
    fn archived_timelines(&self, server: &ServerName) -> Result<Vec<TimelineId>> {
        self.db.read(|db| {
            let mut next = db.prepare_cached(
                "SELECT substr(name, 1, 8) FROM wal WHERE server = ?1 AND name > ?2 ORDER BY name LIMIT 1",
            )?;
            let mut timelines = Vec::new();
            let mut after = String::new();
            loop {
                let found: Option<String> = next
                    .query_row(params![server.as_str(), after], |row| row.get(0))
                    .optional()?;
                let Some(timeline) = found else {
                    return Ok(timelines);
                };
                timelines.extend(u32::from_str_radix(&timeline, 16).map(TimelineId));
                // 'G' sorts behind every hexadecimal digit and the dot.
                after = format!("{timeline}G");
            }
        })
    }
}

#[cfg(test)]
mod tests;
