//! Deletes backups, and prevents the deletion of a backup that is being read.
//!
//! A deletion is a record that names the record it annuls, so it works in whatever order packs are read. It frees no
//! space by itself: a sweep does that.

use barmanfs_store::RecordId;

use crate::archive::backup::{Backup, BackupStatus, boot_test, configuration, list, running};
use crate::archive::keep;
use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::home::now;
use crate::index::records::{self, Deletion, Kind};
use crate::index::repository::Repository;
use crate::names::ServerName;

/// Keeps a backup from being deleted (without force) while this lives.
#[derive(Debug)]
pub struct ReadGuard {
    /// None if not even an empty lock file could be created or locked: reading is more important.
    _lock: Option<Lock>,
}

/// Keeps others from deleting backups of a server while this lives.
#[derive(Debug)]
pub struct DeletionGuard {
    _lock: Lock,
}

fn read_lock_name(backup: &Backup) -> String {
    format!("read-{}-{}", backup.server, backup.id)
}

impl Repository {
    /// Marks this backup as being read, for as long as the guard lives.
    ///
    /// # Errors
    /// [`Error::NoSuchBackup`] when it has been or is just being deleted.
    pub fn reading(&self, backup: &Backup) -> Result<ReadGuard> {
        self.reading_for(backup, "reading")
    }

    /// The same for a verification, only while it walks through the backup: a deletion need not wait until all chunks
    /// are checked. `None` if the backup has been deleted.
    pub(crate) fn verifying(&self, backup: &Backup) -> Result<Option<ReadGuard>> {
        match self.reading_for(backup, "verify") {
            Err(Error::NoSuchBackup { .. }) => Ok(None),
            // A repository may be readable only.
            Err(Error::Io { .. }) => Ok(Some(ReadGuard { _lock: None })),
            guard => guard.map(Some),
        }
    }

    /// Whether somebody reads this backup now.
    pub(crate) fn is_being_read(&self, backup: &Backup) -> Result<bool> {
        self.locks.is_held(&read_lock_name(backup))
    }

    fn reading_for(&self, backup: &Backup, purpose: &str) -> Result<ReadGuard> {
        let gone = || Error::NoSuchBackup {
            server: backup.server.clone(),
            selector: backup.id.to_string(),
        };
        let lock = match self.locks.try_shared(&read_lock_name(backup), purpose) {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => return Err(gone()),
            Err(Error::Full { .. }) => None,
            Err(error) if error.is_read_only() => None,
            Err(error) => return Err(error),
        };
        if !list::is_recorded(self, &backup.server, backup.id)? {
            return Err(gone());
        }
        Ok(ReadGuard { _lock: lock })
    }

    /// Waits until no other process deletes backups of this server. Whether a backup may be deleted depends on which
    /// others remain, so decide that while the guard lives.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn deleting(&self, server: &ServerName) -> Result<DeletionGuard> {
        let (name, purpose) = (
            format!("delete-{server}"),
            format!("deletion of backups of {server}"),
        );
        let lock = self.with_reserve(|| self.locks.wait_exclusive(&name, &purpose))?;
        Ok(DeletionGuard { _lock: lock })
    }

    /// Deletes a backup permanently; [`sweep`](Self::sweep) frees its space.
    ///
    /// # Errors
    /// [`Error::BackupRunning`]; [`Error::BackupKept`]; without `force` [`Error::BackupInUse`] while it is being read,
    /// [`Error::Unexamined`] and [`Error::BackupHasClones`]; [`Error::NoSuchBackup`].
    pub fn delete_backup(&self, backup: &Backup, force: bool) -> Result<()> {
        self.with_reserve(|| self.try_to_delete(backup, force))
    }

    /// Refuses what [`delete_backup`](Self::delete_backup) would refuse now, and changes nothing. Between both, a person
    /// or a mount can come.
    ///
    /// # Errors
    /// [`Error::BackupInUse`]; [`Error::BackupKept`]; [`Error::Unexamined`]; [`Error::BackupHasClones`]; when the disk
    /// cannot be read.
    pub fn refuse_deletion(&self, backup: &Backup, force: bool) -> Result<()> {
        let lock_name = read_lock_name(backup);
        if backup.record.is_some() && !force && self.locks.is_held(&lock_name)? {
            return Err(self.in_use(backup, &lock_name));
        }
        self.refuse_decided(backup, force)
    }

    fn in_use(&self, backup: &Backup, lock_name: &str) -> Error {
        Error::BackupInUse {
            server: backup.server.clone(),
            id: backup.id,
            holder: self.locks.holder(lock_name),
        }
    }

    /// Refuses a backup that somebody keeps, that may be the only good one, or that clones are based on.
    fn refuse_decided(&self, backup: &Backup, force: bool) -> Result<()> {
        if self.keep_of(backup)?.is_some_and(|keep| keep.holds(now())) {
            return Err(Error::BackupKept {
                server: backup.server.clone(),
                id: backup.id,
            });
        }
        if !force && backup.is_complete() && self.is_unexamined()? {
            return Err(Error::Unexamined {
                server: backup.server.clone(),
                id: backup.id,
            });
        }
        let clones = self.clones_of(backup)?;
        if !clones.is_empty() && !force {
            return Err(Error::BackupHasClones {
                server: backup.server.clone(),
                id: backup.id,
                clones,
            });
        }
        Ok(())
    }

    fn try_to_delete(&self, backup: &Backup, force: bool) -> Result<()> {
        let purpose = format!("deletion of backup {} of {}", backup.id, backup.server);
        let writer = self.writer(&purpose)?;
        if backup.record.is_none() {
            return self.delete_interrupted(backup, &purpose);
        }
        let lock_name = read_lock_name(backup);
        let lock = self.locks.try_exclusive(&lock_name, &purpose)?;
        if lock.is_none() && !force {
            return Err(self.in_use(backup, &lock_name));
        }
        self.refuse_decided(backup, force)?;
        let mut annulled = self.records_of(backup)?;
        if annulled.is_empty() {
            return Err(Error::NoSuchBackup {
                server: backup.server.clone(),
                selector: backup.id.to_string(),
            });
        }
        let tests = self.db.read(|db| boot_test::records_of(db, &annulled))?;
        let keeps = self.db.read(|db| keep::records_of(db, &annulled))?;
        let configurations = self.db.read(|db| configuration::records_of(db, &annulled))?;
        annulled.extend(tests.into_iter().chain(keeps).chain(configurations));
        let what = format!("backup {} of {}", backup.id, backup.server);
        let deletion = |of| {
            records::record(
                Kind::Deletion,
                &Deletion {
                    of,
                    deleted_at: now(),
                    what: what.clone(),
                },
            )
        };
        writer.write_records(annulled.into_iter().map(deletion).collect::<Result<_>>()?)?;
        if let Some(lock) = lock {
            lock.remove();
        }
        Ok(())
    }

    /// Deletes a backup that has no record yet, only a state file.
    fn delete_interrupted(&self, backup: &Backup, purpose: &str) -> Result<()> {
        let lock_name = running::lock_name(&backup.server);
        let Some(_lock) = self.locks.try_exclusive(&lock_name, purpose)? else {
            return Err(Error::BackupRunning {
                server: backup.server.clone(),
                holder: self.locks.holder(&lock_name),
            });
        };
        match running::read_interrupted(self, &backup.server)? {
            Some(found) if found.id == backup.id => running::remove(self, &backup.server),
            _ => Err(Error::NoSuchBackup {
                server: backup.server.clone(),
                selector: backup.id.to_string(),
            }),
        }
    }

    /// All live records of this backup: it may have one as failed and one as complete, see
    /// [`records`](crate::index::records).
    fn records_of(&self, backup: &Backup) -> Result<Vec<RecordId>> {
        self.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT id, payload FROM records WHERE kind IN (?1, ?2) AND kind <> 2
                 AND id NOT IN (SELECT annulled FROM deletions)",
            )?;
            let mut rows = query.query([Kind::Backup, Kind::Snapshot])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let (id, payload) = records::id_and_payload(row)?;
                match records::parse::<Backup>(id, payload) {
                    Ok(other) if (&other.server, other.id) == (&backup.server, backup.id) => found.push(id),
                    // A backup with an unreadable record is not visible anyway.
                    _ => {}
                }
            }
            Ok(found)
        })
    }
}

impl Backup {
    /// Whether [`Repository::delete_backup`] accepts it: not while it is running.
    pub fn can_be_deleted(&self) -> bool {
        self.status != BackupStatus::Started
    }
}
