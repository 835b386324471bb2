//! The log of everything except file bytes.
//!
//! Records follow each other, each in a frame: length of the payload (u32), CRC-32C of the rest of the frame, the
//! frame's own offset (u64), the durable length of the log when the frame was written (u64), payload. All numbers are
//! little endian.
//!
//! - The log is durable up to its end at some flush. After a crash, what follows may be present, missing or torn. The
//!   log is cut at the first frame that is not whole. If a later frame says that this place was durable, it was whole
//!   once: that is damage, and nothing is cut.
//! - Flushes are shared: callers that arrive during a flush wait for the next one, which serves all of them.
//! - After a failed flush, the content of the log on disk is unknown. Every flush fails until the log has been
//!   rewritten.

use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::disk::{Disk, DiskFile, JOURNAL, NEW_JOURNAL};
use crate::error::{Error, Result, failed};
use crate::record::{Change, decode, encode};

use barmanfs_store::sync::{lock, wait};

/// The version of the journal that this release writes, and the newest that it reads.
const VERSION: u32 = 1;

/// Length, CRC, offset, durable.
const HEADER_BYTES: usize = 24;

/// The log is allocated this far ahead, because operations that free space must be recorded even on a full disk.
const AHEAD_BYTES: u64 = 256 * 1024;

/// A smaller log is never rewritten.
const SMALL_BYTES: u64 = 4 * 1024 * 1024;

/// The log is rewritten when it has grown to this many times its size after the last rewrite.
const GROWTH: u64 = 4;

/// Bytes a rewrite collects before it writes them.
const BATCH_BYTES: usize = 256 * 1024;

/// A position in the log. It only grows, even when the log is rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(u64);

/// The state of the log.
#[derive(Debug)]
pub(crate) struct Journal {
    disk: Arc<dyn Disk>,
    clone: String,
    log: Mutex<Log>,
    flushed: Condvar,
    /// Upper files were created whose names are not durable yet. The log must not mention them before they are.
    names_changed: AtomicBool,
    /// Held while those names are made durable.
    names_syncing: Mutex<()>,
    /// The size in bytes, outside the lock of the log: a caller may hold a lock that a rewrite of the log waits for.
    size_bytes: AtomicU64,
}

#[derive(Debug)]
struct Log {
    file: Arc<dyn DiskFile>,
    end_bytes: u64,
    /// Position minus offset, for positions in the present file.
    shift: u64,
    durable: Position,
    allocated_bytes: u64,
    flushing: bool,
    broken: bool,
    rewritten_bytes: u64,
}

impl Log {
    fn position(&self) -> Position {
        Position(self.shift + self.end_bytes)
    }

    fn durable_bytes(&self) -> u64 {
        self.durable.0.saturating_sub(self.shift)
    }
}

impl Journal {
    /// Creates the empty log of a new clone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn create(disk: Arc<dyn Disk>, clone: &str) -> Result<Self> {
        let fail = |error| failed("create", disk.path().join(NEW_JOURNAL), error);
        let file = disk.create(NEW_JOURNAL).map_err(fail)?;
        let journal = Self::new(disk, clone, file, 0);
        journal.rewrite(&mut std::iter::empty())?;
        Ok(journal)
    }

    /// Opens the log of a clone and calls `each` with every change in it. All of it counts as durable; the caller
    /// makes it so before the log is used.
    ///
    /// # Errors
    /// When it cannot be read, is damaged or belongs to another clone; any error of `each`.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        clone: &str,
        each: &mut dyn FnMut(Change) -> Result<()>,
    ) -> Result<Self> {
        let fail = |action, error| failed(action, disk.path().join(JOURNAL), error);
        disk.remove(NEW_JOURNAL).map_err(|error| fail("remove", error))?;
        let found = disk.open(JOURNAL).map_err(|error| fail("open", error))?;
        let file = found.ok_or_else(|| fail("open", io::ErrorKind::NotFound.into()))?;
        let end_bytes = replay(&disk, &file, clone, each)?;
        Ok(Self::new(disk, clone, file, end_bytes))
    }

    fn new(disk: Arc<dyn Disk>, clone: &str, file: Arc<dyn DiskFile>, end_bytes: u64) -> Self {
        Self {
            clone: clone.to_owned(),
            log: Mutex::new(Log {
                file,
                end_bytes,
                shift: 0,
                durable: Position(end_bytes),
                allocated_bytes: end_bytes,
                flushing: false,
                broken: false,
                rewritten_bytes: 0,
            }),
            flushed: Condvar::new(),
            names_changed: AtomicBool::new(false),
            names_syncing: Mutex::default(),
            size_bytes: AtomicU64::new(end_bytes),
            disk,
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }

    fn fail(&self, action: &'static str, error: io::Error) -> Error {
        failed(action, self.disk.path().join(JOURNAL), error)
    }

    /// Notes that an upper file was created.
    pub(crate) fn name_made(&self) {
        self.names_changed.store(true, Ordering::Release);
    }

    /// Appends a record. It is durable after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// When it cannot be written. Nothing was written then.
    pub(crate) fn append(&self, changes: &[Change]) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut log = self.log();
        if log.broken {
            return Err(Error::Refused(Errno::IO));
        }
        let frame = frame(changes, log.end_bytes, log.durable_bytes())?;
        let end_bytes = log.end_bytes + frame.len() as u64;
        if end_bytes > log.allocated_bytes {
            // If this is refused, the write reports the error.
            let _ = log.file.allocate(
                FallocateFlags::KEEP_SIZE,
                log.end_bytes,
                frame.len() as u64 + AHEAD_BYTES,
            );
            log.allocated_bytes = end_bytes + AHEAD_BYTES;
        }
        let written = log.file.write_at(log.end_bytes, &frame);
        // An incomplete frame does not count, and the next one overwrites it.
        match written {
            Ok(count) if count == frame.len() => {
                log.end_bytes = end_bytes;
                self.size_bytes.store(end_bytes, Ordering::Relaxed);
                Ok(())
            }
            Ok(_) => Err(Error::Refused(Errno::NOSPC)),
            Err(error) => Err(self.fail("write", error)),
        }
    }

    /// Makes durable everything that was appended so far.
    ///
    /// # Errors
    /// When that fails, now and until the log is rewritten.
    pub(crate) fn flush(&self) -> Result<()> {
        let mut log = self.log();
        let target = log.position();
        loop {
            if log.broken {
                return Err(Error::Refused(Errno::IO));
            }
            if log.durable >= target {
                return Ok(());
            }
            if !log.flushing {
                break;
            }
            log = wait(&self.flushed, log);
        }
        log.flushing = true;
        let (file, upto) = (Arc::clone(&log.file), log.position());
        drop(log);
        let synced = self.sync_names().and_then(|()| file.sync_data());
        let mut log = self.log();
        log.flushing = false;
        match &synced {
            Ok(()) => log.durable = log.durable.max(upto),
            Err(_) => log.broken = true,
        }
        self.flushed.notify_all();
        synced.map_err(|error| self.fail("sync", error))
    }

    /// Makes the names durable that [`name_made`](Self::name_made) reported, also when the log has nothing to flush. A
    /// record about bytes in an upper file is written only afterwards, because it may reach the disk before any flush.
    ///
    /// # Errors
    /// When that fails. The next flush tries again.
    pub(crate) fn flush_names(&self) -> Result<()> {
        self.sync_names().map_err(|error| self.fail("sync", error))
    }

    fn sync_names(&self) -> io::Result<()> {
        // With nothing left to do, this call has waited for the one that did it.
        let _syncing = lock(&self.names_syncing);
        if self.names_changed.swap(false, Ordering::AcqRel) {
            let synced = self.disk.sync_names(true);
            if synced.is_err() {
                self.names_changed.store(true, Ordering::Release);
            }
            return synced;
        }
        Ok(())
    }

    /// The end of the log.
    pub(crate) fn position(&self) -> Position {
        self.log().position()
    }

    /// Up to where it is durable.
    pub(crate) fn durable(&self) -> Position {
        self.log().durable
    }

    /// Its size in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// Whether it should be rewritten, because a flush failed or because it is large.
    pub(crate) fn wants_rewrite(&self) -> bool {
        let log = self.log();
        log.broken || log.end_bytes > SMALL_BYTES.max(log.rewritten_bytes.saturating_mul(GROWTH))
    }

    /// Whether a flush failed.
    pub(crate) fn is_broken(&self) -> bool {
        self.log().broken
    }

    /// Rewrites the log with these records, durably. No thread may append meanwhile. The records may ask nothing of
    /// the log except its size.
    ///
    /// # Errors
    /// When it cannot be written. The log is unchanged then.
    pub(crate) fn rewrite(&self, records: &mut dyn Iterator<Item = Vec<Change>>) -> Result<()> {
        let mut log = self.log();
        while log.flushing {
            log = wait(&self.flushed, log);
        }
        let failed = |error| self.fail("rewrite", error);
        self.sync_names().map_err(failed)?;
        let (file, end_bytes) = self.write_all(records)?;
        file.sync_data().map_err(failed)?;
        self.disk.rename(NEW_JOURNAL, JOURNAL).map_err(failed)?;
        let position = log.position();
        log.file = file;
        log.end_bytes = end_bytes;
        self.size_bytes.store(end_bytes, Ordering::Relaxed);
        log.shift = position.0.saturating_sub(end_bytes).max(log.shift);
        log.allocated_bytes = end_bytes;
        log.rewritten_bytes = end_bytes;
        // Until the new name is durable, a crash may bring back the old log.
        let named = self.disk.sync_names(false);
        log.broken = named.is_err();
        named.map_err(failed)?;
        log.durable = log.position();
        self.flushed.notify_all();
        Ok(())
    }

    fn write_all(&self, records: &mut dyn Iterator<Item = Vec<Change>>) -> Result<(Arc<dyn DiskFile>, u64)> {
        let file = self
            .disk
            .create(NEW_JOURNAL)
            .map_err(|error| self.fail("create", error))?;
        let begin = vec![Change::Begin {
            version: VERSION,
            clone: self.clone.clone(),
        }];
        let (mut batch, mut written_bytes) = (Vec::new(), 0_u64);
        let mut put = |batch: &mut Vec<u8>| match file.write_at(written_bytes, batch) {
            Ok(count) if count == batch.len() => {
                written_bytes += batch.len() as u64;
                batch.clear();
                Ok(written_bytes)
            }
            Ok(_) => Err(Error::Refused(Errno::NOSPC)),
            Err(error) => Err(self.fail("write", error)),
        };
        let mut offset = 0;
        for record in std::iter::once(begin).chain(records) {
            // The new log is durable before it replaces the old one.
            let frame = frame(&record, offset, offset)?;
            offset += frame.len() as u64;
            batch.extend(frame);
            if batch.len() >= BATCH_BYTES {
                put(&mut batch)?;
            }
        }
        let end_bytes = put(&mut batch)?;
        Ok((file, end_bytes))
    }
}

/// The frame of a record.
fn frame(changes: &[Change], offset: u64, durable: u64) -> Result<Vec<u8>> {
    let mut frame = vec![0; 8];
    frame.extend(offset.to_le_bytes());
    frame.extend(durable.to_le_bytes());
    changes.iter().for_each(|change| encode(change, &mut frame));
    // Even a file of the largest possible size does not have this many runs of blocks.
    let length = u32::try_from(frame.len() - HEADER_BYTES).map_err(|_| Error::Refused(Errno::FBIG))?;
    let crc = crc32c::crc32c(frame.get(8..).unwrap_or_default());
    for (to, from) in frame
        .iter_mut()
        .zip(length.to_le_bytes().into_iter().chain(crc.to_le_bytes()))
    {
        *to = from;
    }
    Ok(frame)
}

/// The header of a frame.
struct Header {
    length: usize,
    crc: u32,
    offset: u64,
    durable: u64,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let [l0, l1, l2, l3, c0, c1, c2, c3, rest @ ..] = *bytes;
        let [o0, o1, o2, o3, o4, o5, o6, o7, d @ ..] = rest;
        Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]) as usize,
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
            offset: u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            durable: u64::from_le_bytes(d),
        }
    }
}

/// The frame at the start of `bytes`, if it is whole and belongs to `offset`: the durable length it states, and its
/// payload.
fn whole_frame(bytes: &[u8], offset: u64) -> Option<(u64, &[u8])> {
    let (header, payload) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let header = Header::parse(header);
    if header.offset != offset || header.length == 0 {
        return None;
    }
    let whole = bytes.get(8..HEADER_BYTES + header.length)?;
    (crc32c::crc32c(whole) == header.crc).then_some((header.durable, payload.get(..header.length)?))
}

/// Reads a file from an offset on.
struct From {
    file: Arc<dyn DiskFile>,
    offset: u64,
}

impl Read for From {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(self.offset, buffer)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Calls `each` with every change in the log, cuts a torn end, and returns the log's end.
fn replay(
    disk: &Arc<dyn Disk>,
    file: &Arc<dyn DiskFile>,
    clone: &str,
    each: &mut dyn FnMut(Change) -> Result<()>,
) -> Result<u64> {
    let path = disk.path().join(JOURNAL);
    let fail = |action, error| failed(action, &path, error);
    let damaged = |reason: String| Error::Unusable {
        path: path.clone(),
        reason,
    };
    let size_bytes = file.status().map_err(|error| fail("read", error))?.size_bytes;
    let mut reader = BufReader::with_capacity(
        BATCH_BYTES,
        From {
            file: Arc::clone(file),
            offset: 0,
        },
    );
    let (mut offset, mut bytes) = (0, Vec::new());
    while next_frame(&mut reader, &mut bytes, size_bytes - offset).map_err(|error| fail("read", error))? {
        let Some((_, payload)) = whole_frame(&bytes, offset) else {
            break;
        };
        let changes = decode(payload)
            .map_err(|reason| damaged(format!("The record at byte {offset} is wrong: {reason}")))?;
        if offset == 0 {
            check_begin(&changes, clone).map_err(&damaged)?;
        }
        changes.into_iter().try_for_each(&mut *each)?;
        offset += bytes.len() as u64;
    }
    if offset == 0 {
        return Err(damaged("It has no complete record".to_owned()));
    }
    if offset < size_bytes {
        cut_tail(file, offset, size_bytes)
            .map_err(|error| fail("cut", error))?
            .map_err(damaged)?;
        tracing::info!(
            "The last {} bytes of {} were not completely written: they are cut off",
            size_bytes - offset,
            path.display()
        );
    }
    Ok(offset)
}

/// Reads the next frame. Too few bytes for one are left in the buffer. Returns false at the end.
fn next_frame(reader: &mut impl Read, bytes: &mut Vec<u8>, left_bytes: u64) -> io::Result<bool> {
    bytes.clear();
    reader.take(HEADER_BYTES as u64).read_to_end(bytes)?;
    if let Some(header) = bytes.first_chunk().map(Header::parse)
        && header.length as u64 <= left_bytes
    {
        reader.take(header.length as u64).read_to_end(bytes)?;
    }
    Ok(!bytes.is_empty())
}

fn check_begin(changes: &[Change], expected: &str) -> Result<(), String> {
    match changes {
        [Change::Begin { version, .. }] if *version > VERSION => Err(format!(
            "It has version {version}, this barmanfs reads up to {VERSION}: use a newer one"
        )),
        [Change::Begin { clone, .. }] if clone == expected => Ok(()),
        [Change::Begin { clone, .. }] => Err(format!("It is that of clone {clone}, not {expected}")),
        _ => Err("It does not begin with the version of a journal".to_owned()),
    }
}

/// Cuts what follows `offset`, unless it was durable once.
fn cut_tail(file: &Arc<dyn DiskFile>, offset: u64, size_bytes: u64) -> io::Result<Result<(), String>> {
    let mut tail = Vec::new();
    let from = From {
        file: Arc::clone(file),
        offset,
    };
    from.take(size_bytes - offset).read_to_end(&mut tail)?;
    for at in 1..tail.len() {
        let rest = tail.get(at..).unwrap_or_default();
        if let Some((durable, _)) = whole_frame(rest, offset + at as u64)
            && durable > offset
        {
            return Ok(Err(format!(
                "It is damaged at byte {offset}, and more records follow"
            )));
        }
    }
    file.set_size(offset)?;
    file.sync_data()?;
    Ok(Ok(()))
}
