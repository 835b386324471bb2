//! Writes members of a tar archive, in the `ustar` format that PostgreSQL's programs and Barman read.
//!
//! After an error the archive ends within a member: `tar` takes one that ends between two members for whole.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use barmanfs_fs::entry::Stat;

use crate::error::Error;
use crate::output::printable;
use crate::progress::Progress;
use crate::restore::{ContentReader, SourceFile, remote};
use crate::signals::Interruption;
use crate::unfinished;

/// A header, and the unit of content.
const BLOCK_BYTES: u64 = 512;

/// Content is read in pieces of this size, which is that of a window.
const PIECE_BYTES: usize = 128 << 10;

/// The name of the member without which an archive would end well.
const UNFINISHED_MEMBER: &str = "THE-EXPORT-HAS-FAILED";

/// Bytes that a member takes.
pub(super) fn member_bytes(size_bytes: u64) -> u64 {
    BLOCK_BYTES + size_bytes.next_multiple_of(BLOCK_BYTES)
}

/// An export that is running: what it shows, and whether to stop.
#[derive(Debug)]
pub(super) struct Run {
    progress: Progress,
    signals: Interruption,
    total_bytes: u64,
    done_bytes: Cell<u64>,
}

impl Run {
    pub(super) fn start(what: &str, total_bytes: u64, quiet: bool) -> Result<Self, Error> {
        Ok(Self {
            progress: Progress::start(what, crate::progress::Counted::Bytes, quiet),
            signals: Interruption::watch(|| {})?,
            total_bytes,
            done_bytes: Cell::new(0),
        })
    }

    pub(super) fn refuse_stopped(&self) -> Result<(), Error> {
        match self.signals.requested() {
            true => Err(Error::failed("Interrupted")),
            false => Ok(()),
        }
    }

    fn done(&self, bytes: u64) {
        self.done_bytes.set(self.done_bytes.get() + bytes);
        self.progress.set(self.done_bytes.get(), Some(self.total_bytes));
    }
}

/// An archive that is being written.
pub(super) struct Archive<'a> {
    builder: tar::Builder<Output<'a>>,
    /// Bytes of the members that are complete.
    whole_bytes: u64,
    is_finished: bool,
    run: &'a Run,
    /// For messages.
    path: PathBuf,
}

impl<'a> Archive<'a> {
    pub(super) fn new(output: &'a mut dyn Write, path: &Path, run: &'a Run) -> Self {
        Self {
            builder: tar::Builder::new(Output {
                output,
                bytes: 0,
                is_closed: false,
            }),
            whole_bytes: 0,
            is_finished: false,
            run,
            path: path.to_owned(),
        }
    }

    /// Adds a directory. Its path has no slash at its end.
    pub(super) fn directory(&mut self, path: &[u8], stat: &Stat) -> Result<(), Error> {
        let mut header = header(tar::EntryType::Directory, stat, 0);
        let path = [path, b"/"].concat();
        let added = self
            .builder
            .append_data(&mut header, OsStr::from_bytes(&path), io::empty());
        self.added(added)
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &[u8], stat: &Stat, target: &[u8]) -> Result<(), Error> {
        let mut header = header(tar::EntryType::Symlink, stat, 0);
        let added = self
            .builder
            .append_link(&mut header, OsStr::from_bytes(path), OsStr::from_bytes(target));
        self.added(added)
    }

    /// Adds a file that is made here.
    pub(super) fn made(&mut self, path: &[u8], stat: &Stat, bytes: &[u8]) -> Result<(), Error> {
        let mut header = header(tar::EntryType::Regular, stat, bytes.len() as u64);
        let added = self
            .builder
            .append_data(&mut header, OsStr::from_bytes(path), bytes);
        self.added(added)
    }

    /// Adds a file of a backup.
    pub(super) fn file(&mut self, path: &[u8], file: &SourceFile) -> Result<(), Error> {
        let size_bytes = file.stat.size_bytes;
        let mut content = Content {
            reader: file.read()?,
            run: self.run,
            left_bytes: size_bytes,
            buffer: Vec::new(),
            at: 0,
            failed: None,
        };
        let mut header = header(tar::EntryType::Regular, &file.stat, size_bytes);
        let added = self
            .builder
            .append_data(&mut header, OsStr::from_bytes(path), &mut content);
        match (added, content.failed) {
            (_, Some(error)) => Err(error.context(format_args!("Cannot export {}", printable(&file.path)))),
            (added, None) => self.added(added),
        }
    }

    /// Writes the end of the archive.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.is_finished = true;
        let ended = self.builder.finish();
        ended.map_err(|error| self.failed(&error))
    }

    /// Notes whether a member is complete.
    fn added(&mut self, added: io::Result<()>) -> Result<(), Error> {
        added.map_err(|error| self.failed(&error))?;
        self.whole_bytes = self.builder.get_ref().bytes;
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> Error {
        unfinished::failed("write", &self.path, error)
    }
}

impl Drop for Archive<'_> {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        let is_between_members = self.builder.get_ref().bytes == self.whole_bytes;
        let output = self.builder.get_mut();
        if is_between_members {
            // A member of which only the header comes. If it cannot be written, the error that ended the archive was that.
            let _ = output.write_all(unfinished_member().as_bytes());
        }
        // The builder ends the archive when it is dropped.
        output.is_closed = true;
    }
}

/// The header of a file that does not follow.
fn unfinished_member() -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(BLOCK_BYTES);
    // Its name is short enough.
    let _ = header.set_path(UNFINISHED_MEMBER);
    header.set_cksum();
    header
}

/// What an archive is written to.
struct Output<'a> {
    output: &'a mut dyn Write,
    bytes: u64,
    is_closed: bool,
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = self.output.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

fn header(kind: tar::EntryType, stat: &Stat, size_bytes: u64) -> tar::Header {
    remote::describe(tar::Header::new_ustar(), kind, stat, size_bytes)
}

/// Reads exactly as many bytes as the header of the member says, or fails.
struct Content<'a> {
    reader: ContentReader,
    run: &'a Run,
    left_bytes: u64,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were taken.
    at: usize,
    failed: Option<Error>,
}

impl Content<'_> {
    fn fill(&mut self) -> Result<(), Error> {
        self.run.refuse_stopped()?;
        let length = usize::try_from(self.left_bytes).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        self.buffer.resize(length, 0);
        self.reader
            .read_exact(&mut self.buffer)
            .map_err(|error| Error::failed(error.to_string()))?;
        self.left_bytes -= length as u64;
        self.at = 0;
        self.run.done(length as u64);
        Ok(())
    }
}

impl Read for Content<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.buffer.len() && self.left_bytes > 0 {
            self.fill().map_err(|error| {
                let shown = io::Error::other(error.to_string());
                self.failed = Some(error);
                shown
            })?;
        }
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let count = rest.len().min(into.len());
        for (to, from) in into.iter_mut().zip(rest) {
            *to = *from;
        }
        self.at += count;
        Ok(count)
    }
}
