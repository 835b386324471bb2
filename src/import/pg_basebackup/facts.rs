//! What is known of a backup by `pg_basebackup` before its data is read: the small files that describe it.
//!
//! In an archive the control file is the last member. What it says is found elsewhere where that is possible, so that a large
//! archive is read once: the manifest has the system identifier (17 and later) and the checksum of `PG_VERSION`, the first page
//! of the WAL has the identifier and the size of a segment, and the label names a position and the segment that it is in.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::Path;

use barmanfs_pg::backup_label::BackupLabel;
use barmanfs_pg::backup_manifest::{Checksum, ManifestFile};
use barmanfs_pg::pg_control::ControlFile;
use barmanfs_pg::wal_check::{LONG_HEADER_BYTES, check_segment};
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{SegmentSize, ServerVersion, SystemId};

use super::{Archives, open_archive};
use crate::error::Error;
use crate::import::Part;
use crate::import::directory::{cannot_read, read_small};
use crate::postgres::Archive;

/// The most that a label, `PG_VERSION` or `tablespace_map` may have.
const SMALL_BYTES: u64 = 1 << 20;

const LABEL: &str = "backup_label";
const CONTROL: &str = "global/pg_control";
const VERSION: &str = "PG_VERSION";
const MAP: &str = "tablespace_map";

/// The files that describe a backup.
const DESCRIBING: [&str; 4] = [LABEL, CONTROL, VERSION, MAP];

/// The versions that are tried for the checksum of `PG_VERSION`.
const VERSIONS: std::ops::Range<u32> = 13..100;

/// What the manifest says of these files.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// From PostgreSQL 17 on.
    pub(super) system_id: Option<SystemId>,
    version: Option<ServerVersion>,
    has_map: bool,
}

impl Listed {
    /// Notes one of its files.
    pub(super) fn file(&mut self, file: &ManifestFile) {
        if file.path == MAP.as_bytes() {
            self.has_map = true;
        }
        if file.path == VERSION.as_bytes() {
            let texts = VERSIONS.map(|major| format!("{major}\n"));
            let text = texts
                .filter(|text| text.len() as u64 == file.size_bytes)
                .find(|text| file.checksum == Some(Checksum::Crc32c(crc32c::crc32c(text.as_bytes()))));
            self.version = text.and_then(|text| ServerVersion::of_data_directory(text.as_bytes()));
        }
    }
}

/// The facts.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) label: BackupLabel,
    pub(super) system_id: SystemId,
    pub(super) segment_size: SegmentSize,
    pub(super) version: ServerVersion,
    /// `tablespace_map`; empty if there is none.
    pub(super) map: Vec<u8>,
}

/// Small files, by their names.
type Files = HashMap<&'static str, Vec<u8>>;

impl Facts {
    /// Those of a backup in plain format.
    pub(super) fn of_directory(place: &Path) -> Result<Self, Error> {
        let mut files = Files::new();
        for name in DESCRIBING {
            if let Some(bytes) = read_small(&place.join(name), SMALL_BYTES)? {
                files.insert(name, bytes);
            }
        }
        Self::from_files(files)
    }

    /// Those of a backup in archives. The main one is read until enough is known.
    pub(super) fn of_archives(archives: &Archives, listed: &Listed) -> Result<Self, Error> {
        let of = |wanted: Part| {
            let mut files = archives.files.iter();
            files.find(|(part, _)| *part == wanted).map(|(_, path)| path)
        };
        let wal = match of(Part::Wal) {
            Some(path) => of_wal(open_archive(path)?),
            None => None,
        };
        let Some(path) = of(Part::Files(Archive::Main)) else {
            return Self::from_files(Files::new());
        };
        Self::of_main(open_archive(path)?, listed, wal).map_err(|error| match error {
            Unread::Archive(error) => cannot_read(path, &error),
            Unread::Facts(error) => error,
        })
    }

    fn of_main(
        archive: impl Read,
        listed: &Listed,
        wal: Option<(SystemId, SegmentSize)>,
    ) -> Result<Self, Unread> {
        let mut files = Files::new();
        let mut tar = tar::Archive::new(archive);
        for entry in tar.entries().map_err(Unread::Archive)? {
            let entry = entry.map_err(Unread::Archive)?;
            let name = DESCRIBING
                .iter()
                .find(|name| entry.path_bytes().as_ref() == name.as_bytes());
            let Some(name) = name else { continue };
            let mut bytes = Vec::new();
            entry
                .take(SMALL_BYTES)
                .read_to_end(&mut bytes)
                .map_err(Unread::Archive)?;
            files.insert(*name, bytes);
            if let Some(facts) = Self::without_control(&files, listed, wal) {
                return Ok(facts);
            }
        }
        Self::from_files(files).map_err(Unread::Facts)
    }

    /// The facts, if they are known without the control file.
    fn without_control(files: &Files, listed: &Listed, wal: Option<(SystemId, SegmentSize)>) -> Option<Self> {
        let label = BackupLabel::parse(files.get(LABEL)?).ok()?;
        let map = files.get(MAP);
        if listed.has_map && map.is_none() {
            return None;
        }
        let version = files
            .get(VERSION)
            .and_then(|text| ServerVersion::of_data_directory(text));
        Some(Self {
            system_id: listed.system_id.or(wal.map(|(system_id, _)| system_id))?,
            segment_size: wal.map(|(_, size)| size).or_else(|| segment_size(&label))?,
            version: version.or(listed.version)?,
            map: map.cloned().unwrap_or_default(),
            label,
        })
    }

    fn from_files(mut files: Files) -> Result<Self, Error> {
        let mut take = |name: &str| {
            files.remove(name).ok_or_else(|| {
                Error::failed(format!(
                    "It has no {name}: it is not what pg_basebackup wrote, or a server was started on it"
                ))
            })
        };
        let unusable = |error: &dyn std::error::Error| Error::failed(error.to_string());
        let label = BackupLabel::parse(&take(LABEL)?).map_err(|error| unusable(&error))?;
        let control = ControlFile::parse(&take(CONTROL)?).map_err(|error| unusable(&error))?;
        Ok(Self {
            label,
            system_id: control.system_id,
            segment_size: control.segment_size,
            version: ServerVersion::of_data_directory(&take(VERSION)?)
                .ok_or_else(|| Error::failed("PG_VERSION holds no version"))?,
            map: take(MAP).unwrap_or_default(),
        })
    }
}

/// Why there are no facts.
enum Unread {
    Archive(io::Error),
    Facts(Error),
}

/// What the first page of the first segment says. What is wrong with it shows when it is read.
fn of_wal(archive: impl Read) -> Option<(SystemId, SegmentSize)> {
    let mut tar = tar::Archive::new(archive);
    for entry in tar.entries().ok()? {
        let mut entry = entry.ok()?;
        let name = std::str::from_utf8(&entry.path_bytes())
            .ok()
            .and_then(|name| name.parse::<SegmentName>().ok());
        let Some(name) = name else { continue };
        let mut first = [0; LONG_HEADER_BYTES];
        entry.read_exact(&mut first).ok()?;
        let facts = check_segment(&first, &name, entry.size()).ok()?;
        return Some((facts.system_id, facts.segment_size));
    }
    None
}

/// The only size of segments with which the label's position is in the segment that it names.
fn segment_size(label: &BackupLabel) -> Option<SegmentSize> {
    let sizes = std::iter::successors(Some(SegmentSize::MIN.bytes()), |bytes| Some(bytes * 2));
    let sizes = sizes.take_while(|bytes| *bytes <= SegmentSize::MAX.bytes());
    let mut fitting = sizes
        .filter_map(|bytes| SegmentSize::try_from(bytes).ok())
        .filter(|size| {
            let timeline = label.start_segment.timeline;
            SegmentName::from_lsn(timeline, label.start_lsn, *size) == label.start_segment
        });
    let size = fitting.next()?;
    fitting.next().is_none().then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
                        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIMELINE: 1\n";

    /// An archive that cannot be read behind these members.
    fn broken_after(members: &[(&str, &str)]) -> impl Read {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, text) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            builder.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        let bytes = builder.get_ref().clone();
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("it was read further"))
            }
        }
        io::Cursor::new(bytes).chain(Broken)
    }

    fn listed(system_id: Option<u64>, has_map: bool) -> Listed {
        let mut listed = Listed {
            system_id: system_id.map(SystemId),
            ..Listed::default()
        };
        let mut file = |path: &str, text: &str| {
            listed.file(&ManifestFile {
                path: path.into(),
                size_bytes: text.len() as u64,
                modified: String::new(),
                checksum: Some(Checksum::Crc32c(crc32c::crc32c(text.as_bytes()))),
            });
        };
        file("PG_VERSION", "19\n");
        if has_map {
            file("tablespace_map", "16384 /srv/fast\n");
        }
        listed
    }

    #[test]
    fn an_archive_is_read_no_further_than_its_label() {
        let label = ("backup_label", TEXT);
        let map = ("tablespace_map", "16384 /srv/fast\n");
        let of = |members: &[(&str, &str)], listed: &Listed, wal| {
            Facts::of_main(broken_after(members), listed, wal).ok()
        };
        let facts = of(&[label], &listed(Some(7), false), None).unwrap();
        assert_eq!(
            (facts.system_id, facts.segment_size, facts.version.major()),
            (SystemId(7), SegmentSize::DEFAULT, 19)
        );
        let facts = of(&[label, map], &listed(Some(7), true), None).unwrap();
        assert_eq!(facts.map, map.1.as_bytes());
        // The map is a member of its own.
        assert!(of(&[label], &listed(Some(7), true), None).is_none());
        // Before PostgreSQL 17 only the WAL knows the system.
        assert!(of(&[label], &listed(None, false), None).is_none());
        let facts = of(
            &[label],
            &listed(None, false),
            Some((SystemId(8), SegmentSize::MIN)),
        );
        assert_eq!(facts.unwrap().segment_size, SegmentSize::MIN);
        // A manifest with other checksums says nothing of the version; the file does.
        let unsaid = Listed {
            system_id: Some(SystemId(7)),
            ..Listed::default()
        };
        assert!(of(&[label], &unsaid, None).is_none());
        let facts = of(&[label, ("PG_VERSION", "16\n")], &unsaid, None);
        assert_eq!(facts.unwrap().version.major(), 16);
    }

    #[test]
    fn a_label_says_how_large_segments_are_unless_several_sizes_fit() {
        let of = |lsn: &str, file: &str| {
            let text = TEXT
                .replace("0/2000028", lsn)
                .replace("000000010000000000000002", file);
            segment_size(&BackupLabel::parse(text.as_bytes()).unwrap()).map(SegmentSize::bytes)
        };
        assert_eq!(of("0/2000028", "000000010000000000000002"), Some(16 << 20));
        assert_eq!(of("0/2000028", "000000010000000000000020"), Some(1 << 20));
        assert_eq!(of("5/40000028", "000000010000000500000001"), Some(1 << 30));
        assert_eq!(of("5/28", "000000010000000500000000"), None);
        assert_eq!(of("0/2000028", "000000010000000000000003"), None);
    }
}
