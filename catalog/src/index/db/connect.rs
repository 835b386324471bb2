//! Opening a connection: how it shares the catalog with others, and whether the tables are those of this release.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::error::{Error, Result};
use crate::home::owner::Owner;
use crate::home::with_suffix;
use crate::index::db::upgrade::{layout, upgrade};
use crate::index::db::{Link, check_files};
use crate::index::records::Derive;
use crate::index::schema;

/// How long a statement waits for another process's write. Writes take milliseconds; a minute means a failing disk.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// Page cache of one connection, in KiB. The operating system caches the file anyway; this saves system calls for
/// the upper levels of the trees.
const CACHE_KIB: i64 = 4096;

/// Statements kept prepared by each connection: all the catalog's frequent ones.
const STATEMENTS: usize = 64;

/// Opens a connection. On a full disk the wal-index, a file that all processes share, may be impossible to create. With
/// exclusive access SQLite needs none, so that the repository can still be read.
pub(super) fn connect(path: &Path, owner: &Owner, derive: Derive) -> Result<Link> {
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
    #[cfg_attr(not(test), expect(unused_mut, reason = "a test notes its statements"))]
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
    crate::index::db::statements::note(&mut connection)?;
    match layout(&connection)? {
        schema::LAYOUT => {}
        schema::OLDEST_LAYOUT..schema::LAYOUT => upgrade(&connection, derive)?,
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
