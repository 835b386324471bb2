//! The passwords of a configuration, and texts that have one in them: `%(password)s` can put one into any value.
//!
//! A value that contains a secret is not shown. Of texts that come from elsewhere (a log, a server), only the secret is
//! taken out, and what looks like one ([`without_patterns`]).

use std::fmt;
use std::sync::Arc;

use super::files::{Files, Merged};
use super::interpolation::Interpolation;
use super::keys::{self, Known, Secrecy};
use super::values::given;
use crate::postgres::Conninfo;

/// What is shown instead of a value.
pub(super) const HIDDEN: &str = "<hidden>";

/// A shorter secret is part of many words by chance: it only hides a value that is equal.
const SEARCHED_CHARS: usize = 4;

/// Words in the name of an unknown key, which may supply a secret to others.
const NAMES: [&str; 6] = ["pass", "secret", "token", "pwd", "credential", "key"];

/// Words behind which a secret is, up to the next blank or quote.
const BEFORE_SECRETS: [&str; 4] = ["password=", "passwd=", "secret=", "token="];

/// The secrets of all sections. No formatter shows them.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Secrets(Arc<[String]>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} secrets>", self.0.len())
    }
}

impl Secrets {
    /// Those that the files have.
    pub(super) fn of(files: &Files) -> Self {
        let sections = files.sections.iter().chain([&files.global]);
        let mut found: Vec<String> = sections
            .flat_map(|section| of_section(section, files))
            .filter(|secret| !secret.is_empty())
            .collect();
        found.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        found.dedup();
        Self(found.into())
    }

    /// These and one that comes from elsewhere.
    pub(crate) fn with(&self, secret: Option<String>) -> Self {
        let secret = secret.filter(|secret| !secret.is_empty());
        Self(self.0.iter().cloned().chain(secret).collect())
    }

    /// Whether a value contains one of them.
    pub(crate) fn are_in(&self, value: &str) -> bool {
        let is_in = |secret: &String| match secret.chars().count() < SEARCHED_CHARS {
            true => value == secret,
            false => value.contains(secret.as_str()),
        };
        self.0.iter().any(is_in)
    }

    /// A value as it may be shown.
    pub(crate) fn hide(&self, value: String) -> String {
        match self.are_in(&value) {
            true => HIDDEN.to_owned(),
            false => value,
        }
    }

    /// A text without them.
    pub(crate) fn remove(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in self.0.iter() {
            match secret.chars().count() < SEARCHED_CHARS {
                // Messages quote values.
                true => text = text.replace(&format!("'{secret}'"), &format!("'{HIDDEN}'")),
                false => text = text.replace(secret.as_str(), HIDDEN),
            }
        }
        text
    }
}

fn of_section(section: &Merged, files: &Files) -> Vec<String> {
    let mut found = Vec::new();
    for line in &section.lines {
        let key = line.entry.key.as_str();
        let value = Interpolation::of(section, &files.global).value(line);
        let Some(value) = given(value.as_deref().unwrap_or(&line.entry.value)) else {
            continue;
        };
        match keys::secrecy(key) {
            Secrecy::ConnectionString => found.extend(Conninfo::secrets_of(&value)),
            Secrecy::Hidden if keys::known(key) == Known::Unknown => {
                if NAMES.iter().any(|name| key.contains(name)) {
                    found.push(value);
                }
            }
            Secrecy::Hidden => found.push(value),
            Secrecy::Plain => {}
        }
    }
    found
}

/// A text from elsewhere without what looks like a secret: `password=...`, and the password of a URI.
pub(crate) fn without_patterns(text: &str) -> String {
    let mut text = text.to_owned();
    for word in BEFORE_SECRETS {
        text = without_values_of(&text, word);
    }
    without_userinfo(&text)
}

fn without_values_of(text: &str, word: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut shown = String::with_capacity(text.len());
    let mut from = 0;
    while let Some(at) = lower.get(from..).and_then(|rest| rest.find(word)) {
        let begin = from + at + word.len();
        let rest = text.get(begin..).unwrap_or_default();
        // `password='a b'`; within another quoted text, the quote is escaped or doubled.
        let opening = rest.len() - rest.trim_start_matches(['\'', '"', '\\']).len();
        let value = rest.get(opening..).unwrap_or_default();
        let end = match opening {
            0 => value.find(|c: char| c.is_whitespace() || "'\"&;,)".contains(c)),
            _ => value.find(['\'', '"']),
        };
        shown.push_str(text.get(from..begin + opening).unwrap_or_default());
        shown.push_str(HIDDEN);
        from = begin + opening + end.unwrap_or(value.len());
    }
    shown.push_str(text.get(from..).unwrap_or_default());
    shown
}

/// `postgresql://user:password@host`
fn without_userinfo(text: &str) -> String {
    const SCHEME_END: &str = "://";
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(SCHEME_END) {
        shown.push_str(before);
        shown.push_str(SCHEME_END);
        let end = after
            .find(|c: char| c.is_whitespace() || "/?#'\"".contains(c))
            .unwrap_or(after.len());
        let (authority, behind) = after.split_at(end);
        match authority
            .rsplit_once('@')
            .map(|(who, host)| (who.split_once(':'), host))
        {
            Some((Some((user, _)), host)) => {
                shown.push_str(user);
                shown.push(':');
                shown.push_str(HIDDEN);
                shown.push('@');
                shown.push_str(host);
            }
            _ => shown.push_str(authority),
        }
        rest = behind;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(of: &[&str]) -> Secrets {
        Secrets(of.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_value_with_a_secret_in_it_is_hidden() {
        let found = secrets(&["host=a password=hunter2", "hunter2", "abc"]);
        for (value, hidden) in [
            ("the password is hunter2", true),
            ("a description", false),
            ("abc", true),
            ("abcd", false),
        ] {
            assert_eq!(found.hide(value.to_owned()) == HIDDEN, hidden, "{value}");
        }
        assert_eq!(
            found.remove("is 'abc': host=a password=hunter2 abcd hunter2"),
            "is '<hidden>': <hidden> abcd <hidden>"
        );
        assert!(!format!("{found:?}").contains("hunter2"));
    }

    #[test]
    fn what_looks_like_a_secret_is_taken_out() {
        for (text, shown) in [
            ("host=a password=x1 user=b", "host=a password=<hidden> user=b"),
            ("PGPASSWORD=x1 cp %p", "PGPASSWORD=<hidden> cp %p"),
            ("password='x 1' user=b", "password='<hidden>' user=b"),
            ("a 'password=\\'x 1\\' b'", "a 'password=\\'<hidden>' b'"),
            ("curl https://u:x1@host/p", "curl https://u:<hidden>@host/p"),
            (
                "postgresql://u@host/p?password=x1&a=b",
                "postgresql://u@host/p?password=<hidden>&a=b",
            ),
            ("at 12:00 https://host a@b", "at 12:00 https://host a@b"),
            ("größe password=ü", "größe password=<hidden>"),
            ("", ""),
        ] {
            assert_eq!(without_patterns(text), shown);
        }
    }
}
