//! Chooses the backup and the timelines for a target.
//!
//! Backups are tried from the newest to the oldest: the first from which PostgreSQL would reach the target is the best.
//! If a backup ends after the target, an older one is tried. Any other obstacle (a gap, or nothing after the target)
//! blocks all older backups too, if the target is a single place in the WAL.

use std::cell::RefCell;
use std::io::Read;

use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};
use jiff::tz::TimeZone;

use crate::archive::backup::{Backup, BackupStatus};
use crate::error::{Error, Result};
use crate::index::repository::Repository;
use crate::names::ServerName;
use crate::recovery::ends::{Approach, End};
use crate::recovery::plan::bad_history_advice;
use crate::recovery::route::Route;
use crate::recovery::segments::Segments;
use crate::recovery::time::{server_zone, zone_of};
use crate::recovery::{Plan, Target, TargetSpec, TimeTarget, TimelineChoice, TimelineSpan, Unreachable};

/// Largest history file: it has one line for each timeline, and no cluster has had a million.
const HISTORY_BYTES_MAX: u64 = 64 << 20;

/// Why planning ended without a plan.
#[derive(Debug)]
pub(super) enum StopReason {
    Failed(Error),
    Unreachable(Box<Unreachable>),
}

/// The result of a planning step.
pub(super) type PlanResult<T> = std::result::Result<T, StopReason>;

impl From<Error> for StopReason {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Unreachable> for StopReason {
    fn from(reason: Unreachable) -> Self {
        Self::Unreachable(Box::new(reason))
    }
}

impl Repository {
    /// How to recover a server to a target, or why that cannot be done.
    ///
    /// # Errors
    /// When the catalog or a segment that must be read cannot be read.
    pub fn plan(
        &self,
        server: &ServerName,
        spec: &TargetSpec,
    ) -> Result<std::result::Result<Plan, Unreachable>> {
        let plan = || {
            // A requested backup is recovered with the WAL of its own history; all others belong to the server's
            // current one.
            let archive = match spec.backup {
                Some(id) => self
                    .backups(server)?
                    .into_iter()
                    .find(|backup| backup.id == id)
                    .map(|backup| backup.archive().clone()),
                None => None,
            };
            let archive = archive.as_ref().unwrap_or(server);
            let planner = Planner {
                repository: self,
                server,
                archive,
                spec,
                segments: Segments::of(self, archive),
                notes: RefCell::default(),
            };
            match planner.run() {
                Ok(plan) => Ok(Ok(plan)),
                Err(StopReason::Unreachable(reason)) => Ok(Err(*reason)),
                Err(StopReason::Failed(error)) => Err(error),
            }
        };
        match plan()? {
            // Missing data may be in a pack that is not in the catalog.
            Err(_) if self.adopt_unknown_packs()? => plan(),
            planned => Ok(planned),
        }
    }

    /// The timelines along which a target can be reached that cannot be reached along its own.
    ///
    /// # Errors
    /// As for [`plan`](Self::plan).
    pub fn reachable_along(&self, server: &ServerName, spec: &TargetSpec) -> Result<Vec<TimelineId>> {
        let mut found = Vec::new();
        for timeline in Segments::of(self, server).timelines()? {
            let choice = TimelineChoice::Id(timeline);
            let spec = TargetSpec {
                timeline: choice,
                ..spec.clone()
            };
            if self.plan(server, &spec)?.is_ok() {
                found.push(timeline);
            }
        }
        Ok(found)
    }

    /// The names of the restore points in a server's WAL, the newest first, at most `count` of them.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn restore_point_names(&self, server: &ServerName, count: usize) -> Result<Vec<String>> {
        Segments::of(self, server).restore_point_names(count)
    }

    /// The archive files that a replay of `plan` requests: the existing history files, then the segments in order. This
    /// includes segments that came with the backup, whether they are archived or not, and the one still being received,
    /// under its full name.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn recovery_segments(&self, plan: &Plan) -> Result<impl Iterator<Item = WalName> + use<>> {
        let (server, size) = (plan.backup.archive(), plan.backup.segment_size);
        let history = self.history(server, plan.timeline)?;
        let ancestors = history.iter().flat_map(TimelineHistory::entries);
        let mut histories = Vec::new();
        for timeline in ancestors.map(|entry| entry.timeline).chain([plan.timeline]) {
            let name = WalName::History(timeline);
            if self.wal(server).entry(&name)?.is_some() {
                histories.push(name);
            }
        }
        let history = history.unwrap_or_else(|| TimelineHistory::without_ancestors(plan.timeline));
        let route = Route::new(history, size);
        let number = |name: SegmentName| route.number(name.start_lsn(size));
        let segments = route
            .parts(number(plan.first_segment), number(plan.last_segment))
            .into_iter()
            .flat_map(move |(timeline, numbers)| {
                numbers.map(move |number| {
                    let start = Lsn(number.saturating_mul(size.bytes()));
                    WalName::Segment(SegmentName::from_lsn(timeline, start, size))
                })
            });
        Ok(histories.into_iter().chain(segments))
    }

    /// The point in time that is meant by a time of a server: a local time is read in the server's zone, as the newest
    /// backup knows it, else in UTC.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn moment(&self, server: &ServerName, time: TimeTarget) -> Result<TimestampMicros> {
        Ok(time.resolve(&zone_of(&self.backups(server)?)))
    }

    /// The history of a timeline, from its archived file; none if the file is not archived.
    ///
    /// # Errors
    /// [`Error::BadWalFile`] when the file cannot be read or is not a history file: only this timeline is affected.
    pub fn history(&self, server: &ServerName, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        let name = WalName::History(timeline);
        let Some(reader) = self.wal(server).open(&name)? else {
            return Ok(None);
        };
        let bad = |reason: String| Error::BadWalFile {
            name,
            server: server.clone(),
            reason,
        };
        let mut bytes = Vec::new();
        reader
            .take(HISTORY_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| bad(error.to_string()))?;
        let history = TimelineHistory::parse(&bytes, timeline).map_err(|error| bad(error.to_string()))?;
        if history.entries().is_empty() {
            return Err(bad("It names no timeline before".to_owned()));
        }
        Ok(Some(history))
    }
}

/// A backup to start from.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) backup: Backup,
    pub(super) timeline: TimelineId,
    /// Where replay begins.
    pub(super) start: Lsn,
    /// What replay must reach.
    pub(super) stop: Lsn,
}

impl Start {
    fn of(backup: Backup) -> Option<Self> {
        let (timeline, start, stop) = (backup.timeline?, backup.start_lsn?, backup.stop_lsn?);
        (backup.status == BackupStatus::Done && backup.is_of_server()).then_some(Self {
            backup,
            timeline,
            start,
            stop,
        })
    }
}

/// A backup, and the index of its approach.
type Candidate = (Start, usize);

/// The planning of one target.
#[derive(Debug)]
pub(super) struct Planner<'a> {
    pub(super) repository: &'a Repository,
    pub(super) server: &'a ServerName,
    /// The archive whose WAL is replayed.
    pub(super) archive: &'a ServerName,
    pub(super) spec: &'a TargetSpec,
    pub(super) segments: Segments<'a>,
    /// Notes on files that were ignored.
    pub(super) notes: RefCell<Vec<String>>,
}

impl Planner<'_> {
    fn run(&self) -> PlanResult<Plan> {
        let starts = self.starts()?;
        let (time, zone_note) = self.time(&starts);
        let (approaches, candidates) = self.candidates(starts, time)?;
        let mut reason: Option<StopReason> = None;
        let mut hopeless = vec![false; approaches.len()];
        for (start, of) in &candidates {
            let (Some(approach), Some(hopeless)) = (approaches.get(*of), hopeless.get_mut(*of)) else {
                continue;
            };
            if *hopeless {
                continue;
            }
            let end = match self.end(start, approach) {
                Ok(Some(end)) => self.check_replay(start, approach, end).map(Some),
                other => other,
            };
            match end {
                Ok(Some(mut end)) => {
                    if let Some(why) = self.left_by_archive(start, &approach.route) {
                        let backup = start.backup.id;
                        reason.get_or_insert(Unreachable::BadBackup { backup, why }.into());
                        continue;
                    }
                    end.notes.extend(zone_note);
                    end.notes.extend(self.notes.take());
                    return Ok(self.plan(start, &approach.route, end, time));
                }
                Ok(None) => {}
                Err(StopReason::Failed(error)) => return Err(error.into()),
                Err(unreachable) => {
                    *hopeless = approach.is_one_place();
                    reason.get_or_insert(unreachable);
                }
            }
        }
        Err(reason.unwrap_or_else(|| before_all(&candidates).into()))
    }

    /// The backups that can be started from, or the requested one.
    fn starts(&self) -> PlanResult<Vec<Start>> {
        let mut backups = self.repository.backups(self.server)?;
        let snapshot = backups
            .iter()
            .rfind(|known| known.is_snapshot() && known.status == BackupStatus::Done)
            .map(|known| known.id);
        // A snapshot is used where somebody names it: its disks must be there first.
        backups.retain(|known| {
            self.spec.backup == Some(known.id) || known.archive() == self.archive && !known.is_snapshot()
        });
        if let Some(backup) = self.spec.backup {
            backups.retain(|known| known.id == backup);
            let why = match backups.first() {
                None => Some("there is none of this id".to_owned()),
                Some(known) if !known.is_of_server() => {
                    Some("it was made of a clone, which has left the server's history".to_owned())
                }
                Some(known) if known.status != BackupStatus::Done => Some(format!("it is {}", known.status)),
                Some(_) => None,
            };
            if let Some(why) = why {
                return Err(Unreachable::BadBackup { backup, why }.into());
            }
        }
        let starts: Vec<Start> = backups.into_iter().filter_map(Start::of).collect();
        if starts.is_empty() {
            return Err(Unreachable::NoBackup { snapshot }.into());
        }
        Ok(starts)
    }

    /// The moment of a time target, and a note about its zone.
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

    /// The approaches to the target, and the backups on them, newest first, each with the index of its approach.
    fn candidates(
        &self,
        mut starts: Vec<Start>,
        time: Option<TimestampMicros>,
    ) -> PlanResult<(Vec<Approach>, Vec<Candidate>)> {
        let mut approaches: Vec<Approach> = Vec::new();
        let mut candidates = Vec::new();
        // No other timeline leads to the end of a backup.
        let at_once = self.spec.target == Target::Immediate && self.spec.timeline == TimelineChoice::Latest;
        if at_once || self.spec.timeline == TimelineChoice::Current {
            for start in starts.into_iter().rev() {
                let known = approaches
                    .iter()
                    .position(|approach| approach.route.timeline == start.timeline);
                let of = known.unwrap_or(approaches.len());
                if known.is_none() {
                    approaches.push(self.approach(start.timeline, &start, time)?);
                }
                candidates.push((start, of));
            }
            return Ok((approaches, candidates));
        }
        let Some(newest) = starts.last().cloned() else {
            return Err(Unreachable::NoBackup { snapshot: None }.into());
        };
        let timeline = match self.spec.timeline {
            TimelineChoice::Id(id) => id,
            TimelineChoice::Latest | TimelineChoice::Current => self.latest(&starts)?,
        };
        let approach = self.approach(timeline, &newest, time)?;
        starts.retain(|start| approach.route.contains(start.timeline, start.stop));
        if starts.is_empty() {
            return Err(Unreachable::NoBackupOnTimeline {
                timeline,
                newest: newest.backup.id,
                newest_timeline: newest.timeline,
            }
            .into());
        }
        starts.sort_by_key(|start| (start.stop, start.backup.id));
        candidates.extend(starts.into_iter().rev().map(|start| (start, 0)));
        Ok((vec![approach], candidates))
    }

    /// The newest timeline that PostgreSQL finds from one of the backups: it requests one history file after the other.
    fn latest(&self, starts: &[Start]) -> Result<TimelineId> {
        let archive = self.repository.wal(self.archive);
        let mut newest = TimelineId(1);
        for start in starts {
            newest = newest.max(start.timeline);
        }
        // A search from a lower timeline than the newest either ends before the newest or continues like the search
        // from it.
        let mut next = newest;
        loop {
            let last = next;
            next = TimelineId(last.0.saturating_add(1));
            if next == last || archive.entry(&WalName::History(next))?.is_none() {
                return Ok(newest);
            }
            if !self.is_nothing_but_a_bad_history(next)? {
                newest = next;
            }
        }
    }

    /// Whether a timeline has no WAL and its history file is unreadable: such a file does not prove that the timeline
    /// exists.
    fn is_nothing_but_a_bad_history(&self, timeline: TimelineId) -> Result<bool> {
        match self.repository.history(self.archive, timeline) {
            Err(Error::BadWalFile { reason, .. }) if !self.segments.timelines()?.contains(&timeline) => {
                self.notes.borrow_mut().push(format!(
                    "The archived {}.history is passed over, as it cannot be read ({reason}). {}",
                    timeline.hex(),
                    bad_history_advice(self.server, timeline)
                ));
                Ok(true)
            }
            Err(Error::BadWalFile { .. }) => Ok(false),
            other => other.map(|_| false),
        }
    }

    fn approach(
        &self,
        timeline: TimelineId,
        start: &Start,
        time: Option<TimestampMicros>,
    ) -> PlanResult<Approach> {
        let history = match self.repository.history(self.archive, timeline) {
            Err(Error::BadWalFile { reason, .. }) => {
                return Err(Unreachable::BadHistory {
                    server: self.server.clone(),
                    timeline,
                    fault: reason,
                }
                .into());
            }
            other => other?,
        };
        let history = match history {
            Some(history) => history,
            None => {
                let known = self.segments.timelines()?;
                if timeline != start.timeline && !known.contains(&timeline) {
                    return Err(Unreachable::NoTimeline { timeline, known }.into());
                }
                TimelineHistory::without_ancestors(timeline)
            }
        };
        let route = Route::new(history, start.backup.segment_size);
        Ok(Approach::to(
            &self.spec.target,
            route,
            time,
            self.spec.inclusive,
            &self.segments,
        )?)
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
        // The WAL of an abandoned history is in no WAL directory of the mount, so the copy gets everything it needs.
        let mut spec = self.spec.clone();
        spec.self_contained |= self.archive != self.server;
        Plan {
            spec,
            backup: start.backup.clone(),
            timeline: route.timeline,
            path,
            segments: end.number.saturating_sub(first) + 1,
            wal_bytes: stop.0.saturating_sub(start.start.0),
            first_segment: route.name(first),
            last_segment: route.name(end.number),
            ends_in_partial: end.partial,
            time,
            reaches: end.reaches,
            notes: end.notes,
            required: end.required,
        }
    }
}

/// The reason when every backup ends after the target.
fn before_all(candidates: &[Candidate]) -> Unreachable {
    let first = candidates
        .iter()
        .map(|(start, _)| start)
        .min_by_key(|start| start.stop);
    match first {
        Some(first) => Unreachable::BeforeBackups {
            first: first.backup.id,
            lsn: first.stop,
            time: first.backup.end_time,
        },
        None => Unreachable::NoBackup { snapshot: None },
    }
}
