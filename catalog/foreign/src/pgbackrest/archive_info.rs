//! `archive.info`: which databases the archive has WAL of.

use std::io::BufRead;

use barmanfs_pg::{ServerVersion, SystemId};
use serde::Deserialize;

use super::Passphrase;
use super::info::{self, InfoError};

/// What it says.
#[derive(Debug)]
pub struct ArchiveInfo {
    /// What the WAL is encrypted with.
    pub passphrase: Option<Passphrase>,
    /// The databases, in the order of their numbers: `(number, version, system identifier)`.
    pub databases: Vec<(u32, ServerVersion, SystemId)>,
}

#[derive(Deserialize)]
struct Database {
    #[serde(rename = "db-id")]
    system_id: u64,
    #[serde(rename = "db-version")]
    version: String,
}

impl ArchiveInfo {
    /// Reads it, decrypted.
    ///
    /// # Errors
    /// When it is cut, damaged, or not as pgBackRest writes it.
    pub fn parse(source: impl BufRead) -> Result<Self, InfoError> {
        let mut databases = Vec::new();
        let frame = info::read(source, |entry| {
            if entry.section == "db:history" {
                let number = entry.key_text()?.parse();
                let database: Database = entry.value()?;
                let version = super::server_version(&database.version);
                match (number, version) {
                    (Ok(number), Some(version)) => {
                        databases.push((number, version, SystemId(database.system_id)));
                    }
                    _ => return Err(entry.refused("no number or version of a database")),
                }
            }
            Ok(())
        })?;
        databases.sort_unstable_by_key(|(number, ..)| *number);
        Ok(Self {
            passphrase: frame.passphrase,
            databases,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgbackrest::info::tests::file;

    #[test]
    fn databases_of_an_upgraded_stanza_are_all_there() {
        let bytes = file(&[
            ("cipher", &[("cipher-pass", "\"x\"")]),
            (
                "db",
                &[
                    ("db-id", "2"),
                    ("db-system-id", "7713798750413966879"),
                    ("db-version", "\"18\""),
                ],
            ),
            (
                "db:history",
                &[
                    ("1", r#"{"db-id":6713798750413966879,"db-version":"9.6"}"#),
                    ("2", r#"{"db-id":7713798750413966879,"db-version":"18"}"#),
                ],
            ),
        ]);
        let info = ArchiveInfo::parse(bytes.as_slice()).unwrap();
        assert_eq!(
            info.databases[0],
            (1, ServerVersion(90_600), SystemId(6_713_798_750_413_966_879))
        );
        assert_eq!(info.databases.len(), 2);
        assert_eq!(info.passphrase, Some(b"x".to_vec().into()));
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        let bytes = file(&[("db:history", &[("one", r#"{"db-id":1,"db-version":"18"}"#)])]);
        let error = ArchiveInfo::parse(bytes.as_slice()).unwrap_err();
        assert!(error.to_string().starts_with("line 6"), "{error}");
    }
}
