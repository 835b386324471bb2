//! WAL files on their way between hosts: what Barman's clients send and fetch over ssh.
//!
//! [`bundle`] is the archive that `put-wal` reads, with its checksums; [`compression`] the forms in which a file may travel;
//! [`remote`] the command on the other host; [`send`] and [`fetch`] are the two clients, [`spool`] what is fetched before
//! PostgreSQL asks for it, by [`prefetch`], over a [`feed`]. No configuration is read here: the clients run where PostgreSQL does.

pub(crate) mod bundle;
pub(crate) mod compression;
pub(crate) mod feed;
pub(crate) mod fetch;
pub(crate) mod prefetch;
pub(crate) mod remote;
pub(crate) mod send;
pub(crate) mod sent;
pub(crate) mod spool;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use barmanfs_pg::wal_check::check_segment;
use barmanfs_pg::wal_files::check_small_file;
use barmanfs_pg::wal_name::WalName;
use barmanfs_store::open_regular;

/// The largest segment that PostgreSQL can have. No WAL file is larger.
pub(crate) const LARGEST_BYTES: u64 = 1 << 30;

/// As much of a file as its checks need: the first page of a segment, or the whole of another file.
const CHECKED_BYTES: u64 = 64 * 1024;

/// Checks that a file is what its name says, as far as its beginning and its size show.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(name: &WalName, path: &Path) -> Result<u64, String> {
    let unreadable = |error: io::Error| format!("it cannot be read: {error}");
    let file = open_regular(path).map_err(unreadable)?;
    let size_bytes = file.metadata().map_err(unreadable)?.len();
    let mut beginning = Vec::new();
    file.take(CHECKED_BYTES)
        .read_to_end(&mut beginning)
        .map_err(unreadable)?;
    match name {
        WalName::Segment(segment) | WalName::Partial(segment) => {
            check_segment(&beginning, segment, size_bytes).map_err(|error| error.to_string())?;
        }
        WalName::BackupHistory { .. } | WalName::History(_) => {
            check_small_file(name, &beginning).map_err(|error| error.to_string())?;
        }
    }
    Ok(size_bytes)
}

/// The ending of a file until it is whole.
pub(crate) const PART: &str = "part";

/// The name of a file beside another one. PostgreSQL takes neither for one of its own.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".barmanfs-{ending}"));
    path.with_file_name(name)
}
