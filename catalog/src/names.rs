//! Names of servers, backups and clones. Each is one plain path component, in the mount and in names of lock files.

use std::fmt;
use std::str::FromStr;

use barmanfs_pg::TimestampMicros;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a server's name.
    #[error(
        "Invalid server name {0:?}: letters, digits, '_', '-' and '.' are allowed, not a '.' in front, and not \"all\""
    )]
    Server(String),
    /// Not a backup's id.
    #[error(
        "Invalid backup {0:?}: expected an id like 20261120T101500, one of latest, oldest, last-failed, or a backup's name"
    )]
    Backup(String),
    /// Not a name for a backup.
    #[error(
        "Backup name {0:?} is not allowed: letters, digits, '_', '-' and '.' are, at most 64, not a '.' in front, no id of a \
         backup and no word with a meaning like latest"
    )]
    BackupName(String),
    /// Not a clone's name.
    #[error("Invalid clone name {0:?}: letters, digits, '_', '-' and '.' are allowed, not a '.' in front")]
    Clone(String),
}

/// Whether a text is one plain path component that is not hidden.
fn is_plain(text: &str, max_bytes: usize) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.');
    (1..=max_bytes).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('.')
}

/// A server's name, as in the configuration. It becomes a directory of the mount and part of lock file names, so it
/// must be one plain path component without a special meaning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerName(String);

impl ServerName {
    /// Longest name: leaves room for what lock files add to it within the 255 bytes of a file name.
    pub const MAX_BYTES: usize = 128;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key in the WAL tables for an abandoned history of the server. It contains a '/', so no server can have this
    /// name.
    pub fn of_left_history(server: &Self, record: barmanfs_store::RecordId) -> Self {
        Self(format!("{server}/{record}"))
    }

    /// A name as it is in the WAL tables: a server's, or the key of an abandoned history.
    pub(crate) fn of_archive(name: String) -> Self {
        Self(name)
    }
}

impl FromStr for ServerName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match is_plain(text, Self::MAX_BYTES) && text != "all" {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidName::Server(text.to_owned())),
        }
    }
}

impl TryFrom<String> for ServerName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
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

/// The name that a user gave a backup: a label that can be used in the place of an id. Several backups may have one
/// name; the newest counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupName(String);

impl BackupName {
    /// Longest name.
    pub const MAX_BYTES: usize = 64;
    /// Words with a meaning of their own in the place of a backup.
    const RESERVED: &[&str] = &[
        "latest",
        "last",
        "latest-full",
        "last-full",
        "oldest",
        "first",
        "latest-failed",
        "last-failed",
        "auto",
        "all",
        "wal",
    ];

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BackupName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let looks_like_id = text.len() == 15
            && text.char_indices().all(|(place, c)| match place {
                8 => c == 'T',
                _ => c.is_ascii_digit(),
            });
        let allowed = is_plain(text, Self::MAX_BYTES) && !Self::RESERVED.contains(&text) && !looks_like_id;
        match allowed {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidName::BackupName(text.to_owned())),
        }
    }
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How an id is written, in UTC.
const FORMAT: &str = "%Y%m%dT%H%M%S";

/// A backup's id, `20261120T101500`: the second in which it began, in UTC. Ids sort as the backups began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(Timestamp);

impl BackupId {
    /// The id of a backup that begins at this time.
    pub fn at(time: TimestampMicros) -> Self {
        let seconds = time.unix_micros().div_euclid(1_000_000);
        Self(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    /// The id one second later, for a backup that begins no later than the one with this id.
    pub(crate) fn next(self) -> Self {
        Self(Timestamp::from_second(self.0.as_second() + 1).unwrap_or(self.0))
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.strftime(FORMAT).to_string())
    }
}

impl fmt::Debug for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackupId({self})")
    }
}

impl FromStr for BackupId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        DateTime::strptime(FORMAT, text)
            .ok()
            .and_then(|time| time.to_zoned(TimeZone::UTC).ok())
            .map(|time| Self(time.timestamp()))
            .filter(|id| id.to_string() == text)
            .ok_or_else(|| InvalidName::Backup(text.to_owned()))
    }
}

impl Serialize for BackupId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A clone's name: one plain path component. When a clone is created, `@` separates its name from a point in time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CloneName(String);

impl CloneName {
    /// Longest name, as for a server.
    pub const MAX_BYTES: usize = 128;

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CloneName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match is_plain(text, Self::MAX_BYTES) {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidName::Clone(text.to_owned())),
        }
    }
}

impl TryFrom<String> for CloneName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<CloneName> for String {
    fn from(name: CloneName) -> Self {
        name.0
    }
}

impl fmt::Display for CloneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
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

    #[test]
    fn an_id_is_its_second_in_utc() {
        let time = TimestampMicros::from_unix_micros(1_795_183_387_999_999);
        let id = BackupId::at(time);
        assert_eq!(id.to_string(), "20261120T140307");
        assert_eq!("20261120T140307".parse::<BackupId>().unwrap(), id);
        assert_eq!(id.next().to_string(), "20261120T140308");
        assert!(id < id.next());
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"20261120T140307\"");
    }

    #[test]
    fn other_texts_are_no_ids() {
        for bad in [
            "",
            "20261120",
            "20261320T000000",
            "20261120T140307Z",
            "2026112T0140307",
            "../x",
            " 20261120T140307",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad:?}");
        }
    }
}
