//! Walks through a directory of this host.
//!
//! No symbolic link is followed unless the visitor says so: a link in a data directory leads to a server's files, or elsewhere.
//! In a directory whose files change while they are read, what is gone by the time it is looked at is passed over.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use barmanfs_pg::own_files::is_own;
use barmanfs_store::{Attributes, open_unlinked};

use crate::error::Error;
use crate::output::printable;

/// What to do about a link in the place of data.
pub(crate) const LINK_REMEDY: &str = "Stop the server, and move what the link leads to into its place; a tablespace is the way to have data on another disk";

/// What becomes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// It is taken; a directory with all that is in it.
    Take,
    /// It is left out.
    LeaveOut,
    /// It is taken with the content of this directory in its place.
    Follow(PathBuf),
    /// The visitor has done all that is to be done.
    Stored,
}

/// Who is shown the entries. A path is that in the backup, a place that on this host.
pub(crate) trait Visitor {
    /// Whether files come and go while this walks.
    fn is_live(&self) -> bool;

    /// Decides about an entry.
    ///
    /// # Errors
    /// Any ends the walk.
    fn choose(&mut self, path: &[u8], place: &Path, found: &Metadata) -> Result<Choice, Error>;

    /// Takes a directory; what is in it follows.
    ///
    /// # Errors
    /// Any ends the walk.
    fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), Error>;

    /// Takes a regular file.
    ///
    /// # Errors
    /// Any ends the walk.
    fn file(&mut self, path: &[u8], place: &Path, found: &Metadata) -> Result<(), Error>;
}

/// Shows what is in the directory `place`, as what is in `path` of the backup; an empty path is the data directory. Names come in
/// their order.
///
/// # Errors
/// When something cannot be read, and those of the visitor.
pub(crate) fn walk(visitor: &mut dyn Visitor, place: &Path, path: &[u8]) -> Result<(), Error> {
    for name in names(visitor, place)? {
        let inner = place.join(std::ffi::OsStr::from_bytes(&name));
        let path = match path {
            [] => name,
            path => [path, b"/", &name].concat(),
        };
        let found = match fs::symlink_metadata(&inner) {
            Err(error) if visitor.is_live() && error.kind() == ErrorKind::NotFound => continue,
            found => found.map_err(|error| cannot_read(&inner, &error))?,
        };
        match visitor.choose(&path, &inner, &found)? {
            Choice::LeaveOut | Choice::Stored => {}
            Choice::Take => take(visitor, &inner, &path, &found)?,
            Choice::Follow(target) => {
                let found = fs::metadata(&target).map_err(|error| cannot_read(&target, &error))?;
                visitor.directory(&path, attributes(&found))?;
                walk(visitor, &target, &path)?;
            }
        }
    }
    Ok(())
}

/// The names in a directory, sorted.
fn names(visitor: &dyn Visitor, place: &Path) -> Result<Vec<Vec<u8>>, Error> {
    let unreadable = |error: io::Error| cannot_read(place, &error);
    let entries = match fs::read_dir(place) {
        Err(error) if visitor.is_live() && error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(unreadable)?.file_name().into_vec());
    }
    names.sort_unstable();
    Ok(names)
}

fn take(visitor: &mut dyn Visitor, place: &Path, path: &[u8], found: &Metadata) -> Result<(), Error> {
    if found.is_dir() {
        visitor.directory(path, attributes(found))?;
        return walk(visitor, place, path);
    }
    if !found.is_file() {
        tracing::warn!(
            "{} is neither a file nor a directory: it is left out",
            printable(place.as_os_str().as_bytes())
        );
        return Ok(());
    }
    visitor.file(path, place, found)
}

/// Leaves a link out, unless PostgreSQL has data there: then what it leads to would be missing.
///
/// # Errors
/// When it is in the place of data.
pub(crate) fn leave_link_out(path: &[u8], place: &Path) -> Result<Choice, Error> {
    let shown = printable(place.as_os_str().as_bytes());
    if is_own(path) {
        return Err(Error::failed(format!(
            "{shown} is a link, which is not followed: the backup would lack the data that it leads to"
        ))
        .hint(LINK_REMEDY));
    }
    tracing::warn!("{shown} is a link, which is not followed: it is left out");
    Ok(Choice::LeaveOut)
}

/// Reads a small file; `None` if it does not exist.
///
/// # Errors
/// When it cannot be read, or has more than `bytes_max`.
pub(crate) fn read_small(place: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match open_unlinked(place) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| cannot_read(place, &error))?,
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| cannot_read(place, &error))?;
    match bytes.len() as u64 > bytes_max {
        true => Err(Error::failed(format!(
            "{} has more than {bytes_max} bytes",
            printable(place.as_os_str().as_bytes())
        ))),
        false => Ok(Some(bytes)),
    }
}

/// Owner, permissions and time of an entry.
pub(crate) fn attributes(found: &Metadata) -> Attributes {
    Attributes {
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        mtime_s: found.mtime(),
        mtime_ns: u32::try_from(found.mtime_nsec()).unwrap_or_default(),
    }
}

/// Says that something cannot be read.
pub(crate) fn cannot_read(place: &Path, error: &io::Error) -> Error {
    Error::failed(format!(
        "Cannot read {}: {error}",
        printable(place.as_os_str().as_bytes())
    ))
}
