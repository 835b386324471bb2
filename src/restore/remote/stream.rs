//! One tar archive on its way to the other host.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use barmanfs_fs::entry::Stat;
use tar::{Builder, EntryType, Header};

use super::shell::{RemoteShell, Session, word};
use crate::error::Error;
use crate::restore::source::FileContent;
use crate::restore::tree_writer::interrupted;
use crate::restore::view::SourceFile;
use crate::throttle::Throttle;

/// As many bytes as a window has, mostly: each is decoded once.
const READ_BYTES: usize = 128 << 10;

/// A tar over there that writes what comes into a directory.
pub(super) struct Stream {
    builder: Builder<Session>,
}

/// What a stream shares with all others.
pub(super) struct Sending<'a> {
    pub(super) throttle: Option<&'a Throttle>,
    /// Called with the bytes that were passed on.
    pub(super) done: &'a (dyn Fn(u64) + Sync),
    pub(super) stopped: &'a (dyn Fn() -> bool + Sync),
}

/// The command that unpacks an archive there.
pub(super) fn unpack(directory: &Path) -> String {
    format!(
        "umask 077; exec tar -x -p -C {} -f -",
        word(&directory.to_string_lossy())
    )
}

/// The path of an entry below the directory.
pub(super) fn path_of(names: &[Vec<u8>], name: &[u8]) -> PathBuf {
    let mut path: PathBuf = names.iter().map(|name| OsStr::from_bytes(name)).collect();
    path.push(OsStr::from_bytes(name));
    path
}

impl Stream {
    /// Starts a command that reads an archive.
    pub(super) fn start(shell: &RemoteShell, script: &str) -> Result<Self, Error> {
        let mut builder = Builder::new(shell.start("write", script)?);
        builder.sparse(false);
        Ok(Self { builder })
    }

    /// Adds a directory.
    pub(super) fn directory(&mut self, path: &Path, stat: &Stat) -> io::Result<()> {
        let mut header = header(EntryType::Directory, stat, 0);
        self.builder.append_data(&mut header, path, io::empty())
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &Path, stat: &Stat, target: &[u8]) -> io::Result<()> {
        let mut header = header(EntryType::Symlink, stat, 0);
        self.builder
            .append_link(&mut header, path, OsStr::from_bytes(target))
    }

    /// Adds a small file.
    pub(super) fn text(&mut self, path: &Path, stat: &Stat, text: &[u8]) -> io::Result<()> {
        let mut header = header(EntryType::Regular, stat, text.len() as u64);
        self.builder.append_data(&mut header, path, text)
    }

    /// Adds a file of the tree under this path.
    pub(super) fn file(
        &mut self,
        path: &Path,
        file: &SourceFile,
        sending: &Sending<'_>,
    ) -> Result<(), Error> {
        let body = file.open()?;
        let size_bytes = file.stat.size_bytes;
        let mut header = header(EntryType::Regular, &file.stat, size_bytes);
        let mut content = Content {
            body,
            sending,
            at: 0,
            size_bytes,
            buffer: Vec::new(),
            used: 0,
            error: None,
        };
        let appended = self.builder.append_data(&mut header, path, &mut content);
        match (content.error.take(), appended) {
            (Some(error), _) => Err(error.context(format_args!("Cannot restore {}", path.display()))),
            (None, Err(error)) => Err(not_sent(&error)),
            (None, Ok(())) if self.builder.get_ref().is_full() => {
                Err(Error::failed("The file system of the other host is full"))
            }
            (None, Ok(())) => Ok(()),
        }
    }

    /// Ends the archive, and waits until it is unpacked.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        match self.builder.finish() {
            Ok(()) => self.builder.get_mut().finish(),
            Err(error) => Err(self.fail(not_sent(&error))),
        }
    }

    /// Gives up after an error, without an end of the archive. What the other side says about it is the better reason.
    pub(super) fn fail(mut self, error: Error) -> Error {
        let session = self.builder.get_mut();
        match session.flush().is_err() || session.is_full() {
            true => session.finish().err().unwrap_or(error),
            false => {
                session.abort();
                error
            }
        }
    }
}

/// The error of a failed write.
pub(super) fn not_sent(error: &io::Error) -> Error {
    Error::failed(format!("Cannot send to the other host: {error}"))
}

fn header(kind: EntryType, stat: &Stat, size_bytes: u64) -> Header {
    // GNU's form, which all tars read, has the longest names and the largest files.
    describe(Header::new_gnu(), kind, stat, size_bytes)
}

/// Fills in the header of a member.
pub(crate) fn describe(mut header: Header, kind: EntryType, stat: &Stat, size_bytes: u64) -> Header {
    header.set_entry_type(kind);
    header.set_mode(stat.mode);
    header.set_uid(stat.uid.into());
    header.set_gid(stat.gid.into());
    header.set_mtime(u64::try_from(stat.mtime_s).unwrap_or(0));
    header.set_size(size_bytes);
    header
}

/// The content of a file, checked as it is read.
struct Content<'a> {
    body: FileContent,
    sending: &'a Sending<'a>,
    at: u64,
    size_bytes: u64,
    buffer: Vec<u8>,
    /// How much of the buffer was passed on.
    used: usize,
    error: Option<Error>,
}

impl Content<'_> {
    fn fill(&mut self) -> Result<(), Error> {
        if (self.sending.stopped)() {
            return Err(interrupted());
        }
        let left = usize::try_from(self.size_bytes - self.at).unwrap_or(usize::MAX);
        self.buffer.resize(left.min(READ_BYTES), 0);
        let count = self.body.read_at(self.at, &mut self.buffer)?;
        if count == 0 && left > 0 {
            return Err(Error::failed("It ends early"));
        }
        self.buffer.truncate(count);
        self.used = 0;
        let count = count as u64;
        self.at += count;
        if let Some(throttle) = self.sending.throttle {
            throttle.take(count);
        }
        (self.sending.done)(count);
        Ok(())
    }
}

impl Read for Content<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.used == self.buffer.len()
            && let Err(error) = self.fill()
        {
            self.error = Some(error);
            return Err(io::ErrorKind::Other.into());
        }
        let rest = self.buffer.get(self.used..).unwrap_or_default();
        let count = rest.len().min(into.len());
        into.split_at_mut(count).0.copy_from_slice(rest.split_at(count).0);
        self.used += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_links_and_large_files_arrive() {
        let directory = tempfile::tempdir().unwrap();
        let shell = RemoteShell::new("/bin/sh -c").unwrap();
        let stat = |mode| Stat {
            mode,
            mtime_s: 1_000_000_000,
            ..Stat::NONE
        };
        let long = path_of(&[vec![b'd'; 120]], &[b'n'; 200]);
        let mut stream = Stream::start(&shell, &unpack(directory.path())).unwrap();
        stream.directory(long.parent().unwrap(), &stat(0o700)).unwrap();
        stream.text(&long, &stat(0o640), b"text").unwrap();
        stream
            .link(Path::new("link"), &stat(0o777), &[b't'; 150])
            .unwrap();
        stream.directory(Path::new("."), &stat(0o750)).unwrap();
        stream.finish().unwrap();
        let path = directory.path().join(&long);
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(
            time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(),
            1_000_000_000
        );
        let target = std::fs::read_link(directory.path().join("link")).unwrap();
        assert_eq!(target.as_os_str().len(), 150);
        let size = 20 << 30;
        assert_eq!(
            header(EntryType::Regular, &stat(0o600), size).size().unwrap(),
            size
        );
        // What tar says is the reason.
        let mut stream = Stream::start(&shell, &unpack(&directory.path().join("missing"))).unwrap();
        stream.text(Path::new("a"), &stat(0o600), b"text").unwrap();
        assert!(stream.finish().unwrap_err().to_string().contains("missing"));
    }
}
