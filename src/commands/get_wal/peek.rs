//! `get-wal --peek`: which segments are there, one after the other.

use barmanfs_pg::SegmentSize;
use barmanfs_pg::wal_name::{SegmentName, WalName};

use super::Source;
use crate::error::Error;

/// The names of up to `most` files that are there, from this one on. None at all only if the first one is certainly absent.
///
/// # Errors
/// When that cannot be found out.
pub(super) fn names(source: &Source<'_>, name: WalName, most: u32) -> Result<Vec<WalName>, Error> {
    if source.find_surely(&name)?.is_none() {
        source.refuse_wrong_absence(&name)?;
        return Ok(Vec::new());
    }
    let mut found = vec![name];
    let WalName::Segment(mut segment) = name else {
        return Ok(found);
    };
    while found.len() < usize::try_from(most).unwrap_or(usize::MAX) {
        let Some(next) = next(source, segment)? else { break };
        found.push(WalName::Segment(next));
        segment = next;
    }
    Ok(found)
}

/// The segment after one that is there, if that is there, too. Where the size is not known, as of one that is not archived,
/// the next name is that of usual segments.
fn next(source: &Source<'_>, segment: SegmentName) -> Result<Option<SegmentName>, Error> {
    let entry = source.archive.entry(&WalName::Segment(segment))?;
    let size = entry.and_then(|entry| SegmentSize::try_from(entry.size_bytes).ok());
    let next = segment.next(size.unwrap_or(SegmentSize::DEFAULT));
    let is_there = source.archive.entry(&WalName::Segment(next))?.is_some()
        || source.find(&WalName::Segment(next))?.is_some();
    Ok(is_there.then_some(next))
}
