//! A repository: the directory that holds everything.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use barmanfs_pg::TimestampMicros;
use barmanfs_store::layout::{DATA_WINDOW_BYTES, FORMAT_VERSION, WAL_WINDOW_BYTES};
use barmanfs_store::{
    ChunkIndex, ChunkReader, DepositOptions, LocalPacks, PackId, PackStorage, RecordId, TreeReader,
};
use rusqlite::OptionalExtension;
use rustix::fs::{Access, AtFlags, CWD};
use serde::{Deserialize, Serialize};

use crate::backup::running;
use crate::chunk_index::CatalogIndex;
use crate::clones::LIVE;
use crate::db::Db;
use crate::error::{Error, Result};
use crate::locks::Locks;
use crate::owner::{AsOwner, Owner};
use crate::regular;
use crate::reserve::RESERVE;
use crate::server::ServerName;
use crate::spool::SPOOL;
use crate::unread::Surveyor;
use crate::wal::ReadIndexes;

const SETTINGS: &str = "repository.json";
pub(crate) const CATALOG: &str = "catalog.sqlite";
pub(crate) const PACKS: &str = "packs";
pub(crate) const DIRECTORIES: [&str; 4] = ["locks", "running", LIVE, SPOOL];

/// Decoded chunks kept by default: enough for a few readers; a mount asks for more.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// zstd levels of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compression {
    /// Of whole chunks of data.
    pub data_level: i32,
    /// Of delta chunks.
    pub delta_level: i32,
    /// Of WAL.
    pub wal_level: i32,
}

impl Default for Compression {
    fn default() -> Self {
        let options = DepositOptions::default();
        Self {
            data_level: options.whole_level,
            delta_level: options.delta_level,
            wal_level: options.wal_level,
        }
    }
}

/// What a new repository is to be like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// How what is written to it is compressed.
    pub compression: Compression,
}

/// What repository.json says. It is written once and never changes. What is stored does not need it to be read: one that
/// was lost is made anew with what a new repository has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Version of the formats in this repository.
    pub format_version: u32,
    /// Its name among repositories: random.
    pub id: String,
    /// When it was made.
    pub created_at: TimestampMicros,
    /// Window size of data files.
    pub data_window_bytes: u32,
    /// Window size of WAL.
    pub wal_window_bytes: u32,
    /// How what is written is compressed.
    pub compression: Compression,
}

/// An open repository. Cheap to clone; used from any number of threads.
#[derive(Debug, Clone)]
pub struct Repository {
    path: PathBuf,
    owner: Owner,
    settings: Arc<Settings>,
    pub(crate) db: Arc<Db>,
    pub(crate) storage: Arc<dyn PackStorage>,
    pub(crate) locks: Locks,
    pub(crate) surveyor: Arc<Surveyor>,
    chunks: Arc<ChunkReader>,
    pub(crate) read_indexes: Arc<ReadIndexes>,
}

impl Repository {
    /// Makes a repository in an empty or missing directory and opens it. `repository.json` comes last: what a crash
    /// leaves before that is no repository, and is completed by the next try.
    ///
    /// # Errors
    /// [`Error::CannotCreate`] when something is there already.
    pub fn create(path: &Path, options: CreateOptions) -> Result<Self> {
        check_vacant(path)?;
        fs::create_dir_all(path).map_err(|source| Error::io("create", path, source))?;
        make_directories(path)?;
        LocalPacks::create(&path.join(PACKS))?;
        remove_catalog(&path.join(CATALOG))?;
        Db::create(&path.join(CATALOG))?;
        make_settings(path, options)?;
        Self::open(path)
    }

    /// Opens a repository. Takes a few milliseconds: `wal-archive` does it for every segment.
    ///
    /// # Errors
    /// [`Error::NoRepository`], [`Error::SettingsMissing`], [`Error::NewerFormat`], and what says that the catalog has to be rebuilt:
    /// [`Error::CatalogMissing`], [`Error::CatalogLayout`], [`Error::CatalogDamaged`].
    pub fn open(path: &Path) -> Result<Self> {
        let settings = read_settings(path)?;
        let owner = Owner::of(path).map_err(|source| Error::io("inspect", path, source))?;
        let db = Arc::new(Db::open(&path.join(CATALOG), owner.clone())?);
        let storage: Arc<dyn PackStorage> = Arc::new(LocalPacks::open(&path.join(PACKS))?);
        let locks = Locks::of(path, owner.clone());
        let surveyor = Surveyor::new(Arc::clone(&db), Arc::clone(&storage), locks.clone());
        let surveyor = Arc::new(surveyor);
        let chunks = chunk_reader(&storage, &db, &surveyor, CACHE_BYTES);
        Ok(Self {
            path: path.to_path_buf(),
            owner,
            settings: Arc::new(settings),
            db,
            storage,
            locks,
            surveyor,
            chunks,
            read_indexes: Arc::default(),
        })
    }

    /// The same repository with a chunk cache of this size.
    #[must_use]
    pub fn with_cache_bytes(self, cache_bytes: usize) -> Self {
        let chunks = chunk_reader(&self.storage, &self.db, &self.surveyor, cache_bytes);
        Self { chunks, ..self }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Root takes on the rights of the repository's owner, for what it does in here. Nothing to do for other users.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn as_owner(&self) -> Result<AsOwner> {
        self.owner.act_in(&self.path)
    }

    /// Tries out whether everything can be written that a backup or a segment writes: each directory, the locks, the catalog.
    ///
    /// # Errors
    /// Of the first that cannot be.
    pub fn try_writing(&self) -> Result<()> {
        // A writer takes a lock.
        let writer = match self.writer("check") {
            // The rebuild that keeps it out does write.
            Err(Error::Occupied { .. }) => None,
            writer => Some(writer?),
        };
        let _acting = self.as_owner()?;
        for directory in [&[PACKS][..], &DIRECTORIES[..]].concat() {
            let directory = self.path.join(directory);
            tempfile::tempfile_in(&directory).map_err(|source| Error::io("write to", &directory, source))?;
        }
        for first in 0..=u8::MAX {
            let directory = self.path.join(PACKS).join(format!("{first:02x}"));
            match rustix::fs::accessat(CWD, &directory, Access::WRITE_OK, AtFlags::EACCESS) {
                // It is made when it is needed.
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(Error::io("write to", &directory, errno.into())),
            }
        }
        self.db.write(|transaction| {
            // Only a change shows whether the file can be changed.
            let version: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
            Ok(transaction.pragma_update(None, "user_version", version)?)
        })?;
        drop(writer);
        Ok(())
    }

    /// What its repository.json says.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Reads its chunks.
    pub fn chunks(&self) -> &Arc<ChunkReader> {
        &self.chunks
    }

    /// Reads its trees and files.
    pub fn trees(&self) -> TreeReader {
        TreeReader::new(Arc::clone(&self.chunks))
    }

    /// A number that is another one when backups, WAL or servers may have changed, whichever process did it. Asking
    /// costs microseconds.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn generation(&self) -> Result<u64> {
        let replaced = self.db.refresh()?;
        let records: i64 = self.db.read(|db| {
            let mut last = db.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'records'")?;
            Ok(last.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
        })?;
        // A rebuilt catalog numbers its records anew.
        Ok((replaced << 48) ^ records.cast_unsigned())
    }

    /// The servers there is anything of, sorted by name.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn servers(&self) -> Result<Vec<ServerName>> {
        let mut servers: BTreeSet<ServerName> = running::servers(self)?.into_iter().collect();
        let recorded = self.db.read(|db| {
            let mut names = db.prepare_cached(
                "SELECT name FROM servers UNION SELECT server FROM backups UNION SELECT DISTINCT server FROM wal
                 WHERE instr(server, '/') = 0",
            )?;
            let rows = names.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|name| name?.parse()).collect::<Result<Vec<ServerName>>>()
        })?;
        servers.extend(recorded);
        Ok(servers.into_iter().collect())
    }

    /// Whether the catalog has this pack.
    pub(crate) fn knows_pack(&self, pack: PackId) -> Result<bool> {
        self.db.read(|db| {
            Ok(db
                .prepare_cached("SELECT 1 FROM packs WHERE id = ?1")?
                .exists([pack.as_bytes()])?)
        })
    }

    /// All packs the catalog has. Sixteen bytes each: a million, 64 TB, are no burden.
    pub(crate) fn pack_ids(&self) -> Result<Vec<PackId>> {
        self.db.read(|db| {
            let mut all = db.prepare_cached("SELECT id FROM packs ORDER BY seq")?;
            let rows = all.query_map([], |row| row.get(0).map(PackId))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Looks through the catalog's file for damage; nothing where it is sound. It reads all of it.
    ///
    /// # Errors
    /// When it cannot be read for another reason.
    pub fn catalog_faults(&self) -> Result<Vec<String>> {
        self.db.faults()
    }

    /// Size of the catalog's file in bytes.
    pub fn catalog_bytes(&self) -> u64 {
        fs::metadata(self.path.join(CATALOG)).map_or(0, |found| found.len())
    }

    pub(crate) fn deposit_options(&self) -> DepositOptions {
        let Compression {
            data_level,
            delta_level,
            wal_level,
        } = self.settings.compression;
        DepositOptions {
            whole_level: data_level,
            delta_level,
            wal_level,
            ..DepositOptions::default()
        }
    }
}

fn chunk_reader(
    storage: &Arc<dyn PackStorage>,
    db: &Arc<Db>,
    surveyor: &Arc<Surveyor>,
    cache_bytes: usize,
) -> Arc<ChunkReader> {
    let index = CatalogIndex::for_readers(Arc::clone(db), Arc::clone(surveyor));
    let index: Arc<dyn ChunkIndex> = Arc::new(index);
    Arc::new(ChunkReader::new(Arc::clone(storage), index, cache_bytes))
}

/// Writes repository.json.
pub(crate) fn make_settings(path: &Path, options: CreateOptions) -> Result<()> {
    let settings = Settings {
        format_version: FORMAT_VERSION,
        id: RecordId::random()?.to_string(),
        created_at: now(),
        data_window_bytes: DATA_WINDOW_BYTES,
        wal_window_bytes: WAL_WINDOW_BYTES,
        compression: options.compression,
    };
    let json = serde_json::to_string_pretty(&settings).map_err(|error| Error::Invalid(error.to_string()))?;
    write_durably(&path.join(SETTINGS), format!("{json}\n").as_bytes())
}

/// Reads and checks repository.json.
pub(crate) fn read_settings(path: &Path) -> Result<Settings> {
    let file = path.join(SETTINGS);
    let text = match regular::read(&file) {
        Ok(text) => text,
        Err(source)
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            let path = path.to_path_buf();
            return Err(if has_packs(&path)? {
                Error::SettingsMissing { path }
            } else {
                Error::NoRepository { path }
            });
        }
        Err(source) => return Err(Error::io("read", &file, source)),
    };
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let bad = |error: serde_json::Error| Error::BadSettings {
        path: file.clone(),
        reason: error.to_string(),
    };
    let Version {
        format_version: found,
    } = serde_json::from_slice(&text).map_err(bad)?;
    if found > FORMAT_VERSION {
        let what = format!("The repository {}", path.display());
        return Err(Error::NewerFormat {
            what,
            found,
            newest: FORMAT_VERSION,
        });
    }
    serde_json::from_slice(&text).map_err(bad)
}

/// A repository may be made where there is nothing, or only what an earlier try left.
fn check_vacant(path: &Path) -> Result<()> {
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

/// Whether there are packs in a directory, which may be no repository.
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

/// Makes what is missing of a repository's own directories: one that was copied may have come without those that were empty.
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

/// Removes a catalog with the files SQLite keeps beside it.
pub(crate) fn remove_catalog(catalog: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let file = with_suffix(catalog, suffix);
        match fs::remove_file(&file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &file, source));
            }
            _ => {}
        }
    }
    Ok(())
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

/// Writes a small file so that after a crash there is either all of it or what was there before.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let failed = |source| Error::io("write", path, source);
    let mut file = tempfile::Builder::new()
        .prefix(".tmp-")
        .tempfile_in(directory)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    sync_directory(directory)
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
