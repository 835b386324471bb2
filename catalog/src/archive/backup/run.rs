//! Takes a backup: from its first file to its record.
//!
//! A backup may run for hours; it holds file locks but no transaction. Its packs are published while it runs. Its
//! record is written last, into its last pack: before that the backup does not exist, after that it is complete. If it
//! ends early, the next run finds its chunks and refers to them.
//!
//! A backup that began as an incremental one may turn out to be impossible, even halfway: then it starts over as a full
//! one, under the same id ([`BackupRun::start_over`]).

use std::io::Read;
use std::sync::Arc;

use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId};
use barmanfs_store::RecordId;
use barmanfs_store::layout::DATA_WINDOW_BYTES;
use barmanfs_store::{
    Attributes, DepositTotals, Depositor, DirectoryRef, TreeOptions, TreeReader, TreeTotals, TreeWriter,
};

use crate::archive::backup::{
    Annotations, Backup, BackupKind, BackupSelector, BackupStatus, ClonedFrom, ConfigurationFiles, Import,
    Imported, Tablespace, list, running,
};
use crate::archive::clones::CloneDescription;
use crate::archive::keep::KeepTarget;
use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::home::now;
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::index::writer::Writer;
use crate::names::{BackupId, ServerName};

mod end;

/// Size of a copy step into an added file.
const COPY_BYTES: usize = 128 << 10;

/// What is known about a backup before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBackup {
    /// The label the user gave it.
    pub label: Option<String>,
    /// The cluster.
    pub system_id: SystemId,
    /// The server's version.
    pub server_version: ServerVersion,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// Whether the backup includes the WAL it needs.
    pub wal_included: bool,
    /// The server's setting `TimeZone`, if it is known.
    pub timezone: Option<String>,
    /// If the server's history is not the archive's: the fork it lies after.
    pub fork: Option<RecordId>,
}

/// What is known about a backup once its last byte has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupEnd {
    /// Where its recovery begins.
    pub start_lsn: Lsn,
    /// What its recovery must reach.
    pub stop_lsn: Lsn,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Whether the cluster's pages have checksums, if that is known.
    pub data_checksums: Option<bool>,
    /// Its tablespaces, without `pg_default` and `pg_global`.
    pub tablespaces: Vec<Tablespace>,
    /// Bytes the server sent, or the bytes that were read of a clone.
    pub sent_bytes: u64,
    /// Page checksum failures the server reported.
    pub checksum_failures: Vec<String>,
    /// Whether a standby was backed up.
    pub from_standby: bool,
}

/// A backup being taken. If it is dropped before [`finish`](Self::finish) or [`fail`](Self::fail), it has failed as
/// interrupted.
#[derive(Debug)]
pub struct BackupRun {
    writer: Writer,
    backup: Backup,
    depositor: Arc<Depositor>,
    /// The tree that this one is probably similar to.
    previous: Option<DirectoryRef>,
    tree: Option<TreeWriter>,
    ended: Option<TreeTotals>,
    /// Configuration files from outside the data directory.
    configuration: Option<ConfigurationFiles>,
    /// How it is kept from its beginning on.
    keep: Option<(KeepTarget, Option<String>)>,
    /// Bytes it added to the repository before it started over.
    stored_before: u64,
    lock: Option<Lock>,
}

impl Writer {
    /// Begins a backup of `server`. If the server is new, this registers it.
    ///
    /// # Errors
    /// [`Error::BackupRunning`]; [`Error::OtherSystem`] when the server's name belongs to another cluster.
    pub fn begin_backup(self, server: &ServerName, new: NewBackup) -> Result<BackupRun> {
        self.begin(server, started(server, new), |repository, backup| {
            // Ids sort in the order of the backups, even if two begin in the same second or the clock went back.
            if let Some(newest) = list::newest_id(repository, server)?
                && backup.id <= newest
            {
                backup.id = newest.next();
            }
            Ok(())
        })
    }

    /// Begins to import a backup of `server` that another tool has taken. It has the times it was taken at, so that it may
    /// come before backups that are here. If it fails, nothing is recorded: there was no backup.
    ///
    /// # Errors
    /// Those of [`begin_backup`](Self::begin_backup).
    pub fn begin_import(self, server: &ServerName, new: NewBackup, import: Import) -> Result<BackupRun> {
        let backup = Backup {
            id: import.id,
            begin_time: import.begin_time,
            end_time: Some(import.end_time),
            imported: Some(Imported {
                tool: import.tool,
                name: import.name,
                imported_at: now(),
                shut_down: import.shut_down,
            }),
            ..started(server, new)
        };
        self.begin(server, backup, |repository, backup| {
            while list::is_recorded(repository, server, backup.id)? {
                backup.id = backup.id.next();
            }
            Ok(())
        })
    }

    /// Begins a backup, whose id `choose` settles while no other can begin.
    fn begin(
        self,
        server: &ServerName,
        mut backup: Backup,
        choose: impl FnOnce(&Repository, &mut Backup) -> Result<()>,
    ) -> Result<BackupRun> {
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
        if let Some((record, _held)) = self.claim_server(server, backup.system_id)? {
            self.write_records(vec![record])?;
        }
        choose(&repository, &mut backup)?;
        // Which WAL no backup needs is decided under this lock: with this backup, or before it begins.
        let deciding = repository.deleting(server)?;
        running::write(&repository, &backup)?;
        drop(deciding);
        let mut run = BackupRun {
            depositor: Arc::new(self.depositor()?),
            writer: self,
            backup,
            previous: None,
            tree: None,
            ended: None,
            configuration: None,
            keep: None,
            stored_before: 0,
            lock: Some(lock),
        };
        run.previous = run.latest_root()?;
        run.begin_tree();
        Ok(run)
    }

    /// Records the result of a backup whose process was killed. The server's lock must be held.
    fn settle_interrupted(&self, server: &ServerName) -> Result<()> {
        let repository = self.repository();
        if let Some(interrupted) = running::read_interrupted(repository, server)?
            && interrupted.imported.is_none()
            && !list::is_recorded(repository, server, interrupted.id)?
        {
            self.write_records(vec![records::record(Kind::Backup, &interrupted)?])?;
        }
        running::remove(repository, server)
    }
}

/// The listing of the files of a backup.
fn files_of(backup: &Backup) -> Result<DirectoryRef> {
    let root = backup.root.as_ref().map(|root| root.directory.clone());
    root.ok_or_else(|| Error::Invalid(format!("Backup {} has no files to build on", backup.id)))
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
        parent: None,
        cloned_from: None,
        imported: None,
        snapshot: None,
        label: new.label,
        annotations: Annotations::new(),
        begin_time,
        end_time: None,
        start_lsn: None,
        stop_lsn: None,
        timeline: None,
        system_id: new.system_id,
        server_version: new.server_version,
        segment_size: new.segment_size,
        data_checksums: None,
        timezone: new.timezone,
        tablespaces: Vec::new(),
        wal_included: new.wal_included,
        fork: new.fork,
        from_standby: false,
        logical_bytes: 0,
        sent_bytes: 0,
        new_stored_bytes: 0,
        files: 0,
        checksum_failures: Vec::new(),
        error: None,
        root: None,
        record: None,
        apart: None,
    }
}

impl BackupRun {
    /// Notes texts with it, in the place of earlier ones. They are stored with its record.
    pub fn annotate(&mut self, annotations: Annotations) {
        self.backup.annotations = annotations;
    }

    /// Keeps it from the moment on at which it has a record, also while it waits for WAL: no retention and no kill comes
    /// between the two.
    pub fn keep(&mut self, target: KeepTarget, reason: Option<String>) {
        self.keep = Some((target, reason));
    }

    /// Its id.
    pub fn id(&self) -> BackupId {
        self.backup.id
    }

    /// Must be called before the first file: the server sends only what changed since `parent`. The caller merges the
    /// two. The run only records the parent, and compares with it instead of the latest backup.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a parent without files; when the state file cannot be written.
    pub fn build_on(&mut self, parent: &Backup) -> Result<(TreeReader, DirectoryRef)> {
        let root = files_of(parent)?;
        self.backup.kind = BackupKind::Incremental;
        self.backup.parent = Some(parent.id);
        running::write(self.writer.repository(), &self.backup)?;
        self.previous = Some(root.clone());
        self.begin_tree();
        Ok((self.writer.repository().trees(), root))
    }

    /// Must be called before the first file: the files are those of a clone; `shut_down` says whether its PostgreSQL
    /// was shut down cleanly. The clone must stay locked until the run has ended, so that the chunks the backup takes
    /// over from it are kept.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn build_on_clone(&mut self, clone: &CloneDescription, shut_down: bool) -> Result<()> {
        self.backup.kind = BackupKind::Clone;
        self.backup.parent = Some(clone.origin.backup);
        self.backup.cloned_from = Some(ClonedFrom {
            name: clone.name.clone(),
            target: clone.origin.target.clone(),
            shut_down,
        });
        running::write(self.writer.repository(), &self.backup)?;
        self.previous = Some(clone.root.directory.clone());
        self.begin_tree();
        Ok(())
    }

    /// Discards all files and their errors, and starts again as a full backup.
    ///
    /// # Errors
    /// When the pipeline cannot be started again, or the state file cannot be written.
    pub fn start_over(&mut self) -> Result<()> {
        self.tree = None;
        self.ended = None;
        self.stored_before = self.new_stored_bytes();
        self.depositor = Arc::new(self.writer.depositor()?);
        self.backup.kind = BackupKind::Full;
        self.backup.parent = None;
        running::write(self.writer.repository(), &self.backup)?;
        self.previous = self.latest_root()?;
        self.begin_tree();
        Ok(())
    }

    fn latest_root(&self) -> Result<Option<DirectoryRef>> {
        let latest = self.latest()?;
        Ok(latest.and_then(|latest| latest.root).map(|root| root.directory))
    }

    /// The latest backup whose files are here.
    fn latest(&self) -> Result<Option<Backup>> {
        let repository = self.writer.repository();
        let server = &self.backup.server;
        match repository.backup(server, &BackupSelector::Latest) {
            Ok(latest) if latest.is_snapshot() => {
                let mut backups = repository.backups(server)?;
                backups.retain(|backup| backup.is_complete() && backup.is_of_current_history());
                Ok(backups.pop())
            }
            Ok(latest) => Ok(Some(latest)),
            Err(Error::NoSuchBackup { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn begin_tree(&mut self) {
        self.tree = Some(self.new_tree());
    }

    fn new_tree(&self) -> TreeWriter {
        let trees = self.writer.repository().trees();
        let previous = self.previous.clone().map(|root| (trees, root));
        let options = TreeOptions {
            // The bytes of a clone's lower layer are stored nowhere else: what is unreadable now may be repaired later.
            base_is_kept: self.backup.kind == BackupKind::Clone,
            ..TreeOptions::default()
        };
        TreeWriter::begin(Arc::clone(&self.depositor), previous, options)
    }

    fn new_stored_bytes(&self) -> u64 {
        self.stored_before + self.depositor.totals().new_stored_bytes
    }

    /// The tree that takes the backup's files.
    ///
    /// # Errors
    /// [`Error::Invalid`] after the tree has ended.
    pub fn tree(&self) -> Result<&TreeWriter> {
        self.tree.as_ref().ok_or_else(no_tree)
    }

    /// Ends the tree; `root` has the owner, permissions and time of the data directory itself. When this returns, all
    /// files can be read back, so that they can be checked before the backup counts.
    ///
    /// # Errors
    /// Any error that occurred with one of the files.
    pub fn end_tree(&mut self, root: Attributes) -> Result<(TreeReader, DirectoryRef)> {
        let totals = self.tree.take().ok_or_else(no_tree)?.finish(root)?;
        self.depositor.flush(Vec::new())?;
        let directory = totals.root.clone();
        self.ended = Some(totals);
        Ok((self.writer.repository().trees(), directory))
    }

    /// The listing of the data directory, and its owner, permissions and time; `None` until the tree has ended.
    pub fn stored_root(&self) -> Option<(DirectoryRef, Attributes)> {
        let ended = self.ended.as_ref()?;
        Some((ended.root.clone(), ended.root_attributes))
    }

    /// Adds a file to the data directory itself after the tree has ended: a file that is generated from the others.
    ///
    /// # Errors
    /// [`Error::Invalid`] before the tree has ended or when `content` is not of this size; any error with the file.
    pub fn add_file(
        &mut self,
        name: &[u8],
        attributes: Attributes,
        size_bytes: u64,
        content: &mut dyn Read,
    ) -> Result<()> {
        let ended = self
            .ended
            .take()
            .ok_or_else(|| Error::Invalid("The backup's files are not complete".to_owned()))?;
        let tree = self.new_tree();
        tree.adopt(&ended.root)?;
        let mut sink = tree.file(name, attributes, size_bytes, DATA_WINDOW_BYTES)?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let length = content
                .read(&mut buffer)
                .map_err(|error| Error::Invalid(format!("Cannot read {}: {error}", name.escape_ascii())))?;
            match buffer.get(..length) {
                Some(bytes) if length > 0 => sink.write(bytes)?,
                _ => break,
            }
        }
        sink.finish()?;
        let root = tree.finish(ended.root_attributes)?;
        // What reads the backup before its end, by `stored_root`, must find the new listing.
        self.depositor.flush(Vec::new())?;
        self.ended = Some(TreeTotals {
            root: root.root,
            files: ended.files + root.files,
            logical_bytes: ended.logical_bytes + root.logical_bytes,
            ..ended
        });
        Ok(())
    }

    /// A tree for the server's configuration files outside its data directory, in which each has its absolute path on
    /// the server without the first slash. [`set_configuration`](Self::set_configuration) takes what it becomes.
    ///
    /// # Errors
    /// When the configuration files of the previous backup cannot be looked up.
    pub fn configuration_tree(&self) -> Result<TreeWriter> {
        let repository = self.writer.repository();
        let latest = match self.latest()? {
            Some(latest) => repository.configuration_files(&latest)?,
            None => None,
        };
        let previous = latest.map(|files| (repository.trees(), files.directory));
        Ok(TreeWriter::begin(
            Arc::clone(&self.depositor),
            previous,
            TreeOptions::default(),
        ))
    }

    /// Stores these files with the backup.
    pub fn set_configuration(&mut self, files: ConfigurationFiles) {
        self.configuration = Some(files);
    }

    /// Says that the backup brings the WAL it needs, or that it does not: that of an import is known at its end.
    pub fn set_wal_included(&mut self, is_included: bool) {
        self.backup.wal_included = is_included;
    }

    /// Stores the files as similar to those of this backup, and not to those of the latest one. Must be called before the
    /// first file.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a backup without files.
    pub fn compare_with(&mut self, similar: &Backup) -> Result<()> {
        self.previous = Some(files_of(similar)?);
        self.begin_tree();
        Ok(())
    }

    /// Totals stored so far, for progress reports.
    pub fn totals(&self) -> DepositTotals {
        self.depositor.totals()
    }
}
