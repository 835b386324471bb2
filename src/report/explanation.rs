//! `explain --json`.

use barmanfs_catalog::recovery::{Plan, TargetSpec, TimelineSpan, Unreachable};
use barmanfs_catalog::{BackupId, ServerName};
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{TimelineId, TimestampMicros};
use serde::Serialize;

/// The problem of a plan's backup.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    pub(crate) damaged: bool,
    pub(crate) not_booted: bool,
}

/// How a target would be recovered, or why it cannot be. Both have the same keys.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation<'a> {
    server: &'a ServerName,
    target: &'a TargetSpec,
    reachable: bool,
    path: Option<String>,
    backup: Option<BackupId>,
    damaged: Option<bool>,
    boot_test_failed: Option<bool>,
    timeline: Option<TimelineId>,
    timelines: &'a [TimelineSpan],
    segments: Option<u64>,
    wal_bytes: Option<u64>,
    first_segment: Option<SegmentName>,
    last_segment: Option<SegmentName>,
    receiving: Option<bool>,
    time: Option<TimestampMicros>,
    reaches_time: Option<TimestampMicros>,
    notes: &'a [String],
    why: Option<String>,
    details: Option<&'a Unreachable>,
    nearest: Option<String>,
    hint: Option<String>,
    reachable_along: &'a [TimelineId],
}

impl<'a> Explanation<'a> {
    /// How the target is recovered.
    pub(crate) fn plan(server: &'a ServerName, plan: &'a Plan, doubt: &Doubt) -> Self {
        Self {
            server,
            target: &plan.spec,
            reachable: true,
            path: Some(path_of(server, &plan.spec)),
            backup: Some(plan.backup.id),
            damaged: Some(doubt.damaged),
            boot_test_failed: Some(doubt.not_booted),
            timeline: Some(plan.timeline),
            timelines: &plan.path,
            segments: Some(plan.segments),
            wal_bytes: Some(plan.wal_bytes),
            first_segment: Some(plan.first_segment),
            last_segment: Some(plan.last_segment),
            receiving: Some(plan.ends_in_partial),
            time: plan.time,
            reaches_time: plan.reaches,
            notes: &plan.notes,
            why: None,
            details: None,
            nearest: None,
            hint: None,
            reachable_along: &[],
        }
    }

    /// The reason why the target cannot be recovered, and the timelines on which it could be.
    pub(crate) fn unreachable(
        server: &'a ServerName,
        target: &'a TargetSpec,
        reason: &'a Unreachable,
        elsewhere: &'a [TimelineId],
    ) -> Self {
        Self {
            server,
            target,
            reachable: false,
            path: None,
            backup: None,
            damaged: None,
            boot_test_failed: None,
            timeline: None,
            timelines: &[],
            segments: None,
            wal_bytes: None,
            first_segment: None,
            last_segment: None,
            receiving: None,
            time: None,
            reaches_time: None,
            notes: &[],
            why: Some(reason.to_string()),
            details: Some(reason),
            nearest: reason.nearest(),
            hint: reason.hint(),
            reachable_along: elsewhere,
        }
    }
}

/// The directory of the target below a mount.
pub(crate) fn path_of(server: &ServerName, target: &TargetSpec) -> String {
    format!("{server}/pitr/{target}")
}
