//! Storages of WAL-G, on a file system.
//!
//! The formats are in `barmanfs_foreign::walg`. The archives of a backup are read one after the other, each once. A delta is put
//! together with the backup before, which was imported first: pages that did not change, and files that it does not have, are taken
//! over from there and not read.
//!
//! WAL-G may be at work meanwhile. It renames files into place, and removes what it deletes. A backup without a sentinel is not
//! complete, or is being deleted.

mod content;
mod tree;
mod wal;

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};

use barmanfs_catalog::{Annotation, Annotations, BackupId, KeepTarget, Tablespace};
use barmanfs_foreign::name::InvalidName;
use barmanfs_foreign::walg::{self as format, ArchiveName, ArchiveRole, BackupName, FilesMetadata, Sentinel};
use barmanfs_pg::TimestampMicros;
use barmanfs_pg::pg_control::ControlFile;
use barmanfs_store::open_unlinked;
use serde_json::Value;

use super::changed::Base;
use super::directory::{cannot_read, read_small};
use super::gpg::Passphrase;
use super::members::Members;
use super::{Arrived, ForeignBackup, ForeignWal, Intake, LeftOut, Listing, Manifest, Source};
use crate::error::Error;
use tree::Tree;

/// The tool, in the record of a backup.
const TOOL: &str = "WAL-G";

/// Where the backups are.
const BACKUPS: &str = "basebackups_005";

/// Where the WAL is.
const WAL: &str = "wal_005";

/// The most that is read of a sentinel. Those of early releases have the list of files.
const SENTINEL_BYTES: u64 = 256 << 20;

/// The most that is read of `metadata.json`.
const METADATA_BYTES: u64 = 16 << 20;

/// The most that is read of a list of files.
const FILES_BYTES: u64 = 8 << 30;

/// Path of the control file.
const CONTROL: &[u8] = b"global/pg_control";

/// The most of a control file that is read.
const CONTROL_BYTES: u64 = 64 << 10;

/// The longest label that is made of user data; no label is longer.
const LABEL_BYTES: usize = 256;

/// A storage.
#[derive(Debug)]
pub(crate) struct WalG {
    storage: PathBuf,
    /// Opens what is encrypted with OpenPGP.
    passphrase: Option<Passphrase>,
}

/// An archive of a backup.
struct Archive {
    role: ArchiveRole,
    name: String,
    place: PathBuf,
    compression: format::Compression,
}

impl WalG {
    pub(crate) fn new(storage: PathBuf, passphrase: Option<Passphrase>) -> Self {
        Self { storage, passphrase }
    }

    fn backups_directory(&self) -> PathBuf {
        self.storage.join(BACKUPS)
    }

    fn directory(&self, name: &BackupName) -> PathBuf {
        self.backups_directory().join(name.as_str())
    }

    /// Whether it is there as a complete backup.
    fn is_there(&self, name: &BackupName) -> bool {
        self.backups_directory().join(name.sentinel()).is_file()
    }

    /// The sentinel, with what was marked later.
    fn sentinel(&self, name: &BackupName) -> Result<(Sentinel, Metadata), Error> {
        let place = self.backups_directory().join(name.sentinel());
        let found = fs::metadata(&place).map_err(|error| cannot_read(&place, &error))?;
        let bytes = read_small(&place, SENTINEL_BYTES)?.unwrap_or_default();
        let mut sentinel = Sentinel::parse(&bytes).map_err(|why| wrong(&place, &why))?;
        let place = self.directory(name).join("metadata.json");
        if let Some(bytes) = read_small(&place, METADATA_BYTES)? {
            let metadata = format::Metadata::parse(&bytes).map_err(|why| wrong(&place, &why))?;
            sentinel.metadata = metadata;
        }
        Ok((sentinel, found))
    }

    /// The list of files; an empty one if the backup was taken without.
    fn files(&self, name: &BackupName, sentinel: &Sentinel) -> Result<FilesMetadata, Error> {
        let mut place = self.directory(name).join("files_metadata.json");
        if !place.exists() {
            if sentinel.is_without_files {
                return Ok(FilesMetadata::default());
            }
            place = self.backups_directory().join(name.sentinel());
        }
        let file = open_unlinked(&place).map_err(|error| cannot_read(&place, &error))?;
        let files = FilesMetadata::parse(file.take(FILES_BYTES));
        let files = files.map_err(|error| wrong(&place, &error.to_string()))?;
        // Without a list, nothing shows that an archive is missing.
        match files.is_empty() && !sentinel.is_without_files {
            true => Err(wrong(
                &place,
                "there is no list of its files, so nothing shows that none is missing",
            )),
            false => Ok(files),
        }
    }

    /// The archives of a backup, in the order in which they are read: the label and the control file come last.
    fn archives(&self, name: &BackupName) -> Result<Vec<Archive>, Error> {
        let directory = self.directory(name).join("tar_partitions");
        let unreadable = |error| cannot_read(&directory, &error);
        let mut archives = Vec::new();
        for entry in fs::read_dir(&directory).map_err(unreadable)? {
            let place = entry.map_err(unreadable)?.path();
            let name = place
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if format::is_temporary(&name) {
                continue;
            }
            let ArchiveName { role, compression } = name
                .parse()
                .map_err(|error: InvalidName| Error::failed(error.to_string()))?;
            archives.push(Archive {
                role,
                name,
                place,
                compression,
            });
        }
        archives.sort_by(|one, other| (one.role, &one.name).cmp(&(other.role, &other.name)));
        for role in [ArchiveRole::Control, ArchiveRole::Label] {
            if archives.iter().filter(|archive| archive.role == role).count() > 1 {
                return Err(Error::failed(format!(
                    "{} has two archives of one kind: {role:?}",
                    directory.display()
                )));
            }
        }
        Ok(archives)
    }

    fn open(&self, archive: &Archive) -> Result<Members<Box<dyn Read>>, Error> {
        let opened = content::open(&archive.place, archive.compression, self.passphrase.as_ref());
        let source = opened.map_err(|error| cannot_read(&archive.place, &error))?;
        Ok(Members::of_walg(&archive.name, source))
    }

    fn control(&self, name: &BackupName) -> Result<ControlFile, Error> {
        let archives = self.archives(name)?;
        let archive = archives
            .iter()
            .find(|archive| archive.role == ArchiveRole::Control);
        let archive = archive.ok_or_else(|| Error::failed("it has no archive pg_control.tar"))?;
        let mut members = self.open(archive)?;
        while let Some(entry) = members.next_member()? {
            if entry.path == CONTROL {
                let mut bytes = Vec::new();
                let read = members.by_ref().take(CONTROL_BYTES).read_to_end(&mut bytes);
                read.map_err(|error| cannot_read(&archive.place, &error))?;
                return ControlFile::parse(&bytes).map_err(|error| wrong(&archive.place, &error.to_string()));
            }
        }
        Err(wrong(&archive.place, "global/pg_control is missing"))
    }

    /// What can be known about a backup without reading its data.
    fn describe(&self, name: &BackupName) -> Result<ForeignBackup, Error> {
        let (sentinel, found) = self.sentinel(name)?;
        let missing = |what: &str| Error::failed(format!("its sentinel has no {what}"));
        let control = self.control(name)?;
        if sentinel.system_id.is_some_and(|own| own != control.system_id) {
            return Err(Error::failed(
                "its control file is of another cluster than its sentinel",
            ));
        }
        let written = found
            .modified()
            .map_or(TimestampMicros::from_unix_seconds(0), TimestampMicros::from);
        let begin_time = sentinel.metadata.start_time.unwrap_or(written);
        let (label, annotations) = notes(sentinel.metadata.user_data.as_ref());
        Ok(ForeignBackup {
            name: name.to_string(),
            tool: TOOL.to_owned(),
            id: BackupId::at(begin_time),
            begin_time,
            end_time: sentinel.metadata.finish_time.unwrap_or(written).max(begin_time),
            start_lsn: sentinel.start_lsn.ok_or_else(|| missing("LSN"))?,
            stop_lsn: sentinel.stop_lsn.ok_or_else(|| missing("FinishLSN"))?,
            timeline: name.timeline(),
            system_id: control.system_id,
            server_version: sentinel.server_version.ok_or_else(|| missing("PgVersion"))?,
            segment_size: control.segment_size,
            label,
            annotations,
            keep: sentinel.metadata.is_permanent.then_some(KeepTarget::Standalone),
            // A delta is no incremental backup of PostgreSQL: see `Base`.
            parent_start: None,
            is_cold: false,
            size_bytes: Some(sentinel.uncompressed_bytes),
        })
    }

    fn read_backup(
        &self,
        name: &BackupName,
        backup: &ForeignBackup,
        intake: &mut Intake<'_>,
    ) -> Result<Arrived, Error> {
        let (sentinel, _) = self.sentinel(name)?;
        let files = self.files(name, &sentinel)?;
        let base = match &sentinel.parent {
            None => None,
            Some((parent, _)) if files.is_empty() => {
                return Err(Error::failed(format!(
                    "it has no list of its files, without which it cannot be put together with {parent}"
                )));
            }
            Some((parent, start)) => {
                let found = Base::find(intake, parent.as_str(), backup.system_id, *start)?;
                let base = found.ok_or_else(|| {
                    Error::failed(format!("it builds on the backup {parent}, which is not here"))
                })?;
                Some(base)
            }
        };
        let archives = self.archives(name)?;
        let roles = archives.iter().map(|archive| archive.role).collect();
        let mut tree = Tree::new(intake, files, base, (&sentinel, roles));
        for archive in archives {
            let mut members = self.open(&archive)?;
            tree.take(archive.role, &mut members)
                .map_err(|error| error.context(&archive.name))?;
        }
        let oids: Vec<u32> = sentinel
            .tablespaces
            .iter()
            .map(|tablespace| tablespace.oid)
            .collect();
        let root = tree.finish(&oids)?;
        let tablespaces = sentinel.tablespaces.into_iter().map(|tablespace| Tablespace {
            oid: tablespace.oid,
            name: None,
            location: tablespace.location,
        });
        Ok(Arrived {
            root,
            tablespaces: tablespaces.collect(),
            manifest: Manifest::Made,
            configuration: None,
        })
    }
}

fn wrong(place: &Path, why: &str) -> Error {
    Error::failed(format!("{}: {why}", place.display()))
}

/// What a user noted with a backup: the texts of an object become annotations where they can be ones. What is left, and any other
/// JSON, becomes the label.
fn notes(user_data: Option<&Value>) -> (Option<String>, Annotations) {
    let mut annotations = BTreeMap::new();
    let mut rest = serde_json::Map::new();
    let label = match user_data {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Object(object)) => {
            for (key, value) in object {
                let text = match value {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                match format!("{key}={text}").parse::<Annotation>() {
                    Ok(note) if note.key == *key => drop(annotations.insert(note.key, note.value)),
                    _ => drop(rest.insert(key.clone(), value.clone())),
                }
            }
            (!rest.is_empty()).then(|| Value::Object(rest).to_string())
        }
        Some(other) => Some(other.to_string()),
    };
    let line = |text: String| -> String {
        let mut line = String::new();
        for shown in text.chars().filter(|c| !c.is_control()) {
            if line.len() + shown.len_utf8() > LABEL_BYTES {
                break;
            }
            line.push(shown);
        }
        line
    };
    (label.map(line), annotations)
}

impl Source for WalG {
    fn described(&self) -> String {
        format!("WAL-G {}", self.storage.display())
    }

    fn backups(&mut self) -> Result<Listing, Error> {
        let directory = self.backups_directory();
        let unreadable = |error| {
            cannot_read(&directory, &error).hint(format!(
                "The storage of WAL-G is its WALG_FILE_PREFIX, and has a directory {BACKUPS}"
            ))
        };
        let (mut listing, mut incomplete, mut names) = (Listing::default(), Vec::new(), Vec::new());
        for entry in fs::read_dir(&directory).map_err(unreadable)? {
            let name = entry
                .map_err(unreadable)?
                .file_name()
                .to_string_lossy()
                .into_owned();
            match (format::sentinel_name(&name), name.parse::<BackupName>()) {
                (Some(Ok(name)), _) => names.push(name),
                (Some(Err(error)), _) => {
                    let why = format!("{error}; those of WAL-E are not read");
                    listing.left_out.push(LeftOut::problem(name, why));
                }
                (None, Ok(name)) => incomplete.push(name),
                (None, Err(_)) => {}
            }
        }
        incomplete.retain(|name| !names.contains(name));
        for name in incomplete {
            let why = "it has no sentinel: it is not complete yet, or is being deleted";
            listing.left_out.push(LeftOut::expected(name.as_str(), why));
        }
        for name in names {
            match self.describe(&name) {
                Ok(backup) => listing.backups.push(backup),
                Err(_) if !self.is_there(&name) => {
                    let why = "it was deleted meanwhile";
                    listing.left_out.push(LeftOut::expected(name.as_str(), why));
                }
                Err(error) => listing
                    .left_out
                    .push(LeftOut::problem(name.as_str(), error.to_string())),
            }
        }
        listing
            .backups
            .sort_by(|one, other| (one.start_lsn, &one.name).cmp(&(other.start_lsn, &other.name)));
        Ok(listing)
    }

    fn read(&mut self, backup: &ForeignBackup, intake: &mut Intake<'_>) -> Result<Arrived, Error> {
        let name: BackupName = backup
            .name
            .parse()
            .map_err(|error: InvalidName| Error::failed(error.to_string()))?;
        match self.read_backup(&name, backup, intake) {
            Err(_) if !self.is_there(&name) => Err(Error::failed("it was deleted meanwhile")),
            read => read,
        }
    }

    fn wal(&mut self, _: &Path) -> Result<Box<dyn Iterator<Item = Result<ForeignWal, LeftOut>> + '_>, Error> {
        let files = wal::files(&self.storage.join(WAL), self.passphrase.as_ref())?;
        Ok(Box::new(files))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_become_annotations_where_they_can() {
        let noted = |json: &str| {
            let (label, annotations) = notes(Some(&serde_json::from_str(json).unwrap()));
            let texts: Vec<String> = annotations
                .iter()
                .map(|(key, text)| format!("{key}={text}"))
                .collect();
            (label, texts.join(" "))
        };
        assert_eq!(notes(None), (None, Annotations::new()));
        assert_eq!(noted("null"), (None, String::new()));
        assert_eq!(noted(r#""why\nnot""#), (Some("whynot".to_owned()), String::new()));
        assert_eq!(
            noted(r#"{"release":"4.2","ticket":871}"#),
            (None, "release=4.2 ticket=871".to_owned())
        );
        assert_eq!(
            noted(r#"{"a b":1,"c=d":"e","f":"g"}"#),
            (Some(r#"{"a b":1,"c=d":"e"}"#.to_owned()), "f=g".to_owned())
        );
        assert_eq!(noted("[1]"), (Some("[1]".to_owned()), String::new()));
    }
}
