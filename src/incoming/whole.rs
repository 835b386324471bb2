//! Whether a copied file is whole, by its content.

use std::fs::File;
use std::io::{self, Read, Seek};

use barmanfs_pg::wal_check::{SegmentFacts, check_segment};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::wal_scan::{WholeScan, Wholeness};

/// The size of a read.
const READ_BYTES: usize = 128 * 1024;

/// What the content shows.
pub(super) enum Checked {
    /// The file is whole, or archiving it will show that it is not.
    Whole,
    /// It is whole as far as it can be checked: `is_likely` if that is all but a part of one record. The segment that it is,
    /// if it is one.
    Unproven {
        segment: Option<SegmentName>,
        is_likely: bool,
    },
    /// It is not whole, or no such file: why.
    Wrong(String),
}

/// Reads a segment whose file has `size_bytes`: the facts of its first page, and how much of it is there. The inner error is why
/// it is not the segment `name`.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn scan(
    name: &SegmentName,
    size_bytes: u64,
    content: &mut dyn Read,
) -> io::Result<Result<(SegmentFacts, Wholeness), String>> {
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let mut fill = |buffer: &mut Vec<u8>| {
        buffer.clear();
        content.take(READ_BYTES as u64).read_to_end(buffer)
    };
    fill(&mut buffer)?;
    let facts = match check_segment(&buffer, name, size_bytes) {
        Ok(facts) => facts,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut scan = WholeScan::new(name, &facts);
    while !buffer.is_empty() {
        scan.push(&buffer);
        fill(&mut buffer)?;
    }
    Ok(Ok((facts, scan.finish())))
}

/// Reads a file, from its beginning and back to it.
///
/// # Errors
/// When it cannot be read.
pub(super) fn wholeness(name: &WalName, mut file: &File) -> io::Result<Checked> {
    let (segment, is_partial) = match name {
        WalName::Segment(segment) => (segment, false),
        WalName::Partial(segment) => (segment, true),
        // Their last line ends, or they are refused.
        WalName::History(_) | WalName::BackupHistory { .. } => return Ok(Checked::Whole),
    };
    file.rewind()?;
    let size_bytes = file.metadata()?.len();
    let scanned = scan(segment, size_bytes, &mut file)?;
    file.rewind()?;
    let found = match scanned {
        Err(why) => return Ok(Checked::Wrong(why)),
        // Nothing shows how far the partial segment of a timeline that was left should reach.
        Ok(_) if is_partial => Wholeness::Unknown,
        Ok((_, found)) => found,
    };
    Ok(match found {
        Wholeness::Whole => Checked::Whole,
        Wholeness::Likely | Wholeness::Unknown => Checked::Unproven {
            segment: (!is_partial).then_some(*segment),
            is_likely: found == Wholeness::Likely,
        },
        Wholeness::Cut(lsn) => Checked::Wrong(format!(
            "its WAL ends at {lsn}, before the segment does: only a part was copied"
        )),
    })
}
