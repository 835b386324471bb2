//! Taking a base backup: from the connection to a backup that can be recovered.
//!
//! One replication connection identifies the cluster and sends the backup. Another one has a temporary slot, by which the
//! server keeps the WAL until the archive has the last segment ([`hold`]). Where the server can, it sends only what changed since an earlier backup ([`incremental`]), and both are put
//! together on the way ([`compose`]). What is received goes straight into the repository's pipeline ([`receive`]); what was stored is then held
//! against the server's manifest ([`manifest`]) before the backup counts.

mod as_sent;
mod checkpoint;
mod compose;
mod fetch;
mod hold;
mod incremental;
mod manifest;
mod outside;
mod proof;
mod receive;
mod wal;

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use barmanfs_catalog::{
    Backup, BackupEnd, BackupRun, BackupStatus, NewBackup, Repository, ServerName, Tablespace,
};
use barmanfs_pg::backup_label::BackupLabel;
use barmanfs_pg::control::{ControlError, ControlFile};
use barmanfs_store::{DirectoryRef, RecordId, TreeReader};

use crate::cluster::{self, Purpose, ServerSettings, primary};
use crate::config::{Incremental, ServerConfig};
use crate::error::Error;
use crate::forks;
use crate::lineage::{self, Lineage};
use crate::output;
use crate::postgres::{self, BaseBackupOptions, BaseBackupResult, Connection, Interrupter};
use crate::progress::{Counted, Progress};
use crate::signals::Interruption;
use crate::versions;
use as_sent::AsSentWriter;
use checkpoint::Checkpoint;
use compose::Composer;
use hold::Hold;
use incremental::NoIncrement;
use receive::Receiver;

/// How soon a signal is noticed while the server is being connected to.
const SIGNAL_NOTICED_WITHIN: Duration = Duration::from_millis(100);

/// What the user wants of a backup.
#[derive(Debug, Clone)]
pub(crate) struct Wishes {
    /// See `backup --label`.
    pub(crate) label: Option<String>,
    /// See `backup --fast-checkpoint`.
    pub(crate) fast_checkpoint: bool,
    /// See `backup --incremental`; `None` where the configuration decides.
    pub(crate) incremental: Option<Incremental>,
    /// See `backup --max-rate`, in kB/s.
    pub(crate) max_rate_kb: Option<u32>,
    /// How long to wait for WAL to be archived.
    pub(crate) wait_timeout: Duration,
    /// No progress.
    pub(crate) quiet: bool,
}

/// Ends the running backup's wait for its server when a signal comes.
#[derive(Debug)]
pub(crate) struct Stop {
    connection: Arc<Mutex<Option<Interrupter>>>,
    signals: Interruption,
}

impl Stop {
    /// Starts watching for signals.
    pub(crate) fn watch() -> Result<Self, Error> {
        let connection: Arc<Mutex<Option<Interrupter>>> = Arc::default();
        let current = Arc::clone(&connection);
        let signals = Interruption::watch(move || {
            if let Some(interrupter) = current.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                interrupter.interrupt();
            }
        })?;
        Ok(Self { connection, signals })
    }

    /// Whether to stop.
    pub(crate) fn requested(&self) -> bool {
        self.signals.requested()
    }

    /// From now on this is the connection to cut.
    fn guard(&self, connection: &Connection) -> Result<(), Error> {
        let interrupter = connection.interrupter()?;
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(interrupter);
        Ok(())
    }

    /// What happened, when the connection failed because it was cut.
    fn explain(&self, error: Error) -> Error {
        if self.requested() {
            Error::failed("Interrupted")
        } else {
            error
        }
    }
}

/// Connects in a thread of its own: a login may take a while, and there is no connection to cut yet when a signal comes.
fn connect_unless_stopped(server: &ServerConfig, stop: &Stop) -> Result<Connection, Error> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let settings = server.clone();
    std::thread::Builder::new()
        .name("connect".to_owned())
        .spawn(move || {
            // Nobody may be waiting any more.
            let _unwanted = sender.send(cluster::connect(&settings, Purpose::Backup));
        })
        .map_err(|error| Error::failed(format!("Cannot start a thread: {error}")))?;
    loop {
        match receiver.recv_timeout(SIGNAL_NOTICED_WITHIN) {
            Ok(connected) => return connected,
            Err(RecvTimeoutError::Timeout) if !stop.requested() => {}
            Err(_) => return Err(Error::failed("Interrupted")),
        }
    }
}

/// One backup of one server.
struct Attempt<'a> {
    repository: &'a Repository,
    server: &'a ServerConfig,
    cluster: ServerSettings,
    checkpoint: Checkpoint,
    source: wal::Source,
    /// The fork behind which the server is, where its history is not the archive's.
    fork: Option<RecordId>,
    wishes: &'a Wishes,
    stop: &'a Stop,
}

/// Takes one backup of `server`, which ends complete or not at all.
pub(crate) fn take(
    repository: &Repository,
    server: &ServerConfig,
    wishes: &Wishes,
    stop: &Stop,
) -> Result<Backup, Error> {
    let mut connection = connect_unless_stopped(server, stop)?;
    stop.guard(&connection)?;
    let cluster = ServerSettings::ask(&mut connection).map_err(|error| stop.explain(error))?;
    if let Some(unknown) = versions::unknown(cluster.version) {
        tracing::warn!("Server {}: {unknown}", server.name);
    }
    let outside = cluster::files_outside(&mut connection)?.unwrap_or_default();
    let checkpoint = Checkpoint::ask(&mut connection).map_err(|error| stop.explain(error))?;
    let (source, fork) =
        source(repository, server, &cluster, &mut connection).map_err(|error| stop.explain(error))?;
    let attempt = Attempt {
        repository,
        server,
        cluster,
        checkpoint,
        source,
        fork,
        wishes,
        stop,
    };
    let mut hold = Hold::default();
    let backup = attempt.run(&mut connection, &mut hold)?;
    outside::warn(repository, &backup, &outside)?;
    wal::keep_history(repository, &mut connection, &backup);
    match backup.status {
        BackupStatus::WaitingForWals => {
            if backup.from_standby && server.primary_conninfo.is_some() {
                primary::switch_wal(server, backup.system_id).unwrap_or_else(|error| {
                    tracing::warn!("The primary was not asked to switch WAL: {error}");
                });
            }
            wal::wait(repository, &mut connection, backup, wishes, stop)
        }
        _ => Ok(backup),
    }
}

/// Who brings the WAL: never the archive where that has another history than the server, or takes no WAL until somebody
/// decides which one counts. And the fork behind which the server is.
fn source(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &ServerSettings,
    connection: &mut Connection,
) -> Result<(wal::Source, Option<RecordId>), Error> {
    let name = &server.name;
    match lineage::of_archive(repository, &server.name, cluster, connection)? {
        found @ (Lineage::Same | Lineage::Unknown) => {
            let mut forks = repository.open_forks(name)?;
            // The one that matters most to the server as it is.
            forks.sort_by_key(|fork| fork.timeline != cluster.timeline);
            let Some(fork) = forks.into_iter().next() else {
                return Ok((wal::source(repository, server, cluster, connection)?, None));
            };
            tracing::error!(
                "Server {name}: {fork}. WAL from there on is refused, so this backup brings its own. {}",
                forks::advice(name, &fork)
            );
            // Nothing tells of which history it is: not of the archived one, as that has its WAL.
            let is_behind = fork.timeline == cluster.timeline && fork.lsn < cluster.flush_lsn;
            let is_known = found == Lineage::Same;
            Ok((wal::Source::Backup, (is_behind && !is_known).then_some(fork.id)))
        }
        Lineage::Other(found) => {
            let place = (found.timeline, found.lsn, cluster.segment_size);
            let writer = repository.writer(&format!("backup of {name}"))?;
            let fork = writer.record_fork(name, place, &found.why, "backup")?;
            // Also with --quiet.
            tracing::error!(
                "The history of server {name} has changed: {found}. This backup brings its WAL, and is good for its own \
                 moment only. {}",
                forks::advice(name, &fork)
            );
            Ok((wal::Source::Backup, Some(fork.id)))
        }
    }
}

impl Attempt<'_> {
    /// Receives, checks and ends the backup; on any error it is marked as failed.
    fn run(&self, connection: &mut Connection, hold: &mut Hold) -> Result<Backup, Error> {
        let name = &self.server.name;
        let new = NewBackup {
            label: self.wishes.label.clone(),
            system_id: self.cluster.system_id,
            server_version: self.cluster.version,
            segment_size: self.cluster.segment_size,
            wal_included: self.source == wal::Source::Backup,
            timezone: Some(self.cluster.timezone.clone()),
            fork: self.fork,
        };
        let mut run = self
            .repository
            .writer(&format!("backup of {name}"))?
            .begin_backup(name, new)?;
        let id = run.id();
        let began = Instant::now();
        tracing::info!("Backup {id} of server {name} began: {}", self.source.sentence());
        let context = |error: Error| error.context(format_args!("Backup {id} of server {name} FAILED"));
        match self
            .copy_as_wished(&mut run, connection, hold)
            .map_err(|error| self.stop.explain(error))
        {
            Ok(end) => {
                let backup = run.finish(end).map_err(|error| context(error.into()))?;
                report(&backup, began.elapsed());
                Ok(backup)
            }
            Err(error) => {
                run.fail(&error.to_string());
                Err(context(error))
            }
        }
    }

    /// Receives what has changed, where that is wished and possible, and else everything.
    fn copy_as_wished(
        &self,
        run: &mut BackupRun,
        connection: &mut Connection,
        hold: &mut Hold,
    ) -> Result<BackupEnd, Error> {
        let wish = self.wishes.incremental.unwrap_or(self.server.incremental);
        if wish == Incremental::Never {
            hold.begin(connection, self.cluster.version, run.id())?;
            return self.copy_all(run, connection);
        }
        // Before the slot: asking the server for WAL that it does not have any more would end that.
        let parent = incremental::parent(self.repository, self.server, &self.cluster, connection);
        hold.begin(connection, self.cluster.version, run.id())?;
        let why = match parent.and_then(|parent| self.copy_changes(run, connection, parent)) {
            Ok(end) => return Ok(end),
            Err(NoIncrement::Failed(error)) => return Err(error),
            Err(why) => why,
        };
        if self.stop.requested() || wish == Incremental::Always {
            return Err(Error::failed(format!("It cannot be incremental: {why}"))
                .hint("With incremental = auto, a full backup is taken in such a case"));
        }
        let (id, name) = (run.id(), &self.server.name);
        match &why {
            NoIncrement::Unavailable(_) => {
                tracing::info!("Backup {id} of server {name} is a full one: {why}");
            }
            // Built on that, it would be wrong: this is said with --quiet, too.
            NoIncrement::Changed(_) => {
                tracing::error!("Backup {id} of server {name} is a full one: {why}");
                run.start_over()?;
            }
            _ => {
                tracing::warn!("Backup {id} of server {name} becomes a full one: {why}");
                run.start_over()?;
            }
        }
        if !connection.is_ready() {
            *connection = self.reconnect(connection)?;
        }
        hold.renew(connection, id)?;
        self.copy_all(run, connection)
    }

    /// A new session on the server of the old one, which must still be the same cluster.
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

    /// Receives all archives and the manifest, and holds what was stored against it.
    fn copy_all(&self, run: &mut BackupRun, connection: &mut Connection) -> Result<BackupEnd, Error> {
        let progress = self.progress();
        let spool = self.repository.path();
        let mut receiver = Receiver::begin(run, spool, &self.cluster, None, &progress)?;
        let result = self.receive(run, connection, false, &mut receiver, &progress)?;
        let (root_attributes, received) = receiver.finish()?;
        progress.note("checking against the manifest");
        let (trees, root) = run.end_tree(root_attributes)?;
        manifest::check(&received, &trees, &root, self.cluster.system_id)?;
        self.end(&trees, &root, result)
    }

    /// The same with what has changed since an earlier backup, and that backup's files.
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
        let notes = AsSentWriter::new(receive::spooled(spool)?);
        let composer = Composer::new(parent, files.clone(), notes);
        let mut receiver = Receiver::begin(run, spool, &self.cluster, Some(composer), &progress)?;
        let result = self.receive(run, connection, true, &mut receiver, &progress)?;
        let (root_attributes, mut received) = receiver.finish()?;
        progress.note("checking against the manifest");
        let (trees, root) = run.end_tree(root_attributes)?;
        incremental::check_control((&trees, &root), &files, system_id)?;
        if let Some(altered) = received.altered.take() {
            let output = receive::spooled(spool)?;
            let (mut manifest, size_bytes) =
                manifest::compose(&received, altered, (&trees, &root), system_id, output)?;
            let attributes = receive::manifest_attributes(root_attributes);
            run.add_file(receive::MANIFEST, attributes, size_bytes, &mut manifest)?;
        }
        Ok(self.end(&trees, &root, result)?)
    }

    fn progress(&self) -> Progress {
        Progress::start(
            format!("Backup of {}", self.server.name),
            Counted::Bytes,
            self.wishes.quiet,
        )
    }

    /// Has the server send all archives and the manifest.
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
            ..self.options(run)
        };
        connection.set_patience(Some(self.checkpoint.patience()));
        self.tell_checkpoint(options.fast_checkpoint, progress);
        postgres::base_backup(connection, self.cluster.version, &options, receiver)
    }

    /// The server is silent until its checkpoint is done: says at once what that is.
    fn tell_checkpoint(&self, is_fast: bool, progress: &Progress) {
        let sentence = self.checkpoint.sentence(is_fast);
        if !is_fast && !self.wishes.quiet {
            tracing::info!("Backup of {}: {sentence}", self.server.name);
        }
        progress.note(if is_fast {
            sentence.as_str()
        } else {
            "waiting for a checkpoint"
        });
    }

    /// What becomes of the backup when all of it is stored.
    fn end(
        &self,
        trees: &TreeReader,
        root: &DirectoryRef,
        result: BaseBackupResult,
    ) -> Result<BackupEnd, Error> {
        let label = read_label(trees, root)?;
        check_label(&label, &result)?;
        warn_of_control(&self.server.name, trees, root)?;
        Ok(end(&self.cluster, &label, result))
    }

    fn options(&self, run: &BackupRun) -> BaseBackupOptions {
        BaseBackupOptions {
            label: self
                .wishes
                .label
                .clone()
                .unwrap_or_else(|| format!("barmanfs {}", run.id())),
            fast_checkpoint: self.wishes.fast_checkpoint || self.server.immediate_checkpoint,
            max_rate_kib: self.wishes.max_rate_kb.or(self.server.bandwidth_limit_kb),
            include_wal: self.source == wal::Source::Backup,
            // The tablespaces become directories of the tree, see `receive`.
            tablespace_map: false,
            ..BaseBackupOptions::default()
        }
    }
}

/// Says that the layout of `pg_control` is not known, if it is not.
fn warn_of_control(server: &ServerName, trees: &TreeReader, root: &DirectoryRef) -> Result<(), Error> {
    const BYTES_MAX: usize = 8192;
    let Some(map) = trees
        .find(root, b"global/pg_control")?
        .and_then(receive::file_map)
    else {
        return Ok(());
    };
    let mut bytes = vec![0; BYTES_MAX];
    let length = trees.read_at(&map, 0, &mut bytes)?;
    let read = ControlFile::parse(bytes.get(..length).unwrap_or_default());
    if let Err(ControlError::UnknownVersion { version, .. }) = read {
        tracing::warn!(
            "Server {server}: pg_control has version {version}, which this release of barmanfs does not know: the backup is \
             kept byte for byte, and it cannot be told from it what a server that is started on a copy has to be set to"
        );
    }
    Ok(())
}

fn read_label(trees: &TreeReader, root: &DirectoryRef) -> Result<BackupLabel, Error> {
    use std::io::Read;
    let Some(map) = trees.find(root, receive::LABEL)?.and_then(receive::file_map) else {
        return Err(Error::failed(
            "The server sent no backup_label: this cannot be recovered",
        ));
    };
    let mut bytes = Vec::new();
    trees
        .reader(map)
        .take(receive::LABEL_FILE_MAX_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::failed(format!("Cannot read backup_label back: {error}")))?;
    BackupLabel::parse(&bytes).map_err(|error| Error::failed(error.to_string()))
}

/// The label is what recovery believes: it must say what the protocol said.
fn check_label(label: &BackupLabel, result: &BaseBackupResult) -> Result<(), Error> {
    if label.start_lsn == result.start.lsn {
        return Ok(());
    }
    Err(Error::failed(format!(
        "The server said that the backup begins at {}, its backup_label says {}",
        result.start.lsn, label.start_lsn
    )))
}

fn end(cluster: &ServerSettings, label: &BackupLabel, result: BaseBackupResult) -> BackupEnd {
    // The connection has logged the warnings; with a checksum failure they say where.
    let checksum_failures = match &result.checksum_failure {
        Some(failure) => {
            let told = result.warnings.iter().chain([failure]);
            told.map(|error| output::printable(error.message.as_bytes()))
                .collect()
        }
        None => Vec::new(),
    };
    let tablespaces = result.start.tablespaces.into_iter().map(|space| Tablespace {
        oid: space.oid,
        name: None,
        location: String::from_utf8_lossy(&space.location).into_owned(),
    });
    BackupEnd {
        start_lsn: result.start.lsn,
        stop_lsn: result.stop_lsn,
        timeline: result.start.timeline,
        data_checksums: cluster.data_checksums,
        tablespaces: tablespaces.collect(),
        sent_bytes: result.received_bytes,
        checksum_failures,
        from_standby: label.from.as_deref() == Some("standby"),
    }
}

fn report(backup: &Backup, took: Duration) {
    tracing::debug!(
        "Backup {} of server {} copied in {}: {} files",
        backup.id,
        backup.server,
        output::duration(took),
        backup.files
    );
    let failures = backup.checksum_failures.len();
    if failures > 0 {
        tracing::warn!(
            "The server reported page checksum failures; the backup is kept, 'barmanfs show-backup {} {}' lists them",
            backup.server,
            backup.id
        );
    }
}
