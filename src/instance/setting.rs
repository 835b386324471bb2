//! Settings of PostgreSQL that override its configuration.

use std::str::FromStr;

/// Settings that `--set` refuses, and why.
const NOT_TO_BE_SET: [(&str, &str); 3] = [
    (
        "data_directory",
        "a server on a clone works on its data_directory alone",
    ),
    ("archive_mode", "a clone never archives"),
    ("port", "--port names it"),
];

/// A setting of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl Setting {
    pub(crate) fn new(name: &str, value: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            value: value.into(),
        }
    }
}

/// Parses the form of `--set`: `NAME=VALUE`.
impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_in_names = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
        let (name, value) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty() && name.bytes().all(is_in_names))
            .ok_or("it is NAME=VALUE, like shared_buffers=128MB")?;
        let why_not = NOT_TO_BE_SET
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        match why_not {
            Some((_, why)) => Err((*why).to_owned()),
            None => Ok(Self::new(name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_a_name_and_any_value() {
        for (text, name, value) in [
            ("huge_pages=off", "huge_pages", "off"),
            ("shared_preload_libraries=", "shared_preload_libraries", ""),
            ("my.own= a=b", "my.own", " a=b"),
        ] {
            let setting = text.parse::<Setting>();
            assert_eq!(setting, Ok(Setting::new(name, value)));
        }
        for text in [
            "",
            "=1",
            "a b=1",
            "my.own = a",
            "port",
            "port=1",
            "Data_Directory=/srv",
            "archive_mode=on",
        ] {
            assert!(text.parse::<Setting>().is_err(), "{text}");
        }
    }
}
