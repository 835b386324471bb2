//! What can be recovered from: timelines, their WAL, the gaps in it, backups and restore points.

use std::collections::BTreeMap;

use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId, TimestampMicros};
use rusqlite::{OptionalExtension, params};

use crate::archive::backup::{Backup, BackupStatus};
use crate::archive::wal::SegmentRange;
use crate::error::{Error, Result};
use crate::index::repository::Repository;
use crate::names::ServerName;
use crate::recovery::TimelineSpan;
use crate::recovery::plan::bad_history_advice;
use crate::recovery::window::earliest;

mod gaps;
mod report;

pub use report::{
    BackupPlace, Gap, MinimalStretch, Parent, Reach, RestorePointPlace, Timeline, TimelineReport,
    UnreadableFile, WalRange,
};

/// The archived segments of each timeline, as ranges.
type Ranges = BTreeMap<TimelineId, Vec<WalRange>>;

/// Whether recovery may begin with a backup.
fn leads_on(backup: &Backup) -> bool {
    backup.is_complete() && backup.is_of_current_history()
}

impl UnreadableFile {
    fn history(server: &ServerName, timeline: TimelineId, name: WalName, reason: String) -> Self {
        let advice = bad_history_advice(server, timeline);
        Self { name, reason, advice }
    }

    fn damaged(server: &ServerName, name: SegmentName) -> Self {
        Self {
            name: WalName::Segment(name),
            reason: "It is damaged, and recovery over it ends with an error".to_owned(),
            advice: format!(
                "'barmanfs wal-archive {server} PATH/{name}' stores it again where somebody still has it; a backup taken now leads past it"
            ),
        }
    }
}

impl Repository {
    /// What a server can be recovered from. This takes a few milliseconds for each ten thousand segments.
    ///
    /// # Errors
    /// When the catalog or a history file cannot be read.
    pub fn timelines(&self, server: &ServerName) -> Result<TimelineReport> {
        let backups = self.backups(server)?;
        let size = self.size_of_segments(server, &backups)?;
        let (survey, timelines, mut unreadable) = self.look(server, &backups, self.ranges(server, size)?)?;
        let damaged = self.damaged_segments(server)?;
        unreadable.extend(
            damaged
                .into_iter()
                .map(|name| UnreadableFile::damaged(server, name)),
        );
        let gaps = survey.gaps(&timelines);
        let minimal = self.minimal_starts(server)?;
        let minimal = minimal
            .into_iter()
            .map(|(timeline, lsn)| survey.minimal(timeline, lsn))
            .collect();
        let mut points = self.restore_points(server)?;
        let timelines = timelines
            .into_iter()
            .map(|(id, ranges)| survey.timeline(id, ranges, points.remove(&id).unwrap_or_default()))
            .collect();
        Ok(TimelineReport {
            server: server.clone(),
            timelines,
            gaps,
            minimal,
            unreadable,
            earliest: earliest(survey.backups.iter()),
            newest: self.newest(server)?,
            forks: self.open_forks(server)?,
        })
    }

    /// The size of a server's segments, by its complete backups.
    fn size_of_segments(&self, server: &ServerName, backups: &[Backup]) -> Result<SegmentSize> {
        Ok(match backups.iter().rfind(|backup| leads_on(backup)) {
            Some(backup) => backup.segment_size,
            None => self
                .archived_segment_size(server)?
                .unwrap_or(SegmentSize::DEFAULT),
        })
    }

    /// What a report is made of: the ranges of all timelines, those of backups and of history files too, and the files that
    /// cannot be read.
    fn look(
        &self,
        server: &ServerName,
        backups: &[Backup],
        mut timelines: Ranges,
    ) -> Result<(Survey, Ranges, Vec<UnreadableFile>)> {
        let backups: Vec<Backup> = backups
            .iter()
            .filter(|backup| leads_on(backup))
            .cloned()
            .collect();
        for backup in &backups {
            timelines
                .entry(backup.timeline.unwrap_or(TimelineId(1)))
                .or_default();
        }
        for name in self.history_files(server)? {
            timelines.entry(name).or_default();
        }
        let (histories, unreadable) = self.history_of_each(server, timelines.keys().copied())?;
        let survey = Survey {
            removed: self.removed_wal(server)?,
            size: self.size_of_segments(server, &backups)?,
            backups,
            histories,
        };
        Ok((survey, timelines, unreadable))
    }

    /// The histories of these timelines, and the files that cannot be read; such a timeline is without ancestors.
    fn history_of_each(
        &self,
        server: &ServerName,
        timelines: impl Iterator<Item = TimelineId>,
    ) -> Result<(BTreeMap<TimelineId, TimelineHistory>, Vec<UnreadableFile>)> {
        let (mut histories, mut unreadable) = (BTreeMap::new(), Vec::new());
        for id in timelines {
            let history = match self.history(server, id) {
                Err(Error::BadWalFile { name, reason, .. }) => {
                    unreadable.push(UnreadableFile::history(server, id, name, reason));
                    None
                }
                other => other?,
            };
            histories.insert(
                id,
                history.unwrap_or_else(|| TimelineHistory::without_ancestors(id)),
            );
        }
        Ok((histories, unreadable))
    }

    /// The history files of the archive that cannot be used.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn unreadable_files(&self, server: &ServerName) -> Result<Vec<UnreadableFile>> {
        let mut unreadable = Vec::new();
        for id in self.history_files(server)? {
            match self.history(server, id) {
                Err(Error::BadWalFile { name, reason, .. }) => {
                    unreadable.push(UnreadableFile::history(server, id, name, reason));
                }
                other => drop(other?),
            }
        }
        Ok(unreadable)
    }

    pub(crate) fn archived_segment_size(&self, server: &ServerName) -> Result<Option<SegmentSize>> {
        let bytes: Option<u64> = self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT w.size_bytes FROM segments s JOIN wal w ON w.record = s.record WHERE s.server = ?1 LIMIT 1",
            )?;
            Ok(query.query_row([server.as_str()], |row| row.get(0)).optional()?)
        })?;
        Ok(bytes.and_then(|bytes| SegmentSize::try_from(bytes).ok()))
    }

    pub(crate) fn history_files(&self, server: &ServerName) -> Result<Vec<TimelineId>> {
        let names: Vec<String> = self.db.read(|db| {
            // The history file of a timeline is the first name of it: one look-up for each timeline. 'G' sorts behind all
            // names of a timeline.
            let mut query = db.prepare_cached(
                "WITH RECURSIVE firsts (name) AS (
                     SELECT min(name) FROM wal WHERE server = ?1
                     UNION ALL
                     SELECT (SELECT min(name) FROM wal WHERE server = ?1 AND name > substr(firsts.name, 1, 8) || 'G')
                     FROM firsts WHERE firsts.name IS NOT NULL
                 )
                 SELECT name FROM firsts WHERE name LIKE '%.history'",
            )?;
            let rows = query.query_map([server.as_str()], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        let names = names.iter().filter_map(|name| name.parse().ok());
        Ok(names.map(|name: WalName| name.timeline()).collect())
    }

    /// The archived segments of each timeline, as ranges.
    fn ranges(&self, server: &ServerName, size: SegmentSize) -> Result<Ranges> {
        self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT timeline, number, end_lsn, time_min, time_max, commits FROM segments
                 WHERE server = ?1 ORDER BY timeline, number",
            )?;
            let mut rows = query.query([server.as_str()])?;
            let mut found = Ranges::new();
            while let Some(row) = rows.next()? {
                let timeline = TimelineId(row.get(0)?);
                let time = |column| -> rusqlite::Result<Option<TimestampMicros>> {
                    Ok(row
                        .get::<_, Option<i64>>(column)?
                        .map(TimestampMicros::from_unix_micros))
                };
                let start = Lsn(row.get::<_, u64>(1)?.saturating_mul(size.bytes()));
                let name = SegmentName::from_lsn(timeline, start, size);
                let segment = WalRange {
                    first: name,
                    last: name,
                    segments: 1,
                    start_lsn: start,
                    end_lsn: Lsn(row.get::<_, i64>(2)?.cast_unsigned()),
                    from: time(3)?,
                    to: time(4)?,
                    commits: row.get(5)?,
                };
                let ranges = found.entry(timeline).or_default();
                match ranges.last_mut().filter(|range| range.last.next(size) == name) {
                    Some(range) => range.extend(&segment),
                    None => ranges.push(segment),
                }
            }
            Ok(found)
        })
    }

    fn minimal_starts(&self, server: &ServerName) -> Result<Vec<(TimelineId, Lsn)>> {
        self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT timeline, lsn FROM parameter_changes WHERE server = ?1 AND minimal ORDER BY timeline, lsn",
            )?;
            let rows = query.query_map([server.as_str()], |row| {
                Ok((TimelineId(row.get(0)?), Lsn(row.get::<_, i64>(1)?.cast_unsigned())))
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn restore_points(&self, server: &ServerName) -> Result<BTreeMap<TimelineId, Vec<RestorePointPlace>>> {
        self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT timeline, name, lsn, time FROM restore_points WHERE server = ?1 ORDER BY timeline, lsn",
            )?;
            let mut rows = query.query(params![server.as_str()])?;
            let mut found: BTreeMap<TimelineId, Vec<RestorePointPlace>> = BTreeMap::new();
            while let Some(row) = rows.next()? {
                found.entry(TimelineId(row.get(0)?)).or_default().push(RestorePointPlace {
                    name: row.get(1)?,
                    lsn: Lsn(row.get::<_, i64>(2)?.cast_unsigned()),
                    time: TimestampMicros::from_unix_micros(row.get(3)?),
                });
            }
            Ok(found)
        })
    }
}

impl WalRange {
    fn extend(&mut self, next: &Self) {
        self.last = next.last;
        self.segments += next.segments;
        self.end_lsn = next.end_lsn;
        self.from = [self.from, next.from].into_iter().flatten().min();
        self.to = self.to.max(next.to);
        self.commits += next.commits;
    }
}

/// The data that the report is made of.
struct Survey {
    size: SegmentSize,
    /// Complete backups, oldest first.
    backups: Vec<Backup>,
    histories: BTreeMap<TimelineId, TimelineHistory>,
    /// The ranges that retention has removed.
    removed: Vec<SegmentRange>,
}

impl Survey {
    fn timeline(
        &self,
        id: TimelineId,
        ranges: Vec<WalRange>,
        mut points: Vec<RestorePointPlace>,
    ) -> Timeline {
        let parent = self.parent(id);
        // Its first segment begins with a copy of the parent timeline's segment.
        points.retain(|point| {
            parent
                .as_ref()
                .is_none_or(|parent| point.lsn >= parent.switch_lsn)
        });
        let backups = self.backups.iter().filter(|backup| backup.timeline == Some(id));
        Timeline {
            timeline: id,
            parent,
            ranges,
            backups: backups
                .filter_map(|backup| {
                    Some(BackupPlace {
                        id: backup.id,
                        status: backup.status,
                        start_lsn: backup.start_lsn?,
                        stop_lsn: backup.stop_lsn?,
                        end_time: backup.end_time,
                    })
                })
                .collect(),
            restore_points: points,
        }
    }

    fn parent(&self, id: TimelineId) -> Option<Parent> {
        let last = self.histories.get(&id)?.entries().last()?;
        Some(Parent {
            timeline: last.timeline,
            switch_lsn: last.switch_lsn,
            reason: last.reason.clone(),
        })
    }

    /// The gaps of each timeline: between its ranges, before the first one if the timeline began earlier, and after the
    /// last one if another timeline branched off later.
    fn gaps(&self, timelines: &Ranges) -> Vec<Gap> {
        let number = |lsn: Lsn| lsn.segment_number(self.size);
        let mut gaps = Vec::new();
        for (id, ranges) in timelines {
            let Some((first, last)) = ranges.first().zip(ranges.last()) else {
                continue;
            };
            let mut missing = Vec::new();
            if let Some(parent) = self.parent(*id) {
                missing.push((number(parent.switch_lsn), number(first.start_lsn), None));
            }
            for (before, after) in ranges.iter().zip(ranges.iter().skip(1)) {
                missing.push((
                    number(before.last.start_lsn(self.size)) + 1,
                    number(after.start_lsn),
                    Some(before),
                ));
            }
            let left = timelines
                .iter()
                .filter(|(_, ranges)| !ranges.is_empty())
                .filter_map(|(child, _)| self.parent(*child).filter(|parent| parent.timeline == *id))
                .map(|parent| number(parent.switch_lsn))
                .max();
            if let Some(left) = left {
                missing.push((number(last.last.start_lsn(self.size)) + 1, left, Some(last)));
            }
            for (from, to, before) in missing {
                let lost = self.without_removed(*id, from, to);
                gaps.extend(lost.map(|(from, to)| self.gap(*id, from, to - 1, before)));
            }
        }
        gaps
    }

    /// The parts of a range of missing segments that nobody has removed. `from` is part of a range, `to` is not.
    fn without_removed(&self, timeline: TimelineId, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
        let number = |name: &SegmentName| name.start_lsn(self.size).segment_number(self.size);
        let mut left = Vec::new();
        let mut from = from;
        // They are sorted by their beginnings.
        for range in self
            .removed
            .iter()
            .filter(|range| range.first.timeline == timeline)
        {
            left.push((from, number(&range.first).min(to)));
            from = from.max(number(&range.last).saturating_add(1));
        }
        left.push((from, to));
        left.into_iter().filter(|(from, to)| from < to)
    }

    fn gap(&self, timeline: TimelineId, first: u64, last: u64, before: Option<&WalRange>) -> Gap {
        let start = |number: u64| Lsn(number.saturating_mul(self.size.bytes()));
        let name = |number: u64| SegmentName::from_lsn(timeline, start(number), self.size);
        let behind = start(last.saturating_add(1));
        // The backups on the way to the gap, and the backups after the gap, on this timeline or on a later one.
        let way = self.histories.get(&timeline);
        let leads_to_it = |backup: &&Backup| {
            let place = backup.timeline.zip(backup.stop_lsn);
            place.is_some_and(|(of, stop)| {
                stop <= start(first) && way.is_some_and(|way| way.contains(of, stop))
            })
        };
        let begins_behind = |backup: &&Backup| {
            let comes_after = |of: TimelineId| {
                of == timeline
                    || self
                        .histories
                        .get(&of)
                        .is_some_and(|way| way.switch_point(timeline).is_some())
            };
            backup.timeline.is_some_and(comes_after) && backup.start_lsn.is_some_and(|start| start >= behind)
        };
        let done = || {
            self.backups
                .iter()
                .filter(|backup| backup.status == BackupStatus::Done)
        };
        let backup_before = done().filter(leads_to_it).max_by_key(|backup| backup.stop_lsn);
        let backup_after = done().filter(begins_behind).min_by_key(|backup| backup.stop_lsn);
        Gap {
            timeline,
            first: name(first),
            last: name(last),
            count: last - first + 1,
            unreachable: TimelineSpan {
                timeline,
                from: before.map_or(start(first), |range| range.end_lsn),
                to: backup_after.and_then(|backup| backup.stop_lsn),
            },
            after: before.and_then(|range| range.to),
            until: backup_after.and_then(|backup| backup.end_time),
            backup_before: backup_before.map(|backup| backup.id),
            backup_after: backup_after.map(|backup| backup.id),
        }
    }

    fn minimal(&self, timeline: TimelineId, lsn: Lsn) -> MinimalStretch {
        let done = || {
            self.backups
                .iter()
                .filter(|backup| backup.status == BackupStatus::Done)
        };
        let way = self.histories.get(&timeline);
        let leads_to_it = |backup: &&Backup| {
            let place = backup.timeline.zip(backup.stop_lsn);
            place.is_some_and(|(of, stop)| stop <= lsn && way.is_some_and(|way| way.contains(of, stop)))
        };
        let begins_behind = |backup: &&Backup| {
            let later = |of: TimelineId| {
                of == timeline
                    || self
                        .histories
                        .get(&of)
                        .is_some_and(|way| way.switch_point(timeline).is_some())
            };
            backup.timeline.is_some_and(later) && backup.start_lsn.is_some_and(|start| start > lsn)
        };
        let before = done().filter(leads_to_it).max_by_key(|backup| backup.stop_lsn);
        let after = done().filter(begins_behind).min_by_key(|backup| backup.stop_lsn);
        MinimalStretch {
            timeline,
            lsn,
            backup_before: before.map(|backup| backup.id),
            backup_after: after.map(|backup| backup.id),
        }
    }
}
