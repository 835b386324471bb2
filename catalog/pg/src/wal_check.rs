//! Checks by its first page that a file is the WAL segment its name says.
//!
//! This check keeps `archive_command` from putting a wrong file into the archive. Page layout:
//! `src/include/access/xlog_internal.h`, the same from PostgreSQL 9.3 to 19.

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::wal_name::SegmentName;
use crate::{Lsn, SegmentSize, SystemId, TimelineId};

/// Length of the header that the first page of a segment has.
pub const LONG_HEADER_BYTES: usize = 40;
/// Length of the header of every other page.
pub const SHORT_HEADER_BYTES: usize = 24;

const LONG_HEADER_FLAG: u16 = 0x0002;

/// Page magics of the versions whose records are understood.
const KNOWN_MAGICS: [u16; 7] = [
    0xD106, // 13
    0xD10D, // 14
    0xD110, // 15
    0xD113, // 16
    0xD116, // 17
    0xD118, // 18
    0xD122, // 19
];

/// The facts in the first page of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentFacts {
    /// The cluster that wrote it. The caller has to check that it is the right one.
    pub system_id: SystemId,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The size of a WAL page, 8192 unless PostgreSQL was built otherwise.
    pub page_bytes: u32,
    /// The number each WAL page of a PostgreSQL version begins with.
    pub magic: u16,
    /// Timeline of the first record, which is an ancestor's where the timeline begins in this
    /// segment.
    pub first_page_timeline: TimelineId,
}

impl SegmentFacts {
    /// Whether this PostgreSQL version's records are understood. If not, the segment can still be
    /// archived, but not interpreted.
    #[must_use]
    pub fn is_known_version(&self) -> bool {
        KNOWN_MAGICS.contains(&self.magic)
    }
}

/// A file that is not the segment its name says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// The file ends before its first page header does.
    #[error("{name} is no WAL segment: it has only {bytes} bytes")]
    TooShort {
        /// The name it came under.
        name: SegmentName,
        /// Its length.
        bytes: u64,
    },
    /// The first page does not begin as WAL does.
    #[error("{name} is no WAL segment: {reason}")]
    NotWal {
        /// The name it came under.
        name: SegmentName,
        /// What the first page lacks.
        reason: String,
    },
    /// The file is longer or shorter than the cluster's segments.
    #[error(
        "{name} has {bytes} bytes, but segments of its cluster have {expected}: is it still being written?"
    )]
    WrongSize {
        /// The name it came under.
        name: SegmentName,
        /// Its length.
        bytes: u64,
        /// The length the cluster's segments have.
        expected: u64,
    },
    /// With the cluster's segment size there is no segment of this name.
    #[error("{name} cannot be a segment of its cluster, where segments have {size}")]
    ImpossibleName {
        /// The name it came under.
        name: SegmentName,
        /// The cluster's segment size.
        size: SegmentSize,
    },
    /// The segment is another one: renamed, or recycled and not yet written.
    #[error(
        "{name} holds WAL from {found}, but its name says {expected}: it is another segment, renamed or recycled"
    )]
    WrongPosition {
        /// The name it came under.
        name: SegmentName,
        /// Where the first page says it is.
        found: Lsn,
        /// Where the name says it is.
        expected: Lsn,
    },
    /// The first page was written on a later timeline than the name says.
    #[error("{name} begins with WAL of timeline {found}, which its name puts before that timeline")]
    WrongTimeline {
        /// The name it came under.
        name: SegmentName,
        /// The timeline of the first page.
        found: TimelineId,
    },
}

/// Checks that a file of `file_bytes` bytes that begins with `first_page` (at least
/// [`LONG_HEADER_BYTES`] of it) is the segment `name`.
///
/// A page magic that is not known is no error: see [`SegmentFacts::is_known_version`].
///
/// # Errors
/// The first difference found, as a [`WalError`].
pub fn check_segment(
    first_page: &[u8],
    name: &SegmentName,
    file_bytes: u64,
) -> Result<SegmentFacts, WalError> {
    let name = *name;
    let FirstPage { facts, page_address } =
        read_long_header(first_page, name).ok_or(WalError::TooShort {
            name,
            bytes: file_bytes,
        })??;
    let size = facts.segment_size;
    if file_bytes != size.bytes() {
        return Err(WalError::WrongSize {
            name,
            bytes: file_bytes,
            expected: size.bytes(),
        });
    }
    if !name.fits(size) {
        return Err(WalError::ImpossibleName { name, size });
    }
    let expected = name.start_lsn(size);
    if page_address != expected {
        return Err(WalError::WrongPosition {
            name,
            found: page_address,
            expected,
        });
    }
    if facts.first_page_timeline > name.timeline {
        return Err(WalError::WrongTimeline {
            name,
            found: facts.first_page_timeline,
        });
    }
    Ok(facts)
}

/// The segment size recorded in a segment's first page.
#[must_use]
pub fn segment_bytes(first_page: &[u8]) -> Option<u64> {
    u32_at(first_page, 32).map(u64::from)
}

struct FirstPage {
    facts: SegmentFacts,
    page_address: Lsn,
}

/// The long header's fields, `None` if the page ends before they do.
fn read_long_header(page: &[u8], name: SegmentName) -> Option<Result<FirstPage, WalError>> {
    let not_wal = |reason: String| Some(Err(WalError::NotWal { name, reason }));
    let magic = u16_at(page, 0)?;
    let flags = u16_at(page, 2)?;
    let first_page_timeline = TimelineId(u32_at(page, 4)?);
    let page_address = Lsn(u64_at(page, 8)?);
    let system_id = SystemId(u64_at(page, 24)?);
    let segment_bytes = u32_at(page, 32)?;
    let page_bytes = u32_at(page, 36)?;
    if KNOWN_MAGICS.contains(&magic.swap_bytes()) {
        return not_wal(
            "it was written on a big-endian host, and only little-endian ones are supported".into(),
        );
    }
    if flags & LONG_HEADER_FLAG == 0 {
        return not_wal(format!(
            "its first page (magic {magic:04X}) lacks the header every segment begins with"
        ));
    }
    let Ok(segment_size) = SegmentSize::try_from(u64::from(segment_bytes)) else {
        return not_wal(format!(
            "its first page gives a segment size of {segment_bytes} bytes"
        ));
    };
    if !page_bytes.is_power_of_two() || !(1 << 10..=1 << 16).contains(&page_bytes) {
        return not_wal(format!("its first page gives a page size of {page_bytes} bytes"));
    }
    let facts = SegmentFacts {
        system_id,
        segment_size,
        page_bytes,
        magic,
        first_page_timeline,
    };
    Some(Ok(FirstPage { facts, page_address }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAME: &str = "000000020000000100000003";

    fn header() -> Vec<u8> {
        let mut page = Vec::new();
        page.extend(0xD110_u16.to_le_bytes());
        page.extend(LONG_HEADER_FLAG.to_le_bytes());
        page.extend(1_u32.to_le_bytes());
        page.extend(0x1_0300_0000_u64.to_le_bytes());
        page.extend([0; 8]);
        page.extend(7_710_414_268_036_822_209_u64.to_le_bytes());
        page.extend((16_u32 << 20).to_le_bytes());
        page.extend(8192_u32.to_le_bytes());
        page
    }

    fn check(page: &[u8], bytes: u64) -> Result<SegmentFacts, WalError> {
        check_segment(page, &NAME.parse().unwrap(), bytes)
    }

    /// The header with `bytes` put at `offset`.
    fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut page = header();
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
        page
    }

    #[test]
    fn accepts_the_segment_its_name_says() {
        let facts = check(&header(), 16 << 20).unwrap();
        assert_eq!(facts.system_id, SystemId(7_710_414_268_036_822_209));
        assert_eq!(facts.segment_size, SegmentSize::DEFAULT);
        assert_eq!(
            facts.first_page_timeline,
            TimelineId(1),
            "the ancestor's, at the switch"
        );
        assert!(facts.is_known_version());
    }

    #[test]
    fn an_unknown_version_is_flagged_not_refused() {
        let facts = check(&with(0, &0xD1FF_u16.to_le_bytes()), 16 << 20).unwrap();
        assert!(!facts.is_known_version());
    }

    #[test]
    fn refuses_every_kind_of_wrong_file() {
        let size = 16 << 20;
        assert!(matches!(
            check(&header()[..39], 39),
            Err(WalError::TooShort { bytes: 39, .. })
        ));
        assert!(matches!(check(&[0; 8192], size), Err(WalError::NotWal { .. })));
        assert!(matches!(
            check(&with(0, &0xD110_u16.to_be_bytes()), size),
            Err(WalError::NotWal { .. })
        ));
        assert!(matches!(
            check(&with(32, &[0; 4]), size),
            Err(WalError::NotWal { .. })
        ));
        assert!(matches!(
            check(&with(36, &[7; 4]), size),
            Err(WalError::NotWal { .. })
        ));
        assert!(matches!(
            check(&header(), size - 1),
            Err(WalError::WrongSize { .. })
        ));
        assert!(matches!(
            check(&with(8, &[0; 8]), size),
            Err(WalError::WrongPosition { .. })
        ));
        assert!(matches!(
            check(&with(4, &[3, 0, 0, 0]), size),
            Err(WalError::WrongTimeline { .. })
        ));
        let impossible = "000000010000000000000100".parse().unwrap();
        assert!(matches!(
            check_segment(&header(), &impossible, size),
            Err(WalError::ImpossibleName { .. })
        ));
    }

    #[test]
    fn messages_say_what_and_where() {
        let message = check(&with(8, &[0; 8]), 16 << 20).unwrap_err().to_string();
        assert!(
            message.contains(NAME) && message.contains("0/0") && message.contains("1/3000000"),
            "{message}"
        );
    }

    proptest! {
        #[test]
        fn any_page_is_accepted_or_refused(page: Vec<u8>, bytes: u64) {
            let _ = check(&page, bytes);
        }
    }
}
