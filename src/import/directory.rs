//! Walks through a directory of a source, and stores what it holds.
//!
//! No symbolic link is followed unless the source says so: a link in a backup leads to a server's files, or elsewhere.

use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use barmanfs_store::{Attributes, open_unlinked};

use super::Intake;
use crate::error::Error;
use crate::output::printable;

/// What becomes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// It is stored; a directory with all that is in it.
    Take,
    /// It is not stored.
    LeaveOut,
    /// It is stored with the content of this directory in its place.
    Follow(PathBuf),
    /// The source has stored it.
    Stored,
}

/// Decides about the entry at a path in the backup, which is this one in the source.
pub(crate) type Choose<'c> =
    dyn FnMut(&mut Intake<'_>, &[u8], &Path, &Metadata) -> Result<Choice, Error> + 'c;

/// Stores what is in the directory `place`, as what is in `path` of the backup; an empty path is the data directory. Names
/// are taken in their order.
///
/// # Errors
/// When something cannot be read or stored.
pub(crate) fn store(
    intake: &mut Intake<'_>,
    place: &Path,
    path: &[u8],
    choose: &mut Choose<'_>,
) -> Result<(), Error> {
    let unreadable = |error: io::Error| cannot_read(place, &error);
    let mut names = Vec::new();
    for entry in fs::read_dir(place).map_err(unreadable)? {
        names.push(entry.map_err(unreadable)?.file_name().into_vec());
    }
    names.sort_unstable();
    for name in names {
        let inner = place.join(std::ffi::OsStr::from_bytes(&name));
        let path = match path {
            [] => name,
            path => [path, b"/", &name].concat(),
        };
        let found = fs::symlink_metadata(&inner).map_err(|error| cannot_read(&inner, &error))?;
        match choose(intake, &path, &inner, &found)? {
            Choice::LeaveOut | Choice::Stored => {}
            Choice::Take => store_entry(intake, &inner, &path, &found, choose)?,
            Choice::Follow(target) => {
                let found = fs::metadata(&target).map_err(|error| cannot_read(&target, &error))?;
                intake.directory(&path, attributes(&found))?;
                store(intake, &target, &path, choose)?;
            }
        }
    }
    Ok(())
}

fn store_entry(
    intake: &mut Intake<'_>,
    place: &Path,
    path: &[u8],
    found: &Metadata,
    choose: &mut Choose<'_>,
) -> Result<(), Error> {
    if found.is_dir() {
        intake.directory(path, attributes(found))?;
        return store(intake, place, path, choose);
    }
    if !found.is_file() {
        tracing::warn!(
            "{} is neither a file nor a directory: it is left out",
            printable(place.as_os_str().as_bytes())
        );
        return Ok(());
    }
    let mut file = open_unlinked(place).map_err(|error| cannot_read(place, &error))?;
    let found = file.metadata().map_err(|error| cannot_read(place, &error))?;
    intake.file(path, attributes(&found), found.len(), &mut file)
}

/// Reads a small file; `None` if it does not exist.
///
/// # Errors
/// When it cannot be read, or has more than `bytes_max`.
pub(crate) fn read_small(place: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match open_unlinked(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
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

/// Says that something in a source cannot be read.
pub(crate) fn cannot_read(place: &Path, error: &io::Error) -> Error {
    Error::failed(format!(
        "Cannot read {}: {error}",
        printable(place.as_os_str().as_bytes())
    ))
}
