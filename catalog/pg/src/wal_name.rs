//! The names of files in the write-ahead log and its archive.
//!
//! Source of the forms: `src/include/access/xlog_internal.h`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Lsn, ParseError, SegmentSize, TimelineId};

/// The name of a WAL segment, `000000010000000A000000FF`: timeline, then the segment's number in
/// two parts. The position it names depends on the cluster's segment size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline it belongs to.
    pub timeline: TimelineId,
    /// The high half of its LSNs.
    pub log: u32,
    /// Its number within that half.
    pub seg: u32,
}

impl SegmentName {
    /// The segment that holds the byte at `lsn`. For the last segment of a range that *ends* at an
    /// LSN, pass the position before it, or use [`segments_between`].
    #[must_use]
    pub fn from_lsn(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Self {
        Self::from_number(timeline, lsn.segment_number(size), size)
    }

    /// The segment with this number, counted from the log's beginning.
    fn from_number(timeline: TimelineId, number: u64, size: SegmentSize) -> Self {
        let per_log = size.segments_per_log();
        let half = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
        Self {
            timeline,
            log: half(number / per_log),
            seg: half(number % per_log),
        }
    }

    /// The smallest name above this one in the order of names, whatever the size of segments: there may be no segment of
    /// this name.
    #[must_use]
    pub fn name_above(self) -> Self {
        match self.seg.checked_add(1) {
            Some(seg) => Self { seg, ..self },
            None => Self {
                log: self.log.saturating_add(1),
                seg: 0,
                ..self
            },
        }
    }

    /// The greatest name below this one in the order of names; `None` for the first of its timeline.
    #[must_use]
    pub fn name_below(self) -> Option<Self> {
        match (self.log, self.seg) {
            (0, 0) => None,
            (log, 0) => Some(Self {
                log: log - 1,
                seg: u32::MAX,
                ..self
            }),
            (_, seg) => Some(Self { seg: seg - 1, ..self }),
        }
    }

    /// Whether a cluster with this segment size can have a segment of this name.
    #[must_use]
    pub fn fits(&self, size: SegmentSize) -> bool {
        u64::from(self.seg) < size.segments_per_log()
    }

    /// The position of its first byte. Meaningful where the name [fits](Self::fits) the size.
    #[must_use]
    pub fn start_lsn(&self, size: SegmentSize) -> Lsn {
        Lsn((u64::from(self.log) << 32).wrapping_add(u64::from(self.seg) * size.bytes()))
    }

    /// The segment after this one on the same timeline.
    #[must_use]
    pub fn next(&self, size: SegmentSize) -> Self {
        let number = u64::from(self.log) * size.segments_per_log() + u64::from(self.seg);
        Self::from_number(self.timeline, number + 1, size)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.log, self.seg)
    }
}

impl FromStr for SegmentName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parts = || {
            let timeline = TimelineId(hex8(text.get(..8)?)?);
            Some(Self {
                timeline,
                log: hex8(text.get(8..16)?)?,
                seg: hex8(text.get(16..)?)?,
            })
        };
        parts().ok_or_else(|| {
            ParseError::new(
                "WAL segment name",
                text,
                "24 upper-case hexadecimal digits like 000000010000000A000000FF",
            )
        })
    }
}

/// Eight upper-case hexadecimal digits, as PostgreSQL writes them and no other way: two spellings
/// of one name would be two files.
fn hex8(digits: &str) -> Option<u32> {
    let upper_case = |b: u8| matches!(b, b'0'..=b'9' | b'A'..=b'F');
    let well_formed = digits.len() == 8 && digits.bytes().all(upper_case);
    well_formed
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

/// The segments of one timeline that hold the bytes from `start` up to, not including, `stop`:
/// what a backup between these positions needs.
pub fn segments_between(
    timeline: TimelineId,
    start: Lsn,
    stop: Lsn,
    size: SegmentSize,
) -> impl Iterator<Item = SegmentName> {
    let after_last = stop.0.div_ceil(size.bytes());
    let numbers = if start < stop {
        start.segment_number(size)..after_last
    } else {
        0..0
    };
    numbers.map(move |number| SegmentName::from_number(timeline, number, size))
}

/// The name of any file PostgreSQL gives to its archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalName {
    /// A full segment.
    Segment(SegmentName),
    /// `<segment>.partial`: the last, unfinished segment of a timeline that was left.
    Partial(SegmentName),
    /// `<segment>.<offset>.backup`: the label of a backup that started there.
    BackupHistory {
        /// The segment with the backup's start.
        segment: SegmentName,
        /// Bytes from the segment's start to the backup's.
        offset: u32,
    },
    /// `<timeline>.history`: where this timeline and its ancestors began.
    History(TimelineId),
}

impl WalName {
    /// The segment in the name; none for a history file.
    #[must_use]
    pub fn segment(&self) -> Option<SegmentName> {
        match *self {
            Self::Segment(segment) | Self::Partial(segment) | Self::BackupHistory { segment, .. } => {
                Some(segment)
            }
            Self::History(_) => None,
        }
    }

    /// The timeline the name begins with.
    #[must_use]
    pub fn timeline(&self) -> TimelineId {
        match *self {
            Self::Segment(segment) | Self::Partial(segment) | Self::BackupHistory { segment, .. } => {
                segment.timeline
            }
            Self::History(timeline) => timeline,
        }
    }
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => segment.fmt(f),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::BackupHistory { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
            Self::History(timeline) => write!(f, "{}.history", timeline.hex()),
        }
    }
}

impl FromStr for WalName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parts: Vec<&str> = text.splitn(4, '.').collect();
        let name = match parts.as_slice() {
            [segment] => segment.parse().ok().map(Self::Segment),
            [segment, "partial"] => segment.parse().ok().map(Self::Partial),
            [timeline, "history"] => hex8(timeline).map(|number| Self::History(TimelineId(number))),
            [segment, offset, "backup"] => segment
                .parse()
                .ok()
                .zip(hex8(offset))
                .map(|(segment, offset)| Self::BackupHistory { segment, offset }),
            _ => None,
        };
        let expected = "the name of a WAL segment, or one that ends in .partial, .backup or .history";
        name.ok_or_else(|| ParseError::new("WAL file name", text, expected))
    }
}

macro_rules! serde_as_text {
    ($name:ty) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                crate::ids::from_text(deserializer)
            }
        }
    };
}

serde_as_text!(SegmentName);
serde_as_text!(WalName);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(start: u64, stop: u64, size: SegmentSize) -> Vec<String> {
        segments_between(TimelineId(1), Lsn(start), Lsn(stop), size)
            .map(|name| name.to_string())
            .collect()
    }

    #[test]
    fn a_range_names_each_segment_it_touches_once() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(
            names(0x0200_0028, 0x0200_0100, size),
            ["000000010000000000000002"]
        );
        assert_eq!(
            names(0x0200_0028, 0x0300_0000, size),
            ["000000010000000000000002"],
            "stop is exclusive"
        );
        assert_eq!(
            names(0xFF00_0028, 0x1_0000_0001, size),
            ["0000000100000000000000FF", "000000010000000100000000"]
        );
        assert!(names(0x0300_0000, 0x0300_0000, size).is_empty());
        assert!(names(0x0300_0000, 0x0200_0000, size).is_empty());
        assert_eq!(names(u64::MAX - 1, u64::MAX, size), ["00000001FFFFFFFF000000FF"]);
    }

    #[test]
    fn the_segment_size_decides_where_a_name_wraps() {
        let one_mib = SegmentSize::MIN;
        let last: SegmentName = "000000010000000000000FFF".parse().unwrap();
        assert_eq!(last.next(one_mib).to_string(), "000000010000000100000000");
        assert!(last.fits(one_mib));
        assert!(!last.fits(SegmentSize::DEFAULT));
        assert_eq!(last.start_lsn(one_mib), Lsn(0xFFF0_0000));
    }

    #[test]
    fn every_kind_of_name_is_read_and_nothing_else() {
        let texts = [
            "000000010000000000000009",
            "000000010000000000000009.partial",
            "000000010000000000000009.00000028.backup",
            "00000002.history",
        ];
        for text in texts {
            assert_eq!(text.parse::<WalName>().unwrap().to_string(), text);
        }
        let wrong = [
            "",
            ".",
            "00000001000000000000000a",
            "00000001000000000000009",
            "0000000100000000000000090",
            "000000010000000000000009.Partial",
            "000000010000000000000009.28.backup",
            "000000010000000000000009.00000028.backup.gz",
            "2.history",
            "+0000002.history",
            "000000010000000000000009.history",
            "../0000010000000000000009",
            "0000000é000000000000000",
        ];
        for text in wrong {
            assert!(text.parse::<WalName>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn names_and_positions_round_trip(timeline: u32, lsn: u64, power in 20_u32..=30) {
            let size = SegmentSize::try_from(1 << power).unwrap();
            let lsn = Lsn(lsn);
            let name = SegmentName::from_lsn(TimelineId(timeline), lsn, size);
            prop_assert!(name.fits(size));
            prop_assert_eq!(name.start_lsn(size), lsn.segment_start(size));
            prop_assert_eq!(name.to_string().parse(), Ok(name));
            let json = serde_json::to_string(&WalName::Segment(name)).unwrap();
            prop_assert_eq!(serde_json::from_str::<WalName>(&json).unwrap(), WalName::Segment(name));
        }

        #[test]
        fn any_name_can_be_asked_for_its_position(timeline: u32, log: u32, seg: u32, power in 20_u32..=30) {
            let size = SegmentSize::try_from(1 << power).unwrap();
            let name = SegmentName { timeline: TimelineId(timeline), log, seg };
            let _ = (name.start_lsn(size), name.next(size), name.fits(size));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9A-Fa-f.]{0,40}|\\PC*") {
            if let Ok(name) = text.parse::<WalName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
