//! A backup in archives of tar: what `pg_basebackup` writes, compressed and encrypted as Barman was told, and the parts that
//! Barman puts into a cloud.

use std::fs;
use std::path::Path;

use barmanfs_store::Attributes;

use super::Files;
use super::gathered::Gathered;
use super::listing::{ArchiveFile, Found};
use super::tree::given_manifest;
use crate::error::Error;
use crate::import::directory::{attributes, cannot_read};
use crate::import::members::Members;
use crate::import::plain::Plain;
use crate::import::{Arrived, Intake, Manifest, Part};
use crate::postgres::{Archive, TarEntry, TarKind};

/// What makes them plain, and what opens them.
type From<'f> = (&'f Plain, &'f dyn Files);

/// Stores what the archives hold.
pub(super) fn read(
    found: &Found,
    files: &[ArchiveFile],
    from: From<'_>,
    intake: &mut Intake<'_>,
) -> Result<Arrived, Error> {
    let place = files
        .first()
        .and_then(|file| file.path.parent())
        .unwrap_or(&found.place);
    let root = fs::symlink_metadata(place).map_err(|error| cannot_read(place, &error))?;
    let root = Attributes {
        // Not those of the directory that the archives lie in: others may look into that.
        mode: Intake::root_mode(),
        ..attributes(&root)
    };
    let mut gathered = Gathered::new(&found.info);
    match found.info.mode.as_deref() {
        Some("postgres") => {
            let manifest = given_manifest(&found.info, place, from.1, intake)?;
            for file in files {
                let mut content = open(&file.path, from)?;
                intake.archive(Part::Files(archive(file)), &shown(&file.path), &mut content)?;
            }
            // PostgreSQL sends whole data directories: nothing is added.
            Ok(gathered.arrived(root, manifest))
        }
        _ => {
            let mut known = None;
            for file in files {
                if let (Some(oid), 0) = (file.name.tablespace, file.name.part) {
                    intake.directory(format!("pg_tblspc/{oid}").as_bytes(), root)?;
                }
                known = read_part(file, from, &mut gathered, intake)?.or(known);
            }
            gathered.finish(intake, known.unwrap_or(root), Manifest::Made)
        }
    }
}

fn archive(file: &ArchiveFile) -> Archive {
    file.name.tablespace.map_or(Archive::Main, Archive::Tablespace)
}

fn shown(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn open(path: &Path, (plain, files): From<'_>) -> Result<Box<dyn std::io::Read>, Error> {
    let file = files.open(path).map_err(|error| cannot_read(path, &error))?;
    plain.of(file).map_err(|error| cannot_read(path, &error))
}

/// Stores a part of a cloud's layout, whose members are files like those of rsync. Returns the attributes of the data directory,
/// if they are in it.
fn read_part(
    file: &ArchiveFile,
    from: From<'_>,
    gathered: &mut Gathered<'_>,
    intake: &mut Intake<'_>,
) -> Result<Option<Attributes>, Error> {
    let mut root = None;
    let prefix = file
        .name
        .tablespace
        .map_or_else(Vec::new, |oid| format!("pg_tblspc/{oid}/").into_bytes());
    let mut members = Members::new(&shown(&file.path), open(&file.path, from)?);
    while let Some(entry) = members.next_member()? {
        if entry.path.is_empty() {
            let is_of_data = file.name.tablespace.is_none();
            root = root.or(is_of_data.then(|| entry.attributes()));
            continue;
        }
        let path = [prefix.as_slice(), &entry.path].concat();
        store_member(&path, &entry, &mut members, gathered, intake)?;
    }
    Ok(root)
}

/// Stores a member of an archive at a path of the backup.
pub(super) fn store_member(
    path: &[u8],
    entry: &TarEntry,
    content: &mut dyn std::io::Read,
    gathered: &mut Gathered<'_>,
    intake: &mut Intake<'_>,
) -> Result<(), Error> {
    match entry.kind {
        TarKind::Symlink => Ok(()),
        TarKind::Directory => {
            gathered.note(path);
            intake.directory(path, entry.attributes())
        }
        TarKind::File if matches!(path, b"backup_manifest" | b"postmaster.pid" | b"postmaster.opts") => {
            Ok(())
        }
        TarKind::File => match gathered.outside(path) {
            Some(outside) => gathered.configuration_file(outside, entry.attributes(), content),
            None => {
                gathered.note(path);
                intake.file(path, entry.attributes(), entry.size_bytes, content)
            }
        },
    }
}
