//! The route through the archive to a timeline.

use std::ops::RangeInclusive;

use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};

/// Larger than every possible segment number.
pub(super) const LAST: u64 = i64::MAX as u64;

/// The segment numbers for which the segments of one timeline are used.
pub(super) type Part = (TimelineId, RangeInclusive<u64>);

/// The timelines whose segments lead to a timeline, by segment number.
///
/// If a timeline began in the middle of a segment, both timelines have a segment of that number: PostgreSQL requests
/// that of the new timeline, which begins with a copy of the old one's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) timeline: TimelineId,
    pub(super) size: SegmentSize,
    history: TimelineHistory,
}

impl Route {
    pub(super) fn new(history: TimelineHistory, size: SegmentSize) -> Self {
        Self {
            timeline: history.timeline(),
            size,
            history,
        }
    }

    /// Whether a backup that ended there lies on the route.
    pub(super) fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.history.contains(timeline, lsn)
    }

    /// The timelines on the route, oldest first, with where each begins and ends.
    pub(super) fn spans(&self) -> Vec<(TimelineId, Lsn, Option<Lsn>)> {
        let mut begin = Lsn(0);
        let mut spans = Vec::new();
        for entry in self.history.entries() {
            spans.push((entry.timeline, begin, Some(entry.switch_lsn)));
            begin = entry.switch_lsn;
        }
        spans.push((self.timeline, begin, None));
        spans
    }

    /// The numbers from `from` to `to`, by the timeline whose segments are used for them.
    pub(super) fn parts(&self, from: u64, to: u64) -> Vec<Part> {
        let number = |lsn: Lsn| lsn.segment_number(self.size);
        self.spans()
            .into_iter()
            .filter_map(|(timeline, begin, end)| {
                let first = number(begin).max(from);
                let last = match end {
                    Some(end) => number(end).checked_sub(1)?.min(to),
                    None => to,
                };
                (first <= last).then_some((timeline, first..=last))
            })
            .collect()
    }

    /// The timeline whose segment of this number is used.
    pub(super) fn timeline_at(&self, number: u64) -> TimelineId {
        let parts = self.parts(number, number);
        parts.first().map_or(self.timeline, |(timeline, _)| *timeline)
    }

    pub(super) fn name(&self, number: u64) -> SegmentName {
        SegmentName::from_lsn(self.timeline_at(number), self.start(number), self.size)
    }

    pub(super) fn start(&self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.size.bytes()))
    }

    pub(super) fn number(&self, lsn: Lsn) -> u64 {
        lsn.segment_number(self.size)
    }

    /// The number of the segment of this name.
    pub(super) fn number_of(&self, name: SegmentName) -> u64 {
        self.number(name.start_lsn(self.size))
    }

    /// The number of the segment that holds the last byte before `lsn`.
    pub(super) fn number_before(&self, lsn: Lsn) -> u64 {
        self.number(Lsn(lsn.0.saturating_sub(1)))
    }
}
