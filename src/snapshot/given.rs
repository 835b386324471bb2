//! A snapshot that a person has taken between `pg_backup_start` and `pg_backup_stop`. Nobody asks the server: what it returned
//! is in files.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use barmanfs_catalog::{Backup, BackupId, BackupSelector, BackupStatus, NewBackup, Repository};

use super::ingest::Ingest;
use super::places::Snapshot;
use super::{Asked, StoppedBy, refuse_forks};
use crate::backup::window::Stopped;
use crate::backup::{self, BARMANS_NEW, BackupOptions, Stop, configuration, wal_source};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::hooks::{Hook, Hooks};
use crate::import::directory::read_small;
use crate::progress::{Counted, Progress};

/// The most that a label or a map of tablespaces may have.
const SMALL_BYTES: u64 = 1 << 20;

/// One such backup.
pub(super) struct Given<'a> {
    pub(super) repository: &'a Repository,
    pub(super) server: &'a ServerConfig,
    pub(super) asked: &'a Asked,
    pub(super) stopped: &'a StoppedBy,
    pub(super) options: &'a BackupOptions,
    pub(super) stop: &'a Stop,
    pub(super) hooks: &'a Hooks<'a>,
}

impl Given<'_> {
    /// Reads the snapshot at `from`, and waits for the WAL in the archive.
    pub(super) fn take(&self, from: &Path, begun: &mut Option<BackupId>) -> Result<Backup, Error> {
        let name = &self.server.name;
        let stopped = self.read()?;
        refuse_forks(self.repository, name)?;
        let snapshot = Snapshot::open(from, None)?;
        let new = NewBackup {
            label: self.options.label.clone(),
            system_id: snapshot.control.system_id,
            server_version: snapshot.version,
            segment_size: snapshot.control.segment_size,
            wal_included: false,
            timezone: None,
            fork: None,
        };
        let writer = self.repository.writer(&format!("backup of {name}"))?;
        let mut run = writer.begin_backup(name, new)?;
        self.options.prepare(&mut run);
        let id = run.id();
        *begun = Some(id);
        let context = |error: Error| error.context(format_args!("Backup {id} of server {name} FAILED"));
        let ingest = Ingest {
            repository: self.repository,
            server: name,
            snapshot: &snapshot,
            stopped: &stopped,
            names: HashMap::new(),
            given: &self.asked.tablespaces,
            live: None,
            signals: self.stop.signals(),
            quiet: self.options.quiet,
        };
        let done = self.run_hooks(id).and_then(|()| ingest.run(&mut run));
        let done = done.and_then(|end| Ok((end, self.missing(&mut run)?)));
        let backup = match done {
            Ok((end, missing)) => {
                let backup = run.finish(end).map_err(|error| context(error.into()))?;
                configuration::warn(&backup, &missing);
                backup
            }
            Err(error) => {
                run.fail(&error.to_string());
                return Err(context(error));
            }
        };
        match backup.status {
            BackupStatus::WaitingForWals => self.wait(backup),
            _ => Ok(backup),
        }
    }

    fn missing(&self, run: &mut barmanfs_catalog::BackupRun) -> Result<configuration::Missing, Error> {
        let system_id = self.repository.system_id(&self.server.name)?;
        match (self.server.external_configuration, system_id) {
            (true, Some(system_id)) => {
                configuration::keep(run, self.repository.trees(), self.server, system_id, None)
            }
            _ => Ok(configuration::Missing::new()),
        }
    }

    fn run_hooks(&self, id: BackupId) -> Result<(), Error> {
        if !self.hooks.has(Hook::Backup) {
            return Ok(());
        }
        let backup = backup::find(self.repository, self.server, id)?;
        self.hooks.before_backup(Hook::Backup, &backup, BARMANS_NEW)
    }

    /// What the server returned.
    fn read(&self) -> Result<Stopped, Error> {
        let text = |path: &Path| {
            let bytes = read_small(path, SMALL_BYTES)?
                .ok_or_else(|| Error::failed(format!("{} does not exist", path.display())))?;
            String::from_utf8(bytes).map_err(|_| Error::failed(format!("{} is no UTF-8", path.display())))
        };
        let map = self.stopped.map.as_deref().map(text).transpose()?;
        Stopped::new(
            self.stopped.stop_lsn,
            text(&self.stopped.label)?,
            map.unwrap_or_default(),
        )
    }

    /// Waits until the archive has all segments.
    fn wait(&self, backup: Backup) -> Result<Backup, Error> {
        let what = format!("Backup of {}", backup.server);
        let progress = Progress::start(what, Counted::Things, self.options.quiet);
        let deadline = Instant::now() + self.options.wait_timeout;
        loop {
            let missing = self.repository.missing_wal(&backup)?;
            if missing.is_empty() {
                let selector = BackupSelector::Id(backup.id);
                return Ok(self.repository.backup(&backup.server, &selector)?);
            }
            if self.stop.requested() || Instant::now() >= deadline {
                drop(progress);
                wal_source::warn_of_waiting(&backup, &missing);
                return Ok(backup);
            }
            progress.note(&format!(
                "waiting for {} to be archived",
                wal_source::names(&missing)
            ));
            std::thread::sleep(wal_source::POLL);
        }
    }
}
