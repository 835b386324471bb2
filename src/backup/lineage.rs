//! Whether the server still has the history that is kept of it.
//!
//! One timeline can have two histories: a snapshot was put back, a copy was promoted without a new timeline. PostgreSQL
//! cannot tell them apart, since it looks at the timeline and the position alone. Here the server's WAL is held against the
//! kept one, byte for byte, where the parent ended ([`prove`]) or in the newest segment that both have ([`of_archive`]).
//! What is not on the server any more says nothing: PostgreSQL recycles its WAL.

use std::fmt;

use barmanfs_catalog::{Backup, Repository, ServerName, WalFile};
use barmanfs_pg::wal_link::first_record;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};
use barmanfs_store::FileMap;

use super::incremental::NoIncrement;
use super::receive::file_map;
use super::settings::ServerSettings;
use crate::config::ServerConfig;
use crate::error::Error;
use crate::postgres::{Connection, Conninfo, Environment, Mode, WalPiece};

/// What is compared in one place, before its end: two histories have the same positions there only by chance, and other
/// times in commits and checkpoints.
const COMPARED_BYTES: u64 = 256 << 10;

/// How much is read to find the first record of a segment: behind the end of one that began before, however long.
const FIRST_RECORD_BYTES: u64 = 1 << 20;

/// Most that is compared to find the first difference: a usual segment.
const SEARCHED_BYTES: u64 = 16 << 20;

/// The size of a WAL page, which a piece begins with.
const PAGE_BYTES: u64 = 8192;

/// How many segments are looked at backwards for the place where two histories part.
const LOOKED_BACK: u64 = 256;

/// Where two histories of one timeline part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fork {
    /// The timeline.
    pub(crate) timeline: TimelineId,
    /// The first position where they are known to differ.
    pub(crate) lsn: Lsn,
    /// How it shows.
    pub(crate) why: String,
}

impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (timeline {}, from {} on)",
            self.why, self.timeline, self.lsn
        )
    }
}

/// What the server has of the archive's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lineage {
    /// The newest segment that both have is the same.
    Same,
    /// There is none that both have.
    Unknown,
    /// They have different WAL at one place.
    Other(Fork),
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
    // Asked after the archive: what that has, an honest server has written before.
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
    // A standby may be behind the archive, a primary never is.
    if look.connection.is_in_recovery()? {
        return Ok(Lineage::Unknown);
    }
    Ok(Lineage::Other(Fork {
        timeline,
        lsn: now.flush_lsn,
        why: format!(
            "the archive has {last}, and the server's WAL ends at {}: it was put back to an earlier state",
            now.flush_lsn
        ),
    }))
}

/// Makes sure that the server still has the history of `parent`, a backup on its timeline or on one before.
///
/// # Errors
/// [`NoIncrement::Changed`] when it does not, [`NoIncrement::Impossible`] when nothing can tell.
pub(super) fn prove(
    repository: &Repository,
    server: &ServerConfig,
    cluster: &ServerSettings,
    connection: &mut Connection,
    parent: &Backup,
) -> Result<(), NoIncrement> {
    if let (Some(before), Some(now)) = (parent.data_checksums, cluster.data_checksums)
        && before != now
    {
        return Err(NoIncrement::Changed(checksums_changed(now)));
    }
    let refused = repository.wal(&server.name).quarantined()?;
    let since = refused
        .iter()
        .rfind(|kept| kept.file.archived_at > parent.begin_time && kept.file.name.segment().is_some());
    if let Some(kept) = since {
        return Err(NoIncrement::Changed(format!(
            "{} of another history was refused after backup {}: see 'barmanfs check {}'",
            kept.file.name, parent.id, server.name
        )));
    }
    let (Some(timeline), Some(stop)) = (parent.timeline, parent.stop_lsn) else {
        return Err(NoIncrement::Impossible(format!(
            "nobody knows where backup {} ended",
            parent.id
        )));
    };
    let size = cluster.segment_size;
    let mut look = Look { connection, size };
    let segment = SegmentName::from_lsn(timeline, Lsn(stop.0.saturating_sub(1)), size);
    let compared = match kept_with(repository, parent, segment)? {
        Some(map) => look.compare(repository, &map, segment, (stop, COMPARED_BYTES))?,
        None => Compared::Removed,
    };
    let differs = |lsn: Lsn, id| {
        NoIncrement::Changed(format!(
            "the server's history is not that of backup {id} any more: its WAL differs at {lsn}. It was put back to an \
             earlier state, or is another server"
        ))
    };
    match compared {
        Compared::Same => Ok(()),
        Compared::Different(lsn) => Err(differs(lsn, parent.id)),
        Compared::Refused(why) => {
            let reason = format!(
                "the server does not have the WAL at {stop}, where backup {} ended: {why}",
                parent.id
            );
            // A standby may be behind the backup, a primary never is.
            match look.connection.is_in_recovery().map_err(Error::from)? {
                true => Err(NoIncrement::Impossible(reason)),
                false => Err(NoIncrement::Changed(reason)),
            }
        }
        Compared::Damaged(why) => Err(NoIncrement::Impossible(why)),
        Compared::Removed => match look.follow(repository, parent, segment, cluster)? {
            Compared::Same => Ok(()),
            Compared::Different(lsn) => Err(differs(lsn, parent.id)),
            _ if has_summary_from(server, parent) => Ok(()),
            _ => Err(NoIncrement::Impossible(format!(
                "the server has no WAL any more that would prove that its history is still that of backup {}",
                parent.id
            ))),
        },
    }
}

/// What is said where page checksums came or went.
pub(super) fn checksums_changed(enabled: bool) -> String {
    let what = if enabled { "enabled" } else { "disabled" };
    format!("page checksums were {what} since the earlier backup, which changes files behind WAL's back")
}

/// The segment that came with the backup, or is in the archive.
fn kept_with(
    repository: &Repository,
    backup: &Backup,
    segment: SegmentName,
) -> Result<Option<FileMap>, NoIncrement> {
    let root = backup.root.as_ref().filter(|_| backup.wal_included);
    if let Some(root) = root {
        let path = format!("pg_wal/{segment}");
        return Ok(repository
            .trees()
            .find(&root.directory, path.as_bytes())?
            .and_then(file_map));
    }
    let archived = repository
        .wal(backup.archive())
        .find(&WalName::Segment(segment))?;
    Ok(archived.map(|file| file.map))
}

/// Whether one of the server's WAL summaries begins where the parent did, at the checkpoint made for it: another history
/// has its checkpoints at other positions. `false` where that cannot be asked.
fn has_summary_from(server: &ServerConfig, parent: &Backup) -> bool {
    let (Some(conninfo), Some(timeline), Some(start)) = (&server.conninfo, parent.timeline, parent.start_lsn)
    else {
        return false;
    };
    let ask = || {
        let conninfo = Conninfo::parse(conninfo.expose(), &Environment::new(std::env::vars_os()))?;
        let mut sql = Connection::connect(&conninfo, Mode::Sql)?;
        let found = sql.simple_query(&format!(
            "SELECT start_lsn FROM pg_available_wal_summaries() WHERE tli = {timeline} AND start_lsn = '{start}'"
        ))?;
        Ok::<_, Error>(found.first().is_some_and(|rows| rows.len() > 0))
    };
    ask().unwrap_or_else(|error| {
        tracing::debug!(
            "The WAL summaries of server {} cannot be asked for: {error}",
            server.name
        );
        false
    })
}

/// What comparing a piece gave.
#[derive(Debug)]
enum Compared {
    Same,
    /// From there on.
    Different(Lsn),
    /// The server does not have it any more.
    Removed,
    /// The server does not show it.
    Refused(String),
    /// What is kept of it cannot be read.
    Damaged(String),
}

/// A look at a server's WAL.
struct Look<'a> {
    connection: &'a mut Connection,
    size: SegmentSize,
}

impl Look<'_> {
    /// Compares a kept segment with the server's: `bytes` of it, up to `end`.
    fn compare(
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

    /// Compares an archived segment around its last record: what is behind that may be nothing but zeros, the same
    /// everywhere.
    fn compare_end(
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

    /// Compares an archived segment, and where it differs those before, down to the place where the histories part.
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
                    found = Lineage::Other(Fork {
                        timeline: segment.timeline,
                        lsn,
                        why: format!("the server's WAL is not the archived one in {segment}"),
                    });
                }
                Compared::Same if found == Lineage::Unknown => return Ok(Lineage::Same),
                // No reason to take no backup: 'verify' and 'check' tell of it.
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

    /// The server has the WAL at a parent's end no more: compares the newest segment of the archive that it still has, or
    /// looks whether the server's oldest one continues it. The archive must have all from the parent's end to there.
    fn follow(
        &mut self,
        repository: &Repository,
        parent: &Backup,
        stop: SegmentName,
        cluster: &ServerSettings,
    ) -> Result<Compared, NoIncrement> {
        let archive = repository.wal(parent.archive());
        let mut last = stop;
        if cluster.timeline != stop.timeline || kept_with(repository, parent, stop)?.is_none() {
            return Ok(Compared::Removed);
        }
        loop {
            let next = last.next(self.size);
            match archive.entry(&WalName::Segment(next))? {
                Some(_) if next.start_lsn(self.size) < cluster.flush_lsn => last = next,
                _ => break,
            }
        }
        if last == stop {
            let map = kept_with(repository, parent, stop)?;
            return map.map_or(Ok(Compared::Removed), |map| {
                self.continues(repository, &map, last)
            });
        }
        let Some(file) = archive.find(&WalName::Segment(last))? else {
            return Ok(Compared::Removed);
        };
        match self.compare_end(repository, &file, last)? {
            Compared::Removed => self.continues(repository, &file.map, last),
            compared => Ok(compared),
        }
    }

    /// Whether the first record behind a kept segment names its last one.
    fn continues(
        &mut self,
        repository: &Repository,
        map: &FileMap,
        last: SegmentName,
    ) -> Result<Compared, NoIncrement> {
        let next = last.next(self.size).start_lsn(self.size);
        let end = Lsn(next.0.saturating_add(self.size.bytes().min(FIRST_RECORD_BYTES)));
        let bytes = match self
            .connection
            .read_wal(last.timeline, next, end)
            .map_err(Error::from)?
        {
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
