//! The names in a storage.

use std::fmt;
use std::str::FromStr;

use barmanfs_pg::TimelineId;
use barmanfs_pg::wal_name::{SegmentName, WalName};

use crate::name::InvalidName;

fn invalid(what: &'static str, text: &str) -> InvalidName {
    InvalidName::new("WAL-G", what, text)
}

/// What comes behind the name of a backup, in the name of its sentinel.
const SENTINEL: &str = "_backup_stop_sentinel.json";

/// The name of a backup. Never a path: digits, letters and `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupName {
    text: String,
    segment: SegmentName,
}

impl BackupName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The timeline on which it was taken.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        self.segment.timeline
    }

    /// The name of its sentinel.
    #[must_use]
    pub fn sentinel(&self) -> String {
        format!("{self}{SENTINEL}")
    }
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for BackupName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let segments = text
            .strip_prefix("base_")
            .map(|rest| match rest.split_once("_D_") {
                Some((own, parent)) => (own.parse(), parent.parse::<SegmentName>().map(drop)),
                None => (rest.parse(), Ok(())),
            });
        match segments {
            Some((Ok(segment), Ok(()))) => Ok(Self {
                text: text.to_owned(),
                segment,
            }),
            _ => Err(invalid("backup", text)),
        }
    }
}

/// The backup whose sentinel has this name; `None` if it is no sentinel.
#[must_use]
pub fn sentinel_name(file: &str) -> Option<Result<BackupName, InvalidName>> {
    file.strip_suffix(SENTINEL).map(str::parse)
}

/// A form of compression, by the last part of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// lz4, in frames.
    Lz4,
    /// lzma as it was before xz.
    Lzma,
    /// zstd.
    Zstd,
    /// brotli.
    Brotli,
    /// gzip.
    Gzip,
    /// lzo, which early releases wrote.
    Lzo,
}

impl Compression {
    const ALL: [(&'static str, Self); 6] = [
        ("lz4", Self::Lz4),
        ("lzma", Self::Lzma),
        ("zst", Self::Zstd),
        ("br", Self::Brotli),
        ("gz", Self::Gzip),
        ("lzo", Self::Lzo),
    ];

    fn of(extension: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == extension);
        found.map(|(_, form)| *form)
    }
}

/// What an archive of a backup is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ArchiveRole {
    /// Files of the data directory.
    Part,
    /// The control file.
    Control,
    /// The label and the map of tablespaces that ended the backup.
    Label,
}

/// The name of an archive in `tar_partitions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveName {
    /// What it is for.
    pub role: ArchiveRole,
    /// How it is compressed.
    pub compression: Compression,
}

impl FromStr for ArchiveName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let parts = || {
            let (stem, rest) = text.split_once(".tar")?;
            let compression = match rest {
                "" => Compression::None,
                rest => Compression::of(rest.strip_prefix('.')?)?,
            };
            let role = match stem {
                "" => return None,
                _ if stem.ends_with("pg_control") => ArchiveRole::Control,
                _ if stem.ends_with("backup_label") => ArchiveRole::Label,
                _ => ArchiveRole::Part,
            };
            Some(Self { role, compression })
        };
        parts().ok_or_else(|| invalid("tar archive", text))
    }
}

/// The name of a file in `wal_005`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalFile {
    /// A WAL file.
    Archived {
        /// Its name in PostgreSQL.
        name: WalName,
        /// How it is compressed.
        compression: Compression,
    },
    /// Something that WAL-G keeps beside them: which blocks changed in sixteen segments, when a segment was archived.
    Note,
}

impl FromStr for WalFile {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (stem, compression) = match text.rsplit_once('.') {
            Some((stem, extension)) => match Compression::of(extension) {
                Some(form) => (stem, form),
                None => (text, Compression::None),
            },
            None => (text, Compression::None),
        };
        let note = stem.strip_suffix("_delta").or_else(|| stem.strip_suffix(".json"));
        match (stem.parse(), note) {
            (Ok(name), _) => Ok(Self::Archived { name, compression }),
            (Err(_), Some(of)) if of.get(..24).is_some_and(|of| of.parse::<SegmentName>().is_ok()) => {
                Ok(Self::Note)
            }
            _ => Err(invalid("WAL file", text)),
        }
    }
}

/// Whether WAL-G is still writing a file with this name, or was interrupted.
#[must_use]
pub fn is_temporary(file: &str) -> bool {
    file.rsplit_once(".tmp.").is_some_and(|(_, tag)| {
        let is_tag = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        tag.len() >= 16 && tag.bytes().all(is_tag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn backups_are_named_for_segments() {
        let full: BackupName = "base_00000002000000010000000A".parse().unwrap();
        assert_eq!(full.timeline(), TimelineId(2));
        let delta = "base_000000010000000000000006_D_000000010000000000000002";
        let delta: BackupName = delta.parse().unwrap();
        assert_eq!(
            sentinel_name(&delta.sentinel()),
            Some(Ok(delta.clone())),
            "{delta}"
        );
        assert_eq!(sentinel_name("base_00000002000000010000000A"), None);
        for bad in [
            "",
            "base_",
            "base_000000010000000000000006_00000040",
            "base_000000010000000000000006_D_",
            "base_000000010000000000000006/..",
            "base_00000001000000000000000a",
        ] {
            assert!(bad.parse::<BackupName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn archives_show_their_role_and_their_compression() {
        for (name, role, compression) in [
            ("part_001.tar.lz4", ArchiveRole::Part, Compression::Lz4),
            ("copy_12.tar.zst", ArchiveRole::Part, Compression::Zstd),
            ("pg_control.tar.br", ArchiveRole::Control, Compression::Brotli),
            ("backup_label.tar", ArchiveRole::Label, Compression::None),
        ] {
            assert_eq!(name.parse(), Ok(ArchiveName { role, compression }), "{name}");
        }
        for bad in [
            "part_001",
            "part_001.tar.exe",
            ".tar",
            "part_001.tarx",
            "files.json",
        ] {
            assert!(bad.parse::<ArchiveName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn wal_files_and_what_lies_beside_them_are_told_apart() {
        let segment = "000000010000000000000010";
        for (file, name, compression) in [
            (format!("{segment}.lz4"), segment.to_owned(), Compression::Lz4),
            (segment.to_owned(), segment.to_owned(), Compression::None),
            (
                format!("{segment}.partial.zst"),
                format!("{segment}.partial"),
                Compression::Zstd,
            ),
            (
                format!("{segment}.00000028.backup.lzma"),
                format!("{segment}.00000028.backup"),
                Compression::Lzma,
            ),
            (
                "00000002.history.gz".to_owned(),
                "00000002.history".to_owned(),
                Compression::Gzip,
            ),
        ] {
            let name = name.parse().unwrap();
            assert_eq!(
                file.parse(),
                Ok(WalFile::Archived { name, compression }),
                "{file}"
            );
        }
        for note in ["_delta.lz4", ".json", "_delta"] {
            assert_eq!(format!("{segment}{note}").parse(), Ok(WalFile::Note), "{note}");
        }
        for bad in [
            "x.lz4",
            "_delta",
            "é00000000000000000000000_delta",
            "..",
            &format!("{segment}.rar"),
        ] {
            assert!(bad.parse::<WalFile>().is_err(), "{bad}");
        }
        assert!(is_temporary(&format!(
            "{segment}.lz4.tmp.20260428T113012Z-9f2c6a4b9f2c6a4b"
        )));
        assert!(!is_temporary(&format!("{segment}.lz4")));
    }

    proptest! {
        #[test]
        fn no_name_makes_a_parser_panic(name in "\\PC{0,60}") {
            let _ = (name.parse::<BackupName>(), name.parse::<ArchiveName>(), name.parse::<WalFile>());
            let _ = (sentinel_name(&name), is_temporary(&name));
        }
    }
}
