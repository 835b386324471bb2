//! The passwords of a configuration, and texts that have one in them: `%(password)s` can put one into any value.
//!
//! A value that contains a secret is not shown. Of texts that come from elsewhere (a log, a server), only the secret is
//! taken out, and what looks like one ([`without_patterns`]).
//!
//! A password may be a word that is shown anyway: `postgres`, or the name of the user. Without that word no text would make
//! sense, and each gap would tell the password. Such a secret is hidden where it stands as one: in a connection string, in a
//! key whose values are hidden, and behind `password=`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::files::{Files, Merged};
use super::interpolation::Interpolation;
use super::keys::{self, Known, Secrecy};
use super::values::given;
use crate::postgres::Conninfo;

/// What is shown instead of a value.
pub(crate) const HIDDEN: &str = "<hidden>";

/// A shorter secret is part of many words by chance: it only hides a value that is equal.
const SEARCHED_CHARS: usize = 4;

/// A number of fewer digits is part of times and sizes.
const SEARCHED_DIGITS: usize = 8;

/// Words that are in many texts. Those of the configuration are added: keys, servers, users, hosts, databases.
const WORDS: &[&str] = &[
    "admin",
    "archive",
    "backup",
    "backups",
    "barman",
    "barmanfs",
    "catalog",
    "check",
    "config",
    "database",
    "default",
    "error",
    "failed",
    "false",
    "hidden",
    "host",
    "local",
    "localhost",
    "none",
    "null",
    "pass",
    "passwd",
    "password",
    "postgres",
    "postgresql",
    "primary",
    "repl",
    "replica",
    "replication",
    "replicator",
    "repository",
    "root",
    "secret",
    "server",
    "standby",
    "streaming",
    "test",
    "token",
    "true",
    "user",
];

/// Words in the name of an unknown key, which may supply a secret to others.
const NAMES: [&str; 6] = ["pass", "secret", "token", "pwd", "credential", "key"];

/// Words behind which a secret is, up to the next blank or quote.
const BEFORE_SECRETS: [&str; 4] = ["password=", "passwd=", "secret=", "token="];

/// The secrets of all sections. No formatter shows them.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Secrets {
    found: Arc<[String]>,
    /// What is shown anyway.
    words: Arc<BTreeSet<String>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} secrets>", self.found.len())
    }
}

impl Secrets {
    /// Those that the files have.
    pub(super) fn of(files: &Files) -> Self {
        let sections = || files.sections.iter().chain([&files.global]);
        let found = sections().flat_map(|section| of_section(section, files));
        Self::new(found, sections().flat_map(words_of_section).collect())
    }

    fn new(found: impl Iterator<Item = String>, words: BTreeSet<String>) -> Self {
        let is_word = |secret: &str| {
            let lower = secret.to_lowercase();
            WORDS.contains(&lower.as_str()) || words.contains(&lower) || keys::known(&lower) != Known::Unknown
        };
        let mut found: Vec<String> = found
            .filter(|secret| !secret.is_empty() && !is_word(secret))
            .collect();
        found.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        found.dedup();
        Self {
            found: found.into(),
            words: words.into(),
        }
    }

    /// These and one that comes from elsewhere.
    pub(crate) fn with(&self, secret: Option<String>) -> Self {
        Self::new(self.found.iter().cloned().chain(secret), (*self.words).clone())
    }

    /// Whether a value contains one of them.
    pub(crate) fn are_in(&self, value: &str) -> bool {
        let is_in = |secret: &String| match is_searched(secret) {
            true => value.contains(secret.as_str()),
            false => value == secret,
        };
        self.found.iter().any(is_in)
    }

    /// A value as it may be shown.
    pub(crate) fn hide(&self, value: String) -> String {
        match self.are_in(&value) || without_patterns(&value) != value {
            true => HIDDEN.to_owned(),
            false => value,
        }
    }

    /// A text without them.
    pub(crate) fn remove(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in self.found.iter() {
            match is_searched(secret) {
                true => text = text.replace(secret.as_str(), HIDDEN),
                // Messages quote values.
                false => text = text.replace(&format!("'{secret}'"), &format!("'{HIDDEN}'")),
            }
        }
        text
    }
}

/// Whether a secret is looked for within other words.
fn is_searched(secret: &str) -> bool {
    let is_number = secret.bytes().all(|byte| byte.is_ascii_digit());
    secret.chars().count()
        >= if is_number {
            SEARCHED_DIGITS
        } else {
            SEARCHED_CHARS
        }
}

/// What a section says that is shown: its name, where its server is, and who connects. What `%(...)` supplies does not
/// count: it may be a password.
fn words_of_section(section: &Merged) -> Vec<String> {
    let mut words = vec![section.name.to_lowercase()];
    for line in &section.lines {
        if keys::secrecy(&line.entry.key) == Secrecy::ConnectionString {
            let targets = Conninfo::targets_of(&line.entry.value).into_iter();
            words.extend(
                targets
                    .filter(|value| !value.contains('%'))
                    .map(|value| value.to_lowercase()),
            );
        }
    }
    words
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
        Secrets::new(
            of.iter().map(ToString::to_string),
            BTreeSet::from(["dba".to_owned()]),
        )
    }

    /// A word that is shown anyway is not taken out of other texts, or they would tell it by their gaps.
    #[test]
    fn an_ordinary_word_is_hidden_only_where_it_is_a_secret() {
        let found = secrets(&[
            "postgres",
            "DBA",
            "slot_name",
            "2026",
            "20261130",
            "host=a password=postgres",
        ]);
        for (value, hidden) in [
            ("runs as postgres", false),
            ("postgres", false),
            ("dba", false),
            ("slot_name", false),
            ("at 2026-11-30", false),
            ("2026", true),
            ("number 20261130", true),
            ("with password=postgres", true),
            ("as host=a password=postgres", true),
        ] {
            assert_eq!(found.hide(value.to_owned()) == HIDDEN, hidden, "{value}");
        }
        let text = "postgres of 2026: 'postgres'";
        assert_eq!(found.remove(text), text);
        assert_eq!(found.with(Some("replication".to_owned())), found);
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
