//! Opening files of unknown origin.
//!
//! Opening a pipe in the place of a file waits forever, and a device may do anything. So the open does not wait, and
//! anything but a regular file is rejected.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// For `custom_flags`: opening a pipe or a device does not wait, and a terminal does not become the controlling one.
pub(super) const NONBLOCK: i32 = (OFlags::NONBLOCK.bits() | OFlags::NOCTTY.bits()).cast_signed();

/// Opens a regular file for reading, and never waits.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if it is not a regular file; any error of opening it.
pub fn open_regular(path: &Path) -> io::Result<File> {
    open(path, 0)
}

/// The same of a file that is no symbolic link: in a directory of others, a link leads to what only this user may read.
///
/// # Errors
/// As [`open_regular`].
pub fn open_unlinked(path: &Path) -> io::Result<File> {
    open(path, OFlags::NOFOLLOW.bits().cast_signed())
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(NONBLOCK | flags)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(ELOOP) if flags != 0 => not_regular("a symbolic link, which is not followed"),
            // A socket cannot be opened at all.
            Some(ENXIO) => not_regular("a socket"),
            _ => error,
        })?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    use std::os::unix::fs::FileTypeExt;
    Err(not_regular(if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a named pipe"
    } else {
        "a device or socket"
    }))
}

/// Linux: "Too many levels of symbolic links"; with `O_NOFOLLOW`, any.
const ELOOP: i32 = 40;

/// Linux: "No such device or address".
const ENXIO: i32 = 6;

fn not_regular(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "It is {what}, not a regular file: move it away, and put the file back from a copy of the repository"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_nothing_waits() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), b"x").unwrap();
        open_regular(&at("file")).unwrap();
        open_unlinked(&at("file")).unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        open_regular(&at("link")).unwrap();
        let error = open_unlinked(&at("link")).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, what) in [("pipe", "pipe"), ("socket", "socket"), ("", "directory")] {
            let error = open_regular(&at(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
            assert!(error.to_string().contains(what), "{error}");
        }
        assert_eq!(
            open_regular(&at("none")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
