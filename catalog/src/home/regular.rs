//! Reads and opens files of the repository that should be regular, whatever is there: a named pipe would block its
//! reader forever.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use barmanfs_store::open_regular;
use rustix::fs::OFlags;

use crate::error::{Error, Result};

/// Reads all of a regular file.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a regular file for reading.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    open_regular(path)
}

/// Opens a regular file with these `options`.
pub(crate) fn open_with(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(not_regular()),
    }
}

/// Makes sure that a path that others will open is a regular file or does not exist.
pub(crate) fn check(path: &Path) -> Result<()> {
    let kind = match fs::metadata(path) {
        Ok(found) => found.file_type(),
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::io("inspect", path, source)),
    };
    let odd = kind.is_dir()
        || kind.is_fifo()
        || kind.is_socket()
        || kind.is_block_device()
        || kind.is_char_device();
    match odd {
        true => Err(Error::io("use", path, not_regular())),
        false => Ok(()),
    }
}

fn not_regular() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "It is a directory, pipe, socket or device, not a regular file: move it away",
    )
}
