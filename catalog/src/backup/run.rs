//! Taking a backup: from its first file to its record.
//!
//! A backup of hours holds file locks and no transaction. Its packs are published while it runs; its record is the
//! last thing written, into its last pack: before that it does not exist, after that it is complete. Whatever ends
//! it early leaves chunks that the next run finds and refers to.

use std::sync::Arc;

use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId};
use barmanfs_store::{
    Attributes, DepositTotals, Depositor, DirectoryRef, TreeOptions, TreeReader, TreeTotals, TreeWriter,
};

use crate::backup::{
    Backup, BackupId, BackupKind, BackupRoot, BackupSelector, BackupStatus, Tablespace, list, running,
};
use crate::error::{Error, Result};
use crate::locks::Lock;
use crate::records::{self, kind};
use crate::repository::now;
use crate::server::ServerName;
use crate::writer::Writer;

/// What is known of a backup before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBackup {
    /// What the user calls it.
    pub label: Option<String>,
    /// The cluster.
    pub system_id: SystemId,
    /// The server's version.
    pub server_version: ServerVersion,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// Whether the backup brings the WAL it needs.
    pub wal_included: bool,
}

/// What is known of a backup once its last byte came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupEnd {
    /// Where recovery of it begins.
    pub start_lsn: Lsn,
    /// What recovery of it must reach.
    pub stop_lsn: Lsn,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Whether the cluster's pages have checksums, where it is known.
    pub data_checksums: Option<bool>,
    /// Its tablespaces, without `pg_default` and `pg_global`.
    pub tablespaces: Vec<Tablespace>,
    /// Bytes the server sent.
    pub sent_bytes: u64,
    /// Page checksum failures the server reported.
    pub checksum_failures: Vec<String>,
    /// Whether a standby was backed up.
    pub from_standby: bool,
}

/// A backup being taken. Dropped before [`finish`](Self::finish) or [`fail`](Self::fail) it has failed, interrupted.
#[derive(Debug)]
pub struct BackupRun {
    writer: Writer,
    backup: Backup,
    depositor: Arc<Depositor>,
    tree: Option<TreeWriter>,
    ended: Option<TreeTotals>,
    lock: Option<Lock>,
}

impl Writer {
    /// Begins a backup of `server`. This registers the server when it is new.
    ///
    /// # Errors
    /// [`Error::BackupRunning`]; [`Error::OtherSystem`] when the server's name stands for another cluster.
    pub fn begin_backup(self, server: &ServerName, new: NewBackup) -> Result<BackupRun> {
        let repository = self.repository().clone();
        let lock_name = running::lock_name(server);
        let lock = repository
            .locks
            .try_exclusive(&lock_name, self.purpose())?
            .ok_or_else(|| Error::BackupRunning {
                server: server.clone(),
                holder: repository.locks.holder(&lock_name),
            })?;
        self.settle_interrupted(server)?;
        if let Some((record, _held)) = self.claim_server(server, new.system_id)? {
            self.write_records(vec![record])?;
        }
        let mut backup = started(server, new);
        // Ids tell the order, also of backups that begin in one second, or after the clock went back.
        if let Some(newest) = list::newest_id(&repository, server)?
            && backup.id <= newest
        {
            backup.id = newest.next();
        }
        running::write(&repository, &backup)?;
        let depositor = Arc::new(self.depositor()?);
        let previous = match repository.backup(server, &BackupSelector::Latest) {
            Ok(latest) => latest.root.map(|root| (repository.trees(), root.directory)),
            Err(Error::NoSuchBackup { .. }) => None,
            Err(error) => return Err(error),
        };
        let tree = TreeWriter::begin(Arc::clone(&depositor), previous, TreeOptions::default());
        Ok(BackupRun {
            writer: self,
            backup,
            depositor,
            tree: Some(tree),
            ended: None,
            lock: Some(lock),
        })
    }

    /// Records what became of a backup whose process was killed. The server's lock must be held.
    fn settle_interrupted(&self, server: &ServerName) -> Result<()> {
        let repository = self.repository();
        if let Some(interrupted) = running::read_interrupted(repository, server)?
            && !list::is_recorded(repository, server, interrupted.id)?
        {
            self.write_records(vec![records::record(kind::BACKUP, &interrupted)?])?;
        }
        running::remove(repository, server)
    }
}

fn no_tree() -> Error {
    Error::Invalid("The backup takes no more files".to_owned())
}

fn started(server: &ServerName, new: NewBackup) -> Backup {
    let begin_time = now();
    Backup {
        server: server.clone(),
        id: BackupId::at(begin_time),
        status: BackupStatus::Started,
        kind: BackupKind::Full,
        label: new.label,
        begin_time,
        end_time: None,
        start_lsn: None,
        stop_lsn: None,
        timeline: None,
        system_id: new.system_id,
        server_version: new.server_version,
        segment_size: new.segment_size,
        data_checksums: None,
        tablespaces: Vec::new(),
        wal_included: new.wal_included,
        from_standby: false,
        logical_bytes: 0,
        sent_bytes: 0,
        new_stored_bytes: 0,
        files: 0,
        checksum_failures: Vec::new(),
        error: None,
        root: None,
        record: None,
    }
}

impl BackupRun {
    /// Its id.
    pub fn id(&self) -> BackupId {
        self.backup.id
    }

    /// Takes its files.
    ///
    /// # Errors
    /// [`Error::Invalid`] after the tree has ended.
    pub fn tree(&self) -> Result<&TreeWriter> {
        self.tree.as_ref().ok_or_else(no_tree)
    }

    /// Ends the tree; `root` is owner, permissions and time of the data directory itself. When this returns, all files
    /// can be read back, so that they can be checked before the backup counts.
    ///
    /// # Errors
    /// Whatever went wrong with one of the files.
    pub fn end_tree(&mut self, root: Attributes) -> Result<(TreeReader, DirectoryRef)> {
        let totals = self.tree.take().ok_or_else(no_tree)?.finish(root)?;
        self.depositor.flush(Vec::new())?;
        let directory = totals.root.clone();
        self.ended = Some(totals);
        Ok((self.writer.repository().trees(), directory))
    }

    /// What went in so far, for progress.
    pub fn totals(&self) -> DepositTotals {
        self.depositor.totals()
    }

    /// Ends the backup, after its tree: when this returns, it is complete and durable. Its status is
    /// [`BackupStatus::WaitingForWals`] until the archive has its last segment, unless it brought its WAL.
    ///
    /// # Errors
    /// When it cannot be made durable. It has failed then, for that reason.
    pub fn finish(mut self, end: BackupEnd) -> Result<Backup> {
        match self.complete(end) {
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

    /// Ends the backup as failed; what was stored is found again by the next one.
    pub fn fail(mut self, reason: &str) {
        self.record_failure(reason);
    }

    fn complete(&mut self, end: BackupEnd) -> Result<()> {
        let totals = self
            .ended
            .take()
            .ok_or_else(|| Error::Invalid("The backup's files are not complete".to_owned()))?;
        let backup = Backup {
            // Derived anew each time it is read.
            status: BackupStatus::Done,
            end_time: Some(now()),
            start_lsn: Some(end.start_lsn),
            stop_lsn: Some(end.stop_lsn),
            timeline: Some(end.timeline),
            data_checksums: end.data_checksums,
            tablespaces: end.tablespaces,
            sent_bytes: end.sent_bytes,
            checksum_failures: end.checksum_failures,
            from_standby: end.from_standby,
            logical_bytes: totals.logical_bytes,
            files: totals.files,
            new_stored_bytes: self.depositor.totals().new_stored_bytes,
            root: Some(BackupRoot {
                directory: totals.root,
                attributes: totals.root_attributes,
            }),
            ..self.backup.clone()
        };
        self.depositor
            .flush(vec![records::record(kind::BACKUP, &backup)?])?;
        Ok(())
    }

    /// Writes down that the backup failed: as a record where that is possible, else (a full disk, a broken pipeline) in
    /// its state file, and if not even that can be written, it shows as interrupted.
    fn record_failure(&mut self, reason: &str) {
        self.tree = None;
        self.backup.status = BackupStatus::Failed;
        self.backup.end_time = Some(now());
        self.backup.error = Some(reason.to_owned());
        self.backup.new_stored_bytes = self.depositor.totals().new_stored_bytes;
        let recorded = records::record(kind::BACKUP, &self.backup)
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

    /// The catalog has the backup: nothing is running any more.
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
