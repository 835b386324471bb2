//! SQLite connections: opening, a pool for readers, one for writing, and what happens when the file is replaced.
//!
//! - Every process opens catalog.sqlite itself, in WAL mode: readers never wait, writers wait for each other for at
//!   most [`BUSY_TIMEOUT`]. A write is one short `BEGIN IMMEDIATE` transaction, durable when it returns
//!   (`synchronous=FULL`). Nothing long-running holds a transaction open, except the upgrade of a
//!   catalog of an earlier release ([`upgrade`]).
//! - A process does not checkpoint when it ends: `wal-archive` is started for every segment and would pay for it each
//!   time. SQLite's automatic checkpoint is off, too: a process that is alone reads the whole WAL when it opens it,
//!   does not know which part was checkpointed before, and never resets the WAL, so the WAL would grow with every
//!   segment. Instead, a process that commits and finds the WAL longer than [`WAL_LIMIT_BYTES`] checkpoints and
//!   truncates it.
//! - A rebuild renames a new file into place. A connection to the old file would continue to read it, so the pool
//!   checks whether the file is still the same, at most once in [`IDENTITY_INTERVAL`] and whenever a writer begins.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::error::{Error, Result};
use crate::home::owner::Owner;
use crate::home::{regular, with_suffix};
use crate::index::db::connect::{BUSY_TIMEOUT, connect};
pub(crate) use crate::index::db::shrink::allow_shrinking;
pub(crate) use crate::index::db::upgrade::create_tables;
use crate::index::footer_ids::FooterIds;
use crate::index::records::Derive;
use crate::index::runs::filters::Filters;

use barmanfs_store::PackStorage;
use barmanfs_store::sync::lock;

mod connect;
mod shrink;
#[cfg(test)]
pub(crate) mod statements;
mod upgrade;

/// Number of idle read connections kept: as many as threads read at once on common machines, each with its own cache.
const IDLE_READERS_MAX: usize = 8;

/// The WAL is checkpointed and truncated when it is longer. Opening the catalog costs a millisecond for each MiB of
/// WAL; a checkpoint costs two fsyncs and the writes of its pages. The limit is about fifteen archived segments.
const WAL_LIMIT_BYTES: u64 = 2 * 1024 * 1024;

/// Number of reported faults of a damaged catalog: the first is reason enough to rebuild it.
const FAULTS_MAX: u32 = 10;

/// How often a reader checks whether the file was replaced.
const IDENTITY_INTERVAL: Duration = Duration::from_secs(1);

/// The catalog's file and this process's connections to it.
#[derive(Debug)]
pub(crate) struct Db {
    path: PathBuf,
    /// The repository's owner: SQLite creates files next to the catalog.
    owner: Owner,
    derive: Derive,
    ids: Arc<FooterIds>,
    filters: Arc<Filters>,
    pool: Mutex<Pool>,
    writer: Mutex<Option<(Identity, Link)>>,
}

/// A connection.
#[derive(Debug)]
struct Link {
    connection: Connection,
    /// It locks all others out, see [`connect`]; so it is closed after use.
    alone: bool,
}

#[derive(Debug)]
struct Pool {
    identity: Identity,
    looked_at: Instant,
    idle: Vec<Link>,
    /// How often the file was replaced since it was first opened.
    replaced: u64,
}

/// Identifies the file, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Db {
    /// Creates a new, empty catalog.
    ///
    /// # Errors
    /// When the file exists or cannot be created.
    pub(crate) fn create(path: &Path) -> Result<()> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let create = || -> Result<()> {
            let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
            allow_shrinking(&connection)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            create_tables(&connection)
        };
        create().map_err(|error| error.in_catalog(path))
    }

    /// Opens the catalog of these packs.
    ///
    /// # Errors
    /// [`Error::CatalogMissing`], [`Error::CatalogLayout`], [`Error::CatalogNewer`], [`Error::CatalogDamaged`].
    pub(crate) fn open(
        path: &Path,
        owner: Owner,
        derive: Derive,
        packs: Arc<dyn PackStorage>,
    ) -> Result<Self> {
        let identity = identify(path)?;
        let ids = Arc::new(FooterIds::of(packs));
        let first = connect(path, &owner, derive)?;
        let filters = Arc::<Filters>::default();
        ids.teach(&first.connection)?;
        filters.teach(&first.connection)?;
        let pool = Pool {
            identity,
            looked_at: Instant::now(),
            idle: if first.alone { Vec::new() } else { vec![first] },
            replaced: 0,
        };
        Ok(Self {
            path: path.to_path_buf(),
            owner,
            derive,
            ids,
            filters,
            pool: Mutex::new(pool),
            writer: Mutex::new(None),
        })
    }

    /// The function that defines what records mean.
    pub(crate) fn derive(&self) -> Derive {
        self.derive
    }

    /// Which chunks the packs have, as their footers say.
    pub(crate) fn ids(&self) -> &FooterIds {
        &self.ids
    }

    fn connect(&self) -> Result<Link> {
        let link = connect(&self.path, &self.owner, self.derive)?;
        self.ids.teach(&link.connection)?;
        self.filters.teach(&link.connection)?;
        Ok(link)
    }

    /// Checks whether a rebuild replaced the file, and if so discards the connections to the old one. Returns how often
    /// the file was replaced.
    pub(crate) fn refresh(&self) -> Result<u64> {
        let mut pool = lock(&self.pool);
        let identity = identify(&self.path)?;
        pool.looked_at = Instant::now();
        if identity != pool.identity {
            pool.identity = identity;
            pool.idle.clear();
            pool.replaced += 1;
        }
        Ok(pool.replaced)
    }

    /// How often the file was replaced, as far as this process has noticed.
    pub(crate) fn replaced(&self) -> u64 {
        lock(&self.pool).replaced
    }

    /// Runs `work` on a connection for reading. Two queries in it may see different states.
    pub(crate) fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let (replaced, link) = self.take_reader()?;
        let result = work(&link.connection).map_err(|error| error.in_catalog(&self.path));
        if result.is_ok()
            && let Err(error) = self.filters.go_on(&link.connection)
        {
            tracing::debug!("No filters of the catalog's runs are made: {error}");
        }
        if result.is_ok() && !link.alone {
            let mut pool = lock(&self.pool);
            if pool.replaced == replaced && pool.idle.len() < IDLE_READERS_MAX {
                pool.idle.push(link);
            }
        }
        result
    }

    /// Whether several threads may read at once. Not after a read for which others had to be locked out, see [`connect`].
    pub(crate) fn is_shared(&self) -> bool {
        !lock(&self.pool).idle.is_empty()
    }

    fn take_reader(&self) -> Result<(u64, Link)> {
        let mut pool = lock(&self.pool);
        if pool.looked_at.elapsed() >= IDENTITY_INTERVAL {
            drop(pool);
            self.refresh()?;
            pool = lock(&self.pool);
        }
        let replaced = pool.replaced;
        let idle = pool.idle.pop();
        drop(pool);
        match idle {
            Some(link) => Ok((replaced, link)),
            None => Ok((replaced, self.connect()?)),
        }
    }

    /// Runs `work` in one transaction; it is durable when this returns, and has no effect if it fails.
    pub(crate) fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let identity = lock(&self.pool).identity;
        let mut slot = lock(&self.writer);
        let (_, mut link) = match slot.take() {
            Some(open) if open.0 == identity => open,
            _ => (identity, self.connect()?),
        };
        let run = || -> Result<T> {
            let transaction = link
                .connection
                .transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        let result = run().map_err(|error| error.in_catalog(&self.path));
        if result.is_ok() && !link.alone {
            self.empty_long_wal(&link.connection);
            *slot = Some((identity, link));
        }
        result
    }

    /// The faults SQLite finds in the file.
    pub(crate) fn faults(&self) -> Result<Vec<String>> {
        let found = self.read(|db| {
            let mut check = db.prepare(&format!("PRAGMA quick_check({FAULTS_MAX})"))?;
            let rows = check.query_map([], |row| row.get::<_, String>(0))?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        });
        match found {
            Ok(mut lines) => {
                lines.retain(|line| line != "ok");
                Ok(lines)
            }
            Err(Error::CatalogDamaged { reason, .. }) => Ok(vec![reason]),
            Err(error) => Err(error),
        }
    }

    /// Empties a WAL that has become long.
    fn empty_long_wal(&self, connection: &Connection) {
        if fs::metadata(with_suffix(&self.path, "-wal")).is_ok_and(|wal| wal.len() <= WAL_LIMIT_BYTES) {
            return;
        }
        Self::empty_wal(connection);
    }

    /// Checkpoints and truncates the WAL. It never waits: if a reader still uses the WAL, it stays as it is until the next
    /// commit. An error does no harm either: what was committed is durable in the WAL.
    fn empty_wal(connection: &Connection) {
        let empty = || -> rusqlite::Result<()> {
            connection.busy_timeout(Duration::ZERO)?;
            let emptied = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            connection.busy_timeout(BUSY_TIMEOUT)?;
            emptied
        };
        if let Err(error) = empty() {
            tracing::debug!("The catalog's WAL stays as long as it is: {error}");
        }
    }
}

/// The catalog and the files SQLite keeps next to it.
fn files(catalog: &Path) -> [PathBuf; 4] {
    ["", "-wal", "-shm", "-journal"].map(|suffix| with_suffix(catalog, suffix))
}

/// Makes sure that the files SQLite will open are regular files or do not exist.
pub(crate) fn check_files(catalog: &Path) -> Result<()> {
    files(catalog).iter().try_for_each(|file| regular::check(file))
}

/// Removes a catalog and the files SQLite keeps next to it.
pub(crate) fn remove_catalog(catalog: &Path) -> Result<()> {
    for file in files(catalog) {
        match fs::remove_file(&file) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &file, source));
            }
            _ => {}
        }
    }
    Ok(())
}

fn identify(path: &Path) -> Result<Identity> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            regular::check(path)?;
            Err(Error::io("use", path, std::io::ErrorKind::InvalidInput.into()))
        }
        Ok(found) => Ok(Identity {
            device: found.dev(),
            inode: found.ino(),
        }),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Err(Error::CatalogMissing {
            path: path.to_path_buf(),
        }),
        Err(source) => Err(Error::io("inspect", path, source)),
    }
}
