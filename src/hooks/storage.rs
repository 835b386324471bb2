//! The commands of a site's storage: they take snapshots of a server's disks, mount, list and delete them.
//!
//! Each runs as a hook script does, once, with a time limit; what it prints on its standard error goes to the log. A command
//! that fails ends the operation.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use barmanfs_catalog::{Backup, BackupId, Repository, ServerName, SnapshotDisk, StorageSnapshot};

use super::environment::Environment;
use super::script::{Script, owner_to_become};
use super::{IsStopped, absolute};
use crate::config::ServerConfig;
use crate::error::Error;

/// The longest name of a snapshot. Clouds take 63 bytes, and a script may append the name of a disk.
const NAME_BYTES_MAX: usize = 44;

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Takes a snapshot, and prints its disks.
    Take,
    /// Mounts it.
    Mount,
    /// Unmounts it.
    Umount,
    /// Deletes it.
    Delete,
    /// Prints the names of all.
    List,
}

impl Act {
    fn key(self) -> &'static str {
        match self {
            Self::Take => "snapshot_command",
            Self::Mount => "snapshot_mount_command",
            Self::Umount => "snapshot_umount_command",
            Self::Delete => "snapshot_delete_command",
            Self::List => "snapshot_list_command",
        }
    }
}

/// The snapshot that a command is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subject<'a> {
    pub(crate) backup: Option<BackupId>,
    pub(crate) name: &'a str,
    /// The server's data directory, if that is known.
    pub(crate) data_directory: Option<&'a str>,
    /// The places of tablespaces on the server, one a line.
    pub(crate) tablespaces: &'a str,
    /// Where the data directory is to be when the snapshot is mounted.
    pub(crate) directory: Option<&'a Path>,
    pub(crate) disks: &'a [SnapshotDisk],
}

impl<'a> Subject<'a> {
    /// A recorded snapshot.
    pub(crate) fn recorded(backup: BackupId, snapshot: &'a StorageSnapshot) -> Self {
        Self {
            backup: Some(backup),
            name: &snapshot.name,
            data_directory: snapshot.data_directory.as_deref(),
            disks: &snapshot.disks,
            ..Self::default()
        }
    }
}

/// The storage of one server.
#[derive(Clone, Copy)]
pub(crate) struct Storage<'a> {
    server: &'a ServerConfig,
    repository: &'a Repository,
    is_stopped: IsStopped<'a>,
    /// Limit of one command.
    limit: Option<Duration>,
}

impl<'a> Storage<'a> {
    pub(crate) fn of(
        server: &'a ServerConfig,
        repository: &'a Repository,
        is_stopped: IsStopped<'a>,
    ) -> Self {
        Self {
            server,
            repository,
            is_stopped,
            limit: server.snapshots.timeout,
        }
    }

    /// The same for somebody who does not wait longer than this.
    pub(crate) fn within(self, limit: Duration) -> Self {
        Self {
            limit: Some(self.limit.map_or(limit, |own| own.min(limit))),
            ..self
        }
    }

    /// Whether there is a command for this.
    pub(crate) fn has(&self, act: Act) -> bool {
        self.command(act).is_some()
    }

    fn command(&self, act: Act) -> Option<&'a String> {
        let of = &self.server.snapshots;
        let command = match act {
            Act::Take => &of.take,
            Act::Mount => &of.mount,
            Act::Umount => &of.umount,
            Act::Delete => &of.delete,
            Act::List => &of.list,
        };
        command.as_ref()
    }

    /// Runs a command, and returns what it prints.
    ///
    /// # Errors
    /// When there is no such command, and when it fails.
    pub(crate) fn run(&self, act: Act, subject: &Subject<'_>) -> Result<String, Error> {
        let (key, server) = (act.key(), &self.server.name);
        let Some(command) = self.command(act) else {
            return Err(Error::usage(format!("Server '{server}' has no {key}"))
                .hint("docs/snapshots.md has commands for several storages"));
        };
        let script = Script {
            key: key.to_owned(),
            command: command.clone(),
            environment: self.environment(subject),
            timeout: self.limit,
            owner: owner_to_become(self.repository.path()),
        };
        script
            .answer(self.is_stopped)
            .map_err(|why| Error::failed(format!("{key} of server {server} {why}")))
    }

    fn environment(&self, subject: &Subject<'_>) -> Environment {
        let server = self.server;
        let path =
            |path: Option<&Path>| path.map_or_else(OsString::new, |path| absolute(path).into_os_string());
        let id = subject.backup.map_or_else(String::new, |id| id.to_string());
        let recorded = subject
            .disks
            .iter()
            .filter_map(|disk| serde_json::to_string(disk).ok());
        let snapshots: Vec<&str> = subject.disks.iter().map(|disk| disk.snapshot.as_str()).collect();
        let variables: [(&str, OsString); 11] = [
            ("BARMANFS_VERSION", env!("CARGO_PKG_VERSION").into()),
            ("BARMANFS_SERVER", server.name.as_str().into()),
            ("BARMANFS_BACKUP_ID", id.into()),
            ("BARMANFS_SNAPSHOT_NAME", subject.name.into()),
            (
                "BARMANFS_SNAPSHOT_DISKS",
                server.snapshots.disks.clone().unwrap_or_default().into(),
            ),
            ("BARMANFS_SNAPSHOT_DIRECTORY", path(subject.directory)),
            (
                "BARMANFS_DATA_DIRECTORY",
                subject.data_directory.unwrap_or_default().into(),
            ),
            ("BARMANFS_TABLESPACES", subject.tablespaces.into()),
            ("BARMANFS_SNAPSHOTS", snapshots.join(" ").into()),
            (
                "BARMANFS_SNAPSHOT_RECORD",
                recorded.collect::<Vec<_>>().join("\n").into(),
            ),
            (
                "BARMANFS_CONFIGURATION",
                server.hooks.configuration.clone().into_os_string(),
            ),
        ];
        variables
            .map(|(name, value)| (OsString::from(name), value))
            .into()
    }

    /// Takes a snapshot, and returns the disks that the command names.
    ///
    /// # Errors
    /// When it fails, or prints what is no disk.
    pub(crate) fn take(&self, subject: &Subject<'_>) -> Result<Vec<SnapshotDisk>, Error> {
        let text = self.run(Act::Take, subject)?;
        disks(&text).map_err(|why| {
            Error::failed(format!("snapshot_command of server {} {why}", self.server.name))
                .hint("See 'What snapshot_command prints' in docs/snapshots.md")
        })
    }

    /// Those of these snapshots that the storage does not have.
    ///
    /// # Errors
    /// When the command fails.
    pub(crate) fn missing<'d>(&self, disks: &[&'d SnapshotDisk]) -> Result<Vec<&'d SnapshotDisk>, Error> {
        let text = self.run(Act::List, &Subject::default())?;
        let there: std::collections::HashSet<&str> = text.lines().map(str::trim).collect();
        let missing = disks
            .iter()
            .filter(|disk| !there.contains(disk.snapshot.as_str()));
        Ok(missing.copied().collect())
    }
}

/// Deletes the snapshot of a backup in the storage, if its files are there: before its record, so that a failure keeps the
/// record. With `force`, a failure does not stop the deletion of the record.
///
/// # Errors
/// When there is no command for it, or it fails.
pub(crate) fn delete(
    repository: &Repository,
    server: Option<&ServerConfig>,
    backup: &Backup,
    (force, is_stopped): (bool, IsStopped<'_>),
) -> Result<(), Error> {
    let Some(snapshot) = backup.snapshot.as_ref().filter(|_| backup.is_snapshot()) else {
        return Ok(());
    };
    let deleted = match server {
        Some(server) => Storage::of(server, repository, is_stopped)
            .run(Act::Delete, &Subject::recorded(backup.id, snapshot))
            .map(drop),
        None => Err(Error::failed(format!(
            "Server {} is not configured, so nobody knows how to delete its snapshots",
            backup.server
        ))),
    };
    match deleted {
        Err(error) if force => {
            tracing::warn!("Snapshot {} may be left in the storage: {error}", snapshot.name);
            Ok(())
        }
        Err(error) => Err(error
            .into_failure()
            .context(format_args!(
                "Backup {} of server {} is kept",
                backup.id, backup.server
            ))
            .hint("With --force, its record goes all the same, and the snapshot stays in the storage")),
        Ok(()) => Ok(()),
    }
}

/// The name of a new snapshot. Letters, digits and dashes, as every storage takes them.
pub(crate) fn name(server: &ServerName, backup: BackupId) -> String {
    let id = backup.to_string().to_lowercase();
    let plain = server.as_str().to_lowercase();
    let plain: String = plain
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let fixed = "barmanfs--".len() + id.len();
    let room = NAME_BYTES_MAX.saturating_sub(fixed).min(plain.len());
    format!("barmanfs-{}-{id}", plain.get(..room).unwrap_or_default())
}

/// Reads the lines that a command prints: one JSON object for each disk. Other lines mean nothing.
fn disks(text: &str) -> Result<Vec<SnapshotDisk>, String> {
    let mut disks = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| line.starts_with('{')) {
        let disk: SnapshotDisk = serde_json::from_str(line)
            .map_err(|error| format!("printed a disk that is not understood: {error}"))?;
        let texts = [&disk.snapshot, &disk.mount_point, &disk.mount_options];
        let is_plain = texts.iter().all(|text| !text.chars().any(char::is_control));
        if disk.snapshot.is_empty() || !disk.mount_point.starts_with('/') || !is_plain {
            return Err(
                "printed a disk without a snapshot, or whose mount_point is no absolute path".to_owned(),
            );
        }
        disks.push(disk);
    }
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_snapshot_is_short_and_plain() {
        let id: BackupId = "20261130T101500".parse().unwrap();
        let of = |server: &str| name(&server.parse().unwrap(), id);
        assert_eq!(of("Main_db.1"), "barmanfs-main-db-1-20261130t101500");
        let long = of(&"x".repeat(60));
        assert!(
            long.len() <= NAME_BYTES_MAX && long.ends_with("x-20261130t101500"),
            "{long}"
        );
    }

    #[test]
    fn disks_are_lines_of_json() {
        let text = "Creating...\n{\"snapshot\": \"s1\", \"mount_point\": \"/srv\", \"more\": 1}\n\
                    {\"disk\": \"d2\", \"snapshot\": \"s2\", \"mount_point\": \"/a b\", \"mount_options\": \"rw\"}\n";
        let found = disks(text).unwrap();
        assert_eq!(found[0].disk, None);
        assert_eq!(
            (found[1].mount_point.as_str(), found[1].mount_options.as_str()),
            ("/a b", "rw")
        );
        for wrong in [
            "{\"snapshot\": \"s\"}",
            "{\"snapshot\": \"s\", \"mount_point\": \"srv\"}",
            "{\"snapshot\": \"\", \"mount_point\": \"/srv\"}",
            "{\"snapshot\": \"a\\nb\", \"mount_point\": \"/srv\"}",
            "{",
        ] {
            assert!(disks(wrong).is_err(), "{wrong}");
        }
        assert_eq!(disks("nothing\n"), Ok(Vec::new()));
    }
}
