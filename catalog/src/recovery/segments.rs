//! The archived segments along a timeline's history, as PostgreSQL would ask for them.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::RangeInclusive;

use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_check::check_segment;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::wal_scan::{RecordFacts, SegmentIndex, WalScanner, join};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId, TimestampMicros};

use crate::error::Result;
use crate::repository::Repository;
use crate::server::ServerName;

/// Past every segment number there can be.
const LAST: u64 = i64::MAX as u64;

/// Read of a segment at a time.
const READ_BYTES: usize = 1 << 20;

/// Which timeline's segments lead to a timeline, by their numbers.
///
/// Where a timeline began in the midst of a segment, there is a segment of that number on both: PostgreSQL asks for the new
/// one's, which begins with a copy of the old one's records.
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

    /// Whether a backup that ended there lies on the way.
    pub(super) fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.history.contains(timeline, lsn)
    }

    /// The timelines on the way, oldest first, with where each begins and ends.
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

    /// The numbers from `from` to `to`, by the timeline whose segments count there.
    pub(super) fn parts(&self, from: u64, to: u64) -> Vec<(TimelineId, RangeInclusive<u64>)> {
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

    pub(super) fn name(&self, number: u64) -> SegmentName {
        let parts = self.parts(number, number);
        let timeline = parts.first().map_or(self.timeline, |(timeline, _)| *timeline);
        SegmentName::from_lsn(timeline, self.start(number), self.size)
    }

    pub(super) fn start(&self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.size.bytes()))
    }

    pub(super) fn number(&self, lsn: Lsn) -> u64 {
        lsn.segment_number(self.size)
    }

    /// The number of the segment that holds the last byte before `lsn`.
    pub(super) fn number_before(&self, lsn: Lsn) -> u64 {
        self.number(Lsn(lsn.0.saturating_sub(1)))
    }
}

/// What the catalog keeps of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) number: u64,
    pub(super) index: SegmentIndex,
}

impl Row {
    fn ends_early(&self) -> bool {
        self.index.stopped.is_some()
    }
}

/// A record that matters, with where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) lsn: Lsn,
    pub(super) facts: RecordFacts,
    /// The last segment it reaches into.
    pub(super) last_number: u64,
}

/// A server's segments.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    repository: &'a Repository,
    server: &'a ServerName,
    rows: BTreeMap<(TimelineId, u64), Row>,
}

impl<'a> Segments<'a> {
    pub(super) fn of(repository: &'a Repository, server: &'a ServerName) -> Result<Self> {
        const PAGE: usize = 1000;
        let mut rows = BTreeMap::new();
        let mut after = None;
        loop {
            let files = repository.wal(server).files(after.as_ref(), PAGE)?;
            for file in &files {
                if let (WalName::Segment(name), Some(index), Ok(size)) =
                    (file.name, &file.index, SegmentSize::try_from(file.size_bytes))
                {
                    let number = name.start_lsn(size).segment_number(size);
                    let index = index.clone();
                    rows.insert((name.timeline, number), Row { number, index });
                }
            }
            match files.last() {
                Some(last) if files.len() == PAGE => after = Some(last.name),
                _ => break,
            }
        }
        Ok(Self {
            repository,
            server,
            rows,
        })
    }

    pub(super) fn has_timeline(&self, timeline: TimelineId) -> bool {
        self.rows.keys().any(|(known, _)| *known == timeline)
    }

    fn along<'s>(&'s self, route: &Route, from: u64, to: u64) -> impl DoubleEndedIterator<Item = &'s Row> {
        route
            .parts(from, to)
            .into_iter()
            .flat_map(|(timeline, numbers)| {
                self.rows
                    .range((timeline, *numbers.start())..=(timeline, *numbers.end()))
            })
            .map(|(_, row)| row)
    }

    pub(super) fn row(&self, route: &Route, number: u64) -> Result<Option<&Row>> {
        Ok(self.along(route, number, number).next())
    }

    /// The first number from `from` on that is not archived; past the end of the archive there is always one.
    pub(super) fn first_missing(&self, route: &Route, from: u64) -> Result<u64> {
        let mut expected = from;
        for row in self.along(route, from, LAST) {
            if row.number != expected {
                break;
            }
            expected += 1;
        }
        Ok(expected)
    }

    /// The first that is archived from `from` on.
    pub(super) fn first_present(&self, route: &Route, from: u64) -> Result<Option<u64>> {
        Ok(self.along(route, from, LAST).next().map(|row| row.number))
    }

    /// The first whose records end before it does.
    pub(super) fn first_broken(&self, route: &Route, from: u64, to: u64) -> Result<Option<&Row>> {
        Ok(self.along(route, from, to).find(|row| row.ends_early()))
    }

    /// The first from `from` on with a commit or abort after `time`, or at it unless `inclusive`.
    pub(super) fn first_after(
        &self,
        route: &Route,
        from: u64,
        time: TimestampMicros,
        inclusive: bool,
    ) -> Result<Option<&Row>> {
        Ok(self.along(route, from, LAST).find(|row| {
            row.index
                .commit_time_max
                .is_some_and(|max| is_after(max, time, inclusive))
        }))
    }

    /// The last one up to `to` with a commit or abort.
    pub(super) fn last_with_commits(&self, route: &Route, from: u64, to: u64) -> Result<Option<&Row>> {
        Ok(self
            .along(route, from, to)
            .rev()
            .find(|row| row.index.commit_time_max.is_some()))
    }

    /// The first one from `from` on in which a record starts and ends.
    pub(super) fn first_with_records(&self, route: &Route, from: u64) -> Result<Option<&Row>> {
        Ok(self
            .along(route, from, LAST)
            .find(|row| row.index.last_lsn.is_some()))
    }

    /// Numbers in which transaction `xid` may have ended, newest first.
    pub(super) fn with_xid(&self, route: &Route, from: u64, xid: u32) -> Result<Vec<u64>> {
        let may = |row: &&Row| match (row.index.xid_min, row.index.xid_max) {
            (Some(min), Some(max)) => (min..=max).contains(&xid),
            _ => row.index.commit_time_max.is_some() || row.index.tail.is_some(),
        };
        Ok(self
            .along(route, from, LAST)
            .rev()
            .filter(may)
            .map(|row| row.number)
            .collect())
    }

    /// Restore points of this name along the way, newest first.
    pub(super) fn restore_points(&self, route: &Route, name: &str) -> Result<Vec<(Lsn, TimestampMicros)>> {
        let mut points: Vec<(Lsn, TimestampMicros)> = self
            .along(route, 0, LAST)
            .flat_map(|row| &row.index.restore_points)
            .filter(|point| point.name == name)
            .map(|point| (point.lsn, point.time))
            .collect();
        points.reverse();
        Ok(points)
    }

    /// Reads a segment's records in order until `wanted` says yes.
    pub(super) fn find_record(
        &self,
        route: &Route,
        number: u64,
        wanted: &mut dyn FnMut(Lsn, &RecordFacts) -> bool,
    ) -> Result<Option<Found>> {
        let mut found = None;
        self.scan(route, number, &mut |lsn, facts| {
            if found.is_none()
                && let Some(facts) = facts
                && wanted(lsn, facts)
            {
                found = Some(Found {
                    lsn,
                    facts: facts.clone(),
                    last_number: number,
                });
            }
            found.is_some()
        })?;
        if found.is_none()
            && let Some(crossing) = self.crossing(route, number)?
            && wanted(crossing.lsn, &crossing.facts)
        {
            found = Some(crossing);
        }
        Ok(found)
    }

    /// Reads a segment's records until `each` says that it is enough.
    fn scan(
        &self,
        route: &Route,
        number: u64,
        each: &mut dyn FnMut(Lsn, Option<&RecordFacts>) -> bool,
    ) -> Result<()> {
        let name = route.name(number);
        let Some(file) = self.repository.wal(self.server).find(&WalName::Segment(name))? else {
            return Ok(());
        };
        let size_bytes = file.size_bytes;
        let mut reader = self.repository.trees().reader(file.map);
        let mut buffer = vec![0; READ_BYTES];
        let mut scanner = None;
        let mut enough = false;
        loop {
            let length = read_full(&mut reader, &mut buffer).map_err(|source| crate::Error::WalSource {
                name: WalName::Segment(name),
                source: std::sync::Arc::new(source),
            })?;
            let bytes = buffer.get(..length).unwrap_or_default();
            if bytes.is_empty() || enough {
                return Ok(());
            }
            let scanner = match &mut scanner {
                Some(scanner) => scanner,
                none => none.insert(WalScanner::new(&name, &check_segment(bytes, &name, size_bytes)?)),
            };
            scanner.push_each(bytes, &mut |lsn, facts| {
                if !enough {
                    enough = each(lsn, facts);
                }
            });
        }
    }

    /// The segment in which the record ends that crosses this one's end, if it matters.
    pub(super) fn crossing_end(&self, route: &Route, number: u64) -> Result<Option<u64>> {
        Ok(self.crossing(route, number)?.map(|found| found.last_number))
    }

    /// The record that starts in a segment and ends in a later one, if it matters and is complete.
    fn crossing(&self, route: &Route, number: u64) -> Result<Option<Found>> {
        let Some(tail) = self.row(route, number)?.and_then(|row| row.index.tail.as_ref()) else {
            return Ok(None);
        };
        let mut heads = Vec::new();
        for row in self.along(route, number + 1, LAST) {
            let Some(head) = row
                .index
                .head
                .as_ref()
                .filter(|_| row.number == number + 1 + heads.len() as u64)
            else {
                break;
            };
            heads.push(head);
            if let Some(record) = join(tail, &heads) {
                return Ok(Some(Found {
                    lsn: record.lsn,
                    facts: record.facts,
                    last_number: row.number,
                }));
            }
        }
        Ok(None)
    }
}

/// Whether PostgreSQL stops before a commit of time `at` when the target is `time`.
pub(super) fn is_after(at: TimestampMicros, time: TimestampMicros, inclusive: bool) -> bool {
    at > time || (at == time && !inclusive)
}

fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
