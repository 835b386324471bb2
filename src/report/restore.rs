//! `restore --json`.

use std::path::Path;
use std::time::Duration;

use barmanfs_catalog::recovery::{Plan, TargetSpec};
use barmanfs_catalog::{Backup, BackupId, RestoreRates, ServerName};
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};
use serde::Serialize;

use crate::restore::catch_up::CaughtUp;
use crate::restore::configuration::RestoredConfiguration;
use crate::restore::part::Part;
use crate::restore::rates::time_for;
use crate::restore::settings::NotableSetting;
use crate::restore::watch::{Reached, Replay, TimeSource, Watched};
use crate::restore::{Ready, Restored};

/// A tablespace that is not in the data directory.
#[derive(Debug, Serialize)]
pub(crate) struct RelocatedTablespace {
    pub(crate) oid: u32,
    pub(crate) location: String,
}

/// What is restored, and what was done.
#[derive(Debug, Serialize)]
#[allow(clippy::struct_excessive_bools, reason = "keys of a document")]
pub(crate) struct RestoreReport<'a> {
    server: &'a ServerName,
    pub(crate) backup: BackupId,
    target: Option<&'a TargetSpec>,
    pub(crate) directory: String,
    /// Whether the directory is on another host.
    pub(crate) remote: bool,
    /// "vacant", "incomplete", "older" or "cloned": what the directory held.
    pub(crate) state: &'static str,
    pub(crate) dry_run: bool,
    pub(crate) standby: bool,
    get_wal: bool,
    timeline: Option<TimelineId>,
    time: Option<TimestampMicros>,
    segments: Option<u64>,
    wal_bytes: Option<u64>,
    first_segment: Option<SegmentName>,
    last_segment: Option<SegmentName>,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    disk_bytes: u64,
    written_bytes: u64,
    pub(crate) removed: Vec<String>,
    elapsed_seconds: f64,
    /// Estimates, by what was measured on this host.
    pub(crate) expected_copy_seconds: Option<f64>,
    pub(crate) expected_replay_seconds: Option<f64>,
    pub(crate) tablespaces: Vec<RelocatedTablespace>,
    /// Where the WAL is, if it is not in the directory.
    pub(crate) wal_directory: Option<String>,
    pub(crate) settings: Vec<NotableSetting>,
    /// Configuration files outside the directory.
    pub(crate) configuration: Option<RestoredConfiguration>,
    pub(crate) notes: Vec<String>,
    /// Of `catchup`: what it has found and leaves.
    #[serde(skip)]
    pub(crate) catchup: Option<CaughtUp>,
}

/// `catchup --json`.
#[derive(Debug, Serialize)]
pub(crate) struct CatchupDocument<'a> {
    #[serde(flatten)]
    pub(crate) restore: &'a RestoreReport<'a>,
    #[serde(flatten)]
    pub(crate) catchup: &'a CaughtUp,
}

impl<'a> RestoreReport<'a> {
    /// Before anything is written.
    pub(crate) fn new(backup: &'a Backup, plan: Option<&'a Plan>, ready: &Ready) -> Self {
        let tablespaces = ready
            .relocations()
            .tablespaces()
            .map(|(oid, location)| RelocatedTablespace {
                oid,
                location: location.display().to_string(),
            });
        Self {
            server: &backup.server,
            backup: backup.id,
            target: plan.map(|plan| &plan.spec),
            directory: ready.directory().display().to_string(),
            remote: matches!(ready, Ready::There(_)),
            state: ready.state(),
            dry_run: false,
            standby: false,
            get_wal: plan.is_some_and(|plan| !plan.spec.self_contained),
            timeline: plan.map(|plan| plan.timeline),
            time: plan.and_then(|plan| plan.time),
            segments: plan.map(|plan| plan.segments),
            wal_bytes: plan.map(|plan| plan.wal_bytes),
            first_segment: plan.map(|plan| plan.first_segment),
            last_segment: plan.map(|plan| plan.last_segment),
            files: ready.size().files,
            bytes: ready.size().bytes,
            disk_bytes: ready.size().disk_bytes(),
            written_bytes: 0,
            removed: Vec::new(),
            elapsed_seconds: 0.0,
            expected_copy_seconds: None,
            expected_replay_seconds: None,
            tablespaces: tablespaces.collect(),
            wal_directory: ready
                .relocations()
                .of(Part::Wal)
                .map(|place| place.display().to_string()),
            settings: Vec::new(),
            configuration: None,
            notes: Vec::new(),
            catchup: None,
        }
    }

    /// Of a snapshot, whose files are there already.
    pub(crate) fn on_disks(backup: &'a Backup, plan: &'a Plan, directory: &Path, remote: bool) -> Self {
        Self {
            server: &backup.server,
            backup: backup.id,
            target: Some(&plan.spec),
            directory: directory.display().to_string(),
            remote,
            state: "cloned",
            dry_run: false,
            standby: false,
            get_wal: true,
            timeline: Some(plan.timeline),
            time: plan.time,
            segments: Some(plan.segments),
            wal_bytes: Some(plan.wal_bytes),
            first_segment: Some(plan.first_segment),
            last_segment: Some(plan.last_segment),
            files: 0,
            bytes: 0,
            disk_bytes: 0,
            written_bytes: 0,
            removed: Vec::new(),
            elapsed_seconds: 0.0,
            expected_copy_seconds: None,
            expected_replay_seconds: None,
            tablespaces: Vec::new(),
            wal_directory: None,
            settings: Vec::new(),
            configuration: None,
            notes: Vec::new(),
            catchup: None,
        }
    }

    /// Adds how long it may take.
    pub(crate) fn estimate(&mut self, rates: &RestoreRates) {
        // Nothing is known of the network, and of the other host.
        if self.remote {
            return;
        }
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        self.expected_copy_seconds = seconds(time_for(self.bytes, rates.copy_bytes_per_second));
        let wal_bytes = self.wal_bytes.unwrap_or_default();
        self.expected_replay_seconds = seconds(time_for(wal_bytes, rates.replay_bytes_per_second));
    }

    /// Adds what was done.
    pub(crate) fn take(&mut self, restored: &Restored) {
        self.written_bytes = restored.written_bytes;
        self.removed = restored
            .removed
            .iter()
            .map(|path| crate::output::printable(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())))
            .collect();
        self.elapsed_seconds = restored.elapsed.as_secs_f64();
    }
}

/// `restore --watch --json`.
#[derive(Debug, Serialize)]
pub(crate) struct ReplayReport {
    directory: String,
    server: Option<ServerName>,
    /// "not_running", "starting", "replaying", "paused" or "ready".
    state: &'static str,
    segment: Option<SegmentName>,
    lsn: Option<Lsn>,
    time: Option<TimestampMicros>,
    time_source: Option<TimeSource>,
    segments_done: Option<u64>,
    segments_left: Option<u64>,
    expected_seconds: Option<f64>,
}

impl ReplayReport {
    /// How far a replay is now.
    pub(crate) fn new(
        directory: &Path,
        watched: &Watched,
        replay: Replay,
        reached: &Reached,
        rates: &RestoreRates,
    ) -> Self {
        let (state, segment) = match replay {
            Replay::NotRunning => ("not_running", None),
            Replay::Starting => ("starting", None),
            Replay::At(segment) => ("replaying", Some(segment)),
            Replay::Paused => ("paused", None),
            Replay::Ready => ("ready", None),
        };
        let segments = segment.and_then(|segment| watched.segments(segment));
        let left = segments.map(|(done, all)| all.saturating_sub(done));
        let left_bytes = left.map(|left| left.saturating_mul(watched.segment_bytes()));
        let expected = left_bytes.and_then(|bytes| time_for(bytes, rates.replay_bytes_per_second));
        Self {
            directory: directory.display().to_string(),
            server: watched.server.clone(),
            state,
            segment,
            lsn: reached.lsn,
            time: reached.time.map(|(time, _)| time),
            time_source: reached.time.map(|(_, source)| source),
            segments_done: segments.map(|(done, _)| done),
            segments_left: left,
            expected_seconds: expected.map(|time| time.as_secs_f64()),
        }
    }
}
