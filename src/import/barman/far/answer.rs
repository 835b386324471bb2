//! What `barman sync-info` prints, as far as it matters.

use std::io::Read;

use barmanfs_foreign::barman::names;
use barmanfs_pg::wal_name::WalName;
use serde::{Deserialize, Deserializer};

use crate::error::Error;
use crate::output::printable;

/// More than the names of all WAL that anybody keeps.
const ANSWER_BYTES: u64 = 1 << 30;

/// Where a Barman has what it has of a server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Places {
    pub(super) backup_directory: String,
    pub(super) basebackups_directory: String,
    pub(super) wals_directory: String,
}

/// The answer.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    #[serde(rename = "config")]
    pub(super) places: Places,
    /// The last file that its list of WAL has, and where in the list.
    pub(super) last_name: String,
    pub(super) last_position: u64,
    /// The archived WAL, but for what is older than its oldest backup, or than the file that was named in the question.
    #[serde(deserialize_with = "wal_names")]
    pub(super) wals: Vec<WalName>,
}

impl Answer {
    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be read, or is not an answer.
    pub(super) fn read(source: impl Read) -> Result<Self, Error> {
        let answer: Self = serde_json::from_reader(std::io::BufReader::new(source.take(ANSWER_BYTES)))
            .map_err(|error| match error.is_io() {
                true => Error::failed(format!("{error}")),
                false => Error::failed(format!(
                    "The answer of 'barman sync-info' is not understood: {error}"
                )),
            })?;
        for place in [
            &answer.places.backup_directory,
            &answer.places.basebackups_directory,
            &answer.places.wals_directory,
        ] {
            if !place.starts_with('/') {
                return Err(Error::failed(format!(
                    "The Barman of the primary keeps backups or WAL in {}, which is no directory of its host",
                    printable(place.as_bytes())
                )));
            }
        }
        Ok(answer)
    }
}

/// Only names are kept: there may be very many.
fn wal_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<WalName>, D::Error> {
    #[derive(Deserialize)]
    struct Wal {
        name: String,
    }
    struct Names;
    impl<'de> serde::de::Visitor<'de> for Names {
        type Value = Vec<WalName>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of WAL files")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
            let mut names = Vec::new();
            while let Some(wal) = all.next_element::<Wal>()? {
                names.extend(names::wal_name(&wal.name));
            }
            Ok(names)
        }
    }
    deserializer.deserialize_seq(Names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_places_and_names() {
        let text = r#"{"backups": {"20261130T000000": {"status": "DONE"}}, "config": {"name": "main",
            "backup_directory": "/b/main", "basebackups_directory": "/b/main/base", "wals_directory": "/b/main/wals"},
            "last_name": "000000010000000000000002", "last_position": 47, "version": "3.19.1", "wals": [
            {"name": "00000002.history", "size": 1}, {"name": "000000010000000000000002", "compression": null},
            {"name": "../../etc/passwd"}]}"#;
        let answer = Answer::read(text.as_bytes()).unwrap();
        assert_eq!(answer.places.wals_directory, "/b/main/wals");
        let names: Vec<String> = answer.wals.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["00000002.history", "000000010000000000000002"]);
        for end in 0..text.len() {
            assert!(Answer::read(&text.as_bytes()[..end]).is_err(), "{end}");
        }
        let cloud = text.replace("/b/main/wals", "s3://bucket/wals");
        let said = Answer::read(cloud.as_bytes()).unwrap_err().to_string();
        assert!(said.contains("s3://bucket"), "{said}");
    }
}
