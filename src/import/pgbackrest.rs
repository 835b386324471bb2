//! Repositories of pgBackRest, on a file system.
//!
//! What a backup has in common with one that was imported before it is taken over from there, and not read: its manifest names the
//! backup that has each file. All other files are read where they are, by blocks too, and each is checked against the SHA-1 of the
//! manifest. Backups and WAL are those of the stanza's present cluster; those from before an upgrade are named and left out.
//!
//! pgBackRest may be at work meanwhile. It changes nothing in place: info files are renamed into place, and what expires is removed.

mod blocks;
mod content;
mod info;
mod owners;
mod wal;

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use barmanfs_catalog::{BackupId, Tablespace};
use barmanfs_foreign::name::InvalidName;
use barmanfs_foreign::pgbackrest::{self as format, BackupInfo, Label, ListedBackup, Passphrase, Sha1Sum};
use barmanfs_pg::pg_control::ControlFile;
use barmanfs_store::Attributes;

use super::directory::cannot_read;
use super::{
    Arrived, Changes, ForeignBackup, ForeignWal, Identity, Intake, LeftOut, Listing, Manifest, Source,
};
use crate::error::Error;
use crate::output::printable;
use blocks::BlockReader;
use content::Store;
use owners::Owners;

/// Path of the control file.
const CONTROL: &[u8] = b"global/pg_control";

/// The most of a control file that is read.
const CONTROL_BYTES: u64 = 64 << 10;

/// A stanza of a repository.
#[derive(Debug)]
pub(crate) struct PgBackRest {
    repository: PathBuf,
    stanza: String,
    passphrase: Option<Passphrase>,
    /// `backup.info`, as it was when the backups were listed.
    info: Option<BackupInfo>,
}

impl PgBackRest {
    /// # Errors
    /// When the name of the stanza is a path.
    pub(crate) fn new(
        repository: PathBuf,
        stanza: String,
        passphrase: Option<Passphrase>,
    ) -> Result<Self, Error> {
        if matches!(stanza.as_str(), "" | "." | "..") || stanza.contains(['/', '\0']) {
            return Err(Error::usage(format!("{stanza:?} is not the name of a stanza")));
        }
        let info = None;
        Ok(Self {
            repository,
            stanza,
            passphrase,
            info,
        })
    }

    fn backup_directory(&self) -> PathBuf {
        self.repository.join("backup").join(&self.stanza)
    }

    fn archive_directory(&self) -> PathBuf {
        self.repository.join("archive").join(&self.stanza)
    }

    fn info(&mut self) -> Result<&BackupInfo, Error> {
        let info = match self.info.take() {
            Some(info) => info,
            None => {
                let path = self.backup_directory().join("backup.info");
                info::load(&path, self.passphrase.as_ref(), |source| {
                    BackupInfo::parse(source)
                })
                .map_err(|error| self.hinted(error))?
            }
        };
        Ok(self.info.insert(info))
    }

    /// With a hint about what is probably wrong when nothing at all can be read.
    fn hinted(&self, error: Error) -> Error {
        if error.hint_text().is_some() {
            return error;
        }
        if !self.backup_directory().is_dir() {
            return error.hint(format!(
                "The repository of pgBackRest is its repo1-path, and has a directory backup/{} for this stanza",
                self.stanza
            ));
        }
        match self.passphrase {
            Some(_) => error.hint("Is the passphrase that of repo1-cipher-pass?"),
            None => error,
        }
    }

    fn manifest(&self, label: &Label) -> Result<format::Manifest, Error> {
        let path = self
            .backup_directory()
            .join(label.as_str())
            .join("backup.manifest");
        let passphrase = self.info.as_ref().and_then(|info| info.passphrase.as_ref());
        let manifest = info::load(&path, passphrase, |source| format::Manifest::parse(source))?;
        match manifest.label == *label {
            true => Ok(manifest),
            false => Err(Error::failed(format!(
                "{} is that of the backup {}",
                path.display(),
                manifest.label
            ))),
        }
    }

    fn is_there(&self, label: &Label) -> bool {
        self.backup_directory().join(label.as_str()).is_dir()
    }

    /// What can be known about a backup without reading its data.
    fn describe(&self, listed: &ListedBackup) -> Result<ForeignBackup, Error> {
        let manifest = self.manifest(&listed.label)?;
        let (Some((timeline, start_lsn)), Some(stop_lsn)) = (manifest.start, manifest.stop_lsn) else {
            return Err(Error::failed(
                "it was taken while the server was stopped (online = n), and has no label to recover from",
            ));
        };
        let root = self.backup_directory();
        let control = read_control(&Store::new(&root), &manifest)?;
        let size_bytes = manifest
            .files
            .iter()
            .fold(0, |sum: u64, file| sum.saturating_add(file.size_bytes));
        Ok(ForeignBackup {
            name: listed.label.to_string(),
            tool: format!("pgBackRest {}", manifest.version),
            id: BackupId::at(manifest.start_time),
            begin_time: manifest.start_time,
            end_time: manifest.stop_time.max(manifest.start_time),
            start_lsn,
            stop_lsn,
            timeline,
            system_id: manifest.system_id,
            server_version: manifest.server_version,
            segment_size: control.segment_size,
            label: annotations(listed),
            annotations: barmanfs_catalog::Annotations::new(),
            keep: None,
            parent_start: None,
            is_cold: false,
            size_bytes: Some(size_bytes),
        })
    }
}

/// By what the backup of a manifest is found here.
fn identity_of(manifest: &format::Manifest) -> Option<Identity> {
    let (timeline, start_lsn) = manifest.start?;
    Some(Identity {
        name: manifest.label.to_string(),
        id: BackupId::at(manifest.start_time),
        system_id: manifest.system_id,
        timeline,
        start_lsn,
        stop_lsn: manifest.stop_lsn?,
    })
}

/// What its user wrote on a backup.
fn annotations(listed: &ListedBackup) -> Option<String> {
    let texts: Vec<String> = listed
        .annotations
        .iter()
        .map(|(key, text)| format!("{key}: {text}"))
        .collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

fn read_control(store: &Store<'_>, manifest: &format::Manifest) -> Result<ControlFile, Error> {
    let found = manifest.files.binary_search_by(|file| (*file.path).cmp(CONTROL));
    let file = found.ok().and_then(|at| manifest.files.get(at));
    let file = file.ok_or_else(|| Error::failed("global/pg_control is missing"))?;
    let mut bytes = Vec::new();
    let read = store
        .content(manifest, file)
        .and_then(|content| content.take(CONTROL_BYTES).read_to_end(&mut bytes));
    read.map_err(|error| Error::failed(format!("global/pg_control: {error}")))?;
    ControlFile::parse(&bytes).map_err(|error| Error::failed(error.to_string()))
}

impl Source for PgBackRest {
    fn described(&self) -> String {
        format!("pgBackRest {}, stanza {}", self.repository.display(), self.stanza)
    }

    fn backups(&mut self) -> Result<Listing, Error> {
        self.info = None;
        let info = self.info()?;
        let (current, listed) = (info.current, info.backups.clone());
        let system_of = |id| info.database(id).map(|database| database.system_id);
        let systems: Vec<_> = listed
            .iter()
            .map(|backup| system_of(backup.database_id))
            .collect();
        let mut listing = Listing::default();
        for (backup, system_id) in listed.iter().zip(systems) {
            let name = backup.label.to_string();
            if system_id != Some(current.system_id) {
                let why = "it is of another cluster, from before an upgrade of the stanza";
                listing.left_out.push(LeftOut::expected(name, why));
                continue;
            }
            match self.describe(backup) {
                Ok(found) if backup.has_page_errors => {
                    tracing::warn!(
                        "Backup {name}: pgBackRest found pages with wrong checksums when it was taken"
                    );
                    listing.backups.push(found);
                }
                Ok(found) => listing.backups.push(found),
                Err(_) if !self.is_there(&backup.label) => {
                    listing
                        .left_out
                        .push(LeftOut::expected(name, "it has expired meanwhile"));
                }
                Err(error) => listing.left_out.push(LeftOut::problem(name, error.to_string())),
            }
        }
        Ok(listing)
    }

    fn read(&mut self, backup: &ForeignBackup, intake: &mut Intake<'_>) -> Result<Arrived, Error> {
        let label: Label = backup
            .name
            .parse()
            .map_err(|error: InvalidName| Error::failed(error.to_string()))?;
        let read = self.read_backup(&label, intake);
        match read {
            Err(_) if !self.is_there(&label) => Err(Error::failed("it has expired meanwhile")),
            read => read,
        }
    }

    fn wal(&mut self, _: &Path) -> Result<Box<dyn Iterator<Item = Result<ForeignWal, LeftOut>> + '_>, Error> {
        let system_id = self.info()?.current.system_id;
        let archive = self.archive_directory();
        let info = info::load(
            &archive.join("archive.info"),
            self.passphrase.as_ref(),
            |source| format::ArchiveInfo::parse(source),
        );
        let info = info.map_err(|error| self.hinted(error))?;
        Ok(Box::new(wal::Files::of(&archive, info, system_id)?))
    }
}

impl PgBackRest {
    fn read_backup(&mut self, label: &Label, intake: &mut Intake<'_>) -> Result<Arrived, Error> {
        self.info()?;
        let manifest = self.manifest(label)?;
        let root = self.backup_directory();
        let owner = fs::metadata(root.join(label.as_str())).map_err(|error| cannot_read(&root, &error))?;
        let mut owners = Owners::new((owner.uid(), owner.gid()));
        let mut data_directory = None;
        for directory in &manifest.directories {
            // A manifest has no times of directories.
            let attributes = Attributes {
                mode: directory.mode,
                uid: owners.user(manifest.name(directory.user)),
                gid: owners.group(manifest.name(directory.group)),
                mtime_s: manifest.start_time.unix_micros().div_euclid(1_000_000),
                mtime_ns: 0,
            };
            match &*directory.path {
                [] => data_directory = Some(attributes),
                path => intake.directory(path, attributes)?,
            }
        }
        self.read_files(&manifest, &Store::new(&root), &mut owners, intake)?;
        let tablespaces = manifest.tablespaces.iter().map(|tablespace| Tablespace {
            oid: tablespace.oid,
            name: tablespace.name.clone(),
            location: tablespace.location.clone(),
        });
        Ok(Arrived {
            root: data_directory.ok_or_else(|| Error::failed("the manifest has no data directory"))?,
            tablespaces: tablespaces.collect(),
            manifest: Manifest::Made,
            configuration: None,
        })
    }

    /// Brings the files, those of one backup together and in their order in its bundles.
    fn read_files(
        &self,
        manifest: &format::Manifest,
        store: &Store<'_>,
        owners: &mut Owners,
        intake: &mut Intake<'_>,
    ) -> Result<(), Error> {
        let mut files: Vec<&format::File> = manifest.files.iter().collect();
        files.sort_by_key(|file| {
            (
                manifest.holder(file),
                file.piece.map(|piece| (piece.bundle, piece.offset)),
            )
        });
        let mut holder: Option<Holder> = None;
        let before = self.before(manifest);
        for file in files {
            let attributes = Attributes {
                mode: file.mode,
                uid: owners.user(manifest.name(file.user)),
                gid: owners.group(manifest.name(file.group)),
                mtime_s: file.mtime_s,
                mtime_ns: 0,
            };
            let label = manifest.holder(file);
            if holder.as_ref().is_none_or(|holder| holder.label != *label) {
                holder = Some(self.holder(label, manifest));
            }
            let other = holder.as_ref().and_then(|holder| holder.with(file));
            if let Some(other) = other
                && intake.same_as(other, &file.path, attributes, file.size_bytes)?
            {
                continue;
            }
            if let Some(before) = &before
                && take_changes(store, (manifest, file), before, attributes, intake)?
            {
                continue;
            }
            let content = store.content(manifest, file);
            let mut content =
                content.map_err(|error| Error::failed(format!("{}: {error}", printable(&file.path))))?;
            intake.file(&file.path, attributes, file.size_bytes, &mut content)?;
        }
        Ok(())
    }

    /// The newest other backup that this one has blocks from, with those of its files that are stored by blocks. If its manifest
    /// cannot be read, there is none.
    fn before(&self, manifest: &format::Manifest) -> Option<(Identity, format::Manifest)> {
        let is_own = |file: &format::File| file.blocks.is_some() && *manifest.holder(file) == manifest.label;
        if !manifest.files.iter().any(is_own) {
            return None;
        }
        let mut others = manifest.references.iter().rev();
        let label = others.find(|label| **label != manifest.label)?;
        match self.manifest(label) {
            Ok(mut other) => {
                other.files.retain(|file| file.blocks.is_some());
                Some((identity_of(&other)?, other))
            }
            Err(error) => {
                tracing::info!("Nothing is taken over from the backup {label}: {error}");
                None
            }
        }
    }

    /// What the backup with this label says about its files, if it is another one. If that cannot be read, nothing is taken over
    /// from it.
    fn holder(&self, label: &Label, manifest: &format::Manifest) -> Holder {
        let (mut sums, mut identity) = (HashMap::new(), None);
        if *label != manifest.label {
            match self.manifest(label) {
                Ok(other) => {
                    identity = identity_of(&other);
                    sums.extend(other.files.into_iter().map(|file| (file.path, file.checksum)));
                }
                Err(error) => tracing::info!("Nothing is taken over from the backup {label}: {error}"),
            }
        }
        Holder {
            label: label.clone(),
            identity,
            sums,
        }
    }
}

/// Takes over a file that is stored by blocks, but for those that have changed since the backup before. Returns whether it was
/// taken; what cannot be compared is read as a whole.
fn take_changes(
    store: &Store<'_>,
    (manifest, file): (&format::Manifest, &format::File),
    (identity, before): &(Identity, format::Manifest),
    attributes: Attributes,
    intake: &mut Intake<'_>,
) -> Result<bool, Error> {
    let found = before.files.binary_search_by(|other| other.path.cmp(&file.path));
    let Some(earlier) = found.ok().and_then(|at| before.files.get(at)) else {
        return Ok(false);
    };
    let changes = match BlockReader::changes(store, (manifest, file), (before, earlier)) {
        Ok(changes) => changes,
        Err(error) => {
            tracing::info!("{} is read as a whole: {error}", printable(&file.path));
            None
        }
    };
    let Some((ranges, mut content)) = changes else {
        return Ok(false);
    };
    let changes = Changes {
        ranges,
        content: &mut content,
    };
    let file_of = (&*file.path, attributes, file.size_bytes);
    intake.same_but_for(identity, file_of, changes, file.checksum)
}

/// The backup that has a file.
struct Holder {
    label: Label,
    /// By what it is found here; `None` for the backup that is being read.
    identity: Option<Identity>,
    /// SHA-1 of each of its files, unless it is the backup that is being read.
    sums: HashMap<Box<[u8]>, Sha1Sum>,
}

impl Holder {
    /// The other backup, if the file was the same one there.
    fn with(&self, file: &format::File) -> Option<&Identity> {
        let is_same = self.sums.get(&file.path) == Some(&file.checksum);
        self.identity.as_ref().filter(|_| is_same)
    }
}
