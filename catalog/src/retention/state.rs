//! Which backups a policy keeps: facts in, states and reasons out.
//!
//! The rules are Barman's, with these differences. All backups are complete, so each counts. A backup that is known to be
//! damaged, or whose newest boot test failed, takes no place of a good one and ends no search: with `REDUNDANCY 2` there
//! are two good ones. A backup that is kept only for its own end does not end the search for the one that the beginning
//! of a window needs, because its WAL may be gone. The newest backup that counts is never obsolete.

use std::collections::BTreeMap;

use barmanfs_pg::TimestampMicros;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::archive::backup::Backup;
use crate::archive::keep::KeepTarget;
use crate::names::BackupId;
use crate::retention::policy::{BackupPolicy, Generations, Window};

/// What a policy says about a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum RetentionState {
    /// It is kept, and so is the WAL from its start on.
    #[serde(rename = "VALID")]
    Valid,
    /// It is kept, and only the WAL that it needs itself: nothing behind its end can be reached from it.
    #[serde(rename = "VALID:OWN_END")]
    ValidForItsEnd,
    /// The policy does not need it: it is deleted next.
    #[serde(rename = "OBSOLETE")]
    Obsolete,
    /// The policy does not need it, but `minimum_redundancy` does.
    #[serde(rename = "OBSOLETE*")]
    PotentiallyObsolete,
    /// A person keeps it, with the WAL from its start on.
    #[serde(rename = "KEEP:FULL")]
    KeptFull,
    /// A person keeps it, with the WAL that it needs itself.
    #[serde(rename = "KEEP:STANDALONE")]
    KeptStandalone,
    /// No policy applies to it.
    #[serde(rename = "-")]
    None,
}

impl RetentionState {
    /// The word for it in all outputs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "VALID",
            Self::ValidForItsEnd => "VALID:OWN_END",
            Self::Obsolete => "OBSOLETE",
            Self::PotentiallyObsolete => "OBSOLETE*",
            Self::KeptFull => "KEEP:FULL",
            Self::KeptStandalone => "KEEP:STANDALONE",
            Self::None => "-",
        }
    }

    /// Whether a policy that says this keeps the WAL from the backup's start on.
    fn keeps_wal(self) -> bool {
        matches!(self, Self::Valid | Self::PotentiallyObsolete | Self::None)
    }
}

/// What is known of a backup that a policy applies to: it is DONE, and of the server's history.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) id: BackupId,
    pub(super) begin_time: TimestampMicros,
    pub(super) end_time: TimestampMicros,
    /// Whether it is damaged or did not start.
    pub(super) doubtful: bool,
    pub(super) kept: Option<KeepTarget>,
}

/// The state of a backup, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) id: BackupId,
    pub(super) state: RetentionState,
    pub(super) why: String,
    /// Whether the WAL from its start on is kept. A person's decision never keeps less than the policy.
    pub(super) keeps_wal: bool,
}

/// The moment and the place of a decision.
#[derive(Debug, Clone)]
pub(super) struct Circumstances {
    pub(super) now: TimestampMicros,
    /// The server's time zone, for days, weeks, months and years.
    pub(super) zone: TimeZone,
    pub(super) minimum_redundancy: u32,
}

/// Judges the backups; the newest first in the result.
pub(super) fn judge(
    mut candidates: Vec<Candidate>,
    policy: Option<&BackupPolicy>,
    at: &Circumstances,
) -> Vec<Verdict> {
    // Ids grow with each backup, also where the clock was set back after it had been ahead.
    candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.id));
    correct_times(&mut candidates, at.now);
    match policy {
        None => without_policy(&candidates),
        Some(BackupPolicy::Redundancy(count)) => redundancy(&candidates, count.get(), at),
        Some(BackupPolicy::RecoveryWindow(window)) => recovery_window(&candidates, *window, at),
        Some(BackupPolicy::Generations(kept)) => generations(&candidates, kept, at),
    }
}

/// Gives backups whose clock was wrong the times of the next newer one, or of now. So such a backup never counts as too
/// old, which would end the search for the beginning of a window, and takes no place of a period of its own. The newest
/// comes first.
fn correct_times(candidates: &mut [Candidate], now: TimestampMicros) {
    let times = candidates
        .iter()
        .map(|candidate| (candidate.begin_time, candidate.end_time));
    let times = corrected(times.collect(), now);
    for (candidate, times) in candidates.iter_mut().zip(times) {
        (candidate.begin_time, candidate.end_time) = times;
    }
}

/// The beginnings and ends of backups, the newest first. One cannot have begun after now, or before one that was taken
/// earlier: then the clock was wrong.
fn corrected(
    mut times: Vec<(TimestampMicros, TimestampMicros)>,
    now: TimestampMicros,
) -> Vec<(TimestampMicros, TimestampMicros)> {
    let mut latest = TimestampMicros::from_unix_micros(i64::MIN);
    let mut are_right = vec![false; times.len()];
    for ((begin, _), is_right) in times.iter().zip(&mut are_right).rev() {
        *is_right = (latest..=now).contains(begin);
        if *is_right {
            latest = *begin;
        }
    }
    let mut newer = (now, now);
    for (times, is_right) in times.iter_mut().zip(are_right) {
        if !is_right {
            *times = newer;
        }
        newer = *times;
    }
    times
}

/// When backups began, as far as that can be true: one whose clock was wrong counts as one of the time of the next newer
/// one, or of now. The order of their ids is the order in which they were taken.
pub fn probable_begins(backups: &[Backup], now: TimestampMicros) -> BTreeMap<BackupId, TimestampMicros> {
    let mut newest_first: Vec<&Backup> = backups.iter().collect();
    newest_first.sort_by_key(|backup| std::cmp::Reverse(backup.id));
    let times = newest_first
        .iter()
        .map(|backup| (backup.begin_time, backup.begin_time));
    let times = corrected(times.collect(), now);
    let begins = newest_first.iter().zip(times);
    begins.map(|(backup, (begin, _))| (backup.id, begin)).collect()
}

impl Candidate {
    /// What a person's decision makes of it, else `state`.
    fn verdict(&self, state: RetentionState, why: impl Into<String>) -> Verdict {
        let keeps_wal = state.keeps_wal() || self.kept == Some(KeepTarget::Full);
        let (state, why) = match self.kept {
            Some(KeepTarget::Full) => (RetentionState::KeptFull, "somebody keeps it".to_owned()),
            Some(KeepTarget::Standalone) => (
                RetentionState::KeptStandalone,
                "somebody keeps it, for its own end".to_owned(),
            ),
            None => (state, why.into()),
        };
        Verdict {
            id: self.id,
            state,
            why,
            keeps_wal,
        }
    }
}

fn without_policy(candidates: &[Candidate]) -> Vec<Verdict> {
    let verdict = |candidate: &Candidate| candidate.verdict(RetentionState::None, "there is no policy");
    candidates.iter().map(verdict).collect()
}

/// The newest `count`; a backup that a person keeps takes a place, too.
fn redundancy(candidates: &[Candidate], count: u32, at: &Circumstances) -> Vec<Verdict> {
    let count = count.max(at.minimum_redundancy);
    let mut taken = 0;
    let mut verdicts = Vec::new();
    for candidate in candidates {
        let verdict = match taken < count {
            true if candidate.doubtful => candidate.verdict(
                RetentionState::Valid,
                format!("it is newer than the newest {count} good ones"),
            ),
            true => candidate.verdict(RetentionState::Valid, format!("one of the newest {count}")),
            false => candidate.verdict(RetentionState::Obsolete, format!("older than the newest {count}")),
        };
        verdicts.push(verdict);
        taken += u32::from(!candidate.doubtful);
    }
    verdicts
}

fn recovery_window(candidates: &[Candidate], window: Window, at: &Circumstances) -> Vec<Verdict> {
    let begin = at.now.unix_micros().saturating_sub(window.micros());
    let mut found = false;
    let mut valid = 0;
    let mut verdicts = Vec::new();
    for candidate in candidates {
        let ended_before = candidate.end_time.unix_micros() < begin;
        let verdict = if !found {
            let why = match ended_before {
                true => "the beginning of the window needs it",
                false => "it ended within the window",
            };
            // The WAL behind the end of one that is kept for itself may be gone.
            let ends_search = !candidate.doubtful && candidate.kept != Some(KeepTarget::Standalone);
            found = ended_before && ends_search;
            candidate.verdict(RetentionState::Valid, why)
        } else if valid < at.minimum_redundancy {
            candidate.verdict(
                RetentionState::PotentiallyObsolete,
                format!("minimum_redundancy = {} needs it", at.minimum_redundancy),
            )
        } else {
            candidate.verdict(
                RetentionState::Obsolete,
                "a newer backup serves the whole window".to_owned(),
            )
        };
        verdicts.push(verdict);
        valid += u32::from(!candidate.doubtful);
    }
    verdicts
}

/// A kind of period of which a policy keeps the newest backup.
struct Period {
    name: &'static str,
    kept: u32,
    /// The period that contains a day; the same for all days of it.
    of: fn(jiff::civil::Date) -> String,
}

fn periods(kept: &Generations) -> [Period; 4] {
    [
        Period {
            name: "day",
            kept: kept.daily,
            of: |date| date.to_string(),
        },
        Period {
            name: "week",
            kept: kept.weekly,
            of: |date| {
                let week = date.iso_week_date();
                format!("{}-W{:02}", week.year(), week.week())
            },
        },
        Period {
            name: "month",
            kept: kept.monthly,
            of: |date| format!("{}-{:02}", date.year(), date.month()),
        },
        Period {
            name: "year",
            kept: kept.yearly,
            of: |date| date.year().to_string(),
        },
    ]
}

/// Keeps the newest good backup of each of the newest periods that have one. WAL is kept from the oldest backup of the
/// shortest kind of period on; older ones serve their own end.
fn generations(candidates: &[Candidate], kept: &Generations, at: &Circumstances) -> Vec<Verdict> {
    let mut reasons: Vec<Option<(bool, String)>> = vec![None; candidates.len()];
    let mut is_shortest = true;
    for period in periods(kept).iter().filter(|period| period.kept > 0) {
        let mut last: Option<String> = None;
        let mut seen = 0;
        for (candidate, reason) in candidates.iter().zip(&mut reasons) {
            let of = (period.of)(date(candidate.begin_time, &at.zone));
            if candidate.doubtful || last.as_ref() == Some(&of) {
                continue;
            }
            if seen == period.kept {
                break;
            }
            seen += 1;
            reason.get_or_insert_with(|| (is_shortest, format!("the newest of the {} {of}", period.name)));
            last = Some(of);
        }
        is_shortest = false;
    }
    let oldest_with_wal = reasons
        .iter()
        .rposition(|reason| matches!(reason, Some((true, _))));
    let mut good = 0;
    let mut verdicts = Vec::new();
    for (place, (candidate, reason)) in candidates.iter().zip(reasons).enumerate() {
        let state = match oldest_with_wal {
            Some(oldest) if place > oldest => RetentionState::ValidForItsEnd,
            _ => RetentionState::Valid,
        };
        verdicts.push(match reason {
            Some((_, why)) => candidate.verdict(state, why),
            None if candidate.doubtful && good == 0 => {
                candidate.verdict(RetentionState::Valid, "no good one is newer")
            }
            None if good < at.minimum_redundancy => candidate.verdict(
                RetentionState::PotentiallyObsolete,
                format!("minimum_redundancy = {} needs it", at.minimum_redundancy),
            ),
            None => candidate.verdict(RetentionState::Obsolete, "not the newest of a period that counts"),
        });
        good += u32::from(!candidate.doubtful);
    }
    verdicts
}

fn date(time: TimestampMicros, zone: &TimeZone) -> jiff::civil::Date {
    let timestamp =
        jiff::Timestamp::from_microsecond(time.unix_micros()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    timestamp.to_zoned(zone.clone()).date()
}

#[cfg(test)]
mod tests;
