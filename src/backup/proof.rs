//! Proof that the server still has the history of the parent of an incremental backup.

use barmanfs_catalog::{Backup, Repository};
use barmanfs_pg::Lsn;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::FileMap;

use super::files::file_map;
use super::incremental::NoIncrement;
use crate::cluster::{self, Purpose, ServerSettings};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::lineage::{COMPARED_BYTES, Compared, Look};
use crate::postgres::Connection;

/// Proves that the server still has the history of `parent`, a backup of its timeline or of an earlier one.
///
/// # Errors
/// [`NoIncrement::Changed`] when it does not, [`NoIncrement::Impossible`] when nothing can prove it.
pub(super) fn prove(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &ServerSettings,
    connection: &mut Connection,
    parent: &Backup,
) -> Result<(), NoIncrement> {
    refuse_known_changes(repository, server, cluster, parent)?;
    let (Some(timeline), Some(stop)) = (parent.timeline, parent.stop_lsn) else {
        return Err(NoIncrement::Impossible(format!(
            "nobody knows where backup {} ended",
            parent.id
        )));
    };
    let size = cluster.segment_size;
    let mut look = Look { connection, size };
    let segment = SegmentName::from_lsn(timeline, Lsn(stop.0.saturating_sub(1)), size);
    let compared = match kept_with(repository, parent, segment)? {
        Some(map) => look.compare(repository, &map, segment, (stop, COMPARED_BYTES))?,
        None => Compared::Removed,
    };
    let differs = |lsn: Lsn, id| {
        NoIncrement::Changed(format!(
            "the server's history is not that of backup {id} any more: its WAL differs at {lsn}. It was put back to an \
             earlier state, or is another server"
        ))
    };
    match compared {
        Compared::Same => Ok(()),
        Compared::Different(lsn) => Err(differs(lsn, parent.id)),
        Compared::Refused(why) => {
            let reason = format!(
                "the server does not have the WAL at {stop}, where backup {} ended: {why}",
                parent.id
            );
            // A standby may be behind the backup; a primary never is.
            match look.connection.is_in_recovery().map_err(Error::from)? {
                true => Err(NoIncrement::Impossible(reason)),
                false => Err(NoIncrement::Changed(reason)),
            }
        }
        Compared::Damaged(why) => Err(NoIncrement::Impossible(why)),
        Compared::Removed => match follow(&mut look, repository, parent, segment, cluster)? {
            Compared::Same => Ok(()),
            Compared::Different(lsn) => Err(differs(lsn, parent.id)),
            _ if has_summary_from(server, parent) => Ok(()),
            _ => Err(NoIncrement::Impossible(format!(
                "the server has no WAL any more that would prove that its history is still that of backup {}",
                parent.id
            ))),
        },
    }
}

/// What is known without a look at the server's WAL: its checksums were turned on or off, or WAL of another history has
/// come.
fn refuse_known_changes(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &ServerSettings,
    parent: &Backup,
) -> Result<(), NoIncrement> {
    if let (Some(before), Some(now)) = (parent.data_checksums, cluster.data_checksums)
        && before != now
    {
        return Err(NoIncrement::Changed(checksums_changed(now)));
    }
    let refused = repository.wal(&server.name).quarantined()?;
    let since = refused
        .iter()
        .rfind(|kept| kept.file.archived_at > parent.begin_time && kept.file.name.segment().is_some());
    match since {
        Some(kept) => Err(NoIncrement::Changed(format!(
            "{} of another history was refused after backup {}: see 'barmanfs check {}'",
            kept.file.name, parent.id, server.name
        ))),
        None => Ok(()),
    }
}

/// The reason when page checksums were enabled or disabled.
pub(super) fn checksums_changed(enabled: bool) -> String {
    let what = if enabled { "enabled" } else { "disabled" };
    format!("page checksums were {what} since the earlier backup, which changes files behind WAL's back")
}

/// The segment from the backup if it includes its WAL, otherwise from the archive.
fn kept_with(
    repository: &Repository,
    backup: &Backup,
    segment: SegmentName,
) -> Result<Option<FileMap>, NoIncrement> {
    let root = backup.root.as_ref().filter(|_| backup.wal_included);
    if let Some(root) = root {
        let path = format!("pg_wal/{segment}");
        return Ok(repository
            .trees()
            .find(&root.directory, path.as_bytes())?
            .and_then(file_map));
    }
    let archived = repository
        .wal(backup.archive())
        .find(&WalName::Segment(segment))?;
    Ok(archived.map(|file| file.map))
}

/// Whether one of the server's WAL summaries begins at the parent's start, the checkpoint made for it. Another history
/// has its checkpoints at other positions. `false` if the server cannot be asked.
fn has_summary_from(server: &ServerConfig, parent: &Backup) -> bool {
    let (Some(_), Some(timeline), Some(start)) = (&server.conninfo, parent.timeline, parent.start_lsn) else {
        return false;
    };
    let ask = || {
        let mut sql = cluster::connect(server, Purpose::Sql)?;
        let found = sql.simple_query(&format!(
            "SELECT start_lsn FROM pg_available_wal_summaries() WHERE tli = {timeline} AND start_lsn = '{start}'"
        ))?;
        Ok::<_, Error>(found.first().is_some_and(|rows| rows.len() > 0))
    };
    ask().unwrap_or_else(|error| {
        tracing::debug!(
            "The WAL summaries of server {} cannot be asked for: {error}",
            server.name
        );
        false
    })
}

/// The server no longer has the WAL at the parent's end. So this compares the newest archived segment that the server
/// still has, or checks whether the server's oldest segment continues the archived one. The archive must have all WAL
/// from the parent's end to there.
fn follow(
    look: &mut Look<'_>,
    repository: &Repository,
    parent: &Backup,
    stop: SegmentName,
    cluster: &ServerSettings,
) -> Result<Compared, NoIncrement> {
    let archive = repository.wal(parent.archive());
    let mut last = stop;
    if cluster.timeline != stop.timeline || kept_with(repository, parent, stop)?.is_none() {
        return Ok(Compared::Removed);
    }
    loop {
        let next = last.next(look.size);
        match archive.entry(&WalName::Segment(next))? {
            Some(_) if next.start_lsn(look.size) < cluster.flush_lsn => last = next,
            _ => break,
        }
    }
    if last == stop {
        let map = kept_with(repository, parent, stop)?;
        return map.map_or(Ok(Compared::Removed), |map| {
            Ok(look.continues(repository, &map, last)?)
        });
    }
    let Some(file) = archive.find(&WalName::Segment(last))? else {
        return Ok(Compared::Removed);
    };
    match look.compare_end(repository, &file, last)? {
        Compared::Removed => Ok(look.continues(repository, &file.map, last)?),
        compared => Ok(compared),
    }
}
