//! Backups whose files are in the site's storage, as a snapshot of its disks. What is kept here is what makes a backup of
//! it: the label, the places of tablespaces, and the disks with their mount points.
//!
//! The record has a kind of its own, so that an earlier release, for which a backup has files, neither shows it nor removes
//! anything.

use serde::{Deserialize, Serialize};

use crate::archive::backup::{Backup, BackupKind};

/// The snapshot of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDisk {
    /// The disk, as the storage calls it.
    #[serde(default)]
    pub disk: Option<String>,
    /// Its snapshot.
    pub snapshot: String,
    /// Where the disk was mounted on the server: an absolute path.
    pub mount_point: String,
    /// How it was mounted: `rw,noatime`.
    #[serde(default)]
    pub mount_options: String,
}

/// A backup in the storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageSnapshot {
    /// The name that the commands of the storage were given.
    pub name: String,
    /// The disks.
    pub disks: Vec<SnapshotDisk>,
    /// The server's data directory, if its role could see that.
    #[serde(default)]
    pub data_directory: Option<String>,
    /// The `backup_label` of the backup, without which nothing can be recovered from the snapshot.
    pub backup_label: String,
    /// The `tablespace_map` of the backup; empty if there are no tablespaces.
    #[serde(default)]
    pub tablespace_map: String,
}

impl Backup {
    /// Whether its files are not here, but in a snapshot of the storage.
    pub fn is_snapshot(&self) -> bool {
        self.kind == BackupKind::Snapshot
    }
}
