//! Retention: what a server's policies keep, and the deletion of the rest.
//!
//! [`Repository::retention`] says for each backup whether it is kept and why, and what the next run deletes.
//! [`Repository::enforce_retention`] deletes exactly that. Nothing is deleted while it is uncertain what is needed: as
//! long as a record or a pack cannot be read, or it is not decided which of two histories counts.
//!
//! | part | decides |
//! |---|---|
//! | `policy` | the grammar of policies |
//! | `state` | which backups a policy keeps |
//! | `needed_wal` | which WAL the kept backups need |
//! | `quiet` | until when nobody need ask again |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use barmanfs_pg::TimestampMicros;
use serde::Serialize;

use crate::archive::backup::{Backup, BackupStatus, Reliability};
use crate::archive::clones::CloneDescription;
use crate::archive::keep::Keep;
use crate::archive::wal::{RangeTotals, SegmentRange};
use crate::error::{Error, Result};
use crate::index::repository::Repository;
use crate::names::{BackupId, CloneName, ServerName};
use crate::recovery::zone_of;

mod certainty;
mod needed_wal;
mod policy;
mod quiet;
mod state;

use needed_wal::Needs;
pub use policy::{BackupPolicy, Generations, InvalidPolicy, WalPolicy, Window};
pub use quiet::{NewestRecord, Quiet, RetentionBasis};
use state::{Candidate, Circumstances, Verdict, judge};
pub use state::{RetentionState, probable_begins};

/// The rules for one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionRules {
    /// Which backups are kept; without it all of them, and all WAL.
    pub backups: Option<BackupPolicy>,
    /// From when on WAL is kept.
    pub wal: WalPolicy,
    /// Whether WAL that no backup needs goes without a policy, too. All backups stay then.
    pub unneeded_wal: bool,
    /// The number of good backups that are kept whatever the policy says.
    pub minimum_redundancy: u32,
    /// How long a failed backup is kept that a complete one has followed; for ever if there is none.
    pub failed_backups: Option<Duration>,
    /// Why nothing may be deleted now, if the caller knows a reason.
    pub held: Option<String>,
}

/// What the rules say about a server's backups and WAL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetentionPlan {
    /// All its backups, newest first.
    pub backups: Vec<JudgedBackup>,
    /// The archived WAL that the next run removes.
    pub wal: Vec<RemovableWal>,
    /// Why the next run deletes nothing, whatever the other fields say.
    pub blocked: Option<String>,
    /// Why the next run removes no WAL.
    pub wal_blocked: Option<String>,
}

/// A backup and what the rules say about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JudgedBackup {
    /// Its id.
    pub id: BackupId,
    /// Its status.
    pub status: BackupStatus,
    /// What the policy says.
    pub state: RetentionState,
    /// Why.
    pub why: String,
    /// A person's decision to keep it.
    pub keep: Option<Keep>,
    /// Whether the WAL from its start on is kept.
    #[serde(skip)]
    pub keeps_wal: bool,
    /// Whether the next run deletes it.
    pub deleted: bool,
    /// Why the next run does not delete it, though the rules say so.
    pub held_by: Option<String>,
}

/// A range of archived WAL that no kept backup needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RemovableWal {
    /// The segments.
    #[serde(flatten)]
    pub range: SegmentRange,
    /// The files among them that are archived.
    #[serde(flatten)]
    pub totals: RangeTotals,
}

/// What a run has deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Enforced {
    /// The plan it followed.
    pub plan: RetentionPlan,
    /// The deleted backups, oldest first.
    pub deleted: Vec<BackupId>,
    /// The removed ranges of WAL.
    pub wal: Vec<RemovableWal>,
}

impl RetentionRules {
    /// Whether any policy is set.
    fn has_policy(&self) -> bool {
        self.backups.is_some() || self.wal != WalPolicy::Main
    }
}

/// What may be deleted, of a plan that was made before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Approved {
    /// Backups.
    pub backups: BTreeSet<BackupId>,
    /// Ranges of WAL.
    pub wal: Vec<SegmentRange>,
}

impl Approved {
    fn has(&self, range: &SegmentRange) -> bool {
        let holds = |approved: &SegmentRange| approved.first <= range.first && range.last <= approved.last;
        self.wal.iter().any(holds)
    }
}

impl RetentionPlan {
    /// The backups that the next run deletes.
    pub fn doomed(&self) -> impl Iterator<Item = &JudgedBackup> {
        let is_blocked = self.blocked.is_some();
        self.backups
            .iter()
            .filter(move |backup| backup.deleted && !is_blocked)
    }

    /// The WAL that the next run removes.
    pub fn removable_wal(&self) -> &[RemovableWal] {
        match self.blocked.is_some() || self.wal_blocked.is_some() {
            true => &[],
            false => &self.wal,
        }
    }
}

impl Repository {
    /// What the rules say at a moment, without doing anything.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn retention(
        &self,
        server: &ServerName,
        rules: &RetentionRules,
        now: TimestampMicros,
    ) -> Result<RetentionPlan> {
        self.plan_retention(server, rules, now, |judged| !judged.deleted)
    }

    /// The plan, in which WAL is judged by the backups for which `is_left` holds.
    fn plan_retention(
        &self,
        server: &ServerName,
        rules: &RetentionRules,
        now: TimestampMicros,
        is_left: impl Fn(&JudgedBackup) -> bool,
    ) -> Result<RetentionPlan> {
        // This enters packs of killed processes, which may have backups and forks.
        let blocked = self.uncertainty(server)?;
        let backups = self.backups(server)?;
        let blocked = match rules.held.clone().or(blocked) {
            None => self.clock_doubt(&backups)?,
            blocked => blocked,
        };
        let known = self.reliability(&backups)?;
        let judged = self.retention_states(&backups, &known, rules, now)?;
        let remaining: Vec<(&Backup, &JudgedBackup)> = backups
            .iter()
            .zip(judged.iter().rev())
            .filter(|(_, judged)| is_left(judged))
            .collect();
        let (wal, wal_blocked) = match rules.unneeded_wal || rules.has_policy() {
            true => self.removable(server, &remaining)?,
            false => (Vec::new(), Some("There is no policy".to_owned())),
        };
        Ok(RetentionPlan {
            backups: judged,
            wal,
            blocked,
            wal_blocked,
        })
    }

    /// Deletes what [`retention`](Self::retention) shows, but for snapshots: who deletes one in its storage deletes the record, too.
    /// A sweep frees the space.
    ///
    /// # Errors
    /// When something cannot be read or made durable. What was deleted before stays deleted.
    pub fn enforce_retention(
        &self,
        server: &ServerName,
        rules: &RetentionRules,
        now: TimestampMicros,
    ) -> Result<Enforced> {
        self.enforce_approved(server, rules, now, None)
    }

    /// The same, but deletes nothing that is not in `approved`, if that is given: a plan made earlier, of which somebody may
    /// have struck out a part.
    ///
    /// # Errors
    /// Those of [`enforce_retention`](Self::enforce_retention).
    pub fn enforce_approved(
        &self,
        server: &ServerName,
        rules: &RetentionRules,
        now: TimestampMicros,
        approved: Option<&Approved>,
    ) -> Result<Enforced> {
        let _deleting = self.deleting(server)?;
        let plan = self.retention(server, rules, now)?;
        let mut deleted = Vec::new();
        let mut doomed: Vec<BackupId> = plan.doomed().map(|backup| backup.id).collect();
        doomed.retain(|id| approved.is_none_or(|approved| approved.backups.contains(id)));
        doomed.sort_unstable();
        for backup in self
            .backups(server)?
            .iter()
            .filter(|backup| doomed.contains(&backup.id))
            // The caller deletes what is in the storage.
            .filter(|backup| !backup.is_snapshot())
        {
            match self.delete_backup(backup, false) {
                Ok(()) => deleted.push(backup.id),
                // Somebody has begun to use it since the plan was made, or has deleted it: the next run sees that.
                Err(
                    Error::BackupInUse { .. }
                    | Error::BackupHasClones { .. }
                    | Error::BackupRunning { .. }
                    | Error::NoSuchBackup { .. },
                ) => {}
                Err(error) => return Err(error),
            }
        }
        // The WAL is judged by the backups that are there now. One that should go, and was not deleted, keeps what it needs
        // for its own end.
        let mut wal = match plan.removable_wal().is_empty() {
            true => Vec::new(),
            false => {
                let left = self.plan_retention(server, rules, now, |_| true)?;
                left.removable_wal().to_vec()
            }
        };
        wal.retain(|wal| approved.is_none_or(|approved| approved.has(&wal.range)));
        let ranges: Vec<SegmentRange> = wal.iter().map(|wal| wal.range).collect();
        if !ranges.is_empty() {
            self.with_reserve(|| self.remove_wal(server, &ranges))?;
        }
        Ok(Enforced { plan, deleted, wal })
    }

    /// The plan by which what another site has deleted is deleted here: its WAL is what no backup here needs, whether there
    /// is a policy or not. Backups that the policy dooms are here still, and keep what they need for their own end.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub(crate) fn retention_of_what_is_here(
        &self,
        server: &ServerName,
        rules: &RetentionRules,
        now: TimestampMicros,
    ) -> Result<RetentionPlan> {
        let rules = RetentionRules {
            unneeded_wal: true,
            ..rules.clone()
        };
        self.plan_retention(server, &rules, now, |_| true)
    }

    /// The archived WAL that none of these backups needs.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn wal_without_use(&self, server: &ServerName, left: &[&Backup]) -> Result<Vec<RemovableWal>> {
        let needs = Needs::of_all(left);
        self.removable_by(server, &needs)
    }

    fn removable(
        &self,
        server: &ServerName,
        remaining: &[(&Backup, &JudgedBackup)],
    ) -> Result<(Vec<RemovableWal>, Option<String>)> {
        let mut replaying = self.clones(server)?;
        replaying.retain(|clone| clone.origin.target.is_some());
        let has_its_backup = |clone: &CloneDescription| {
            remaining
                .iter()
                .any(|(backup, _)| backup.id == clone.origin.backup)
        };
        if let Some(clone) = replaying.iter().find(|clone| !has_its_backup(clone)) {
            let why = format!(
                "Clone {} recovers along the archive, and its backup {} was deleted",
                clone.name, clone.origin.backup
            );
            return Ok((Vec::new(), Some(why)));
        }
        let mut needs = Needs::default();
        for (backup, judged) in remaining {
            if backup.status == BackupStatus::Started {
                let why = format!(
                    "Backup {} is running, and it is not known yet which WAL it needs",
                    backup.id
                );
                return Ok((Vec::new(), Some(why)));
            }
            // WAL may be replayed on what is read now, and on clones.
            let only_its_end = !judged.keeps_wal
                && !self.is_being_read(backup)?
                && !replaying.iter().any(|clone| clone.origin.backup == backup.id);
            needs.add(backup, only_its_end);
        }
        Ok((self.removable_by(server, &needs)?, None))
    }

    fn removable_by(&self, server: &ServerName, needs: &Needs) -> Result<Vec<RemovableWal>> {
        let mut removable = Vec::new();
        for range in self.unneeded_wal(server, needs)? {
            let totals = self.wal_in(server, &range)?;
            if totals.files > 0 {
                removable.push(RemovableWal { range, totals });
            }
        }
        Ok(removable)
    }

    /// What the rules say about each of a server's backups, which are all of them, oldest first; `known` is about them. The
    /// newest is the first of the result. Does not examine whether anything may be deleted now.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn retention_states(
        &self,
        backups: &[Backup],
        known: &Reliability,
        rules: &RetentionRules,
        now: TimestampMicros,
    ) -> Result<Vec<JudgedBackup>> {
        let keeps = self.keeps(backups, now)?;
        let candidates = candidates(backups, known, &keeps);
        let at = Circumstances {
            now,
            zone: zone_of(backups),
            minimum_redundancy: rules.minimum_redundancy,
        };
        let mut verdicts: BTreeMap<BackupId, Verdict> = verdicts(candidates, rules, &at)
            .into_iter()
            .map(|verdict| (verdict.id, verdict))
            .collect();
        let newest_done = backups.iter().rev().find(|backup| is_judged(backup));
        let mut judged = Vec::new();
        for backup in backups.iter().rev() {
            let (verdict, doomed) = match verdicts.remove(&backup.id) {
                Some(verdict) => {
                    let doomed = verdict.state == RetentionState::Obsolete;
                    (verdict, doomed)
                }
                None => unjudged(backup, newest_done, rules, now),
            };
            let held_by = if doomed { self.holder_of(backup)? } else { None };
            judged.push(JudgedBackup {
                id: backup.id,
                status: backup.status,
                state: verdict.state,
                why: verdict.why,
                keeps_wal: verdict.keeps_wal,
                keep: keeps.get(&backup.id).cloned(),
                deleted: doomed && held_by.is_none(),
                held_by,
            });
        }
        Ok(judged)
    }

    /// Of backups that may come from elsewhere, given by their ids with begin and end, those that the policy would delete at
    /// once.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn obsolete_if_here(
        &self,
        server: &ServerName,
        coming: &[(BackupId, TimestampMicros, TimestampMicros)],
        rules: &RetentionRules,
        now: TimestampMicros,
    ) -> Result<BTreeSet<BackupId>> {
        let here = self.backups(server)?;
        let known = self.reliability(&here)?;
        let keeps = self.keeps(&here, now)?;
        let mut candidates = candidates(&here, &known, &keeps);
        let is_here = |id: BackupId| here.iter().any(|backup| backup.id == id);
        candidates.extend(coming.iter().filter(|(id, ..)| !is_here(*id)).map(
            |(id, begin_time, end_time)| Candidate {
                id: *id,
                begin_time: *begin_time,
                end_time: *end_time,
                doubtful: false,
                kept: None,
            },
        ));
        let at = Circumstances {
            now,
            zone: zone_of(&here),
            minimum_redundancy: rules.minimum_redundancy,
        };
        Ok(verdicts(candidates, rules, &at)
            .into_iter()
            .filter(|verdict| verdict.state == RetentionState::Obsolete && !is_here(verdict.id))
            .map(|verdict| verdict.id)
            .collect())
    }

    /// What keeps a backup from being deleted now.
    fn holder_of(&self, backup: &Backup) -> Result<Option<String>> {
        let clones = self.clones_of(backup)?;
        if !clones.is_empty() {
            let names: Vec<&str> = clones.iter().map(CloneName::as_str).collect();
            return Ok(Some(format!("clones are based on it: {}", names.join(", "))));
        }
        Ok(self.is_being_read(backup)?.then(|| "it is being read".to_owned()))
    }
}

/// Whether policies apply to a backup.
pub(crate) fn is_judged(backup: &Backup) -> bool {
    backup.status == BackupStatus::Done && backup.is_of_current_history()
}

/// What the policies judge.
fn candidates(backups: &[Backup], known: &Reliability, keeps: &BTreeMap<BackupId, Keep>) -> Vec<Candidate> {
    let judged = backups.iter().filter(|backup| is_judged(backup));
    let candidate = |backup: &Backup| Candidate {
        id: backup.id,
        begin_time: backup.begin_time,
        end_time: backup.end_time.unwrap_or(backup.begin_time),
        doubtful: known.is_doubtful(backup.id),
        kept: keeps.get(&backup.id).map(|keep| keep.target),
    };
    judged.map(candidate).collect()
}

/// The verdicts of both policies.
fn verdicts(candidates: Vec<Candidate>, rules: &RetentionRules, at: &Circumstances) -> Vec<Verdict> {
    let by_wal = rules
        .wal
        .as_backup_policy()
        .map(|policy| judge(candidates.clone(), Some(&policy), at));
    let mut verdicts = judge(candidates, rules.backups.as_ref(), at);
    for verdict in &mut verdicts {
        let needs_no_wal = by_wal.as_ref().is_some_and(|by_wal| {
            by_wal
                .iter()
                .any(|other| other.id == verdict.id && other.state == RetentionState::Obsolete)
        });
        let is_kept = matches!(verdict.state, RetentionState::Valid | RetentionState::None);
        if needs_no_wal {
            verdict.keeps_wal &= verdict.state == RetentionState::KeptFull;
            if is_kept {
                verdict.state = RetentionState::ValidForItsEnd;
                verdict.why = format!("{}; WAL is kept for newer ones only ({})", verdict.why, rules.wal);
            }
        }
    }
    verdicts
}

/// What is said of a backup that no policy applies to, and whether it is deleted all the same.
fn unjudged(
    backup: &Backup,
    newest_done: Option<&Backup>,
    rules: &RetentionRules,
    now: TimestampMicros,
) -> (Verdict, bool) {
    let (why, doomed) = match backup.status {
        BackupStatus::Failed => {
            let is_followed = newest_done.is_some_and(|done| done.begin_time > backup.begin_time);
            let since = backup.end_time.unwrap_or(backup.begin_time).unix_micros();
            let is_old = rules.failed_backups.is_some_and(|kept| {
                let kept = i64::try_from(kept.as_micros()).unwrap_or(i64::MAX);
                since.saturating_add(kept) < now.unix_micros()
            });
            match (is_followed, is_old) {
                (true, true) => ("it failed long ago, and a newer one is complete", true),
                _ => ("it failed", false),
            }
        }
        BackupStatus::Started => ("it is running", false),
        BackupStatus::WaitingForWals => ("it waits for WAL", false),
        BackupStatus::Done if !backup.is_of_server() => ("it was made of a clone", false),
        BackupStatus::Done => ("it is of a history that was left", false),
    };
    let verdict = Verdict {
        id: backup.id,
        state: RetentionState::None,
        why: why.to_owned(),
        keeps_wal: true,
    };
    (verdict, doomed)
}
