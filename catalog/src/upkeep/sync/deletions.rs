//! Follows the deletions of a primary, where that is asked for.
//!
//! Only a deletion that the primary has recorded is followed, never the mere absence of something: a primary whose disk is
//! not mounted has nothing. The rules of this repository hold: a backup that is kept here or is in use stays, and so do the
//! last good ones and WAL that a backup needs here. Nothing is deleted while retention would delete nothing, or when
//! something could not be taken: what is here may be all there is.

use crate::archive::backup::Backup;
use crate::archive::wal::SegmentRange;
use crate::archive::wal::removal::WalRemoval;
use crate::error::{Error, Result};
use crate::home::now;
use crate::index::records;
use crate::retention::{RetentionPlan, is_judged};
use crate::upkeep::sync::Sync;
use crate::upkeep::sync::offer::{Said, is_here};

impl Sync<'_> {
    pub(super) fn apply_deletions(&mut self) -> Result<()> {
        let _deleting = self.node.deleting(self.server)?;
        let backups = self.deleted_there()?;
        let removals = self.removed_there()?;
        if backups.is_empty() && removals.is_empty() {
            return Ok(());
        }
        let blocked = match self.report.problems.first() {
            Some(problem) => Some(format!("Not everything was taken. {problem}")),
            None => self.plan()?.blocked,
        };
        if let Some(why) = blocked {
            self.note(format!(
                "What was deleted on the primary stays here for now: {why}"
            ));
            return Ok(());
        }
        for backup in &backups {
            self.delete(backup)?;
        }
        self.remove_wal(removals)
    }

    /// What retention here says now.
    fn plan(&self) -> Result<RetentionPlan> {
        self.node
            .retention_of_what_is_here(self.server, &self.options.rules, now())
    }

    fn note(&mut self, note: String) {
        self.report.notes.push(note);
    }

    /// The backups that came from the primary and that it has deleted, oldest first.
    fn deleted_there(&self) -> Result<Vec<Backup>> {
        let mut deleted = Vec::new();
        for backup in self.node.backups(self.server)? {
            let record = backup.record.filter(|id| self.memory.fetched.contains(id));
            let Some(record) = record else { continue };
            if self.footers.db.read(|db| records::is_annulled(db, record))? {
                deleted.push(backup);
            }
        }
        Ok(deleted)
    }

    /// The removals of WAL that is here.
    fn removed_there(&self) -> Result<Vec<Said<WalRemoval>>> {
        let mut removed = Vec::new();
        for removal in &self.offer.removals {
            let id = removal.record.id;
            let known = self.node.db.read(|db| is_here(db, id))?;
            if !known && self.node.wal_in(self.server, &removal.body.range)?.files > 0 {
                removed.push(removal.clone());
            }
        }
        Ok(removed)
    }

    fn delete(&mut self, backup: &Backup) -> Result<()> {
        let least = self.options.rules.minimum_redundancy.max(1);
        let others = self.good_besides(backup)?;
        if others < u64::from(least) {
            self.note(format!(
                "Backup {} was deleted on the primary and stays here: without it, {others} good backups are left, and {least} \
                 must be",
                backup.id
            ));
            return Ok(());
        }
        match self.node.delete_backup(backup, false) {
            Ok(()) => self.report.deleted.push(backup.id),
            Err(Error::NoSuchBackup { .. }) => {}
            Err(
                error @ (Error::BackupKept { .. }
                | Error::BackupInUse { .. }
                | Error::BackupHasClones { .. }
                | Error::Unexamined { .. }),
            ) => self.note(format!(
                "Backup {} was deleted on the primary and stays here: {error}",
                backup.id
            )),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// How many backups the server can be recovered from without this one, as far as is known.
    fn good_besides(&self, backup: &Backup) -> Result<u64> {
        let all = self.node.backups(self.server)?;
        let known = self.node.reliability(&all)?;
        let is_good = |other: &&Backup| is_judged(other) && !known.is_doubtful(other.id);
        let others = all.iter().filter(|other| other.id != backup.id);
        Ok(others.filter(is_good).count() as u64)
    }

    /// Removes WAL that the primary has removed, as far as no backup needs it here.
    fn remove_wal(&mut self, removals: Vec<Said<WalRemoval>>) -> Result<()> {
        if removals.is_empty() {
            return Ok(());
        }
        let plan = self.plan()?;
        if let Some(why) = plan.blocked.as_ref().or(plan.wal_blocked.as_ref()) {
            self.note(format!(
                "WAL that the primary has removed stays here for now: {why}"
            ));
            return Ok(());
        }
        let is_unneeded = |range: &SegmentRange| {
            let holds = |free: &SegmentRange| free.first <= range.first && range.last <= free.last;
            plan.wal.iter().any(|free| holds(&free.range))
        };
        for removal in removals {
            if !is_unneeded(&removal.body.range) {
                continue;
            }
            let _lock = self.writer.lock_neighbours(self.server)?;
            self.copier.record(removal.record)?;
            self.copier.publish()?;
            self.report.removed_wal_ranges += 1;
        }
        Ok(())
    }
}
