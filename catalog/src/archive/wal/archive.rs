//! Archives a file.
//!
//! The file is checked before anything is stored, then read once: it is scanned here for its points in time while the
//! store's workers hash and compress the windows read before. If the archive has the name already, comparing the maps
//! shows whether the bytes are the same; if they are, nothing new has been stored except chunks that were known to be
//! damaged. Otherwise chunks and record go into one pack: one fsync for the pack, one for its directory, one for the
//! transaction that enters it in the catalog. Only then is the file acknowledged.
//!
//! Looking up a name and claiming it is one atomic step across processes: they hold the lock of the name's stripe
//! meanwhile. Comparing a file with its neighbours and entering it is one step, too, for all files of a server: of two
//! neighbours that come at one moment, at least the later one is compared with the other. If the process is killed before the transaction, the file has not been acknowledged, and PostgreSQL sends
//! it again. If the pack was already complete, it is adopted later: then two records have the same bytes, and the
//! earlier one counts.

use std::io::{self, Read};
use std::sync::Arc;

use barmanfs_pg::wal_check::{SegmentFacts, check_segment};
use barmanfs_pg::wal_files::check_small_file;
use barmanfs_pg::wal_link::{FirstRecord, first_record};
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::wal_scan::{SegmentIndex, WalScanner};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};
use barmanfs_store::tree::{SingleFile, StoredFile};
use barmanfs_store::{ContentClass, Depositor, Record};

use crate::archive::history::Fork;
use crate::archive::history::arrival::Obstacle;
use crate::archive::wal::{QuarantinedWal, RefusedWal, WalConflict, WalFile, WalOutcome, removal};
use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::index::records::{self, Kind};
use crate::index::repository::Repository;
use crate::index::writer::Writer;
use crate::names::ServerName;

/// Largest `.history` or `.backup` file: they have one line for each timeline, or ten lines.
const SMALL_FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Size of a read: one window.
const READ_BYTES: usize = barmanfs_store::layout::STREAM_WINDOW_BYTES as usize;

/// Number of locks over which names are spread, so that files archived at the same time rarely wait for each other.
pub(crate) const STRIPES: u32 = 16;

impl Repository {
    /// Whether a file can be archived that has this name and size and begins with these bytes, as far as they show.
    ///
    /// # Errors
    /// The same as those of [`Writer::archive_wal`] for a file that is wrong.
    pub fn examine_wal(
        &self,
        server: &ServerName,
        name: &WalName,
        beginning: &[u8],
        size_bytes: u64,
    ) -> Result<()> {
        let file = Incoming {
            server,
            name,
            size_bytes,
            origin: "",
        };
        match (check(&file, beginning)?, self.system_id(server)?) {
            (Some(facts), Some(expected)) if facts.system_id != expected => Err(Error::OtherSystem {
                server: server.clone(),
                expected,
                found: facts.system_id,
            }),
            _ => Ok(()),
        }
    }
}

/// A file being archived.
struct Incoming<'a> {
    server: &'a ServerName,
    name: &'a WalName,
    size_bytes: u64,
    origin: &'a str,
}

impl Writer {
    /// Archives a file of `size_bytes` bytes read from `source`. What was archived is durable when this returns, and
    /// never changes: different bytes under the same name go into quarantine, and the outcome says so.
    ///
    /// # Errors
    /// [`Error::Wal`] when it is not the segment named by its name, [`Error::BadWalFile`] for other files,
    /// [`Error::OtherSystem`] when another cluster wrote it, [`Error::WalSize`], [`Error::WalSource`], and when it
    /// cannot be made durable.
    pub fn archive_wal(
        &self,
        server: &ServerName,
        name: &WalName,
        source: &mut dyn Read,
        size_bytes: u64,
        origin: &str,
    ) -> Result<WalOutcome> {
        let file = Incoming {
            server,
            name,
            size_bytes,
            origin,
        };
        let mut source = Source {
            name,
            source,
            size_bytes,
            left: size_bytes,
        };
        let mut buffer = Vec::new();
        source.fill(&mut buffer)?;
        let facts = check(&file, &buffer)?;
        // Held until the record that names the server's cluster is written, which is before this returns.
        let claimed = match &facts {
            Some(facts) => self.claim_server(server, facts.system_id)?,
            None => None,
        };
        let _lock = self.lock_wal_name(server, name)?;
        let depositor = Arc::new(self.depositor()?);
        let link = first_link(&file, facts.as_ref(), &buffer);
        let (stored, index) = store(&depositor, &file, facts, source, buffer)?;
        self.settle(&depositor, &file, stored, index, (claimed, link))
    }

    /// Keeps others from archiving or removing a file of this name.
    pub(super) fn lock_wal_name(&self, server: &ServerName, name: &WalName) -> Result<Lock> {
        let stripe = crc32c::crc32c(name.to_string().as_bytes()) % STRIPES;
        self.repository()
            .locks
            .wait_exclusive(&format!("wal-{server}-{stripe:x}"), self.purpose())
    }

    /// Keeps other files of the server out of the archive: nothing can come between a comparison with the neighbours and
    /// the file's entry. It is held for one write to the disk, and taken after the lock of the name.
    pub(crate) fn lock_neighbours(&self, server: &ServerName) -> Result<Lock> {
        let name = format!("neighbours-{server}");
        self.repository().locks.wait_exclusive(&name, self.purpose())
    }

    /// Compares the file with the archived one of this name, and writes a record if there is something new to record.
    fn settle(
        &self,
        depositor: &Depositor,
        file: &Incoming<'_>,
        stored: StoredFile,
        index: Option<SegmentIndex>,
        (claimed, link): (Option<(Record, Lock)>, Option<FirstRecord>),
    ) -> Result<WalOutcome> {
        // No removal of WAL comes between the file's time and its entry.
        let _lock = self.lock_neighbours(file.server)?;
        let new = WalFile {
            server: file.server.clone(),
            name: *file.name,
            size_bytes: file.size_bytes,
            archived_at: self
                .repository()
                .db
                .read(|db| removal::archived_now(db, file.server, file.name))?,
            origin: file.origin.to_owned(),
            new_stored_bytes: stored.new_stored_bytes,
            index,
            map: stored.map,
            record: None,
        };
        let archive = self.repository().wal(file.server);
        match archive.find(file.name)? {
            None => {
                if let Some(obstacle) = self.repository().obstacle(&new, link)? {
                    return self.refuse(depositor, new, obstacle);
                }
                let record = records::record(Kind::Wal, &new)?;
                let new = WalFile {
                    record: Some(record.id),
                    ..new
                };
                let (server, _held) = claimed.unzip();
                depositor.flush(server.into_iter().chain([record]).collect())?;
                Ok(WalOutcome::Stored(Box::new(new)))
            }
            Some(archived) if archived.map == new.map => {
                // Its chunks that were damaged or condemned have been stored again.
                depositor.flush(Vec::new())?;
                Ok(WalOutcome::AlreadyThere(Box::new(archived)))
            }
            Some(archived) => self.keep_both(depositor, archived, new),
        }
    }

    /// Puts a file aside whose name is taken by other bytes.
    fn keep_both(&self, depositor: &Depositor, archived: WalFile, new: WalFile) -> Result<WalOutcome> {
        let is_left = self.repository().is_of_left_history(&new)?;
        let reason = format!(
            "Other bytes had been archived under this name at {}",
            archived.archived_at
        );
        let (quarantined, is_new) = self.put_aside(depositor, new, reason)?;
        let fork = match is_left {
            true => None,
            false => self.fork_at(&archived, &quarantined, is_new)?,
        };
        Ok(WalOutcome::Conflict(Box::new(WalConflict {
            archived,
            quarantined,
            fork,
        })))
    }

    /// Rejects a file of another history.
    fn refuse(&self, depositor: &Depositor, file: WalFile, obstacle: Obstacle) -> Result<WalOutcome> {
        let reason = obstacle.to_string();
        let size = SegmentSize::try_from(file.size_bytes).unwrap_or(SegmentSize::DEFAULT);
        let (server, origin) = (file.server.clone(), file.origin.clone());
        let (quarantined, is_new) = self.put_aside(depositor, file, reason)?;
        let fork = match obstacle {
            Obstacle::Behind(fork) => Some(fork),
            Obstacle::Left => None,
            Obstacle::Shows { timeline, lsn, why } => {
                let place = (timeline, lsn, size);
                Some(self.known_or_new_fork(&server, place, &why, &origin, is_new)?)
            }
        };
        Ok(WalOutcome::Refused(Box::new(RefusedWal { quarantined, fork })))
    }

    /// Puts a file into quarantine, unless its bytes are there already; returns whether they are new.
    fn put_aside(
        &self,
        depositor: &Depositor,
        file: WalFile,
        reason: String,
    ) -> Result<(QuarantinedWal, bool)> {
        match self.repository().wal(&file.server).quarantined_as(&file)? {
            Some(known) => {
                depositor.flush(Vec::new())?;
                Ok((known, false))
            }
            None => Ok((quarantine(depositor, file, reason)?, true)),
        }
    }

    /// The fork revealed by two files of one name.
    fn fork_at(&self, archived: &WalFile, other: &QuarantinedWal, is_new: bool) -> Result<Option<Fork>> {
        let name = archived.name;
        let size = SegmentSize::try_from(archived.size_bytes).unwrap_or(SegmentSize::DEFAULT);
        let lsn = match name {
            WalName::Segment(segment) => {
                // If the archived file cannot be read, the two differ somewhere in the segment.
                let offset = self.first_difference(archived, &other.file).unwrap_or(0);
                Lsn(segment.start_lsn(size).0.saturating_add(offset))
            }
            // The whole timeline has a different origin.
            WalName::History(_) => Lsn(0),
            _ => return Ok(None),
        };
        let place = (name.timeline(), lsn, size);
        let why = format!(
            "{name} came with other content than was archived at {}",
            archived.archived_at
        );
        self.known_or_new_fork(&archived.server, place, &why, &other.file.origin, is_new)
            .map(Some)
    }

    /// The fork that a file reveals. If the file was sent before and its fork has been decided, that decision stays
    /// valid, however often the file is sent again. While an open fork covers it, there is no decision.
    fn known_or_new_fork(
        &self,
        server: &ServerName,
        place: (TimelineId, Lsn, SegmentSize),
        why: &str,
        found_by: &str,
        is_new: bool,
    ) -> Result<Fork> {
        let (timeline, lsn, _) = place;
        if !is_new && self.repository().open_fork_before(server, place)?.is_none() {
            let forks = self.repository().forks(server)?;
            let decided =
                |fork: &Fork| fork.timeline == timeline && fork.lsn <= lsn && fork.decided.is_some();
            if let Some(fork) = forks.into_iter().rfind(decided) {
                return Ok(fork);
            }
        }
        self.record_fork(server, place, why, found_by)
    }

    /// The first offset at which two stored files differ.
    fn first_difference(&self, one: &WalFile, other: &WalFile) -> Result<u64> {
        let trees = self.repository().trees();
        let (mut a, mut b) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        let mut offset = 0;
        loop {
            let (one, other) = (
                trees.read_at(&one.map, offset, &mut a)?,
                trees.read_at(&other.map, offset, &mut b)?,
            );
            let length = one.min(other);
            let same = a.iter().zip(&b).take(length).take_while(|(a, b)| a == b).count();
            if same < length || length == 0 {
                return Ok(offset + same as u64);
            }
            offset += length as u64;
        }
    }
}

/// The first record of a segment that begins with these bytes.
fn first_link(file: &Incoming<'_>, facts: Option<&SegmentFacts>, beginning: &[u8]) -> Option<FirstRecord> {
    let (WalName::Segment(name), Some(facts)) = (file.name, facts) else {
        return None;
    };
    facts
        .is_known_version()
        .then(|| first_record(name.start_lsn(facts.segment_size), facts.page_bytes, beginning))
        .flatten()
}

fn quarantine(depositor: &Depositor, file: WalFile, reason: String) -> Result<QuarantinedWal> {
    let mut kept = QuarantinedWal { file, reason };
    let record = records::record(Kind::QuarantinedWal, &kept)?;
    kept.file.record = Some(record.id);
    depositor.flush(vec![record])?;
    Ok(kept)
}

/// Checks the name, the size and the first page.
fn check(file: &Incoming<'_>, beginning: &[u8]) -> Result<Option<SegmentFacts>> {
    match file.name {
        WalName::Segment(segment) | WalName::Partial(segment) => {
            Ok(Some(check_segment(beginning, segment, file.size_bytes)?))
        }
        WalName::BackupHistory { .. } | WalName::History(_) if file.size_bytes > SMALL_FILE_MAX_BYTES => {
            let reason = format!(
                "has {} bytes, more than any such file: it is something else",
                file.size_bytes
            );
            Err(Error::WalSize {
                name: *file.name,
                reason,
            })
        }
        // The buffer has the whole file: it is smaller than one read.
        WalName::BackupHistory { .. } | WalName::History(_) => {
            check_small_file(file.name, beginning).map_err(|error| Error::BadWalFile {
                name: *file.name,
                server: file.server.clone(),
                reason: error.to_string(),
            })?;
            Ok(None)
        }
    }
}

/// Stores the file's bytes, the first of which are in `buffer`, and scans them.
fn store(
    depositor: &Arc<Depositor>,
    file: &Incoming<'_>,
    facts: Option<SegmentFacts>,
    mut source: Source<'_>,
    mut buffer: Vec<u8>,
) -> Result<(StoredFile, Option<SegmentIndex>)> {
    let window_bytes = barmanfs_store::layout::STREAM_WINDOW_BYTES;
    let mut sink = SingleFile::begin(
        Arc::clone(depositor),
        file.size_bytes,
        window_bytes,
        ContentClass::Stream,
    )?;
    let mut scanner = facts
        .as_ref()
        .zip(file.name.segment())
        .map(|(facts, name)| WalScanner::new(&name, facts));
    while !buffer.is_empty() {
        sink.write(&buffer)?;
        if let Some(scanner) = &mut scanner {
            scanner.push(&buffer);
        }
        source.fill(&mut buffer)?;
    }
    source.expect_end()?;
    Ok((sink.finish()?, scanner.map(WalScanner::finish)))
}

/// A file that must have exactly the announced number of bytes.
struct Source<'a> {
    name: &'a WalName,
    source: &'a mut dyn Read,
    size_bytes: u64,
    left: u64,
}

impl Source<'_> {
    /// Reads the next bytes into the buffer; at the end it leaves the buffer empty.
    fn fill(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        let wanted = self.left.min(READ_BYTES as u64);
        buffer.resize(wanted as usize, 0);
        match self.source.read_exact(buffer) {
            Ok(()) => {
                self.left -= wanted;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::WalSize {
                name: *self.name,
                reason: format!(
                    "ended before its {} bytes: is it still being written?",
                    self.size_bytes
                ),
            }),
            Err(error) => Err(self.unreadable(error)),
        }
    }

    /// Fails if there are more bytes than announced: something is still writing to the file.
    fn expect_end(&mut self) -> Result<()> {
        let mut byte = [0];
        loop {
            match self.source.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    let reason = "grew while it was read: is it still being written?".to_owned();
                    return Err(Error::WalSize {
                        name: *self.name,
                        reason,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unreadable(error)),
            }
        }
    }

    fn unreadable(&self, source: io::Error) -> Error {
        Error::WalSource {
            name: *self.name,
            source: Arc::new(source),
        }
    }
}
