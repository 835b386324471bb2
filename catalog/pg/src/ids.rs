//! The small numbers that name things: timelines, clusters, versions, segment sizes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::ParseError;

/// Reads a value that is written as a text, through its `FromStr`.
pub(crate) fn from_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = ParseError>,
{
    struct Text<T>(std::marker::PhantomData<T>);
    impl<T: FromStr<Err = ParseError>> de::Visitor<'_> for Text<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text(std::marker::PhantomData))
}

/// A timeline: one line of history of a database cluster. A promotion at the end of recovery begins a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// Its eight digits in file names.
    #[must_use]
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TimelineId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.parse() {
            Ok(number @ 1..) => Ok(Self(number)),
            _ => Err(ParseError::new("timeline", text, "a decimal number from 1")),
        }
    }
}

/// The number `initdb` gives a database cluster; its standbys and copies have the same one.
///
/// Written as a decimal string in JSON: most JSON readers round a number this large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.parse()
            .map(Self)
            .map_err(|_| ParseError::new("system identifier", text, "a decimal number"))
    }
}

impl Serialize for SystemId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

/// A server's version as `server_version_num` gives it: 150018 is 15.18, 90624 is 9.6.24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerVersion(pub u32);

impl ServerVersion {
    /// The first release of the major version in a file `PG_VERSION`; `None` if it holds none.
    #[must_use]
    pub fn of_data_directory(text: &[u8]) -> Option<Self> {
        let major: u32 = std::str::from_utf8(text).ok()?.trim().parse().ok()?;
        (10..1000).contains(&major).then_some(Self(major * 10_000))
    }

    /// The first part of the version, which decides formats and protocol: 15 of 15.18.
    #[must_use]
    pub fn major(self) -> u32 {
        self.0 / 10_000
    }

    /// Whether a tablespace may be a plain directory in `pg_tblspc`. Versions since August 2022 allow this, but only
    /// with the setting `allow_in_place_tablespaces`. Older versions do not need the setting, but create no such
    /// tablespace when they replay the record that creates it.
    #[must_use]
    pub fn knows_in_place_tablespaces(self) -> bool {
        let since = match self.major() {
            13 => 130_008,
            14 => 140_005,
            _ => 150_000,
        };
        self.0 >= since
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, rest) = (self.major(), self.0 % 10_000);
        if major >= 10 {
            write!(f, "{major}.{rest}")
        } else {
            write!(f, "{major}.{}.{}", rest / 100, rest % 100)
        }
    }
}

impl FromStr for ServerVersion {
    type Err = ParseError;

    /// Reads the value of `server_version_num`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let expected = "the value of server_version_num, like 150018";
        text.parse()
            .map(Self)
            .map_err(|_| ParseError::new("server version", text, expected))
    }
}

/// The size of a cluster's WAL segments: a power of two from 1 MiB to 1 GiB, fixed by `initdb`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// The default of `initdb`: 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);
    /// The smallest PostgreSQL accepts.
    pub const MIN: Self = Self(1 << 20);
    /// The largest PostgreSQL accepts.
    pub const MAX: Self = Self(1 << 30);

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments the low half of an LSN covers. After this many, the third part of a segment's name starts
    /// again from zero.
    #[must_use]
    pub fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = ParseError;

    fn try_from(bytes: u64) -> Result<Self, ParseError> {
        u32::try_from(bytes)
            .ok()
            .filter(|size| size.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(size))
            .map(Self)
            .ok_or_else(|| {
                ParseError::new(
                    "WAL segment size",
                    &bytes.to_string(),
                    "a power of two from 1 MiB to 1 GiB",
                )
            })
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> u64 {
        size.bytes()
    }
}

impl fmt::Display for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_like_postgresql_writes_them() {
        assert_eq!(ServerVersion(150_018).to_string(), "15.18");
        assert_eq!(ServerVersion(130_016).major(), 13);
        assert_eq!(ServerVersion(90_624).to_string(), "9.6.24");
        assert_eq!("180006".parse(), Ok(ServerVersion(180_006)));
        assert!("18.6".parse::<ServerVersion>().is_err());
    }

    #[test]
    fn the_setting_for_tablespaces_follows_the_version() {
        for (version, known) in [
            (130_007, false),
            (130_008, true),
            (140_004, false),
            (140_005, true),
            (150_000, true),
            (180_006, true),
        ] {
            assert_eq!(
                ServerVersion(version).knows_in_place_tablespaces(),
                known,
                "{version}"
            );
        }
    }

    #[test]
    fn timelines_start_at_one() {
        assert_eq!("10".parse(), Ok(TimelineId(10)));
        assert_eq!(TimelineId(10).hex(), "0000000A");
        assert!("0".parse::<TimelineId>().is_err());
        assert!("-1".parse::<TimelineId>().is_err());
    }

    #[test]
    fn system_ids_keep_every_digit_in_json() {
        let id = SystemId(7_710_414_268_036_822_209);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"7710414268036822209\"");
        assert_eq!(serde_json::from_str::<SystemId>(&json).unwrap(), id);
    }

    #[test]
    fn segment_sizes_are_powers_of_two_in_range() {
        for mib in [1_u64, 2, 16, 64, 1024] {
            let size = SegmentSize::try_from(mib << 20).unwrap();
            assert_eq!(size.bytes(), mib << 20);
            assert_eq!(size.segments_per_log() * size.bytes(), 1 << 32);
        }
        for wrong in [0_u64, 1, 8192, 3 << 20, 2 << 30, 1 << 32, u64::MAX] {
            assert!(SegmentSize::try_from(wrong).is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<SegmentSize>("8192").is_err());
        assert_eq!(
            serde_json::from_str::<SegmentSize>("16777216").unwrap(),
            SegmentSize::DEFAULT
        );
    }
}
