//! SQLite connections: opening, a pool for readers, one for writing, and what happens when the file is replaced.
//!
//! - Every process opens catalog.sqlite itself, in WAL mode: readers never wait, writers wait for each other for at
//!   most [`BUSY_TIMEOUT`]. A write is one short `BEGIN IMMEDIATE` transaction, durable when it returns
//!   (`synchronous=FULL`). Nothing long-running holds a transaction open.
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

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::error::{Error, Result};
use crate::home::owner::Owner;
use crate::home::{regular, with_suffix};
use crate::index::convert;
use crate::index::footer_ids::FooterIds;
use crate::index::records::{self, Derive};
use crate::index::schema;

use barmanfs_store::PackStorage;
use barmanfs_store::sync::lock;

/// How long a statement waits for another process's write. Writes take milliseconds; a minute means a failing disk.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// Number of idle read connections kept: as many as threads read at once on common machines, each with its own cache.
const IDLE_READERS_MAX: usize = 8;

/// The WAL is checkpointed and truncated when it is longer. Opening the catalog costs a millisecond for each MiB of
/// WAL; a checkpoint costs two fsyncs and the writes of its pages. The limit is about fifteen archived segments.
const WAL_LIMIT_BYTES: u64 = 2 * 1024 * 1024;

/// With this value of `auto_vacuum`, free pages can be given back to the file system a few at a time.
const INCREMENTAL: i64 = 2;

/// The file is made smaller when one in so many of its pages is free. Fewer are soon used again.
const FREE_PAGES_SHARE: i64 = 10;

/// Number of pages that one transaction gives back: it moves as many others, a MiB, and no writer waits longer for that
/// than for a large pack.
const PAGES_GIVEN_BACK: i64 = 256;

/// The largest catalog of an earlier release that is copied as a whole to make it smaller. Writers wait meanwhile: far less
/// than [`BUSY_TIMEOUT`].
const COPIED_BYTES_MAX: i64 = 128 << 20;

/// Page cache of one connection, in KiB. The operating system caches the file anyway; this saves system calls for
/// the upper levels of the trees.
const CACHE_KIB: i64 = 4096;

/// Statements kept prepared by each connection: all the catalog's frequent ones.
const STATEMENTS: usize = 64;

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
        ids.teach(&first.connection)?;
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

    /// Gives the pages that are free back to the file system, if they are many. Others may read and write meanwhile.
    ///
    /// # Errors
    /// When there is no space for the pages that have to be moved. Nothing is lost then.
    pub(crate) fn shrink(&self) -> Result<()> {
        let (pages, free, page_bytes, mode) = self.read(|db| {
            let number = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            Ok((
                number("page_count")?,
                number("freelist_count")?,
                number("page_size")?,
                number("auto_vacuum")?,
            ))
        })?;
        if free.saturating_mul(FREE_PAGES_SHARE) <= pages {
            return Ok(());
        }
        if mode != INCREMENTAL {
            let copied_bytes = pages.saturating_sub(free).saturating_mul(page_bytes);
            return match pages.saturating_mul(page_bytes) <= COPIED_BYTES_MAX
                && self.has_room_for(copied_bytes)
            {
                true => self.copy_smaller(),
                false => Ok(()),
            };
        }
        for _ in 0..free / PAGES_GIVEN_BACK + 1 {
            let some = format!("PRAGMA incremental_vacuum({PAGES_GIVEN_BACK})");
            self.write(|transaction| {
                // Each step gives one page back.
                let mut statement = transaction.prepare(&some)?;
                let mut steps = statement.query([])?;
                while steps.next()?.is_some() {}
                Ok(())
            })?;
        }
        if let Some((_, link)) = lock(&self.writer).as_ref() {
            Self::empty_wal(&link.connection);
        }
        Ok(())
    }

    /// Whether the file system has room for a copy of so many bytes in SQLite's WAL, and another one beside it.
    fn has_room_for(&self, bytes: i64) -> bool {
        let free = rustix::fs::statvfs(self.path.as_path());
        let free = free.map(|system| system.f_bavail.saturating_mul(system.f_frsize));
        let needed = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(4);
        free.is_ok_and(|free| free >= needed)
    }

    /// The same for a catalog that an earlier release made: from then on, it is made smaller in parts.
    fn copy_smaller(&self) -> Result<()> {
        let copy = || -> Result<()> {
            let link = self.connect()?;
            link.connection.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
            let copied = link.connection.execute_batch("VACUUM");
            if !link.alone {
                Self::empty_wal(&link.connection);
            }
            Ok(copied?)
        };
        copy().map_err(|error| error.in_catalog(&self.path))
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

/// Lets [`Db::shrink`] work in parts, if the file has nothing in it yet.
pub(crate) fn allow_shrinking(connection: &Connection) -> Result<()> {
    Ok(connection.pragma_update(None, "auto_vacuum", INCREMENTAL)?)
}

/// Creates the tables in an empty file.
pub(crate) fn create_tables(connection: &Connection) -> Result<()> {
    connection.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
    let (create, places, meanings) = (schema::CREATE, schema::CREATE_PLACES, schema::CREATE_MEANINGS);
    connection.execute_batch(&format!("BEGIN; {create} {places} {meanings} COMMIT;"))?;
    connection.pragma_update(None, "user_version", schema::LAYOUT)?;
    Ok(())
}

/// Upgrades a catalog of an earlier layout by making again the places of chunks and what its records mean. Other processes
/// see either the complete upgrade or nothing of it.
fn upgrade(connection: &mut Connection, derive: Derive) -> Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    if layout(&transaction)? != schema::LAYOUT {
        tracing::info!("Making the catalog's index again, because this release keeps more in it");
        convert::places_of_chunks(&transaction)?;
        for table in schema::MEANINGS {
            transaction.execute_batch(&format!("DROP TABLE IF EXISTS {table}"))?;
        }
        transaction.execute_batch(schema::CREATE_MEANINGS)?;
        records::derive_all(&transaction, derive, &mut |_, error| {
            tracing::warn!("A record cannot be read: {error}");
            Ok(())
        })?;
        transaction.pragma_update(None, "user_version", schema::LAYOUT)?;
    }
    Ok(transaction.commit()?)
}

fn layout(connection: &Connection) -> Result<i64> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Opens a connection. On a full disk the wal-index, a file that all processes share, may be impossible to create. With
/// exclusive access SQLite needs none, so that the repository can still be read.
fn connect(path: &Path, owner: &Owner, derive: Derive) -> Result<Link> {
    let _acting = owner.act_in(path)?;
    check_files(path)?;
    let link = |access, alone| connect_as(path, access, derive).map(|connection| Link { connection, alone });
    match link(Access::Shared, false) {
        // If nothing can be written here, no locks are needed. On a read-only file system no one can write, so
        // connections are kept. In a repository of another user, that user may write at any moment, so the connection
        // is closed after use.
        Err(Error::Full { .. } | Error::Catalog { .. } | Error::CatalogReadOnly { .. })
            if !is_writable(path) =>
        {
            link(Access::ReadOnly, !is_on_read_only_file_system(path))
        }
        Err(Error::Full { .. } | Error::Catalog { .. }) => link(Access::Alone, true),
        other => other,
    }
    .map_err(|error| error.in_catalog(path))
}

/// How a connection shares the catalog with other processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Through the wal-index, a file in memory.
    Shared,
    /// It locks all others out and has the wal-index to itself.
    Alone,
    /// The same without any lock: nothing can be written there, not even the files for sharing.
    ReadOnly,
}

/// SQLite's VFS without locks.
const WITHOUT_LOCKS: &std::ffi::CStr = c"unix-none";

/// The catalog as a URI, marked as a file that never changes.
fn immutable(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut uri = "file:".to_owned();
    for byte in absolute.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                uri.push(char::from(*byte));
            }
            // Writing to a string does not fail.
            _ => drop(write!(uri, "%{byte:02x}")),
        }
    }
    uri + "?immutable=1"
}

/// Whether SQLite can write the catalog and create files next to it.
fn is_writable(path: &Path) -> bool {
    let directory = path.parent().unwrap_or(Path::new("."));
    [path, directory].into_iter().all(|path| {
        use rustix::fs::{Access, AtFlags, CWD, accessat};
        accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
    })
}

fn is_on_read_only_file_system(path: &Path) -> bool {
    use rustix::fs::{StatVfsMountFlags, statvfs};
    statvfs(path).is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn connect_as(path: &Path, access: Access, derive: Derive) -> Result<Connection> {
    let mut connection = match access {
        Access::ReadOnly => {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            match fs::metadata(with_suffix(path, "-wal")) {
                Ok(wal) if wal.len() > 0 => Connection::open_with_flags_and_vfs(path, flags, WITHOUT_LOCKS)?,
                // SQLite would create a WAL unless it is told that nothing ever changes.
                _ => Connection::open_with_flags(immutable(path), flags | OpenFlags::SQLITE_OPEN_URI)?,
            }
        }
        Access::Shared | Access::Alone => {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            Connection::open_with_flags(path, flags)?
        }
    };
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Without this, SQLite, which is built to plan with statistics, plans every statement again each time its
    // parameters are bound: a look-up would spend most of its time in the parser.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    if access != Access::Shared {
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    #[cfg(test)]
    statements::note(&mut connection)?;
    match layout(&connection)? {
        schema::LAYOUT => {}
        schema::OLDEST_LAYOUT..schema::LAYOUT => upgrade(&mut connection, derive)?,
        found => {
            let (path, expected) = (path.to_path_buf(), schema::LAYOUT);
            return Err(if found > expected {
                Error::CatalogNewer {
                    path,
                    found,
                    expected,
                }
            } else {
                Error::CatalogLayout {
                    path,
                    found,
                    expected,
                }
            });
        }
    }
    Ok(connection)
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

/// For tests: the statements that a thread runs.
#[cfg(test)]
pub(crate) mod statements {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet};

    use rusqlite::Connection;
    use rusqlite::trace::{TraceEvent, TraceEventCodes};

    thread_local! {
        static SEEN: RefCell<Option<BTreeMap<String, usize>>> = const { RefCell::new(None) };
    }

    /// Lets a connection note its statements in the thread that runs them, while that wants to know.
    pub(super) fn note(connection: &mut Connection) -> rusqlite::Result<()> {
        connection.trace_v2(
            TraceEventCodes::SQLITE_TRACE_STMT,
            Some(|event: TraceEvent<'_>| {
                if let TraceEvent::Stmt(_, sql) = event {
                    SEEN.with_borrow_mut(|seen| {
                        if let Some(seen) = seen {
                            *seen.entry(sql.to_owned()).or_default() += 1;
                        }
                    });
                }
            }),
        )
    }

    /// The statements that some work runs in this thread.
    pub(crate) fn of(work: impl FnOnce()) -> BTreeSet<String> {
        counted(work).into_keys().collect()
    }

    /// The same, and how often each runs.
    pub(crate) fn counted(work: impl FnOnce()) -> BTreeMap<String, usize> {
        SEEN.set(Some(BTreeMap::new()));
        work();
        SEEN.take().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::repository::temporary;

    /// Rows that take a few hundred pages, of which most go again.
    fn grow_and_empty(db: &Db) {
        db.write(|transaction| {
            Ok(transaction.execute_batch(
                "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 20000)
                 INSERT INTO records (id, kind, payload) SELECT randomblob(16), 1, zeroblob(200) FROM n;
                 DELETE FROM records WHERE seq % 100 <> 0",
            )?)
        })
        .unwrap();
    }

    fn pages(db: &Db) -> (i64, i64) {
        let number =
            |name| move |db: &Connection| Ok(db.pragma_query_value(None, name, |row| row.get::<_, i64>(0))?);
        (
            db.read(number("page_count")).unwrap(),
            db.read(number("freelist_count")).unwrap(),
        )
    }

    fn assert_is_smaller(db: &Db) {
        let (before, free) = pages(db);
        assert!(
            before > 1000 && free > before / 2,
            "{free} of {before} pages are free"
        );
        db.shrink().unwrap();
        let (after, free) = pages(db);
        assert!(
            after * 2 < before && free == 0,
            "{after} of {before} pages, {free} free"
        );
        let bytes = fs::metadata(&db.path).unwrap().len();
        assert_eq!(bytes, u64::try_from(after).unwrap() * 4096);
        assert_eq!(db.faults().unwrap(), Vec::<String>::new());
        let rows: i64 = db
            .read(|db| Ok(db.query_row("SELECT count(*) FROM records", [], |row| row.get(0))?))
            .unwrap();
        assert_eq!(rows, 200);
    }

    #[test]
    fn free_pages_are_given_back() {
        let (_directory, repository) = temporary();
        grow_and_empty(&repository.db);
        assert_is_smaller(&repository.db);
    }

    #[test]
    fn a_catalog_of_an_earlier_release_becomes_smaller_and_then_gives_back_in_parts() {
        let (_directory, repository) = temporary();
        let db = &repository.db;
        // As it was before they were made to give pages back.
        let link = db.connect().unwrap();
        link.connection
            .execute_batch("PRAGMA auto_vacuum = NONE; VACUUM")
            .unwrap();
        drop(link);
        grow_and_empty(db);
        assert_is_smaller(db);
        db.write(|transaction| Ok(transaction.execute_batch("DELETE FROM records")?))
            .unwrap();
        grow_and_empty(db);
        assert_is_smaller(db);
    }

    #[test]
    fn few_free_pages_stay() {
        let (_directory, repository) = temporary();
        let before = pages(&repository.db);
        repository.db.shrink().unwrap();
        assert_eq!(pages(&repository.db), before);
    }
}
