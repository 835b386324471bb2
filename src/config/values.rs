//! Parses the values of keys. An error continues a message that begins with the key: `'active' is 'maybe': allowed are
//! on and off`.

use std::path::PathBuf;

use barmanfs_catalog::Action;
use barmanfs_fs::CloneLimits;
use tracing::level_filters::LevelFilter;

use crate::postgres::{MAX_RATE_KIB, is_slot_name};
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
