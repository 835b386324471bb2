//! Syncs backups: which are wanted, and how one is copied.

use barmanfs_store::tree::ChunkRole;
use barmanfs_store::{ChunkId, DirectoryRef, Record, RecordId};

use crate::archive::backup::Backup;
use crate::archive::backup::configuration::ConfigurationRecord;
use crate::error::{Error, Result};
use crate::index::chunk_set::{Met, Role};
use crate::index::records::{self, Kind};
use crate::monitor::{Monitor, Unit};
use crate::names::BackupId;
use crate::upkeep::sync::offer::{Said, is_here};
use crate::upkeep::sync::{Sync, SyncedBackups, TELL_EVERY, WAL_EVERY, is_gone};

impl Sync<'_> {
    /// The backups to copy, oldest first.
    pub(super) fn wanted_backups(&mut self) -> Result<Vec<Said<Backup>>> {
        let mut wanted = Vec::new();
        if self.options.backups == SyncedBackups::Nothing {
            return Ok(wanted);
        }
        let here = self.node.backups(self.server)?;
        for backup in self.offer.backups.clone() {
            let (id, record) = (backup.body.id, backup.record.id);
            let asked_for = match self.options.backups {
                SyncedBackups::Only(only) => Some(id == only),
                _ => None,
            };
            let is_here = |other: &Backup| other.record == Some(record) || is_same(other, &backup.body);
            if asked_for == Some(false) || self.tried.contains(&record) || here.iter().any(is_here) {
                continue;
            }
            if asked_for.is_none() && self.was_here(record)? {
                if !self.report.deleted_here.contains(&id) {
                    self.report.deleted_here.push(id);
                }
            } else if here.iter().any(|other| other.id == id && other.is_complete()) {
                self.problem(format!(
                    "Backup {id} of the primary is not taken: there is another one of this id here"
                ));
            } else {
                wanted.push(backup);
            }
        }
        if let SyncedBackups::Only(id) = self.options.backups {
            self.refuse_unknown(id, &here)?;
            return Ok(wanted);
        }
        let obsolete = self.obsolete(&wanted)?;
        wanted.retain(|backup| !obsolete.contains(&backup.body.id));
        self.report.obsolete = obsolete;
        Ok(wanted)
    }

    /// Whether a backup of the primary is here, or was deleted here.
    pub(super) fn was_here(&self, record: RecordId) -> Result<bool> {
        Ok(self.memory.fetched.contains(&record) || self.node.db.read(|db| is_here(db, record))?)
    }

    fn refuse_unknown(&self, id: BackupId, here: &[Backup]) -> Result<()> {
        let is_known = self.offer.backups.iter().any(|backup| backup.body.id == id)
            || here.iter().any(|backup| backup.id == id);
        match is_known {
            true => Ok(()),
            false => Err(Error::NoSuchBackup {
                server: self.server.clone(),
                selector: format!("{id} on the primary"),
            }),
        }
    }

    /// Copies backups, the newest first: it is what a recovery needs most. In the place of one that cannot be taken those come
    /// that the policy would have left out for its sake.
    pub(super) fn take_backups(
        &mut self,
        mut backups: Vec<Said<Backup>>,
        monitor: &mut dyn Monitor,
    ) -> Result<()> {
        loop {
            let before = self.memory.untaken.clone();
            for backup in backups.iter().rev() {
                self.tried.insert(backup.record.id);
                monitor.stage(&format!("Copying backup {} of {}", backup.body.id, self.server));
                self.take_or_tell(backup, monitor)?;
            }
            if self.memory.untaken == before || self.options.backups != SyncedBackups::All {
                return Ok(());
            }
            backups = self.wanted_backups()?;
        }
    }

    /// Copies a backup. What is wrong with it stops nothing behind it.
    fn take_or_tell(&mut self, backup: &Said<Backup>, monitor: &mut dyn Monitor) -> Result<()> {
        let what = format!("Backup {}", backup.body.id);
        // A sweep of the primary may move its chunks while they are copied: then they are looked for again.
        for is_last in [false, false, true] {
            match self.take_backup(backup, monitor) {
                Err(error) if is_gone(&error) && !is_last => {
                    self.forget_attempt()?;
                    self.look(monitor)?;
                    let record = backup.record.id;
                    if !self.offer.backups.iter().any(|other| other.record.id == record) {
                        let note = format!("{what} was deleted on the primary while it was copied");
                        self.report.notes.push(note);
                        return Ok(());
                    }
                    self.report.notes.push(format!(
                        "The primary has moved data of backup {} while it was copied: it is copied from there",
                        backup.body.id
                    ));
                }
                Err(error) => {
                    self.not_taken(&what, error)?;
                    self.memory.untaken.insert(backup.record.id);
                    return Ok(());
                }
                Ok(()) => return Ok(()),
            }
        }
        Ok(())
    }

    fn take_backup(&mut self, backup: &Said<Backup>, monitor: &mut dyn Monitor) -> Result<()> {
        let expected = self.offer.server.as_ref().map(|server| server.body.system_id);
        if expected.is_some_and(|expected| expected != backup.body.system_id) {
            return Err(barmanfs_store::Error::damaged(
                "Its record",
                format!("It is of the cluster {}", backup.body.system_id),
            )
            .into());
        }
        let configurations = self.offer.configurations.get(&backup.record.id).cloned();
        let configurations = configurations.unwrap_or_default();
        if let Some(root) = &backup.body.root {
            self.copy_tree(&root.directory, monitor)?;
        }
        for files in &configurations {
            self.copy_tree(&files.body.files.directory, monitor)?;
        }
        let records = self.records_of(backup, configurations)?;
        let fetched = records.first().map(|record| record.id);
        records
            .into_iter()
            .try_for_each(|record| self.copier.record(record))?;
        self.copier.publish()?;
        self.memory.fetched.extend(fetched);
        self.memory.untaken.remove(&backup.record.id);
        self.report.backups.push(backup.body.id);
        self.save()
    }

    /// The records of a backup, its own first. They keep their ids, unless the backup was deleted here: a deletion is for good,
    /// so the same backup comes with new records.
    fn records_of(
        &self,
        backup: &Said<Backup>,
        configurations: Vec<Said<ConfigurationRecord>>,
    ) -> Result<Vec<Record>> {
        let of = backup.record.id;
        if !self.node.db.read(|db| records::is_annulled(db, of))? {
            let mut all = vec![backup.record.clone()];
            all.extend(configurations.into_iter().map(|files| files.record));
            return Ok(all);
        }
        let record = records::record(Kind::Backup, &backup.body)?;
        let of = record.id;
        let mut all = vec![record];
        for files in configurations {
            let body = ConfigurationRecord { of, ..files.body };
            all.push(records::record(Kind::Configuration, &body)?);
        }
        Ok(all)
    }

    fn copy_tree(&mut self, directory: &DirectoryRef, monitor: &mut dyn Monitor) -> Result<()> {
        let trees = self.trees.clone();
        trees.chunks_of(directory, &mut |id, role| Ok(self.meet(id, role, monitor)?))?;
        self.copier.copy_wanted()
    }

    /// A chunk of a tree is met: whether to go on with what it refers to.
    fn meet(&mut self, id: ChunkId, role: ChunkRole, monitor: &mut dyn Monitor) -> Result<bool> {
        if self.seen.meet(&id, Role::Tree(role))? == Met::Before {
            return Ok(false);
        }
        self.met += 1;
        if self.met.is_multiple_of(TELL_EVERY) {
            monitor.progress(self.copier.copied_bytes, None, Unit::Bytes);
            if self.options.wal && self.took_wal.elapsed() >= WAL_EVERY {
                self.look_again(monitor)?;
            }
        }
        self.copier.want(id)?;
        Ok(true)
    }
}

/// Whether two records are of one backup: this node may have imported what the primary has imported, too, or have it again
/// after a deletion.
fn is_same(one: &Backup, other: &Backup) -> bool {
    let name = |backup: &Backup| {
        let imported = backup.imported.as_ref();
        imported.map_or_else(|| backup.id.to_string(), |from| from.name.clone())
    };
    let limits = |backup: &Backup| {
        let (timeline, start, stop) = (backup.timeline, backup.start_lsn, backup.stop_lsn);
        (backup.system_id, timeline, start, stop, backup.is_of_server())
    };
    one.is_complete() && limits(one) == limits(other) && name(one) == name(other)
}
