//! Takes backups and WAL over from the repositories of other tools.
//!
//! A [`Source`] reads one kind of repository. It says which backups there are ([`Listing`]), brings the files of one
//! ([`Intake`]), and its WAL ([`ForeignWal`]). What becomes of them is the same for all: [`backups`] stores backups one by
//! one, each checked before it counts, and [`wal`] archives the WAL with the checks of any other WAL. A source is only
//! read, and its own tool may be at work in it meanwhile.
//!
//! An import can be repeated: a backup that is here, with its start and its system, is not read again. What cannot be
//! taken is named ([`LeftOut`]) and stops nothing behind it.

mod allowance;
pub(crate) mod backups;
pub(crate) mod barman;
mod changed;
mod composed;
pub(crate) mod data_directory;
pub(crate) mod directory;
pub(crate) mod gpg;
mod intake;
mod manifest;
mod members;
mod own_wal;
pub(crate) mod passphrase;
pub(crate) mod pg_basebackup;
pub(crate) mod pgbackrest;
mod piped;
pub(crate) mod plain;
pub(crate) mod wal;
pub(crate) mod walg;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use barmanfs_catalog::{Annotations, Backup, BackupId, KeepTarget, Repository, ServerName, Tablespace};
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::{Lsn, SegmentSize, ServerVersion, SystemId, TimelineId, TimestampMicros};
use barmanfs_store::Attributes;

use crate::error::Error;
pub(crate) use composed::Changes;
pub(crate) use intake::{Intake, Part};
pub(crate) use own_wal::OwnWal;

/// A repository of another tool.
pub(crate) trait Source {
    /// What it is, for messages: `Barman home /var/lib/barman, server main`.
    fn described(&self) -> String;

    /// The backups that it has, oldest first, parents before their children.
    ///
    /// # Errors
    /// When it is not what it should be, or cannot be read. One bad backup is in [`Listing::left_out`].
    fn backups(&mut self) -> Result<Listing, Error>;

    /// Stores the files of one backup, each once, in any order.
    ///
    /// # Errors
    /// When they cannot be read, are not whole, or cannot be stored. The import goes on with the next backup unless the
    /// repository failed.
    fn read(&mut self, backup: &ForeignBackup, intake: &mut Intake<'_>) -> Result<Arrived, Error>;

    /// Refuses to delete anything, unless its backups are nobody's but the user's.
    ///
    /// # Errors
    /// Where another tool keeps them, which has to know of it, or a server may be started on them.
    fn can_delete(&self) -> Result<(), Error> {
        Err(Error::usage(format!(
            "--move does not delete from {}: it is for what pg_basebackup or 'barman export-backup' has written",
            self.described()
        ))
        .hint("What a tool keeps is deleted by that tool: barman delete, pgbackrest expire, wal-g delete"))
    }

    /// Deletes one of its backups, which is here and whole.
    ///
    /// # Errors
    /// When it is not what it was, or cannot be deleted.
    fn delete(&mut self, _backup: &ForeignBackup) -> Result<(), Error> {
        self.can_delete()
    }

    /// Its WAL: history files first, then by name. What cannot be used is an item of its own. `spool` is a directory for copies
    /// that are needed on the way.
    ///
    /// # Errors
    /// When it cannot be listed.
    fn wal(
        &mut self,
        spool: &Path,
    ) -> Result<Box<dyn Iterator<Item = Result<ForeignWal, LeftOut>> + '_>, Error>;
}

/// The backups of a source.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) backups: Vec<ForeignBackup>,
    pub(crate) left_out: Vec<LeftOut>,
}

/// What is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// Its name in the source.
    pub(crate) what: String,
    pub(crate) why: String,
    /// Whether a person has to know. What a tool itself marks as useless is no problem.
    pub(crate) is_problem: bool,
}

impl ForeignBackup {
    /// By what it is found again.
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            name: self.name.clone(),
            id: self.id,
            system_id: self.system_id,
            timeline: self.timeline,
            start_lsn: self.start_lsn,
            stop_lsn: self.stop_lsn,
        }
    }
}

/// By what a backup of a source is found here. Its name is not enough: two hosts can have a backup of the same second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) id: BackupId,
    pub(crate) system_id: SystemId,
    pub(crate) timeline: TimelineId,
    pub(crate) start_lsn: Lsn,
    pub(crate) stop_lsn: Lsn,
}

impl Identity {
    /// Whether this is the backup: imported under its name, or the same one under the same id; and complete.
    fn is(&self, here: &Backup) -> bool {
        let imported = here.imported.as_ref();
        let is_named = imported.map_or(here.id == self.id, |from| from.name == self.name);
        let limits = (here.timeline, here.start_lsn, here.stop_lsn);
        is_named
            && here.is_complete()
            && here.system_id == self.system_id
            && limits == (Some(self.timeline), Some(self.start_lsn), Some(self.stop_lsn))
    }

    /// The backup of this server that it is.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub(crate) fn find(&self, repository: &Repository, server: &ServerName) -> Result<Option<Backup>, Error> {
        Ok(repository.backups(server)?.into_iter().find(|here| self.is(here)))
    }
}

/// Leaves out the backups of other clusters than the server's. If nothing of the server is here, that of the newest backup
/// counts: after an `initdb`, a source may still have backups of the cluster before.
///
/// # Errors
/// When the catalog cannot be read.
pub(crate) fn of_one_cluster(
    repository: Option<&Repository>,
    server: &ServerName,
    backups: &mut Vec<ForeignBackup>,
) -> Result<Vec<LeftOut>, Error> {
    let known = repository
        .map(|repository| repository.system_id(server))
        .transpose()?;
    let newest = || backups.iter().max_by_key(|backup| backup.begin_time);
    let Some(system_id) = known
        .flatten()
        .or_else(|| newest().map(|backup| backup.system_id))
    else {
        return Ok(Vec::new());
    };
    let of_others = backups.extract_if(.., |backup| backup.system_id != system_id);
    let left_out = of_others.map(|backup| {
        let why = format!(
            "it is of the cluster {}, and server {server} is the cluster {system_id}",
            backup.system_id
        );
        LeftOut::problem(backup.name, why)
    });
    Ok(left_out.collect())
}

/// Whether files of a backup are known to be damaged. Its WAL outside of it is not asked about: that is no part of an import
/// of its files.
///
/// # Errors
/// When the catalog cannot be read.
pub(crate) fn has_damaged_files(repository: &Repository, backup: &Backup) -> Result<bool, Error> {
    let mut alone = backup.clone();
    alone.wal_included = true;
    Ok(!repository.damaged_backups(&[alone])?.is_empty())
}

impl LeftOut {
    /// Something that should have been taken.
    pub(crate) fn problem(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
            is_problem: true,
        }
    }

    /// Something that nobody expects to be taken.
    pub(crate) fn expected(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            is_problem: false,
            ..Self::problem(what, why)
        }
    }
}

/// A backup of a source.
#[derive(Debug, Clone)]
pub(crate) struct ForeignBackup {
    /// Its name in the source: `20261128T155501`.
    pub(crate) name: String,
    /// The tool that took it: `Barman 3.19.1`.
    pub(crate) tool: String,
    /// The id it should have here.
    pub(crate) id: BackupId,
    pub(crate) begin_time: TimestampMicros,
    pub(crate) end_time: TimestampMicros,
    /// Where its recovery begins. Its `backup_label` must say the same.
    pub(crate) start_lsn: Lsn,
    /// What its recovery must reach.
    pub(crate) stop_lsn: Lsn,
    pub(crate) timeline: TimelineId,
    pub(crate) system_id: SystemId,
    pub(crate) server_version: ServerVersion,
    pub(crate) segment_size: SegmentSize,
    /// The name that its user gave it.
    pub(crate) label: Option<String>,
    /// What its user noted with it.
    pub(crate) annotations: Annotations,
    /// Whether and how its user keeps it.
    pub(crate) keep: Option<KeepTarget>,
    /// Where the backup starts that its files `INCREMENTAL.*` build on.
    pub(crate) parent_start: Option<(Lsn, TimelineId)>,
    /// Whether the server was stopped: there is no label, and recovery begins at the checkpoint of the control file.
    pub(crate) is_cold: bool,
    /// Bytes of its files, if the source says that.
    pub(crate) size_bytes: Option<u64>,
}

/// What a source knows about a backup when its files have been read.
#[derive(Debug)]
pub(crate) struct Arrived {
    /// Owner, permissions and time of the data directory itself.
    pub(crate) root: Attributes,
    pub(crate) tablespaces: Vec<Tablespace>,
    pub(crate) manifest: Manifest,
    /// Configuration files from outside the data directory.
    pub(crate) configuration: Option<ForeignConfiguration>,
}

/// The `backup_manifest` of a backup.
pub(crate) enum Manifest {
    /// The server's own: the files are checked against it.
    Given(Box<dyn Read>),
    /// There is none: it is made from the stored files.
    Made,
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Given(_) => "Given",
            Self::Made => "Made",
        })
    }
}

/// Configuration files from outside the data directory. All paths are absolute ones of the server.
#[derive(Debug, Default)]
pub(crate) struct ForeignConfiguration {
    pub(crate) data_directory: String,
    pub(crate) config_file: Option<String>,
    pub(crate) hba_file: Option<String>,
    pub(crate) ident_file: Option<String>,
    /// Few and small: the source limits them.
    pub(crate) files: Vec<(String, Attributes, Vec<u8>)>,
}

/// Opens a WAL file. What is read is its content, decompressed and decrypted.
pub(crate) type OpenWal = Box<dyn FnOnce() -> io::Result<Box<dyn Read>> + Send>;

/// A WAL file of a source.
pub(crate) struct ForeignWal {
    pub(crate) name: WalName,
    /// Where it is, for messages.
    pub(crate) place: String,
    /// The file, if another program may still be copying it there.
    pub(crate) arriving: Option<PathBuf>,
    pub(crate) open: OpenWal,
}

impl std::fmt::Debug for ForeignWal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ForeignWal({} at {})", self.name, self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use barmanfs_catalog::BackupStatus;

    fn imported_here(name: &str) -> Backup {
        let mut here = testing::backup(BackupStatus::Done);
        let from = serde_json::json!({"tool": "Barman", "name": name, "imported_at": "2026-11-30T00:00:00Z"});
        here.imported = Some(serde_json::from_value(from).unwrap());
        here
    }

    /// The kind: something is taken from, or done to, a backup that only has the same name.
    #[test]
    fn a_name_alone_is_no_backup() {
        let here = imported_here("20261120T101500");
        let same = Identity {
            name: "20261120T101500".to_owned(),
            id: here.id,
            system_id: here.system_id,
            timeline: here.timeline.unwrap(),
            start_lsn: here.start_lsn.unwrap(),
            stop_lsn: here.stop_lsn.unwrap(),
        };
        assert!(same.is(&here));
        assert!(
            same.is(&testing::backup(BackupStatus::Done)),
            "not imported, the same id"
        );
        assert!(!same.is(&testing::backup(BackupStatus::Failed)));
        let others = [
            Identity {
                name: "20261120T101501".to_owned(),
                ..same.clone()
            },
            Identity {
                system_id: SystemId(7),
                ..same.clone()
            },
            Identity {
                timeline: TimelineId(2),
                ..same.clone()
            },
            Identity {
                start_lsn: Lsn(0x600_0028),
                ..same.clone()
            },
            Identity {
                stop_lsn: Lsn(0x700_0028),
                ..same.clone()
            },
        ];
        for other in others {
            assert!(!other.is(&here), "{other:?}");
        }
    }
}
