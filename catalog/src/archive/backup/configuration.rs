//! Configuration files that a server keeps outside its data directory, as on Debian: a base backup does not have them.
//!
//! They are a tree of their own, in which each file has its path on the server without the first slash. A record with
//! the tree names the backup's record, so the files go with the backup, in whatever order the records are read.

use std::collections::BTreeMap;

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{Attributes, DirectoryRef, Entry, FileMap, Node, Record, RecordId, TreeReader};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::archive::backup::Backup;
use crate::error::Result;
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::names::{BackupId, ServerName};

/// The files of one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationFiles {
    /// Their tree.
    pub directory: DirectoryRef,
    /// When they were read.
    pub read_at: TimestampMicros,
    /// The server's data directory: an absolute path, as the following ones.
    pub data_directory: String,
    /// The server's main file, if that is one of them.
    #[serde(default)]
    pub config_file: Option<String>,
    /// The server's `pg_hba.conf`, if that is one of them.
    #[serde(default)]
    pub hba_file: Option<String>,
    /// The server's `pg_ident.conf`, if that is one of them.
    #[serde(default)]
    pub ident_file: Option<String>,
}

impl ConfigurationFiles {
    /// The paths of those that settings of the server name.
    pub fn named_by_settings(&self) -> impl Iterator<Item = &String> {
        [&self.config_file, &self.hba_file, &self.ident_file]
            .into_iter()
            .flatten()
    }

    /// The file or directory at an absolute path of the server; `None` if it is not one of them. Follows no symbolic
    /// links.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub fn entry(&self, trees: &TreeReader, path: &str) -> Result<Option<Entry>> {
        let Some(path) = path.strip_prefix('/') else {
            return Ok(None);
        };
        Ok(trees.find(&self.directory, path.as_bytes())?)
    }

    /// The names in a directory at an absolute path of the server that are files; `None` if there is no such directory.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub fn names(&self, trees: &TreeReader, path: &str) -> Result<Option<Vec<Vec<u8>>>> {
        let directory = match self.entry(trees, path)?.map(|entry| entry.node) {
            Some(Node::Directory(directory)) => directory,
            _ => return Ok(None),
        };
        let mut names = Vec::new();
        for entry in trees.entries(&directory) {
            let entry = entry?;
            if matches!(entry.node, Node::File(_)) {
                names.push(entry.name);
            }
        }
        Ok(Some(names))
    }

    /// Every file, by its absolute path on the server, with its attributes and the map of its content. A backup reads at
    /// most some hundreds of them.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub fn all(&self, trees: &TreeReader) -> Result<BTreeMap<String, (Attributes, FileMap)>> {
        let mut files = BTreeMap::new();
        let mut waiting = vec![("/".to_owned(), self.directory.clone())];
        while let Some((path, directory)) = waiting.pop() {
            for entry in trees.entries(&directory) {
                let entry = entry?;
                let below = format!("{path}{}", String::from_utf8_lossy(&entry.name));
                match entry.node {
                    Node::File(map) => {
                        files.insert(below, (entry.attributes, map));
                    }
                    Node::Directory(directory) => waiting.push((format!("{below}/"), directory)),
                    Node::Symlink(_) => {}
                }
            }
        }
        Ok(files)
    }
}

/// The content of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConfigurationRecord {
    /// The backup's record.
    pub(crate) of: RecordId,
    /// The backup, for messages.
    pub(crate) server: ServerName,
    pub(crate) backup: BackupId,
    #[serde(flatten)]
    pub(crate) files: ConfigurationFiles,
}

/// The record that gives `backup`, whose own record is `of`, these files.
pub(super) fn record(backup: &Backup, of: RecordId, files: ConfigurationFiles) -> Result<Record> {
    let body = ConfigurationRecord {
        of,
        server: backup.server.clone(),
        backup: backup.id,
        files,
    };
    records::record(Kind::Configuration, &body)
}

impl Repository {
    /// The configuration files that were stored with a backup, if the server kept any outside its data directory.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn configuration_files(&self, backup: &Backup) -> Result<Option<ConfigurationFiles>> {
        let Some(of) = backup.record else {
            return Ok(None);
        };
        self.db.read(|db| {
            let found: Option<(RecordId, Vec<u8>)> = db
                .prepare_cached(
                    "SELECT r.id, r.payload FROM configurations c JOIN records r ON r.seq = c.record
                     WHERE c.backup = ?1",
                )?
                .query_row([of.as_bytes()], |row| Ok((RecordId(row.get(0)?), row.get(1)?)))
                .optional()?;
            let parsed = found.map(|(id, payload)| records::parse::<ConfigurationRecord>(id, &payload));
            Ok(parsed.transpose()?.map(|record| record.files))
        })
    }

    /// The trees of a complete backup: its files, and its configuration files from outside the data directory.
    pub(crate) fn trees_of(&self, backup: &Backup) -> Result<Vec<DirectoryRef>> {
        let Some(root) = &backup.root else {
            return Ok(Vec::new());
        };
        let configuration = self.configuration_files(backup)?;
        let trees = [root.directory.clone()].into_iter();
        Ok(trees.chain(configuration.map(|files| files.directory)).collect())
    }
}

/// The records with configuration files of these records of a backup.
pub(super) fn records_of(db: &Connection, backup: &[RecordId]) -> Result<Vec<RecordId>> {
    records::naming(db, Kind::Configuration, backup, |record: &ConfigurationRecord| {
        record.of
    })
}

/// Enters a record. A backup has one; of two, the smaller id counts.
pub(crate) fn derive(db: &Connection, seq: i64, id: RecordId, record: &ConfigurationRecord) -> Result<()> {
    if records::is_annulled(db, record.of)? {
        return Ok(());
    }
    db.prepare_cached(
        "INSERT INTO configurations (backup, record) VALUES (?1, ?2)
         ON CONFLICT (backup) DO UPDATE SET record = excluded.record
         WHERE ?3 < (SELECT id FROM records WHERE seq = record)",
    )?
    .execute(params![record.of.as_bytes(), seq, id.as_bytes()])?;
    Ok(())
}

/// Removes what a deletion of a backup annuls.
pub(crate) fn annul(db: &Connection, annulled: RecordId) -> Result<()> {
    db.prepare_cached("DELETE FROM configurations WHERE backup = ?1")?
        .execute([annulled.as_bytes()])?;
    Ok(())
}
