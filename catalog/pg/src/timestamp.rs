//! Moments in time, to the microsecond PostgreSQL counts in.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ParseError;

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01 00:00:00 UTC.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A moment in UTC, in microseconds since the Unix epoch.
///
/// Shown the way PostgreSQL reads it as a `recovery_target_time` (`2026-11-20 14:03:07.123456+00`), written to JSON as
/// RFC 3339, always with six digits (`2026-11-20T14:03:07.123456Z`). Years before -9999 and after 9999 are clamped to
/// these limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimestampMicros(i64);

impl TimestampMicros {
    /// From microseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn from_unix_micros(micros: i64) -> Self {
        let limit = |timestamp: Timestamp| timestamp.as_second().saturating_mul(1_000_000);
        Self(micros.clamp(limit(Timestamp::MIN), limit(Timestamp::MAX)))
    }

    /// From seconds since 1970-01-01 UTC, which is how checkpoints and `pg_control` count.
    #[must_use]
    pub fn from_unix_seconds(seconds: i64) -> Self {
        Self::from_unix_micros(seconds.saturating_mul(1_000_000))
    }

    /// From PostgreSQL's `timestamptz`: microseconds since 2000-01-01 UTC.
    #[must_use]
    pub fn from_pg(micros: i64) -> Self {
        Self::from_unix_micros(micros.saturating_add(POSTGRES_EPOCH_MICROS))
    }

    /// Microseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn unix_micros(self) -> i64 {
        self.0
    }

    /// The time that passed since an earlier moment; zero if that is not earlier.
    #[must_use]
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or_default())
    }

    fn to_jiff(self) -> Timestamp {
        Timestamp::from_microsecond(self.0).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

impl From<Timestamp> for TimestampMicros {
    fn from(timestamp: Timestamp) -> Self {
        Self::from_unix_micros(timestamp.as_microsecond())
    }
}

impl From<SystemTime> for TimestampMicros {
    fn from(time: SystemTime) -> Self {
        let micros = match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        };
        Self::from_unix_micros(micros)
    }
}

impl fmt::Display for TimestampMicros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_jiff().strftime("%Y-%m-%d %H:%M:%S.%6f+00").fmt(f)
    }
}

impl FromStr for TimestampMicros {
    type Err = ParseError;

    /// Reads RFC 3339 and PostgreSQL's ISO form; an offset from UTC is required.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let expected = "a date, a time and an offset from UTC, like 2026-11-20 14:03:07.123456+00";
        let timestamp: Timestamp = text
            .parse()
            .map_err(|_| ParseError::new("time", text, expected))?;
        Ok(timestamp.into())
    }
}

impl Serialize for TimestampMicros {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.6}", self.to_jiff()))
    }
}

impl<'de> Deserialize<'de> for TimestampMicros {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::ids::from_text(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_postgresql_and_json_write() {
        let moment = TimestampMicros::from_unix_micros(1_795_183_387_123_456);
        assert_eq!(moment.to_string(), "2026-11-20 14:03:07.123456+00");
        assert_eq!(
            serde_json::to_string(&moment).unwrap(),
            "\"2026-11-20T14:03:07.123456Z\""
        );
        for text in [
            "2026-11-20 14:03:07.123456+00",
            "2026-11-20T15:03:07.123456+01:00",
            "2026-11-20T14:03:07.123456Z",
        ] {
            assert_eq!(text.parse(), Ok(moment), "{text}");
        }
        assert!(
            "2026-11-20 14:03:07".parse::<TimestampMicros>().is_err(),
            "no offset"
        );
        assert!("yesterday".parse::<TimestampMicros>().is_err());
    }

    #[test]
    fn both_epochs_meet() {
        assert_eq!(
            TimestampMicros::from_pg(0).to_string(),
            "2000-01-01 00:00:00.000000+00"
        );
        assert_eq!(
            TimestampMicros::from_unix_seconds(0).to_string(),
            "1970-01-01 00:00:00.000000+00"
        );
        assert_eq!(
            TimestampMicros::from(SystemTime::UNIX_EPOCH),
            TimestampMicros::from_unix_seconds(0)
        );
    }

    proptest! {
        #[test]
        fn any_number_is_a_moment_that_round_trips(micros: i64) {
            for moment in [TimestampMicros::from_unix_micros(micros), TimestampMicros::from_pg(micros)] {
                let json = serde_json::to_string(&moment).unwrap();
                prop_assert_eq!(serde_json::from_str::<TimestampMicros>(&json).unwrap(), moment);
                prop_assert!(!moment.to_string().is_empty());
            }
        }

        #[test]
        fn the_shown_form_round_trips(micros in 0_i64..253_000_000_000_000_000) {
            let moment = TimestampMicros::from_unix_micros(micros);
            prop_assert_eq!(moment.to_string().parse(), Ok(moment));
        }
    }
}
