//! Checks whether a segment continues the previous one.

use std::io::Read;

use barmanfs_pg::wal_check::check_segment;
use barmanfs_pg::wal_link::{FirstRecord, first_record};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::wal_scan::{SegmentIndex, WalScanner};
use barmanfs_pg::{Lsn, SegmentSize};
use barmanfs_store::FileMap;

use crate::archive::wal::WalFile;
use crate::error::{Error, Result};
use crate::index::repository::Repository;

/// Size of a read.
const READ_BYTES: usize = 1 << 20;

impl Repository {
    /// The start of the last record that starts in a segment; `None` if that is unknown, for example because its
    /// records end early.
    ///
    /// # Errors
    /// When the segment cannot be read.
    pub fn last_record_start(&self, map: &FileMap, name: SegmentName) -> Result<Option<Lsn>> {
        Ok(last_start(&self.scan(map, name)?))
    }

    /// The first record that starts in a segment; `None` if it cannot be determined.
    pub(crate) fn link(&self, file: &WalFile, name: SegmentName) -> Result<Option<FirstRecord>> {
        let Ok(size) = SegmentSize::try_from(file.size_bytes) else {
            return Ok(None);
        };
        let mut bytes = vec![0; READ_BYTES];
        let length = self.trees().read_at(&file.map, 0, &mut bytes)?;
        bytes.truncate(length);
        let facts = check_segment(&bytes, &name, file.size_bytes)?;
        Ok(first_record(name.start_lsn(size), facts.page_bytes, &bytes))
    }

    /// The start of the last record that starts in a file, taken from its catalog record if that has it.
    ///
    /// # Errors
    /// When the segment must be read and cannot be.
    pub fn last_record(&self, file: &WalFile, name: SegmentName) -> Result<Option<Lsn>> {
        match &file.index {
            // Indexes of earlier releases do not say whether a record crosses the end.
            Some(index) if index.stopped.is_none() && index.crosses_from.is_none() && !index.switched => {
                self.last_record_start(&file.map, name)
            }
            _ => Ok(known_last_start(file)),
        }
    }

    fn scan(&self, map: &FileMap, name: SegmentName) -> Result<SegmentIndex> {
        let mut reader = self.trees().reader(map.clone());
        let unreadable = |source: std::io::Error| Error::WalSource {
            name: WalName::Segment(name),
            source: std::sync::Arc::new(source),
        };
        let mut buffer = Vec::with_capacity(READ_BYTES);
        let mut scanner = None;
        loop {
            buffer.clear();
            let limit = READ_BYTES as u64;
            reader
                .by_ref()
                .take(limit)
                .read_to_end(&mut buffer)
                .map_err(unreadable)?;
            if buffer.is_empty() {
                return Ok(scanner.map(WalScanner::finish).unwrap_or_default());
            }
            let scanner = match &mut scanner {
                Some(scanner) => scanner,
                none => none.insert(WalScanner::new(
                    &name,
                    &check_segment(&buffer, &name, map.size_bytes)?,
                )),
            };
            scanner.push(&buffer);
        }
    }
}

/// The same, from the scan of a file that has just arrived.
pub(crate) fn known_last_start(file: &WalFile) -> Option<Lsn> {
    file.index.as_ref().and_then(last_start)
}

/// The same, from an index.
fn last_start(index: &SegmentIndex) -> Option<Lsn> {
    match index.stopped {
        Some(_) => None,
        None => index.crosses_from.or(index.last_lsn),
    }
}
