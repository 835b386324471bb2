//! Follows the deletions of a primary, where that is asked for.
//!
//! Only a deletion that the primary has recorded is followed, never the mere absence of something: a primary whose disk is
//! not mounted has nothing. The rules of this repository hold: a backup that is kept here or is in use stays, and WAL that a
//! backup needs here stays.

use crate::archive::backup::Backup;
use crate::archive::wal::SegmentRange;
use crate::error::{Error, Result};
use crate::index::records;
use crate::upkeep::sync::Sync;
use crate::upkeep::sync::offer::is_here;

impl Sync<'_> {
    pub(super) fn apply_deletions(&mut self) -> Result<()> {
        let _deleting = self.node.deleting(self.server)?;
        for backup in self.node.backups(self.server)? {
            if self.is_deleted_there(&backup)? {
                self.delete(&backup)?;
            }
        }
        self.remove_wal()
    }

    /// Whether the primary has deleted a backup that came from there.
    fn is_deleted_there(&self, backup: &Backup) -> Result<bool> {
        let Some(record) = backup.record else {
            return Ok(false);
        };
        if !self.memory.fetched.contains(&record) {
            return Ok(false);
        }
        self.footers.db.read(|db| records::is_annulled(db, record))
    }

    fn delete(&mut self, backup: &Backup) -> Result<()> {
        match self.node.delete_backup(backup, false) {
            Ok(()) => self.report.deleted.push(backup.id),
            Err(Error::NoSuchBackup { .. }) => {}
            Err(
                error @ (Error::BackupKept { .. }
                | Error::BackupInUse { .. }
                | Error::BackupHasClones { .. }
                | Error::Unexamined { .. }),
            ) => {
                let note = format!(
                    "Backup {} was deleted on the primary and stays here: {error}",
                    backup.id
                );
                self.report.notes.push(note);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Removes WAL that the primary has removed, as far as no backup needs it here.
    fn remove_wal(&mut self) -> Result<()> {
        let backups = self.node.backups(self.server)?;
        let left: Vec<&Backup> = backups.iter().collect();
        let unneeded = self.node.wal_without_use(self.server, &left)?;
        let is_unneeded = |range: &SegmentRange| {
            let holds = |free: &SegmentRange| free.first <= range.first && range.last <= free.last;
            unneeded.iter().any(|free| holds(&free.range))
        };
        for removal in self.offer.removals.clone() {
            let id = removal.record.id;
            let known = self.node.db.read(|db| is_here(db, id))?;
            let files = self.node.wal_in(self.server, &removal.body.range)?.files;
            if known || files == 0 || !is_unneeded(&removal.body.range) {
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
