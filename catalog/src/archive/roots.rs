//! All roots that keep chunks alive: the trees of backups, the maps of archived and quarantined files, and the trees
//! and extra files of clones.

use barmanfs_store::{DirectoryRef, FileMap, RecordId};
use rusqlite::{Connection, params};

use crate::archive::backup::Backup;
use crate::archive::backup::configuration::ConfigurationRecord;
use crate::archive::wal::{QuarantinedWal, SegmentRange, WalFile, removal};
use crate::error::{Error, Result};
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::names::{BackupId, ServerName};

/// Records read at a time.
const PAGE: usize = 100;

/// What a record refers to.
pub(crate) enum Root {
    /// The files of a backup, or its configuration files.
    Tree {
        directory: DirectoryRef,
        /// Those that are alike.
        series: Series,
    },
    /// One file.
    File(FileMap),
}

/// Trees of which each has much in common with the one before.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Series {
    /// The backups of a server.
    Backups(ServerName),
    /// The configuration files of its backups.
    Configurations(ServerName),
    /// Its clones.
    Clones(ServerName),
}

/// Backups and WAL of a server that are taken for deleted.
#[derive(Debug)]
pub(crate) struct Without {
    pub(crate) server: ServerName,
    pub(crate) backups: Vec<BackupId>,
    pub(crate) wal: Vec<SegmentRange>,
}

impl Without {
    /// Whether this backup is one of them.
    pub(crate) fn has_backup(&self, server: &ServerName, backup: BackupId) -> bool {
        *server == self.server && self.backups.contains(&backup)
    }

    /// Whether this archived file is one of them, and no archive of another history has it.
    pub(crate) fn has_wal(&self, db: &Connection, id: RecordId, file: &WalFile) -> Result<bool> {
        let is_named = file.server == self.server && self.wal.iter().any(|range| range.contains(&file.name));
        Ok(is_named && !removal::is_elsewhere(db, &self.server, id)?)
    }
}

/// Calls `each` with the roots of all records that are not annulled, except those in `without`, and with a name for messages. Records added
/// meanwhile may or may not be included.
///
/// # Errors
/// When it is unknown what a record refers to: it is damaged, or of a later release.
pub(crate) fn each_root(
    repository: &Repository,
    without: Option<&Without>,
    each: &mut dyn FnMut(&str, &Root) -> Result<()>,
) -> Result<()> {
    for clone in repository.all_clones()? {
        let what = format!("Clone {} of server {}", clone.name, clone.server);
        let root = Root::Tree {
            directory: clone.root.directory,
            series: Series::Clones(clone.server),
        };
        each(&what, &root)?;
        for graft in clone.grafts {
            each(&what, &Root::File(graft.map))?;
        }
    }
    let mut last = 0;
    loop {
        let page = page(repository, last)?;
        let Some(&(seq, ..)) = page.last() else {
            return Ok(());
        };
        last = seq;
        for (_, kind, id, payload) in page {
            if let Some((what, root)) = repository.db.read(|db| root(db, without, kind, id, &payload))? {
                each(&what, &root)?;
            }
        }
    }
}

type Row = (i64, u8, RecordId, Vec<u8>);

fn page(repository: &Repository, after: i64) -> Result<Vec<Row>> {
    repository.db.read(|db| {
        let mut query = db.prepare_cached(
            "SELECT seq, kind, id, payload FROM records
             WHERE seq > ?1 AND id NOT IN (SELECT annulled FROM deletions) ORDER BY seq LIMIT ?2",
        )?;
        let rows = query.query_map(params![after, PAGE], |row| {
            Ok((row.get(0)?, row.get(1)?, RecordId(row.get(2)?), row.get(3)?))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    })
}

fn root(
    db: &Connection,
    without: Option<&Without>,
    kind: u8,
    id: RecordId,
    payload: &[u8],
) -> Result<Option<(String, Root)>> {
    let of_file = |file: WalFile| {
        (
            format!("{} of server {}", file.name, file.server),
            Root::File(file.map),
        )
    };
    // What it refers to is unknown, so nothing may be removed.
    let unknown = || Error::UnknownRecord {
        id: id.to_string(),
        kind,
    };
    Ok(match Kind::of(kind).ok_or_else(unknown)? {
        Kind::Backup => {
            let backup: Backup = records::parse(id, payload)?;
            if without.is_some_and(|without| without.has_backup(&backup.server, backup.id)) {
                return Ok(None);
            }
            let what = format!("Backup {} of server {}", backup.id, backup.server);
            let series = Series::Backups(backup.server);
            let tree = |directory| Root::Tree { directory, series };
            backup.root.map(|root| (what, tree(root.directory)))
        }
        Kind::Wal => {
            let file: WalFile = records::parse(id, payload)?;
            let goes = match without {
                Some(without) => without.has_wal(db, id, &file)?,
                None => false,
            };
            (!goes && !removal::is_dead(db, id, &file)?).then(|| of_file(file))
        }
        Kind::QuarantinedWal => {
            let file = records::parse::<QuarantinedWal>(id, payload)?.file;
            (!removal::is_dead_decided(db, id, &file)?).then(|| of_file(file))
        }
        Kind::Configuration => {
            let record: ConfigurationRecord = records::parse(id, payload)?;
            let goes = records::is_annulled(db, record.of)?
                || without.is_some_and(|without| without.has_backup(&record.server, record.backup));
            let what = format!(
                "The configuration of backup {} of server {}",
                record.backup, record.server
            );
            let root = Root::Tree {
                directory: record.files.directory,
                series: Series::Configurations(record.server),
            };
            (!goes).then_some((what, root))
        }
        Kind::Snapshot
        | Kind::Deletion
        | Kind::Keep
        | Kind::Server
        | Kind::BootTest
        | Kind::Damage
        | Kind::History
        | Kind::WalRemoval => None,
    })
}
