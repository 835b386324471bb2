//! Limits that `check` compares a server with, under Barman's names.

use std::fmt;
use std::time::Duration;

const HOUR_SECONDS: u64 = 3600;

/// A maximum age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Age {
    /// In seconds.
    pub(crate) seconds: u64,
    text: String,
}

impl Age {
    /// So many days.
    pub(crate) fn days(days: u64) -> Self {
        Self {
            seconds: days * 24 * HOUR_SECONDS,
            text: format!("{days} DAYS"),
        }
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The limits of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `last_backup_maximum_age`: the age of the newest complete backup, since its end.
    pub(crate) backup_age: Option<Age>,
    /// `last_wal_maximum_age`: the age of the last arrival, while the server writes.
    pub(crate) wal_age: Option<Age>,
    /// `last_sync_maximum_age`: how long ago a passive node had all WAL of its primary.
    pub(crate) sync_age: Option<Age>,
    /// `last_boot_test_maximum_age`: the age of the newest boot test of any backup.
    pub(crate) boot_test_age: Option<Age>,
    /// `clone_maximum_age`: the age of the oldest clone.
    pub(crate) clone_age: Option<Age>,
    /// `last_backup_minimum_size`: the size of the newest complete backup, in bytes.
    pub(crate) backup_size: Option<u64>,
}

/// `N HOURS|DAYS|WEEKS|MONTHS`, in any case; a month has 31 days, as in Barman.
pub(super) fn age(value: &str) -> Result<Age, String> {
    let wrong = || format!("is '{value}': allowed is an age like 12 HOURS, 1 DAY, 2 WEEKS or 3 MONTHS");
    let mut words = value.split_whitespace();
    let (Some(number), Some(unit), None) = (words.next(), words.next(), words.next()) else {
        return Err(wrong());
    };
    let unit = unit.to_ascii_lowercase();
    let hours = match unit.strip_suffix('s').unwrap_or(&unit) {
        "hour" => 1,
        "day" => 24,
        "week" => 7 * 24,
        "month" => 31 * 24,
        _ => return Err(wrong()),
    };
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = number
        .parse::<u64>()
        .ok()
        .filter(|number| is_number && *number > 0)
        .and_then(|number| number.checked_mul(hours * HOUR_SECONDS));
    Ok(Age {
        seconds: seconds.ok_or_else(wrong)?,
        text: value.split_whitespace().collect::<Vec<_>>().join(" "),
    })
}

/// `N[k|Ki|M|Mi|G|Gi|T|Ti]`, as Barman reads it: `k` is 1000 bytes, `Ki` 1024.
pub(super) fn si_size(value: &str) -> Result<u64, String> {
    let wrong = || format!("is '{value}': allowed is a size in bytes, or with k, Ki, M, Mi, G, Gi, T or Ti");
    let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit: u64 = match value.get(digits.len()..).map(str::trim) {
        Some("") => 1,
        Some("k") => 1000,
        Some("Ki") => 1 << 10,
        Some("M") => 1_000_000,
        Some("Mi") => 1 << 20,
        Some("G") => 1_000_000_000,
        Some("Gi") => 1 << 30,
        Some("T") => 1_000_000_000_000,
        Some("Ti") => 1 << 40,
        _ => return Err(wrong()),
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let bytes = digits.parse::<u64>().ok().filter(|_| is_number);
    bytes
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(wrong)
}

/// A whole number of backups, 0 for no minimum.
pub(super) fn redundancy(value: &str) -> Result<usize, String> {
    value
        .parse()
        .map_err(|_| format!("is '{value}': allowed is a number of backups, 0 or more"))
}

/// A limit of time, where 0 means that there is none.
pub(crate) fn unless_zero(limit: Duration) -> Option<Duration> {
    Some(limit).filter(|limit| !limit.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes_are_read_as_barman_reads_them() {
        let seconds = |text: &str| age(text).map(|age| age.seconds);
        for (text, expected) in [
            ("1 DAY", 86_400),
            ("36 hours", 36 * 3600),
            (" 2  Weeks ", 14 * 86_400),
            ("1 month", 31 * 86_400),
        ] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        assert_eq!(seconds(&Age::days(7).to_string()), Ok(Age::days(7).seconds));
        for wrong in [
            "1",
            "DAY",
            "-1 DAY",
            "0 DAYS",
            "1 year",
            "1 DAY 2",
            "99999999999999999 MONTHS",
        ] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
        for (text, expected) in [
            ("17", 17),
            ("2k", 2000),
            ("2Ki", 2048),
            ("1 Gi", 1 << 30),
            ("3T", 3_000_000_000_000),
        ] {
            assert_eq!(si_size(text), Ok(expected), "{text}");
        }
        for wrong in ["1K", "k", "1 parsec", "-1", "99999999999Ti"] {
            assert!(si_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(unless_zero(Duration::ZERO), None);
        assert!(redundancy("x").is_err() && redundancy("-1").is_err() && redundancy("2") == Ok(2));
    }
}
