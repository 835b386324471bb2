//! The spool: WAL that is received as a stream, until the archive has it.
//!
//! `spool/<server>/<segment>.partial` is a segment being received: it has the full length of a segment, and is zero
//! where nothing has been received yet. `spool/<server>/<segment>` is complete and waits to be archived.
//!
//! - What was acknowledged to the server is durable in one of these files, or in the archive. A file leaves the spool
//!   only when the archive has its bytes: under the segment's own name, in quarantine, or as `<segment>.partial`.
//! - Received bytes are never changed. A stream that restarts at the beginning of a segment writes the same bytes
//!   again; if it brings different ones, it is refused ([`Error::SpoolDiverges`]).
//! - Only the process that holds the lock of a server's spool writes to it. All others only read.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId, TimestampMicros};
use barmanfs_store::sync::lock;

use crate::archive::wal::WalOutcome;
use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::home::{SPOOL, regular, sync_directory};
use crate::index::repository::Repository;
use crate::names::ServerName;

mod file;

pub use file::SpoolFile;

/// Suffix of a segment that is not complete.
const PARTIAL: &str = ".partial";

/// The `origin` in the records of files archived from a spool.
const ORIGIN: &str = "receive-wal";

/// The unit that a disk writes entirely or not at all.
const SECTOR_BYTES: u64 = 512;

/// Bytes compared at a time; whole sectors.
const COMPARED_BYTES: usize = 64 * 1024;

/// A segment in the spool that the archive does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialSegment {
    /// The segment.
    pub name: SegmentName,
    /// The file. A receiver may be writing to it, may rename it when the segment is complete, and removes it once the
    /// segment is archived.
    pub path: PathBuf,
    /// Its length: that of a segment.
    pub size_bytes: u64,
    /// When something was last received.
    pub modified: TimestampMicros,
    /// Whether all of it has been received; otherwise it is zero from some point on.
    pub complete: bool,
}

/// A server's spool, held by the one process that receives the server's WAL.
#[derive(Debug)]
pub struct Spool {
    repository: Repository,
    server: ServerName,
    directory: PathBuf,
    /// Only one thread at a time removes or archives partial segments.
    settling: Mutex<()>,
    _lock: Lock,
}

impl Repository {
    /// Takes a server's spool for receiving.
    ///
    /// # Errors
    /// [`Error::Receiving`] while another process has it.
    pub fn spool(&self, server: &ServerName) -> Result<Spool> {
        let purpose = format!("receive-wal of {server}");
        let lock = self
            .locks
            .try_exclusive(&lock_name(server), &purpose)?
            .ok_or_else(|| Error::Receiving {
                server: server.clone(),
                holder: self.locks.holder(&lock_name(server)),
            })?;
        let directory = directory(self.path(), server);
        fs::create_dir_all(&directory).map_err(|source| Error::io("create", &directory, source))?;
        for parent in directory.ancestors().skip(1).take(2) {
            sync_directory(parent)?;
        }
        Ok(Spool {
            repository: self.clone(),
            server: server.clone(),
            directory,
            settling: Mutex::default(),
            _lock: lock,
        })
    }

    /// What a server's spool holds and its archive does not, in the order of the names: usually one segment, the one
    /// being received; a few more while the archive is behind.
    ///
    /// # Errors
    /// When the spool or the catalog cannot be read.
    pub fn receiving(&self, server: &ServerName) -> Result<Vec<PartialSegment>> {
        let directory = directory(self.path(), server);
        let archive = self.wal(server);
        let mut found = Vec::new();
        // In this order (spool first, then archive), a segment that is archived meanwhile is seen in at least one of
        // the two.
        for (name, complete) in list(&directory)? {
            let mut segment = spooled(&directory, name, complete)?;
            if segment.is_none() && !complete {
                // It has become complete meanwhile.
                segment = spooled(&directory, name, true)?;
            }
            if archive.entry(&WalName::Segment(name))?.is_none() {
                found.extend(segment);
            }
        }
        Ok(found)
    }

    /// The process that receives a server's WAL: its process number, if it runs on this host as this user, and its own
    /// description; `None` if there is none.
    ///
    /// # Errors
    /// When the lock cannot be probed.
    pub fn receiver(&self, server: &ServerName) -> Result<Option<Receiver>> {
        let lock = lock_name(server);
        if !self.locks.is_held(&lock)? {
            return Ok(None);
        }
        Ok(Some(Receiver {
            process: self.locks.holding_process(&lock),
            description: self.locks.holder(&lock),
        }))
    }
}

/// A process that receives WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// Its process number, if it is certain that this process holds the lock.
    pub process: Option<u32>,
    /// What it is and since when it runs, for messages.
    pub description: String,
}

impl Spool {
    /// The server whose WAL it receives.
    pub fn server(&self) -> &ServerName {
        &self.server
    }

    /// The repository it is in.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The segments that are complete and wait to be archived, in the order of their names.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub fn complete(&self) -> Result<Vec<SegmentName>> {
        self.listed(true)
    }

    /// The segments that are not complete, in the order of their names: the one being received, and those of timelines
    /// the server has left.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub fn partial(&self) -> Result<Vec<SegmentName>> {
        self.listed(false)
    }

    fn listed(&self, complete: bool) -> Result<Vec<SegmentName>> {
        let all = list(&self.directory)?;
        Ok(all
            .into_iter()
            .filter(|(_, is)| *is == complete)
            .map(|(name, _)| name)
            .collect())
    }

    fn path(&self, name: SegmentName, complete: bool) -> PathBuf {
        self.directory.join(file_name(name, complete))
    }

    /// Opens the file of a segment for receiving it from its start; creates the file if it does not exist.
    ///
    /// # Errors
    /// When the file exists with another size, or cannot be made durable.
    pub fn begin(&self, name: SegmentName, size: SegmentSize) -> Result<SpoolFile> {
        SpoolFile::open(&self.directory, name, size)
    }

    /// Whether this segment was last received at `modified`: seconds and nanoseconds, as the file system has them.
    pub fn has_received(&self, name: SegmentName, modified: (i64, i64)) -> bool {
        let found = fs::metadata(self.path(name, false));
        found.is_ok_and(|found| (found.mtime(), found.mtime_nsec()) == modified)
    }

    /// Replaces a partial segment by what another receiver has of it by now, and gives it the time of that. Returns whether it
    /// was replaced, durably; not if the one here has all of that, and may have more.
    ///
    /// # Errors
    /// [`Error::SpoolDiverges`] when the other receiver has different bytes; when it cannot be read or written. Then the
    /// segment is as it was.
    pub fn replace_partial(
        &self,
        name: SegmentName,
        size: SegmentSize,
        modified: (i64, i64),
        content: &mut dyn Read,
    ) -> Result<bool> {
        file::replace(&self.directory, name, size, modified, content)
    }

    /// Where a complete segment lies until it is archived.
    pub fn path_of(&self, name: SegmentName) -> PathBuf {
        self.path(name, true)
    }

    /// Archives a complete segment and removes it from the spool, together with the partial segment of an earlier
    /// timeline that it continues. If the archive has different bytes under its name, this segment goes into
    /// quarantine, and the outcome says so.
    ///
    /// # Errors
    /// Those of [`archive_wal`](crate::Writer::archive_wal); the segment then stays in the spool.
    pub fn archive(&self, name: SegmentName) -> Result<WalOutcome> {
        let outcome = self.archive_as(&WalName::Segment(name), &self.path(name, true))?;
        let is_continued =
            |left: SegmentName| left.timeline < name.timeline && (left.log, left.seg) == (name.log, name.seg);
        self.settle_those(is_continued, name.timeline)?;
        self.remove(name, true)?;
        Ok(outcome)
    }

    fn archive_as(&self, name: &WalName, path: &Path) -> Result<WalOutcome> {
        let (mut file, size_bytes) = open(path)?;
        let writer = self
            .repository
            .writer(&format!("receive-wal of {}", self.server))?;
        writer.archive_wal(&self.server, name, &mut file, size_bytes, ORIGIN)
    }

    /// Removes what the spool need not hold any more: partial segments whose bytes are all in the archive, in the
    /// segment of the same name or in that of a later timeline up to `current`, whose segment begins with the bytes it
    /// took over. A partial segment that holds more is archived as `<segment>.partial` and returned: the former primary
    /// had sent WAL that its successor does not have.
    ///
    /// Must not be called while a segment is being received.
    ///
    /// # Errors
    /// When files cannot be read or archived; then nothing is lost.
    pub fn settle(&self, current: TimelineId) -> Result<Vec<SegmentName>> {
        self.settle_those(|_| true, current)
    }

    fn settle_those(
        &self,
        wanted: impl Fn(SegmentName) -> bool,
        current: TimelineId,
    ) -> Result<Vec<SegmentName>> {
        let _alone = lock(&self.settling);
        let mut kept = Vec::new();
        for name in self.partial()?.into_iter().filter(|name| wanted(*name)) {
            match self.is_covered(name, current)? {
                None => {}
                Some(true) => self.remove(name, false)?,
                Some(false) => {
                    self.set_aside(name)?;
                    kept.push(name);
                }
            }
        }
        Ok(kept)
    }

    /// Whether the archive has all bytes of a partial segment; `None` while it has no segment to compare with.
    fn is_covered(&self, name: SegmentName, current: TimelineId) -> Result<Option<bool>> {
        let archive = self.repository.wal(&self.server);
        let Some(successor) = archive.successor(name, current)? else {
            return Ok(None);
        };
        let Some(whole) = archive.open(&WalName::Segment(successor))? else {
            return Ok(None);
        };
        let path = self.path(name, false);
        let (received, _) = open(&path)?;
        agrees_with(received, whole)
            .map(Some)
            .map_err(|source| Error::io("compare", &path, source))
    }

    /// Continues a partial segment on the next timeline, which branched off within it: the new timeline's segment
    /// begins with the same bytes from the moment it exists, so that recovery never finds fewer of them. What the old
    /// segment holds beyond the switch is archived as `<segment>.partial`; returns whether there was anything.
    ///
    /// # Errors
    /// When files cannot be written or archived; then nothing is lost.
    pub fn take_over(
        &self,
        left: SegmentName,
        by: TimelineId,
        switch: Lsn,
        size: SegmentSize,
    ) -> Result<bool> {
        let path = self.path(left, false);
        let taken_bytes = switch.checked_sub(left.start_lsn(size)).unwrap_or_default();
        let next = SegmentName { timeline: by, ..left };
        let archive = self.repository.wal(&self.server);
        let is_known = [true, false].iter().any(|whole| self.path(next, *whole).exists())
            || archive.entry(&WalName::Segment(next))?.is_some();
        if is_known || taken_bytes >= size.bytes() || !path.exists() {
            return Ok(false);
        }
        file::begin_with(&self.directory, next, size, &path, taken_bytes)?;
        if is_zero_from(&path, taken_bytes)? {
            self.remove(left, false)?;
            return Ok(false);
        }
        self.set_aside(left)?;
        Ok(true)
    }

    /// Archives a partial segment as `<segment>.partial`, for a person to inspect, and removes it from the spool.
    ///
    /// # Errors
    /// When it cannot be archived; it then stays where it is.
    pub fn set_aside(&self, name: SegmentName) -> Result<()> {
        let path = self.path(name, false);
        if is_zero_from(&path, 0)? {
            return self.remove(name, false);
        }
        // If another partial file has this name, this one goes into quarantine: it is kept in either case.
        self.archive_as(&WalName::Partial(name), &path)?;
        self.remove(name, false)
    }

    fn remove(&self, name: SegmentName, complete: bool) -> Result<()> {
        let path = self.path(name, complete);
        // The removal is not made durable: a file that reappears after a crash is in the archive, and is removed again.
        fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))
    }
}

fn lock_name(server: &ServerName) -> String {
    format!("receive-{server}")
}

fn directory(repository: &Path, server: &ServerName) -> PathBuf {
    repository.join(SPOOL).join(server.as_str())
}

fn file_name(name: SegmentName, complete: bool) -> String {
    let ending = if complete { "" } else { PARTIAL };
    format!("{name}{ending}")
}

/// A file of a spool; `None` when it is gone, or while it is being created and has no length yet.
fn spooled(directory: &Path, name: SegmentName, complete: bool) -> Result<Option<PartialSegment>> {
    let path = directory.join(file_name(name, complete));
    let inspected = fs::metadata(&path).and_then(|metadata| Ok((metadata.len(), metadata.modified()?)));
    match inspected {
        Ok((0, _)) => Ok(None),
        Ok((size_bytes, modified)) => Ok(Some(PartialSegment {
            name,
            path,
            size_bytes,
            modified: modified.into(),
            complete,
        })),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io("inspect", &path, source)),
    }
}

fn open(path: &Path) -> Result<(File, u64)> {
    let unreadable = |source| Error::io("read", path, source);
    let file = regular::open(path).map_err(unreadable)?;
    let size_bytes = file.metadata().map_err(unreadable)?.len();
    Ok((file, size_bytes))
}

/// The segments in a spool, and whether they are complete. There are few: a receiver that cannot archive stops
/// receiving.
fn list(directory: &Path) -> Result<BTreeSet<(SegmentName, bool)>> {
    let unreadable = |source| Error::io("list", directory, source);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(source) => return Err(unreadable(source)),
    };
    let mut found = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(unreadable)?.file_name();
        let Some(name) = name.to_str() else { continue };
        let (name, complete) = match name.strip_suffix(PARTIAL) {
            Some(name) => (name, false),
            None => (name, true),
        };
        found.extend(name.parse().ok().map(|name: SegmentName| (name, complete)));
    }
    Ok(found)
}

/// Whether bytes received earlier, at `offset` of their segment, are the beginning of `now`: they must be equal up to
/// the point where nothing had been received and the file is zero. A sector of zeros is ignored: after a crash of the
/// host, sectors that were never synced may be missing before others that reached the disk.
fn agrees(offset: u64, earlier: &[u8], now: &[u8]) -> bool {
    let to_sector = (SECTOR_BYTES - offset % SECTOR_BYTES) as usize;
    let sector_agrees = |(earlier, now): (&[u8], &[u8])| {
        let received = earlier
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        earlier.get(..received) == now.get(..received)
    };
    let split = |bytes: &[u8]| bytes.len().min(to_sector);
    let (first_earlier, earlier) = earlier.split_at(split(earlier));
    let (first_now, now) = now.split_at(split(now));
    let sector = SECTOR_BYTES as usize;
    earlier.len() <= now.len()
        && sector_agrees((first_earlier, first_now))
        && earlier.chunks(sector).zip(now.chunks(sector)).all(sector_agrees)
}

fn agrees_with(mut earlier: impl Read, mut now: impl Read) -> std::io::Result<bool> {
    let (mut before, mut after) = (vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]);
    loop {
        let count = read_fully(&mut earlier, &mut before)?;
        let same = read_fully(&mut now, &mut after)?;
        let (before, after) = (
            before.get(..count).unwrap_or_default(),
            after.get(..same).unwrap_or_default(),
        );
        if !agrees(0, before, after) {
            return Ok(false);
        }
        if count < COMPARED_BYTES {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the end is reached.
fn read_fully(source: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn is_zero_from(path: &Path, offset: u64) -> Result<bool> {
    let (mut file, _) = open(path)?;
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| agrees_with(file, std::io::repeat(0)))
        .map_err(|source| Error::io("read", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lost_sectors_and_cuts_still_agree(
            bytes in proptest::collection::vec(any::<u8>(), 1..4000),
            received in 0_usize..4000,
            lost in proptest::collection::vec(0_usize..8, 0..3),
            cut in 0_usize..4000,
        ) {
            let (received, cut) = (received.min(bytes.len()), cut.min(bytes.len()));
            let mut earlier = bytes.clone();
            earlier[received..].fill(0);
            for sector in lost {
                let start = (sector * 512).min(earlier.len());
                let end = (start + 512).min(earlier.len());
                earlier[start..end].fill(0);
            }
            prop_assert!(agrees(0, &earlier[..cut], &bytes[..cut]));
            prop_assert!(agrees(cut as u64, &earlier[cut..], &bytes[cut..]));
        }

        #[test]
        fn a_changed_byte_does_not_agree(
            bytes in proptest::collection::vec(any::<u8>(), 2..4000),
            at in any::<proptest::sample::Index>(),
            change in 1_u8..,
            offset in 0_u64..2000,
        ) {
            let mut earlier = bytes.clone();
            // The last byte of the last sector is not zero, so everything before it in this sector counts as received.
            earlier.push(1);
            let mut now = earlier.clone();
            let at = at.index(bytes.len());
            let same_sector = (offset + at as u64) / 512 == (offset + bytes.len() as u64) / 512;
            now[at] ^= change;
            prop_assert!(!same_sector || !agrees(offset, &earlier, &now));
        }
    }

    #[test]
    fn only_zeros_follow_the_received_bytes() {
        assert!(agrees(0, b"ab\0\0", b"abcd"));
        assert!(!agrees(0, b"a\0c\0", b"abcd"), "zero amid what was received");
        assert!(!agrees(0, b"abcd", b"abc"), "more than there is now");
        assert!(agrees(510, b"\0\0c", b"abc"), "a lost sector before");
    }
}
