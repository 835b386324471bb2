//! The names in Barman's directories.

use std::fmt;
use std::str::FromStr;

use barmanfs_pg::wal_name::WalName;

/// The name of a backup: the time of its beginning in the time zone of Barman's host, `20261128T155501`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

/// A text that is not the name of a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is no name of a backup like 20261128T155501", super::shown(.0))]
pub struct BadBackupId(String);

impl BackupId {
    /// As Barman writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BackupId {
    type Err = BadBackupId;

    fn from_str(text: &str) -> Result<Self, BadBackupId> {
        let is_id = text.len() == 15
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 => byte == b'T',
                _ => byte.is_ascii_digit(),
            });
        match is_id {
            true => Ok(Self(text.to_owned())),
            false => Err(BadBackupId(text.to_owned())),
        }
    }
}

/// A file in `meta/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MetaName {
    /// Of which backup.
    pub id: BackupId,
    /// What is in it.
    pub kind: MetaKind,
}

/// What a file in `meta/` has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MetaKind {
    /// The description of the backup.
    Info,
    /// The backup is kept; the content is [`KeepMark`].
    Keep,
    /// The backup is being deleted.
    Deleted,
    /// PostgreSQL's manifest, of a backup that is in a cloud.
    Manifest,
}

impl MetaName {
    /// Reads a name; `None` for any other.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (id, rest) = name.split_once('-')?;
        let kind = match rest {
            "backup.info" => MetaKind::Info,
            "keep" => MetaKind::Keep,
            "delete_this" => MetaKind::Deleted,
            "backup_manifest" => MetaKind::Manifest,
            _ => return None,
        };
        Some(Self {
            id: id.parse().ok()?,
            kind,
        })
    }
}

/// What is kept of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepMark {
    /// The backup, and all WAL from its start on.
    Full,
    /// The backup, and the WAL from its start to its end.
    Standalone,
}

impl KeepMark {
    /// Reads the content of a keep mark; `None` for any other text.
    #[must_use]
    pub fn parse(content: &[u8]) -> Option<Self> {
        match content.trim_ascii() {
            b"full" => Some(Self::Full),
            b"standalone" => Some(Self::Standalone),
            _ => None,
        }
    }
}

/// How a file is compressed, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `.gz`
    Gzip,
    /// `.bz2`
    Bzip2,
    /// `.xz`
    Xz,
    /// `.zst`
    Zstd,
    /// `.lz4`
    Lz4,
    /// `.snappy`
    Snappy,
}

const ENDINGS: &[(&str, Form)] = &[
    (".gz", Form::Gzip),
    (".bz2", Form::Bzip2),
    (".xz", Form::Xz),
    (".zst", Form::Zstd),
    (".lz4", Form::Lz4),
    (".snappy", Form::Snappy),
];

/// The name without the ending of a compressed file, and the form that the ending stands for.
fn without_form(name: &str) -> (&str, Option<Form>) {
    let found = ENDINGS
        .iter()
        .find_map(|(ending, form)| Some((name.strip_suffix(ending)?, Some(*form))));
    found.unwrap_or((name, None))
}

/// An archive of tar with a part of a backup: `base.tar.gz`, `16384.tar.zst.gpg`; in a cloud's layout `data_0001.tar`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarName {
    /// What is in it: the data directory, or the tablespace with this OID.
    pub tablespace: Option<u32>,
    /// Which part of it, from 0.
    pub part: u32,
    /// How the archive is compressed.
    pub form: Option<Form>,
    /// Whether it is encrypted with gpg.
    pub is_encrypted: bool,
}

impl TarName {
    /// Reads a name; `None` for any other.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (rest, is_encrypted) = match name.strip_suffix(".gpg") {
            Some(rest) => (rest, true),
            None => (name, false),
        };
        let (rest, form) = without_form(rest);
        let stem = rest.strip_suffix(".tar")?;
        let (subject, part) = match stem.rsplit_once('_') {
            Some((subject, digits)) => (subject, part_number(digits)?),
            None => (stem, 0),
        };
        let tablespace = match subject {
            "base" | "data" => None,
            oid => Some(oid_of(oid)?),
        };
        Some(Self {
            tablespace,
            part,
            form,
            is_encrypted,
        })
    }
}

/// The number of a part, which has at least four digits.
fn part_number(digits: &str) -> Option<u32> {
    let is_number = digits.len() >= 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number
        .then(|| digits.parse().ok())
        .flatten()
        .filter(|part| *part > 0)
}

/// A directory's name that is an OID.
#[must_use]
pub fn oid_of(name: &str) -> Option<u32> {
    let is_number = !name.starts_with('0') && name.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| name.parse().ok()).flatten()
}

/// A WAL file's name. In a cloud's layout it has the ending of its compression, which the content shows anyway.
#[must_use]
pub fn wal_name(name: &str) -> Option<WalName> {
    without_form(name).0.parse().ok()
}

/// The name of an exported backup: `backup-export-main-20261128T155501-20261129T080000-0123abcd.tar.gz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportName {
    /// The server.
    pub server: String,
    /// The backup.
    pub id: BackupId,
    /// The first eight hexadecimal digits of the file's SHA-256.
    pub sha256_begins: String,
}

impl ExportName {
    /// Reads a name; `None` for any other.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let stem = without_form(name).0.strip_suffix(".tar")?;
        let rest = stem.strip_prefix("backup-export-")?;
        let (rest, hash) = rest.rsplit_once('-')?;
        let (rest, stamp) = rest.rsplit_once('-')?;
        let (server, id) = rest.rsplit_once('-')?;
        // The time of the export has the form of an id.
        stamp.parse::<BackupId>().ok()?;
        let is_hash = hash.len() == 8 && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_hash.then_some(Self {
            server: server.to_owned(),
            id: id.parse().ok()?,
            sha256_begins: hash.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_and_meta_files_are_told_from_other_names() {
        assert_eq!(
            MetaName::parse("20261128T155501-backup.info").map(|name| name.kind),
            Some(MetaKind::Info)
        );
        assert_eq!(
            MetaName::parse("20261128T155501-keep").map(|name| name.id.to_string()),
            Some("20261128T155501".to_owned())
        );
        for other in [
            "20261128T155501-backup.info.tmp",
            "20261128T15550-keep",
            "20261128 155501-keep",
            "../61128T155501-keep",
            "backup.info",
            "",
        ] {
            assert_eq!(MetaName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn keep_marks_are_one_of_two_words() {
        assert_eq!(KeepMark::parse(b"full"), Some(KeepMark::Full));
        assert_eq!(KeepMark::parse(b"standalone\n"), Some(KeepMark::Standalone));
        for other in [&b""[..], b"Full", b"nokeep", b"full standalone"] {
            assert_eq!(KeepMark::parse(other), None);
        }
    }

    #[test]
    fn archives_are_told_by_their_names() {
        let read = |name: &str| {
            TarName::parse(name).map(|tar| (tar.tablespace, tar.part, tar.form, tar.is_encrypted))
        };
        assert_eq!(read("base.tar"), Some((None, 0, None, false)));
        assert_eq!(read("base.tar.gz"), Some((None, 0, Some(Form::Gzip), false)));
        assert_eq!(
            read("16384.tar.zst.gpg"),
            Some((Some(16384), 0, Some(Form::Zstd), true))
        );
        assert_eq!(
            read("data_0012.tar.snappy"),
            Some((None, 12, Some(Form::Snappy), false))
        );
        assert_eq!(
            read("16384_0001.tar.lz4"),
            Some((Some(16384), 1, Some(Form::Lz4), false))
        );
        for other in [
            "base",
            "base.tar.7z",
            ".tar",
            "pg_wal.tar",
            "data_1.tar",
            "data_0000.tar",
            "016384.tar",
            "99999999999.tar",
            "base.tar.gpg.gz",
            "backup_manifest",
            "-1.tar",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn wal_files_may_have_the_ending_of_their_compression() {
        for name in [
            "000000010000000000000006",
            "000000010000000000000006.xz",
            "00000002.history.gz",
        ] {
            assert!(wal_name(name).is_some(), "{name}");
        }
        assert!(wal_name("000000010000000000000006.xz.tmp").is_none());
    }

    #[test]
    fn exported_backups_are_named_by_server_backup_and_hash() {
        let name = "backup-export-my-main-20261128T155501-20261129T080000-0123abcd.tar.gz";
        let export = ExportName::parse(name).unwrap();
        assert_eq!(
            (export.server.as_str(), export.id.as_str()),
            ("my-main", "20261128T155501")
        );
        assert_eq!(export.sha256_begins, "0123abcd");
        for other in [
            "backup-export-main-20261128T155501-20261129T080000-0123abcg.tar",
            "backup-export-main-20261128T155501-0123abcd.tar",
            "backup-export-main-20261128T155501-20261129T080000-0123abcd.zip",
        ] {
            assert_eq!(ExportName::parse(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_read_or_not(name in "[a-z0-9_.T/-]{0,40}") {
            let _ = (MetaName::parse(&name), TarName::parse(&name), ExportName::parse(&name), wal_name(&name));
        }
    }
}
