//! The policies of a configuration: how many backups are kept, and from when on WAL is kept.
//!
//! The grammar is Barman's (`REDUNDANCY n`, `RECOVERY WINDOW OF n DAYS|WEEKS|MONTHS`), in any letter case, with
//! `KEEP n DAILY n WEEKLY n MONTHLY n YEARLY` added to it. A number is never 0: it would keep nothing.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

const MICROS_PER_DAY: i64 = 24 * 3600 * 1_000_000;

/// The words of a policy for backups, for messages.
const BACKUP_POLICIES: &str = "REDUNDANCY n, RECOVERY WINDOW OF n DAYS (or WEEKS, MONTHS), and \
                               KEEP n DAILY n WEEKLY n MONTHLY n YEARLY (at least one of the four)";

/// The words of a policy for WAL, for messages.
const WAL_POLICIES: &str = "MAIN, REDUNDANCY n, and RECOVERY WINDOW OF n DAYS (or WEEKS, MONTHS)";

/// Which backups are kept: `retention_policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupPolicy {
    /// The newest ones, this many.
    Redundancy(NonZeroU32),
    /// Those that recovery to any moment of the window needs.
    RecoveryWindow(Window),
    /// The newest of each of the last days, weeks, months and years.
    Generations(Generations),
}

/// From when on WAL is kept: `wal_retention_policy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WalPolicy {
    /// As far back as the backups.
    #[default]
    Main,
    /// From the newest backups on, this many.
    Redundancy(NonZeroU32),
    /// As far back as the window.
    RecoveryWindow(Window),
}

/// A stretch of time that ends now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    count: NonZeroU32,
    unit: WindowUnit,
}

/// The unit of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WindowUnit {
    Days,
    Weeks,
    Months,
}

/// How many backups are kept of each kind; 0 where there is none of the kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Generations {
    /// The newest of a day, for this many days that have one.
    pub daily: u32,
    /// The newest of a week (Monday to Sunday).
    pub weekly: u32,
    /// The newest of a month.
    pub monthly: u32,
    /// The newest of a year.
    pub yearly: u32,
}

/// A text that is no policy. Displays what is wrong, in a form that follows the key's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is '{text}': {why}")]
pub struct InvalidPolicy {
    text: String,
    why: String,
}

impl InvalidPolicy {
    fn new(text: &str, allowed: &str) -> Self {
        Self {
            text: text.to_owned(),
            why: format!("allowed are {allowed}; n is 1 or more"),
        }
    }
}

impl Window {
    /// Its length in microseconds. A month has 31 days.
    #[must_use]
    pub fn micros(self) -> i64 {
        let days = match self.unit {
            WindowUnit::Days => 1,
            WindowUnit::Weeks => 7,
            WindowUnit::Months => 31,
        };
        i64::from(self.count.get())
            .saturating_mul(days)
            .saturating_mul(MICROS_PER_DAY)
    }
}

impl WalPolicy {
    /// The same as a policy for backups: those it keeps are those whose WAL is kept. `None` where the backups' policy
    /// decides.
    pub(super) fn as_backup_policy(self) -> Option<BackupPolicy> {
        match self {
            Self::Main => None,
            Self::Redundancy(count) => Some(BackupPolicy::Redundancy(count)),
            Self::RecoveryWindow(window) => Some(BackupPolicy::RecoveryWindow(window)),
        }
    }
}

/// The words of a text, in upper case.
fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_uppercase).collect()
}

fn count(word: &str) -> Option<NonZeroU32> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| word.parse().ok()).flatten()
}

/// `REDUNDANCY n` or `RECOVERY WINDOW OF n UNIT`.
fn simple(words: &[&str]) -> Option<BackupPolicy> {
    match words {
        ["REDUNDANCY", number] => count(number).map(BackupPolicy::Redundancy),
        ["RECOVERY", "WINDOW", "OF", number, unit] => {
            let unit = match *unit {
                "DAY" | "DAYS" => WindowUnit::Days,
                "WEEK" | "WEEKS" => WindowUnit::Weeks,
                "MONTH" | "MONTHS" => WindowUnit::Months,
                _ => return None,
            };
            count(number).map(|count| BackupPolicy::RecoveryWindow(Window { count, unit }))
        }
        _ => None,
    }
}

/// `KEEP n DAILY n WEEKLY n MONTHLY n YEARLY`, in any order, each at most once.
fn generations(words: &[&str]) -> Option<Generations> {
    let (["KEEP"], pairs) = words.split_at_checked(1)? else {
        return None;
    };
    let mut kept = Generations::default();
    if pairs.is_empty() {
        return None;
    }
    for pair in pairs.chunks(2) {
        let [number, kind] = pair else { return None };
        let place = match *kind {
            "DAILY" => &mut kept.daily,
            "WEEKLY" => &mut kept.weekly,
            "MONTHLY" => &mut kept.monthly,
            "YEARLY" => &mut kept.yearly,
            _ => return None,
        };
        if *place != 0 {
            return None;
        }
        *place = count(number)?.get();
    }
    Some(kept)
}

impl FromStr for BackupPolicy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        let words = words(text);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        simple(&words)
            .or_else(|| generations(&words).map(Self::Generations))
            .ok_or_else(|| InvalidPolicy::new(text, BACKUP_POLICIES))
    }
}

impl FromStr for WalPolicy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        let words = words(text);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match (words.as_slice(), simple(&words)) {
            (["MAIN"], _) => Ok(Self::Main),
            (_, Some(BackupPolicy::Redundancy(count))) => Ok(Self::Redundancy(count)),
            (_, Some(BackupPolicy::RecoveryWindow(window))) => Ok(Self::RecoveryWindow(window)),
            _ => Err(InvalidPolicy::new(text, WAL_POLICIES)),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            WindowUnit::Days => "DAY",
            WindowUnit::Weeks => "WEEK",
            WindowUnit::Months => "MONTH",
        };
        let plural = if self.count.get() == 1 { "" } else { "S" };
        write!(f, "RECOVERY WINDOW OF {} {unit}{plural}", self.count)
    }
}

impl fmt::Display for BackupPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redundancy(count) => write!(f, "REDUNDANCY {count}"),
            Self::RecoveryWindow(window) => window.fmt(f),
            Self::Generations(kept) => {
                f.write_str("KEEP")?;
                let kinds = [
                    (kept.daily, "DAILY"),
                    (kept.weekly, "WEEKLY"),
                    (kept.monthly, "MONTHLY"),
                    (kept.yearly, "YEARLY"),
                ];
                for (number, kind) in kinds.into_iter().filter(|(number, _)| *number > 0) {
                    write!(f, " {number} {kind}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for WalPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_backup_policy() {
            None => f.write_str("MAIN"),
            Some(policy) => policy.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backups(text: &str) -> String {
        match text.parse::<BackupPolicy>() {
            Ok(policy) => policy.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn policies_are_read_in_any_letter_case_and_with_any_blanks() {
        for (text, canonical) in [
            ("redundancy 2", "REDUNDANCY 2"),
            ("  Redundancy   007 ", "REDUNDANCY 7"),
            ("RECOVERY WINDOW OF 1 days", "RECOVERY WINDOW OF 1 DAY"),
            ("recovery window of 4 week", "RECOVERY WINDOW OF 4 WEEKS"),
            ("recovery\twindow of 2 MONTHS", "RECOVERY WINDOW OF 2 MONTHS"),
            (
                "keep 7 daily 4 weekly 12 monthly 3 yearly",
                "KEEP 7 DAILY 4 WEEKLY 12 MONTHLY 3 YEARLY",
            ),
            ("KEEP 12 MONTHLY 7 DAILY", "KEEP 7 DAILY 12 MONTHLY"),
        ] {
            assert_eq!(backups(text), canonical);
        }
        assert_eq!("main".parse::<WalPolicy>().unwrap(), WalPolicy::Main);
        let wal: WalPolicy = "recovery window of 3 days".parse().unwrap();
        assert_eq!(wal.to_string(), "RECOVERY WINDOW OF 3 DAYS");
    }

    #[test]
    fn what_is_no_policy_is_refused_with_what_is_allowed() {
        for text in [
            "",
            "REDUNDANCY",
            "REDUNDANCY 0",
            "REDUNDANCY -1",
            "REDUNDANCY +1",
            "REDUNDANCY two",
            "REDUNDANCY 2 DAYS",
            "RECOVERY WINDOW OF 0 DAYS",
            "RECOVERY WINDOW OF 2 YEARS",
            "RECOVERY WINDOW 2 DAYS",
            "KEEP",
            "KEEP 7",
            "KEEP 7 HOURLY",
            "KEEP 0 DAILY",
            "KEEP 7 DAILY 7 DAILY",
            "KEEP DAILY 7",
            "REDUNDANCY 99999999999",
        ] {
            let error = backups(text);
            assert!(
                error.starts_with(&format!("is '{text}': allowed are REDUNDANCY n")),
                "{error}"
            );
        }
        assert!("KEEP 7 DAILY".parse::<WalPolicy>().is_err());
    }

    #[test]
    fn a_month_has_31_days() {
        let Ok(BackupPolicy::RecoveryWindow(window)) = "RECOVERY WINDOW OF 2 MONTHS".parse() else {
            panic!("no window");
        };
        assert_eq!(window.micros(), 62 * MICROS_PER_DAY);
    }
}
