//! The names of backups.

use std::fmt;
use std::str::FromStr;

use barmanfs_pg::TimestampMicros;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

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

    /// The id a second later, for a backup that begins no later than this one's.
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
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        DateTime::strptime(FORMAT, text)
            .ok()
            .and_then(|time| time.to_zoned(TimeZone::UTC).ok())
            .map(|time| Self(time.timestamp()))
            .filter(|id| id.to_string() == text)
            .ok_or_else(|| Error::InvalidBackupId(text.to_owned()))
    }
}

impl Serialize for BackupId {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// What a user may write where a backup is asked for: an id, or one of Barman's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupSelector {
    /// This one.
    Id(BackupId),
    /// The newest complete one of the server, not of a clone: `latest`, `last`.
    Latest,
    /// The newest complete one of which the server sent all files: `latest-full`, `last-full`.
    LatestFull,
    /// The oldest complete one of the server: `oldest`, `first`.
    Oldest,
    /// The newest of the server that failed: `last-failed`, `latest-failed`.
    LatestFailed,
}

impl FromStr for BackupSelector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "latest" | "last" => Ok(Self::Latest),
            "latest-full" | "last-full" => Ok(Self::LatestFull),
            "oldest" | "first" => Ok(Self::Oldest),
            "latest-failed" | "last-failed" => Ok(Self::LatestFailed),
            id => id.parse().map(Self::Id),
        }
    }
}

impl fmt::Display for BackupSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Latest => f.pad("latest"),
            Self::LatestFull => f.pad("latest-full"),
            Self::Oldest => f.pad("oldest"),
            Self::LatestFailed => f.pad("last-failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn barmans_words_are_known() {
        assert_eq!("last".parse::<BackupSelector>().unwrap(), BackupSelector::Latest);
        assert_eq!("first".parse::<BackupSelector>().unwrap(), BackupSelector::Oldest);
        assert_eq!(
            "last-failed".parse::<BackupSelector>().unwrap(),
            BackupSelector::LatestFailed
        );
        assert!("Latest".parse::<BackupSelector>().is_err());
    }
}
