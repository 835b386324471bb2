//! Decides whether a backup can be incremental, and on which earlier one it is based.
//!
//! PostgreSQL 17 and later can send only what changed since a backup whose manifest the client uploads, as long as its
//! WAL summaries reach back to that backup. It can turn out to be impossible at any moment, so everything here fails
//! with [`NoIncrement`]. In mode `auto`, a full backup is then taken in the same run.

use std::fmt;

use barmanfs_catalog::{Backup, BackupKind, BackupStatus, Error as CatalogError, Repository};
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::pg_control::{ControlError, ControlFile};
use barmanfs_pg::{ServerVersion, SystemId, TimelineId};
use barmanfs_store::layout::BLOCK_BYTES;
use barmanfs_store::{DirectoryRef, TreeReader};

use super::compose::Incompatible;
use super::files::{MANIFEST, file_map};
use super::proof;
use crate::cluster::ServerSettings;
use crate::config::ServerConfig;
use crate::error::Error;
use crate::output;
use crate::postgres::{self, Connection, FIRST_INCREMENTAL_MAJOR, UploadError, upload_manifest};

/// SQLSTATE "object not in prerequisite state": the server cannot send an incremental backup at the moment, because WAL
/// summaries are missing, or the server is configured to create none.
const NOT_IN_PREREQUISITE_STATE: &str = "55000";

/// Path of the control file.
const CONTROL: &str = "global/pg_control";

/// The most that one file of a relation has, as servers show it, unless they were built otherwise.
const SEGMENT_SIZE: &str = "1GB";

/// Minor releases before these omit changed visibility maps from their summaries; by major version.
const SUMMARIZE_VISIBILITY_MAPS: [(u32, ServerVersion); 2] =
    [(17, ServerVersion(170_011)), (18, ServerVersion(180_006))];

/// Why a backup is not incremental.
#[derive(Debug)]
pub(super) enum NoIncrement {
    /// The server is configured like that; nothing is wrong.
    Unavailable(String),
    /// It should have been possible.
    Impossible(String),
    /// Files were changed that the server would not send, so a backup based on the parent would be wrong.
    Changed(String),
    /// A full backup would fail as well.
    Failed(Error),
}

impl fmt::Display for NoIncrement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(reason) | Self::Impossible(reason) | Self::Changed(reason) => {
                f.write_str(reason)
            }
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl NoIncrement {
    /// What it is to a backup that does not build on another.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Failed(error) => error,
            why => Error::failed(why.to_string()),
        }
    }
}

impl From<Error> for NoIncrement {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<postgres::Error> for NoIncrement {
    /// Converts an error that occurs while an incremental backup is received.
    fn from(error: postgres::Error) -> Self {
        if let Some(incompatible) = error.sink::<Incompatible>() {
            return Self::Impossible(incompatible.to_string());
        }
        if let Some(damage) = error
            .sink::<barmanfs_store::Error>()
            .filter(|error| error.is_damage())
        {
            return Self::Impossible(output::printable(damage.to_string().as_bytes()));
        }
        match &error {
            postgres::Error::Server(answer) if answer.code == NOT_IN_PREREQUISITE_STATE => {
                Self::Impossible(answer.to_string())
            }
            _ => Self::Failed(error.into()),
        }
    }
}

impl From<CatalogError> for NoIncrement {
    /// Damage of the parent does not matter to a full backup.
    fn from(error: CatalogError) -> Self {
        match &error {
            CatalogError::Store(damage) if damage.is_damage() => Self::Impossible(damage.to_string()),
            _ => Self::Failed(error.into()),
        }
    }
}

impl From<barmanfs_store::Error> for NoIncrement {
    fn from(error: barmanfs_store::Error) -> Self {
        CatalogError::from(error).into()
    }
}

/// Finds the parent: the newest complete backup of this cluster that is in the history of the server's timeline.
pub(super) fn parent(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &ServerSettings,
    connection: &mut Connection,
) -> Result<Backup, NoIncrement> {
    can_send_changes(cluster, connection)?;
    let mut candidates = repository.backups(&server.name)?;
    candidates.retain(|backup| {
        let has_files = backup.status == BackupStatus::Done && backup.is_complete();
        has_files && backup.is_of_server() && backup.system_id == cluster.system_id
    });
    let of_archive = |backup: &Backup| backup.archive() == &server.name;
    if candidates.iter().any(|backup| !of_archive(backup)) && !repository.open_forks(&server.name)?.is_empty()
    {
        return Err(NoIncrement::Changed(
            "there are backups of two histories, and nobody has decided which one counts".to_owned(),
        ));
    }
    candidates.retain(of_archive);
    let memory = repository.server_memory(&server.name)?;
    if let Some(found) = memory.open_difference(&candidates) {
        return Err(NoIncrement::Changed(format!(
            "backup {} is not what the server has: {}",
            found.backup,
            found.difference.as_deref().unwrap_or_default()
        )));
    }
    if let Some(restart) = repository.last_restart(&server.name)? {
        candidates.retain(|backup| backup.begin_time > restart);
        if candidates.is_empty() {
            return Err(NoIncrement::Changed(format!(
                "the history was restarted at {}, and there is no backup since",
                output::second(restart)
            )));
        }
    }
    if candidates.is_empty() {
        return Err(NoIncrement::Unavailable(
            "there is no complete backup yet that it could build on".to_owned(),
        ));
    }
    let history = history(cluster.timeline, &candidates, connection)?;
    let all = candidates.clone();
    let on_history = |backup: &Backup| match (backup.timeline, backup.stop_lsn) {
        (Some(timeline), Some(stop_lsn)) => history.contains(timeline, stop_lsn),
        _ => false,
    };
    let parent = candidates.into_iter().rfind(on_history);
    let parent = parent.ok_or_else(|| {
        NoIncrement::Impossible(format!(
            "no complete backup lies on the history of timeline {}, on which the server is",
            cluster.timeline
        ))
    })?;
    if let Some(spoilt) = with_wrong_pages(&parent, &all) {
        return Err(NoIncrement::Impossible(format!(
            "pages of backup {} had wrong checksums: all pages are read again",
            spoilt.id
        )));
    }
    proof::prove(repository, server, cluster, connection, &parent)?;
    Ok(parent)
}

/// The backup in which pages had wrong checksums: this one, or one that it builds on. A page that no WAL has changed since would
/// be taken from there, unchecked, even if it has been repaired.
fn with_wrong_pages<'b>(backup: &'b Backup, all: &'b [Backup]) -> Option<&'b Backup> {
    let mut next = Some(backup);
    while let Some(backup) = next {
        if !backup.checksum_failures.is_empty() {
            return Some(backup);
        }
        let is_parent =
            |older: &&Backup| backup.kind == BackupKind::Incremental && Some(older.id) == backup.parent;
        // A parent is older, so this ends.
        next = all.iter().find(|older| older.id < backup.id && is_parent(older));
    }
    None
}

fn can_send_changes(cluster: &ServerSettings, connection: &mut Connection) -> Result<(), NoIncrement> {
    let unavailable = |reason: String| Err(NoIncrement::Unavailable(reason));
    if cluster.version.major() < FIRST_INCREMENTAL_MAJOR {
        return unavailable(format!(
            "PostgreSQL {} does not tell what has changed, {FIRST_INCREMENTAL_MAJOR} and later can",
            cluster.version
        ));
    }
    if connection.show("summarize_wal").map_err(Error::from)? != "on" {
        return unavailable("the server has summarize_wal = off".to_owned());
    }
    let block_size = connection.show("block_size").map_err(Error::from)?;
    if block_size != BLOCK_BYTES.to_string() {
        return unavailable(format!(
            "the server's pages have {block_size} bytes, not {BLOCK_BYTES}"
        ));
    }
    // The number of a block in its relation follows from the number of its file.
    let segment_size = connection.show("segment_size").map_err(Error::from)?;
    if segment_size != SEGMENT_SIZE {
        return unavailable(format!(
            "the server's files of relations have {segment_size}, not {SEGMENT_SIZE}"
        ));
    }
    Ok(())
}

/// The server's history. The server is asked only if a backup of another timeline might be part of it.
pub(super) fn history(
    timeline: TimelineId,
    candidates: &[Backup],
    connection: &mut Connection,
) -> Result<TimelineHistory, NoIncrement> {
    if candidates.last().and_then(|newest| newest.timeline) == Some(timeline) {
        return Ok(TimelineHistory::without_ancestors(timeline));
    }
    match connection.timeline_history(timeline) {
        Ok(None) => Ok(TimelineHistory::without_ancestors(timeline)),
        Ok(Some(file)) => TimelineHistory::parse(&file.content, timeline)
            .map_err(|error| NoIncrement::Impossible(error.to_string())),
        Err(error @ postgres::Error::Server(_)) => Err(NoIncrement::Impossible(error.to_string())),
        Err(error) => Err(NoIncrement::Failed(error.into())),
    }
}

/// Uploads the parent's manifest to the server.
pub(super) fn upload(
    connection: &mut Connection,
    parent: &Backup,
    (trees, root): &(TreeReader, DirectoryRef),
) -> Result<(), NoIncrement> {
    let manifest = trees
        .find(root, MANIFEST)?
        .and_then(file_map)
        .ok_or_else(|| NoIncrement::Impossible(format!("backup {} has no backup_manifest", parent.id)))?;
    upload_manifest(connection, &mut trees.reader(manifest)).map_err(|error| match error {
        UploadError::Read(error) => NoIncrement::Impossible(format!(
            "the backup_manifest of backup {} cannot be read: {error}",
            parent.id
        )),
        UploadError::Server(error @ postgres::Error::Server(_)) => NoIncrement::Impossible(format!(
            "the server refuses the backup_manifest of backup {}: {error}",
            parent.id
        )),
        UploadError::Server(error) => NoIncrement::Failed(error.into()),
    })
}

/// Warns about defects of the server's release in incremental backups.
pub(super) fn warn_of_defects(version: ServerVersion) {
    if let Some(fixed) = forgets_visibility_maps(version) {
        tracing::warn!(
            "PostgreSQL {version} can leave changed visibility maps out of incremental backups, which makes index-only \
             scans on a copy return deleted rows: update it to {fixed}, or set incremental = never. On a copy, \
             pg_truncate_visibility_map of the extension pg_visibility mends a table"
        );
    }
}

/// For a release that omits visibility maps from its summaries: the release with the fix.
fn forgets_visibility_maps(version: ServerVersion) -> Option<ServerVersion> {
    SUMMARIZE_VISIBILITY_MAPS
        .iter()
        .find(|(major, fixed)| *major == version.major() && version < *fixed)
        .map(|(_, fixed)| *fixed)
}

/// The same checks of the control files as in `pg_combinebackup`.
pub(super) fn check_control(new: &Control, old: &Control, system_id: SystemId) -> Result<(), NoIncrement> {
    let impossible = |reason| Err(NoIncrement::Impossible(reason));
    if new.system_id != system_id || old.system_id != system_id {
        return impossible(format!(
            "pg_control is of the clusters {} and {}, the server of {system_id}",
            new.system_id, old.system_id
        ));
    }
    if new.version != old.version {
        return impossible(format!(
            "pg_control has version {}, and in its parent {}",
            new.version, old.version
        ));
    }
    let (Some(new), Some(old)) = (&new.known, &old.known) else {
        return Ok(());
    };
    let changed = |reason| Err(NoIncrement::Changed(reason));
    if (new.data_checksum_version != 0) != (old.data_checksum_version != 0) {
        return changed(proof::checksums_changed(new.data_checksum_version != 0));
    }
    if new.redo < old.redo || new.checkpoint_time < old.checkpoint_time {
        return changed(format!(
            "the last checkpoint in pg_control is older than that of the parent (redo at {}, after {}): the server was put \
             back to an earlier state",
            new.redo, old.redo
        ));
    }
    Ok(())
}

/// The parts of two control files that must agree.
pub(super) struct Control {
    system_id: SystemId,
    version: u32,
    /// `None` if the layout is unknown.
    known: Option<ControlFile>,
}

impl Control {
    pub(super) fn read(trees: &TreeReader, root: &DirectoryRef, whose: &str) -> Result<Self, NoIncrement> {
        let map = trees.find(root, CONTROL.as_bytes())?.and_then(file_map);
        let map =
            map.ok_or_else(|| NoIncrement::Impossible(format!("{CONTROL} of {whose}: it is missing")))?;
        let mut bytes = vec![0; BLOCK_BYTES];
        let length = trees.read_at(&map, 0, &mut bytes)?;
        Self::parse(bytes.get(..length).unwrap_or_default(), whose)
    }

    pub(super) fn parse(bytes: &[u8], whose: &str) -> Result<Self, NoIncrement> {
        match ControlFile::parse(bytes) {
            Ok(control) => Ok(Self {
                system_id: control.system_id,
                version: control.control_version,
                known: Some(control),
            }),
            Err(ControlError::UnknownVersion { version, system_id }) => Ok(Self {
                system_id,
                version,
                known: None,
            }),
            Err(error) => Err(NoIncrement::Impossible(format!("{CONTROL} of {whose}: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::SinkError;

    #[test]
    fn minor_releases_that_forget_visibility_maps_are_known() {
        let mended_in =
            |version| forgets_visibility_maps(ServerVersion(version)).map(|fixed| fixed.to_string());
        assert_eq!(mended_in(170_010).as_deref(), Some("17.11"));
        assert_eq!(mended_in(180_000).as_deref(), Some("18.6"));
        for version in [170_011, 180_006, 190_000] {
            assert_eq!(mended_in(version), None);
        }
    }

    /// The result for an error of the file that is being received.
    fn of_a_file(error: impl Into<SinkError>) -> NoIncrement {
        // A receiver of archives passes on the errors of the receiver of the members.
        let member = postgres::Error::Sink(error.into());
        postgres::Error::Sink(member.into()).into()
    }

    #[test]
    fn errors_that_a_full_backup_avoids_are_no_failure() {
        let damage = barmanfs_store::Error::damaged("Chunk ab", "It is gone");
        let full = barmanfs_store::Error::Full { path: "/r".into() };
        assert!(matches!(
            of_a_file(Incompatible("x".to_owned())),
            NoIncrement::Impossible(_)
        ));
        assert!(matches!(of_a_file(damage.clone()), NoIncrement::Impossible(_)));
        assert!(matches!(damage.into(), NoIncrement::Impossible(_)));
        assert!(matches!(of_a_file(full.clone()), NoIncrement::Failed(_)));
        assert!(matches!(full.into(), NoIncrement::Failed(_)));
        assert!(matches!(
            of_a_file("There is data outside of a file"),
            NoIncrement::Failed(_)
        ));
        assert!(matches!(postgres::Error::Closed.into(), NoIncrement::Failed(_)));
    }
}
