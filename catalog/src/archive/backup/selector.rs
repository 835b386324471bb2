//! How a user names a backup.

use std::fmt;
use std::str::FromStr;

use crate::names::{BackupId, InvalidName};

/// The ways to select a backup: an id, or one of Barman's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupSelector {
    /// This one.
    Id(BackupId),
    /// The newest complete backup of the server, not of a clone: `latest`, `last`.
    Latest,
    /// The newest complete backup for which the server sent all files: `latest-full`,
    /// `last-full`.
    LatestFull,
    /// The oldest complete backup of the server: `oldest`, `first`.
    Oldest,
    /// The newest failed backup of the server: `last-failed`, `latest-failed`.
    LatestFailed,
}

impl FromStr for BackupSelector {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
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
