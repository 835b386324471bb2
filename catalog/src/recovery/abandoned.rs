//! The moment at which a timeline was left for another one belongs to both.

use barmanfs_pg::{Lsn, TimestampMicros};

use crate::error::Result;
use crate::recovery::ends::end_time;
use crate::recovery::planner::Planner;
use crate::recovery::route::Route;
use crate::recovery::segments::is_after;

impl Planner<'_> {
    /// A note for a time target that leads to the point where a timeline was left but continued: then nothing of
    /// the later timeline is replayed, and a user who wants the transactions of the earlier one must say so.
    ///
    /// Replay stops in segment `number`.
    pub(super) fn note_on_abandoned(
        &self,
        route: &Route,
        time: TimestampMicros,
        number: u64,
    ) -> Result<Option<String>> {
        let spans = route.spans();
        let left = spans.iter().zip(spans.iter().skip(1));
        let left = left.map(|(before, after)| (before.0, after.0, after.1));
        for (before, after, switch) in left.rev() {
            if route.number(switch) > number {
                continue;
            }
            if !self.stops_at_first_end(route, switch, time, number)?
                || !self.goes_on(route, before, switch)?
            {
                return Ok(None);
            }
            return Ok(Some(format!(
                "Timeline {before} went on after timeline {after} left it at {switch}: what it committed then is \
                 reached with ,timeline={before}"
            )));
        }
        Ok(None)
    }

    /// Whether the first transaction that ended after `switch` is the one before which replay stops.
    fn stops_at_first_end(
        &self,
        route: &Route,
        switch: Lsn,
        time: TimestampMicros,
        number: u64,
    ) -> Result<bool> {
        let begin = route.number(switch);
        let between = number.checked_sub(1).filter(|last| *last > begin);
        if let Some(last) = between
            && self.segments.last_with_commits(route, begin + 1, last)?.is_some()
        {
            return Ok(false);
        }
        let later = |at| is_after(at, time, self.spec.inclusive);
        let mut stops_before = false;
        let first = self.segments.find_record(route, begin, &mut |lsn, facts| {
            let at = end_time(facts);
            stops_before |= lsn < switch && at.is_some_and(later);
            lsn >= switch && at.is_some()
        })?;
        let first = first.and_then(|found| end_time(&found.facts));
        Ok(!stops_before && first.is_none_or(later))
    }

    /// Whether a timeline has records after it was left.
    fn goes_on(&self, route: &Route, timeline: barmanfs_pg::TimelineId, switch: Lsn) -> Result<bool> {
        let number = route.number(switch);
        let own = self.segments.last_record_in(timeline, number)?;
        Ok(own.is_some_and(|last| last >= switch) || self.segments.has(timeline, number + 1)?)
    }
}
