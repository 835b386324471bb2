//! Where PostgreSQL would end the replay for each kind of target.

use std::cell::RefCell;

use barmanfs_pg::pg_control::RequiredSettings;
use barmanfs_pg::wal_scan::RecordFacts;
use barmanfs_pg::{Lsn, TimestampMicros};

use crate::error::Result;
use crate::recovery::planner::{PlanResult, Planner, Start, StopReason};
use crate::recovery::route::{LAST, Route};
use crate::recovery::segments::{Found, Row, Segments, is_after};
use crate::recovery::time::shown;
use crate::recovery::{Action, Target, Unreachable};

/// The WAL up to a timeline, with what is known about the target before a backup is chosen.
#[derive(Debug)]
pub(super) struct Approach {
    pub(super) route: Route,
    pub(super) goal: Goal,
}

#[derive(Debug)]
pub(super) enum Goal {
    Now,
    Immediate,
    Lsn(Lsn),
    Time(TimestampMicros, Passed),
    /// The last commit or abort of the transaction.
    Xid(u32, Option<Found>),
    /// The restore points of this name, in order.
    Name(String, Vec<(Lsn, TimestampMicros)>),
}

/// Where in the WAL a time has passed.
#[derive(Debug)]
pub(super) struct Passed {
    /// Whether there is any later commit or abort.
    anywhere: bool,
    /// The result for the backup tried last.
    last: RefCell<Option<Later>>,
}

/// The result for the backup tried before, which is newer. For an older backup, the first commit or abort later than
/// the time is either between the two backups, or the same.
#[derive(Debug, Clone, Copy)]
struct Later {
    /// The segment from which the search began.
    from: u64,
    /// The first segment with a later commit or abort.
    row: Option<Row>,
    /// Whether it cannot be reached from there.
    blocked: bool,
}

impl Approach {
    pub(super) fn to(
        target: &Target,
        route: Route,
        time: Option<TimestampMicros>,
        inclusive: bool,
        segments: &Segments<'_>,
    ) -> Result<Self> {
        let goal = match (target, time) {
            (Target::Now, _) | (Target::Time(_), None) => Goal::Now,
            (Target::Immediate, _) => Goal::Immediate,
            (Target::Lsn(lsn), _) => Goal::Lsn(*lsn),
            (Target::Time(_), Some(time)) => {
                let passed = Passed {
                    anywhere: segments.any_after(&route, time, inclusive)?,
                    last: RefCell::new(None),
                };
                Goal::Time(time, passed)
            }
            (Target::Xid(xid), _) => Goal::Xid(*xid, segments.end_of_xid(&route, *xid)?),
            (Target::Name(name), _) => Goal::Name(name.clone(), segments.restore_points(&route, name)?),
        };
        Ok(Self { route, goal })
    }

    /// Whether an obstacle between one backup and the target also blocks all older backups. This is not so if an older
    /// backup may meet an earlier restore point of the same name, or a time when the clock was wrong.
    pub(super) fn is_one_place(&self) -> bool {
        match &self.goal {
            Goal::Time(_, passed) => !passed.anywhere,
            Goal::Name(..) => false,
            Goal::Now | Goal::Immediate | Goal::Lsn(_) | Goal::Xid(..) => true,
        }
    }
}

/// Where replay ends.
#[derive(Debug, Default)]
pub(super) struct End {
    /// The last segment that is needed.
    pub(super) number: u64,
    /// The position, if it is known.
    pub(super) lsn: Option<Lsn>,
    /// Whether the last segment is still being received.
    pub(super) partial: bool,
    /// The last known commit or abort that is replayed.
    pub(super) reaches: Option<TimestampMicros>,
    pub(super) notes: Vec<String>,
    /// Where the server was started with `wal_level = minimal`, in WAL that is still being received.
    pub(super) minimal: Option<Lsn>,
    /// The largest settings that the server was started with before the end.
    pub(super) required: Option<RequiredSettings>,
}

impl Planner<'_> {
    /// Where replay from this backup ends; none if the target lies before the backup's end.
    pub(super) fn end(&self, start: &Start, approach: &Approach) -> PlanResult<Option<End>> {
        let route = &approach.route;
        match &approach.goal {
            Goal::Now => self.to_now(start, route).map(Some),
            Goal::Immediate => self.to_own_end(start, approach).map(Some),
            Goal::Lsn(lsn) => self.to_lsn(start, approach, *lsn),
            Goal::Time(time, passed) => self.to_time(start, approach, *time, &passed.last),
            Goal::Xid(xid, found) => self.to_xid(start, approach, *xid, found.as_ref()),
            Goal::Name(name, points) => self.to_name(start, approach, name, points),
        }
    }

    /// PostgreSQL stops at the end of a backup when it meets a later record. The WAL that came with a backup may have none
    /// (`own_wal_may_end_with_it`). A copy that is to be promoted replays all of that WAL instead, without a target;
    /// one that pauses or shuts down needs the record.
    fn to_own_end(&self, start: &Start, approach: &Approach) -> PlanResult<End> {
        let (route, backup) = (&approach.route, &start.backup);
        let promotes = self.spec.action.is_none_or(|action| action == Action::Promote);
        let needs_record = backup.own_wal_may_end_with_it() && !(backup.wal_included && promotes);
        let number = match needs_record {
            false => route.number_before(start.stop),
            true => match self.first_record(route, start.stop)? {
                Some(number) => number,
                None => {
                    let promoted = match backup.wal_included {
                        true => " (with the action promote, none is needed)",
                        false => "",
                    };
                    let what = format!(
                        "PostgreSQL stops at the end of backup {} when it meets a later record, and none is \
                         archived{promoted}",
                        backup.id
                    );
                    return Err(self.after_end(start, approach, what)?);
                }
            },
        };
        if needs_record || !backup.wal_included {
            self.check_way(start, route, number)?;
        }
        Ok(End {
            number,
            lsn: Some(start.stop),
            ..End::default()
        })
    }

    fn to_now(&self, start: &Start, route: &Route) -> PlanResult<End> {
        let from = archived_from(start, route);
        let missing = self.segments.first_missing(route, from, LAST)?.unwrap_or(LAST);
        if self.replay_would_diverge(route, missing)? {
            self.check_way(start, route, missing)?;
        }
        let broken = self.segments.first_broken(route, from, missing)?;
        let mut notes = Vec::new();
        if let Some(next) = self.segments.first_present(route, missing)? {
            notes.push(format!(
                "WAL is missing from {} on: what is archived from {} on is not reached",
                route.name(missing),
                route.name(next)
            ));
        }
        let number = broken.map_or(missing.saturating_sub(1), |row| row.number);
        let end = End {
            number,
            lsn: self.segments.row(route, number)?.map(|row| row.end),
            reaches: self.newest(route, route.number(start.start), number)?,
            notes,
            ..End::default()
        };
        let end = match broken {
            Some(_) => end,
            None => self.with_received(route, end)?,
        };
        Ok(at_least_own(start, route, end))
    }

    /// Whether PostgreSQL, when it does not find the first segment of a timeline, would continue along the previous
    /// timeline: that one may have a segment of the same number, which continues past the point where the timeline was
    /// left.
    fn replay_would_diverge(&self, route: &Route, missing: u64) -> Result<bool> {
        let spans = route.spans();
        for ((before, _, _), (_, begin, _)) in spans.iter().zip(spans.iter().skip(1)) {
            if route.number(*begin) == missing && self.segments.has(*before, missing)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Replay stops at the first record that starts at the position or later.
    fn to_lsn(&self, start: &Start, approach: &Approach, lsn: Lsn) -> PlanResult<Option<End>> {
        if lsn < start.stop {
            return Ok(None);
        }
        let route = &approach.route;
        let wanted = route.number(lsn);
        let Some(number) = self.first_record(route, lsn)? else {
            let what = format!("No record at or after {lsn} is archived");
            return Err(self.after_end(start, approach, what)?);
        };
        self.check_way(start, route, number)?;
        Ok(Some(End {
            number,
            lsn: Some(lsn),
            reaches: self.newest(route, route.number(start.start), wanted.saturating_sub(1))?,
            ..End::default()
        }))
    }

    /// The segment in which, at the latest, the first record that starts at `lsn` or later ends.
    fn first_record(&self, route: &Route, lsn: Lsn) -> Result<Option<u64>> {
        let number = route.number(lsn);
        let own = self.segments.row(route, number)?.and_then(|row| row.last_lsn);
        if own.is_some_and(|last| last >= lsn) {
            return Ok(Some(number));
        }
        let later = self.segments.first_with_records(route, number + 1)?;
        Ok(later.map(|row| row.number))
    }

    fn to_xid(
        &self,
        start: &Start,
        approach: &Approach,
        xid: u32,
        found: Option<&Found>,
    ) -> PlanResult<Option<End>> {
        let Some(found) = found else {
            let what = format!("No commit or abort of transaction {xid} is archived");
            return Err(self.after_end(start, approach, what)?);
        };
        if found.lsn < start.stop {
            return Ok(None);
        }
        self.check_way(start, &approach.route, found.last_number)?;
        Ok(Some(End {
            number: found.last_number,
            lsn: Some(found.lsn),
            reaches: end_time(&found.facts),
            ..End::default()
        }))
    }

    /// Replay stops at the first restore point of the name after the backup's start.
    fn to_name(
        &self,
        start: &Start,
        approach: &Approach,
        name: &str,
        points: &[(Lsn, TimestampMicros)],
    ) -> PlanResult<Option<End>> {
        if points.is_empty() {
            let what = format!("No restore point '{name}' is archived");
            return Err(self.after_end(start, approach, what)?);
        }
        let route = &approach.route;
        let first = points.iter().find(|(lsn, _)| *lsn >= start.start);
        let Some(&(lsn, time)) = first.filter(|(lsn, _)| *lsn >= start.stop) else {
            return Ok(None);
        };
        let number = route.number(lsn);
        let row = self.segments.row(route, number)?;
        let crosses = |row: &Row| row.last_lsn.is_none_or(|last| last < lsn);
        let ends_in = row.filter(crosses).map_or(number, |row| row.ends_in);
        self.check_way(start, route, ends_in)?;
        let mut notes = Vec::new();
        if points.len() > 1 {
            notes.push(format!(
                "{} restore points have this name: this is the one of {} at {lsn}",
                points.len(),
                shown(time)
            ));
        }
        Ok(Some(End {
            number: ends_in,
            lsn: Some(lsn),
            reaches: self.newest(route, route.number(start.start), number.saturating_sub(1))?,
            notes,
            ..End::default()
        }))
    }

    /// Replay stops before the first commit or abort, from the backup's start on, that is later than the time.
    fn to_time(
        &self,
        start: &Start,
        approach: &Approach,
        time: TimestampMicros,
        known: &RefCell<Option<Later>>,
    ) -> PlanResult<Option<End>> {
        let route = &approach.route;
        if self.is_older_than(start, route, time)? {
            return Ok(None);
        }
        let from = route.number(start.start);
        let before = *known.borrow();
        let between = before.map_or(LAST, |before| before.from.saturating_sub(1));
        let mut row = self.first_after(route, from, between, time)?;
        if row.is_none()
            && let Some(before) = before
        {
            if before.blocked {
                return Ok(None);
            }
            row = before.row;
        }
        let end = self.before_later(start, approach, time, row);
        let blocked = end.is_err();
        *known.borrow_mut() = Some(Later { from, row, blocked });
        end
    }

    fn first_after(&self, route: &Route, from: u64, to: u64, time: TimestampMicros) -> Result<Option<Row>> {
        self.segments
            .first_after(route, (from, to), time, self.spec.inclusive)
    }

    /// Replay stops before the first commit or abort later than the time, which is in segment `row` if it is after the
    /// backup's start.
    fn before_later(
        &self,
        start: &Start,
        approach: &Approach,
        time: TimestampMicros,
        mut row: Option<Row>,
    ) -> PlanResult<Option<End>> {
        let (route, inclusive) = (&approach.route, self.spec.inclusive);
        loop {
            let Some(later) = row else {
                let what = format!("Nothing that committed after {} is archived", shown(time));
                return Err(self.after_end(start, approach, what)?);
            };
            let is_behind = route.start(later.number) >= start.stop;
            let (ends_in, lsn) = if is_behind && later.ends_in == later.number {
                (later.number, None)
            } else {
                // Only the records show on which side of the backup's limits it is, and whether it needs more segments.
                let found = self
                    .segments
                    .find_record(route, later.number, &mut |lsn, facts| {
                        lsn >= start.start && ends_after(facts, time, inclusive)
                    })?;
                match found {
                    Some(found) if found.lsn >= start.stop => (found.last_number, Some(found.lsn)),
                    Some(_) => return Ok(None),
                    None => {
                        row = self.first_after(route, later.number + 1, LAST, time)?;
                        continue;
                    }
                }
            };
            self.check_way(start, route, ends_in)?;
            return Ok(Some(End {
                number: ends_in,
                lsn,
                reaches: self.newest(route, route.number(start.start), later.number.saturating_sub(1))?,
                notes: self
                    .note_on_abandoned(route, time, later.number)?
                    .into_iter()
                    .collect(),
                ..End::default()
            }));
        }
    }

    /// Whether the time lies before the backup's content. PostgreSQL would not notice: it compares the time with what
    /// it replays, but not with what is in the backup already.
    fn is_older_than(&self, start: &Start, route: &Route, time: TimestampMicros) -> Result<bool> {
        let backup = &start.backup;
        if time < backup.begin_time {
            return Ok(true);
        }
        let number = route.number(start.start);
        if backup.wal_included
            && let Some(end) = backup.end_time
            && time < end
        {
            // WAL that came with the backup is not indexed, unless it is archived too.
            let last = route.number_before(start.stop);
            if self.segments.first_missing(route, number, last)?.is_some() {
                return Ok(true);
            }
        }
        let inclusive = self.spec.inclusive;
        let late = |max: Option<TimestampMicros>| max.is_some_and(|max| is_after(max, time, inclusive));
        let own = self.segments.row(route, number)?;
        if own.is_some_and(|row| late(row.time_max)) {
            // Only the records show what was committed before the backup's start.
            let before = self.segments.find_record(route, number, &mut |lsn, facts| {
                lsn < start.start && ends_after(facts, time, inclusive)
            })?;
            if before.is_some() {
                return Ok(true);
            }
        }
        let earlier = match number.checked_sub(1) {
            Some(earlier) => self.segments.last_with_commits(route, 0, earlier)?,
            None => None,
        };
        Ok(earlier.is_some_and(|row| late(row.time_max)))
    }

    /// Fails if a segment between the backup and segment `to` is missing or broken.
    fn check_way(&self, start: &Start, route: &Route, to: u64) -> PlanResult<()> {
        let from = archived_from(start, route);
        if let Some(missing) = self.segments.first_missing(route, from, to)? {
            let next = self
                .segments
                .first_present(route, missing)?
                .unwrap_or(missing + 1);
            let (newest, end) = self.reach(start, route, missing)?;
            return Err(Unreachable::Gap {
                first: route.name(missing),
                last: route.name(next - 1),
                count: next - missing,
                is_removed: self.segments.is_removed(route, missing)?,
                newest,
                end,
            }
            .into());
        }
        let broken = match to.checked_sub(1) {
            Some(before) => self.segments.first_broken(route, from, before)?,
            None => None,
        };
        match broken {
            None => Ok(()),
            Some(broken) => Err(Unreachable::Broken {
                segment: route.name(broken.number),
                newest: self.newest(route, route.number(start.start), broken.number)?,
                end: broken.end,
            }
            .into()),
        }
    }

    /// The reason when nothing is archived at which replay would stop.
    fn after_end(&self, start: &Start, approach: &Approach, what: String) -> Result<StopReason> {
        let route = &approach.route;
        let from = archived_from(start, route);
        let missing = self.segments.first_missing(route, from, LAST)?.unwrap_or(LAST);
        let (newest, end) = self.reach(start, route, missing)?;
        Ok(Unreachable::AfterEnd {
            what,
            timeline: route.timeline,
            newest,
            end,
        }
        .into())
    }

    /// The newest commit and the end of what can be replayed, if segment `missing` is not archived.
    pub(super) fn reach(
        &self,
        start: &Start,
        route: &Route,
        missing: u64,
    ) -> Result<(Option<TimestampMicros>, Lsn)> {
        let Some(last) = missing.checked_sub(1) else {
            return Ok((None, start.stop));
        };
        let newest = self.newest(route, route.number(start.start), last)?;
        let end = self.segments.row(route, last)?.map(|row| row.end);
        Ok((newest, end.unwrap_or(start.stop).max(start.stop)))
    }

    pub(super) fn newest(&self, route: &Route, from: u64, to: u64) -> Result<Option<TimestampMicros>> {
        let row = self.segments.last_with_commits(route, from, to)?;
        Ok(row.and_then(|row| row.time_max))
    }
}

/// The WAL that came with the backup is always there. A primary has completed its last segment. A standby's, or that of
/// a server that was shut down, ends anywhere behind the backup's end: more than that is not certain, and less does not count, even if it was received since.
fn at_least_own(start: &Start, route: &Route, end: End) -> End {
    let backup = &start.backup;
    let last = route.number_before(start.stop);
    let is_short = end.number < last || (end.number == last && end.lsn.is_some_and(|lsn| lsn < start.stop));
    if !backup.wal_included || !is_short {
        return End {
            number: end.number.max(last),
            ..end
        };
    }
    let lsn = match backup.own_wal_may_end_with_it() {
        true => start.stop,
        false => route.start(last.saturating_add(1)),
    };
    End {
        number: last,
        lsn: Some(lsn),
        partial: false,
        ..end
    }
}

/// The first segment that the archive must have for a recovery past the backup: the backup may include its own WAL. A
/// backup of a standby, or of a server that was shut down, has only the beginning of the segment in which it stops.
pub(super) fn archived_from(start: &Start, route: &Route) -> u64 {
    let last = route.number_before(start.stop);
    match (start.backup.wal_included, start.backup.own_wal_may_end_with_it()) {
        (true, false) => last + 1,
        (true, true) => last,
        (false, _) => route.number(start.start),
    }
}

/// The end time of a transaction, if the record has one.
pub(super) fn end_time(facts: &RecordFacts) -> Option<TimestampMicros> {
    match facts {
        RecordFacts::Commit { time, .. } | RecordFacts::Abort { time, .. } => Some(*time),
        _ => None,
    }
}

pub(super) fn ends_after(facts: &RecordFacts, time: TimestampMicros, inclusive: bool) -> bool {
    end_time(facts).is_some_and(|at| is_after(at, time, inclusive))
}
