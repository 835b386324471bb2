//! Copies of a whole repository: what there is to copy, and a directory that becomes a repository again.
//!
//! What a copy must have is what the catalog knows at one moment, read in one transaction: a pack is entered there after all
//! that it refers to. A sweep may run meanwhile. The copy counts as a writer for which all condemned packs wait, so nothing
//! that was in the catalog at that moment goes while the copy runs.
//!
//! A directory that a repository is copied into has no `repository.json` before all packs are there, and a file that says that
//! it is unfinished. So nothing takes a part for the whole, and the next copy goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use barmanfs_store::{LocalPacks, PackId, PackStorage};
use serde::{Deserialize, Serialize};

use crate::archive::damage::{self, KnownLoss};
use crate::error::{Error, Result};
use crate::home::keys;
use crate::home::locks::{FileLocks, Lock, Locks};
use crate::home::settings::{SETTINGS, Settings, parse_settings};
use crate::home::{
    CATALOG, COPYING, Home, PACKS, check_vacant, make_directories, regular, sync_directory, write_durably,
};
use crate::index::repository::{Repository, keys_of, local_packs};
use crate::index::unread::UnreadPack;
use crate::index::writer::Writer;
use crate::monitor::Monitor;
use crate::upkeep::rebuild::{OLD_CATALOG, RebuildReport};

/// Keeps two copies out of one directory.
const MAKING: &str = "make";

/// A repository that is copied, at one moment.
#[derive(Debug)]
pub struct CopyFrom {
    repository: Repository,
    /// Its packs, those first that others may refer to.
    pub packs: Vec<KnownPack>,
    /// What is in its store and cannot be read, or should be there and is not.
    pub unread: Vec<UnreadPack>,
    /// Whether chunks are known to be damaged or gone, or a rebuild has found packs missing: what was lost may be nowhere but in
    /// the copy.
    pub has_losses: bool,
    /// `None` where nothing can be written: then nothing keeps a sweep of another host from removing packs.
    writer: Option<Writer>,
}

/// A pack that the catalog knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownPack {
    /// Its id.
    pub id: PackId,
    /// Its size.
    pub bytes: u64,
}

impl Repository {
    /// Begins a copy of the whole repository. As long as it lives, no sweep removes what the copy has to have. Where the
    /// repository can only be read, or its disk is full, see [`CopyFrom::is_guarded`].
    ///
    /// # Errors
    /// [`Error::Occupied`] while the catalog is being rebuilt; when the repository cannot be read.
    pub fn begin_whole_copy(&self, purpose: &str) -> Result<CopyFrom> {
        let guard = self.writer(purpose).and_then(|writer| {
            writer.keep_condemned()?;
            Ok(writer)
        });
        let writer = match guard {
            Ok(writer) => Some(writer),
            Err(error) if error.is_read_only() || matches!(error, Error::Full { .. }) => None,
            Err(error) => return Err(error),
        };
        let unread = self.unread_packs()?;
        let (packs, loss) = self.db.read(|db| {
            let mut all = db.prepare("SELECT id, bytes FROM packs ORDER BY seq")?;
            let rows = all.query_map([], |row| {
                Ok(KnownPack {
                    id: PackId(row.get(0)?),
                    bytes: row.get(1)?,
                })
            })?;
            let packs = rows.collect::<rusqlite::Result<_>>()?;
            Ok((packs, damage::known_loss(db)?))
        })?;
        Ok(CopyFrom {
            repository: self.clone(),
            packs,
            unread,
            has_losses: loss != KnownLoss::default() || self.home.join(OLD_CATALOG).exists(),
            writer,
        })
    }
}

impl CopyFrom {
    /// Whether every sweep waits for this copy. Without that, a pack may be gone when it is to be copied.
    pub fn is_guarded(&self) -> bool {
        self.writer.is_some()
    }

    /// Where the packs are.
    pub fn storage(&self) -> &Arc<dyn PackStorage> {
        &self.repository.storage
    }

    /// Its repository.json.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn settings(&self) -> Result<Vec<u8>> {
        let path = self.repository.home.join(SETTINGS);
        let _acting = self.repository.as_owner()?;
        regular::read(&path).map_err(|source| Error::io("read", &path, source))
    }

    /// The files of its keys, by their place in the repository.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn key_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let _acting = self.repository.as_owner()?;
        keys::files_to_copy(self.repository.path())
    }

    /// Whether the repository, as it is now, neither has the pack nor knows it.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn is_without(&self, pack: PackId) -> Result<bool> {
        if self.repository.knows_pack(pack)? {
            return Ok(false);
        }
        match self.repository.storage.bytes(pack) {
            Err(barmanfs_store::Error::MissingPack(_)) => Ok(true),
            found => Ok(found.map(|_| false)?),
        }
    }
}

/// Which repository a directory becomes.
#[derive(Serialize, Deserialize)]
struct Copying {
    id: String,
    from: String,
}

/// A directory that becomes a repository.
#[derive(Debug)]
pub struct CopyInto {
    path: PathBuf,
    settings: Vec<u8>,
    packs: Arc<dyn PackStorage>,
    _making: Lock,
}

impl CopyInto {
    /// Begins, or goes on with, a copy into the directory `path`. `settings` is the repository.json of the repository at
    /// `from`, `keys` are the files of its keys.
    ///
    /// # Errors
    /// When the directory has something else; when `settings` cannot be understood; when nothing can be written; when the
    /// repository is encrypted, and its keys are not at hand.
    pub fn begin(path: &Path, settings: &[u8], keys: &[(String, Vec<u8>)], from: &str) -> Result<Self> {
        let parsed = settings_of_copy(settings, from)?;
        let id = parsed.id.clone();
        let marker = path.join(COPYING);
        match unfinished(&marker)? {
            Some(copying) if copying.id == id => {}
            Some(copying) => {
                return Err(Error::Invalid(format!(
                    "{} is an unfinished copy of another repository, from {}: complete it, or choose another directory",
                    path.display(),
                    copying.from
                )));
            }
            None if path.join(SETTINGS).exists() => {
                return Err(Error::CannotCreate {
                    path: path.to_path_buf(),
                    reason: "there is a repository already".to_owned(),
                });
            }
            None => check_vacant(path)?,
        }
        fs::create_dir_all(path).map_err(|source| Error::io("create", path, source))?;
        make_directories(path)?;
        let locks = FileLocks::of(&Home::at(path)?);
        let making = locks.try_exclusive(MAKING, "copying a repository")?;
        let making = making.ok_or_else(|| Error::Occupied {
            what: "Another copy into this directory",
            holder: locks.holder(MAKING),
            advice: "wait for its end",
        })?;
        let copying = Copying {
            id,
            from: from.to_owned(),
        };
        let text = serde_json::to_string(&copying).map_err(|error| Error::Invalid(error.to_string()))?;
        write_durably(&marker, format!("{text}\n").as_bytes())?;
        LocalPacks::create(&path.join(PACKS))?;
        for (name, bytes) in keys {
            keys::write_copied(path, name, bytes)?;
        }
        let packs = local_packs(path, keys_of(&Home::at(path)?, &parsed)?)?;
        Ok(Self {
            path: path.to_path_buf(),
            settings: settings.to_vec(),
            packs,
            _making: making,
        })
    }

    /// Where the packs go.
    pub fn packs(&self) -> &Arc<dyn PackStorage> {
        &self.packs
    }

    /// All packs are there: makes the catalog, and ends the copy.
    ///
    /// # Errors
    /// As [`Repository::rebuild`] has them.
    pub fn finish(self, monitor: &mut dyn Monitor) -> Result<RebuildReport> {
        write_durably(&self.path.join(SETTINGS), &self.settings)?;
        let report = Repository::rebuild(&self.path, monitor)?;
        let marker = self.path.join(COPYING);
        fs::remove_file(&marker).map_err(|source| Error::io("remove", &marker, source))?;
        sync_directory(&self.path)?;
        Ok(report)
    }
}

/// Whether a directory is that of a repository in use, and not a copy in the form of an object store.
pub fn is_home(path: &Path) -> bool {
    path.join(CATALOG).exists()
}

/// What the repository.json of a copy says.
///
/// # Errors
/// When it is damaged, or of a later release.
pub(crate) fn settings_of_copy(settings: &[u8], from: &str) -> Result<Settings> {
    let from = Path::new(from);
    parse_settings(settings, from, &from.join(SETTINGS))
}

fn unfinished(marker: &Path) -> Result<Option<Copying>> {
    match regular::read(marker) {
        Ok(text) => {
            let parsed = serde_json::from_slice(&text);
            let unreadable = |error| Error::Invalid(format!("{} is damaged: {error}", marker.display()));
            Ok(Some(parsed.map_err(unreadable)?))
        }
        Err(source)
            if matches!(
                source.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(Error::io("read", marker, source)),
    }
}

#[cfg(test)]
mod tests {
    use barmanfs_store::PackWriter;

    use super::*;
    use crate::home::settings::CreateOptions;
    use crate::monitor::Silent;

    fn made() -> (tempfile::TempDir, Repository, PathBuf) {
        let (directory, repository) = crate::index::repository::temporary();
        let copy = directory.path().join("copy");
        (directory, repository, copy)
    }

    fn empty_pack(repository: &Repository) -> PackId {
        let pack = PackWriter::begin(repository.storage.as_ref()).unwrap();
        pack.close().unwrap().id
    }

    fn copy(from: &CopyFrom, into: &CopyInto) {
        for pack in &from.packs {
            let mut bytes = vec![0; pack.bytes as usize];
            from.storage().read_at(pack.id, 0, &mut bytes).unwrap();
            let mut upload = into.packs().begin_copy(pack.id).unwrap();
            upload.write(&bytes).unwrap();
            upload.finish().unwrap();
        }
    }

    #[test]
    fn a_copy_is_the_same_repository() {
        let (_directory, repository, path) = made();
        // A pack that no catalog knows yet is a part of it.
        empty_pack(&repository);
        let from = repository.begin_whole_copy("copy").unwrap();
        assert_eq!((from.packs.len(), from.unread.len()), (1, 0));
        let into = CopyInto::begin(&path, &from.settings().unwrap(), &[], "s3://b").unwrap();
        copy(&from, &into);
        assert!(into.finish(&mut Silent).unwrap().is_complete());
        let copied = Repository::open(&path).unwrap();
        assert_eq!(copied.settings(), repository.settings());
        assert_eq!(copied.pack_ids().unwrap(), repository.pack_ids().unwrap());
        copied.try_writing().unwrap();
        assert!(!path.join(COPYING).exists());
    }

    /// The kind: a part must never be taken for the whole.
    #[test]
    fn an_unfinished_copy_is_no_repository_and_is_completed_by_the_next() {
        let (_directory, repository, path) = made();
        empty_pack(&repository);
        let from = repository.begin_whole_copy("copy").unwrap();
        let settings = from.settings().unwrap();
        let into = CopyInto::begin(&path, &settings, &[], "s3://b").unwrap();
        let occupied = CopyInto::begin(&path, &settings, &[], "s3://b").unwrap_err();
        assert!(matches!(occupied, Error::Occupied { .. }), "{occupied}");
        copy(&from, &into);
        drop(into);
        for refused in [
            Repository::open(&path).unwrap_err(),
            Repository::rebuild(&path, &mut Silent).unwrap_err(),
        ] {
            assert!(refused.to_string().contains("unfinished copy"), "{refused}");
        }
        assert!(Repository::create(&path, CreateOptions::default()).is_err());
        let (_other_directory, other, _) = made();
        let other = other.begin_whole_copy("copy").unwrap().settings().unwrap();
        let refused = CopyInto::begin(&path, &other, &[], "s3://c").unwrap_err();
        assert!(refused.to_string().contains("s3://b"), "{refused}");
        let into = CopyInto::begin(&path, &settings, &[], "s3://b").unwrap();
        assert!(into.finish(&mut Silent).unwrap().is_complete());
        Repository::open(&path).unwrap();
        assert!(
            CopyInto::begin(&path, &settings, &[], "s3://b").is_err(),
            "it is a repository"
        );
    }

    #[test]
    fn a_pack_that_the_catalog_lacks_or_the_store_has_is_not_gone() {
        let (_directory, repository, _) = made();
        let pack = empty_pack(&repository);
        let from = repository.begin_whole_copy("copy").unwrap();
        assert!(!from.is_without(pack).unwrap());
        assert!(from.is_without(PackId([9; 16])).unwrap());
        repository.storage.remove(pack).unwrap();
        assert!(!from.is_without(pack).unwrap(), "it is lost, not gone");
        drop(from);
        assert_eq!(repository.begin_whole_copy("copy").unwrap().unread.len(), 1);
    }
}
