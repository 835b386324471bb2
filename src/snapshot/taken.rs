//! A snapshot that is taken now: the server is told that a backup begins, a command of the site takes the snapshot, and the
//! server is told that the backup ends. Then the snapshot is mounted and read, or it stays where it is.

use std::path::Path;
use std::time::Duration;

use barmanfs_catalog::{
    Backup, BackupId, BackupRun, BackupStatus, IntendedSnapshot, Repository, SnapshotDisk,
};

use super::ingest::Ingest;
use super::places::Snapshot;
use super::{Asked, abandoned, kept, refuse_forks};
use crate::backup::checkpoint::Checkpoint;
use crate::backup::hold::Hold;
use crate::backup::window::{Stopped, Window};
use crate::backup::{self, BARMANS_NEW, BackupOptions, Stop, configuration, stop, wal_source};
use crate::cluster::{ConfigurationPaths, ServerSettings, primary, tablespace_names};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::hooks::storage::{self, Act, Storage, Subject};
use crate::hooks::{Hook, Hooks};
use crate::lineage::{self, Lineage};
use crate::postgres::Connection;

/// One such backup.
struct Taken<'a> {
    repository: &'a Repository,
    server: &'a ServerConfig,
    asked: &'a Asked,
    /// The data directory in the mounted snapshot; none if that stays in the storage.
    from: Option<&'a Path>,
    options: &'a BackupOptions,
    stop: &'a Stop,
    hooks: &'a Hooks<'a>,
    storage: Storage<'a>,
    cluster: ServerSettings,
    configuration: Option<ConfigurationPaths>,
    checkpoint: Checkpoint,
}

/// Takes a snapshot, and makes a backup of it.
pub(super) fn take(
    (repository, server): (&Repository, &ServerConfig),
    (asked, from): (&Asked, Option<&Path>),
    options: &BackupOptions,
    (stop, hooks): (&Stop, &Hooks<'_>),
    begun: &mut Option<BackupId>,
) -> Result<Backup, Error> {
    let is_stopped = || stop.requested();
    let storage = Storage::of(server, repository, &is_stopped);
    if !storage.has(Act::Take) {
        return Err(no_command(server, from));
    }
    let mut connection = stop::connect(server, stop)?;
    stop.guard(&connection)?;
    let cluster = ServerSettings::ask(&mut connection).map_err(|error| stop.explain(error))?;
    let configuration = ConfigurationPaths::ask(&mut connection)?;
    let checkpoint = Checkpoint::ask(&mut connection)?;
    refuse_other_history(repository, server, &cluster, &mut connection)?;
    let brings_wal = wal_source::archive(repository, server, &cluster)? == wal_source::Source::Backup;
    let taken = Taken {
        repository,
        server,
        asked,
        from,
        options,
        stop,
        hooks,
        storage,
        cluster,
        configuration,
        checkpoint,
    };
    let mut hold = Hold::default();
    let backup = taken.run(&mut connection, &mut hold, begun)?;
    wal_source::keep_history(repository, &mut connection, &backup);
    if backup.status != BackupStatus::WaitingForWals {
        return Ok(backup);
    }
    if backup.from_standby && server.primary_conninfo.is_some() {
        primary::switch_wal(server, backup.system_id).unwrap_or_else(|error| {
            tracing::warn!("The primary was not asked to switch WAL: {error}");
        });
    }
    // What does not come through the archive is fetched.
    let fetch_after = match brings_wal {
        true => Duration::ZERO,
        false => wal_source::fetch_after(options),
    };
    wal_source::wait(
        repository,
        server,
        &mut connection,
        backup,
        (options, fetch_after),
        stop,
    )
}

fn no_command(server: &ServerConfig, from: Option<&Path>) -> Error {
    let name = &server.name;
    match from {
        Some(_) => Error::usage(format!(
            "Server '{name}' has no snapshot_command: who has taken the snapshot?"
        ))
        .hint(
            "For a snapshot that you have taken between pg_backup_start and pg_backup_stop, give what the server returned: \
             --backup-label FILE --stop-lsn LSN, and --tablespace-map FILE if there are tablespaces",
        ),
        None => Error::usage(format!(
            "Server '{name}' has backup_method = snapshot, and no snapshot_command"
        ))
        .hint("docs/snapshots.md has commands for several storages"),
    }
}

/// A snapshot does not bring WAL, so its history must be the archive's.
fn refuse_other_history(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &ServerSettings,
    connection: &mut Connection,
) -> Result<(), Error> {
    let name = &server.name;
    if let Lineage::Other(found) = lineage::of_archive(repository, name, cluster, connection)? {
        return Err(Error::failed(format!(
            "The history of server {name} has changed: {found}. A snapshot does not bring its WAL"
        ))
        .hint("Take a backup with 'backup_method = postgres' first, and decide which history counts"));
    }
    refuse_forks(repository, name)
}

impl Taken<'_> {
    fn run(
        &self,
        connection: &mut Connection,
        hold: &mut Hold,
        begun: &mut Option<BackupId>,
    ) -> Result<Backup, Error> {
        let name = &self.server.name;
        let new = backup::new_backup(self.options, &self.cluster, false, None);
        let writer = self.repository.writer(&format!("backup of {name}"))?;
        let mut run = writer.begin_backup(name, new)?;
        self.options.prepare(&mut run);
        let id = run.id();
        *begun = Some(id);
        abandoned::delete(self.repository, name, &self.storage);
        let context = |error: Error| error.context(format_args!("Backup {id} of server {name} FAILED"));
        let begun = self
            .run_hooks(id, connection)
            .and_then(|()| hold.begin(connection, self.cluster.version, id))
            .and_then(|()| self.snapshot(id));
        let done = match (begun, self.from) {
            (Ok((snapshot, stopped, disks)), Some(from)) => {
                self.read_into(run, (&snapshot, from), &stopped, &disks)
            }
            (Ok((snapshot, stopped, disks)), None) => self.leave(run, &snapshot, &stopped, &disks),
            (Err(error), _) => Err(self.failed(run, error)),
        };
        done.map_err(context)
    }

    /// Reads the snapshot.
    fn read_into(
        &self,
        mut run: BackupRun,
        snapshot: (&str, &Path),
        stopped: &Stopped,
        disks: &[SnapshotDisk],
    ) -> Result<Backup, Error> {
        match self.ingest(&mut run, snapshot, stopped, disks) {
            Ok((end, missing)) => {
                let backup = run.finish(end)?;
                configuration::warn(&backup, &missing);
                Ok(backup)
            }
            Err(error) => Err(self.failed(run, error)),
        }
    }

    /// Leaves the snapshot where it is. Without a record it is of no use.
    fn leave(
        &self,
        run: BackupRun,
        name: &str,
        stopped: &Stopped,
        disks: &[SnapshotDisk],
    ) -> Result<Backup, Error> {
        let id = run.id();
        let described = kept::describe(name, disks, stopped, self.data_directory());
        let described =
            described.and_then(|kept| Ok((kept::end(self.server, &self.cluster, stopped)?, kept)));
        let done = match described {
            Ok((end, kept)) => run.finish_snapshot(end, kept).map_err(Error::from),
            Err(error) => Err(self.failed(run, error)),
        };
        match &done {
            Ok(_) => abandoned::forget(self.repository, &self.intended(id, name)),
            Err(_) => self.delete(id, name, disks),
        }
        done
    }

    fn failed(&self, run: BackupRun, error: Error) -> Error {
        let error = self.stop.explain(error);
        run.fail(&error.to_string());
        error
    }

    fn data_directory(&self) -> Option<&str> {
        self.configuration
            .as_ref()
            .map(|paths| paths.data_directory.as_str())
    }

    /// Runs the scripts before a backup. The server may have closed the session meanwhile.
    fn run_hooks(&self, id: BackupId, connection: &mut Connection) -> Result<(), Error> {
        if !self.hooks.has(Hook::Backup) {
            return Ok(());
        }
        let backup = backup::find(self.repository, self.server, id)?;
        self.hooks.before_backup(Hook::Backup, &backup, BARMANS_NEW)?;
        *connection = connection.another(None)?;
        self.stop.guard(connection)
    }

    /// Takes the snapshot between the start and the end of the backup. Returns its name, what the server returned, and the disks.
    fn snapshot(&self, id: BackupId) -> Result<(String, Stopped, Vec<SnapshotDisk>), Error> {
        let name = storage::name(&self.server.name, id);
        let label = self.options.label.clone();
        let label = label.unwrap_or_else(|| format!("barmanfs {id}"));
        let is_fast = self
            .options
            .fast_checkpoint
            .unwrap_or(self.server.immediate_checkpoint);
        let sentence = self.checkpoint.sentence(is_fast);
        if !is_fast && !self.options.quiet {
            tracing::info!("Backup of {}: {sentence}", self.server.name);
        }
        self.repository.intend_snapshot(&self.intended(id, &name))?;
        let window = Window::open(
            self.server,
            &self.cluster,
            (&label, is_fast),
            (&self.checkpoint, self.stop),
        );
        let window = window.inspect_err(|_| abandoned::forget(self.repository, &self.intended(id, &name)))?;
        let subject = Subject {
            tablespaces: &window.tablespaces(),
            ..self.subject(id, &name)
        };
        let disks = self.storage.take(&subject);
        let stopped = window.close();
        // A failed command may have taken the snapshot of one of several disks.
        match (disks, stopped) {
            (Ok(disks), Ok(stopped)) => Ok((name, stopped, disks)),
            (Err(error), _) => {
                self.delete(id, &name, &[]);
                Err(error)
            }
            (Ok(disks), Err(error)) => {
                self.delete(id, &name, &disks);
                Err(error)
            }
        }
    }

    fn intended(&self, id: BackupId, name: &str) -> IntendedSnapshot {
        IntendedSnapshot {
            server: self.server.name.clone(),
            backup: id,
            name: name.to_owned(),
            data_directory: self.data_directory().map(str::to_owned),
        }
    }

    fn subject<'s>(&'s self, id: BackupId, name: &'s str) -> Subject<'s> {
        Subject {
            backup: Some(id),
            name,
            data_directory: self.data_directory(),
            directory: self.from,
            ..Subject::default()
        }
    }

    /// Mounts the snapshot and reads it. It is not needed after that.
    fn ingest(
        &self,
        run: &mut BackupRun,
        (name, from): (&str, &Path),
        stopped: &Stopped,
        disks: &[SnapshotDisk],
    ) -> Result<(barmanfs_catalog::BackupEnd, configuration::Missing), Error> {
        let id = run.id();
        let subject = Subject {
            disks,
            ..self.subject(id, name)
        };
        let mounted = match self.storage.has(Act::Mount) {
            true => self.storage.run(Act::Mount, &subject).map(drop),
            false => Ok(()),
        };
        let read = mounted.and_then(|()| self.read(run, from, stopped));
        if self.storage.has(Act::Umount)
            && let Err(error) = self.storage.run(Act::Umount, &subject)
        {
            tracing::error!("Snapshot {name} stays mounted: {error}");
        }
        self.delete(id, name, disks);
        read
    }

    fn read(
        &self,
        run: &mut BackupRun,
        from: &Path,
        stopped: &Stopped,
    ) -> Result<(barmanfs_catalog::BackupEnd, configuration::Missing), Error> {
        let live = self.data_directory().map(Path::new);
        let snapshot = Snapshot::open(from, live)?;
        if snapshot.control.system_id != self.cluster.system_id {
            return Err(Error::failed(format!(
                "The snapshot at {} is of the cluster with system identifier {}, the server is {}",
                from.display(),
                snapshot.control.system_id,
                self.cluster.system_id
            )));
        }
        let names = match stopped.map.is_empty() {
            true => std::collections::HashMap::new(),
            false => tablespace_names(self.server),
        };
        let ingest = Ingest {
            repository: self.repository,
            server: &self.server.name,
            snapshot: &snapshot,
            stopped,
            names,
            given: match self.asked.tablespaces.as_slice() {
                [] => &self.server.snapshots.tablespaces,
                given => given,
            },
            live,
            signals: self.stop.signals(),
            quiet: self.options.quiet,
        };
        let end = ingest.run(run)?;
        if !self.server.external_configuration {
            return Ok((end, configuration::Missing::new()));
        }
        let missing = configuration::keep(
            run,
            self.repository.trees(),
            self.server,
            self.cluster.system_id,
            self.configuration.as_ref(),
        )?;
        Ok((end, missing))
    }

    /// Deletes the snapshot in the storage. A failure costs space there, and no backup.
    fn delete(&self, id: BackupId, name: &str, disks: &[SnapshotDisk]) {
        let subject = Subject {
            disks,
            ..self.subject(id, name)
        };
        if self.storage.has(Act::Delete)
            && let Err(error) = self.storage.run(Act::Delete, &subject)
        {
            tracing::error!("Snapshot {name} may be left in the storage: {error}");
            return;
        }
        abandoned::forget(self.repository, &self.intended(id, name));
    }
}
