//! Reads the files of a running server on its own host, between `pg_backup_start` and `pg_backup_stop`.
//!
//! What is read, and what is left out, is what the server would send ([`choice`]). Threads read the files ([`readers`]); the
//! repository's own threads hash and compress. Files that are gone when they are read, or have become shorter, are normal: replay
//! of the WAL puts them right. With summaries of the WAL, only the changed blocks are read ([`changes`]).
//!
//! `pg_control` is read after everything else and before the end of the backup, as a server sends it: on a standby, it says how
//! far replay must get.

mod changes;
mod choice;
mod place;
mod reader;
mod readers;
mod wal;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use barmanfs_catalog::{Backup, BackupEnd, BackupRun, Repository, Tablespace};
use barmanfs_pg::backup_manifest::WalRange;
use barmanfs_pg::tablespace_map;
use barmanfs_store::Attributes;
use barmanfs_store::layout::DATA_WINDOW_BYTES;

use super::Attempt;
use super::files::{LABEL, MANIFEST};
use super::hold::Hold;
use super::incremental::{self, Control, NoIncrement};
use super::pages::{Findings, Rules};
use super::receive::manifest_attributes;
use super::wal_source::Source;
use super::window::{self, Stopped, Window};
use crate::cluster::{ConfigurationPaths, ServerSettings, tablespace_names};
use crate::config::Incremental;
use crate::error::Error;
use crate::made_manifest::{self, NAMES_CLUSTER_SINCE};
use crate::postgres::Connection;
use crate::progress::Progress;
use crate::throttle::Throttle;
use changes::Base;
use choice::{InPlace, Walk};
use place::DataDirectory;
use readers::Readers;

/// How often the server is asked whether it is still in backup mode, and no standby was promoted.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The control file.
const CONTROL: &[u8] = b"global/pg_control";

/// A server in backup mode, and its files.
struct Local<'a> {
    attempt: &'a Attempt<'a>,
    data: DataDirectory,
    window: Window,
    from_standby: bool,
    progress: Progress,
    throttle: Option<Throttle>,
}

/// What was read.
struct Read {
    bytes: u64,
    findings: Findings,
    root: Attributes,
    in_place: Vec<InPlace>,
}

/// Reads everything, or what has changed, and returns what completes the backup.
///
/// # Errors
/// When the files cannot be read here, the server does not stay in backup mode, or the files cannot be stored.
pub(super) fn copy(
    attempt: &Attempt<'_>,
    run: &mut BackupRun,
    connection: &mut Connection,
    hold: &mut Hold,
) -> Result<BackupEnd, Error> {
    let data = DataDirectory::find(attempt.configuration.as_ref(), &attempt.cluster)?;
    let when = attempt.incremental();
    let parent = (when != Incremental::Never)
        .then(|| incremental::parent(attempt.repository, attempt.server, &attempt.cluster, connection));
    hold.begin(connection, attempt.cluster.version, run.id())?;
    let mut local = Local::begin(attempt, data, &attempt.label(run))?;
    let changed = parent.map(|parent| parent.and_then(|parent| local.read_changes(run, connection, &parent)));
    let read = match changed {
        Some(Ok(read)) => read,
        Some(Err(NoIncrement::Failed(error))) => return Err(error),
        Some(Err(why)) => {
            attempt.become_full(run, when, &why)?;
            // A question that the server refuses takes the slot away where that shares the session.
            if !connection.is_ready() {
                *connection = attempt.reconnect(connection)?;
            }
            hold.renew(connection, run.id())?;
            local.read(run, None).map_err(NoIncrement::into_error)?
        }
        None => local.read(run, None).map_err(NoIncrement::into_error)?,
    };
    local.end(run, connection, read)
}

/// Where the files of a server would be read, for a check.
///
/// # Errors
/// When they cannot be read on this host, or a role may not do what it takes.
pub(crate) fn readable(
    cluster: &ServerSettings,
    streaming: &mut Connection,
    sql: Option<&mut Connection>,
) -> Result<String, Error> {
    let paths = ConfigurationPaths::ask(streaming)?;
    let data = DataDirectory::find(paths.as_ref(), cluster)?;
    let sql = sql.ok_or_else(|| Error::failed("backup_method = files needs conninfo"))?;
    window::refuse_unprivileged(sql, cluster.version.major())?;
    data.prove(window::process_of(sql)?)?;
    Ok(data.shown())
}

impl<'a> Local<'a> {
    /// Puts the server into backup mode.
    fn begin(attempt: &'a Attempt<'a>, data: DataDirectory, label: &str) -> Result<Self, Error> {
        let progress = attempt.progress();
        let is_fast = attempt.is_fast();
        attempt.tell_checkpoint(is_fast, &progress);
        let mut window = Window::open(
            attempt.server,
            &attempt.cluster,
            (label, is_fast),
            (&attempt.checkpoint, attempt.stop),
        )?;
        data.prove(window.process()?)?;
        progress.note("");
        Ok(Self {
            from_standby: window.is_in_recovery()?,
            throttle: attempt
                .max_rate_kib()
                .map(|kib| Throttle::new(u64::from(kib) * 1024)),
            attempt,
            data,
            window,
            progress,
        })
    }

    /// Reads what has changed since `parent`, and takes the rest from there.
    fn read_changes(
        &mut self,
        run: &mut BackupRun,
        connection: &mut Connection,
        parent: &Backup,
    ) -> Result<Read, NoIncrement> {
        let attempt = self.attempt;
        let changed = changes::wait(
            (&self.data, &self.progress),
            (&attempt.cluster, connection),
            (parent, self.window.start()),
            attempt.stop,
        )?;
        let files = run.build_on(parent)?;
        let base = Base::new(files.clone(), changed);
        let read = self.read(run, Some(&base))?;
        let old = Control::read(&files.0, &files.1, "its parent")?;
        let new = Control::parse(&self.data.control()?, "the backup")?;
        incremental::check_control(&new, &old, attempt.cluster.system_id)?;
        Ok(read)
    }

    /// Reads all files, but for what `base` has.
    fn read(&mut self, run: &BackupRun, base: Option<&Base>) -> Result<Read, NoIncrement> {
        let attempt = self.attempt;
        let (tree, signals) = (run.tree()?, attempt.stop.signals());
        let root = self.data.root()?;
        let about = (attempt.cluster.version.major(), root);
        let walk = Walk::new(&self.data, about, own_places(attempt.repository)?)?;
        let total_bytes = match base.is_none() && !attempt.options.quiet {
            true => walk.total_bytes(signals),
            false => None,
        };
        let rules = Rules {
            start: self.window.start(),
            // A server that runs may write any page.
            newest: barmanfs_pg::Lsn(u64::MAX),
            has_checksums: attempt.cluster.data_checksums == Some(true),
        };
        let readers = Readers {
            tree,
            rules,
            base,
            signals,
            throttle: self.throttle.as_ref(),
            progress: &self.progress,
            total_bytes,
            count: attempt.server.parallel_jobs,
        };
        let (window, from_standby) = (&mut self.window, self.from_standby);
        let look = || match window.is_in_recovery() {
            Ok(now) if now == from_standby => Ok(()),
            Ok(_) => Err(Error::failed(
                "The standby was promoted while its files were read: what was read is of no use",
            )),
            Err(error) => Err(error.context("The server has left backup mode")),
        };
        let (bytes, findings) = readers.run(&walk, (LOOK_EVERY, look))?;
        let (control, attributes) = (self.data.control()?, self.data.control_attributes()?);
        store(run, CONTROL, attributes, &control)?;
        Ok(Read {
            bytes: bytes + control.len() as u64,
            findings,
            root,
            in_place: walk.in_place(),
        })
    }

    /// Ends backup mode, and adds what only its end says.
    fn end(self, run: &mut BackupRun, connection: &mut Connection, read: Read) -> Result<BackupEnd, Error> {
        let Self {
            attempt,
            data,
            window,
            progress,
            ..
        } = self;
        progress.note("waiting for the server to end the backup");
        let stopped = window.close()?;
        attempt.stop.guard(connection)?;
        let (label, cluster) = (&stopped.label, &attempt.cluster);
        refuse_other_timeline(attempt, connection, &stopped)?;
        let like = label_attributes(read.root);
        store(run, LABEL, like, stopped.label_text.as_bytes())?;
        let mut sent_bytes = read.bytes;
        if attempt.source == Source::Backup {
            sent_bytes += wal::store(run.tree()?, &data, &stopped, (cluster.segment_size, like))?;
        }
        progress.note("writing the manifest");
        manifest(attempt, run, &stopped, read.root)?;
        Ok(BackupEnd {
            start_lsn: label.start_lsn,
            stop_lsn: stopped.stop_lsn,
            timeline: label.start_timeline,
            data_checksums: cluster.data_checksums,
            tablespaces: tablespaces(attempt, &stopped, read.in_place)?,
            sent_bytes,
            checksum_failures: read.findings.failures(),
            from_standby: label.from.as_deref() == Some("standby"),
        })
    }
}

/// What follows a standby onto another timeline while it is read has WAL of two timelines.
fn refuse_other_timeline(
    attempt: &Attempt<'_>,
    connection: &mut Connection,
    stopped: &Stopped,
) -> Result<(), Error> {
    let now = match connection.identify_system() {
        Ok(identity) => identity.timeline,
        // It has been idle for as long as the files were read.
        Err(_) => {
            *connection = attempt.reconnect(connection)?;
            connection.identify_system()?.timeline
        }
    };
    let (began, start) = (attempt.cluster.timeline, stopped.label.start_timeline);
    if start == began && now == began {
        return Ok(());
    }
    Err(Error::failed(format!(
        "The server was on timeline {began} when the backup began, it is on {now} now: what was read is of no use"
    )))
}

/// The repository and where it is mounted, without links.
fn own_places(repository: &Repository) -> Result<Vec<PathBuf>, Error> {
    let mounts = barmanfs_fs::mounts_of(repository.path())?.serving.into_iter();
    let places = mounts.map(|mount| mount.mount_point);
    let places = places.chain([repository.path().to_owned()]);
    Ok(places.filter_map(|place| fs::canonicalize(place).ok()).collect())
}

/// Stores a small file.
fn store(run: &BackupRun, path: &[u8], attributes: Attributes, content: &[u8]) -> Result<(), Error> {
    let mut sink = run
        .tree()?
        .file(path, attributes, content.len() as u64, DATA_WINDOW_BYTES)?;
    sink.write(content)?;
    Ok(sink.finish()?)
}

/// Permissions of a file that a server makes in a data directory with these.
fn label_attributes(root: Attributes) -> Attributes {
    Attributes {
        mode: 0o600 | root.mode & 0o040,
        ..root
    }
}

/// Adds the manifest of the stored files.
fn manifest(
    attempt: &Attempt<'_>,
    run: &mut BackupRun,
    stopped: &Stopped,
    root: Attributes,
) -> Result<(), Error> {
    let (trees, directory) = run.end_tree(root)?;
    let cluster = &attempt.cluster;
    let range = WalRange {
        timeline: stopped.label.start_timeline,
        start_lsn: stopped.label.start_lsn,
        end_lsn: stopped.stop_lsn,
    };
    let system_id = (cluster.version.major() >= NAMES_CLUSTER_SINCE).then_some(cluster.system_id);
    let spool = attempt.repository.path();
    let (mut content, size_bytes) = made_manifest::write((&trees, &directory), system_id, range, spool)?;
    Ok(run.add_file(MANIFEST, manifest_attributes(root), size_bytes, &mut content)?)
}

/// Those in the map that the server returned, and those in the data directory itself.
fn tablespaces(
    attempt: &Attempt<'_>,
    stopped: &Stopped,
    in_place: Vec<InPlace>,
) -> Result<Vec<Tablespace>, Error> {
    let map =
        tablespace_map::parse(stopped.map.as_bytes()).map_err(|error| Error::failed(error.to_string()))?;
    let linked = map
        .into_iter()
        .map(|(oid, place)| (oid, String::from_utf8_lossy(&place).into_owned()));
    let inside = in_place.into_iter().map(|inside| (inside.oid, inside.location));
    let all: Vec<(u32, String)> = linked.chain(inside).collect();
    let mut names = match all.is_empty() {
        true => std::collections::HashMap::new(),
        false => tablespace_names(attempt.server),
    };
    let named = all.into_iter().map(|(oid, location)| Tablespace {
        oid,
        name: names.remove(&oid),
        location,
    });
    Ok(named.collect())
}
