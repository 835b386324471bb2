//! How a backup ends: with its record, as failed, or without one.

use barmanfs_store::{Record, RecordId};

use super::{BackupEnd, BackupRun};
use crate::archive::backup::{
    Backup, BackupKind, BackupRoot, BackupSelector, BackupStatus, StorageSnapshot, configuration, running,
};
use crate::archive::keep::{self, Keep};
use crate::error::{Error, Result};
use crate::home::now;
use crate::index::records::{self, Kind};

impl BackupRun {
    /// Ends the backup, after its tree: when this returns, the backup is complete and durable. Its status is
    /// [`BackupStatus::WaitingForWals`] until the archive has its last segment, unless it includes its WAL.
    ///
    /// # Errors
    /// When it cannot be made durable. Then the backup has failed with that error.
    pub fn finish(mut self, end: BackupEnd) -> Result<Backup> {
        let recorded = self.complete(end);
        self.ended(recorded)
    }

    /// Ends the backup as failed; the next one finds and reuses what was stored.
    pub fn fail(mut self, reason: &str) {
        self.record_failure(reason);
    }

    /// Ends an import without a record: the backup was here, and what was damaged of it is stored again.
    ///
    /// # Errors
    /// When that cannot be made durable.
    pub fn leave(mut self) -> Result<()> {
        self.tree = None;
        let flushed = self.depositor.flush(Vec::new());
        self.forget_state()?;
        Ok(flushed.map(drop)?)
    }

    /// Ends a backup whose files stay in the storage, and returns it as [`finish`](Self::finish) does. Its tree is dropped.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn finish_snapshot(mut self, end: BackupEnd, snapshot: StorageSnapshot) -> Result<Backup> {
        self.tree = None;
        let backup = Backup {
            kind: BackupKind::Snapshot,
            snapshot: Some(snapshot),
            ..self.ended_with(end)
        };
        let written = self.write_snapshot(&backup);
        self.ended(written)
    }

    fn write_snapshot(&mut self, backup: &Backup) -> Result<()> {
        let record = records::record(Kind::Snapshot, backup)?;
        let kept = self.decision_to_keep(backup, record.id)?;
        self.depositor.flush([record].into_iter().chain(kept).collect())?;
        Ok(())
    }

    /// The backup whose end is recorded. If it could not be, it has failed with that error.
    fn ended(mut self, recorded: Result<()>) -> Result<Backup> {
        match recorded {
            Ok(()) => {
                self.forget_state()?;
                let selector = BackupSelector::Id(self.backup.id);
                self.writer.repository().backup(&self.backup.server, &selector)
            }
            Err(error) => {
                self.record_failure(&error.to_string());
                Err(error)
            }
        }
    }

    /// The backup with what is known at its end, without files.
    fn ended_with(&self, end: BackupEnd) -> Backup {
        Backup {
            // Derived each time the record is read.
            status: BackupStatus::Done,
            end_time: self.backup.end_time.or_else(|| Some(now())),
            start_lsn: Some(end.start_lsn),
            stop_lsn: Some(end.stop_lsn),
            timeline: Some(end.timeline),
            data_checksums: end.data_checksums,
            tablespaces: end.tablespaces,
            sent_bytes: end.sent_bytes,
            checksum_failures: end.checksum_failures,
            from_standby: end.from_standby,
            ..self.backup.clone()
        }
    }

    fn complete(&mut self, end: BackupEnd) -> Result<()> {
        let totals = self
            .ended
            .take()
            .ok_or_else(|| Error::Invalid("The backup's files are not complete".to_owned()))?;
        let backup = Backup {
            logical_bytes: totals.logical_bytes,
            files: totals.files,
            new_stored_bytes: self.new_stored_bytes(),
            root: Some(BackupRoot {
                directory: totals.root,
                attributes: totals.root_attributes,
            }),
            ..self.ended_with(end)
        };
        let record = records::record(Kind::Backup, &backup)?;
        let of = record.id;
        let mut records = vec![record];
        if let Some(files) = self.configuration.take() {
            records.push(configuration::record(&backup, of, files)?);
        }
        records.extend(self.decision_to_keep(&backup, of)?);
        self.depositor.flush(records)?;
        Ok(())
    }

    /// What goes with the backup's record when it is to be kept.
    fn decision_to_keep(&mut self, backup: &Backup, of: RecordId) -> Result<Option<Record>> {
        let Some((target, reason)) = self.keep.take() else {
            return Ok(None);
        };
        let keep = Keep {
            target,
            kept_at: now(),
            until: None,
            reason,
        };
        keep::record(backup, of, keep).map(Some)
    }

    /// Records that the backup failed. If possible this is a record; otherwise (a full disk, a broken pipeline) it is
    /// written to the backup's state file. If even that fails, the backup shows as interrupted.
    fn record_failure(&mut self, reason: &str) {
        self.tree = None;
        if self.backup.imported.is_some() {
            if let Err(error) = self.forget_state() {
                tracing::warn!(server = %self.backup.server, id = %self.backup.id, %error, "An import that failed may still be shown");
                self.lock = None;
            }
            return;
        }
        self.backup.status = BackupStatus::Failed;
        self.backup.end_time = Some(now());
        self.backup.error = Some(reason.to_owned());
        self.backup.new_stored_bytes = self.new_stored_bytes();
        let recorded = records::record(Kind::Backup, &self.backup)
            .and_then(|record| Ok(self.depositor.flush(vec![record]).map(drop)?))
            .and_then(|()| self.forget_state());
        if let Err(error) = recorded {
            tracing::warn!(server = %self.backup.server, id = %self.backup.id, %error, "Cannot record a failed backup");
            if let Err(error) = running::write(self.writer.repository(), &self.backup) {
                tracing::warn!(server = %self.backup.server, id = %self.backup.id, %error, "It will show as interrupted");
            }
            self.lock = None;
        }
    }

    /// Called when the catalog has the backup: it is not running any more.
    fn forget_state(&mut self) -> Result<()> {
        running::remove(self.writer.repository(), &self.backup.server)?;
        self.lock = None;
        Ok(())
    }
}

impl Drop for BackupRun {
    fn drop(&mut self) {
        if self.lock.is_some() {
            self.record_failure("Interrupted");
        }
    }
}
