//! Until when a server's rules find nothing to delete, so that nobody need ask them each hour.
//!
//! To plan a deletion, all packs must be surveyed and all backups be judged. Where a plan was empty, it stays empty until a
//! moment that is known, unless something that it was made of changes: the rules, a record that is not of WAL, or WAL that
//! is not the continuation of what was there. Where more can change it (a clone, a reader, a backup that runs), nothing is
//! promised. A test compares this with the plans themselves.

use std::time::Duration;

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{TimelineId, TimestampMicros};
use barmanfs_store::RecordId;
use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

use crate::archive::backup::{Backup, BackupStatus};
use crate::error::Result;
use crate::index::repository::Repository;
use crate::names::ServerName;
use crate::retention::policy::BackupPolicy;
use crate::retention::{JudgedBackup, RetentionPlan, RetentionRules, is_judged};

/// A promise lasts no longer: whatever it has overlooked is deleted a day late at most.
const AT_MOST: Duration = Duration::from_secs(24 * 3600);

/// The newest record that is not of WAL: its number, and which it is.
pub type NewestRecord = Option<(i64, RecordId)>;

/// What a plan is made of, as far as it changes. It is taken before the plan is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionBasis {
    newest: NewestRecord,
    head: Option<SegmentName>,
    files: u64,
}

/// The promise that rules find nothing to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiet {
    rules: String,
    since: TimestampMicros,
    until: TimestampMicros,
    newest: NewestRecord,
    /// The newest segment; `None` if the rules do not concern WAL.
    head: Option<String>,
    files: u64,
}

impl Repository {
    /// The newest record that is not of WAL. One look serves all servers.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn newest_record(&self) -> Result<NewestRecord> {
        self.db.read(|db| {
            let mut newest = db.prepare_cached(
                "SELECT seq, id FROM records
                 WHERE seq = (SELECT max(seq) FROM records INDEXED BY records_but_wal WHERE kind <> 2)",
            )?;
            let found = newest.query_row([], |row| Ok((row.get(0)?, RecordId(row.get(1)?))));
            Ok(found.optional()?)
        })
    }

    /// What the plan that is made next will be made of.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn retention_basis(&self, server: &ServerName) -> Result<RetentionBasis> {
        let wal = self.wal(server);
        Ok(RetentionBasis {
            newest: self.newest_record()?,
            head: wal.newest_segment()?.and_then(|entry| entry.name.segment()),
            files: wal.totals()?.files,
        })
    }

    /// The promise that follows from a plan, if one does.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn quiet_after(
        &self,
        server: &ServerName,
        rules: &RetentionRules,
        plan: &RetentionPlan,
        basis: &RetentionBasis,
        now: TimestampMicros,
    ) -> Result<Option<Quiet>> {
        let is_empty = plan.blocked.is_none() && plan.doomed().next().is_none() && plan.wal.is_empty();
        if !is_empty || rules.has_policy() && plan.wal_blocked.is_some() || !self.clones(server)?.is_empty() {
            return Ok(None);
        }
        let backups = self.backups(server)?;
        let judged: Vec<(&Backup, &JudgedBackup)> = backups.iter().zip(plan.backups.iter().rev()).collect();
        if backups.len() != plan.backups.len() || judged.iter().any(|(backup, judged)| backup.id != judged.id)
        {
            return Ok(None);
        }
        let known = self.reliability(&backups)?;
        for (backup, judged) in &judged {
            if known.is_doubtful(backup.id) || !judged.keeps_wal && self.is_being_read(backup)? {
                return Ok(None);
            }
        }
        let Some(until) = until(&judged, rules, now) else {
            return Ok(None);
        };
        // From this on, each segment that continues the newest timeline is needed.
        let is_anchored = judged.iter().any(|(backup, judged)| {
            is_judged(backup) && judged.keeps_wal && backup.timeline == basis.head.map(|head| head.timeline)
        });
        if rules.has_policy() && !(is_anchored && basis.head.is_some()) {
            return Ok(None);
        }
        Ok(Some(Quiet {
            rules: text(rules),
            since: now,
            until,
            newest: basis.newest,
            head: basis
                .head
                .filter(|_| rules.has_policy())
                .map(|head| head.to_string()),
            files: basis.files,
        }))
    }

    /// Whether a promise holds now. `newest` is the newest record now.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn is_quiet(
        &self,
        server: &ServerName,
        rules: &RetentionRules,
        quiet: &Quiet,
        newest: NewestRecord,
        now: TimestampMicros,
    ) -> Result<bool> {
        if quiet.rules != text(rules) || quiet.newest != newest || !(quiet.since..quiet.until).contains(&now)
        {
            return Ok(false);
        }
        let Some(head) = quiet
            .head
            .as_ref()
            .and_then(|head| head.parse::<SegmentName>().ok())
        else {
            return Ok(quiet.head.is_none());
        };
        let wal = self.wal(server);
        let next = TimelineId(head.timeline.0.saturating_add(1));
        let has_left = wal.first_since(next)?.is_some();
        let files = wal.totals()?.files;
        Ok(!has_left && files.checked_sub(quiet.files) == Some(wal.totals_from(head.name_above())?.files))
    }
}

/// The first moment at which an empty plan may be another one because of the time alone; `None` if more may change it. The
/// oldest backup comes first.
fn until(
    judged: &[(&Backup, &JudgedBackup)],
    rules: &RetentionRules,
    now: TimestampMicros,
) -> Option<TimestampMicros> {
    let now = now.unix_micros();
    let mut until = now.saturating_add(micros(AT_MOST));
    // A moment itself still belongs to what was before.
    let mut not_after = |moment: i64| {
        if moment >= now {
            until = until.min(moment);
        }
    };
    let wal = rules.wal.as_backup_policy();
    let windows: Vec<i64> = [rules.backups.as_ref(), wal.as_ref()]
        .into_iter()
        .flatten()
        .filter_map(|policy| match policy {
            BackupPolicy::RecoveryWindow(window) => Some(window.micros()),
            BackupPolicy::Redundancy(_) | BackupPolicy::Generations(_) => None,
        })
        .collect();
    // A backup with a wrong time counts as one of now, or of the next one.
    let mut latest = i64::MIN;
    for (backup, judged) in judged {
        let began = backup.begin_time.unix_micros();
        let ended = backup.end_time.unwrap_or(backup.begin_time).unix_micros();
        let is_certain = backup.record.is_some()
            && matches!(backup.status, BackupStatus::Done | BackupStatus::Failed)
            && judged.held_by.is_none()
            && (latest..=now).contains(&began)
            && ended <= now;
        if !is_certain {
            return None;
        }
        latest = began;
        match (backup.status, rules.failed_backups) {
            (BackupStatus::Failed, Some(kept)) => not_after(ended.saturating_add(micros(kept))),
            _ => windows
                .iter()
                .for_each(|window| not_after(ended.saturating_add(*window))),
        }
        if let Some(end) = judged.keep.as_ref().and_then(|keep| keep.until) {
            not_after(end.unix_micros());
        }
    }
    Some(TimestampMicros::from_unix_micros(until))
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Two rules that have the same text are the same.
fn text(rules: &RetentionRules) -> String {
    format!("{rules:?}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::tz::TimeZone;
    use serde_json::json;

    use super::*;
    use crate::retention::state::{Candidate, Circumstances};
    use crate::retention::{RetentionState, unjudged, verdicts};

    const HOUR: i64 = 3_600_000_000;

    fn at(hours: i64) -> TimestampMicros {
        TimestampMicros::from_unix_micros((500_000 + hours) * HOUR)
    }

    /// A backup that began and ended in these hours.
    fn backup(nth: u32, began: i64, ended: i64, status: &str) -> Backup {
        let mut backup: Backup = serde_json::from_value(json!({
            "version": 1, "server": "main", "id": format!("20261122T0200{nth:02}"), "status": status, "kind": "full",
            "begin_time": at(began), "end_time": at(ended), "start_lsn": "0/1000028", "stop_lsn": "0/2000000",
            "timeline": 1, "system_id": "7710414268036822209", "server_version": 180_004, "segment_size": 1 << 24,
            "data_checksums": true, "timezone": null, "tablespaces": [], "wal_included": false, "from_standby": false,
            "logical_bytes": 1, "sent_bytes": 1, "new_stored_bytes": 1, "files": 1, "root": null,
        }))
        .unwrap();
        backup.record = Some(RecordId([1; 16]));
        backup
    }

    fn plan(backups: &[Backup], rules: &RetentionRules, now: TimestampMicros) -> Vec<JudgedBackup> {
        let of_policies = |backup: &&Backup| backup.status == BackupStatus::Done;
        let candidate = |backup: &Backup| Candidate {
            id: backup.id,
            begin_time: backup.begin_time,
            end_time: backup.end_time.unwrap(),
            doubtful: false,
            kept: None,
        };
        let candidates: Vec<Candidate> = backups.iter().filter(of_policies).map(candidate).collect();
        let circumstances = Circumstances {
            now,
            zone: TimeZone::UTC,
            minimum_redundancy: 1,
        };
        let mut judged: BTreeMap<_, _> = verdicts(candidates, rules, &circumstances)
            .into_iter()
            .map(|verdict| (verdict.id, verdict))
            .collect();
        let newest = backups.iter().rev().find(of_policies);
        let judge = |backup: &Backup| {
            let (verdict, deleted) = match judged.remove(&backup.id) {
                Some(verdict) => {
                    let deleted = verdict.state == RetentionState::Obsolete;
                    (verdict, deleted)
                }
                None => unjudged(backup, newest, rules, now),
            };
            JudgedBackup {
                id: backup.id,
                status: backup.status,
                state: verdict.state,
                why: verdict.why,
                keep: None,
                keeps_wal: verdict.keeps_wal,
                deleted,
                held_by: None,
            }
        };
        backups.iter().map(judge).collect()
    }

    /// What is decided at a moment: which backups go, and from which on WAL is kept.
    fn decided(judged: &[JudgedBackup]) -> Vec<(bool, bool)> {
        judged.iter().map(|one| (one.deleted, one.keeps_wal)).collect()
    }

    #[test]
    fn time_alone_changes_nothing_before_the_promised_moment() {
        let mut random = fastrand::Rng::with_seed(20_261_130);
        let (mut promised, mut changed) = (0, 0);
        for _ in 0..4000 {
            let mut backups = Vec::new();
            for nth in 0..random.u32(1..8) {
                // Now and then the clock was wrong.
                let began = i64::from(nth) * 20 + random.i64(-10..10) * random.i64(0..4);
                let status = if random.u8(..5) == 0 { "FAILED" } else { "DONE" };
                backups.push(backup(nth, began, began + random.i64(0..5), status));
            }
            let policies = [
                "RECOVERY WINDOW OF 2 DAYS",
                "REDUNDANCY 3",
                "KEEP 2 DAILY 1 WEEKLY",
            ];
            let wal = ["MAIN", "RECOVERY WINDOW OF 1 DAYS", "REDUNDANCY 2"];
            let rules = RetentionRules {
                backups: Some(random.choice(policies).unwrap().parse().unwrap()),
                wal: random.choice(wal).unwrap().parse().unwrap(),
                failed_backups: random.bool().then(|| Duration::from_secs(40 * 3600)),
                ..RetentionRules::default()
            };
            let now = at(random.i64(0..220));
            let judged = plan(&backups, &rules, now);
            let pairs: Vec<_> = backups.iter().zip(&judged).collect();
            let Some(until) = until(&pairs, &rules, now) else {
                continue;
            };
            promised += 1;
            let wait = until.unix_micros() - now.unix_micros();
            for moment in (0..8).map(|nth| wait * nth / 8).chain([wait - 1]) {
                let then = TimestampMicros::from_unix_micros(now.unix_micros() + moment.max(0));
                assert_eq!(
                    decided(&plan(&backups, &rules, then)),
                    decided(&judged),
                    "{backups:?} {rules:?}"
                );
            }
            let then = TimestampMicros::from_unix_micros(until.unix_micros() + 1);
            changed += usize::from(decided(&plan(&backups, &rules, then)) != decided(&judged));
        }
        assert!(
            promised > 1000 && changed > 100,
            "{promised} promised, {changed} changed"
        );
    }
}
