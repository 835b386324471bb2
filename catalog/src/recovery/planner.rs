//! Choosing the backup, the timelines and the end of the WAL for a target.

use std::io::Read;

use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::wal_scan::RecordFacts;
use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};
use jiff::tz::TimeZone;

use crate::backup::{Backup, BackupStatus};
use crate::error::{Error, Result};
use crate::recovery::segments::{Found, Route, Segments, is_after};
use crate::recovery::time::{server_zone, shown};
use crate::recovery::{Plan, Target, TargetSpec, TimeTarget, TimelineChoice, TimelineSpan, Unreachable};
use crate::repository::Repository;
use crate::server::ServerName;

/// A history file has a line for each timeline; no cluster has had more.
const HISTORY_BYTES_MAX: u64 = 1 << 20;

/// Why planning ended without a plan.
enum Halt {
    Failed(Error),
    Unreachable(Box<Unreachable>),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Unreachable> for Halt {
    fn from(reason: Unreachable) -> Self {
        Self::Unreachable(Box::new(reason))
    }
}

impl Repository {
    /// How to recover a server to a target, or why that cannot be done.
    ///
    /// # Errors
    /// When the catalog or a segment that has to be looked into cannot be read.
    pub fn plan(
        &self,
        server: &ServerName,
        spec: &TargetSpec,
    ) -> Result<std::result::Result<Plan, Unreachable>> {
        let planner = Planner {
            repository: self,
            server,
            spec,
            segments: Segments::of(self, server)?,
        };
        match planner.run() {
            Ok(plan) => Ok(Ok(plan)),
            Err(Halt::Unreachable(reason)) => Ok(Err(*reason)),
            Err(Halt::Failed(error)) => Err(error),
        }
    }

    /// The files of the archive that replaying `plan` asks for: the history files there are, then the segments in
    /// order. A segment the backup brought itself is among them, whether it is archived or not; so is the one still being
    /// received, under its full name.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn recovery_segments(&self, plan: &Plan) -> Result<impl Iterator<Item = WalName> + use<>> {
        let mut histories = Vec::new();
        for span in &plan.path {
            let name = WalName::History(span.timeline);
            if self.wal(&plan.backup.server).entry(&name)?.is_some() {
                histories.push(name);
            }
        }
        let target = WalName::History(plan.timeline);
        if !histories.contains(&target) && self.wal(&plan.backup.server).entry(&target)?.is_some() {
            histories.push(target);
        }
        let route = match self.history(&plan.backup.server, plan.timeline)? {
            Some(history) => Route::new(history, plan.backup.segment_size),
            None => Route::new(
                TimelineHistory::without_ancestors(plan.timeline),
                plan.backup.segment_size,
            ),
        };
        let number = |name: SegmentName| route.number(name.start_lsn(route.size));
        let segments = route
            .parts(number(plan.first_segment), number(plan.last_segment))
            .into_iter()
            .flat_map({
                let route = route.clone();
                move |(timeline, numbers)| {
                    let route = route.clone();
                    numbers.map(move |number| {
                        WalName::Segment(SegmentName::from_lsn(timeline, route.start(number), route.size))
                    })
                }
            });
        Ok(histories.into_iter().chain(segments))
    }

    /// The history of a timeline, from its archived file; none where that is not archived.
    pub(super) fn history(
        &self,
        server: &ServerName,
        timeline: TimelineId,
    ) -> Result<Option<TimelineHistory>> {
        let name = WalName::History(timeline);
        let Some(reader) = self.wal(server).open(&name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        reader
            .take(HISTORY_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::WalSource {
                name,
                source: std::sync::Arc::new(source),
            })?;
        let history = TimelineHistory::parse(&bytes, timeline).map_err(|error| {
            Error::Invalid(format!("The archived {name} of {server} cannot be read: {error}"))
        })?;
        Ok(Some(history))
    }
}

/// A complete backup.
#[derive(Debug, Clone)]
struct Start {
    backup: Backup,
    timeline: TimelineId,
    start: Lsn,
    stop: Lsn,
}

impl Start {
    fn of(backup: Backup) -> Option<Self> {
        let (timeline, start, stop) = (backup.timeline?, backup.start_lsn?, backup.stop_lsn?);
        (backup.status == BackupStatus::Done).then_some(Self {
            backup,
            timeline,
            start,
            stop,
        })
    }
}

/// Where replay ends.
#[derive(Debug)]
struct End {
    /// The last segment that is needed.
    number: u64,
    /// The position, as far as it is known.
    lsn: Option<Lsn>,
    partial: bool,
    reaches: Option<TimestampMicros>,
    notes: Vec<String>,
}

struct Planner<'a> {
    repository: &'a Repository,
    server: &'a ServerName,
    spec: &'a TargetSpec,
    segments: Segments<'a>,
}

impl Planner<'_> {
    fn run(&self) -> std::result::Result<Plan, Halt> {
        let starts = self.starts()?;
        let (time, zone_note) = self.time(&starts);
        let candidates = self.candidates(starts)?;
        let mut reason: Option<Halt> = None;
        let mut hopeless: Option<TimelineId> = None;
        for (start, route) in &candidates {
            if hopeless == Some(route.timeline) {
                continue;
            }
            match self.end(start, route, time) {
                Ok(Some(mut end)) => {
                    end.notes.extend(zone_note);
                    return Ok(self.plan(start, route, end, time));
                }
                Ok(None) => {}
                Err(Halt::Failed(error)) => return Err(error.into()),
                // What stands in the way of this backup does so for all before it.
                Err(unreachable) => {
                    hopeless = Some(route.timeline);
                    reason.get_or_insert(unreachable);
                }
            }
        }
        let first = candidates
            .iter()
            .map(|(start, _)| start)
            .min_by_key(|start| start.stop);
        Err(reason.unwrap_or_else(|| match first {
            Some(first) => Unreachable::BeforeBackups {
                first: first.backup.id,
                lsn: first.stop,
                time: first.backup.end_time,
            }
            .into(),
            None => Unreachable::NoBackup.into(),
        }))
    }

    /// The backups that can be started from, or the one that was asked for.
    fn starts(&self) -> std::result::Result<Vec<Start>, Halt> {
        let mut backups = self.repository.backups(self.server)?;
        if let Some(wanted) = self.spec.backup {
            backups.retain(|backup| backup.id == wanted);
            let bad = |why: String| Unreachable::BadBackup { backup: wanted, why };
            match backups.first() {
                None => return Err(bad("there is none of this id".to_owned()).into()),
                Some(backup) if backup.status != BackupStatus::Done => {
                    return Err(bad(format!("it is {}", backup.status)).into());
                }
                Some(_) => {}
            }
        }
        let starts: Vec<Start> = backups.into_iter().filter_map(Start::of).collect();
        if starts.is_empty() {
            return Err(Unreachable::NoBackup.into());
        }
        Ok(starts)
    }

    /// The moment of a time target, and what to say about its zone.
    fn time(&self, starts: &[Start]) -> (Option<TimestampMicros>, Option<String>) {
        let Target::Time(time) = self.spec.target else {
            return (None, None);
        };
        let name = starts
            .iter()
            .rev()
            .find_map(|start| start.backup.timezone.as_deref());
        let zone = name.and_then(server_zone);
        let said = match (time, name, &zone) {
            (TimeTarget::At(_), _, _) => None,
            (TimeTarget::Local(_), Some(name), Some(_)) => Some(format!(
                "The time says no zone: it is read in the server's, {name}"
            )),
            (TimeTarget::Local(_), Some(name), None) => Some(format!(
                "The time says no zone and the server's, {name}, is not known here: it is read as UTC"
            )),
            (TimeTarget::Local(_), None, _) => {
                Some("The time says no zone and the server's is not known: it is read as UTC".to_owned())
            }
        };
        (Some(time.resolve(&zone.unwrap_or(TimeZone::UTC))), said)
    }

    /// The backups that lie on the way to the timeline, newest first, each with its way.
    fn candidates(&self, starts: Vec<Start>) -> std::result::Result<Vec<(Start, Route)>, Halt> {
        let mut candidates = Vec::new();
        if self.spec.timeline == TimelineChoice::Current {
            for start in starts {
                let route = self.route(start.timeline, &start)?;
                candidates.push((start, route));
            }
            candidates.sort_by_key(|(start, _)| start.backup.id);
        } else {
            let Some(newest) = starts.last().cloned() else {
                return Err(Unreachable::NoBackup.into());
            };
            let timeline = match self.spec.timeline {
                TimelineChoice::Id(id) => id,
                _ => self.latest(&starts)?,
            };
            let route = self.route(timeline, &newest)?;
            candidates = starts
                .into_iter()
                .filter(|start| route.contains(start.timeline, start.stop))
                .map(|start| (start, route.clone()))
                .collect();
            if candidates.is_empty() {
                return Err(Unreachable::NoBackupOnTimeline {
                    timeline,
                    other: Some(newest.backup.id),
                    other_timeline: Some(newest.timeline),
                }
                .into());
            }
            candidates.sort_by_key(|(start, _)| start.stop);
        }
        candidates.reverse();
        Ok(candidates)
    }

    /// The newest timeline PostgreSQL finds from one of the backups: it asks for one history file after the other.
    fn latest(&self, starts: &[Start]) -> Result<TimelineId> {
        let mut newest = TimelineId(1);
        for start in starts {
            let mut timeline = start.timeline;
            loop {
                let next = TimelineId(timeline.0.saturating_add(1));
                if next == timeline
                    || self
                        .repository
                        .wal(self.server)
                        .entry(&WalName::History(next))?
                        .is_none()
                {
                    break;
                }
                timeline = next;
            }
            newest = newest.max(timeline);
        }
        Ok(newest)
    }

    fn route(&self, timeline: TimelineId, start: &Start) -> std::result::Result<Route, Halt> {
        let history = match self.repository.history(self.server, timeline)? {
            Some(history) => history,
            None if timeline == start.timeline || self.segments.has_timeline(timeline) => {
                TimelineHistory::without_ancestors(timeline)
            }
            None => {
                return Err(Unreachable::NoTimeline {
                    timeline,
                    known: Vec::new(),
                }
                .into());
            }
        };
        Ok(Route::new(history, start.backup.segment_size))
    }

    /// Where replay from this backup ends; none where the target lies before the backup's end.
    fn end(
        &self,
        start: &Start,
        route: &Route,
        time: Option<TimestampMicros>,
    ) -> std::result::Result<Option<End>, Halt> {
        match (&self.spec.target, time) {
            (Target::Now, _) => self.to_now(start, route).map(Some),
            (Target::Immediate, _) => Ok(Some(End {
                number: route.number_before(start.stop),
                lsn: Some(start.stop),
                partial: false,
                reaches: None,
                notes: Vec::new(),
            })),
            (Target::Lsn(lsn), _) => self.to_lsn(start, route, *lsn),
            (Target::Xid(xid), _) => self.to_xid(start, route, *xid),
            (Target::Name(name), _) => self.to_name(start, route, name),
            (Target::Time(_), Some(time)) => self.to_time(start, route, time),
            (Target::Time(_), None) => Ok(None),
        }
    }

    /// The first segment the archive must have: a backup may have brought its own.
    fn archived_from(start: &Start, route: &Route) -> u64 {
        if start.backup.wal_included {
            route.number_before(start.stop) + 1
        } else {
            route.number(start.start)
        }
    }

    fn to_now(&self, start: &Start, route: &Route) -> std::result::Result<End, Halt> {
        let from = Self::archived_from(start, route);
        let missing = self.segments.first_missing(route, from)?;
        let broken = self.segments.first_broken(route, from, missing)?;
        let mut notes = Vec::new();
        if let Some(next) = self.segments.first_present(route, missing)? {
            notes.push(format!(
                "WAL is missing from {} on; what is archived from {} on is not reached",
                route.name(missing),
                route.name(next)
            ));
        }
        let number = broken.map_or(missing.saturating_sub(1), |row| row.number);
        Ok(End {
            number,
            lsn: self.segments.row(route, number)?.map(|row| row.index.end_lsn),
            partial: false,
            reaches: self.newest(route, route.number(start.start), number)?,
            notes,
        })
    }

    fn to_lsn(&self, start: &Start, route: &Route, lsn: Lsn) -> std::result::Result<Option<End>, Halt> {
        if lsn < start.stop {
            return Ok(None);
        }
        let wanted = route.number(lsn);
        let in_it = self
            .segments
            .row(route, wanted)?
            .is_some_and(|row| row.index.last_lsn.is_some_and(|last| last >= lsn));
        let number = if in_it {
            Some(wanted)
        } else {
            self.segments
                .first_with_records(route, wanted + 1)?
                .map(|row| row.number)
        };
        let number = match number {
            Some(number) => number,
            None => {
                let what = format!("No record at or after {lsn} is archived");
                return Err(self.after_end(start, route, what)?);
            }
        };
        self.check_way(start, route, number)?;
        Ok(Some(End {
            number,
            lsn: Some(lsn),
            partial: false,
            reaches: self.newest(route, route.number(start.start), wanted.saturating_sub(1))?,
            notes: Vec::new(),
        }))
    }

    fn to_xid(&self, start: &Start, route: &Route, xid: u32) -> std::result::Result<Option<End>, Halt> {
        let found = self.find_xid(route, xid)?;
        let Some(found) = found else {
            let what = format!("No commit or abort of transaction {xid} is archived");
            return Err(self.after_end(start, route, what)?);
        };
        if found.lsn < start.stop {
            return Ok(None);
        }
        self.check_way(start, route, found.last_number)?;
        Ok(Some(Self::at(&found)))
    }

    fn find_xid(&self, route: &Route, xid: u32) -> Result<Option<Found>> {
        for number in self.segments.with_xid(route, 0, xid)? {
            let found = self.segments.find_record(route, number, &mut |_, facts| {
                matches!(facts, RecordFacts::Commit { xid: other, .. } | RecordFacts::Abort { xid: other, .. } if *other == xid)
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Replay stops at the first point of the name after the backup's start.
    fn to_name(&self, start: &Start, route: &Route, name: &str) -> std::result::Result<Option<End>, Halt> {
        let points = self.segments.restore_points(route, name)?;
        let Some(&(lsn, time)) = points.iter().rev().find(|(lsn, _)| *lsn >= start.start) else {
            if points.is_empty() {
                let what = format!("No restore point '{name}' is archived");
                return Err(self.after_end(start, route, what)?);
            }
            return Ok(None);
        };
        if lsn < start.stop {
            return Ok(None);
        }
        let number = route.number(lsn);
        let last = self
            .segments
            .find_record(route, number, &mut |at, _| at == lsn)?
            .map_or(number, |found| found.last_number);
        self.check_way(start, route, last)?;
        Ok(Some(End {
            number: last,
            lsn: Some(lsn),
            partial: false,
            reaches: Some(time),
            notes: Vec::new(),
        }))
    }

    fn at(found: &Found) -> End {
        let reaches = match found.facts {
            RecordFacts::Commit { time, .. } | RecordFacts::Abort { time, .. } => Some(time),
            _ => None,
        };
        End {
            number: found.last_number,
            lsn: Some(found.lsn),
            partial: false,
            reaches,
            notes: Vec::new(),
        }
    }

    fn to_time(
        &self,
        start: &Start,
        route: &Route,
        time: TimestampMicros,
    ) -> std::result::Result<Option<End>, Halt> {
        if time < start.backup.begin_time {
            return Ok(None);
        }
        let inclusive = self.spec.inclusive;
        let mut from = route.number(start.start);
        if self.committed_before(start, route, time)? {
            return Ok(None);
        }
        loop {
            let Some(row) = self.segments.first_after(route, from, time, inclusive)? else {
                let what = format!("Nothing committed after {} is archived", shown(time));
                return Err(self.after_end(start, route, what)?);
            };
            let (number, begin) = (row.number, route.start(row.number));
            if begin >= start.stop {
                self.check_way(start, route, number)?;
                return Ok(Some(End {
                    number: self.segments.crossing_end(route, number)?.unwrap_or(number),
                    lsn: None,
                    partial: false,
                    reaches: self.newest(route, route.number(start.start), number.saturating_sub(1))?,
                    notes: Vec::new(),
                }));
            }
            let found = self.segments.find_record(route, number, &mut |lsn, facts| {
                lsn >= start.start && ends_after(facts, time, inclusive)
            })?;
            match found {
                Some(found) if found.lsn >= start.stop => {
                    self.check_way(start, route, found.last_number)?;
                    return Ok(Some(End {
                        reaches: None,
                        ..Self::at(&found)
                    }));
                }
                Some(_) => return Ok(None),
                None => from = number + 1,
            }
        }
    }

    /// Whether the backup already holds a commit later than the time: PostgreSQL would not notice.
    fn committed_before(&self, start: &Start, route: &Route, time: TimestampMicros) -> Result<bool> {
        let number = route.number(start.start);
        let late = |max: Option<TimestampMicros>| max.is_some_and(|max| is_after(max, time, true));
        if let Some(row) = self.segments.row(route, number)?
            && late(row.index.commit_time_max)
        {
            let found = self.segments.find_record(route, number, &mut |lsn, facts| {
                lsn < start.start && ends_after(facts, time, true)
            })?;
            return Ok(found.is_some());
        }
        let before = self
            .segments
            .last_with_commits(route, 0, number.saturating_sub(1))?;
        Ok(before.is_some_and(|row| late(row.index.commit_time_max)))
    }

    /// That nothing is missing between the backup and segment `to`.
    fn check_way(&self, start: &Start, route: &Route, to: u64) -> std::result::Result<(), Halt> {
        let from = Self::archived_from(start, route);
        let missing = self.segments.first_missing(route, from)?;
        if missing <= to {
            let next = self
                .segments
                .first_present(route, missing)?
                .unwrap_or(missing + 1);
            let (newest, end) = self.reach(start, route, missing.saturating_sub(1))?;
            return Err(Unreachable::Gap {
                first: route.name(missing),
                last: route.name(next.saturating_sub(1)),
                count: next - missing,
                newest,
                end,
            }
            .into());
        }
        if let Some(broken) = self.segments.first_broken(route, from, to)?
            && broken.number < to
        {
            return Err(Unreachable::Broken {
                segment: route.name(broken.number),
                end: broken.index.end_lsn,
                newest: self.newest(route, route.number(start.start), broken.number)?,
            }
            .into());
        }
        Ok(())
    }

    fn after_end(&self, start: &Start, route: &Route, what: String) -> Result<Halt> {
        let from = Self::archived_from(start, route);
        let last = self.segments.first_missing(route, from)?.saturating_sub(1);
        let (newest, end) = self.reach(start, route, last)?;
        Ok(Unreachable::AfterEnd {
            what,
            timeline: route.timeline,
            newest,
            end,
            elsewhere: Vec::new(),
        }
        .into())
    }

    /// The newest commit and the end of what can be replayed up to segment `last`.
    fn reach(&self, start: &Start, route: &Route, last: u64) -> Result<(Option<TimestampMicros>, Lsn)> {
        let newest = self.newest(route, route.number(start.start), last)?;
        let end = self.segments.row(route, last)?.map(|row| row.index.end_lsn);
        Ok((newest, end.unwrap_or(start.stop).max(start.stop)))
    }

    fn newest(&self, route: &Route, from: u64, to: u64) -> Result<Option<TimestampMicros>> {
        let row = self.segments.last_with_commits(route, from, to)?;
        Ok(row.and_then(|row| row.index.commit_time_max))
    }

    fn plan(&self, start: &Start, route: &Route, end: End, time: Option<TimestampMicros>) -> Plan {
        let first = route.number(start.start);
        let stop = end
            .lsn
            .unwrap_or_else(|| route.start(end.number.saturating_add(1)));
        let path = route
            .spans()
            .into_iter()
            .filter(|(_, begin, to)| *begin < stop && to.is_none_or(|to| to > start.start))
            .map(|(timeline, begin, to)| TimelineSpan {
                timeline,
                from: begin.max(start.start),
                to: Some(to.map_or(stop, |to| to.min(stop))),
            })
            .collect();
        let last: SegmentName = route.name(end.number);
        Plan {
            spec: self.spec.clone(),
            backup: start.backup.clone(),
            timeline: route.timeline,
            path,
            segments: end.number.saturating_sub(first) + 1,
            wal_bytes: stop.0.saturating_sub(start.start.0),
            first_segment: route.name(first),
            last_segment: last,
            ends_in_partial: end.partial,
            time,
            reaches: end.reaches,
            notes: end.notes,
        }
    }
}

fn ends_after(facts: &RecordFacts, time: TimestampMicros, inclusive: bool) -> bool {
    match facts {
        RecordFacts::Commit { time: at, .. } | RecordFacts::Abort { time: at, .. } => {
            is_after(*at, time, inclusive)
        }
        _ => false,
    }
}
