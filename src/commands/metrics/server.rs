//! The metrics of a server.

use std::collections::BTreeMap;

use barmanfs_catalog::{BootOutcome, CronTask, TaskMemory};
use barmanfs_pg::TimestampMicros;

use super::families as of;
use super::sheet::{Family, Sheet};
use crate::error::Error;
use crate::health::{Checked, Figures, Finding, State};

/// Adds what is known of a server.
pub(super) fn add(sheet: &mut Sheet, server: &str, checked: &Checked) -> Result<(), Error> {
    let figures = &checked.figures;
    if let Some(is_up) = figures.is_up {
        sheet.add(&of::UP, &[server], u64::from(is_up))?;
    }
    add_checks(sheet, server, &checked.findings)?;
    for (status, count) in &figures.backups {
        let status = status.as_str().to_ascii_lowercase();
        sheet.add(&of::BACKUPS, &[server, &status], *count as u64)?;
    }
    if let Some(memory) = &figures.cron {
        cron(sheet, server, memory.ran_at, &memory.tasks)?;
    }
    for (family, value) in whole(figures) {
        if let Some(value) = value {
            sheet.add(&family, &[server], value)?;
        }
    }
    for (family, value) in fractions(figures) {
        if let Some(value) = value {
            sheet.add_fraction(&family, &[server], value)?;
        }
    }
    Ok(())
}

/// Adds the results of checks of a server; of the repository, if its name is empty.
pub(super) fn add_checks(sheet: &mut Sheet, server: &str, findings: &[Finding]) -> Result<(), Error> {
    for finding in findings {
        let labels = [server, finding.name];
        sheet.add(&of::CHECK_STATUS, &labels, number(finding.state))?;
    }
    Ok(())
}

/// Adds what cron remembers of a server; of the repository, if its name is empty.
pub(super) fn cron(
    sheet: &mut Sheet,
    server: &str,
    ran_at: Option<TimestampMicros>,
    tasks: &BTreeMap<CronTask, TaskMemory>,
) -> Result<(), Error> {
    if let Some(ran_at) = ran_at {
        sheet.add_fraction(&of::CRON_RUN, &[server], seconds(ran_at))?;
    }
    for (task, memory) in tasks {
        let labels = [server, task.as_str()];
        sheet.add_fraction(&of::TASK_START, &labels, seconds(memory.began_at))?;
        sheet.add(&of::TASK_FAILURES, &labels, memory.failures.into())?;
        if let Some(ended_at) = memory.ended_at {
            let took = seconds(ended_at) - seconds(memory.began_at);
            sheet.add_fraction(&of::TASK_DURATION, &labels, took.max(0.0))?;
        }
    }
    Ok(())
}

fn number(state: State) -> u64 {
    match state {
        State::Ok => 0,
        State::Warning => 1,
        State::Failed => 2,
    }
}

fn whole(figures: &Figures) -> [(Family, Option<u64>); 17] {
    let count = |number: Option<usize>| number.map(|number| number as u64);
    let newest = figures.newest;
    let passed = figures
        .boot_test
        .as_ref()
        .map(|test| test.outcome == BootOutcome::Ok);
    [
        (of::LAST_BACKUP_SIZE, newest.map(|backup| backup.logical_bytes)),
        (of::LAST_BACKUP_SENT, newest.map(|backup| backup.sent_bytes)),
        (
            of::LAST_BACKUP_ADDED,
            newest.map(|backup| backup.new_stored_bytes),
        ),
        (of::DAMAGED_BACKUPS, count(figures.damaged)),
        (of::BOOT_TEST_SUCCESS, passed.map(u64::from)),
        // What nobody has found out in time is not known either.
        (
            of::RPO_KNOWN,
            Some(figures.is_rpo_known.unwrap_or_default().into()),
        ),
        (of::RPO_BYTES, figures.rpo_bytes),
        (of::WAL_SINCE_BACKUP, figures.wal_bytes),
        (of::GAPS, count(figures.gaps)),
        (of::OPEN_FORKS, count(figures.open_forks)),
        (of::QUARANTINED, count(figures.quarantined)),
        (of::SPOOLED, count(figures.spooled)),
        (of::RECEIVER_RUNNING, figures.is_received.map(u64::from)),
        (of::RECEIVER_LAG, figures.lag.map(|lag| lag.bytes)),
        (of::RECEIVER_SILENCE, figures.lag.map(|lag| lag.reported_seconds)),
        (of::WAITING_FILES, figures.waiting_files),
        (of::CLONES, count(figures.clones)),
    ]
}

fn fractions(figures: &Figures) -> [(Family, Option<f64>); 11] {
    let newest = figures.newest;
    let test = figures.boot_test.as_ref();
    [
        (of::FIRST_BACKUP_END, figures.oldest_end.map(seconds)),
        (of::LAST_BACKUP_END, newest.map(|backup| seconds(backup.ended))),
        (
            of::LAST_BACKUP_DURATION,
            newest.map(|backup| (seconds(backup.ended) - seconds(backup.began)).max(0.0)),
        ),
        (of::BOOT_TEST_START, test.map(|test| seconds(test.began_at))),
        #[expect(clippy::cast_precision_loss, reason = "a test takes minutes")]
        (of::BOOT_TEST_DURATION, test.map(|test| test.took_ms as f64 / 1e3)),
        (of::RECOVERABLE_FROM, figures.earliest.map(seconds)),
        (of::RECOVERABLE_TO, figures.newest_state.map(seconds)),
        (of::RPO_SECONDS, figures.rpo_seconds),
        (of::LAST_WAL, figures.last_wal.map(seconds)),
        (of::LAST_SYNC, figures.synced.map(seconds)),
        (of::OLDEST_CLONE, figures.oldest_clone.map(seconds)),
    ]
}

/// Seconds since 1970.
#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds since 1970 fit for centuries"
)]
pub(super) fn seconds(time: TimestampMicros) -> f64 {
    time.unix_micros() as f64 / 1e6
}
