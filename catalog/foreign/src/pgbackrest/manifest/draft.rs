//! A manifest while its lines are read.

use std::collections::HashMap;
use std::str::FromStr;

use barmanfs_pg::{Lsn, ServerVersion, SystemId, TimestampMicros, wal_name::SegmentName};

use super::super::info::{Entry, InfoError};
use super::super::{Compression, Label, Passphrase, Sha1Sum, server_version, sha1_sum};
use super::lines::{FileLine, OwnerLine, PathLine, TargetLine};
use super::{Blocks, Directory, File, Manifest, Owner, Piece, Tablespace};
use crate::path;

/// The unit of block sizes.
const BLOCK_UNIT_BYTES: u64 = 8192;

/// The largest block that is accepted, in units; pgBackRest's are far below.
const MOST_BLOCK_UNITS: u64 = 32 << 10;

/// The largest block map that is accepted: it is read into memory. One of a file of 1 GiB has less than 1 MiB.
const MOST_MAP_BYTES: u64 = 64 << 20;

/// The shortest checksum of blocks, which is not written down, and the longest.
const LEAST_BLOCK_CHECKSUM_BYTES: u64 = 6;
const MOST_BLOCK_CHECKSUM_BYTES: u64 = 16;

/// SHA-1 of nothing: it is not written down.
const SHA1_OF_NOTHING: Sha1Sum = [
    0xda, 0x39, 0xa3, 0xee, 0x5e, 0x6b, 0x4b, 0x0d, 0x32, 0x55, 0xbf, 0xef, 0x95, 0x60, 0x18, 0x90, 0xaf,
    0xd8, 0x07, 0x09,
];

/// Owner and mode, as far as they are not the defaults, which come at the end.
#[derive(Debug, Default, Clone, Copy)]
struct Rights {
    user: Option<Owner>,
    group: Option<Owner>,
    mode: Option<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Draft {
    label: Option<Label>,
    start_time: Option<i64>,
    stop_time: Option<i64>,
    start_segment: Option<SegmentName>,
    start_lsn: Option<Lsn>,
    stop_lsn: Option<Lsn>,
    system_id: Option<SystemId>,
    server_version: Option<ServerVersion>,
    is_compressed: bool,
    compression: Option<Compression>,
    is_bundle_raw: bool,
    has_wal: bool,
    is_from_standby: bool,
    references: Vec<Label>,
    reference_numbers: HashMap<String, u32>,
    /// The list of references was there, so that no other one is possible.
    has_references: bool,
    names: Vec<String>,
    name_numbers: HashMap<String, u32>,
    tablespaces: Vec<Tablespace>,
    files: Vec<(File, Rights)>,
    directories: Vec<(Directory, Rights)>,
    file_default: Rights,
    directory_default: Rights,
}

impl Draft {
    pub(super) fn take(&mut self, entry: &Entry<'_>) -> Result<(), InfoError> {
        match entry.section {
            "backup" => self.backup(entry),
            "backup:db" => self.database(entry),
            "backup:option" => self.option(entry),
            "backup:target" => self.target(entry),
            "target:file" => self.file(entry),
            "target:path" => self.directory(entry),
            "target:file:default" => {
                let mut rights = self.file_default;
                self.default(entry, &mut rights)?;
                self.file_default = rights;
                Ok(())
            }
            "target:path:default" => {
                let mut rights = self.directory_default;
                self.default(entry, &mut rights)?;
                self.directory_default = rights;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn backup(&mut self, entry: &Entry<'_>) -> Result<(), InfoError> {
        match entry.key {
            b"backup-label" => self.label = Some(text(entry)?),
            b"backup-timestamp-start" => self.start_time = Some(entry.value()?),
            b"backup-timestamp-stop" => self.stop_time = Some(entry.value()?),
            b"backup-archive-start" => self.start_segment = Some(text(entry)?),
            b"backup-lsn-start" => self.start_lsn = Some(text(entry)?),
            b"backup-lsn-stop" => self.stop_lsn = Some(text(entry)?),
            b"backup-bundle-raw" => self.is_bundle_raw = entry.value()?,
            b"backup-reference" => {
                let list: String = entry.value()?;
                for name in list.split(',') {
                    self.reference(name, entry)?;
                }
                self.has_references = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn database(&mut self, entry: &Entry<'_>) -> Result<(), InfoError> {
        match entry.key {
            b"db-system-id" => self.system_id = Some(SystemId(entry.value()?)),
            b"db-version" => self.server_version = server_version(&entry.value::<String>()?),
            _ => {}
        }
        Ok(())
    }

    fn option(&mut self, entry: &Entry<'_>) -> Result<(), InfoError> {
        match entry.key {
            b"option-compress" => self.is_compressed = entry.value()?,
            b"option-compress-type" => self.compression = Some(text(entry)?),
            b"option-archive-copy" => self.has_wal = entry.value()?,
            b"option-backup-standby" => self.is_from_standby = entry.value()?,
            _ => {}
        }
        Ok(())
    }

    fn target(&mut self, entry: &Entry<'_>) -> Result<(), InfoError> {
        let line: TargetLine = entry.value()?;
        let Some(oid) = line.tablespace else { return Ok(()) };
        let oid = oid.parse().ok().filter(|oid| *oid > 0);
        let oid: u32 = oid.ok_or_else(|| entry.refused("the number of a tablespace"))?;
        if entry.key != format!("pg_tblspc/{oid}").as_bytes() {
            return Err(entry.refused("another name than that of the tablespace"));
        }
        self.tablespaces.push(Tablespace {
            oid,
            name: line.tablespace_name,
            location: line.path,
        });
        Ok(())
    }

    fn default(&mut self, entry: &Entry<'_>, rights: &mut Rights) -> Result<(), InfoError> {
        match entry.key {
            b"user" => rights.user = Some(self.owner(entry.value()?, entry)?),
            b"group" => rights.group = Some(self.owner(entry.value()?, entry)?),
            b"mode" => rights.mode = Some(mode(&entry.value::<String>()?, entry)?),
            _ => {}
        }
        Ok(())
    }

    fn owner(&mut self, line: OwnerLine, entry: &Entry<'_>) -> Result<Owner, InfoError> {
        let name = match line {
            OwnerLine::Named(name) => name,
            OwnerLine::Unknown(false) => return Ok(Owner::Unknown),
            OwnerLine::Unknown(true) => {
                return Err(entry.refused("an owner that is neither a name nor false"));
            }
        };
        if let Some(number) = self.name_numbers.get(&name) {
            return Ok(Owner::Named(*number));
        }
        let number = u32::try_from(self.names.len()).map_err(|_| entry.refused("too many owners"))?;
        self.names.push(name.clone());
        self.name_numbers.insert(name, number);
        Ok(Owner::Named(number))
    }

    fn rights(&mut self, line: PathLine, entry: &Entry<'_>) -> Result<Rights, InfoError> {
        Ok(Rights {
            user: line.user.map(|owner| self.owner(owner, entry)).transpose()?,
            group: line.group.map(|owner| self.owner(owner, entry)).transpose()?,
            mode: line.mode.map(|digits| mode(&digits, entry)).transpose()?,
        })
    }

    /// The number of a reference, which is added if the manifest has no list of them.
    fn reference(&mut self, name: &str, entry: &Entry<'_>) -> Result<u32, InfoError> {
        if let Some(number) = self.reference_numbers.get(name) {
            return Ok(*number);
        }
        if self.has_references {
            return Err(entry.refused("a reference to a backup that is not in the list of references"));
        }
        let label = name
            .parse::<Label>()
            .map_err(|error| entry.refused(error.to_string()))?;
        let number =
            u32::try_from(self.references.len()).map_err(|_| entry.refused("too many references"))?;
        self.references.push(label);
        self.reference_numbers.insert(name.to_owned(), number);
        Ok(number)
    }

    /// The path in the data directory, and whether it is in a tablespace. `None` for `pg_tblspc` beside it.
    fn path<'a>(&self, entry: &Entry<'a>) -> Result<Option<(&'a [u8], bool)>, InfoError> {
        let key = entry.key;
        let (inside, is_in_tablespace) = match key.strip_prefix(b"pg_data") {
            Some(b"") => return Ok(Some((b"", false))),
            Some(rest) => (rest.strip_prefix(b"/").unwrap_or_default(), false),
            None if key == b"pg_tblspc" => return Ok(None),
            None => {
                let oid = key
                    .strip_prefix(b"pg_tblspc/")
                    .and_then(|rest| rest.split(|byte| *byte == b'/').next());
                let is_known = |oid| {
                    self.tablespaces
                        .iter()
                        .any(|one| one.oid.to_string().as_bytes() == oid)
                };
                if !oid.is_some_and(is_known) {
                    return Err(entry.refused("a path in no data directory or tablespace of the backup"));
                }
                (key, true)
            }
        };
        let inside = path::relative(inside).map_err(|error| entry.refused(error.to_string()))?;
        Ok(Some((inside, is_in_tablespace)))
    }

    fn directory(&mut self, entry: &Entry<'_>) -> Result<(), InfoError> {
        let Some((path, _)) = self.path(entry)? else {
            return Ok(());
        };
        let rights = self.rights(entry.value()?, entry)?;
        let path = path.into();
        let (user, group, mode) = (Owner::Unknown, Owner::Unknown, 0);
        self.directories.push((
            Directory {
                path,
                mode,
                user,
                group,
            },
            rights,
        ));
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>) -> Result<(), InfoError> {
        let line: FileLine = entry.value()?;
        let (path, is_in_tablespace) = self
            .path(entry)?
            .filter(|(path, _)| !path.is_empty())
            .ok_or_else(|| entry.refused("a directory among files"))?;
        let sum = |digits: &str| sha1_sum(digits).ok_or_else(|| entry.refused("a checksum that is no SHA-1"));
        let checksum = match (&line.checksum, line.size) {
            (_, 0) => SHA1_OF_NOTHING,
            (Some(digits), _) => sum(digits)?,
            (None, _) => return Err(entry.refused("no checksum: the backup was not finished")),
        };
        let stored_bytes = line.stored_bytes.unwrap_or(line.size);
        let offset = line.bundle_offset.unwrap_or(0);
        let is_too_large = offset
            .checked_add(stored_bytes)
            .is_none_or(|end| i64::try_from(end).is_err());
        if is_too_large || i64::try_from(line.size).is_err() {
            return Err(entry.refused("a size that no file can have"));
        }
        let reference = line.reference.as_deref();
        let file = File {
            path: path.into(),
            is_in_tablespace,
            mode: 0,
            user: Owner::Unknown,
            group: Owner::Unknown,
            mtime_s: line.timestamp,
            size_bytes: line.size,
            checksum,
            stored_checksum: line.stored_checksum.as_deref().map(sum).transpose()?,
            stored_bytes,
            reference: reference.map(|name| self.reference(name, entry)).transpose()?,
            piece: line
                .bundle
                .filter(|bundle| *bundle > 0)
                .map(|bundle| Piece { bundle, offset }),
            blocks: blocks(&line, stored_bytes).map_err(|reason| entry.refused(reason))?,
        };
        let PathLine { group, mode, user } = PathLine {
            group: line.group,
            mode: line.mode,
            user: line.user,
        };
        let rights = self.rights(PathLine { group, mode, user }, entry)?;
        self.files.push((file, rights));
        Ok(())
    }

    pub(super) fn finish(
        mut self,
        version: String,
        passphrase: Option<Passphrase>,
    ) -> Result<Manifest, InfoError> {
        let label = self.label.ok_or(InfoError::Missing("backup-label"))?;
        let missing_compression = if self.is_compressed {
            Compression::Gz
        } else {
            Compression::None
        };
        self.tablespaces.sort_unstable_by_key(|tablespace| tablespace.oid);
        let (file_default, directory_default) = (self.file_default, self.directory_default);
        let mut files: Vec<File> = self
            .files
            .into_iter()
            .map(|(mut file, rights)| {
                (file.user, file.group, file.mode) = rights.or(file_default);
                file
            })
            .collect();
        let mut directories: Vec<Directory> = self
            .directories
            .into_iter()
            .map(|(mut directory, rights)| {
                (directory.user, directory.group, directory.mode) = rights.or(directory_default);
                directory
            })
            .collect();
        files.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        directories.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        check_paths(&files, &directories)?;
        let seconds = |time: Option<i64>, key| {
            time.map(TimestampMicros::from_unix_seconds)
                .ok_or(InfoError::Missing(key))
        };
        Ok(Manifest {
            version,
            passphrase,
            label,
            start_time: seconds(self.start_time, "backup-timestamp-start")?,
            stop_time: seconds(self.stop_time, "backup-timestamp-stop")?,
            start: self
                .start_segment
                .map(|segment| segment.timeline)
                .zip(self.start_lsn),
            stop_lsn: self.stop_lsn,
            system_id: self.system_id.ok_or(InfoError::Missing("db-system-id"))?,
            server_version: self.server_version.ok_or(InfoError::Missing("db-version"))?,
            compression: self.compression.unwrap_or(missing_compression),
            is_bundle_raw: self.is_bundle_raw,
            has_wal: self.has_wal,
            is_from_standby: self.is_from_standby,
            references: self.references,
            names: self.names,
            tablespaces: self.tablespaces,
            directories,
            files,
        })
    }
}

impl Rights {
    /// With the defaults; a manifest of pgBackRest always has them, and nobody is let in without.
    fn or(self, default: Self) -> (Owner, Owner, u32) {
        (
            self.user.or(default.user).unwrap_or(Owner::Unknown),
            self.group.or(default.group).unwrap_or(Owner::Unknown),
            self.mode.or(default.mode).unwrap_or(0o600),
        )
    }
}

/// Each path is there once, below a directory that is there.
fn check_paths(files: &[File], directories: &[Directory]) -> Result<(), InfoError> {
    let twice =
        |path: &[u8]| InfoError::Contradiction(format!("\"{}\" is listed twice", path.escape_ascii()));
    for pair in files.windows(2) {
        if let [one, other] = pair
            && one.path == other.path
        {
            return Err(twice(&one.path));
        }
    }
    for pair in directories.windows(2) {
        if let [one, other] = pair
            && one.path == other.path
        {
            return Err(twice(&one.path));
        }
    }
    let is_directory = |path: &[u8]| {
        directories
            .binary_search_by(|directory| (*directory.path).cmp(path))
            .is_ok()
    };
    let parent = |path: &[u8]| path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at);
    let orphan = |path: &[u8]| {
        InfoError::Contradiction(format!("the directory of \"{}\" is missing", path.escape_ascii()))
    };
    for file in files {
        if is_directory(&file.path) {
            return Err(twice(&file.path));
        }
        if !is_directory(file.path.get(..parent(&file.path)).unwrap_or_default()) {
            return Err(orphan(&file.path));
        }
    }
    for directory in directories {
        if !is_directory(directory.path.get(..parent(&directory.path)).unwrap_or_default()) {
            return Err(orphan(&directory.path));
        }
    }
    Ok(())
}

fn blocks(line: &FileLine, stored_bytes: u64) -> Result<Option<Blocks>, &'static str> {
    // Without a map the file was too small to be stored by blocks.
    let (Some(units), Some(map_bytes)) = (line.block_units, line.map_bytes) else {
        return Ok(None);
    };
    if map_bytes == 0 || line.size == 0 {
        return Ok(None);
    }
    let checksum_bytes = line.block_checksum_bytes.unwrap_or(LEAST_BLOCK_CHECKSUM_BYTES);
    let is_checksum = (1..=MOST_BLOCK_CHECKSUM_BYTES).contains(&checksum_bytes);
    match usize::try_from(checksum_bytes) {
        Ok(checksum_bytes) if is_checksum && (1..=MOST_BLOCK_UNITS).contains(&units) => {
            if map_bytes > stored_bytes.min(MOST_MAP_BYTES) {
                return Err("a block map larger than what is stored, or than 64 MiB");
            }
            let block_bytes = units * BLOCK_UNIT_BYTES;
            Ok(Some(Blocks {
                block_bytes,
                checksum_bytes,
                map_bytes,
            }))
        }
        _ => Err("a size of blocks or of their checksums that is not possible"),
    }
}

fn mode(digits: &str, entry: &Entry<'_>) -> Result<u32, InfoError> {
    let bits = u32::from_str_radix(digits, 8).ok().filter(|bits| *bits <= 0o7777);
    bits.ok_or_else(|| entry.refused("a mode that is not octal"))
}

fn text<T: FromStr<Err: std::fmt::Display>>(entry: &Entry<'_>) -> Result<T, InfoError> {
    let text: String = entry.value()?;
    text.parse()
        .map_err(|error: T::Err| entry.refused(error.to_string()))
}
