//! Checks whether the server still has the history that the repository has of it.
//!
//! One timeline can have two histories: after a snapshot was restored, or after a copy was promoted without a new
//! timeline. PostgreSQL cannot distinguish them, since it looks only at the timeline and the position. Here the
//! server's WAL is compared with the stored WAL, byte for byte: in the newest segment that both have ([`of_archive`]),
//! or at any position ([`Look`]). WAL that the server has removed proves nothing, because PostgreSQL recycles its WAL.

pub(crate) mod history_file;

use std::fmt;

use barmanfs_catalog::{Repository, ServerName, WalFile};
use barmanfs_pg::wal_link::first_record;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};
use barmanfs_store::FileMap;

use crate::cluster::ServerSettings;
use crate::error::Error;
use crate::postgres::{Connection, WalPiece};

/// Bytes to compare before an end position. Two histories have records at the same positions only by chance, and their
/// commits and checkpoints have different times.
pub(crate) const COMPARED_BYTES: u64 = 256 << 10;

/// Bytes to read to find the first record of a segment. A record of any length that began in an earlier segment may
/// come before it.
const FIRST_RECORD_BYTES: u64 = 1 << 20;

/// Maximum number of bytes to compare to find the first difference: a segment of the default size.
const SEARCHED_BYTES: u64 = 16 << 20;

/// The size of a WAL page. A piece begins with a page.
const PAGE_BYTES: u64 = 8192;

/// Maximum number of earlier segments to check for the place where two histories diverge.
const LOOKED_BACK: u64 = 256;

/// The place where two histories of one timeline diverge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForkPoint {
    /// The timeline.
    pub(crate) timeline: TimelineId,
    /// The first position where they are known to differ.
    pub(crate) lsn: Lsn,
    /// The evidence.
    pub(crate) why: String,
}

impl fmt::Display for ForkPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (timeline {}, from {} on)",
            self.why, self.timeline, self.lsn
        )
    }
}

/// The relation of the server's history to the archive's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lineage {
    /// The newest segment that both have is the same.
    Same,
    /// There is no segment that both have.
    Unknown,
    /// Their WAL differs.
    Other(ForkPoint),
}

/// Compares the newest segment that both the server and its archive have.
///
/// # Errors
/// When the connection breaks, or the archive cannot be read.
pub(crate) fn of_archive(
    repository: &Repository,
    server: &ServerName,
    cluster: &ServerSettings,
    connection: &mut Connection,
) -> Result<Lineage, Error> {
    let (timeline, size) = (cluster.timeline, cluster.segment_size);
    let archive = repository.wal(server);
    let is_known = repository.system_id(server)? == Some(cluster.system_id);
    let Some(last) = archive.last_segment(timeline, None)?.filter(|_| is_known) else {
        return Ok(Lineage::Unknown);
    };
    // The server is asked after the archive was read. A server with the same history has then already written all
    // archived WAL.
    let now = connection.identify_system()?;
    if now.timeline != timeline {
        return Ok(Lineage::Unknown);
    }
    let current = SegmentName::from_lsn(timeline, now.flush_lsn, size);
    let mut look = Look { connection, size };
    if let Some(common) = archive.last_segment(timeline, Some(current))? {
        let found = look.back_from(repository, server, common)?;
        if matches!(found, Lineage::Other(_)) {
            return Ok(found);
        }
        if last < current {
            return Ok(found);
        }
    } else if last < current {
        return Ok(Lineage::Unknown);
    }
    // A standby may be behind the archive; a primary never is.
    if look.connection.is_in_recovery()? {
        return Ok(Lineage::Unknown);
    }
    Ok(Lineage::Other(ForkPoint {
        timeline,
        lsn: now.flush_lsn,
        why: format!(
            "the archive has {last}, and the server's WAL ends at {}: it was put back to an earlier state",
            now.flush_lsn
        ),
    }))
}

/// The result of comparing a piece of WAL.
#[derive(Debug)]
pub(crate) enum Compared {
    /// Both have the same bytes.
    Same,
    /// They differ from this position on.
    Different(Lsn),
    /// The server no longer has the WAL.
    Removed,
    /// The server refuses to send the WAL.
    Refused(String),
    /// The stored WAL cannot be read.
    Damaged(String),
}

/// Compares a server's WAL with stored WAL.
#[derive(Debug)]
pub(crate) struct Look<'a> {
    /// A replication connection.
    pub(crate) connection: &'a mut Connection,
    /// Size of the server's segments.
    pub(crate) size: SegmentSize,
}

impl Look<'_> {
    /// Compares a stored segment with the server's: `bytes` of it, up to `end`.
    pub(crate) fn compare(
        &mut self,
        repository: &Repository,
        map: &FileMap,
        segment: SegmentName,
        (end, bytes): (Lsn, u64),
    ) -> Result<Compared, Error> {
        let start = segment.start_lsn(self.size);
        let from = end.0.saturating_sub(bytes) / PAGE_BYTES * PAGE_BYTES;
        let from = Lsn(from.max(start.0));
        let piece = self.connection.read_wal(segment.timeline, from, end)?;
        let theirs = match piece {
            WalPiece::Bytes(bytes) => bytes,
            WalPiece::Removed => return Ok(Compared::Removed),
            WalPiece::Refused(why) => return Ok(Compared::Refused(why)),
        };
        let mut ours = vec![0; theirs.len()];
        let offset = from.0.saturating_sub(start.0);
        let read = match repository.trees().read_at(map, offset, &mut ours) {
            Ok(read) => read,
            Err(error) if error.is_damage() => return Ok(Compared::Damaged(error.to_string())),
            Err(error) => return Err(barmanfs_catalog::Error::from(error).into()),
        };
        let same = ours
            .iter()
            .zip(&theirs)
            .take(read)
            .take_while(|(a, b)| a == b)
            .count();
        let at = Lsn(from.0.saturating_add(same as u64));
        if same < theirs.len() {
            return Ok(Compared::Different(at));
        }
        if at < end {
            return Ok(Compared::Refused(format!("it ends at {at}")));
        }
        Ok(Compared::Same)
    }

    /// Compares an archived segment around its last record. After that record there may be only zeros, which are the
    /// same in every history.
    pub(crate) fn compare_end(
        &mut self,
        repository: &Repository,
        file: &WalFile,
        segment: SegmentName,
    ) -> Result<Compared, Error> {
        let end = segment.next(self.size).start_lsn(self.size);
        let last = match repository.last_record(file, segment) {
            Ok(last) => last,
            Err(error) => return Ok(Compared::Damaged(error.to_string())),
        };
        let piece = match last {
            Some(last) => (end.min(Lsn(last.0.saturating_add(PAGE_BYTES))), COMPARED_BYTES),
            None => (end, SEARCHED_BYTES),
        };
        self.compare(repository, &file.map, segment, piece)
    }

    /// Compares an archived segment and, if it differs, earlier ones, back to the place where the histories diverge.
    fn back_from(
        &mut self,
        repository: &Repository,
        server: &ServerName,
        last: SegmentName,
    ) -> Result<Lineage, Error> {
        let archive = repository.wal(server);
        let mut found = Lineage::Unknown;
        let mut segment = last;
        for _ in 0..LOOKED_BACK {
            let Some(file) = archive.find(&WalName::Segment(segment))? else {
                break;
            };
            let compared = match self.compare_end(repository, &file, segment)? {
                Compared::Different(_) => {
                    let end = segment.next(self.size).start_lsn(self.size);
                    self.compare(repository, &file.map, segment, (end, SEARCHED_BYTES))?
                }
                compared => compared,
            };
            match compared {
                Compared::Different(lsn) => {
                    found = Lineage::Other(ForkPoint {
                        timeline: segment.timeline,
                        lsn,
                        why: format!("the server's WAL is not the archived one in {segment}"),
                    });
                }
                Compared::Same if found == Lineage::Unknown => return Ok(Lineage::Same),
                // The backup is taken all the same; 'verify' and 'check' report the damage.
                Compared::Damaged(why) => {
                    tracing::warn!(
                        "Archived segment {segment} of server {server} cannot be compared with the server's: {why}"
                    );
                    break;
                }
                Compared::Same | Compared::Removed | Compared::Refused(_) => break,
            }
            match archive.last_segment(segment.timeline, Some(segment))? {
                Some(before) => segment = before,
                None => break,
            }
        }
        Ok(found)
    }

    /// Whether the first record after a stored segment refers to the segment's last record as the previous one.
    pub(crate) fn continues(
        &mut self,
        repository: &Repository,
        map: &FileMap,
        last: SegmentName,
    ) -> Result<Compared, Error> {
        let next = last.next(self.size).start_lsn(self.size);
        let end = Lsn(next.0.saturating_add(self.size.bytes().min(FIRST_RECORD_BYTES)));
        let bytes = match self.connection.read_wal(last.timeline, next, end)? {
            WalPiece::Bytes(bytes) => bytes,
            WalPiece::Removed => return Ok(Compared::Removed),
            WalPiece::Refused(why) => return Ok(Compared::Refused(why)),
        };
        let first = first_record(next, PAGE_BYTES as u32, &bytes);
        let before = match repository.last_record_start(map, last) {
            Ok(before) => before,
            Err(error) => return Ok(Compared::Damaged(error.to_string())),
        };
        Ok(match first.zip(before) {
            Some((first, before)) if first.previous == before => Compared::Same,
            Some((first, _)) => Compared::Different(first.lsn),
            None => Compared::Removed,
        })
    }
}
