//! What `cron` remembers, and what its memory says.
//!
//! A field that an earlier release did not write has its default.

use std::collections::BTreeMap;

use barmanfs_pg::TimestampMicros;
use serde::{Deserialize, Serialize};

use super::CronTask;
use crate::archive::backup::{Backup, BackupKind, boot_test};
use crate::names::BackupId;
use crate::retention::Quiet;
use crate::upkeep::verify::round::VerifyRound;

/// Longest text that is remembered of an error.
const ERROR_BYTES: usize = 2000;

/// The last time that a task was started, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskMemory {
    /// When it was started.
    pub began_at: TimestampMicros,
    /// When it ended; none while it runs, and when it was killed.
    #[serde(default)]
    pub ended_at: Option<TimestampMicros>,
    /// What it did, in one line.
    #[serde(default)]
    pub result: Option<String>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
    /// How often it has failed since it last succeeded.
    #[serde(default)]
    pub failures: u32,
}

/// What a comparison of an incremental backup with its server found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditMemory {
    /// The backup that was compared.
    pub backup: BackupId,
    /// When.
    pub at: TimestampMicros,
    /// Pages that were compared.
    pub pages: u64,
    /// Why none could be compared, if so.
    #[serde(default)]
    pub refused: Option<String>,
    /// The first page that differs: no incremental backup is built on this one any more.
    #[serde(default)]
    pub difference: Option<String>,
}

/// What `cron` remembers of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMemory {
    /// When it last looked at the server.
    #[serde(default)]
    pub ran_at: Option<TimestampMicros>,
    /// What went wrong then.
    #[serde(default)]
    pub error: Option<String>,
    /// What it started.
    #[serde(default)]
    pub tasks: BTreeMap<CronTask, TaskMemory>,
    /// The checks of which `notify_command` has been told that they fail, and why.
    #[serde(default)]
    pub failing: BTreeMap<String, String>,
    /// The last audit of an incremental backup.
    #[serde(default)]
    pub audit: Option<AuditMemory>,
    /// That its policies find nothing to delete for a while.
    #[serde(default)]
    pub quiet: Option<Quiet>,
    /// The last audit that found a difference. It counts until a full backup has been taken since.
    #[serde(default)]
    pub difference: Option<AuditMemory>,
}

/// What `cron` remembers of the whole repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryMemory {
    /// When it last ran to its end.
    #[serde(default)]
    pub ran_at: Option<TimestampMicros>,
    /// The last leap of the clock between two runs.
    #[serde(default)]
    pub leap: Option<ClockLeap>,
    /// What it started.
    #[serde(default)]
    pub tasks: BTreeMap<CronTask, TaskMemory>,
    /// How far the packs have been read back.
    #[serde(default)]
    pub verification: VerifyRound,
    /// When a part of them was last read.
    #[serde(default)]
    pub verified_at: Option<TimestampMicros>,
    /// When the catalog's file was last read from one end to the other.
    #[serde(default)]
    pub catalog_read_at: Option<TimestampMicros>,
    /// What was wrong with it then.
    #[serde(default)]
    pub catalog_faults: Vec<String>,
    /// The number of the last record that the last sweep has seen.
    #[serde(default)]
    pub swept_through: i64,
    /// When it was last computed whether a sweep pays.
    #[serde(default)]
    pub weighed_at: Option<TimestampMicros>,
    /// How fast the last restores on each host were.
    #[serde(default)]
    pub restores: BTreeMap<String, RestoreRates>,
}

/// The clock went further between two runs than it does when `cron` runs each minute, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockLeap {
    /// When the last run was.
    pub from: TimestampMicros,
    /// When the next one began.
    pub to: TimestampMicros,
}

impl ClockLeap {
    /// A host is down for a weekend.
    const FORWARD: i64 = 7 * 24 * 3600 * 1_000_000;
    /// A clock is set right by a few minutes.
    const BACK: i64 = 3600 * 1_000_000;

    pub(super) fn between(from: TimestampMicros, to: TimestampMicros) -> Option<Self> {
        let micros = to.unix_micros().saturating_sub(from.unix_micros());
        let is_leap = !(-Self::BACK..=Self::FORWARD).contains(&micros);
        is_leap.then_some(Self { from, to })
    }
}

/// How fast the last restores on a host were, for estimates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRates {
    /// Bytes that were written per second.
    #[serde(default)]
    pub copy_bytes_per_second: Option<u64>,
    /// Bytes of WAL that were replayed per second.
    #[serde(default)]
    pub replay_bytes_per_second: Option<u64>,
}

impl ServerMemory {
    /// The audit that found a difference, unless one of these backups of the server is a full one that began since.
    pub fn open_difference(&self, backups: &[Backup]) -> Option<&AuditMemory> {
        let found = self.difference.as_ref()?;
        let settles = |backup: &Backup| {
            backup.kind == BackupKind::Full && backup.is_complete() && backup.begin_time > found.at
        };
        (!backups.iter().any(settles)).then_some(found)
    }
}

impl TaskMemory {
    /// Notes in `tasks` that a task is started now.
    pub fn begin(tasks: &mut BTreeMap<CronTask, Self>, task: CronTask, at: TimestampMicros) {
        // A task that has not ended was killed.
        let failures = tasks.get(&task).map_or(0, |last| {
            last.failures.saturating_add(u32::from(last.ended_at.is_none()))
        });
        let begun = Self {
            began_at: at,
            ended_at: None,
            result: None,
            error: None,
            failures,
        };
        tasks.insert(task, begun);
    }

    /// Notes that a task that was begun has done nothing, because it was not its turn. That is neither a failure nor a
    /// success.
    pub fn put_off(tasks: &mut BTreeMap<CronTask, Self>, task: CronTask, at: TimestampMicros) {
        if let Some(memory) = tasks.get_mut(&task) {
            memory.ended_at = Some(at);
            memory.error = Some("another one is running".to_owned());
        }
    }

    /// Notes how a task that was begun has ended.
    pub fn end(
        tasks: &mut BTreeMap<CronTask, Self>,
        task: CronTask,
        at: TimestampMicros,
        ended: Result<String, String>,
    ) {
        if let Some(memory) = tasks.get_mut(&task) {
            memory.ended_at = Some(at);
            match ended {
                Ok(result) => {
                    memory.result = Some(cut(&result));
                    memory.error = None;
                    memory.failures = 0;
                }
                Err(error) => {
                    memory.error = Some(cut(&error));
                    memory.failures = memory.failures.saturating_add(1);
                }
            }
        }
    }
}

/// What is remembered of an error.
pub(super) fn cut(text: &str) -> String {
    let mut text = text.to_owned();
    boot_test::cut(&mut text, ERROR_BYTES);
    text
}
