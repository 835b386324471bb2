//! Decides where receiving continues: after the server's WAL that is in the spool and the archive.

use barmanfs_catalog::{Repository, Spool};
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};

use crate::error::Error;
use crate::postgres::SlotPosition;

/// The position to start from: the start of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    /// The timeline to request.
    pub(super) timeline: TimelineId,
    /// The position.
    pub(super) lsn: Lsn,
}

impl Start {
    fn of(segment: SegmentName, size: SegmentSize) -> Self {
        Self {
            timeline: segment.timeline,
            lsn: segment.start_lsn(size),
        }
    }
}

/// The server's history and WAL.
#[derive(Debug)]
pub(super) struct Server<'a> {
    /// Its timeline's history.
    pub(super) history: &'a TimelineHistory,
    /// The end of its WAL.
    pub(super) flush_lsn: Lsn,
    /// The position of the slot.
    pub(super) slot: Option<SlotPosition>,
    /// Size of its segments.
    pub(super) size: SegmentSize,
}

impl Server<'_> {
    /// Whether the server's history contains this segment on this timeline.
    fn has(&self, segment: SegmentName) -> bool {
        segment.timeline == self.history.timeline()
            || self
                .history
                .switch_point(segment.timeline)
                .is_some_and(|switch| segment.start_lsn(self.size) < switch)
    }

    /// The segment after this one in the server's history. If the timeline was left within this segment, it is the next
    /// timeline's segment at the same position, which begins with a copy of the old timeline's WAL.
    fn after(&self, segment: SegmentName) -> SegmentName {
        let next = segment.next(self.size);
        if self.has(next) {
            return next;
        }
        let switch = self.history.switch_point(segment.timeline);
        let follower = self
            .history
            .entries()
            .iter()
            .map(|entry| entry.timeline)
            .find(|timeline| *timeline > segment.timeline)
            .unwrap_or(self.history.timeline());
        SegmentName::from_lsn(follower, switch.unwrap_or(next.start_lsn(self.size)), self.size)
    }

    /// The server's timelines, newest first. For each, the first of its segments that is no longer in the server's
    /// history.
    fn timelines(&self) -> impl Iterator<Item = (TimelineId, Option<SegmentName>)> {
        let ancestors = self.history.entries().iter().rev().map(|entry| {
            // The segment with the switch still belongs to the old timeline, unless the switch is at its very start.
            let last = Lsn(entry.switch_lsn.0.saturating_sub(1));
            let last = SegmentName::from_lsn(entry.timeline, last, self.size);
            (entry.timeline, Some(last.next(self.size)))
        });
        std::iter::once((self.history.timeline(), None)).chain(ancestors)
    }
}

/// Finds the start. Moves segments of the spool that are not in the server's history into the archive.
///
/// The first of these that exists: the incomplete segment in the spool; the segment after the last stored one, or an
/// earlier missing segment that the slot still keeps; the first segment that the slot keeps; the server's current
/// segment.
///
/// # Errors
/// When the server is behind the received WAL: on an older timeline, or at an earlier position.
pub(super) fn find(repository: &Repository, spool: &Spool, server: &Server<'_>) -> Result<Start, Error> {
    let start = match unfinished(spool, server)? {
        Some(segment) => Start::of(segment, server.size),
        None => match last(repository, spool, server)? {
            Some(last) => Start::of(first_missing(repository, spool, server, last)?, server.size),
            None => fresh(server),
        },
    };
    let is_ahead = start.timeline == server.history.timeline() && start.lsn > server.flush_lsn;
    if is_ahead {
        return Err(Error::failed(format!(
            "The server's WAL ends at {}, but WAL up to {} has been received",
            server.flush_lsn, start.lsn
        ))
        .hint("Is it a standby that lags? If it was put back to an earlier state, 'barmanfs history' tells and decides which one counts; then 'receive-wal --reset' starts again at its current segment"));
    }
    Ok(start)
}

/// The incomplete segment in the spool that can be continued.
fn unfinished(spool: &Spool, server: &Server<'_>) -> Result<Option<SegmentName>, Error> {
    let mut found = None;
    for segment in spool.partial()? {
        if segment.timeline > server.history.timeline() {
            return Err(Error::failed(format!(
                "The server is on timeline {}, but WAL of timeline {} has been received",
                server.history.timeline(),
                segment.timeline
            ))
            .hint("Does the connection string lead to an old primary? If this is the right server, 'receive-wal --reset' starts again"));
        }
        if server.has(segment) {
            found = Some(segment);
            continue;
        }
        // After a failover to a server that never had this WAL.
        spool.set_aside(segment)?;
        tracing::error!(
            "Segment {segment} holds WAL that is not in the history of the server's timeline {}: it is kept in the \
             archive as {segment}.partial. Commits in it are not on the server",
            server.history.timeline()
        );
    }
    Ok(found)
}

/// The last complete segment of the server's history, in the archive or in the spool.
fn last(repository: &Repository, spool: &Spool, server: &Server<'_>) -> Result<Option<SegmentName>, Error> {
    let archive = repository.wal(spool.server());
    let complete = spool.complete()?;
    for (timeline, end) in server.timelines() {
        let spooled = complete
            .iter()
            .filter(|segment| segment.timeline == timeline && end.is_none_or(|end| **segment < end))
            .max();
        let archived = archive.last_segment(timeline, end)?;
        if let Some(last) = archived.max(spooled.copied()) {
            return Ok(Some(last));
        }
    }
    Ok(None)
}

/// The first missing segment between the position of the slot and the segment after `last`. There may be one:
/// `archive_command` may have archived the last segment and failed on others.
fn first_missing(
    repository: &Repository,
    spool: &Spool,
    server: &Server<'_>,
    last: SegmentName,
) -> Result<SegmentName, Error> {
    let after = server.after(last);
    let Some(mut segment) = kept(server).filter(|kept| kept.timeline == last.timeline && *kept <= last)
    else {
        return Ok(after);
    };
    let archive = repository.wal(spool.server());
    let complete = spool.complete()?;
    while segment <= last {
        if archive.entry(&WalName::Segment(segment))?.is_none() && !complete.contains(&segment) {
            return Ok(segment);
        }
        segment = segment.next(server.size);
    }
    Ok(after)
}

/// The first segment that the slot keeps.
fn kept(server: &Server<'_>) -> Option<SegmentName> {
    let slot = server.slot?;
    let timeline = slot.restart_timeline.unwrap_or(server.history.timeline());
    Some(SegmentName::from_lsn(timeline, slot.restart_lsn?, server.size))
}

/// The start when nothing has been received so far.
fn fresh(server: &Server<'_>) -> Start {
    let current = SegmentName::from_lsn(server.history.timeline(), server.flush_lsn, server.size);
    Start::of(
        kept(server).filter(|kept| server.has(*kept)).unwrap_or(current),
        server.size,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::MIN;

    fn segment(name: &str) -> SegmentName {
        name.parse().unwrap()
    }

    fn history() -> TimelineHistory {
        let text = b"1\t0/350000\tx\n2\t0/600000\ty\n";
        TimelineHistory::parse(text, TimelineId(4)).unwrap()
    }

    fn server(history: &TimelineHistory) -> Server<'_> {
        Server {
            history,
            flush_lsn: Lsn(0x90_0000),
            slot: None,
            size: SIZE,
        }
    }

    #[test]
    fn the_server_has_an_ancestors_segments_up_to_the_switch() {
        let history = history();
        let server = server(&history);
        assert!(server.has(segment("000000010000000000000003")));
        assert!(!server.has(segment("000000010000000000000004")));
        assert!(server.has(segment("000000020000000000000005")));
        assert!(
            !server.has(segment("000000020000000000000006")),
            "left at its very start"
        );
        assert!(server.has(segment("000000040000000000000020")));
        assert!(!server.has(segment("000000030000000000000003")), "no ancestor");
    }

    #[test]
    fn the_last_segment_of_a_timeline_leads_to_the_next_timeline() {
        let history = history();
        let server = server(&history);
        let after = |name| server.after(segment(name)).to_string();
        assert_eq!(after("000000010000000000000001"), "000000010000000000000002");
        assert_eq!(after("000000010000000000000003"), "000000020000000000000003");
        assert_eq!(after("000000020000000000000005"), "000000040000000000000006");
        assert_eq!(after("000000040000000000000006"), "000000040000000000000007");
    }

    #[test]
    fn timelines_are_searched_from_the_newest() {
        let history = history();
        let found: Vec<_> = server(&history)
            .timelines()
            .map(|(timeline, end)| (timeline.0, end.map(|end| end.to_string())))
            .collect();
        let expected = [
            (4, None),
            (2, Some("000000020000000000000006")),
            (1, Some("000000010000000000000004")),
        ];
        assert_eq!(found, expected.map(|(id, end)| (id, end.map(str::to_owned))));
    }

    #[test]
    fn without_anything_received_the_slot_decides_and_then_the_server() {
        let history = history();
        let mut server = server(&history);
        let at = |server: &Server<'_>| {
            let start = fresh(server);
            (start.timeline.0, start.lsn.0)
        };
        assert_eq!(at(&server), (4, 0x90_0000));
        server.slot = Some(SlotPosition {
            restart_lsn: Some(Lsn(0x51_2345)),
            restart_timeline: Some(TimelineId(2)),
        });
        assert_eq!(at(&server), (2, 0x50_0000));
        server.slot = Some(SlotPosition {
            restart_lsn: None,
            restart_timeline: None,
        });
        assert_eq!(at(&server), (4, 0x90_0000));
    }
}
