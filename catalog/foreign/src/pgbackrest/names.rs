//! The names in a repository.

use std::fmt;
use std::str::FromStr;

use barmanfs_pg::ServerVersion;
use barmanfs_pg::wal_name::WalName;

use super::Sha1Sum;

use crate::name::InvalidName;

fn invalid(what: &'static str, text: &str) -> InvalidName {
    InvalidName::new("pgBackRest", what, text)
}

/// What a backup builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupKind {
    /// Nothing.
    Full,
    /// The full backup.
    Differential,
    /// The backup before it.
    Incremental,
}

/// The name of a backup: `20261130-031850F`, `20261130-031850F_20261130-031853D`. Never a path: digits and four other characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

impl Label {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it builds on.
    #[must_use]
    pub fn kind(&self) -> BackupKind {
        match self.0.as_bytes().last() {
            Some(b'D') => BackupKind::Differential,
            Some(b'I') => BackupKind::Incremental,
            _ => BackupKind::Full,
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Label {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let is_moment = |part: &str, kinds: &[u8]| {
            let (digits, kind) = part.split_at_checked(15).unwrap_or_default();
            let is_digit = |(at, byte): (usize, &u8)| match at {
                8 => *byte == b'-',
                _ => byte.is_ascii_digit(),
            };
            digits.len() == 15
                && digits.as_bytes().iter().enumerate().all(is_digit)
                && kind.len() == 1
                && kind.bytes().all(|kind| kinds.contains(&kind))
        };
        let (full, rest) = text
            .split_once('_')
            .map_or((text, None), |(full, rest)| (full, Some(rest)));
        match is_moment(full, b"F") && rest.is_none_or(|rest| is_moment(rest, b"DI")) {
            true => Ok(Self(text.to_owned())),
            false => Err(invalid("backup", text)),
        }
    }
}

/// A form of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// gzip; zlib where a piece is raw.
    Gz,
    /// bzip2.
    Bz2,
    /// lz4, in frames.
    Lz4,
    /// zstd.
    Zst,
}

impl Compression {
    const ALL: [(&'static str, Self); 5] = [
        ("none", Self::None),
        ("gz", Self::Gz),
        ("bz2", Self::Bz2),
        ("lz4", Self::Lz4),
        ("zst", Self::Zst),
    ];

    /// What comes behind the name of a file, with its dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gz => ".gz",
            Self::Bz2 => ".bz2",
            Self::Lz4 => ".lz4",
            Self::Zst => ".zst",
        }
    }
}

impl FromStr for Compression {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == text);
        found
            .map(|(_, form)| form)
            .ok_or_else(|| invalid("compression", text))
    }
}

/// A file in the archive of WAL, by its name there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchivedFile {
    /// The name that PostgreSQL gave it.
    pub name: WalName,
    /// SHA-1 of its content. Segments and partial segments have it, small files do not.
    pub checksum: Option<Sha1Sum>,
    /// How it is compressed; small files never are.
    pub compression: Compression,
}

impl FromStr for ArchivedFile {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || invalid("file in the archive", text);
        let Some((name, rest)) = text.split_once('-') else {
            let name = text.parse().map_err(|_| invalid())?;
            return match name {
                WalName::Segment(_) | WalName::Partial(_) => Err(invalid()),
                WalName::History(_) | WalName::BackupHistory { .. } => Ok(Self {
                    name,
                    checksum: None,
                    compression: Compression::None,
                }),
            };
        };
        let name = name.parse().map_err(|_| invalid())?;
        let (digits, compression) = match rest.split_once('.') {
            None => (rest, Compression::None),
            Some((_, "none")) => return Err(invalid()),
            Some((digits, form)) => (digits, form.parse().map_err(|_| invalid())?),
        };
        let checksum = super::sha1_sum(digits);
        match name {
            WalName::Segment(_) | WalName::Partial(_) if checksum.is_some() => Ok(Self {
                name,
                checksum,
                compression,
            }),
            _ => Err(invalid()),
        }
    }
}

/// The version in "18" or "9.6", without what comes behind the major one.
#[must_use]
pub fn server_version(text: &str) -> Option<ServerVersion> {
    let number = |part: &str| part.parse::<u32>().ok().filter(|number| *number < 1000);
    match text.split_once('.') {
        None => number(text)
            .filter(|major| *major >= 10)
            .map(|major| ServerVersion(major * 10_000)),
        Some((major, minor)) => {
            let (major, minor) = (number(major)?, number(minor)?);
            (major < 10 && minor < 100).then_some(ServerVersion(major * 10_000 + minor * 100))
        }
    }
}

/// The version and the number of the database that a directory in the archive is of: `18-1`.
#[must_use]
pub fn archive_directory_version(name: &str) -> Option<(ServerVersion, u32)> {
    let (version, id) = name.split_once('-')?;
    Some((server_version(version)?, id.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_labels_are_labels() {
        for (good, kind) in [
            ("20261130-031850F", BackupKind::Full),
            ("20261130-031850F_20261130-031853D", BackupKind::Differential),
            ("20261130-031850F_20261130-031853I", BackupKind::Incremental),
        ] {
            assert_eq!(good.parse::<Label>().unwrap().kind(), kind);
        }
        for bad in [
            "",
            "..",
            "20261130-031850",
            "20261130-031850D",
            "20261130-031850F_",
            "20261130-031850F_20261130-031853F",
            "20261130-031850F/../x",
            "2026113é-03185F",
            "20261130_031850F",
        ] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
        let mut order = [
            "20261130-031850F_20261130-031853D",
            "20261201-000000F",
            "20261130-031850F",
        ];
        order.sort_by_key(|text| text.parse::<Label>().unwrap());
        assert_eq!(
            order[0], "20261130-031850F",
            "a full backup is before those that build on it"
        );
        assert_eq!(order[2], "20261201-000000F");
    }

    #[test]
    fn archived_files_are_told_by_their_names() {
        let sum = "d301037d1ea120d3c2033d56d9588dec48181947";
        for (ending, compression) in [
            ("", Compression::None),
            (".gz", Compression::Gz),
            (".zst", Compression::Zst),
        ] {
            let file: ArchivedFile = format!("000000010000000000000001-{sum}{ending}").parse().unwrap();
            assert_eq!(file.compression, compression);
            assert_eq!(file.checksum.unwrap()[..2], [0xd3, 0x01]);
        }
        assert!(
            format!("000000010000000000000001.partial-{sum}.lz4")
                .parse::<ArchivedFile>()
                .is_ok()
        );
        for small in ["00000002.history", "000000010000000000000009.00000028.backup"] {
            assert_eq!(small.parse::<ArchivedFile>().unwrap().name.to_string(), small);
        }
        for bad in [
            "000000010000000000000001",
            "000000010000000000000001-d301",
            "x",
            "00000002.history-",
            "..",
        ] {
            assert!(bad.parse::<ArchivedFile>().is_err(), "{bad}");
        }
        assert!(format!("00000002.history-{sum}").parse::<ArchivedFile>().is_err());
        assert!(
            format!("000000010000000000000001-{sum}.none")
                .parse::<ArchivedFile>()
                .is_err()
        );
    }

    #[test]
    fn versions_are_those_of_postgresql() {
        assert_eq!(
            archive_directory_version("18-1"),
            Some((ServerVersion(180_000), 1))
        );
        assert_eq!(
            archive_directory_version("9.6-12"),
            Some((ServerVersion(90_600), 12))
        );
        for bad in ["18", "18-", "-1", "9-1", "18.1-1", "4294967295-1", "9.999-1"] {
            assert_eq!(archive_directory_version(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(text in ".{0,60}") {
            let _ = (text.parse::<Label>(), text.parse::<ArchivedFile>(), archive_directory_version(&text));
        }
    }
}
