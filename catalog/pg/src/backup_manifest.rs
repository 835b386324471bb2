//! `backup_manifest`: the files of a base backup, with sizes and checksums.
//!
//! A manifest of a large cluster has millions of lines, so it is read and written as a stream.
//! Source: `src/backend/backup/backup_manifest.c`, `src/common/parse_manifest.c`.

mod read;
mod write;

pub use read::{ManifestError, read};
pub use write::ManifestWriter;

use crate::{Lsn, SystemId, TimelineId};

/// A file of a backup, as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Its path relative to the data directory. Usually UTF-8, but it need not be.
    pub path: Vec<u8>,
    /// Its length.
    pub size_bytes: u64,
    /// When it was last changed, as the server writes it: `2026-11-21 00:25:17 GMT`. Empty if the
    /// manifest has no time.
    pub modified: String,
    /// Its checksum, where the backup was made with checksums.
    pub checksum: Option<Checksum>,
}

/// A file's checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// CRC-32C, which can be combined from the checksums of the file's parts.
    Crc32c(u32),
    /// Any other, as the manifest gives it.
    Other {
        /// Its name: "SHA256".
        algorithm: String,
        /// Its value, hexadecimal.
        hex: String,
    },
}

impl Checksum {
    const CRC32C: &str = "CRC32C";

    /// From the manifest's words. PostgreSQL prints a CRC's bytes in memory order, so that
    /// 0x2247748a reads `8a744722`.
    fn from_words(algorithm: String, hex: String) -> Option<Self> {
        if algorithm != Self::CRC32C {
            return crate::hex::decode(&hex).map(|_| Self::Other { algorithm, hex });
        }
        let bytes: [u8; 4] = crate::hex::decode(&hex)?.try_into().ok()?;
        Some(Self::Crc32c(u32::from_le_bytes(bytes)))
    }

    /// The manifest's words: algorithm and value.
    fn words(&self) -> (&str, String) {
        match self {
            Self::Crc32c(crc) => (Self::CRC32C, crate::hex::encode(&crc.to_le_bytes())),
            Self::Other { algorithm, hex } => (algorithm, hex.clone()),
        }
    }
}

/// A range of WAL that a backup needs to become consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline it is on.
    pub timeline: TimelineId,
    /// Its first position.
    pub start_lsn: Lsn,
    /// The position after its end.
    pub end_lsn: Lsn,
}

/// The content of a manifest apart from its list of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestSummary {
    /// 1 for PostgreSQL 13 to 16, 2 from 17 on.
    pub version: u32,
    /// The cluster's identity; version 1 does not have it.
    pub system_id: Option<SystemId>,
    /// The WAL the backup needs, newest timeline first.
    pub wal_ranges: Vec<WalRange>,
    /// Whether the manifest's own checksum is right.
    pub checksum_ok: bool,
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\
        \"System-Identifier\": 7710414268036822209,\n\"Files\": [\n\
        { \"Path\": \"backup_label\", \"Size\": 225, \"Last-Modified\": \"2026-11-21 00:25:17 GMT\", \
        \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"8a744722\" },\n\
        { \"Encoded-Path\": \"62e9\", \"Size\": 0, \"Last-Modified\": \"2026-11-21 00:25:17 GMT\" }\n],\n\
        \"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/900028\", \"End-LSN\": \"0/900100\" }\n],\n";

    fn sample() -> (Vec<ManifestFile>, Vec<WalRange>) {
        let modified = "2026-11-21 00:25:17 GMT".to_owned();
        let label = ManifestFile {
            path: b"backup_label".to_vec(),
            size_bytes: 225,
            modified: modified.clone(),
            checksum: Some(Checksum::Crc32c(0x2247_748a)),
        };
        let latin = ManifestFile {
            path: b"b\xe9".to_vec(),
            size_bytes: 0,
            modified,
            checksum: None,
        };
        let range = WalRange {
            timeline: TimelineId(1),
            start_lsn: Lsn(0x90_0028),
            end_lsn: Lsn(0x90_0100),
        };
        (vec![label, latin], vec![range])
    }

    fn write(system_id: Option<SystemId>, files: &[ManifestFile], ranges: &[WalRange]) -> Vec<u8> {
        let mut writer = ManifestWriter::begin(Vec::new(), system_id).unwrap();
        for file in files {
            writer.file(file).unwrap();
        }
        writer.finish(ranges).unwrap()
    }

    type Manifest = (ManifestSummary, Vec<ManifestFile>);

    fn read_all(bytes: &[u8]) -> Result<Manifest, ManifestError<Infallible>> {
        let mut files = Vec::new();
        let summary = read(bytes, &mut |file| {
            files.push(file);
            Ok(())
        })?;
        Ok((summary, files))
    }

    #[test]
    fn writes_what_postgresql_writes() {
        let (files, ranges) = sample();
        let manifest = write(Some(SystemId(7_710_414_268_036_822_209)), &files, &ranges);
        let text = String::from_utf8(manifest).unwrap();
        assert_eq!(&text[..HEAD.len()], HEAD);
        assert!(
            text[HEAD.len()..].starts_with("\"Manifest-Checksum\": \""),
            "{text}"
        );
        assert!(text.ends_with("\"}\n"), "{text}");
    }

    #[test]
    fn a_changed_byte_shows_in_the_checksum() {
        let (files, ranges) = sample();
        let manifest = write(None, &files, &ranges);
        assert!(read_all(&manifest).unwrap().0.checksum_ok);
        let changed = String::from_utf8(manifest.clone()).unwrap().replace("225", "226");
        assert!(!read_all(changed.as_bytes()).unwrap().0.checksum_ok);
        let without_end = manifest.strip_suffix(b"\n").unwrap();
        assert!(!read_all(without_end).unwrap().0.checksum_ok);
    }

    #[test]
    fn refuses_text_that_is_no_manifest() {
        let (files, ranges) = sample();
        let good = String::from_utf8(write(Some(SystemId(1)), &files, &ranges)).unwrap();
        for (from, to) in [
            (
                "\"PostgreSQL-Backup-Manifest-Version\": 2",
                "\"PostgreSQL-Backup-Manifest-Version\": 0",
            ),
            ("\"WAL-Ranges\"", "\"Signature\": \"x\",\n\"WAL-Ranges\""),
            ("{ \"PostgreSQL-Backup-Manifest-Version\": 2,", "{"),
            ("Last-Modified", "Last-Seen"),
            ("\"Size\": 225, ", ""),
            (
                "\"Path\": \"backup_label\"",
                "\"Path\": \"x\", \"Encoded-Path\": \"00\"",
            ),
            ("\"Path\": \"backup_label\", ", ""),
            ("8a744722", "8a7447"),
            ("0/900028", "900028"),
            ("\"Timeline\": 1", "\"Timeline\": -1"),
            ("\"WAL-Ranges\"", "\"Files\""),
            ("\"}\n", "\"} x\n"),
            ("\"}\n", ""),
            ("\"Encoded-Path\": \"62e9\"", "\"Encoded-Path\": \"62e\""),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert!(
                matches!(read_all(bad.as_bytes()), Err(ManifestError::Format(_))),
                "{to}"
            );
        }
    }

    /// The files can be checked, and the caller can report that something was skipped.
    #[test]
    fn additions_of_later_versions_are_ignored() {
        let (files, ranges) = sample();
        let manifest = String::from_utf8(write(Some(SystemId(1)), &files, &ranges)).unwrap();
        let later = manifest.replacen("Version\": 2", "Version\": 3", 1).replacen(
            "\"WAL-Ranges\"",
            "\"Signature\": [{ \"By\": 1 }],\n\"WAL-Ranges\"",
            1,
        );
        let (summary, read_files) = read_all(later.as_bytes()).unwrap();
        assert_eq!((summary.version, read_files), (3, files));
        assert!(!summary.is_of_known_version());
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let endless = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1, \"x{}",
            "x".repeat(1 << 20)
        );
        assert!(matches!(
            read_all(endless.as_bytes()),
            Err(ManifestError::Read(_))
        ));
    }

    #[test]
    fn the_callers_error_comes_back() {
        let (files, ranges) = sample();
        let manifest = write(None, &files, &ranges);
        let result = read(manifest.as_slice(), &mut |file| {
            if file.size_bytes == 0 { Err("full") } else { Ok(()) }
        });
        assert!(matches!(result, Err(ManifestError::Stopped("full"))));
    }

    fn checksum() -> impl Strategy<Value = Option<Checksum>> {
        prop_oneof![
            Just(None),
            any::<u32>().prop_map(|crc| Some(Checksum::Crc32c(crc))),
            "([0-9a-f]{2}){28}".prop_map(|hex| Some(Checksum::Other {
                algorithm: "SHA224".into(),
                hex
            })),
        ]
    }

    prop_compose! {
        fn file()(
            path in prop_oneof![prop::collection::vec(any::<u8>(), 1..30), "\\PC{1,30}".prop_map(String::into_bytes)],
            size_bytes: u64,
            modified in "[0-9: -]{0,20}",
            checksum in checksum(),
        ) -> ManifestFile {
            ManifestFile { path, size_bytes, modified, checksum }
        }
    }

    prop_compose! {
        fn range()(timeline in 1_u32.., start: u64, end: u64) -> WalRange {
            WalRange { timeline: TimelineId(timeline), start_lsn: Lsn(start), end_lsn: Lsn(end) }
        }
    }

    proptest! {
        #[test]
        fn manifests_round_trip(
            system_id in prop::option::of(any::<u64>().prop_map(SystemId)),
            files in prop::collection::vec(file(), 0..20),
            ranges in prop::collection::vec(range(), 0..4),
        ) {
            let manifest = write(system_id, &files, &ranges);
            let (summary, read_files) = read_all(&manifest).unwrap();
            prop_assert_eq!(read_files, files);
            prop_assert_eq!(summary.wal_ranges, ranges);
            prop_assert_eq!(summary.version, if system_id.is_some() { 2 } else { 1 });
            prop_assert_eq!(summary.system_id, system_id);
            prop_assert!(summary.checksum_ok);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, at in 0_usize..HEAD.len()) {
            let _ = read_all(&bytes);
            let _ = read_all(&[&HEAD.as_bytes()[..at], &bytes].concat());
        }
    }
}
