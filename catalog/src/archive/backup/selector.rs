//! How a user names a backup.

use std::fmt;
use std::str::FromStr;

use crate::names::{BackupId, BackupName, InvalidName};

/// The ways to select a backup: an id, one of Barman's words, or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupSelector {
    /// This one.
    Id(BackupId),
    /// The newest complete backup of the server, not of a clone: `latest`, `last`. `latest-full` and `last-full` are the
    /// same: they mean a backup that depends on no other one, as every backup here.
    Latest,
    /// The oldest complete backup of the server: `oldest`, `first`.
    Oldest,
    /// The newest failed backup of the server: `last-failed`, `latest-failed`.
    LatestFailed,
    /// The newest one that was given this name.
    Named(BackupName),
}

impl FromStr for BackupSelector {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text {
            "latest" | "last" | "latest-full" | "last-full" => Ok(Self::Latest),
            "oldest" | "first" => Ok(Self::Oldest),
            "latest-failed" | "last-failed" => Ok(Self::LatestFailed),
            other => match other.parse() {
                Ok(id) => Ok(Self::Id(id)),
                Err(error) => other.parse().map(Self::Named).map_err(|_| error),
            },
        }
    }
}

impl fmt::Display for BackupSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Latest => f.pad("latest"),
            Self::Oldest => f.pad("oldest"),
            Self::LatestFailed => f.pad("last-failed"),
            Self::Named(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barmans_words_are_known() {
        assert_eq!("last".parse::<BackupSelector>().unwrap(), BackupSelector::Latest);
        assert_eq!("first".parse::<BackupSelector>().unwrap(), BackupSelector::Oldest);
        assert_eq!(
            "last-failed".parse::<BackupSelector>().unwrap(),
            BackupSelector::LatestFailed
        );
        for word in ["", "a b", "auto", "wal", "20261399T000000"] {
            assert!(word.parse::<BackupSelector>().is_err(), "{word:?}");
        }
    }

    #[test]
    fn other_words_are_names() {
        for word in ["before_upgrade", "Latest", "v1.2-rc"] {
            let selector: BackupSelector = word.parse().unwrap();
            assert!(
                matches!(&selector, BackupSelector::Named(name) if name.as_str() == word),
                "{word}"
            );
        }
    }
}
