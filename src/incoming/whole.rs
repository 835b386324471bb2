//! Whether a copied file is whole, by its content.

use std::fs::File;
use std::io::{self, Read, Seek};

use barmanfs_pg::wal_check::check_segment;
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
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let fill = |buffer: &mut Vec<u8>| {
        buffer.clear();
        file.take(READ_BYTES as u64).read_to_end(buffer)
    };
    fill(&mut buffer)?;
    let facts = match check_segment(&buffer, segment, file.metadata()?.len()) {
        Ok(facts) => facts,
        Err(error) => return Ok(Checked::Wrong(error.to_string())),
    };
    let mut scan = WholeScan::new(segment, &facts);
    while !buffer.is_empty() && !is_partial {
        scan.push(&buffer);
        fill(&mut buffer)?;
    }
    file.rewind()?;
    // Nothing shows how far the partial segment of a timeline that was left should reach.
    let found = if is_partial {
        Wholeness::Unknown
    } else {
        scan.finish()
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
