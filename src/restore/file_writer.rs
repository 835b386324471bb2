//! Writes one file, in parts that several threads may write at once. What is there already is compared and kept: so a part
//! that was written before is read once, and not decoded again.
//!
//! Windows are compared by their CRC-32C first, which finds nearly all differences quickly, and then by the id of their
//! chunk: a CRC-32C alone would take one of four thousand million different windows for equal.

use std::fs::File;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use barmanfs_store::sync::lock;
use barmanfs_store::{ChunkId, Window};
use rustix::fs::{Advice, FallocateFlags, FileType, fadvise, fallocate};

use super::place::{Place, dress};
use super::source::{FileContent, PartWindows, Wanted};
use super::tree_writer::interrupted;
use super::view::SourceFile;
use crate::error::Error;
use crate::throttle::Throttle;

/// Bytes of one part: large enough that reading packs stays sequential, small enough for all threads to have work at the
/// end.
pub(super) const PART_BYTES: u64 = 32 << 20;

/// Bytes to compare and copy at a time of what is not stored in windows.
const COPY_BYTES: usize = 128 << 10;

/// Windows that are fetched at once: over a connection, the time that it takes is theirs together.
const FETCHED_AT_ONCE: usize = 16;

/// A file that is being written.
#[derive(Debug)]
pub(super) struct FileTask {
    pub(super) source: SourceFile,
    pub(super) place: Place,
    /// The name that it is written under.
    pub(super) name: Vec<u8>,
    pub(super) is_dry_run: bool,
    /// Opened by the thread that comes first.
    opened: Mutex<Option<OpenFile>>,
    /// Parts that are not written yet.
    left: AtomicUsize,
}

/// A file of which a thread writes a part.
#[derive(Debug, Clone)]
struct OpenFile {
    /// None if nothing is there in a dry run.
    file: Option<Arc<File>>,
    body: FileContent,
    /// Bytes that were there before. Everything behind them is zero.
    present: u64,
}

/// What the threads share.
pub(super) struct Tools<'a> {
    pub(super) throttle: Option<&'a Throttle>,
    /// Called with the bytes that are done, and how many of them were written.
    pub(super) done: &'a (dyn Fn(u64, u64) + Sync),
    /// Whether to stop.
    pub(super) stopped: &'a (dyn Fn() -> bool + Sync),
}

impl FileTask {
    pub(super) fn new(source: SourceFile, place: Place, name: Vec<u8>, is_dry_run: bool) -> Self {
        let parts = source.stat.size_bytes.div_ceil(PART_BYTES).max(1);
        Self {
            source,
            place,
            name,
            is_dry_run,
            opened: Mutex::default(),
            left: AtomicUsize::new(usize::try_from(parts).unwrap_or(usize::MAX)),
        }
    }

    /// Number of parts.
    pub(super) fn parts(&self) -> u64 {
        self.source.stat.size_bytes.div_ceil(PART_BYTES).max(1)
    }

    /// Writes a part. The thread that writes the last one completes the file.
    pub(super) fn write(&self, part: u64, tools: &Tools<'_>) -> Result<(), Error> {
        let open = self.open()?;
        let from = part * PART_BYTES;
        let to = (from + PART_BYTES).min(self.source.stat.size_bytes);
        if let Some(file) = open.file.as_ref().filter(|_| from < open.present) {
            // The disk gets all requests for this part at once, instead of one after the other as windows are read.
            let length = NonZero::new(to.min(open.present) - from);
            let _ = fadvise(&**file, from, length, Advice::WillNeed);
        }
        let windows = open.body.windows((from, to));
        match windows.map_err(|error| self.unreadable(error))? {
            Some(part) => self.stored(&open, &part, tools)?,
            None => self.other(&open, (from, to), tools)?,
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        lock(&self.opened).take();
        match open.file {
            Some(file) if !self.is_dry_run => self.complete(&file),
            _ => Ok(()),
        }
    }

    fn open(&self) -> Result<OpenFile, Error> {
        let mut opened = lock(&self.opened);
        if let Some(open) = &*opened {
            return Ok(open.clone());
        }
        let body = self.source.open()?;
        let size = self.source.stat.size_bytes;
        let existing = match self.place.find(&self.name)? {
            Some(found) if found.kind == FileType::RegularFile => {
                let file = self.place.open_file(&self.name, self.is_dry_run)?;
                if let Some(file) = file.as_ref().filter(|_| !self.is_dry_run) {
                    self.forget_cached(file)?;
                }
                file.map(|file| (file, found.size_bytes))
            }
            _ => None,
        };
        let (file, present) = match existing {
            Some((file, present)) => (Some(file), present),
            None if self.is_dry_run => (None, 0),
            None => (Some(self.place.make_file(&self.name)?), 0),
        };
        if let Some(file) = &file
            && present != size
            && !self.is_dry_run
        {
            file.set_len(size).map_err(|error| self.failed("write", error))?;
        }
        let open = OpenFile {
            file: file.map(Arc::new),
            body,
            present: present.min(size),
        };
        *opened = Some(open.clone());
        Ok(open)
    }

    /// Makes what is compared come from the disk. After a failed write the cache may have what the disk has not, and the
    /// error is reported once.
    fn forget_cached(&self, file: &File) -> Result<(), Error> {
        file.sync_data().map_err(|error| self.failed("sync", error))?;
        // Advice: some file systems have none.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
        Ok(())
    }

    /// The windows that begin in this part. Windows are smaller than parts, and powers of two.
    fn stored(&self, open: &OpenFile, part: &PartWindows, tools: &Tools<'_>) -> Result<(), Error> {
        let (mut buffer, mut wanted) = (Vec::new(), Vec::new());
        for (n, window) in (part.first..).zip(&part.windows) {
            if (tools.stopped)() {
                return Err(interrupted());
            }
            let at = n * u64::from(part.window_bytes);
            let left = self.source.stat.size_bytes.saturating_sub(at);
            let length = u32::try_from(left).map_or(part.window_bytes, |left| left.min(part.window_bytes));
            if let Some(chunk) = self.lacks(open, (at, length), window, &mut buffer, tools)? {
                wanted.push(Wanted { n, length, chunk });
            }
            if wanted.len() == FETCHED_AT_ONCE {
                self.fetch(open, part.window_bytes, &mut wanted, tools)?;
            }
        }
        self.fetch(open, part.window_bytes, &mut wanted, tools)
    }

    /// The chunk of a window that the file does not have.
    fn lacks(
        &self,
        open: &OpenFile,
        (at, length): (u64, u32),
        window: &Window,
        buffer: &mut Vec<u8>,
        tools: &Tools<'_>,
    ) -> Result<Option<ChunkId>, Error> {
        let end = at + u64::from(length);
        let Some(chunk) = window.chunk else {
            let present = end.min(open.present).saturating_sub(at);
            self.hole(open, (at, present), buffer)?;
            return Ok(None);
        };
        if end <= open.present && self.holds(open, at, length, window, buffer)? {
            (tools.done)(u64::from(length), 0);
            return Ok(None);
        }
        Ok(Some(chunk))
    }

    /// Writes windows, all of them fetched at once.
    fn fetch(
        &self,
        open: &OpenFile,
        window_bytes: u32,
        wanted: &mut Vec<Wanted>,
        tools: &Tools<'_>,
    ) -> Result<(), Error> {
        if self.is_dry_run {
            wanted
                .iter()
                .for_each(|window| (tools.done)(window.length.into(), window.length.into()));
        } else {
            let mut not_written = None;
            let fetched = open.body.contents(wanted, &mut |window, bytes| {
                let at = window.n * u64::from(window_bytes);
                let written = self.take(open, at, bytes, tools);
                written.inspect_err(|error| not_written = Some(error.clone()))
            });
            fetched.map_err(|error| not_written.unwrap_or_else(|| self.unreadable(error)))?;
        }
        wanted.clear();
        Ok(())
    }

    fn take(&self, open: &OpenFile, at: u64, bytes: &[u8], tools: &Tools<'_>) -> Result<(), Error> {
        if (tools.stopped)() {
            return Err(interrupted());
        }
        let length_bytes = bytes.len() as u64;
        if let Some(throttle) = tools.throttle {
            throttle.take(length_bytes);
        }
        self.put(open, bytes, at)?;
        (tools.done)(length_bytes, length_bytes);
        Ok(())
    }

    /// Whether the file has the window already.
    fn holds(
        &self,
        open: &OpenFile,
        at: u64,
        length: u32,
        window: &Window,
        buffer: &mut Vec<u8>,
    ) -> Result<bool, Error> {
        let Some(found) = self.present(open, at, length as usize, buffer)? else {
            return Ok(false);
        };
        Ok(crc32c::crc32c(found) == window.crc32c
            && window.chunk == Some(open.body.chunk_hash().id_of(found)))
    }

    /// The bytes that are there; `None` if they cannot be read: a disk that has lost them takes new ones.
    fn present<'b>(
        &self,
        open: &OpenFile,
        at: u64,
        length: usize,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Option<&'b [u8]>, Error> {
        buffer.resize(length, 0);
        let Some(file) = &open.file else {
            return Ok(None);
        };
        match file.read_exact_at(buffer, at) {
            Ok(()) => Ok(Some(buffer.as_slice())),
            Err(error) => {
                tracing::debug!("{}", self.failed("read", error));
                Ok(None)
            }
        }
    }

    /// Makes the bytes that are there in a hole zero.
    fn hole(&self, open: &OpenFile, (at, present): (u64, u64), buffer: &mut Vec<u8>) -> Result<(), Error> {
        let length = usize::try_from(present).unwrap_or(usize::MAX);
        if length == 0 || self.is_dry_run {
            return Ok(());
        }
        let is_zero = self
            .present(open, at, length, buffer)?
            .is_some_and(|found| found.iter().all(|byte| *byte == 0));
        let Some(file) = open.file.as_ref().filter(|_| !is_zero) else {
            return Ok(());
        };
        let punched = fallocate(
            &**file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            at,
            present,
        );
        if punched.is_ok() {
            return Ok(());
        }
        // Not every file system has holes.
        buffer.clear();
        buffer.resize(length, 0);
        self.put(open, buffer, at)
    }

    /// What is not stored in windows, or shown with other bytes than stored.
    fn other(&self, open: &OpenFile, (from, to): (u64, u64), tools: &Tools<'_>) -> Result<(), Error> {
        let (mut wanted, mut buffer) = (vec![0; COPY_BYTES], Vec::new());
        let mut at = from;
        while at < to {
            if (tools.stopped)() {
                return Err(interrupted());
            }
            let length = usize::try_from(to - at).map_or(COPY_BYTES, |rest| rest.min(COPY_BYTES));
            let (part, _) = wanted.split_at_mut(length);
            let read = open.body.read_at(at, part);
            let count = read.map_err(|error| self.unreadable(error))?;
            if count != length {
                return Err(self.unreadable(Error::failed("It ends early")));
            }
            let length_bytes = length as u64;
            let is_there = at + length_bytes <= open.present
                && self.present(open, at, length, &mut buffer)? == Some(part);
            if !is_there {
                if let Some(throttle) = tools.throttle {
                    throttle.take(length_bytes);
                }
                if !self.is_dry_run {
                    self.put(open, part, at)?;
                }
            }
            (tools.done)(length_bytes, if is_there { 0 } else { length_bytes });
            at += length_bytes;
        }
        Ok(())
    }

    fn put(&self, open: &OpenFile, bytes: &[u8], at: u64) -> Result<(), Error> {
        let Some(file) = &open.file else { return Ok(()) };
        file.write_all_at(bytes, at)
            .map_err(|error| self.failed("write", error))
    }

    fn complete(&self, file: &File) -> Result<(), Error> {
        dress(file, &self.source.stat)
            .map_err(|error| self.failed("set owner, permissions and time of", error))?;
        // This makes the kernel begin to write, so that little is left to do when everything is synced. What is being
        // written stays cached.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
        Ok(())
    }

    fn failed(&self, action: &str, error: impl Into<std::io::Error>) -> Error {
        self.place.failed(action, &self.name, error)
    }

    fn unreadable(&self, error: Error) -> Error {
        error.context(format_args!(
            "Cannot restore {}",
            self.place.path_of(&self.source.name).display()
        ))
    }
}
