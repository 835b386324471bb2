//! How a segment must be edited when it is shown, so that its replay does not leave the data directory it runs in.
//!
//! The index says where tablespaces are created. A segment archived by a release that did not look for them is read
//! here once, and the result is cached for a while. See [`barmanfs_pg::wal_scan::confine`] for what is changed.

use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use barmanfs_pg::wal_check::{LONG_HEADER_BYTES, SegmentFacts, check_segment};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::wal_scan::{SegmentIndex, WalEdit, WalScanner, confine, may_cross};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};
use barmanfs_store::FileMap;
use rusqlite::params;

use crate::archive::wal::WalFile;
use crate::error::{Error, Result};
use crate::home::regular;
use crate::index::repository::Repository;
use crate::names::ServerName;

/// Size of a read.
const READ_BYTES: usize = 1 << 20;

/// How a segment is shown to a PostgreSQL that replays it in a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confined {
    /// Bytes shown instead of the stored ones, each with its offset in the file.
    pub edits: Vec<(u64, Vec<u8>)>,
}

/// A segment outside the archive.
#[derive(Debug)]
pub struct LooseSegment<'a> {
    /// Its name.
    pub name: SegmentName,
    /// Its first bytes, at least the header of its first page.
    pub beginning: &'a [u8],
    /// Its index.
    pub index: &'a SegmentIndex,
}

impl Repository {
    /// How an archived segment is shown to a PostgreSQL that replays it in a copy.
    ///
    /// # Errors
    /// [`Error::NotConfined`] when its replay cannot be kept within the copy; when it cannot be read.
    pub fn confined(&self, file: &WalFile) -> Result<Confined> {
        let WalName::Segment(name) = file.name else {
            return Ok(Confined::default());
        };
        let index = self.index_of_file(file)?;
        if index.tablespaces.is_empty() && index.head.is_none() && index.tail.is_none() && !is_odd(&index) {
            return Ok(Confined::default());
        }
        let (before, after) = self.around(&file.server, name, &index)?;
        let mut beginning = [0; LONG_HEADER_BYTES];
        self.trees().read_at(&file.map, 0, &mut beginning)?;
        let loose = LooseSegment {
            name,
            beginning: &beginning,
            index: &index,
        };
        confined(&file.server, &loose, &before, &after)
    }

    /// The same for a segment of the spool, of which the part described by `loose` has been received.
    ///
    /// # Errors
    /// As for [`confined`](Self::confined).
    pub fn confined_received(&self, server: &ServerName, loose: &LooseSegment<'_>) -> Result<Confined> {
        let (before, after) = self.around(server, loose.name, loose.index)?;
        confined(server, loose, &before, &after)
    }

    /// The same for a segment that came with a backup; `beside` looks up, by name, the segments that came with the same
    /// backup.
    ///
    /// # Errors
    /// As for [`confined`](Self::confined).
    pub fn confined_stored(
        &self,
        server: &ServerName,
        name: SegmentName,
        map: &FileMap,
        beside: &mut dyn FnMut(SegmentName) -> Result<Option<FileMap>>,
    ) -> Result<Confined> {
        let index = self.index_of_map(name, map)?;
        let Ok(size) = SegmentSize::try_from(map.size_bytes) else {
            return Ok(Confined::default());
        };
        let mut of = |name: Option<SegmentName>| -> Result<Vec<SegmentIndex>> {
            let Some(name) = name else { return Ok(Vec::new()) };
            let map = beside(name)?;
            let index = map.map(|map| self.index_of_map(name, &map)).transpose()?;
            Ok(index.map(|index| (*index).clone()).into_iter().collect())
        };
        let before = match index.head {
            Some(_) => of(previous(name, size))?,
            None => Vec::new(),
        };
        let after = match index.tail.as_ref().is_some_and(may_cross) {
            true => of(Some(name.next(size)))?,
            false => Vec::new(),
        };
        let mut beginning = [0; LONG_HEADER_BYTES];
        self.trees().read_at(map, 0, &mut beginning)?;
        let loose = LooseSegment {
            name,
            beginning: &beginning,
            index: &index,
        };
        confined(server, &loose, &before, &after)
    }

    /// The index of an archived segment, whichever release archived it.
    pub(crate) fn index_of_file(&self, file: &WalFile) -> Result<Arc<SegmentIndex>> {
        match (&file.index, file.name) {
            (Some(index), _) if index.is_current() => Ok(Arc::new(index.clone())),
            (_, WalName::Segment(name)) => self.index_of_map(name, &file.map),
            (index, _) => Ok(Arc::new(index.clone().unwrap_or_default())),
        }
    }

    /// The index of a stored segment. If the file is not the segment of this name, the index is empty: PostgreSQL does
    /// not replay it either.
    fn index_of_map(&self, name: SegmentName, map: &FileMap) -> Result<Arc<SegmentIndex>> {
        if let Some(index) = self.read_segments.find(name, map) {
            return Ok(index);
        }
        let failed = |source| Error::WalSource {
            name: WalName::Segment(name),
            source: Arc::new(source),
        };
        let mut reader = self.trees().reader(map.clone());
        let index = scan_segment(name, map.size_bytes, &mut reader).map_err(failed)?;
        let index = Arc::new(index.unwrap_or_default());
        self.read_segments.keep(name, map, &index);
        Ok(index)
    }

    /// The segments that may hold the beginning of the first record, on this timeline or on one it came from; and the
    /// segments that may hold the end of the last record, if that record creates a tablespace.
    fn around(
        &self,
        server: &ServerName,
        name: SegmentName,
        index: &SegmentIndex,
    ) -> Result<(Vec<SegmentIndex>, Vec<SegmentIndex>)> {
        let Some(size) = self.segment_size_of(server, name)? else {
            return Ok((Vec::new(), Vec::new()));
        };
        let before = match (previous(name, size), &index.head) {
            (Some(previous), Some(_)) => self.beside(server, previous, TimelineId(1), name.timeline)?,
            _ => Vec::new(),
        };
        let after = match index.tail.as_ref().is_some_and(may_cross) {
            true => self.beside(server, name.next(size), name.timeline, TimelineId(u32::MAX))?,
            false => Vec::new(),
        };
        Ok((before, after))
    }

    /// The indexes of the segments at the place of `name`, of the timelines from `first` to `last`: archived ones and
    /// those being received.
    fn beside(
        &self,
        server: &ServerName,
        name: SegmentName,
        first: TimelineId,
        last: TimelineId,
    ) -> Result<Vec<SegmentIndex>> {
        let mut found = Vec::new();
        for name in self.wal(server).at_place_of(name, first, last)? {
            if let Some(file) = self.wal(server).find(&WalName::Segment(name))? {
                found.push((*self.index_of_file(&file)?).clone());
            }
        }
        let is_there = |other: SegmentName| {
            SegmentName {
                timeline: name.timeline,
                ..other
            } == name
                && (first..=last).contains(&other.timeline)
        };
        for segment in self.receiving(server)? {
            if is_there(segment.name) {
                found.extend(index_of_plain(segment.name, &segment.path, segment.size_bytes)?);
            }
        }
        Ok(found)
    }

    fn segment_size_of(&self, server: &ServerName, name: SegmentName) -> Result<Option<SegmentSize>> {
        let archived = self.wal(server).entry(&WalName::Segment(name))?;
        let bytes = match archived {
            Some(entry) => Some(entry.size_bytes),
            None => self
                .receiving(server)?
                .into_iter()
                .find(|segment| segment.name == name)
                .map(|segment| segment.size_bytes),
        };
        Ok(bytes.and_then(|bytes| SegmentSize::try_from(bytes).ok()))
    }
}

impl super::WalArchive<'_> {
    /// The archived segments at the place of `segment` on the timelines from `first` to `last`.
    fn at_place_of(
        &self,
        segment: SegmentName,
        first: TimelineId,
        last: TimelineId,
    ) -> Result<Vec<SegmentName>> {
        let named = |timeline| SegmentName { timeline, ..segment }.to_string();
        self.repository.db.read(|db| {
            let mut timelines =
                db.prepare_cached("SELECT min(timeline) FROM segments WHERE server = ?1 AND timeline >= ?2")?;
            let mut is_there = db.prepare_cached("SELECT 1 FROM wal WHERE server = ?1 AND name = ?2")?;
            let (server, mut from) = (self.server.as_str(), first.0);
            let mut found = Vec::new();
            loop {
                let next: Option<u32> = timelines.query_row(params![server, from], |row| row.get(0))?;
                let Some(timeline) = next.filter(|timeline| *timeline <= last.0) else {
                    return Ok(found);
                };
                let timeline = TimelineId(timeline);
                if is_there.exists(params![server, named(timeline)])? {
                    found.push(SegmentName { timeline, ..segment });
                }
                match timeline.0.checked_add(1) {
                    Some(next) => from = next,
                    None => return Ok(found),
                }
            }
        })
    }
}

fn is_odd(index: &SegmentIndex) -> bool {
    index.tablespaces_cut || index.is_of_unknown_version()
}

fn confined(
    server: &ServerName,
    loose: &LooseSegment<'_>,
    before: &[SegmentIndex],
    after: &[SegmentIndex],
) -> Result<Confined> {
    let name = loose.name;
    let not_confined = |reason: String| Error::NotConfined {
        server: server.clone(),
        name,
        reason,
    };
    let Some(facts) = facts(loose) else {
        // PostgreSQL does not replay a file that is not a segment.
        return Ok(Confined::default());
    };
    let start = name.start_lsn(facts.segment_size);
    let edits = confine(loose.index, &facts, start, before, after)
        .map_err(|reason| not_confined(reason.to_string()))?;
    let placed = |edit: WalEdit| (edit.at.0 - start.0, edit.bytes);
    Ok(Confined {
        edits: edits.into_iter().map(placed).collect(),
    })
}

fn facts(loose: &LooseSegment<'_>) -> Option<SegmentFacts> {
    let size = barmanfs_pg::wal_check::segment_bytes(loose.beginning)?;
    check_segment(loose.beginning, &loose.name, size).ok()
}

/// The previous segment on the same timeline.
fn previous(name: SegmentName, size: SegmentSize) -> Option<SegmentName> {
    let start = name.start_lsn(size).0.checked_sub(size.bytes())?;
    Some(SegmentName::from_lsn(name.timeline, Lsn(start), size))
}

/// The index of a segment in a plain file; none when there is nothing to read in it yet, or when it is gone.
pub(crate) fn index_of_plain(
    name: SegmentName,
    path: &Path,
    size_bytes: u64,
) -> Result<Option<SegmentIndex>> {
    let failed = |source| Error::io("read", path, source);
    match regular::open(path) {
        Ok(mut file) => scan_segment(name, size_bytes, &mut file).map_err(failed),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Reads a segment; none if it is not the one named by its name.
pub fn scan_segment(
    name: SegmentName,
    size_bytes: u64,
    source: &mut dyn Read,
) -> std::io::Result<Option<SegmentIndex>> {
    let mut buffer = vec![0; READ_BYTES];
    let mut scanner = None;
    loop {
        let length = match source.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(scanner.map(WalScanner::finish));
        }
        let scanner = match &mut scanner {
            Some(scanner) => scanner,
            none => match check_segment(bytes, &name, size_bytes) {
                Ok(facts) => none.insert(WalScanner::new(&name, &facts)),
                Err(_) => return Ok(None),
            },
        };
        scanner.push(bytes);
    }
}
