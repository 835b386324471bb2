//! What stops a recovery although every segment is archived.
//!
//! PostgreSQL ends a recovery with an error at the point where the server was started with `wal_level =
//! minimal` (`CheckRequiredParameterValues` in `src/backend/access/transam/xlogrecovery.c`). A copy must stay
//! in its own directory: if it is unknown whether it would, or this PostgreSQL version cannot be kept there,
//! the target is not offered.

use barmanfs_pg::Lsn;
use barmanfs_pg::pg_control::RequiredSettings;
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::wal_scan::WalLevel;

use crate::error::Result;
use crate::recovery::Unreachable;
use crate::recovery::ends::{Approach, End, Goal, archived_from, ends_after};
use crate::recovery::planner::{PlanResult, Planner, Start};
use crate::recovery::route::Route;

/// Number of segments with an index of an earlier release that are read to plan one recovery: this takes a
/// second or two.
const READ_MAX: u64 = 64;

/// What was found between a backup and a target.
#[derive(Debug, Default)]
struct Found {
    /// Where the server was first started with `wal_level = minimal`.
    minimal: Option<Lsn>,
    /// The largest settings it was started with.
    required: Option<RequiredSettings>,
    /// Number of segments that were not searched for these.
    unread: u64,
}

impl Planner<'_> {
    /// Returns the end if replay reaches it.
    pub(super) fn check_replay(&self, start: &Start, approach: &Approach, mut end: End) -> PlanResult<End> {
        let route = &approach.route;
        let from = route.number(start.start);
        self.check_readable(start, route, end.number)?;
        self.check_confined(start, route, from, end.number)?;
        let found = self.parameters(start, route, end.number)?;
        let minimal = [found.minimal, end.minimal].into_iter().flatten().min();
        if let Some(lsn) = minimal
            && self.is_replayed(start, approach, &end, lsn)?
        {
            return Err(Unreachable::Minimal {
                lsn,
                timeline: route.timeline,
                newest: self.newest(route, from, route.number(lsn).saturating_sub(1))?,
            }
            .into());
        }
        if found.unread > 0 {
            end.notes.push(format!(
                "An earlier release archived {} of these segments without looking for wal_level: 'barmanfs index-wal {}' \
                 reads them",
                found.unread, self.server
            ));
        }
        end.required = found.required;
        Ok(end)
    }

    /// Fails if one of these segments is known to be damaged. Those that the backup has brought are read from there.
    fn check_readable(&self, start: &Start, route: &Route, to: u64) -> PlanResult<()> {
        let damaged = self.repository.damaged_segments(self.archive)?;
        if damaged.is_empty() {
            return Ok(());
        }
        let from = archived_from(start, route);
        // A name tells the number, whatever timeline it is of: that one counts whose segment is replayed.
        let numbers = damaged.iter().map(|name| (name, route.number_of(*name)));
        let on_the_way =
            numbers.filter(|(name, number)| (from..=to).contains(number) && route.name(*number) == **name);
        let Some((segment, number)) = on_the_way.min_by_key(|(_, number)| *number) else {
            return Ok(());
        };
        let (newest, _) = self.reach(start, route, number)?;
        let before = number.checked_sub(1);
        let last_record = before
            .map(|before| self.segments.row(route, before))
            .transpose()?
            .flatten();
        Err(Unreachable::Damaged {
            segment: *segment,
            newest,
            last_record: last_record.and_then(|row| row.last_lsn),
        }
        .into())
    }

    /// Fails if a copy would not stay in its directory while it replays these segments.
    fn check_confined(&self, start: &Start, route: &Route, from: u64, to: u64) -> PlanResult<()> {
        if let Some((number, is_current)) = self.segments.first_unknown(route, from, to)? {
            let segment = route.name(number);
            return Err(match is_current {
                true => Unreachable::UnknownWal { segment },
                false => Unreachable::NotIndexed {
                    segment,
                    server: self.server.clone(),
                },
            }
            .into());
        }
        let version = start.backup.server_version;
        if version.knows_in_place_tablespaces() {
            return Ok(());
        }
        let mut made = self.segments.first_with_tablespaces(route, from, to)?;
        if made.is_none() {
            let unread = self.segments.unread(route, from, to, READ_MAX + 1)?;
            for number in unread {
                let Some(index) = self.read_index(route, number)? else {
                    continue;
                };
                if !index.tablespaces.is_empty() {
                    made = Some(number);
                    break;
                }
            }
        }
        match made {
            None => Ok(()),
            Some(number) => Err(Unreachable::Tablespace {
                segment: route.name(number),
                version: version.to_string(),
            }
            .into()),
        }
    }

    fn read_index(
        &self,
        route: &Route,
        number: u64,
    ) -> Result<Option<std::sync::Arc<barmanfs_pg::wal_scan::SegmentIndex>>> {
        let name = WalName::Segment(route.name(number));
        let file = self.repository.wal(self.archive).find(&name)?;
        file.map(|file| self.repository.index_of_file(&file)).transpose()
    }

    fn parameters(&self, start: &Start, route: &Route, to: u64) -> Result<Found> {
        let from = route.number(start.start);
        let mut found = Found::default();
        let mut take = |lsn: Lsn, minimal: bool, required: RequiredSettings| {
            if lsn < start.start {
                return;
            }
            if minimal {
                found.minimal = Some(found.minimal.map_or(lsn, |known| known.min(lsn)));
            }
            found.required = Some(found.required.map_or(required, |known| known.max(required)));
        };
        for (lsn, minimal, required) in self.segments.parameter_changes(route, from, to)? {
            take(lsn, minimal, required);
        }
        let unread = self.segments.unread(route, from, to, READ_MAX + 1)?;
        if unread.len() as u64 > READ_MAX {
            found.unread = self.segments.count_unread(route, from, to)?;
            return Ok(found);
        }
        for number in unread {
            for change in self
                .read_index(route, number)?
                .iter()
                .flat_map(|index| &index.parameter_changes)
            {
                let parameters = change.parameters;
                take(
                    change.lsn,
                    parameters.wal_level == WalLevel::Minimal,
                    parameters.required,
                );
            }
        }
        Ok(found)
    }

    /// Whether the record at `lsn` is replayed before the end.
    fn is_replayed(&self, start: &Start, approach: &Approach, end: &End, lsn: Lsn) -> Result<bool> {
        let route = &approach.route;
        match &approach.goal {
            Goal::Immediate => Ok(lsn < start.stop),
            Goal::Now => Ok(end.lsn.is_none_or(|end| lsn < end)),
            Goal::Lsn(target) if lsn < *target => Ok(true),
            Goal::Lsn(_) if !self.spec.inclusive => Ok(false),
            // The first record at or after the target is replayed, too.
            Goal::Lsn(target) => {
                let first = self.segments.first_start(route, route.number(*target), *target)?;
                Ok(first.is_none_or(|first| lsn <= first))
            }
            Goal::Time(time, _) if end.lsn.is_none() && route.number(lsn) >= end.number => {
                let stop = self.segments.find_record(route, end.number, &mut |at, facts| {
                    at >= start.start && ends_after(facts, *time, self.spec.inclusive)
                })?;
                Ok(stop.is_none_or(|stop| lsn < stop.lsn))
            }
            Goal::Time(..) | Goal::Xid(..) | Goal::Name(..) => Ok(end.lsn.is_none_or(|stop| lsn < stop)),
        }
    }
}
