//! Servers: the names backups and WAL are kept under.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A server's name, as in the configuration. It becomes a directory of the mount and part of lock file names, so it is
/// one plain path component and never stands for something else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerName(String);

impl ServerName {
    /// A name at most: leaves room for what lock files add to it within the 255 bytes of a file name.
    pub const MAX_BYTES: usize = 128;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Stands for the WAL of a history of the server that was left. It is no name anybody could give a server.
    pub(crate) fn of_left_history(server: &Self, record: barmanfs_store::RecordId) -> Self {
        Self(format!("{server}/{record}"))
    }

    /// A name as it stands in the tables of WAL.
    pub(crate) fn of_archive(name: String) -> Self {
        Self(name)
    }
}

impl FromStr for ServerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.');
        let valid = (1..=Self::MAX_BYTES).contains(&text.len())
            && text.bytes().all(allowed)
            && !text.starts_with('.')
            && text != "all";
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::InvalidServerName(text.to_owned()))
        }
    }
}

impl TryFrom<String> for ServerName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ServerName> for String {
    fn from(name: ServerName) -> Self {
        name.0
    }
}

impl AsRef<str> for ServerName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_taken() {
        for good in ["main", "pg-15_a.b", "0"] {
            assert_eq!(good.parse::<ServerName>().unwrap().as_str(), good);
        }
        let long = "a".repeat(ServerName::MAX_BYTES + 1);
        for bad in ["", "all", ".hidden", "..", "a/b", "a b", "ä", long.as_str()] {
            assert!(bad.parse::<ServerName>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<ServerName>("\"../x\"").is_err());
    }
}
