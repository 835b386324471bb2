//! The directory of a repository: where everything in it is, who owns it, how its small files are written, and which
//! processes are at work. Packs and catalog are handled elsewhere.

pub(crate) mod cache_of;
pub(crate) mod keys;
pub(crate) mod locks;
pub(crate) mod owner;
pub(crate) mod presence;
pub(crate) mod regular;
pub(crate) mod settings;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use barmanfs_pg::TimestampMicros;
use barmanfs_store::{LocalPacks, PackStorage};
use rustix::fs::{Access, AtFlags, CWD};

use crate::error::{Error, Result};
use keys::KEYS;
use locks::LOCKS;
use owner::{AsOwner, Owner};
use settings::SETTINGS;

/// The SQLite file that is derived from the packs.
pub(crate) const CATALOG: &str = "catalog.sqlite";

/// The directory of the packs, which hold all data.
pub(crate) const PACKS: &str = "packs";

/// State files of backups that are being taken.
pub(crate) const RUNNING: &str = "running";

/// Clones.
pub(crate) const LIVE: &str = "live";

/// WAL that was received and is not archived yet.
pub(crate) const SPOOL: &str = "spool";

/// What the site's configuration has besides the administrator's files.
pub(crate) const CONFIG: &str = "config";

/// Is there while a repository is copied into the directory, and says from where.
pub(crate) const COPYING: &str = "copying.json";

/// The file that reserves space for operations that free space.
pub(crate) const RESERVE: &str = "reserve";

/// Begins the names of small files that are being written.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// All directories but that of the packs, which the store creates.
const DIRECTORIES: [&str; 4] = [LOCKS, RUNNING, LIVE, SPOOL];

/// The directory of a repository, and its owner.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    path: PathBuf,
    owner: Owner,
}

impl Home {
    /// The directory at `path`.
    ///
    /// # Errors
    /// [`Error::NoRepository`] if it does not exist; when it cannot be inspected.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let owner = Owner::of(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::NoRepository {
                path: path.to_path_buf(),
            },
            _ => Error::io("inspect", path, source),
        })?;
        Ok(Self {
            path: path.to_path_buf(),
            owner,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Takes on the owner's rights, for root's work in the repository.
    pub(crate) fn act(&self) -> Result<AsOwner> {
        self.owner.act_in(&self.path)
    }

    /// A file without a name.
    pub(crate) fn temporary_file(&self) -> Result<File> {
        let _acting = self.act()?;
        tempfile::tempfile_in(&self.path)
            .map_err(|source| Error::io("make a temporary file in", &self.path, source))
    }

    /// Checks that files can be created in each directory, with those of packs if there are any.
    ///
    /// # Errors
    /// For the first directory in which none can be created.
    pub(crate) fn try_writing(&self, has_packs: bool) -> Result<()> {
        let _acting = self.act()?;
        let packs: &[&str] = if has_packs { &[PACKS] } else { &[] };
        for directory in [packs, &DIRECTORIES[..]].concat() {
            let directory = self.join(directory);
            tempfile::tempfile_in(&directory).map_err(|source| Error::io("write to", &directory, source))?;
        }
        for first in (0..=u8::MAX).filter(|_| has_packs) {
            let directory = self.join(PACKS).join(format!("{first:02x}"));
            match rustix::fs::accessat(CWD, &directory, Access::WRITE_OK, AtFlags::EACCESS) {
                // It is created when it is needed.
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(Error::io("write to", &directory, errno.into())),
            }
        }
        Ok(())
    }
}

/// A repository may be created where there is nothing, or only the remains of an earlier attempt.
pub(crate) fn check_vacant(path: &Path) -> Result<()> {
    let refuse = |reason: String| {
        Err(Error::CannotCreate {
            path: path.to_path_buf(),
            reason,
        })
    };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::io("list", path, source)),
    };
    for entry in entries {
        let name = entry
            .map_err(|source| Error::io("list", path, source))?
            .file_name();
        let name = name.to_string_lossy();
        if name == SETTINGS {
            return refuse("there is a repository already".to_owned());
        }
        let ours = name == PACKS
            || name == RESERVE
            || name == CONFIG
            || name == KEYS
            || name.starts_with(CATALOG)
            || DIRECTORIES.contains(&name.as_ref());
        if !ours {
            return refuse(format!("the directory is not empty: it holds {name:?}"));
        }
    }
    if has_packs(path)? {
        return Err(Error::SettingsMissing {
            path: path.to_path_buf(),
        });
    }
    Ok(())
}

/// Whether a directory, which need not be a repository, has packs.
fn has_packs(path: &Path) -> Result<bool> {
    let mut found = false;
    if let Ok(packs) = LocalPacks::open(&path.join(PACKS)) {
        packs.list(&mut |_| {
            found = true;
            Ok(())
        })?;
    }
    Ok(found)
}

/// Creates the missing directories of a repository: a copied repository may lack those that were empty.
pub(crate) fn make_directories(path: &Path) -> Result<()> {
    DIRECTORIES.iter().try_for_each(|directory| {
        let directory = path.join(directory);
        match fs::create_dir(&directory) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::io("create", &directory, source))
            }
            _ => Ok(()),
        }
    })
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

/// Writes a small file so that a crash leaves either all of it or the previous content.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, File::sync_all)?;
    sync_directory(directory_of(path))
}

/// Writes a small file so that other processes see either all of it or the previous content. After a crash of the host it
/// may be either, or empty.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, |_| Ok(()))
}

fn replace(path: &Path, bytes: &[u8], finish: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
    let failed = |source| Error::io("write", path, source);
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(directory_of(path))
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    finish(file.as_file()).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// Makes names that were created, renamed or removed in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|source| Error::io("sync", directory, source))
}

/// The time by this host's clock.
pub(crate) fn now() -> TimestampMicros {
    std::time::SystemTime::now().into()
}
