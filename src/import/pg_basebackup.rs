//! Backups that `pg_basebackup` has written, as a directory or as tar archives.
//!
//! Each is complete in itself: its `backup_manifest` names the cluster (17 and later), the WAL that it needs and every file.
//! With `-X` its WAL is in `pg_wal`, and becomes a part of the backup; what else is there does not.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use barmanfs_catalog::{BackupId, Tablespace};
use barmanfs_pg::backup_label::BackupLabel;
use barmanfs_pg::backup_manifest::{self, ManifestSummary};
use barmanfs_pg::tablespace_map;
use barmanfs_pg::{Lsn, TimestampMicros};
use barmanfs_store::open_unlinked;

use self::facts::{Facts, Listed};
use super::directory::{self, Choice, cannot_read};
use super::{Arrived, ForeignBackup, ForeignWal, Intake, LeftOut, Listing, Manifest, Part, Source};
use crate::error::Error;
use crate::output::printable;
use crate::postgres::Archive;
use crate::wal_transfer::compression;

mod deletion;
mod facts;

/// The tool, in the record of a backup.
const TOOL: &str = "pg_basebackup";

/// Several backups by `pg_basebackup`.
#[derive(Debug)]
pub(crate) struct BaseBackups {
    directories: Vec<PathBuf>,
    /// The places of the tablespaces of each backup, by its name.
    maps: HashMap<String, TablespaceMap>,
}

/// Object ids and paths.
type TablespaceMap = Vec<(u32, Vec<u8>)>;

impl BaseBackups {
    pub(crate) fn new(directories: Vec<PathBuf>) -> Self {
        Self {
            directories,
            maps: HashMap::new(),
        }
    }
}

impl Source for BaseBackups {
    fn described(&self) -> String {
        let names: Vec<String> = self
            .directories
            .iter()
            .map(|directory| directory.display().to_string())
            .collect();
        format!("pg_basebackup {}", names.join(", "))
    }

    fn backups(&mut self) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        for directory in &self.directories {
            match describe(directory) {
                Ok((backup, map)) => {
                    self.maps.insert(backup.name.clone(), map);
                    listing.backups.push(backup);
                }
                Err(error) => listing.left_out.push(LeftOut::problem(
                    directory.display().to_string(),
                    error.to_string(),
                )),
            }
        }
        listing
            .backups
            .sort_by_key(|backup| (backup.start_lsn, backup.id));
        Ok(listing)
    }

    fn read(&mut self, backup: &ForeignBackup, intake: &mut Intake<'_>) -> Result<Arrived, Error> {
        let place = PathBuf::from(&backup.name);
        let root = fs::metadata(&place).map_err(|error| cannot_read(&place, &error))?;
        let mut manifest = open_manifest(&place)?;
        intake.expect(&mut manifest)?;
        let map = self.maps.get(&backup.name).map_or(&[][..], Vec::as_slice);
        let tablespaces = match archives(&place)? {
            Some(archives) => read_archives(&archives, map, intake)?,
            None => read_directory(&place, map, intake)?,
        };
        Ok(Arrived {
            root: directory::attributes(&root),
            tablespaces,
            manifest: Manifest::Given(Box::new(manifest)),
            configuration: None,
        })
    }

    fn can_delete(&self) -> Result<(), Error> {
        Ok(())
    }

    fn delete(&mut self, backup: &ForeignBackup) -> Result<(), Error> {
        deletion::delete(Path::new(&backup.name), backup)
    }

    fn wal(&mut self, _: &Path) -> Result<Box<dyn Iterator<Item = Result<ForeignWal, LeftOut>> + '_>, Error> {
        // It is in the backups.
        Ok(Box::new(std::iter::empty()))
    }
}

fn open_manifest(place: &Path) -> Result<File, Error> {
    let path = place.join("backup_manifest");
    open_unlinked(&path).map_err(|error| {
        cannot_read(&path, &error)
            .hint("Without backup_manifest it is not known where the backup ends, nor whether it is whole")
    })
}

/// The archives of a backup in tar format, tablespaces first.
struct Archives {
    files: Vec<(Part, PathBuf)>,
}

/// The archives in `place`; `None` for a backup in plain format.
fn archives(place: &Path) -> Result<Option<Archives>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(place).map_err(|error| cannot_read(place, &error))? {
        let name = entry.map_err(|error| cannot_read(place, &error))?.file_name();
        let Some((stem, part)) = name.to_str().and_then(part_of) else {
            continue;
        };
        files.push((stem, part, place.join(&name)));
    }
    if !files.iter().any(|(stem, ..)| stem == "base") {
        return Ok(None);
    }
    files.sort_by(|one, other| one.0.cmp(&other.0));
    if let Some([one, other]) = files
        .windows(2)
        .find(|pair| matches!(pair, [one, other] if one.0 == other.0))
    {
        return Err(Error::failed(format!(
            "{} and {} are the same archive twice",
            one.2.display(),
            other.2.display()
        )));
    }
    let files = files.into_iter().map(|(_, part, path)| (part, path)).collect();
    Ok(Some(Archives { files }))
}

/// The archive that a file is, by its name: `base.tar.gz`.
fn part_of(name: &str) -> Option<(String, Part)> {
    let (stem, ending) = name.split_once(".tar")?;
    if !matches!(ending, "" | ".gz" | ".lz4" | ".zst") {
        return None;
    }
    let part = match stem {
        "base" => Part::Files(Archive::Main),
        "pg_wal" => Part::Wal,
        oid => Part::Files(Archive::Tablespace(oid.parse().ok()?)),
    };
    Some((stem.to_owned(), part))
}

fn read_archives(
    archives: &Archives,
    map: &[(u32, Vec<u8>)],
    intake: &mut Intake<'_>,
) -> Result<Vec<Tablespace>, Error> {
    let of = |oid| Part::Files(Archive::Tablespace(oid));
    let has = |oid: u32| archives.files.iter().any(|(part, _)| *part == of(oid));
    if let Some((missing, location)) = map.iter().find(|(oid, _)| !has(*oid)) {
        return Err(Error::failed(format!(
            "The archive of tablespace {missing}, which was at {}, is missing",
            printable(location)
        )));
    }
    let mut tablespaces = Vec::new();
    for (part, path) in &archives.files {
        let mut content = open_archive(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        intake.archive(*part, &name, &mut content)?;
        if let Part::Files(Archive::Tablespace(oid)) = part {
            tablespaces.push(tablespace(*oid, map, None));
        }
    }
    Ok(tablespaces)
}

/// A tablespace, at its original place if that is known, otherwise where its files are now.
fn tablespace(oid: u32, map: &[(u32, Vec<u8>)], now: Option<&Path>) -> Tablespace {
    let original = map.iter().find(|(known, _)| *known == oid);
    let location = match (original, now) {
        (Some((_, location)), _) => String::from_utf8_lossy(location).into_owned(),
        (None, Some(now)) => now.display().to_string(),
        (None, None) => format!("pg_tblspc/{oid}"),
    };
    Tablespace {
        oid,
        name: None,
        location,
    }
}

fn open_archive(path: &Path) -> Result<Box<dyn Read>, Error> {
    let file = open_unlinked(path).map_err(|error| cannot_read(path, &error))?;
    compression::decoded(file).map_err(|error| cannot_read(path, &error))
}

/// Reads a backup in plain format. Its links to tablespaces lead to where `pg_basebackup` has put them.
fn read_directory(
    place: &Path,
    map: &[(u32, Vec<u8>)],
    intake: &mut Intake<'_>,
) -> Result<Vec<Tablespace>, Error> {
    let mut tablespaces = Vec::new();
    let mut choose = |intake: &mut Intake<'_>, path: &[u8], inner: &Path, found: &Metadata| {
        let oid = path
            .strip_prefix(b"pg_tblspc/")
            .and_then(|name| std::str::from_utf8(name).ok()?.parse::<u32>().ok());
        if let Some(oid) = oid {
            let now = fs::read_link(inner).ok();
            tablespaces.push(tablespace(oid, map, now.as_deref()));
        }
        let is_followed = (oid.is_some() || path == b"pg_wal") && found.is_symlink();
        Ok(match path {
            b"backup_manifest" | b"postmaster.pid" | b"postmaster.opts" => Choice::LeaveOut,
            _ if !found.is_dir() && !is_followed && !intake.has(path) => Choice::LeaveOut,
            _ if is_followed => Choice::Follow(inner.to_owned()),
            _ => Choice::Take,
        })
    };
    directory::store(intake, place, b"", &mut choose)?;
    Ok(tablespaces)
}

/// What can be known about a backup without reading its data.
fn describe(place: &Path) -> Result<(ForeignBackup, TablespaceMap), Error> {
    let manifest = open_manifest(place)?;
    let changed = manifest
        .metadata()
        .and_then(|found| found.modified())
        .map_err(|error| cannot_read(place, &error))?;
    let mut size_bytes = 0_u64;
    let mut listed = Listed::default();
    let summary = backup_manifest::read(BufReader::new(manifest), &mut |file| {
        size_bytes = size_bytes.saturating_add(file.size_bytes);
        listed.file(&file);
        Ok::<(), std::convert::Infallible>(())
    });
    let summary = summary.map_err(|error| Error::failed(error.to_string()))?;
    listed.system_id = summary.system_id;
    let facts = match archives(place)? {
        Some(archives) => Facts::of_archives(&archives, &listed)?,
        None => Facts::of_directory(place)?,
    };
    let label = facts.label;
    let stop_lsn = stop_lsn(&summary, &label)?;
    let map = tablespace_map::parse(&facts.map).map_err(|error| Error::failed(error.to_string()))?;
    let begin_time = begin_time(&label).unwrap_or_else(|| changed.into());
    let backup = ForeignBackup {
        name: place.display().to_string(),
        tool: TOOL.to_owned(),
        id: BackupId::at(begin_time),
        begin_time,
        end_time: TimestampMicros::from(changed).max(begin_time),
        start_lsn: label.start_lsn,
        stop_lsn,
        timeline: label.start_timeline,
        system_id: facts.system_id,
        server_version: facts.version,
        segment_size: facts.segment_size,
        label: None,
        annotations: barmanfs_catalog::Annotations::new(),
        keep: None,
        parent_start: label.incremental_from,
        is_cold: false,
        size_bytes: Some(size_bytes),
    };
    Ok((backup, map))
}

/// Where the backup ends: the end of the range of WAL that begins at its start.
fn stop_lsn(summary: &ManifestSummary, label: &BackupLabel) -> Result<Lsn, Error> {
    let range = summary
        .wal_ranges
        .iter()
        .find(|range| range.timeline == label.start_timeline && range.start_lsn == label.start_lsn);
    range.map(|range| range.end_lsn).ok_or_else(|| {
        Error::failed(format!(
            "backup_manifest names no WAL from {} on timeline {}, where backup_label says that the backup starts",
            label.start_lsn, label.start_timeline
        ))
    })
}

/// `2026-11-21 00:25:17 UTC`: in the zone of the server's log, which is understood when it is UTC.
fn begin_time(label: &BackupLabel) -> Option<TimestampMicros> {
    let text = label.start_time.as_deref()?;
    let text = text.strip_suffix(" UTC").or_else(|| text.strip_suffix(" GMT"))?;
    format!("{}Z", text.replace(' ', "T")).parse().ok()
}
