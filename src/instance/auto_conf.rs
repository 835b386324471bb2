//! Reads `postgresql.auto.conf`, the file that PostgreSQL reads last.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::error::Error;

/// The file's name.
pub(crate) const AUTO_CONF: &str = "postgresql.auto.conf";

/// More than PostgreSQL or a person writes.
pub(crate) const AUTO_CONF_MAX_BYTES: usize = 4 << 20;

/// The file's content in a data directory; empty if it does not exist.
pub(super) fn read(data: &Path) -> Result<String, Error> {
    let path = data.join(AUTO_CONF);
    let mut bytes = Vec::new();
    let read =
        File::open(&path).and_then(|file| file.take(AUTO_CONF_MAX_BYTES as u64).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(super::unreadable(&path, &error)),
        _ => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// The last value of a setting, in lower case for comparing keywords; `None` if it is not set.
pub(crate) fn last_value(settings: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        let (setting, value) = line.split_once('=')?;
        let value = value.split('#').next()?.trim().trim_matches('\'');
        setting
            .trim()
            .eq_ignore_ascii_case(name)
            .then(|| value.to_ascii_lowercase())
    };
    settings.lines().rev().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_setting_counts() {
        let settings = "hot_standby = on\n# hot_standby = maybe\nhot_standby = OFF # why\nwork_mem = '1MB'\n";
        assert_eq!(last_value(settings, "hot_standby").as_deref(), Some("off"));
        assert_eq!(last_value(settings, "work_mem").as_deref(), Some("1mb"));
        assert_eq!(last_value(settings, "archive_mode"), None);
    }
}
