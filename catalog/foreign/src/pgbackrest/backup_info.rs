//! `backup.info`: which backups there are.

use std::collections::BTreeMap;
use std::io::BufRead;

use barmanfs_pg::{ServerVersion, SystemId};
use serde::Deserialize;

use super::info::{self, InfoError};
use super::{Label, Passphrase};

/// A database of a stanza; each upgrade makes another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Database {
    /// Its number in this repository.
    pub id: u32,
    /// The number that `initdb` gave it.
    pub system_id: SystemId,
    /// Its version, without the minor one.
    pub version: ServerVersion,
}

/// A backup, by its line in `backup.info`. All else is in its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBackup {
    /// Its name.
    pub label: Label,
    /// The database it is of.
    pub database_id: u32,
    /// Pages had wrong checksums when it was taken.
    pub has_page_errors: bool,
    /// What its owner wrote on it.
    pub annotations: BTreeMap<String, String>,
}

/// What it says.
#[derive(Debug)]
pub struct BackupInfo {
    /// What the manifests are encrypted with.
    pub passphrase: Option<Passphrase>,
    /// The database that the stanza is of now.
    pub current: Database,
    /// All of them.
    pub databases: Vec<Database>,
    /// The backups, each after those that it builds on.
    pub backups: Vec<ListedBackup>,
}

#[derive(Deserialize)]
struct DatabaseLine {
    #[serde(rename = "db-system-id")]
    system_id: u64,
    #[serde(rename = "db-version")]
    version: String,
}

#[derive(Deserialize)]
struct BackupLine {
    #[serde(rename = "db-id")]
    database_id: u32,
    #[serde(rename = "backup-error", default)]
    has_page_errors: Option<bool>,
    #[serde(rename = "backup-annotation", default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl BackupInfo {
    /// Reads it, decrypted.
    ///
    /// # Errors
    /// When it is cut, damaged, or not as pgBackRest writes it.
    pub fn parse(source: impl BufRead) -> Result<Self, InfoError> {
        let mut current = None;
        let (mut databases, mut backups) = (Vec::new(), Vec::new());
        let frame = info::read(source, |entry| {
            match (entry.section, entry.key) {
                ("db", b"db-id") => current = Some(entry.value::<u32>()?),
                ("db:history", _) => {
                    let id = entry.key_text()?.parse();
                    let line: DatabaseLine = entry.value()?;
                    match (id, super::server_version(&line.version)) {
                        (Ok(id), Some(version)) => {
                            databases.push(Database {
                                id,
                                system_id: SystemId(line.system_id),
                                version,
                            });
                        }
                        _ => return Err(entry.refused("no number or version of a database")),
                    }
                }
                ("backup:current", _) => {
                    let label = entry.key_text()?.parse::<Label>();
                    let label = label.map_err(|error| entry.refused(error.to_string()))?;
                    let line: BackupLine = entry.value()?;
                    backups.push(ListedBackup {
                        label,
                        database_id: line.database_id,
                        has_page_errors: line.has_page_errors.unwrap_or(false),
                        annotations: line.annotations.unwrap_or_default(),
                    });
                }
                _ => {}
            }
            Ok(())
        })?;
        backups.sort_by(|one, other| one.label.cmp(&other.label));
        backups.dedup_by(|one, other| one.label == other.label);
        let current = databases
            .iter()
            .find(|database| Some(database.id) == current)
            .copied();
        Ok(Self {
            passphrase: frame.passphrase,
            current: current.ok_or(InfoError::Missing("the present database"))?,
            databases,
            backups,
        })
    }

    /// The database with this number.
    #[must_use]
    pub fn database(&self, id: u32) -> Option<&Database> {
        self.databases.iter().find(|database| database.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgbackrest::info::tests::file;

    const HISTORY: (&str, &[(&str, &str)]) = (
        "db:history",
        &[(
            "1",
            r#"{"db-catalog-version":202506291,"db-control-version":1800,"db-system-id":5,"db-version":"18"}"#,
        )],
    );

    #[test]
    fn backups_are_listed_after_what_they_build_on() {
        let line = r#"{"backrest-format":5,"backup-annotation":{"why":"before the upgrade"},"backup-error":true,"db-id":1}"#;
        let bytes = file(&[
            (
                "backup:current",
                &[
                    ("20261130-031850F_20261130-031853D", r#"{"db-id":1}"#),
                    ("20261130-031850F", line),
                ],
            ),
            ("db", &[("db-id", "1")]),
            HISTORY,
        ]);
        let info = BackupInfo::parse(bytes.as_slice()).unwrap();
        assert_eq!(
            info.current,
            Database {
                id: 1,
                system_id: SystemId(5),
                version: ServerVersion(180_000)
            }
        );
        assert_eq!(info.backups[0].label.as_str(), "20261130-031850F");
        assert!(info.backups[0].has_page_errors && !info.backups[1].has_page_errors);
        assert_eq!(info.backups[0].annotations["why"], "before the upgrade");
    }

    #[test]
    fn a_label_that_is_a_path_is_refused() {
        let bytes = file(&[
            ("backup:current", &[("../../etc", r#"{"db-id":1}"#)]),
            ("db", &[("db-id", "1")]),
            HISTORY,
        ]);
        let error = BackupInfo::parse(bytes.as_slice()).unwrap_err();
        assert!(error.to_string().contains("../../etc"), "{error}");
        let bytes = file(&[("db", &[("db-id", "2")]), HISTORY]);
        assert!(
            BackupInfo::parse(bytes.as_slice()).is_err(),
            "the present database is not among them"
        );
    }
}
