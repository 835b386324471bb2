//! The facts about a server's WAL: on the server, and in the repository.

use std::collections::{BTreeMap, BTreeSet};

use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId, TimestampMicros};

use crate::config::{Age, Archiver};
use crate::invocation::Invocation;

/// Maximum number of segments to look for in the archive, back from the server's current one. If a server has written
/// more since its newest backup, only "WAL without gaps" checks the oldest segments.
pub(super) const MAX_LOOKED_FOR: u64 = 20_000;

/// All facts for the rules.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// The server's name in the configuration.
    pub(super) server: String,
    /// The command line of this program.
    pub(super) invocation: Invocation,
    /// The configuration: whether WAL comes through `archive_command`.
    pub(super) archiver: Archiver,
    /// The configuration: whether WAL comes through `receive-wal`.
    pub(super) streams: bool,
    /// The configuration: the maximum age of the last arrival, while the server writes.
    pub(super) wal_age: Option<Age>,
    /// The server's settings.
    pub(super) settings: Settings,
    /// Its clock; `None` without SQL.
    pub(super) now: Option<TimestampMicros>,
    /// Whether it is a standby.
    pub(super) in_recovery: bool,
    /// `pg_stat_archiver`.
    pub(super) archiver_stats: Option<ArchiverStats>,
    /// Files that wait for `archive_command`; `None` if the role may not see them.
    pub(super) ready: Option<Ready>,
    /// The files in `pg_wal` with the time of their last write; `None` if the role may not see them.
    pub(super) pg_wal: Option<BTreeMap<WalName, TimestampMicros>>,
    /// Its present timeline.
    pub(super) timeline: TimelineId,
    /// The end of its flushed WAL.
    pub(super) flush_lsn: Lsn,
    /// The end of the flushed WAL where commits are made: the same or, of a standby, its primary's; `None` if that is not
    /// known.
    pub(super) origin_lsn: Option<Lsn>,
    /// Size of its segments.
    pub(super) segment_size: SegmentSize,
    /// The ancestors of its timeline; `None` if the server could not return them.
    pub(super) history: Option<TimelineHistory>,
    /// The state of the repository; `None` without a repository.
    pub(super) here: Option<Here>,
}

/// The running server's settings about archiving.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    /// `archive_mode`
    pub(super) archive_mode: String,
    /// `archive_command`, which is "(disabled)" while `archive_mode` is off.
    pub(super) archive_command: String,
    /// `archive_library`; empty before PostgreSQL 15.
    pub(super) archive_library: String,
}

/// `pg_stat_archiver`
#[derive(Debug, Clone, Default)]
pub(super) struct ArchiverStats {
    pub(super) archived_count: u64,
    pub(super) last_archived_wal: Option<String>,
    pub(super) last_archived_time: Option<TimestampMicros>,
    pub(super) failed_count: u64,
    pub(super) last_failed_wal: Option<String>,
    pub(super) last_failed_time: Option<TimestampMicros>,
}

/// Files in `archive_status` that end with `.ready`.
#[derive(Debug, Clone, Default)]
pub(super) struct Ready {
    pub(super) count: u64,
    /// The file that has been waiting longest, and since when.
    pub(super) oldest: Option<(String, TimestampMicros)>,
}

/// The stored state of the server.
#[derive(Debug, Clone, Default)]
pub(super) struct Here {
    /// Whether anything was ever archived.
    pub(super) any_segment: bool,
    /// Whether the last archived file according to `pg_stat_archiver` is in the archive.
    pub(super) has_last_archived: bool,
    /// Whether the history of the server's timeline is archived; true for the first timeline, which has none.
    pub(super) has_history: bool,
    /// Required segments that are neither archived nor complete in the spool, in order.
    pub(super) missing: Vec<SegmentName>,
    /// The timeline and the end of the newest complete backup.
    pub(super) newest_backup: Option<(TimelineId, Lsn)>,
    /// The newest archived segment of the server's timeline.
    pub(super) newest_segment: Option<SegmentName>,
    /// The end of the WAL of the server's history that is here, archived or received.
    pub(super) end: Option<Lsn>,
    /// The last arrival.
    pub(super) last_arrival: Option<Arrival>,
    /// A timeline that left the server's timeline at a position which the server has since passed.
    pub(super) left_at: Option<(TimelineId, Lsn)>,
    /// Missing segments that are archived according to the server.
    pub(super) done: BTreeSet<SegmentName>,
}

/// When WAL last arrived, by this host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) at: TimestampMicros,
    /// Seconds since then; less than 0 if the clock was set back.
    pub(super) age_seconds: i64,
}

impl Facts {
    /// Whether the server runs an `archive_command` at all: a standby only with `archive_mode = always`.
    pub(super) fn runs_archiver(&self) -> bool {
        match self.settings.archive_mode.as_str() {
            "off" => false,
            "always" => true,
            _ => !self.in_recovery,
        }
    }

    /// The segments that the archive should have by now, in order: all that the server has completed since the newest
    /// backup or, without a backup, since the last archived segment.
    pub(super) fn required(
        &self,
        newest_backup: Option<(TimelineId, Lsn)>,
        newest_segment: Option<SegmentName>,
    ) -> Vec<SegmentName> {
        let size = self.segment_size;
        let current = self.flush_lsn.segment_number(size);
        let first = match (newest_backup, newest_segment) {
            // The segment with the backup's end is archived or included in the backup.
            (Some((timeline, stop)), _) if self.has_ancestor(timeline) => {
                Lsn(stop.0.saturating_sub(1)).segment_number(size) + 1
            }
            (_, Some(segment)) => segment.start_lsn(size).segment_number(size) + 1,
            _ => return Vec::new(),
        };
        (first.max(current.saturating_sub(MAX_LOOKED_FOR))..current)
            .map(|number| {
                let start = Lsn(number.saturating_mul(size.bytes()));
                SegmentName::from_lsn(self.timeline_at(start), start, size)
            })
            .collect()
    }

    /// Whether this is the server's timeline or one of its ancestors.
    pub(super) fn has_ancestor(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline
            || self
                .history
                .as_ref()
                .is_some_and(|history| history.switch_point(timeline).is_some())
    }

    /// The timelines of the server's history, from the present one back, each with the place where it was left.
    pub(super) fn timelines(&self) -> Vec<(TimelineId, Option<Lsn>)> {
        let entries = self.history.iter().flat_map(TimelineHistory::entries);
        let mut before: Vec<_> = entries
            .map(|entry| (entry.timeline, Some(entry.switch_lsn)))
            .collect();
        before.reverse();
        [(self.timeline, None)].into_iter().chain(before).collect()
    }

    /// The timeline in the name of the segment that begins at `start`. If a timeline was left within the segment, it is
    /// the later one.
    fn timeline_at(&self, start: Lsn) -> TimelineId {
        let end = Lsn(start.0.saturating_add(self.segment_size.bytes()));
        let entries = self.history.iter().flat_map(TimelineHistory::entries);
        entries
            .filter(|entry| end <= entry.switch_lsn)
            .map(|entry| entry.timeline)
            .next()
            .unwrap_or(self.timeline)
    }
}
