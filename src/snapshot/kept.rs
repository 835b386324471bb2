//! A snapshot that stays in the storage: what is recorded of it.

use barmanfs_catalog::{BackupEnd, SnapshotDisk, StorageSnapshot, Tablespace};
use barmanfs_pg::tablespace_map;

use std::path::Path;

use crate::backup::window::Stopped;
use crate::cluster::{ServerSettings, tablespace_names};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::output::printable;

/// What the record has of a snapshot.
///
/// # Errors
/// When the command named no disk: then nobody could check the disks before a restore.
pub(super) fn describe(
    name: &str,
    disks: &[SnapshotDisk],
    stopped: &Stopped,
    data_directory: Option<&str>,
) -> Result<StorageSnapshot, Error> {
    if disks.is_empty() {
        return Err(Error::failed(
            "snapshot_command named no disk, and the snapshot is to stay in the storage",
        )
        .hint("See 'What snapshot_command prints' in docs/snapshots.md"));
    }
    let map =
        tablespace_map::parse(stopped.map.as_bytes()).map_err(|error| Error::failed(error.to_string()))?;
    let places = map
        .into_iter()
        .map(|(_, location)| String::from_utf8_lossy(&location).into_owned());
    let places = places.chain(data_directory.map(str::to_owned));
    for place in places.filter(|place| place.starts_with('/')) {
        let has = |disk: &SnapshotDisk| Path::new(&place).starts_with(&disk.mount_point);
        if !disks.iter().any(has) {
            return Err(Error::failed(format!(
                "snapshot_command named no disk that {} is on: without it the backup would not be whole",
                printable(place.as_bytes())
            ))
            .hint("Have it take and name a snapshot of each disk with files of the server"));
        }
    }
    Ok(StorageSnapshot {
        name: name.to_owned(),
        disks: disks.to_vec(),
        data_directory: data_directory.map(str::to_owned),
        backup_label: stopped.label_text.clone(),
        tablespace_map: stopped.map.clone(),
    })
}

/// What completes the backup.
///
/// # Errors
/// When the map of tablespaces is none.
pub(super) fn end(
    server: &ServerConfig,
    cluster: &ServerSettings,
    stopped: &Stopped,
) -> Result<BackupEnd, Error> {
    let map =
        tablespace_map::parse(stopped.map.as_bytes()).map_err(|error| Error::failed(error.to_string()))?;
    let mut names = match map.is_empty() {
        true => std::collections::HashMap::new(),
        false => tablespace_names(server),
    };
    let tablespaces = map.into_iter().map(|(oid, location)| Tablespace {
        oid,
        name: names.remove(&oid),
        location: String::from_utf8_lossy(&location).into_owned(),
    });
    Ok(BackupEnd {
        start_lsn: stopped.label.start_lsn,
        stop_lsn: stopped.stop_lsn,
        timeline: stopped.label.start_timeline,
        data_checksums: cluster.data_checksums,
        tablespaces: tablespaces.collect(),
        sent_bytes: 0,
        checksum_failures: Vec::new(),
        from_standby: stopped.label.from.as_deref() == Some("standby"),
    })
}
