//! The directories of a restored tree that can be elsewhere, behind a symbolic link.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The directory of the WAL.
const WAL: &str = "pg_wal";

/// The directory of the tablespaces.
const TABLESPACES: &str = "pg_tblspc";

/// One of these directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) enum Part {
    /// `pg_wal`
    Wal,
    /// `pg_tblspc/<oid>`
    Tablespace(u32),
}

impl Part {
    /// The part that a path below the data directory is, or is in.
    pub(crate) fn of(path: &[Vec<u8>]) -> Option<Self> {
        match path {
            [name, ..] if name == WAL.as_bytes() => Some(Self::Wal),
            [parent, name, ..] if parent == TABLESPACES.as_bytes() => {
                let oid = std::str::from_utf8(name).ok()?.parse().ok()?;
                Some(Self::Tablespace(oid))
            }
            _ => None,
        }
    }

    /// The part that is the directory `name` in `directory`.
    pub(super) fn of_child(directory: &[Vec<u8>], name: &[u8]) -> Option<Self> {
        let path = [directory, &[name.to_vec()]].concat();
        Self::of(&path).filter(|part| part.depth() == path.len())
    }

    /// The number of names of its path.
    pub(super) fn depth(self) -> usize {
        match self {
            Self::Wal => 1,
            Self::Tablespace(_) => 2,
        }
    }

    /// Its path below the data directory.
    pub(super) fn path(self) -> PathBuf {
        match self {
            Self::Wal => WAL.into(),
            Self::Tablespace(oid) => format!("{TABLESPACES}/{oid}").into(),
        }
    }
}

/// For people.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wal => f.write_str(WAL),
            Self::Tablespace(oid) => write!(f, "tablespace {oid}"),
        }
    }
}

/// As a key in a document: a tablespace is its OID.
impl From<Part> for String {
    fn from(part: Part) -> Self {
        match part {
            Part::Wal => WAL.to_owned(),
            Part::Tablespace(oid) => oid.to_string(),
        }
    }
}

impl TryFrom<String> for Part {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            WAL => Ok(Self::Wal),
            oid => oid
                .parse()
                .map(Self::Tablespace)
                .map_err(|_| format!("'{text}' is neither {WAL} nor the OID of a tablespace")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &str) -> Vec<Vec<u8>> {
        path.split('/').map(|name| name.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_part_is_the_wal_or_a_tablespace() {
        for (path, expected) in [
            ("pg_wal", Some(Part::Wal)),
            ("pg_wal/summaries/x", Some(Part::Wal)),
            ("pg_tblspc/16384", Some(Part::Tablespace(16384))),
            ("pg_tblspc/16384/PG_18", Some(Part::Tablespace(16384))),
            ("pg_tblspc", None),
            ("pg_tblspc/x", None),
            ("base/pg_wal", None),
            ("base/16384", None),
        ] {
            assert_eq!(Part::of(&names(path)), expected, "{path}");
        }
        assert_eq!(Part::of_child(&[], b"pg_wal"), Some(Part::Wal));
        assert_eq!(Part::of_child(&names("pg_wal"), b"summaries"), None);
        assert_eq!(
            Part::of_child(&names("pg_tblspc"), b"16384"),
            Some(Part::Tablespace(16384))
        );
        assert_eq!(Part::of_child(&names("pg_tblspc/16384"), b"PG_18"), None);
    }

    #[test]
    fn a_part_is_a_key() {
        for (part, text) in [(Part::Wal, "\"pg_wal\""), (Part::Tablespace(7), "\"7\"")] {
            assert_eq!(serde_json::to_string(&part).unwrap(), text);
            assert_eq!(serde_json::from_str::<Part>(text).unwrap(), part);
        }
        assert!(serde_json::from_str::<Part>("\"base\"").is_err());
    }
}
