//! The WAL a backup needs: where it comes from, and waiting for it.

use std::time::{Duration, Instant};

use barmanfs_catalog::{Backup, BackupSelector, Repository};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, TimelineId};

use super::{BackupOptions, Stop, fetch};
use crate::cluster::{ServerSettings, primary};
use crate::config::{Archiver, ServerConfig};
use crate::error::Error;
use crate::lineage::history_file;
use crate::postgres::Connection;
use crate::progress::{Counted, Progress};

/// How far the archive may be behind for a backup to rely on it: the segment before the current one must be archived. A
/// server may just be archiving that segment, but relying on the archive is then not worth the risk; including the WAL
/// is always right.
const RELIABLE_LAG_SEGMENTS: u64 = 1;
/// How often to check the archive while waiting.
pub(crate) const POLL: Duration = Duration::from_millis(500);
/// How long to wait for the archive before the backup fetches its WAL itself; half the user's timeout if that is
/// shorter.
const FETCH_AFTER: Duration = Duration::from_secs(60);
/// Maximum number of missing segments to list by name.
const MISSING_SHOWN: usize = 3;

/// The source of a backup's WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// `archive_command` or `receive-wal`: the backup waits for its segments.
    Archive,
    /// The backup includes its WAL.
    Backup,
}

impl Source {
    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Archive => "its WAL comes through the archive",
            Self::Backup => "it brings its WAL",
        }
    }
}

/// Decides where the WAL comes from. The archive is relied on only if the configuration requests that, or if it is seen
/// to work: a backup whose WAL never arrives is worth nothing. For a standby, a working archive is not enough: the
/// segment in which the backup stops is complete only when the primary switches to the next one.
pub(super) fn source(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &ServerSettings,
    connection: &mut Connection,
) -> Result<Source, Error> {
    let source = archive(repository, server, cluster)?;
    if source == Source::Archive
        && connection.is_in_recovery()?
        && !primary::can_switch(server, cluster.system_id)
    {
        tracing::info!(
            "Server {} is a standby: it cannot end the WAL segment in which its backup stops, so the backup brings \
             its WAL. With primary_conninfo, its primary would be asked to",
            server.name
        );
        return Ok(Source::Backup);
    }
    Ok(source)
}

pub(crate) fn archive(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &ServerSettings,
) -> Result<Source, Error> {
    if server.streaming_archiver {
        if repository.receiver(&server.name)?.is_some() {
            return Ok(Source::Archive);
        }
        tracing::warn!(
            "Server {} has streaming_archiver = on, and no 'barmanfs receive-wal {}' is running",
            server.name,
            server.name
        );
    }
    match server.archiver {
        Archiver::Off => Ok(Source::Backup),
        Archiver::On => {
            if !cluster.archives {
                tracing::warn!(
                    "Server {} has archive_mode = off, and archiver = on in the configuration",
                    server.name
                );
            }
            Ok(Source::Archive)
        }
        Archiver::Auto
            if cluster.archives && keeps_up(repository, server, cluster, RELIABLE_LAG_SEGMENTS)? =>
        {
            Ok(Source::Archive)
        }
        Archiver::Auto => Ok(Source::Backup),
    }
}

/// Whether one of the last `lag_segments` complete segments has been archived.
fn keeps_up(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &ServerSettings,
    lag_segments: u64,
) -> Result<bool, Error> {
    let archive = repository.wal(&server.name);
    let size = cluster.segment_size;
    let current = cluster.flush_lsn.segment_number(size);
    for number in (current.saturating_sub(lag_segments)..current).rev() {
        let segment = SegmentName::from_lsn(cluster.timeline, Lsn(number.saturating_mul(size.bytes())), size);
        if archive.entry(&WalName::Segment(segment))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Archives the history of the backup's timeline if the archive does not have it: the server may have archived it
/// before barmanfs was set up. A backup is complete without it, so a failure is only a warning.
pub(crate) fn keep_history(repository: &Repository, connection: &mut Connection, backup: &Backup) {
    let Some(timeline) = backup.timeline.filter(|timeline| *timeline > TimelineId(1)) else {
        return;
    };
    let mut keep = || {
        let name = WalName::History(timeline);
        if repository.wal(&backup.server).entry(&name)?.is_none() {
            history_file::fetch(repository, connection, &backup.server, timeline, "backup")?;
        }
        Ok::<_, Error>(())
    };
    if let Err(error) = keep() {
        tracing::warn!(
            "The history of timeline {timeline} of server {} is not archived: {error}",
            backup.server
        );
    }
}

/// How long to wait for the archive before a backup fetches its WAL itself.
pub(crate) fn fetch_after(options: &BackupOptions) -> Duration {
    FETCH_AFTER.min(options.wait_timeout / 2)
}

/// Waits until the archive has all segments of the backup, and returns the backup's state then. If they do not arrive,
/// fetches them over the backup's own connection. After the user's timeout, the backup stays as it is, and becomes DONE
/// by itself when its WAL arrives. The primary of a standby is asked for a checkpoint meanwhile, if the configuration says
/// after how long.
pub(crate) fn wait(
    repository: &Repository,
    server: &ServerConfig,
    connection: &mut Connection,
    backup: Backup,
    (options, fetch_after): (&BackupOptions, Duration),
    stop: &Stop,
) -> Result<Backup, Error> {
    let progress = Progress::start(
        format!("Backup of {}", backup.server),
        Counted::Things,
        options.quiet,
    );
    let began = Instant::now();
    let deadline = began + options.wait_timeout;
    let is_helped = backup.from_standby && server.primary_conninfo.is_some();
    let checkpoint_after = server.primary_checkpoint_timeout.filter(|_| is_helped);
    let mut checkpoint_at = checkpoint_after.map(|after| began + after);
    let mut fetch_at = Some(began + fetch_after);
    loop {
        let missing = repository.missing_wal(&backup)?;
        if missing.is_empty() {
            return Ok(repository.backup(&backup.server, &BackupSelector::Id(backup.id))?);
        }
        progress.note(&format!("waiting for {} to be archived", names(&missing)));
        if stop.requested() || Instant::now() >= deadline {
            drop(progress);
            warn_of_waiting(&backup, &missing);
            return Ok(backup);
        }
        if checkpoint_at.take_if(|at| Instant::now() >= *at).is_some()
            && let Err(error) = primary::checkpoint_and_switch(server, backup.system_id)
        {
            tracing::warn!(
                "The primary of server {} made no checkpoint: {error}",
                server.name
            );
        }
        if fetch_at.take_if(|at| Instant::now() >= *at).is_some() {
            progress.note(&format!("fetching {}", names(&missing)));
            fetch_missing(repository, connection, &backup, &missing, deadline, stop);
            continue;
        }
        std::thread::sleep(POLL);
    }
}

/// Says what a backup waits for when nobody waits with it any more.
pub(crate) fn warn_of_waiting(backup: &Backup, missing: &[SegmentName]) {
    tracing::warn!(
        "Backup {} of server {} is WAITING_FOR_WALS: {} not archived yet. It becomes DONE by itself when they are; until then \
         it cannot be recovered. 'barmanfs check {}' says why they do not come",
        backup.id,
        backup.server,
        names(missing),
        backup.server
    );
}

/// Tries once. If this fails, the archive may still get the segments.
fn fetch_missing(
    repository: &Repository,
    connection: &mut Connection,
    backup: &Backup,
    missing: &[SegmentName],
    deadline: Instant,
    stop: &Stop,
) {
    let (id, server) = (backup.id, &backup.server);
    let mut fetched = fetch::fetch(repository, connection, backup, missing, deadline, stop);
    if fetched.is_err() && !connection.is_ready() && !stop.requested() {
        // The session has been idle for a while, so the server may have ended it.
        fetched = connection.another(None).map_err(Error::from).and_then(|again| {
            *connection = again;
            stop.guard(connection)?;
            fetch::fetch(repository, connection, backup, missing, deadline, stop)
        });
    }
    match fetched {
        Ok(()) => tracing::warn!(
            "{} did not come through the archive: backup {id} of server {server} has fetched what it needs itself. \
             'barmanfs check {server}' says why WAL does not come",
            names(missing)
        ),
        Err(error) => tracing::warn!(
            "{} does not come through the archive, and backup {id} of server {server} cannot fetch it: {error}",
            names(missing)
        ),
    }
}

pub(crate) fn names(missing: &[SegmentName]) -> String {
    let shown: Vec<String> = missing
        .iter()
        .take(MISSING_SHOWN)
        .map(ToString::to_string)
        .collect();
    let more = missing.len().saturating_sub(MISSING_SHOWN);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{}{more}", shown.join(", "))
}
