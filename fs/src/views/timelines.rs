//! `info/timeline.json`: which WAL there is on each timeline, and what is missing in between.

use barmanfs_catalog::ServerName;
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};
use serde::Serialize;

use super::Body;
use super::changes::MAX_HISTORY_BYTES;
use super::context::Context;
use crate::error::Result;

/// One timeline of a server.
#[derive(Debug, Serialize)]
pub(super) struct Timeline {
    timeline: TimelineId,
    /// The timeline it came from, and where; none for the first, or while its history file is not archived.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Parent>,
    /// Segments without a gap, in order. Between two of them there is one.
    ranges: Vec<Range>,
}

#[derive(Debug, Serialize)]
struct Parent {
    timeline: TimelineId,
    switch_lsn: Lsn,
}

#[derive(Debug, Serialize)]
struct Range {
    first: SegmentName,
    last: SegmentName,
    segments: u64,
    start_lsn: Lsn,
    end_lsn: Lsn,
    /// Segments missing between this range and the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_after: Option<u64>,
}

/// The timelines of a server, in order.
pub(super) fn of(context: &Context, server: &ServerName) -> Result<Vec<Timeline>> {
    let archive = context.repository.wal(server);
    let mut timelines: Vec<Timeline> = Vec::new();
    for entry in archive.entries() {
        let entry = entry?;
        let timeline = timeline_of(context, server, &mut timelines, entry.name.timeline())?;
        if let WalName::Segment(segment) = entry.name
            && let Ok(size) = SegmentSize::try_from(entry.size_bytes)
        {
            timeline.add(segment, size);
        }
    }
    Ok(timelines)
}

fn timeline_of<'a>(
    context: &Context,
    server: &ServerName,
    timelines: &'a mut Vec<Timeline>,
    id: TimelineId,
) -> Result<&'a mut Timeline> {
    // Names sort by timeline, so it is the last one or a new one.
    let place = match timelines.iter().position(|timeline| timeline.timeline == id) {
        Some(place) => place,
        None => {
            timelines.push(Timeline {
                timeline: id,
                parent: parent(context, server, id)?,
                ranges: Vec::new(),
            });
            timelines.len() - 1
        }
    };
    Ok(&mut timelines[place])
}

fn parent(context: &Context, server: &ServerName, timeline: TimelineId) -> Result<Option<Parent>> {
    let Some(file) = context.repository.wal(server).find(&WalName::History(timeline))? else {
        return Ok(None);
    };
    let text = Body::Stored(std::sync::Arc::new(file.map)).read_all(&context.trees, MAX_HISTORY_BYTES)?;
    let history = text.and_then(|text| TimelineHistory::parse(&text, timeline).ok());
    let last = history.as_ref().and_then(|history| history.entries().last());
    Ok(last.map(|entry| Parent {
        timeline: entry.timeline,
        switch_lsn: entry.switch_lsn,
    }))
}

impl Timeline {
    fn add(&mut self, segment: SegmentName, size: SegmentSize) {
        let start_lsn = segment.start_lsn(size);
        let end_lsn = Lsn(start_lsn.0.saturating_add(size.bytes()));
        if let Some(range) = self.ranges.last_mut() {
            if range.end_lsn == start_lsn {
                (range.last, range.end_lsn) = (segment, end_lsn);
                range.segments += 1;
                return;
            }
            range.missing_after = Some(start_lsn.0.saturating_sub(range.end_lsn.0) / size.bytes());
        }
        let range = Range {
            first: segment,
            last: segment,
            segments: 1,
            start_lsn,
            end_lsn,
            missing_after: None,
        };
        self.ranges.push(range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_part_the_ranges() {
        let mut timeline = Timeline {
            timeline: TimelineId(1),
            parent: None,
            ranges: Vec::new(),
        };
        for name in [
            "0000000100000000000000FE",
            "0000000100000000000000FF",
            "000000010000000100000000",
            "000000010000000100000003",
        ] {
            timeline.add(name.parse().unwrap(), SegmentSize::DEFAULT);
        }
        let ranges: Vec<_> = timeline
            .ranges
            .iter()
            .map(|range| (range.segments, range.missing_after))
            .collect();
        assert_eq!(ranges, [(3, Some(2)), (1, None)]);
        assert_eq!(timeline.ranges[0].end_lsn, Lsn(0x1_0100_0000));
    }
}
