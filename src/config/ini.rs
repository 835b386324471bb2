//! The INI dialect of Barman's configuration (Python's `configparser`), with the file and line of each key.
//!
//! `[section]`, `key = value` or `key: value`, whole-line comments with `#` or `;`, and a line that is
//! indented deeper than its key continues the value. One pair of quotes around a whole value is removed; nothing else
//! is changed here. This parser exists because of the line numbers: every message about a configuration must name the
//! line. A test compares it with Python's on random files.

use super::origin::{File, Origin};

/// One `[section]`, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    /// The text between the brackets.
    pub(super) name: String,
    /// Its header.
    pub(super) origin: Origin,
    /// Whether text behind the brackets was ignored, as Python does.
    pub(super) has_ignored_text: bool,
    /// The keys, in the order of the file, repeated ones included.
    pub(super) entries: Vec<Entry>,
}

/// One `key = value`. Its value may be a secret: it is never part of a message.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Lower case, as Barman compares keys.
    pub(super) key: String,
    /// Trimmed and unquoted; continuation lines are joined with a newline.
    pub(super) value: String,
    /// The line of the key.
    pub(super) origin: Origin,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.key, self.origin)
    }
}

/// A line that is not INI, and what was expected.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// Counted from 1.
    pub(super) line: usize,
    /// A sentence that never quotes the line: it may hold a password.
    pub(super) message: String,
}

/// Splits the text of `file` into sections.
pub(super) fn parse(file: &File, text: &str) -> Result<Vec<Section>, Malformed> {
    let mut sections: Vec<Section> = Vec::new();
    // Indentation of the last key, while lines may still continue its value.
    let mut open_key: Option<usize> = None;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, raw) in text.lines().enumerate() {
        let line = index + 1;
        let trimmed = raw.trim();
        if trimmed.starts_with(['#', ';']) {
            continue;
        }
        let open = sections.last_mut().and_then(|section| section.entries.last_mut());
        if let (Some(key_indent), Some(entry)) = (open_key, open) {
            let indent = raw.len() - raw.trim_start().len();
            // An empty line belongs to the value if the value goes on behind it.
            if trimmed.is_empty() || indent > key_indent {
                entry.value.push('\n');
                entry.value.push_str(trimmed);
                continue;
            }
        }
        if trimmed.is_empty() {
            continue;
        }
        if let Some(rest) = trimmed.strip_prefix('[') {
            let (name, has_ignored_text) = section_name(rest, line)?;
            sections.push(Section {
                name,
                origin: file.at(line),
                has_ignored_text,
                entries: Vec::new(),
            });
            open_key = None;
            continue;
        }
        let entry = key_value(trimmed, file.at(line))?;
        let Some(section) = sections.last_mut() else {
            return Err(malformed(
                line,
                "A key is before the first [section]: put it under [barmanfs]",
            ));
        };
        section.entries.push(entry);
        open_key = Some(raw.len() - raw.trim_start().len());
    }
    for entry in sections.iter_mut().flat_map(|section| &mut section.entries) {
        entry.value.truncate(entry.value.trim_end().len());
        unquote(&mut entry.value);
    }
    Ok(sections)
}

fn section_name(rest: &str, line: usize) -> Result<(String, bool), Malformed> {
    match rest.split_once(']') {
        Some((name, after)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), !after.trim().is_empty()))
        }
        _ => Err(malformed(line, "Malformed section header: expected [name]")),
    }
}

fn key_value(trimmed: &str, origin: Origin) -> Result<Entry, Malformed> {
    let split = trimmed
        .find(['=', ':'])
        .and_then(|at| trimmed.split_at_checked(at));
    match split {
        Some((key, value)) if !key.trim().is_empty() => Ok(Entry {
            key: key.trim().to_lowercase(),
            // The separator is a single ASCII byte.
            value: value.get(1..).unwrap_or_default().trim().to_owned(),
            origin,
        }),
        _ => Err(malformed(
            origin.line(),
            "Malformed line: expected [section], key = value, or a comment that begins with # or ;",
        )),
    }
}

fn malformed(line: usize, message: &str) -> Malformed {
    Malformed {
        line,
        message: message.to_owned(),
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
        parse(&File::new("/c"), text)
            .unwrap()
            .into_iter()
            .flat_map(|s| {
                s.entries
                    .into_iter()
                    .map(move |e| (s.name.clone(), e.origin.line(), e.key, e.value))
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
            let error = parse(&File::new("/c"), text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}");
            assert!(!error.message.contains("secret"));
        }
    }

    #[test]
    fn debug_output_hides_values() {
        assert!(
            !format!(
                "{:?}",
                parse(&File::new("/c"), "[a]\nconninfo = password=hunter2\n").unwrap()
            )
            .contains("hunter2")
        );
    }
}
