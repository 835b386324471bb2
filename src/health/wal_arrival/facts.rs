//! What is known of a server's WAL: on the server, and here.

use std::collections::{BTreeMap, BTreeSet};

use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId, TimestampMicros};

use crate::config::{Age, Archiver};
use crate::invocation::Invocation;

/// Segments that are looked for in the archive, from the server's current one back. A server that wrote more since its
/// newest backup has its oldest ones looked for by "WAL without gaps" alone.
pub(super) const MAX_LOOKED_FOR: u64 = 20_000;

/// Everything the rules decide by.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// The server's name here.
    pub(super) server: String,
    /// How this program is called.
    pub(super) invocation: Invocation,
    /// The configuration: does WAL come through `archive_command`?
    pub(super) archiver: Archiver,
    /// The configuration: does WAL come through `receive-wal`?
    pub(super) streams: bool,
    /// The configuration: how old may be what arrived last, while the server writes?
    pub(super) wal_age: Option<Age>,
    /// The server's settings.
    pub(super) settings: Settings,
    /// Its clock; none where SQL could not be asked.
    pub(super) now: Option<TimestampMicros>,
    /// Whether it is a standby.
    pub(super) in_recovery: bool,
    /// `pg_stat_archiver`.
    pub(super) archiver_stats: Option<ArchiverStats>,
    /// What waits for `archive_command`; none where the role may not look.
    pub(super) ready: Option<Ready>,
    /// The files in `pg_wal` with the time of their last write; none where the role may not look.
    pub(super) pg_wal: Option<BTreeMap<WalName, TimestampMicros>>,
    /// The timeline it writes.
    pub(super) timeline: TimelineId,
    /// How far its WAL is written.
    pub(super) flush_lsn: Lsn,
    /// Size of its segments.
    pub(super) segment_size: SegmentSize,
    /// The ancestors of its timeline; `None` where the server could not say.
    pub(super) history: Option<TimelineHistory>,
    /// What is here; none without a repository.
    pub(super) here: Option<Here>,
}

/// The server's settings that decide about archiving, as the running server has them.
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
    /// The one that waits longest, and since when.
    pub(super) oldest: Option<(String, TimestampMicros)>,
}

/// What the repository has of the server.
#[derive(Debug, Clone, Default)]
pub(super) struct Here {
    /// Whether anything was ever archived.
    pub(super) any_segment: bool,
    /// Whether the file that `pg_stat_archiver` calls the last archived one is here.
    pub(super) has_last_archived: bool,
    /// Whether the history of the server's timeline is here; true for the first, which has none.
    pub(super) has_history: bool,
    /// Required segments that are neither archived nor whole in the spool, in order.
    pub(super) missing: Vec<SegmentName>,
    /// The timeline and the end of the newest complete backup.
    pub(super) newest_backup: Option<(TimelineId, Lsn)>,
    /// The newest archived segment of the server's timeline.
    pub(super) newest_segment: Option<SegmentName>,
    /// When the last WAL arrived, by this host's clock, and how long ago that is in seconds.
    pub(super) last_arrival: Option<(TimestampMicros, u64)>,
    /// Timelines that left the server's one behind which it has written more.
    pub(super) left_at: Option<(TimelineId, Lsn)>,
    /// Missing segments that the server itself calls archived.
    pub(super) done: BTreeSet<SegmentName>,
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

    /// What the archive should have by now, in order: all that the server has completed since the newest backup or,
    /// without one, since what was archived last.
    pub(super) fn required(
        &self,
        newest_backup: Option<(TimelineId, Lsn)>,
        newest_segment: Option<SegmentName>,
    ) -> Vec<SegmentName> {
        let size = self.segment_size;
        let current = self.flush_lsn.segment_number(size);
        let first = match (newest_backup, newest_segment) {
            // The segment with the backup's end is archived, or came with the backup.
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

    /// Whether the server's timeline is this one or goes back to it.
    pub(super) fn has_ancestor(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline
            || self
                .history
                .as_ref()
                .is_some_and(|history| history.switch_point(timeline).is_some())
    }

    /// The timeline whose name the segment that begins at `start` has: where one was left in a segment, that is the
    /// later one's.
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
