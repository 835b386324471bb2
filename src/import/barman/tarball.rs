//! A backup that `barman export-backup` has written: one archive of tar, with the description first, then the backup's
//! files, then the WAL from its start to its end.
//!
//! It is read as a stream, once for each purpose. The file's name has the beginning of its SHA-256, which is checked before
//! anything is taken.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use barmanfs_catalog::KeepTarget;
use barmanfs_foreign::barman::backup_info::{self, BackupInfo, Status};
use barmanfs_foreign::barman::identity::{self, Identity};
use barmanfs_foreign::barman::names::{self, BackupId, ExportName, TarName};
use barmanfs_store::{Attributes, open_regular};
use sha2::{Digest, Sha256};

use super::Options;
use super::archives::store_member;
use super::gathered::Gathered;
use super::listing::{TOOL, foreign, missing_tablespace};
use super::tree::has_manifest;
use crate::error::Error;
use crate::import::directory::cannot_read;
use crate::import::members::Members;
use crate::import::{Arrived, ForeignBackup, ForeignWal, Intake, LeftOut, Listing, Manifest, Part, Source};
use crate::output::{self, printable};
use crate::postgres::{Archive, TarEntry, TarKind};
use crate::wal_transfer::LARGEST_BYTES;
use crate::wal_transfer::compression;

/// More than `barman.json` ever has.
const BARMAN_JSON_BYTES: u64 = 64 << 10;

/// Bytes to hash at a time.
const HASHED_BYTES: usize = 256 << 10;

/// Bytes of the hash that are in the file's name.
const NAMED_BYTES: usize = 4;

/// The archive, decompressed.
type Content = Members<Box<dyn Read>>;

/// An exported backup.
#[derive(Debug)]
pub(crate) struct Tarball {
    path: PathBuf,
    options: Options,
    info: Option<BackupInfo>,
}

/// The files that come first.
#[derive(Default)]
struct Described {
    identity: Option<Identity>,
    info: Option<BackupInfo>,
    tool: Option<String>,
}

impl Tarball {
    pub(crate) fn new(path: PathBuf, options: Options) -> Self {
        Self {
            path,
            options,
            info: None,
        }
    }

    fn open(&self) -> Result<Content, Error> {
        let unreadable = |error: io::Error| cannot_read(&self.path, &error);
        let file = open_regular(&self.path).map_err(unreadable)?;
        let content = compression::decoded(file).map_err(unreadable)?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Members::new(&name, content))
    }

    /// Compares the file with its name.
    fn check_name(&self) -> Result<Option<ExportName>, Error> {
        let name = self.path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(ExportName::parse) else {
            tracing::warn!(
                "{} does not have the name that barman export-backup gives: its checksum is not known",
                self.path.display()
            );
            return Ok(None);
        };
        let hash = hash(&self.path).map_err(|error| cannot_read(&self.path, &error))?;
        match hash == name.sha256_begins {
            true => Ok(Some(name)),
            false => Err(Error::failed(format!(
                "{} is damaged: its SHA-256 begins with {}, its name says {}",
                self.path.display(),
                hash,
                name.sha256_begins
            ))),
        }
    }

    /// Reads the files that come first.
    fn describe(&self) -> Result<Described, Error> {
        let mut members = self.open()?;
        let mut described = Described::default();
        while let Some(entry) = members.next_member()? {
            match entry.path.as_slice() {
                b"identity.json" => {
                    let bytes = small(&mut members, &entry, identity::LONGEST_BYTES as u64)?;
                    described.identity = Some(Identity::parse(&bytes).map_err(|error| self.wrong(&error))?);
                }
                b"backup.info" => {
                    let bytes = small(&mut members, &entry, backup_info::LONGEST_BYTES as u64)?;
                    described.info = Some(BackupInfo::parse(&bytes).map_err(|error| self.wrong(&error))?);
                }
                b"barman.json" => {
                    let bytes = small(&mut members, &entry, BARMAN_JSON_BYTES)?;
                    described.tool = version(&bytes).map(|version| format!("{TOOL} {version}"));
                }
                _ => break,
            }
        }
        Ok(described)
    }

    fn wrong(&self, why: &dyn std::fmt::Display) -> Error {
        Error::failed(format!("{}: {why}", self.path.display()))
    }

    /// The backup that it has.
    fn backup(&self, name: Option<&ExportName>) -> Result<(ForeignBackup, BackupInfo), Error> {
        let described = self.describe()?;
        let (Some(identity), Some(info)) = (described.identity, described.info) else {
            return Err(self.wrong(
                &"it does not begin with identity.json and backup.info, as barman export-backup writes",
            ));
        };
        if info.status != Status::Done {
            return Err(self.wrong(&format!("the status of its backup is {}", info.status)));
        }
        if info.system_id.is_some_and(|own| own != identity.system_id) {
            return Err(self.wrong(&"identity.json and backup.info are of different clusters"));
        }
        let id = match name {
            Some(name) => name.id.clone(),
            None => self.id(&info)?,
        };
        let found = foreign(&id, &info, Some(identity.system_id), &self.options.zone);
        let mut backup = found.map_err(|why| self.wrong(&why))?;
        backup.tool = described.tool.unwrap_or_else(|| TOOL.to_owned());
        // There is no WAL beyond its end.
        backup.keep = Some(KeepTarget::Standalone);
        if info.parent.is_some() {
            return Err(
                self.wrong(&"it is an incremental backup, which is nothing without the one it builds on")
            );
        }
        Ok((backup, info))
    }

    /// The id of a file that was renamed: Barman's is the time of the beginning.
    fn id(&self, info: &BackupInfo) -> Result<BackupId, Error> {
        let begin = info
            .begin_time
            .and_then(|moment| moment.in_zone(&self.options.zone));
        let id = begin.and_then(|begin| barmanfs_catalog::BackupId::at(begin).to_string().parse().ok());
        id.ok_or_else(|| self.wrong(&"its backup.info has no begin_time"))
    }
}

impl Source for Tarball {
    fn described(&self) -> String {
        format!("exported backup {}", self.path.display())
    }

    fn backups(&mut self) -> Result<Listing, Error> {
        let name = self.check_name()?;
        let (backup, info) = self.backup(name.as_ref())?;
        self.info = Some(info);
        Ok(Listing {
            backups: vec![backup],
            left_out: Vec::new(),
        })
    }

    fn read(&mut self, _: &ForeignBackup, intake: &mut Intake<'_>) -> Result<Arrived, Error> {
        let Some(info) = &self.info else {
            return Err(Error::failed("it was not listed"));
        };
        let mut reader = Reader {
            info,
            options: &self.options,
            gathered: Gathered::new(info),
            root: None,
            manifest: None,
            tablespaces: BTreeSet::new(),
        };
        let mut members = self.open()?;
        while let Some(entry) = members.next_member()? {
            if entry.path.starts_with(b"wals/") || entry.path == b"xlog.db" {
                break;
            }
            if let Some(path) = entry.path.strip_prefix(b"backup/") {
                reader.member(path, &entry, &mut members, intake)?;
            }
        }
        reader.finish(intake)
    }

    fn can_delete(&self) -> Result<(), Error> {
        Ok(())
    }

    fn delete(&mut self, _backup: &ForeignBackup) -> Result<(), Error> {
        // It is still the file of this name.
        self.check_name()?;
        std::fs::remove_file(&self.path)
            .map_err(|error| Error::failed(format!("{} cannot be deleted: {error}", self.path.display())))
    }

    fn wal(
        &mut self,
        spool: &Path,
    ) -> Result<Box<dyn Iterator<Item = Result<ForeignWal, LeftOut>> + '_>, Error> {
        let members = self.open()?;
        Ok(Box::new(WalMembers {
            tarball: self,
            members: Some(members),
            spool: spool.to_owned(),
        }))
    }
}

/// Stores the files of the backup.
struct Reader<'a> {
    info: &'a BackupInfo,
    options: &'a Options,
    gathered: Gathered<'a>,
    root: Option<Attributes>,
    /// The server's manifest.
    manifest: Option<File>,
    /// The tablespaces whose files have come.
    tablespaces: BTreeSet<u32>,
}

impl Reader<'_> {
    /// Stores a member, whose path is one in `base/<ID>`.
    fn member(
        &mut self,
        path: &[u8],
        entry: &TarEntry,
        content: &mut dyn Read,
        intake: &mut Intake<'_>,
    ) -> Result<(), Error> {
        if path == b"data" {
            self.root = Some(entry.attributes());
            return Ok(());
        }
        let Some(path) = path.strip_prefix(b"data/") else {
            return self.tablespace_member(path, entry, content, intake);
        };
        let is_sent = self.info.mode.as_deref() == Some("postgres");
        if path == b"backup_manifest" && is_sent {
            self.manifest =
                Some(spooled(content, entry, intake.spool()).map_err(|error| unreadable(path, &error))?);
            return Ok(());
        }
        let name = std::str::from_utf8(path).ok().and_then(TarName::parse);
        match name.filter(|_| is_sent && entry.kind == TarKind::File) {
            Some(name) => self.archive(name, path, content, intake),
            None => store_member(path, entry, content, &mut self.gathered, intake),
        }
    }

    /// `<oid>/…`
    fn tablespace_member(
        &mut self,
        path: &[u8],
        entry: &TarEntry,
        content: &mut dyn Read,
        intake: &mut Intake<'_>,
    ) -> Result<(), Error> {
        let name = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        let oid = std::str::from_utf8(name).ok().and_then(names::oid_of);
        let known = oid.filter(|oid| self.info.tablespaces.iter().any(|known| known.oid == *oid));
        // Beside archives there are empty directories for the tablespaces.
        let Some(oid) = known.filter(|_| path != name || !self.is_in_archives()) else {
            return Ok(());
        };
        self.tablespaces.insert(oid);
        let path = [b"pg_tblspc/", path].concat();
        store_member(&path, entry, content, &mut self.gathered, intake)
    }

    /// Barman names a compression, `none` if need be, exactly for archives.
    fn is_in_archives(&self) -> bool {
        self.info.mode.as_deref() == Some("postgres") && self.info.other.contains_key("compression")
    }

    /// Stores what an archive in the archive holds.
    fn archive(
        &mut self,
        name: TarName,
        path: &[u8],
        content: &mut dyn Read,
        intake: &mut Intake<'_>,
    ) -> Result<(), Error> {
        let part = Part::Files(name.tablespace.map_or(Archive::Main, Archive::Tablespace));
        let shown = printable(path);
        self.tablespaces.extend(name.tablespace);
        let plain = self.options.plain.of(content);
        let mut plain = plain.map_err(|error| unreadable(path, &error))?;
        intake.archive(part, &shown, &mut plain)
    }

    fn finish(self, intake: &mut Intake<'_>) -> Result<Arrived, Error> {
        let root = self.root.ok_or_else(|| Error::failed("it has no backup/data"))?;
        let mut listed = self.info.tablespaces.iter();
        if let Some(missing) = listed.find(|listed| !self.tablespaces.contains(&listed.oid)) {
            return Err(Error::failed(missing_tablespace(missing)));
        }
        match self.manifest {
            Some(manifest) => {
                let manifest = Manifest::Given(Box::new(manifest));
                Ok(self.gathered.arrived(root, manifest))
            }
            None if self.info.mode.as_deref() == Some("postgres") && has_manifest(self.info) => {
                Err(Error::failed(
                    "its backup_manifest is missing, which every server since PostgreSQL 13 sends: it is not whole",
                ))
            }
            None => self.gathered.finish(intake, root, Manifest::Made),
        }
    }
}

/// The WAL in the archive. Each file is copied: several are archived at a time.
struct WalMembers<'a> {
    tarball: &'a Tarball,
    /// `None` at the end.
    members: Option<Content>,
    /// A directory with room for copies.
    spool: PathBuf,
}

impl Iterator for WalMembers<'_> {
    type Item = Result<ForeignWal, LeftOut>;

    fn next(&mut self) -> Option<Self::Item> {
        let members = self.members.as_mut()?;
        loop {
            let entry = match members.next_member() {
                Ok(Some(entry)) => entry,
                Ok(None) => return None,
                Err(error) => {
                    self.members = None;
                    let what = self.tarball.path.display().to_string();
                    return Some(Err(LeftOut::problem(what, error.to_string())));
                }
            };
            let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            if !entry.path.starts_with(b"wals/") || entry.kind != TarKind::File {
                continue;
            }
            let place = format!("{} in {}", printable(&entry.path), self.tarball.path.display());
            let Some(name) = std::str::from_utf8(name).ok().and_then(names::wal_name) else {
                return Some(Err(LeftOut::problem(
                    place,
                    "it does not have the name of a WAL file",
                )));
            };
            // What is stored is compressed or encrypted, and never much longer than what it holds.
            if entry.size_bytes > 2 * LARGEST_BYTES {
                return Some(Err(LeftOut::problem(place, "it is larger than any WAL file")));
            }
            let file = match spooled(members, &entry, &self.spool) {
                Ok(file) => file,
                Err(error) => {
                    return Some(Err(LeftOut::problem(
                        place,
                        format!("it cannot be read: {error}"),
                    )));
                }
            };
            let plain = self.tarball.options.plain.clone();
            return Some(Ok(ForeignWal {
                name,
                place,
                arriving: None,
                open: Box::new(move || plain.wal(&name, file)),
            }));
        }
    }
}

/// A copy of a member in the directory `spool`, without a name, positioned at its start.
fn spooled(content: &mut dyn Read, entry: &TarEntry, spool: &Path) -> io::Result<File> {
    let mut file = tempfile::tempfile_in(spool)?;
    let space = rustix::fs::fstatvfs(&file)?;
    let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
    if entry.size_bytes > free_bytes {
        return Err(io::Error::other(format!(
            "it has {}, and the repository's file system has {} free",
            output::bytes(entry.size_bytes),
            output::bytes(free_bytes)
        )));
    }
    io::copy(content, &mut file)?;
    file.rewind()?;
    Ok(file)
}

fn unreadable(path: &[u8], error: &io::Error) -> Error {
    Error::failed(format!("{}: it cannot be read: {error}", printable(path)))
}

fn small(content: &mut dyn Read, entry: &TarEntry, most: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    if entry.size_bytes > most {
        return Err(Error::failed(format!(
            "{} has more than {most} bytes",
            printable(&entry.path)
        )));
    }
    content
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(&entry.path, &error))?;
    Ok(bytes)
}

/// The version of Barman in `barman.json`.
fn version(bytes: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let version = value.get("barman_ver")?.as_str()?;
    let is_version = version.len() < 20
        && version
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
    is_version.then(|| version.to_owned())
}

/// The digits of a file's hash that are in its name.
fn hash(path: &Path) -> io::Result<String> {
    let mut file = open_regular(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; HASHED_BYTES];
    loop {
        match file.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(0) => break,
            Ok(length) => hasher.update(buffer.get(..length).unwrap_or_default()),
        }
    }
    let digest = hasher.finalize();
    let named = digest.iter().take(NAMED_BYTES);
    Ok(named.map(|byte| format!("{byte:02x}")).collect())
}
