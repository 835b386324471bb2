//! Exports: a backup in the formats of other programs, so that it can be used without barmanfs.
//!
//! - [`plain`] and [`tar`] are the two formats of `pg_basebackup`. [`tarball`] is what `barman import-backup` takes, and
//!   [`home`] a directory of Barman with all backups and WAL of a server.
//! - [`archive`] writes members of a tar archive, [`tree`] those of a backup; [`compressed`] what is compressed.
//! - [`backup_info`] and [`xlog_db`] are files of Barman.
//!
//! Directories are written by [`crate::restore`], so a tree on disk comes about in one way. Everything is written under a
//! temporary name ([`crate::unfinished`]): a destination has a whole export or none.

mod archive;
mod backup_info;
mod compressed;
mod home;
mod plain;
mod tar;
mod tarball;
mod tree;
mod xlog_db;

use std::path::{Path, PathBuf};
use std::time::Duration;

use barmanfs_catalog::{Backup, BackupId, BackupStatus, Repository};
use barmanfs_fs::views::{PlainOptions, ViewOptions};
use barmanfs_pg::wal_name::{SegmentName, segments_between};

use crate::error::Error;
use crate::output;
use crate::restore::ViewTree;
use crate::unfinished::failed;
use crate::wal_transfer::compression::Compression;

pub(crate) use home::{HomeWal, export as home};
pub(crate) use plain::export as plain;
pub(crate) use tar::export as tar;
pub(crate) use tarball::export as tarball;

/// What is the same for all formats.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) repository: &'a Repository,
    /// Where it is written to; standard output if it is `None`.
    pub(crate) to: Option<&'a Path>,
    pub(crate) compression: Option<Compression>,
    /// With the WAL from the start of the backup to its end.
    pub(crate) with_wal: bool,
    /// Threads that write, where a directory is written.
    pub(crate) jobs: usize,
    /// No progress is shown.
    pub(crate) quiet: bool,
}

/// The result.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    /// Where it is.
    pub(crate) path: Option<PathBuf>,
    /// The backups in it.
    pub(crate) backups: Vec<BackupId>,
    /// Number of files of these.
    pub(crate) files: u64,
    /// Their size, without holes in directories.
    pub(crate) bytes: u64,
    /// Bytes that were written.
    pub(crate) written_bytes: u64,
    /// Number of WAL files.
    pub(crate) wal_files: u64,
    /// What was left out, and what else a person should know.
    pub(crate) notes: Vec<String>,
    /// How long it took.
    pub(crate) elapsed: Duration,
}

/// Opens the tree of a backup: what the server sent, or with `plain` what `pg_basebackup` writes in its plain format.
fn open(
    repository: &Repository,
    backup: &Backup,
    plain: Option<PlainOptions>,
    owner: Option<(u32, u32)>,
) -> Result<ViewTree, Error> {
    let options = ViewOptions {
        servers: Some(vec![backup.server.clone()]),
        plain,
        with_waiting: true,
        uid: owner.map(|(uid, _)| uid),
        gid: owner.map(|(_, gid)| gid),
        ..ViewOptions::default()
    };
    let (server, id) = (backup.server.to_string(), backup.id.to_string());
    ViewTree::open(repository, backup.clone(), options, &[&server, "raw", &id])
}

/// Barman's description of a backup, its `backup.info`.
///
/// # Errors
/// When the backup cannot be read.
pub(crate) fn barmans_description(repository: &Repository, backup: &Backup) -> Result<String, Error> {
    tarball::description(repository, backup, &open(repository, backup, None, None)?)
}

/// Refuses a backup without its files, or without the WAL that the export shall have.
pub(crate) fn refuse_incomplete(backup: &Backup, with_wal: bool) -> Result<(), Error> {
    match unsuitable(backup, with_wal) {
        None => Ok(()),
        Some(why) => {
            let error = Error::failed(format!("Backup {} cannot be exported: {why}", backup.id));
            Err(match backup.is_complete() {
                true => error.hint(format!(
                    "Run 'barmanfs switch-wal {}' and wait, or export it with --as plain --wal none",
                    backup.server
                )),
                false => error,
            })
        }
    }
}

/// Why a backup cannot be exported in any format; `None` if it can. For some formats there are more reasons.
fn unsuitable(backup: &Backup, with_wal: bool) -> Option<String> {
    if let Some(why) = backup.files_elsewhere() {
        return Some(format!("{why}: there is nothing to export"));
    }
    match (backup.is_complete(), backup.status) {
        (false, status) => Some(format!("it is {status}")),
        (true, status @ BackupStatus::WaitingForWals) if with_wal => Some(format!(
            "it is {status}: not all of the WAL that it needs is archived"
        )),
        _ => None,
    }
}

/// The segments from the start of a backup to its end, also if they came with it.
fn own_segments(backup: &Backup) -> Vec<SegmentName> {
    match (backup.timeline, backup.start_lsn, backup.stop_lsn) {
        (Some(timeline), Some(start), Some(stop)) => {
            segments_between(timeline, start, stop, backup.segment_size).collect()
        }
        _ => Vec::new(),
    }
}

/// The tablespaces that were outside the data directory of the server.
fn outside(backup: &Backup) -> Vec<u32> {
    let spaces = backup.tablespaces.iter();
    let outside = spaces.filter(|space| !space.is_in_place());
    outside.map(|space| space.oid).collect()
}

/// Refuses a place that has not enough room. What compression makes of it cannot be known before.
fn refuse_lack_of_space(asked: &Asked<'_>, place: &Path, needed_bytes: u64) -> Result<(), Error> {
    if asked.compression.is_some() {
        return Ok(());
    }
    let found = rustix::fs::statvfs(place).map_err(|error| failed("look at", place, &error.into()))?;
    let blocks = match rustix::process::geteuid().is_root() {
        true => found.f_bfree,
        false => found.f_bavail,
    };
    let free_bytes = blocks.saturating_mul(found.f_frsize);
    match free_bytes < needed_bytes {
        false => Ok(()),
        true => Err(Error::failed(format!(
            "The file system of {} has {} free, and {} are needed",
            place.display(),
            output::bytes(free_bytes),
            output::bytes(needed_bytes)
        ))
        .hint("Make room, or name another place")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::backup;

    /// The kind: one backup without its files or its WAL ends the export of all.
    #[test]
    fn what_cannot_be_exported_is_known_before() {
        let done = backup(BackupStatus::Done);
        assert_eq!(unsuitable(&done, true), None);
        let waiting = backup(BackupStatus::WaitingForWals);
        assert!(unsuitable(&waiting, true).is_some_and(|why| why.contains("WAITING_FOR_WALS")));
        assert_eq!(unsuitable(&waiting, false), None);
        for status in [BackupStatus::Failed, BackupStatus::Started] {
            assert!(unsuitable(&backup(status), false).is_some(), "{status}");
        }
        let mut snapshot = serde_json::to_value(&done).unwrap();
        snapshot["kind"] = "snapshot".into();
        snapshot["root"] = serde_json::Value::Null;
        snapshot["snapshot"] = serde_json::json!({"name": "s1", "disks": [], "backup_label": ""});
        let snapshot: Backup = serde_json::from_value(snapshot).unwrap();
        assert!(unsuitable(&snapshot, false).is_some_and(|why| why.contains("snapshot s1")));
    }
}
