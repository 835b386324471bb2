//! Taking a base backup: from the connection to a backup that can be recovered.
//!
//! One replication connection identifies the cluster and sends the backup. Another connection has a temporary slot, so
//! that the server keeps the WAL until the archive has the last segment ([`hold`]). If the server can, it sends only
//! what changed since an earlier backup ([`incremental`]), and the result is combined with that backup while it arrives
//! ([`compose`]). Received data goes straight into the repository's pipeline ([`receive`]). The stored files are then
//! compared with the server's manifest ([`server_manifest`]) before the backup counts.
//!
//! On the server's own host, its files can be read instead ([`local`]).

pub(crate) mod checkpoint;
pub(crate) mod compose;
pub(crate) mod configuration;
mod fetch;
pub(crate) mod files;
pub(crate) mod finish;
pub(crate) mod hold;
mod incremental;
pub(crate) mod local;
pub(crate) mod pages;
mod proof;
pub(crate) mod receive;
pub(crate) mod sent_manifest;
pub(crate) mod server_manifest;
pub(crate) mod stop;
pub(crate) mod sums;
pub(crate) mod wal_source;
pub(crate) mod window;

use std::time::{Duration, Instant};

use barmanfs_catalog::{
    Annotations, Backup, BackupEnd, BackupId, BackupRun, BackupStatus, KeepTarget, NewBackup, Repository,
};
use barmanfs_store::RecordId;

use crate::cluster::{ConfigurationPaths, ServerSettings, primary};
use crate::config::{BackupMethod, Incremental, ServerConfig};
use crate::error::Error;
use crate::forks;
use crate::hooks::{Hook, Hooks};
use crate::lineage::{self, Lineage};
use crate::output;
use crate::postgres::{self, BaseBackupOptions, BaseBackupResult, Connection};
use crate::progress::{Counted, Progress};
use crate::versions;
use checkpoint::Checkpoint;
use compose::{Composer, Parent};
use hold::Hold;
use incremental::{Control, NoIncrement};
use receive::Receiver;
use sent_manifest::SentNotesWriter;
pub(crate) use stop::Stop;
use wal_source::Source;

/// What Barman calls a backup of which nothing is there yet.
pub(crate) const BARMANS_NEW: &str = "EMPTY";

/// The options of a backup.
#[derive(Debug, Clone)]
pub(crate) struct BackupOptions {
    /// See `backup --label`.
    pub(crate) label: Option<String>,
    /// See `backup --annotate`.
    pub(crate) annotations: Annotations,
    /// See `backup --keep`.
    pub(crate) keep: Option<KeepTarget>,
    /// See `backup --fast-checkpoint`; `None` leaves it to the configuration.
    pub(crate) fast_checkpoint: Option<bool>,
    /// See `backup --incremental`; `None` leaves it to the configuration.
    pub(crate) incremental: Option<Incremental>,
    /// See `backup --method`; `None` leaves it to the configuration.
    pub(crate) method: Option<BackupMethod>,
    /// See `backup --max-rate`, in kB/s.
    pub(crate) max_rate_kb: Option<u32>,
    /// How long to wait for WAL to be archived.
    pub(crate) wait_timeout: Duration,
    /// Do not show progress.
    pub(crate) quiet: bool,
}

impl BackupOptions {
    /// What is recorded together with a backup.
    pub(crate) fn prepare(&self, run: &mut BackupRun) {
        run.annotate(self.annotations.clone());
        if let Some(target) = self.keep {
            run.keep(target, None);
        }
    }

    /// How a backup of this server is taken.
    pub(crate) fn method(&self, server: &ServerConfig) -> BackupMethod {
        self.method.unwrap_or(server.backup_method)
    }
}

/// One backup of one server.
struct Attempt<'a> {
    repository: &'a Repository,
    server: &'a ServerConfig,
    cluster: ServerSettings,
    checkpoint: Checkpoint,
    source: Source,
    /// Where the configuration files are, if the role may see that.
    configuration: Option<ConfigurationPaths>,
    /// The fork that the server has passed, if its history is not the archive's.
    fork: Option<RecordId>,
    options: &'a BackupOptions,
    stop: &'a Stop,
    hooks: &'a Hooks<'a>,
}

/// Takes one backup of `server`. It ends complete or not at all.
pub(crate) fn take(
    repository: &Repository,
    server: &ServerConfig,
    options: &BackupOptions,
    stop: &Stop,
) -> Result<Backup, Error> {
    hooked(repository, server, stop, |hooks, begun| {
        take_with(repository, server, options, (stop, hooks), begun)
    })
}

/// Takes a backup by `work`, which says which one it has begun, and runs the scripts behind it.
///
/// # Errors
/// Those of `work`, and for a server that is disabled.
pub(crate) fn hooked(
    repository: &Repository,
    server: &ServerConfig,
    stop: &Stop,
    work: impl FnOnce(&Hooks<'_>, &mut Option<BackupId>) -> Result<Backup, Error>,
) -> Result<Backup, Error> {
    server.refuse_disabled()?;
    let is_stopped = || stop.requested();
    let hooks = Hooks::of(server, repository, &is_stopped);
    let mut begun = None;
    let taken = work(&hooks, &mut begun);
    // The scripts see what has become of it in the end.
    if let (Some(id), true) = (begun, hooks.has(Hook::Backup)) {
        match find(repository, server, id) {
            Ok(backup) => hooks.after_backup(Hook::Backup, &backup),
            Err(error) => tracing::error!("Hooks after backup {id} were not run: {error}"),
        }
    }
    taken
}

/// A backup that was begun.
pub(crate) fn find(repository: &Repository, server: &ServerConfig, id: BackupId) -> Result<Backup, Error> {
    let backups = repository.backups(&server.name)?;
    let found = backups.into_iter().rfind(|backup| backup.id == id);
    found.ok_or_else(|| Error::failed(format!("Backup {id} of server {} is gone", server.name)))
}

fn take_with(
    repository: &Repository,
    server: &ServerConfig,
    options: &BackupOptions,
    (stop, hooks): (&Stop, &Hooks<'_>),
    begun: &mut Option<BackupId>,
) -> Result<Backup, Error> {
    let mut connection = stop::connect(server, stop)?;
    stop.guard(&connection)?;
    let cluster = ServerSettings::ask(&mut connection).map_err(|error| stop.explain(error))?;
    if let Some(unknown) = versions::unknown(cluster.version) {
        tracing::warn!("Server {}: {unknown}", server.name);
    }
    let configuration = ConfigurationPaths::ask(&mut connection)?;
    let checkpoint = Checkpoint::ask(&mut connection).map_err(|error| stop.explain(error))?;
    let (source, fork) =
        source(repository, server, &cluster, &mut connection).map_err(|error| stop.explain(error))?;
    let attempt = Attempt {
        repository,
        server,
        cluster,
        checkpoint,
        source,
        configuration,
        fork,
        options,
        stop,
        hooks,
    };
    let mut hold = Hold::default();
    let backup = attempt.run(&mut connection, &mut hold, begun)?;
    wal_source::keep_history(repository, &mut connection, &backup);
    match backup.status {
        BackupStatus::WaitingForWals => {
            if backup.from_standby && server.primary_conninfo.is_some() {
                primary::switch_wal(server, backup.system_id).unwrap_or_else(|error| {
                    tracing::warn!("The primary was not asked to switch WAL: {error}");
                });
            }
            let fetch_after = wal_source::fetch_after(options);
            wal_source::wait(
                repository,
                server,
                &mut connection,
                backup,
                (options, fetch_after),
                stop,
            )
        }
        _ => Ok(backup),
    }
}

/// Decides where the WAL comes from, and finds the fork that the server has passed. The archive is not used if it has
/// another history than the server, or if it refuses WAL until somebody decides which history counts.
fn source(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &ServerSettings,
    connection: &mut Connection,
) -> Result<(Source, Option<RecordId>), Error> {
    let name = &server.name;
    match lineage::of_archive(repository, &server.name, cluster, connection)? {
        found @ (Lineage::Same | Lineage::Unknown) => {
            let mut forks = repository.open_forks(name)?;
            // Prefers a fork of the server's present timeline.
            forks.sort_by_key(|fork| fork.timeline != cluster.timeline);
            let Some(fork) = forks.into_iter().next() else {
                return Ok((wal_source::source(repository, server, cluster, connection)?, None));
            };
            tracing::error!(
                "Server {name}: {fork}. WAL from there on is refused, so this backup brings its own. {}",
                forks::advice(name, &fork)
            );
            // If the comparison found nothing, the server's history is not the archived one: otherwise the archive
            // would have its WAL.
            let is_behind = fork.timeline == cluster.timeline && fork.lsn < cluster.flush_lsn;
            let is_known = found == Lineage::Same;
            Ok((Source::Backup, (is_behind && !is_known).then_some(fork.id)))
        }
        Lineage::Other(found) => {
            let place = (found.timeline, found.lsn, cluster.segment_size);
            let writer = repository.writer(&format!("backup of {name}"))?;
            let fork = writer.record_fork(name, place, &found.why, "backup")?;
            // Logged with --quiet, too.
            tracing::error!(
                "The history of server {name} has changed: {found}. This backup brings its WAL, and is good for its own \
                 moment only. {}",
                forks::advice(name, &fork)
            );
            Ok((Source::Backup, Some(fork.id)))
        }
    }
}

/// What is known of a backup of a cluster before it begins.
pub(crate) fn new_backup(
    options: &BackupOptions,
    cluster: &ServerSettings,
    wal_included: bool,
    fork: Option<RecordId>,
) -> NewBackup {
    NewBackup {
        label: options.label.clone(),
        system_id: cluster.system_id,
        server_version: cluster.version,
        segment_size: cluster.segment_size,
        wal_included,
        timezone: Some(cluster.timezone.clone()),
        fork,
    }
}

impl Attempt<'_> {
    /// Receives, checks and finishes the backup. On any error it is marked as failed.
    fn run(
        &self,
        connection: &mut Connection,
        hold: &mut Hold,
        begun: &mut Option<BackupId>,
    ) -> Result<Backup, Error> {
        let name = &self.server.name;
        let is_whole = self.source == Source::Backup;
        let new = new_backup(self.options, &self.cluster, is_whole, self.fork);
        let mut run = self
            .repository
            .writer(&format!("backup of {name}"))?
            .begin_backup(name, new)?;
        self.options.prepare(&mut run);
        let id = run.id();
        *begun = Some(id);
        let began = Instant::now();
        tracing::info!("Backup {id} of server {name} began: {}", self.source.sentence());
        let context = |error: Error| error.context(format_args!("Backup {id} of server {name} FAILED"));
        let copied = self
            .run_hooks(id, connection)
            .and_then(|()| self.copy(&mut run, connection, hold));
        let copied = copied.and_then(|end| Ok((end, self.keep_configuration(&mut run)?)));
        match copied.map_err(|error| self.stop.explain(error)) {
            Ok((end, missing)) => {
                let backup = run.finish(end).map_err(|error| context(error.into()))?;
                report(&backup, began.elapsed());
                configuration::warn(&backup, &missing);
                Ok(backup)
            }
            Err(error) => {
                run.fail(&error.to_string());
                Err(context(error))
            }
        }
    }

    fn keep_configuration(&self, run: &mut BackupRun) -> Result<configuration::Missing, Error> {
        if !self.server.external_configuration {
            return Ok(configuration::Missing::new());
        }
        configuration::keep(
            run,
            self.repository.trees(),
            self.server,
            self.cluster.system_id,
            self.configuration.as_ref(),
        )
    }

    /// Runs the scripts before a backup. The server may have closed the session meanwhile.
    fn run_hooks(&self, id: BackupId, connection: &mut Connection) -> Result<(), Error> {
        if !self.hooks.has(Hook::Backup) {
            return Ok(());
        }
        let backup = find(self.repository, self.server, id)?;
        self.hooks.before_backup(Hook::Backup, &backup, BARMANS_NEW)?;
        *connection = self.reconnect(connection)?;
        Ok(())
    }

    /// Receives only what has changed if the options request that and it is possible, otherwise everything.
    fn copy(
        &self,
        run: &mut BackupRun,
        connection: &mut Connection,
        hold: &mut Hold,
    ) -> Result<BackupEnd, Error> {
        if self.options.method(self.server) == BackupMethod::Files {
            return local::copy(self, run, connection, hold);
        }
        let incremental = self.incremental();
        if incremental == Incremental::Never {
            hold.begin(connection, self.cluster.version, run.id())?;
            return self.copy_all(run, connection);
        }
        // This comes before the slot: if the server no longer has the requested WAL, the command fails, and PostgreSQL
        // would drop the slot.
        let parent = incremental::parent(self.repository, self.server, &self.cluster, connection);
        hold.begin(connection, self.cluster.version, run.id())?;
        let why = match parent.and_then(|parent| self.copy_changes(run, connection, parent)) {
            Ok(end) => return Ok(end),
            Err(NoIncrement::Failed(error)) => return Err(error),
            Err(why) => why,
        };
        self.become_full(run, incremental, &why)?;
        if !connection.is_ready() {
            *connection = self.reconnect(connection)?;
        }
        hold.renew(connection, run.id())?;
        self.copy_all(run, connection)
    }

    fn incremental(&self) -> Incremental {
        self.options.incremental.unwrap_or(self.server.incremental)
    }

    /// Starts over for a full backup, if that is permitted.
    fn become_full(&self, run: &mut BackupRun, when: Incremental, why: &NoIncrement) -> Result<(), Error> {
        if self.stop.requested() || when == Incremental::Always {
            return Err(Error::failed(format!("It cannot be incremental: {why}"))
                .hint("With incremental = auto, a full backup is taken in such a case"));
        }
        let (id, name) = (run.id(), &self.server.name);
        match why {
            NoIncrement::Unavailable(_) => {
                tracing::info!("Backup {id} of server {name} is a full one: {why}");
            }
            // An incremental backup on that parent would be wrong. This is logged with --quiet, too.
            NoIncrement::Changed(_) => {
                tracing::error!("Backup {id} of server {name} is a full one: {why}");
                run.start_over()?;
            }
            _ => {
                tracing::warn!("Backup {id} of server {name} becomes a full one: {why}");
                run.start_over()?;
            }
        }
        Ok(())
    }

    /// Opens a new session on the same server. It must still be the same cluster.
    fn reconnect(&self, old: &Connection) -> Result<Connection, Error> {
        let mut connection = old.another(None)?;
        self.stop.guard(&connection)?;
        let system_id = connection.identify_system()?.system_id;
        if system_id == self.cluster.system_id {
            return Ok(connection);
        }
        Err(Error::failed(format!(
            "The {} was the cluster with system identifier {} when the backup began, it is {system_id} now",
            connection.target(),
            self.cluster.system_id
        )))
    }

    /// Receives all archives and the manifest, and compares the stored files with the manifest.
    fn copy_all(&self, run: &mut BackupRun, connection: &mut Connection) -> Result<BackupEnd, Error> {
        let progress = self.progress();
        let spool = self.repository.path();
        let mut receiver = Receiver::begin(run, spool, &self.cluster, None, &progress)?;
        let result = self.receive(run, connection, false, &mut receiver, &progress)?;
        let (root_attributes, received) = receiver.finish()?;
        progress.note("checking against the manifest");
        let (trees, root) = run.end_tree(root_attributes)?;
        server_manifest::check(&received, &trees, &root, self.cluster.system_id)?;
        finish::end(self.server, &self.cluster, (&trees, &root), result)
    }

    /// The same for an incremental backup: combines what has changed with the files of the earlier backup.
    fn copy_changes(
        &self,
        run: &mut BackupRun,
        connection: &mut Connection,
        parent: Backup,
    ) -> Result<BackupEnd, NoIncrement> {
        let system_id = self.cluster.system_id;
        let files = run.build_on(&parent)?;
        incremental::upload(connection, &parent, &files)?;
        incremental::warn_of_defects(self.cluster.version);
        let progress = self.progress();
        let spool = self.repository.path();
        let notes = SentNotesWriter::ordered(receive::spooled(spool)?);
        let composer = Composer::new(Some(Parent::new(parent, files.clone())), notes);
        let mut receiver = Receiver::begin(run, spool, &self.cluster, Some(composer), &progress)?;
        let result = self.receive(run, connection, true, &mut receiver, &progress)?;
        let (root_attributes, mut received) = receiver.finish()?;
        progress.note("checking against the manifest");
        let (trees, root) = run.end_tree(root_attributes)?;
        let new = Control::read(&trees, &root, "the backup")?;
        let old = Control::read(&files.0, &files.1, "its parent")?;
        incremental::check_control(&new, &old, system_id)?;
        if let Some(altered) = received.altered.take() {
            let output = receive::spooled(spool)?;
            let (mut manifest, size_bytes) =
                server_manifest::compose(&received, altered, (&trees, &root), system_id, output)?;
            let attributes = receive::manifest_attributes(root_attributes);
            run.add_file(files::MANIFEST, attributes, size_bytes, &mut manifest)?;
        }
        Ok(finish::end(self.server, &self.cluster, (&trees, &root), result)?)
    }

    fn progress(&self) -> Progress {
        Progress::start(
            format!("Backup of {}", self.server.name),
            Counted::Bytes,
            self.options.quiet,
        )
    }

    /// Makes the server send all archives and the manifest.
    fn receive(
        &self,
        run: &BackupRun,
        connection: &mut Connection,
        incremental: bool,
        receiver: &mut Receiver<'_>,
        progress: &Progress,
    ) -> Result<BaseBackupResult, postgres::Error> {
        let options = BaseBackupOptions {
            incremental,
            ..self.base_backup_options(run)
        };
        connection.set_patience(Some(self.checkpoint.patience()));
        self.tell_checkpoint(options.fast_checkpoint, progress);
        postgres::base_backup(connection, self.cluster.version, &options, receiver)
    }

    /// The server is silent until its checkpoint is done, so this tells the user at once what the backup is waiting
    /// for.
    fn tell_checkpoint(&self, is_fast: bool, progress: &Progress) {
        let sentence = self.checkpoint.sentence(is_fast);
        if !is_fast && !self.options.quiet {
            tracing::info!("Backup of {}: {sentence}", self.server.name);
        }
        progress.note(if is_fast {
            sentence.as_str()
        } else {
            "waiting for a checkpoint"
        });
    }

    fn label(&self, run: &BackupRun) -> String {
        let label = self.options.label.clone();
        label.unwrap_or_else(|| format!("barmanfs {}", run.id()))
    }

    fn is_fast(&self) -> bool {
        let asked = self.options.fast_checkpoint;
        asked.unwrap_or(self.server.immediate_checkpoint)
    }

    fn max_rate_kib(&self) -> Option<u32> {
        self.options.max_rate_kb.or(self.server.bandwidth_limit_kb)
    }

    fn base_backup_options(&self, run: &BackupRun) -> BaseBackupOptions {
        BaseBackupOptions {
            label: self.label(run),
            fast_checkpoint: self.is_fast(),
            max_rate_kib: self.max_rate_kib(),
            include_wal: self.source == Source::Backup,
            // The tablespaces become directories of the tree, see `receive`.
            tablespace_map: false,
            ..BaseBackupOptions::default()
        }
    }
}

/// The directories of the WAL, without which no server starts; a server sends them empty.
pub(crate) fn wal_directories(major: u32) -> impl Iterator<Item = &'static [u8]> {
    const SUMMARIES: &[u8] = b"pg_wal/summaries";
    let of_all: [&[u8]; 2] = [b"pg_wal", b"pg_wal/archive_status"];
    let has_summaries = major >= postgres::FIRST_INCREMENTAL_MAJOR;
    of_all.into_iter().chain(has_summaries.then_some(SUMMARIES))
}

fn report(backup: &Backup, took: Duration) {
    tracing::debug!(
        "Backup {} of server {} copied in {}: {}",
        backup.id,
        backup.server,
        output::duration(took),
        output::count(backup.files, "file")
    );
    let failures = backup.checksum_failures.len();
    if failures > 0 {
        tracing::warn!(
            "Pages have wrong checksums; the backup is kept, 'barmanfs show-backup {} {}' lists them",
            backup.server,
            backup.id
        );
    }
}
