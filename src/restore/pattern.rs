//! Patterns of paths below a data directory, as `--keep` takes them: `*` and `?` do not match a slash. A pattern that
//! matches a directory covers all that is in it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A pattern, as a person typed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Pattern(String);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let trimmed = text.trim_end_matches('/');
        let is_below = !trimmed.is_empty() && !trimmed.starts_with('/');
        match is_below && trimmed.split('/').all(|part| !matches!(part, "" | "." | "..")) {
            true => Ok(Self(trimmed.to_owned())),
            false => Err("allowed is a path below the directory, like log or *.conf".to_owned()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    /// Whether it matches the entry at this path.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        glob(self.0.as_bytes(), path)
    }

    /// Whether it may match something below this directory.
    pub(super) fn may_match_below(&self, directory: &[u8]) -> bool {
        let depth = directory.split(|&byte| byte == b'/').count();
        let parts: Vec<&[u8]> = self.0.as_bytes().split(|&byte| byte == b'/').collect();
        match parts.get(..depth) {
            Some(beginning) if parts.len() > depth => glob(&beginning.join(&b'/'), directory),
            _ => false,
        }
    }
}

/// Wildcards are tried from the last one on, so the work is bounded by the product of both lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // Where to go on when something does not match: behind the last star, one byte later in the text.
    let mut again: Option<(usize, usize)> = None;
    while let Some(&byte) = text.get(seen) {
        match pattern.get(at) {
            Some(b'*') => {
                again = Some((at + 1, seen));
                at += 1;
                continue;
            }
            Some(b'?') if byte != b'/' => {}
            Some(&other) if other == byte => {}
            _ => match again {
                Some((star, place)) if text.get(place).is_some_and(|byte| *byte != b'/') => {
                    again = Some((star, place + 1));
                    (at, seen) = (star, place + 1);
                    continue;
                }
                _ => return false,
            },
        }
        at += 1;
        seen += 1;
    }
    pattern
        .get(at..)
        .unwrap_or_default()
        .iter()
        .all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_within_a_name() {
        for (pattern, path, expected) in [
            ("log", "log", true),
            ("log", "log/a", false),
            ("log/", "log", true),
            ("*.conf", "my.conf", true),
            ("*.conf", "conf.d/my.conf", false),
            ("conf.d/*", "conf.d/my.conf", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZd", false),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("*", "", true),
            ("**", "abc", true),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(path.as_bytes()), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn directories_on_the_way_to_a_match_are_known() {
        let pattern: Pattern = "base/*/mine".parse().unwrap();
        assert!(pattern.may_match_below(b"base") && pattern.may_match_below(b"base/5"));
        assert!(!pattern.may_match_below(b"base/5/mine") && !pattern.may_match_below(b"global"));
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for text in ["", "/etc", "../a", "a/../b", "a//b", "/"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }
}
