//! Parses the values of keys. An error continues a message that begins with the key: `'active' is 'maybe': allowed are
//! on and off`.

use std::path::PathBuf;
use std::time::Duration;

use barmanfs_catalog::Action;
use tracing::level_filters::LevelFilter;

use super::Secret;
use crate::postgres::{Conninfo, MAX_RATE_KIB, is_slot_name};
use crate::schedule::Schedule;
use crate::size;

/// Barman writes "not set" as an empty value or `None`.
pub(super) fn given(value: &str) -> Option<String> {
    (!value.is_empty() && value != "None").then(|| value.to_owned())
}

pub(super) fn boolean(value: &str) -> Result<bool, String> {
    match value.to_lowercase().as_str() {
        "on" | "true" | "yes" | "t" | "y" | "1" => Ok(true),
        "off" | "false" | "no" | "f" | "n" | "0" => Ok(false),
        _ => Err(format!("is '{value}': allowed are on and off")),
    }
}

/// A name that PostgreSQL accepts, and what was changed to get it: Barman makes capital letters small.
pub(super) fn slot_name(value: &str) -> Result<(String, Option<String>), String> {
    let name = value.to_lowercase();
    if !is_slot_name(&name) {
        return Err(format!(
            "is '{value}': it may have up to 63 lower-case letters, digits and underscores"
        ));
    }
    let mapped =
        (name != value).then(|| format!("is '{name}': PostgreSQL has no capital letters in names of slots"));
    Ok((name, mapped))
}

/// A limit in kB per second, 0 for none. One that PostgreSQL would refuse becomes the nearest that it accepts.
pub(super) fn bandwidth(value: &str) -> Result<(Option<u32>, Option<String>), String> {
    let wrong = |_| format!("is '{value}': allowed is a number of kB per second, or 0 for no limit");
    let rate: u64 = value.parse().map_err(wrong)?;
    let nearest = u32::try_from(rate)
        .unwrap_or(u32::MAX)
        .clamp(*MAX_RATE_KIB.start(), *MAX_RATE_KIB.end());
    let mapped = (u64::from(nearest) != rate).then(|| {
        format!(
            "is {nearest} kB per second: PostgreSQL accepts {} to {}",
            MAX_RATE_KIB.start(),
            MAX_RATE_KIB.end()
        )
    });
    match rate {
        0 => Ok((None, None)),
        _ => Ok((Some(nearest), mapped)),
    }
}

/// A connection string whose form is right. The message quotes nothing of it.
pub(super) fn connection_string(value: &str) -> Result<Secret, String> {
    match Conninfo::check_form(value) {
        Ok(()) => Ok(Secret::new(value)),
        Err(error) => Err(match error.hint() {
            Some(hint) => format!("is no connection string: {error}. {hint}"),
            None => format!("is no connection string: {error}"),
        }),
    }
}

pub(super) fn size(value: &str) -> Result<Option<u64>, String> {
    match size::bytes(value) {
        Ok(0) => Ok(None),
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) => Err(format!(
            "is '{value}': allowed is a size like 500M, 50G or 2T, or 0 for no limit"
        )),
    }
}

pub(super) fn count(value: &str) -> Result<usize, String> {
    value
        .parse()
        .map_err(|_| format!("is '{value}': allowed is a whole number"))
}

pub(super) fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse().map(Duration::from_secs);
    seconds.map_err(|_| format!("is '{value}': allowed is a number of seconds"))
}

/// Times of `cron`; nothing for `off`.
pub(super) fn schedule(value: &str) -> Result<Option<Schedule>, String> {
    if boolean(value) == Ok(false) {
        return Ok(None);
    }
    let schedule = value.parse::<Schedule>();
    schedule.map(Some).map_err(|why| {
        format!("is '{value}': {why}. '0 2 * * *' is every night at two, by the server's time zone")
    })
}

/// Number of pages of a sample. Each takes a query on the server.
pub(super) fn pages(value: &str) -> Result<u32, String> {
    const PAGES_MAX: u32 = 100_000;
    if boolean(value) == Ok(false) {
        return Ok(0);
    }
    let pages = value.parse().ok().filter(|pages| *pages <= PAGES_MAX);
    pages.ok_or_else(|| {
        format!("is '{value}': allowed is a number of pages, up to {PAGES_MAX}, or 0 for none")
    })
}

/// How much of the repository is read back on each day, in hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DailyShare(u32);

impl Default for DailyShare {
    /// 2 %: everything is read within fifty days, which disks and links do not notice.
    fn default() -> Self {
        Self(200)
    }
}

impl DailyShare {
    /// Whether nothing is to be read.
    pub(crate) fn is_off(self) -> bool {
        self.0 == 0
    }

    /// The share of this many bytes that a time of this many seconds allows.
    pub(crate) fn of(self, bytes: u64, seconds: u64) -> u64 {
        const WHOLE: u128 = 10_000 * 24 * 3600;
        let allowed = u128::from(bytes) * u128::from(self.0) * u128::from(seconds) / WHOLE;
        u64::try_from(allowed).unwrap_or(u64::MAX)
    }
}

/// A share of the repository for each day: `2 %`, `0.5%`, or `off`.
pub(super) fn daily_share(value: &str) -> Result<DailyShare, String> {
    if boolean(value) == Ok(false) {
        return Ok(DailyShare(0));
    }
    let wrong = || format!("is '{value}': allowed is a share like '2 %' or '0.5 %', up to 100 %, or off");
    let number = value.strip_suffix('%').ok_or_else(wrong)?.trim_end();
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let percent: f64 = number.parse().map_err(|_| wrong())?;
    if !is_number || percent > 100.0 {
        return Err(wrong());
    }
    // Not more than 10 000, see above.
    Ok(DailyShare((percent * 100.0).round() as u32))
}

pub(super) fn absolute(value: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("is '{value}': allowed is an absolute path"))
    }
}

/// It becomes a word of a command, and ssh must not take it for an option.
pub(super) fn user_name(value: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-$@\\".contains(c);
    match value.chars().all(is_plain) && !value.starts_with('-') {
        true => Ok(value.to_owned()),
        false => Err(format!("is '{value}': allowed is the name of a user")),
    }
}

/// PostgreSQL's words for the action of recovery at its target.
pub(crate) fn recovery_target_action(value: &str) -> Result<Action, String> {
    value
        .to_lowercase()
        .parse()
        .map_err(|_| format!("is '{value}': allowed are promote, pause and shutdown"))
}

/// Barman's level names, and those of this program's log.
pub(crate) fn log_level(value: &str) -> Result<LevelFilter, String> {
    match value.to_lowercase().as_str() {
        "off" | "none" => Ok(LevelFilter::OFF),
        "critical" | "error" => Ok(LevelFilter::ERROR),
        "warning" | "warn" => Ok(LevelFilter::WARN),
        "info" | "notset" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(format!(
            "is '{value}': allowed are error, warning, info, debug, trace and off"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_postgresql_would_refuse_becomes_what_it_accepts() {
        assert_eq!(slot_name("Barman_A").unwrap().0, "barman_a");
        assert_eq!(slot_name("barman").unwrap(), ("barman".to_owned(), None));
        assert!(slot_name("a-b").is_err());
        assert_eq!(bandwidth("4").unwrap().0, Some(32));
        assert_eq!(bandwidth("99999999999").unwrap().0, Some(1_048_576));
        assert_eq!(
            (bandwidth("0"), bandwidth("4000")),
            (Ok((None, None)), Ok((Some(4000), None)))
        );
        assert!(bandwidth("fast").is_err() && bandwidth("-1").is_err());
    }

    #[test]
    fn a_user_is_one_word_and_no_option() {
        assert_eq!(user_name("barman"), Ok("barman".to_owned()));
        for wrong in ["-oProxyCommand=x", "a b", "a;b", "$(id)"] {
            assert!(user_name(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_connection_string_is_not_quoted() {
        let wrong = connection_string("host=db1 password=hun ter2").unwrap_err();
        assert!(
            wrong.contains("no connection string") && !wrong.contains("ter2"),
            "{wrong}"
        );
    }
}
