//! Positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ParseError, SegmentSize};

/// A log sequence number: a byte position in the write-ahead log of one database cluster.
///
/// Shown as PostgreSQL shows it, `16/B374D848`; the newer zero-padded `16/0B374D84` is read too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position PostgreSQL uses for "none": no record can be there.
    pub const INVALID: Self = Self(0);

    /// The position `bytes` further on; `None` past the end of the 64-bit space.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// How many bytes `self` is after `earlier`; `None` when it is before.
    #[must_use]
    pub fn checked_sub(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// Number of the segment this position lies in, counted from the log's beginning.
    #[must_use]
    pub fn segment_number(self, size: SegmentSize) -> u64 {
        self.0 / size.bytes()
    }

    /// Bytes between the start of its segment and this position.
    #[must_use]
    pub fn segment_offset(self, size: SegmentSize) -> u64 {
        self.0 % size.bytes()
    }

    /// The first position of the segment this one lies in.
    #[must_use]
    pub fn segment_start(self, size: SegmentSize) -> Self {
        Self(self.0 - self.segment_offset(size))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let invalid = || ParseError::new("LSN", text, "two hexadecimal numbers like 16/B374D848");
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        let half = |digits: &str| {
            let hexadecimal =
                (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            hexadecimal
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
                .ok_or_else(invalid)
        };
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::ids::from_text(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_both_spellings_and_nothing_else() {
        assert_eq!("0/900028".parse(), Ok(Lsn(0x90_0028)));
        assert_eq!("0/00900028".parse(), Ok(Lsn(0x90_0028)));
        assert_eq!("16/b374d848".parse(), Ok(Lsn(0x16_B374_D848)));
        for wrong in [
            "",
            "/",
            "0",
            "0/",
            "/0",
            "0/+1",
            "0/1 ",
            "123456789/0",
            "0/123456789",
            "0/1/2",
            "é/0",
        ] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn says_where_in_its_segment_it_is() {
        let size = SegmentSize::DEFAULT;
        let lsn = Lsn(0x1_0300_0028);
        assert_eq!(lsn.segment_number(size), 0x103);
        assert_eq!(lsn.segment_offset(size), 0x28);
        assert_eq!(lsn.segment_start(size), Lsn(0x1_0300_0000));
        assert_eq!(lsn.checked_sub(Lsn(0x1_0300_0000)), Some(0x28));
        assert_eq!(Lsn(1).checked_sub(Lsn(2)), None);
        assert_eq!(Lsn(u64::MAX).checked_add(1), None);
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(lsn: u64) {
            let lsn = Lsn(lsn);
            prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
            let json = serde_json::to_string(&lsn).unwrap();
            prop_assert_eq!(&json, &format!("\"{lsn}\""));
            prop_assert_eq!(serde_json::from_str::<Lsn>(&json).unwrap(), lsn);
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = text.parse::<Lsn>();
        }
    }
}
