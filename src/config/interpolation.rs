//! `%(key)s` in Barman's files, as Python's `configparser` replaces it: by that key of the same section, of `[DEFAULT]`, or
//! by what Barman derives for a server. `%%` is a percent sign. In barmanfs's own files a `%` is a `%`.

use super::files::{Line, Merged};

/// Python's limit for values that refer to values.
const DEEPEST: usize = 10;

/// What Barman derives for a server from its name and the global section.
const DERIVED: [(&str, &str); 12] = [
    ("barman_lock_directory", "%(barman_home)s"),
    ("config_changes_queue", "%(barman_home)s/cfg_changes.queue"),
    ("backup_directory", "%(barman_home)s/%(name)s"),
    ("basebackups_directory", "%(backup_directory)s/base"),
    ("errors_directory", "%(backup_directory)s/errors"),
    ("incoming_wals_directory", "%(backup_directory)s/incoming"),
    ("streaming_wals_directory", "%(backup_directory)s/streaming"),
    ("wals_directory", "%(backup_directory)s/wals"),
    ("xlogdb_directory", "%(wals_directory)s"),
    ("cluster", "%(name)s"),
    ("streaming_conninfo", "%(conninfo)s"),
    ("barman_user", "barman"),
];

/// The names that a value may refer to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interpolation<'a> {
    section: &'a Merged,
    global: &'a Merged,
}

impl<'a> Interpolation<'a> {
    /// For the values of a section.
    pub(super) fn of(section: &'a Merged, global: &'a Merged) -> Self {
        Self { section, global }
    }

    /// The value of a line.
    ///
    /// # Errors
    /// What is wrong with it. Quotes nothing of the value, which may be a secret.
    pub(super) fn value(self, line: &Line) -> Result<String, String> {
        if !line.entry.is_text {
            return Err("has bytes that are no text: write UTF-8".to_owned());
        }
        match line.is_barmans {
            true => self.expand(&line.entry.value, DEEPEST),
            false => Ok(line.entry.value.clone()),
        }
    }

    fn expand(self, text: &str, depth: usize) -> Result<String, String> {
        let Some(deeper) = depth.checked_sub(1) else {
            return Err("refers to itself, or through too many other keys".to_owned());
        };
        let mut value = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            value.push_str(before);
            rest = if let Some(after) = after.strip_prefix('%') {
                value.push('%');
                after
            } else {
                let (name, after) = after
                    .strip_prefix('(')
                    .and_then(|name| name.split_once(")s"))
                    .filter(|(name, _)| !name.is_empty() && !name.contains(')'))
                    .ok_or("has a '%' that is neither %% nor %(key)s: write %% for a percent sign")?;
                let found = self
                    .raw(&name.to_lowercase())
                    .ok_or("has a %(key)s whose key is set nowhere")?;
                value.push_str(&match found {
                    Raw::Text(text) => self.expand(text, deeper)?,
                    Raw::Literal(text) => text.to_owned(),
                });
                after
            };
        }
        value.push_str(rest);
        Ok(value)
    }

    /// A value with bytes that are no text is none.
    fn raw(self, key: &str) -> Option<Raw<'a>> {
        if key == "name" {
            return Some(Raw::Literal(&self.section.name));
        }
        let line = self.section.line(key).or_else(|| self.global.line(key));
        let derived = || DERIVED.iter().find(|(name, _)| *name == key);
        match line {
            Some(line) if !line.entry.is_text => None,
            Some(line) if line.is_barmans => Some(Raw::Text(&line.entry.value)),
            Some(line) => Some(Raw::Literal(&line.entry.value)),
            None => derived().map(|(_, text)| Raw::Text(text)),
        }
    }
}

/// The value of a name.
enum Raw<'a> {
    /// It may refer to others.
    Text(&'a str),
    /// It is taken as it is.
    Literal(&'a str),
}
