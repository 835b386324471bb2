//! The INI dialect of Barman's configuration (Python's `configparser`), with the file and line of each key.
//!
//! `[section]`, `key = value` or `key: value`, whole-line comments with `#` or `;`, and a line that is
//! indented deeper than its key continues the value. One pair of quotes around a whole value is removed; nothing else
//! is changed here. This parser exists because of the line numbers: every message about a configuration must name the
//! line. A test compares it with Python's on random files.

use super::origin::{File, Origin};

/// What a file holds. Whatever its bytes are, the rest of it is read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// In the order of the file.
    pub(super) sections: Vec<Section>,
    /// What is wrong before the first section.
    pub(super) stray: Vec<Malformed>,
}

/// One `[section]`, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    /// The text between the brackets; `None` for a header that cannot be read.
    pub(super) name: Option<String>,
    /// Its header.
    pub(super) origin: Origin,
    /// Whether text behind the brackets was ignored, as Python does.
    pub(super) has_ignored_text: bool,
    /// The keys, in the order of the file, repeated ones included.
    pub(super) entries: Vec<Entry>,
    /// Its lines that are not INI. Any of them may have been a key.
    pub(super) malformed: Vec<Malformed>,
}

impl Section {
    /// Its name, if it can be read.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

/// One `key = value`. Its value may be a secret: it is never part of a message.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Lower case, as Barman compares keys.
    pub(super) key: String,
    /// Trimmed and unquoted; continuation lines are joined with a newline.
    pub(super) value: String,
    /// Whether all of its bytes are text: UTF-8 without NUL. In `value`, others are replaced.
    pub(super) is_text: bool,
    /// The line of the key.
    pub(super) origin: Origin,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.key, self.origin)
    }
}

/// A line that is not INI, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Malformed {
    /// Which line.
    pub(super) origin: Origin,
    /// A sentence that never quotes the line: it may hold a password.
    pub(super) message: &'static str,
}

/// Splits `file` into sections.
pub(super) fn parse(file: &File, bytes: &[u8]) -> Contents {
    let mut contents = Contents::default();
    // Indentation of the last key, while lines may still continue its value.
    let mut open_key: Option<usize> = None;
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    for (index, bytes) in lines(bytes).enumerate() {
        let origin = file.at(index + 1);
        let raw = String::from_utf8_lossy(bytes);
        let is_text = str::from_utf8(bytes).is_ok() && !bytes.contains(&0);
        let trimmed = raw.trim();
        if trimmed.starts_with(['#', ';']) {
            continue;
        }
        let indent = raw.len() - raw.trim_start().len();
        let open = contents
            .sections
            .last_mut()
            .and_then(|section| section.entries.last_mut());
        if let (Some(key_indent), Some(entry)) = (open_key, open) {
            // An empty line belongs to the value if the value goes on behind it.
            if trimmed.is_empty() || indent > key_indent {
                entry.value.push('\n');
                entry.value.push_str(trimmed);
                entry.is_text &= is_text;
                continue;
            }
        }
        if trimmed.is_empty() {
            continue;
        }
        if let Some(rest) = trimmed.strip_prefix('[') {
            contents.sections.push(section(rest, is_text, origin));
            open_key = None;
            continue;
        }
        open_key = contents.add(trimmed, is_text, origin).then_some(indent);
    }
    let sections = contents.sections.iter_mut();
    for entry in sections.flat_map(|section| &mut section.entries) {
        entry.value.truncate(entry.value.trim_end().len());
        unquote(&mut entry.value);
    }
    contents
}

/// The lines, whichever of the three ways to end one a file has.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    // The second of a pair makes no line of its own.
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let all = rest?;
        let Some(end) = all.iter().position(is_end) else {
            rest = None;
            return Some(all);
        };
        let (line, after) = all.split_at_checked(end)?;
        let ending = if after.starts_with(b"\r\n") { 2 } else { 1 };
        rest = after.get(ending..);
        Some(line)
    })
}

impl Contents {
    /// Adds a line to the last section. Returns whether it has a key.
    fn add(&mut self, trimmed: &str, is_text: bool, origin: Origin) -> bool {
        let key_value = trimmed
            .split_once(['=', ':'])
            .filter(|(key, _)| !key.trim().is_empty() && !key.contains(['\u{fffd}', '\0']));
        match (self.sections.last_mut(), key_value) {
            (Some(section), Some((key, value))) => {
                section.entries.push(Entry {
                    key: key.trim().to_lowercase(),
                    value: value.trim().to_owned(),
                    is_text,
                    origin,
                });
                return true;
            }
            (Some(section), None) => keep(
                &mut section.malformed,
                origin,
                "Malformed line: expected [section], key = value, or a comment that begins with # or ;",
            ),
            (None, _) => keep(
                &mut self.stray,
                origin,
                "A line is before the first [section]: put it under [barmanfs]",
            ),
        }
        false
    }
}

/// The first ones tell enough of a file that is something else.
fn keep(found: &mut Vec<Malformed>, origin: Origin, message: &'static str) {
    const KEPT: usize = 8;
    if found.len() < KEPT {
        found.push(Malformed { origin, message });
    }
}

fn section(rest: &str, is_text: bool, origin: Origin) -> Section {
    let named = rest.split_once(']').filter(|(name, _)| !name.trim().is_empty());
    let name = named.map(|(name, _)| name.trim().to_owned());
    let has_ignored_text = named.is_some_and(|(_, after)| !after.trim().is_empty());
    let mut malformed = Vec::new();
    // Behind a header, bytes that are no text may have been the end of the line.
    if name.is_none() || (has_ignored_text && !is_text) {
        keep(
            &mut malformed,
            origin.clone(),
            "Malformed section header: expected [name]",
        );
    }
    Section {
        name,
        origin,
        has_ignored_text,
        entries: Vec::new(),
        malformed,
    }
}

/// Removes one pair of equal quotes around a whole value of one line, as Barman does.
fn unquote(value: &mut String) {
    for quote in ['"', '\''] {
        let is_quoted = value.len() >= 2 && value.starts_with(quote) && value.ends_with(quote);
        if is_quoted && !value.contains('\n') {
            value.remove(0);
            value.pop();
            return;
        }
    }
}

#[cfg(test)]
mod oracle;

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(text: &str) -> Vec<(String, usize, String, String)> {
        parse(&File::new("/c"), text.as_bytes())
            .sections
            .into_iter()
            .flat_map(|s| {
                let name = s.name.unwrap();
                s.entries
                    .into_iter()
                    .map(move |e| (name.clone(), e.origin.line(), e.key, e.value))
            })
            .collect()
    }

    #[test]
    fn reads_sections_keys_comments_and_quotes() {
        let text = "\u{feff}; first\n[barmanfs]\nrepository = /srv/b\n\n[main]\n# about\nDescription: \"Our = database\"\nconninfo='host=a'\n";
        assert_eq!(
            flat(text),
            [
                ("barmanfs".into(), 3, "repository".into(), "/srv/b".into()),
                ("main".into(), 7, "description".into(), "Our = database".into()),
                ("main".into(), 8, "conninfo".into(), "host=a".into()),
            ]
        );
    }

    #[test]
    fn a_line_indented_deeper_continues_the_value() {
        let text = "[main]\nconninfo = host=a\n    user=b\n  # between\n\tdbname=c\nactive = on\n";
        assert_eq!(
            flat(text),
            [
                (
                    "main".into(),
                    2,
                    "conninfo".into(),
                    "host=a\nuser=b\ndbname=c".into()
                ),
                ("main".into(), 6, "active".into(), "on".into()),
            ]
        );
    }

    #[test]
    fn keys_indented_alike_are_keys() {
        let text = "[main]\n  conninfo = host=a\n  active = on\n";
        assert_eq!(flat(text).len(), 2);
    }

    #[test]
    fn a_malformed_line_is_named_and_never_quoted() {
        for (text, line) in [
            ("[main]\nsecret\n", 2),
            ("[main\n", 1),
            ("[]\n", 1),
            ("key = value\n", 1),
            ("[a]\n= value\n", 2),
        ] {
            let contents = parse(&File::new("/c"), text.as_bytes());
            let of_sections = contents.sections.iter().flat_map(|section| &section.malformed);
            let found: Vec<_> = contents.stray.iter().chain(of_sections).collect();
            assert_eq!((found.len(), found[0].origin.line()), (1, line), "{text:?}");
            assert!(!found[0].message.contains("secret"));
        }
    }

    #[test]
    fn debug_output_hides_values() {
        assert!(
            !format!(
                "{:?}",
                parse(&File::new("/c"), b"[a]\nconninfo = password=hunter2\n")
            )
            .contains("hunter2")
        );
    }
}
