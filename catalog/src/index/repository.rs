//! An open repository: all modules above this one work on it and add their own functions to it.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use barmanfs_store::{
    ChunkIndex, ChunkReader, CountedPacks, Counters, DepositOptions, Keys, LocalPacks, PackId, PackStorage,
    PlainPacks, SealedPacks, TreeReader,
};
use rusqlite::OptionalExtension;

use crate::error::{Error, Result};
use crate::home::cache_of::{refuse_cache, require_cache_of};
use crate::home::keys::{self, Encryption, FirstKey, NewRecipient};
use crate::home::locks::{FileLocks, Locks};
use crate::home::owner::AsOwner;
use crate::home::settings::{Compression, CreateOptions, Settings, read_settings, write_settings};
use crate::home::{CATALOG, Home, PACKS, check_vacant, make_directories};
use crate::index::chunk_index::CatalogIndex;
use crate::index::damaged_wal::DamagedWal;
use crate::index::db::{Db, remove_catalog};
use crate::index::read_segments::ReadSegments;
use crate::index::records::{self, Derive};
use crate::index::remote::{Remote, RemotePacks};
use crate::index::unread::Surveyor;

/// The lock of a process that makes the repository.
const MAKING: &str = "make";

/// Default size of the cache of decoded chunks: enough for a few readers; a mount sets a larger one.
const CACHE_BYTES: usize = 32 * 1024 * 1024;

/// A generation has the number of records below this bit, and how often the catalog was replaced above it.
const REPLACED_SHIFT: u32 = 48;

/// An open repository. Cheap to clone; used from any number of threads.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(crate) home: Home,
    settings: Arc<Settings>,
    pub(crate) db: Arc<Db>,
    pub(crate) storage: Arc<dyn PackStorage>,
    /// Where the packs are, if they are not in the directory.
    pub(crate) remote: Option<Arc<dyn Remote>>,
    pub(crate) locks: Arc<dyn Locks>,
    pub(crate) surveyor: Arc<Surveyor>,
    chunks: Arc<ChunkReader>,
    pub(crate) read_segments: Arc<ReadSegments>,
    pub(crate) damaged_wal: Arc<DamagedWal>,
}

impl Repository {
    /// Creates the directory of a repository with an empty catalog. `repository.json` is written last: what a crash
    /// leaves before that is not a repository, and the next attempt completes it. Of several processes at once, one makes
    /// it, and the others wait and then find it made.
    pub(crate) fn make(
        path: &Path,
        options: CreateOptions,
        encryption: Option<(&FirstKey, &[NewRecipient])>,
    ) -> Result<()> {
        check_vacant(path)?;
        if encryption.is_none() {
            keys::refuse_plain(path)?;
        }
        fs::create_dir_all(path).map_err(|source| Error::io("create", path, source))?;
        make_directories(path)?;
        let locks = FileLocks::of(&Home::at(path)?);
        let making = locks.wait_exclusive(MAKING, "making the repository")?;
        let made = Self::make_alone(path, options, encryption);
        making.remove();
        made
    }

    fn make_alone(
        path: &Path,
        options: CreateOptions,
        encryption: Option<(&FirstKey, &[NewRecipient])>,
    ) -> Result<()> {
        check_vacant(path)?;
        LocalPacks::create(&path.join(PACKS))?;
        remove_catalog(&path.join(CATALOG))?;
        Db::create(&path.join(CATALOG))?;
        let mut settings = Settings::new(options)?;
        if let Some((first, recipients)) = encryption {
            let key = keys::make_first(path, first, recipients)?;
            let encryption = Encryption::new(&settings.id, &key, PlainPacks::Refused)?;
            settings = settings.encrypted(encryption);
        }
        write_settings(path, &settings)
    }

    /// Opens a repository; `derive` defines what its records mean.
    pub(crate) fn open_with(path: &Path, derive: Derive) -> Result<Self> {
        let home = Home::at(path)?;
        refuse_cache(path)?;
        let settings = read_settings(&home)?;
        let packs = local_packs(path, keys_of(&home, &settings)?)?;
        Self::on(home, settings, packs, None, derive)
    }

    /// Opens a repository in an object store, whose cache is the directory `path`.
    pub(crate) fn open_remote(path: &Path, packs: &RemotePacks, derive: Derive) -> Result<Self> {
        let home = Home::at(path)?;
        require_cache_of(path, packs.remote.place())?;
        let settings = read_settings(&home)?;
        refuse_encryption(&settings, path, packs.remote.place())?;
        let (storage, remote) = (Arc::clone(&packs.storage), Arc::clone(&packs.remote));
        Self::on(home, settings, storage, Some(remote), derive)
    }

    /// The same with packs that are kept in `storage`.
    pub(crate) fn on(
        home: Home,
        settings: Settings,
        storage: Arc<dyn PackStorage>,
        remote: Option<Arc<dyn Remote>>,
        derive: Derive,
    ) -> Result<Self> {
        let counters = Arc::new(Counters::default());
        let storage: Arc<dyn PackStorage> = Arc::new(CountedPacks::new(storage, Arc::clone(&counters)));
        let (catalog, owner) = (home.join(CATALOG), home.owner().clone());
        let db = Arc::new(Db::open(&catalog, owner, derive, Arc::clone(&storage))?);
        let locks: Arc<dyn Locks> = Arc::new(FileLocks::of(&home));
        let surveyor = Surveyor::new(Arc::clone(&db), Arc::clone(&storage), Arc::clone(&locks));
        let surveyor = match &remote {
            Some(remote) => surveyor.of_remote(Arc::clone(remote), home.clone()),
            None => surveyor,
        };
        let surveyor = Arc::new(surveyor);
        let chunks = chunk_reader(&storage, &db, &surveyor, counters, CACHE_BYTES);
        Ok(Self {
            home,
            settings: Arc::new(settings),
            db,
            storage,
            remote,
            locks,
            surveyor,
            chunks,
            read_segments: Arc::default(),
            damaged_wal: Arc::default(),
        })
    }

    /// The same repository with a chunk cache of this size.
    #[must_use]
    pub fn with_cache_bytes(self, cache_bytes: usize) -> Self {
        let counters = Arc::clone(self.counters());
        let chunks = chunk_reader(&self.storage, &self.db, &self.surveyor, counters, cache_bytes);
        Self { chunks, ..self }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.home.path()
    }

    /// Makes root act with the rights of the repository's owner while it works in it. Does nothing for other users.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn as_owner(&self) -> Result<AsOwner> {
        self.home.act()
    }

    /// A file without a name, for data that is too large for memory. It is in the repository's file system, which has
    /// space when `/tmp` may have none, and its space is free as soon as it is closed.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn temporary_file(&self) -> Result<File> {
        self.home.temporary_file()
    }

    /// Checks that everything a backup or a segment writes can be written: each directory, the locks, the catalog.
    ///
    /// # Errors
    /// The first failure.
    pub fn try_writing(&self) -> Result<()> {
        // Creating a writer takes a lock.
        let writer = match self.writer("check") {
            // The rebuild that keeps the writer out can write.
            Err(Error::Occupied { .. }) => None,
            writer => Some(writer?),
        };
        let _acting = self.as_owner()?;
        self.home.try_writing(self.remote.is_none())?;
        self.db.write(|transaction| {
            // Only a change shows whether the file can be changed.
            let version: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
            Ok(transaction.pragma_update(None, "user_version", version)?)
        })?;
        drop(writer);
        Ok(())
    }

    /// Where it is, as people name it: its directory, or its place in an object store.
    pub fn place(&self) -> String {
        match &self.remote {
            Some(remote) => remote.place().to_owned(),
            None => self.path().display().to_string(),
        }
    }

    /// Whether its packs are in an object store.
    pub fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// The host that writes, if it is another one.
    ///
    /// # Errors
    /// When the object store cannot be asked.
    pub fn writing_elsewhere(&self) -> Result<Option<String>> {
        match &self.remote {
            Some(remote) => Ok(remote.writing_elsewhere()?),
            None => Ok(None),
        }
    }

    /// Refuses to write into an object store that another host writes into.
    pub(crate) fn require_writing(&self) -> Result<()> {
        match &self.remote {
            Some(remote) => Ok(remote.require_writing()?),
            None => Ok(()),
        }
    }

    /// Looks for what other hosts have written, unless somebody on this host has done that a moment ago. Where this host writes, there
    /// is nothing to look for. A store that does not answer is no error: what is known stays.
    pub fn refresh(&self) {
        self.surveyor.refresh();
    }

    /// The content of its repository.json.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The reader of its chunks.
    pub fn chunks(&self) -> &Arc<ChunkReader> {
        &self.chunks
    }

    /// What was read and written through this repository and its clones since it was opened. Other processes count
    /// for themselves.
    pub fn counters(&self) -> &Arc<Counters> {
        self.chunks.counters()
    }

    /// The reader of its trees and files.
    pub fn trees(&self) -> TreeReader {
        TreeReader::new(Arc::clone(&self.chunks))
    }

    /// A number that changes when backups, WAL or servers may have changed, in whichever process. The call costs
    /// microseconds.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn generation(&self) -> Result<u64> {
        self.refresh();
        let replaced = self.db.refresh()?;
        let records: i64 = self.db.read(|db| {
            let mut last = db.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'records'")?;
            Ok(last.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
        })?;
        // A rebuilt catalog numbers its records from the beginning.
        Ok((replaced << REPLACED_SHIFT) ^ records.cast_unsigned())
    }

    /// The row of the last record at a [`generation`](Self::generation) of the catalog that is there now; `None` for one of a
    /// catalog that a rebuild has replaced.
    pub(crate) fn record_at(&self, generation: u64) -> Option<i64> {
        let records = generation ^ (self.db.replaced() << REPLACED_SHIFT);
        i64::try_from(records)
            .ok()
            .filter(|records| records >> REPLACED_SHIFT == 0)
    }

    /// Whether the catalog has this pack.
    pub(crate) fn knows_pack(&self, pack: PackId) -> Result<bool> {
        self.db.read(|db| records::knows_pack(db, pack))
    }

    /// All packs in the catalog. Each takes sixteen bytes: a million of them, 64 TB of data, fit easily.
    pub(crate) fn pack_ids(&self) -> Result<Vec<PackId>> {
        self.db.read(|db| {
            let mut all = db.prepare_cached("SELECT id FROM packs ORDER BY seq")?;
            let rows = all.query_map([], |row| row.get(0).map(PackId))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Checks the catalog's file for damage; the result is empty if it is intact. This reads the whole file.
    ///
    /// # Errors
    /// When it cannot be read for another reason.
    pub fn catalog_faults(&self) -> Result<Vec<String>> {
        self.db.faults()
    }

    /// Size of the catalog's file in bytes.
    pub fn catalog_bytes(&self) -> u64 {
        fs::metadata(self.home.join(CATALOG)).map_or(0, |found| found.len())
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
            stream_level: wal_level,
            ..DepositOptions::default()
        }
    }
}

/// The keys of a repository; none for a plain one.
pub(crate) fn keys_of(home: &Home, settings: &Settings) -> Result<Option<Arc<Keys>>> {
    if settings.encryption.is_some() {
        keys::prepare()?;
    }
    let _acting = home.act()?;
    let keys = keys::unlock(home.path(), settings)?;
    if keys.is_none() {
        keys::refuse_plain(home.path())?;
    }
    Ok(keys)
}

/// A repository in an object store cannot be encrypted yet, and none is written plain where an encrypted one is expected.
pub(crate) fn refuse_encryption(settings: &Settings, cache: &Path, place: &str) -> Result<()> {
    match settings.encryption {
        None => keys::refuse_plain(cache),
        Some(_) => Err(Error::Invalid(format!(
            "{place} has an encrypted repository, and those work in directories only yet: make one of it with `barmanfs copy {place} DIR`"
        ))),
    }
}

/// The packs in a repository's directory, with its keys.
pub(crate) fn local_packs(path: &Path, keys: Option<Arc<Keys>>) -> Result<Arc<dyn PackStorage>> {
    let packs: Arc<dyn PackStorage> = Arc::new(LocalPacks::open(&path.join(PACKS))?);
    Ok(match keys {
        None => packs,
        Some(keys) => Arc::new(SealedPacks::new(packs, keys)),
    })
}

fn chunk_reader(
    storage: &Arc<dyn PackStorage>,
    db: &Arc<Db>,
    surveyor: &Arc<Surveyor>,
    counters: Arc<Counters>,
    cache_bytes: usize,
) -> Arc<ChunkReader> {
    let index = CatalogIndex::for_readers(Arc::clone(db), Arc::clone(surveyor));
    let index: Arc<dyn ChunkIndex> = Arc::new(index);
    Arc::new(ChunkReader::new(
        Arc::clone(storage),
        index,
        counters,
        cache_bytes,
    ))
}

/// For tests: a new repository, and the directory that goes with it.
#[cfg(test)]
pub(crate) fn temporary() -> (tempfile::TempDir, Repository) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("repository");
    let repository = Repository::create(&path, CreateOptions::default()).unwrap();
    (directory, repository)
}

/// For tests: a new repository whose calls of the storage are recorded, and fail as the test decides.
#[cfg(test)]
pub(crate) fn on_test_packs(
    derive: Derive,
) -> (
    tempfile::TempDir,
    Arc<barmanfs_store::testing::TestPacks<LocalPacks>>,
    Repository,
) {
    let (directory, made) = temporary();
    let path = made.path().to_path_buf();
    drop(made);
    let packs = LocalPacks::open(&path.join(PACKS)).unwrap();
    let storage = Arc::new(barmanfs_store::testing::TestPacks::new(packs));
    let home = Home::at(&path).unwrap();
    let settings = read_settings(&home).unwrap();
    let repository = Repository::on(home, settings, storage.clone(), None, derive).unwrap();
    (directory, storage, repository)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    /// The kind: what is made where nothing is must not remove what another process has just made there.
    #[test]
    fn commands_that_find_no_repository_at_once_make_one() {
        let directory = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let path = directory.path().join(round.to_string());
            let all = Barrier::new(4);
            let begin = || {
                all.wait();
                let made = Repository::create(&path, CreateOptions::default());
                let repository = made.or_else(|_| Repository::open(&path)).unwrap();
                repository.try_writing().unwrap();
                repository.settings().id.clone()
            };
            let ids: Vec<String> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(begin)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        }
    }
}
