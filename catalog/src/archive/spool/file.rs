//! One segment being received.
//!
//! A synchronous commit waits for [`SpoolFile::sync`], so that call is kept cheap: the file gets its full length at
//! once, and its blocks are allocated a little ahead of the data. So most syncs write only the received bytes.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SegmentSize};

use super::{agrees, agrees_with, file_name};
use crate::error::{Error, Result};
use crate::home::{regular, sync_directory};

/// How far ahead of the data the file's blocks are allocated. Otherwise each sync would also write the file system's
/// journal. Allocating a whole segment at once would stall commits meanwhile, and segments may have 1 GiB.
const ZEROED_AHEAD_BYTES: u64 = 1024 * 1024;

/// A file without its final name.
const NEW: &str = ".new";

/// Creates the file of a segment, beginning with the first bytes of another one, durably: the file appears only once
/// these bytes are in it.
pub(super) fn begin_with(
    directory: &Path,
    name: SegmentName,
    size: SegmentSize,
    beginning: &Path,
    bytes: u64,
) -> Result<()> {
    let path = directory.join(file_name(name, false));
    // Not a segment's name: if the process is killed, the next call overwrites the file.
    let new = directory.join(NEW);
    let failed = |source| Error::io("write", &new, source);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let mut target = regular::open_with(&new, &mut options).map_err(failed)?;
    let source = regular::open(beginning).map_err(|source| Error::io("read", beginning, source))?;
    std::io::copy(&mut source.take(bytes), &mut target)
        .and_then(|_| target.set_len(size.bytes()))
        .and_then(|()| target.sync_all())
        .and_then(|()| std::fs::rename(&new, path))
        .map_err(failed)?;
    sync_directory(directory)
}

/// Replaces the file of a partial segment by one that begins with the same bytes: other processes see either all of the new
/// content or the old one. Returns whether it was; a file that has all that comes, and may have more, stays.
pub(super) fn replace(
    directory: &Path,
    name: SegmentName,
    size: SegmentSize,
    (seconds, nanoseconds): (i64, i64),
    content: &mut dyn Read,
) -> Result<bool> {
    let (new, path) = (directory.join(NEW), directory.join(file_name(name, false)));
    let failed = |source| Error::io("write", &new, source);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let mut target = regular::open_with(&new, &mut options).map_err(failed)?;
    let since = Duration::new(
        u64::try_from(seconds).unwrap_or_default(),
        u32::try_from(nanoseconds).unwrap_or_default(),
    );
    std::io::copy(&mut content.take(size.bytes()), &mut target)
        .and_then(|_| target.set_len(size.bytes()))
        .map_err(failed)?;
    if !is_continued(&path, &new, name, size)? {
        // It has what was received over there until then.
        let here = OpenOptions::new().write(true).open(&path);
        return here
            .and_then(|here| here.set_modified(UNIX_EPOCH + since))
            .and_then(|()| std::fs::remove_file(&new))
            .map(|()| false)
            .map_err(failed);
    }
    target
        .set_modified(UNIX_EPOCH + since)
        .and_then(|()| target.sync_all())
        .and_then(|()| std::fs::rename(&new, &path))
        .map_err(failed)?;
    sync_directory(directory)?;
    Ok(true)
}

/// Whether a file that comes has all bytes of the one that is here; false if this one has all of that.
fn is_continued(here: &Path, coming: &Path, name: SegmentName, size: SegmentSize) -> Result<bool> {
    let open = |path: &Path| regular::open(path).map_err(|source| Error::io("read", path, source));
    let agrees = |earlier: &Path, now: &Path| {
        agrees_with(open(earlier)?, open(now)?).map_err(|source| Error::io("compare", earlier, source))
    };
    match regular::open(here) {
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(true),
        _ if agrees(here, coming)? => return Ok(true),
        _ if agrees(coming, here)? => return Ok(false),
        _ => {}
    }
    Err(Error::SpoolDiverges {
        name,
        lsn: name.start_lsn(size),
    })
}

/// The file that a segment is received into, from its start.
#[derive(Debug)]
pub struct SpoolFile {
    directory: PathBuf,
    name: SegmentName,
    size: SegmentSize,
    file: File,
    /// Number of bytes received since this was opened, contiguous from the segment's start.
    written_bytes: u64,
    /// How many of them are durable.
    durable_bytes: u64,
    /// The file's blocks are allocated up to here.
    zeroed_bytes: u64,
    /// Whether the file may hold bytes of an earlier receiver.
    resumed: bool,
}

impl SpoolFile {
    pub(super) fn open(directory: &Path, name: SegmentName, size: SegmentSize) -> Result<Self> {
        let path = directory.join(file_name(name, false));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file =
            regular::open_with(&path, &mut options).map_err(|source| Error::io("open", &path, source))?;
        let length = file
            .metadata()
            .map_err(|source| Error::io("inspect", &path, source))?
            .len();
        let resumed = length > 0;
        if resumed && length != size.bytes() {
            return Err(Error::SpoolSize {
                path,
                found: length,
                expected: size.bytes(),
            });
        }
        if !resumed {
            file.set_len(size.bytes())
                .and_then(|()| file.sync_all())
                .map_err(|source| Error::io("write", &path, source))?;
        }
        // Needed even if the file existed: the process that created it, or renamed the previous one, may have been
        // killed right then.
        sync_directory(directory)?;
        Ok(Self {
            directory: directory.to_path_buf(),
            name,
            size,
            file,
            written_bytes: 0,
            durable_bytes: 0,
            // Zeros must never overwrite bytes of an earlier receiver.
            zeroed_bytes: if resumed { size.bytes() } else { 0 },
            resumed,
        })
    }

    /// The segment.
    pub fn name(&self) -> SegmentName {
        self.name
    }

    /// The position up to which it has been received.
    pub fn written(&self) -> Lsn {
        self.position(self.written_bytes)
    }

    /// The position up to which it is durable.
    pub fn durable(&self) -> Lsn {
        self.position(self.durable_bytes)
    }

    /// Bytes received that are not durable yet.
    pub fn unsynced_bytes(&self) -> u64 {
        self.written_bytes - self.durable_bytes
    }

    /// How many bytes are missing.
    pub fn missing_bytes(&self) -> u64 {
        self.size.bytes() - self.written_bytes
    }

    fn position(&self, offset: u64) -> Lsn {
        Lsn(self.name.start_lsn(self.size).0.saturating_add(offset))
    }

    fn path(&self) -> PathBuf {
        self.directory.join(file_name(self.name, false))
    }

    /// Appends the next bytes of the segment. Bytes that were received before are written again: if an earlier sync
    /// failed, this makes them reach the disk.
    ///
    /// # Errors
    /// [`Error::SpoolDiverges`] when different bytes had been received at this place; those stay.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.missing_bytes() {
            return Err(Error::Invalid(format!(
                "{} bytes of WAL do not fit into the rest of segment {}",
                bytes.len(),
                self.name
            )));
        }
        if self.resumed {
            self.compare(bytes)?;
        }
        self.zero_ahead(bytes.len() as u64)?;
        self.file
            .write_all_at(bytes, self.written_bytes)
            .map_err(|source| Error::io("write", &self.path(), source))?;
        self.written_bytes += bytes.len() as u64;
        Ok(())
    }

    fn compare(&self, bytes: &[u8]) -> Result<()> {
        let mut earlier = vec![0; bytes.len()];
        self.file
            .read_exact_at(&mut earlier, self.written_bytes)
            .map_err(|source| Error::io("read", &self.path(), source))?;
        if agrees(self.written_bytes, &earlier, bytes) {
            return Ok(());
        }
        Err(Error::SpoolDiverges {
            name: self.name,
            lsn: self.written(),
        })
    }

    fn zero_ahead(&mut self, bytes: u64) -> Result<()> {
        static ZEROS: [u8; ZEROED_AHEAD_BYTES as usize] = [0; ZEROED_AHEAD_BYTES as usize];
        while self.zeroed_bytes < self.written_bytes + bytes {
            let count = ZEROED_AHEAD_BYTES.min(self.size.bytes() - self.zeroed_bytes);
            let zeros = ZEROS.get(..count as usize).unwrap_or(&ZEROS);
            self.file
                .write_all_at(zeros, self.zeroed_bytes)
                .map_err(|source| Error::io("write", &self.path(), source))?;
            self.zeroed_bytes += count;
        }
        Ok(())
    }

    /// Makes durable what has been received.
    ///
    /// # Errors
    /// If that fails, the state of everything written since the last sync is unknown: the segment must be received
    /// again.
    pub fn sync(&mut self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|source| Error::io("sync", &self.path(), source))?;
        self.durable_bytes = self.written_bytes;
        Ok(())
    }

    /// Finishes a complete segment: from now on it waits in the spool to be archived, durably.
    ///
    /// # Errors
    /// When bytes are missing, or it cannot be made durable.
    pub fn finish(mut self) -> Result<SegmentName> {
        if self.missing_bytes() > 0 {
            return Err(Error::Invalid(format!(
                "{} bytes of segment {} are missing",
                self.missing_bytes(),
                self.name
            )));
        }
        self.sync()?;
        let path = self.path();
        std::fs::rename(&path, self.directory.join(file_name(self.name, true)))
            .map_err(|source| Error::io("rename", &path, source))?;
        sync_directory(&self.directory)?;
        Ok(self.name)
    }
}
