//! Parses the values of keys. An error continues a message that begins with the key: `'active' is 'maybe': allowed are
//! on and off`.

use std::path::PathBuf;

use barmanfs_catalog::Action;
use barmanfs_fs::CloneLimits;
use tracing::level_filters::LevelFilter;

use crate::postgres::{MAX_RATE_KIB, is_slot_name};
use crate::schedule::Schedule;
use crate::size;

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

pub(super) fn slot_name(name: String) -> Result<String, String> {
    if is_slot_name(&name) {
        Ok(name)
    } else {
        Err(format!(
            "is '{name}': it may have up to 63 lower-case letters, digits and underscores"
        ))
    }
}

pub(super) fn rate(value: &str) -> Result<Option<u32>, String> {
    // Barman writes "no limit" as 0.
    match given(value).map(|value| value.parse::<u32>()) {
        None | Some(Ok(0)) => Ok(None),
        Some(Ok(rate)) if MAX_RATE_KIB.contains(&rate) => Ok(Some(rate)),
        Some(_) => Err(format!(
            "is '{value}': allowed is a number of kB per second from {} to {}, or 0 for no limit",
            MAX_RATE_KIB.start(),
            MAX_RATE_KIB.end()
        )),
    }
}

pub(super) fn size(value: &str) -> Result<Option<u64>, String> {
    match given(value).map(|value| size::bytes(&value)) {
        None | Some(Ok(0)) => Ok(None),
        Some(Ok(bytes)) => Ok(Some(bytes)),
        Some(Err(_)) => Err(format!(
            "is '{value}': allowed is a size like 500M, 50G or 2T, or 0 for no limit"
        )),
    }
}

pub(super) fn schedule(value: &str) -> Result<Option<Schedule>, String> {
    let Some(text) = given(value).filter(|text| !matches!(boolean(text), Ok(false))) else {
        return Ok(None);
    };
    let schedule = text.parse::<Schedule>();
    schedule.map(Some).map_err(|why| {
        format!("is '{value}': {why}. '0 2 * * *' is every night at two, by the server's time zone")
    })
}

/// Number of pages of a sample. Each takes a query on the server.
pub(super) fn pages(value: &str) -> Result<u32, String> {
    const PAGES_MAX: u32 = 100_000;
    let given = given(value).filter(|value| value != "off");
    given.map_or(Ok(0), |text| {
        text.parse()
            .ok()
            .filter(|pages| *pages <= PAGES_MAX)
            .ok_or_else(|| {
                format!("is '{value}': allowed is a number of pages, up to {PAGES_MAX}, or 0 for none")
            })
    })
}

/// A share of the repository for each day: `2 %`, `0.5%`, or `off`.
pub(super) fn daily_share(value: &str) -> Result<DailyShare, String> {
    let wrong = || format!("is '{value}': allowed is a share like '2 %' or '0.5 %', up to 100 %, or off");
    match given(value) {
        None => Ok(DailyShare::default()),
        Some(text) if matches!(boolean(&text), Ok(false)) => Ok(DailyShare(0)),
        Some(text) => {
            let number = text.strip_suffix('%').ok_or_else(wrong)?.trim_end();
            let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            let percent: f64 = number.parse().map_err(|_| wrong())?;
            if !is_number || percent > 100.0 {
                return Err(wrong());
            }
            // Not more than 10 000, see above.
            Ok(DailyShare((percent * 100.0).round() as u32))
        }
    }
}

pub(super) fn count(value: &str) -> Result<usize, String> {
    given(value).map_or(Ok(CloneLimits::DEFAULT_COUNT), |value| {
        value
            .parse()
            .map_err(|_| format!("is '{value}': allowed is a whole number"))
    })
}

pub(super) fn absolute(value: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("is '{value}': allowed is an absolute path"))
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
