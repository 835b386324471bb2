//! WAL that is still being received, which recovery to `now` reaches beyond the archive.

use std::fs::File;
use std::io::{ErrorKind, Read};

use barmanfs_pg::wal_check::check_segment;
use barmanfs_pg::wal_scan::{SegmentIndex, WalScanner};

use crate::error::{Error, Result};
use crate::recovery::ends::End;
use crate::recovery::planner::Planner;
use crate::recovery::route::Route;
use crate::spool::PartialSegment;

/// Read of a segment at a time.
const READ_BYTES: usize = 1 << 20;

impl Planner<'_> {
    /// Goes on from the end of the archive with the segments that lie in the spool.
    pub(super) fn with_received(&self, route: &Route, mut end: End) -> Result<End> {
        let spool = self.repository.receiving(self.server)?;
        let next = |number: u64| spool.iter().find(|segment| segment.name == route.name(number));
        while let Some(segment) = next(end.number + 1) {
            let Some(index) = index(segment)? else { break };
            end.number += 1;
            end.partial = true;
            end.reaches = index.commit_time_max.or(end.reaches);
            end.lsn = Some(index.end_lsn);
            if index.stopped.is_some() {
                break;
            }
        }
        Ok(end)
    }
}

/// What a segment in the spool says; none when there is nothing to read in it yet, or it has just been archived.
fn index(segment: &PartialSegment) -> Result<Option<SegmentIndex>> {
    let failed = |source| Error::io("read", &segment.path, source);
    let mut file = match File::open(&segment.path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut buffer = vec![0; READ_BYTES];
    let mut scanner = None;
    loop {
        let length = match file.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(scanner.map(WalScanner::finish));
        }
        let scanner = match &mut scanner {
            Some(scanner) => scanner,
            none => match check_segment(bytes, &segment.name, segment.size_bytes) {
                Ok(facts) => none.insert(WalScanner::new(&segment.name, &facts)),
                // Its first page has not come yet.
                Err(_) => return Ok(None),
            },
        };
        scanner.push(bytes);
    }
}
