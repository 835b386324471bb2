//! What a user has noted with a backup: texts by name, which nothing here depends on.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// All of a backup.
pub type Annotations = BTreeMap<String, String>;

/// Longest key in bytes.
const MAX_KEY_BYTES: usize = 64;
/// Longest value in bytes.
const MAX_VALUE_BYTES: usize = 256;

/// One of them, as `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// Letters, digits, `_`, `.` and `-`.
    pub key: String,
    /// A text in one line.
    pub value: String,
}

impl Annotation {
    /// Whether a backup has it.
    #[must_use]
    pub fn is_in(&self, annotations: &Annotations) -> bool {
        annotations.get(&self.key) == Some(&self.value)
    }
}

impl fmt::Display for Annotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

impl FromStr for Annotation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_key = |key: &str| {
            (1..=MAX_KEY_BYTES).contains(&key.len())
                && key
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        };
        let is_value = |value: &str| value.len() <= MAX_VALUE_BYTES && !value.chars().any(char::is_control);
        match text.split_once('=') {
            Some((key, value)) if is_key(key) && is_value(value) => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(format!(
                "allowed is KEY=VALUE: a key of letters, digits, '_', '.' and '-' with at most {MAX_KEY_BYTES} bytes, a value \
                 with at most {MAX_VALUE_BYTES} bytes on one line"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_has_a_key_and_one_line() {
        let annotation: Annotation = "release=4.2=final".parse().unwrap();
        assert_eq!(
            (annotation.key.as_str(), annotation.value.as_str()),
            ("release", "4.2=final")
        );
        assert_eq!(annotation.to_string().parse(), Ok(annotation.clone()));
        assert!(annotation.is_in(&[("release".to_owned(), "4.2=final".to_owned())].into()));
        assert!(!annotation.is_in(&[("release".to_owned(), "4.3".to_owned())].into()));
        for text in ["release", "=x", "a b=c", "a=b\nc", &"k".repeat(65)] {
            assert!(text.parse::<Annotation>().is_err(), "{text}");
        }
        assert_eq!("a=".parse::<Annotation>().unwrap().value, "");
    }
}
