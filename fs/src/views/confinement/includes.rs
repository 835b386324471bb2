//! The files from which PostgreSQL reads its settings, without what leads out of the data directory.

use std::collections::{BTreeMap, BTreeSet};

use barmanfs_pg::conf::{ConfLine, is_taken_by_include_dir, location, quoted};
use barmanfs_store::Attributes;

use super::OWN_FILES;
use super::source::{Source, Stored};
use crate::error::Result;

/// Maximum number of files. All of them are in memory while a view's root is generated.
const MAX_FILES: usize = 1000;

/// Maximum total size.
const MAX_TOTAL_BYTES: usize = 64 << 20;

/// PostgreSQL's limit (`CONF_FILE_MAX_DEPTH`).
const MAX_DEPTH: u32 = 10;

/// Maximum number of files read to find the effective values: a file may be included many times.
const MAX_VISITS: u32 = 10_000;

/// Start of a line that was removed.
pub(in crate::views) const TAKEN_OUT: &[u8] = b"# Of the original (barmanfs): ";

/// The comment above an `include` that was removed.
const NOT_HERE: &[u8] =
    b"# What the next line names is not in this data directory, so its settings are missing here.\n";

/// Values by the names of settings in lower case.
pub(in crate::views) type Values = BTreeMap<String, Vec<u8>>;

/// The files, by their paths in the data directory.
#[derive(Debug, Default)]
pub(in crate::views) struct Confined {
    files: BTreeMap<Vec<u8>, ConfinedFile>,
    /// Settings of [`OWN_FILES`] that were set somewhere.
    pub(in crate::views) taken_out: BTreeSet<&'static str>,
}

/// A file of the configuration.
#[derive(Debug)]
pub(in crate::views) struct ConfinedFile {
    pub(in crate::views) attributes: Attributes,
    pub(in crate::views) text: Vec<u8>,
    /// Whether the text differs from the stored one.
    pub(in crate::views) is_changed: bool,
    items: Vec<Item>,
}

#[derive(Debug)]
enum Item {
    Set(String, Vec<u8>),
    Include(Vec<u8>),
}

/// Reads the files from `roots` on, which are at the top of the data directory. `None` if there are too many.
pub(in crate::views) fn confine<'a>(
    source: &impl Source,
    roots: impl IntoIterator<Item = (&'a [u8], Stored)>,
) -> Result<Option<Confined>> {
    let mut walk = Walk {
        source,
        confined: Confined::default(),
        waiting: Vec::new(),
        total_bytes: 0,
    };
    for (path, stored) in roots {
        if let Stored::Text(attributes, text) = stored {
            walk.add(path.to_vec(), attributes, text)?;
        }
    }
    while let Some(path) = walk.waiting.pop() {
        walk.go_through(&path)?;
        if walk.confined.files.len() > MAX_FILES || walk.total_bytes > MAX_TOTAL_BYTES {
            return Ok(None);
        }
    }
    Ok(Some(walk.confined))
}

impl Confined {
    /// The file at a path, if it is one that PostgreSQL reads.
    pub(in crate::views) fn file(&self, path: &[u8]) -> Option<&ConfinedFile> {
        self.files.get(path)
    }

    /// All files.
    pub(in crate::views) fn files(&self) -> impl Iterator<Item = (&Vec<u8>, &ConfinedFile)> {
        self.files.iter()
    }

    /// The effective settings after these files were read in order.
    pub(in crate::views) fn values(&self, roots: &[&[u8]]) -> Values {
        let (mut values, mut visits) = (Values::new(), 0);
        for root in roots {
            self.visit(root, 0, &mut visits, &mut values);
        }
        values
    }

    fn visit(&self, path: &[u8], depth: u32, visits: &mut u32, values: &mut Values) {
        *visits += 1;
        if depth > MAX_DEPTH || *visits > MAX_VISITS {
            return;
        }
        for item in self.files.get(path).iter().flat_map(|file| &file.items) {
            match item {
                Item::Set(name, value) => {
                    values.insert(name.clone(), value.clone());
                }
                Item::Include(path) => self.visit(path, depth + 1, visits, values),
            }
        }
    }
}

struct Walk<'a, S> {
    source: &'a S,
    confined: Confined,
    waiting: Vec<Vec<u8>>,
    total_bytes: usize,
}

impl<S: Source> Walk<'_, S> {
    fn add(&mut self, path: Vec<u8>, attributes: Attributes, text: Vec<u8>) -> Result<()> {
        self.total_bytes += text.len();
        let file = ConfinedFile {
            attributes,
            text,
            is_changed: self.source.is_from_outside(&path)?,
            items: Vec::new(),
        };
        self.confined.files.insert(path.clone(), file);
        self.waiting.push(path);
        Ok(())
    }

    /// Whether a path exists. If it is a file, it is queued to be read once.
    fn find(&mut self, path: &[u8]) -> Result<bool> {
        if self.confined.files.contains_key(path) {
            return Ok(true);
        }
        if self.total_bytes > MAX_TOTAL_BYTES {
            return Ok(true);
        }
        match self.source.read(path)? {
            Stored::Text(attributes, text) => self.add(path.to_vec(), attributes, text)?,
            // PostgreSQL cannot read it either.
            Stored::Damaged => {}
            Stored::Unusable(attributes, why) => {
                let file = ConfinedFile {
                    attributes,
                    text: format!("# Left out by barmanfs: {why}.\n").into_bytes(),
                    is_changed: true,
                    items: Vec::new(),
                };
                self.confined.files.insert(path.to_vec(), file);
            }
            Stored::Absent => return Ok(false),
        }
        Ok(true)
    }

    fn go_through(&mut self, path: &[u8]) -> Result<()> {
        let text = self.confined.files.get(path).map(|file| file.text.clone());
        let text = text.unwrap_or_default();
        let (mut confined, mut items) = (Vec::with_capacity(text.len()), Vec::new());
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match self.line(path, line)? {
                Line::Stays(more) => items.extend(more),
                Line::LeadsOut => confined.extend_from_slice(TAKEN_OUT),
                Line::IsNotHere => confined.extend_from_slice(&[NOT_HERE, TAKEN_OUT].concat()),
                Line::IsElsewhere(instead, more) => {
                    items.extend(more);
                    confined.extend_from_slice(&[&instead, TAKEN_OUT].concat());
                }
            }
            confined.extend_from_slice(line);
        }
        if let Some(file) = self.confined.files.get_mut(path) {
            file.is_changed |= confined.len() != text.len();
            (file.text, file.items) = (confined, items);
        }
        Ok(())
    }

    fn line(&mut self, path: &[u8], line: &[u8]) -> Result<Line> {
        if let Some(name) = way_out(line) {
            self.confined.taken_out.insert(name);
            return Ok(Line::LeadsOut);
        }
        let ConfLine::Setting { name, value } = ConfLine::parse(line) else {
            return Ok(Line::Stays(Vec::new()));
        };
        let included = match &*name {
            "include" | "include_if_exists" | "include_dir" => location(&value, path),
            _ => return Ok(Line::Stays(vec![Item::Set(name, value)])),
        };
        let Some(included) = included else {
            return self.include_from_outside(&name, &value, path);
        };
        self.included(&name, included)
    }

    /// An `include` of a path outside the data directory, in the file at `path`.
    fn include_from_outside(&mut self, name: &str, named: &[u8], path: &[u8]) -> Result<Line> {
        let Some(place) = self.source.place_of(named, path)? else {
            return Ok(Line::IsNotHere);
        };
        // PostgreSQL looks for it from the directory of this file on.
        let up = "../".repeat(path.iter().filter(|byte| **byte == b'/').count());
        let below = String::from_utf8_lossy(&place);
        let instead = format!("{name} = {}\n", quoted(&format!("{up}{below}"))).into_bytes();
        Ok(match self.included(name, place)? {
            Line::Stays(items) => Line::IsElsewhere(instead, items),
            line => line,
        })
    }

    fn included(&mut self, name: &str, included: Vec<u8>) -> Result<Line> {
        Ok(match name {
            "include_dir" => match self.source.names(&included, &is_taken_by_include_dir)? {
                Some(names) => Line::Stays(self.all_in(&included, names)?),
                None => Line::IsNotHere,
            },
            _ if self.find(&included)? => Line::Stays(vec![Item::Include(included)]),
            "include_if_exists" => Line::Stays(Vec::new()),
            _ => Line::IsNotHere,
        })
    }

    fn all_in(&mut self, directory: &[u8], mut names: Vec<Vec<u8>>) -> Result<Vec<Item>> {
        names.sort();
        names.truncate(MAX_FILES + 1);
        let mut items = Vec::new();
        for name in names {
            let path = match directory {
                b"" => name,
                directory => [directory, &name].join(&b'/'),
            };
            if self.find(&path)? {
                items.push(Item::Include(path));
            }
        }
        Ok(items)
    }
}

enum Line {
    /// The line stays. It sets or includes these.
    Stays(Vec<Item>),
    LeadsOut,
    IsNotHere,
    /// This line takes its place, and includes these.
    IsElsewhere(Vec<u8>, Vec<Item>),
}

/// The forbidden setting in a line, if any. A line that PostgreSQL would refuse counts too.
fn way_out(line: &[u8]) -> Option<&'static str> {
    let line = line.trim_ascii_start();
    let is_in_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80;
    let end = line
        .iter()
        .position(|byte| !is_in_name(byte))
        .unwrap_or(line.len());
    let (name, rest) = line.split_at_checked(end)?;
    if rest.first() == Some(&b'.') {
        return None;
    }
    let mut names = OWN_FILES.iter().map(|(setting, ..)| *setting);
    names.find(|setting| name.eq_ignore_ascii_case(setting.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files that are held in memory.
    struct Texts(BTreeMap<Vec<u8>, Vec<u8>>);

    impl Texts {
        fn of(files: &[(&str, &str)]) -> Self {
            let files = files
                .iter()
                .map(|(path, text)| (path.as_bytes().into(), text.as_bytes().into()));
            Self(files.collect())
        }

        fn confined(&self) -> Confined {
            let conf = self.read(b"postgresql.conf").unwrap();
            confine(self, [(&b"postgresql.conf"[..], conf)]).unwrap().unwrap()
        }
    }

    impl Source for Texts {
        fn read(&self, path: &[u8]) -> Result<Stored> {
            let attributes = Attributes {
                mode: 0o600,
                uid: 0,
                gid: 0,
                mtime_s: 0,
                mtime_ns: 0,
            };
            let text = self.0.get(path).cloned();
            Ok(text.map_or(Stored::Absent, |text| Stored::Text(attributes, text)))
        }

        fn names(&self, path: &[u8], is_wanted: &dyn Fn(&[u8]) -> bool) -> Result<Option<Vec<Vec<u8>>>> {
            let below = |name: &Vec<u8>| name.strip_prefix(path)?.strip_prefix(b"/").map(<[u8]>::to_vec);
            let names: Vec<_> = self.0.keys().filter_map(below).collect();
            let is_there = !names.is_empty();
            Ok(is_there.then(|| names.into_iter().filter(|name| is_wanted(name)).collect()))
        }

        fn has_file(&self, path: &[u8]) -> Result<bool> {
            Ok(self.0.contains_key(path))
        }
    }

    fn value(confined: &Confined, name: &str) -> String {
        let values = confined.values(&[b"postgresql.conf"]);
        let value = values.get(name).cloned().unwrap_or_default();
        String::from_utf8(value).unwrap()
    }

    #[test]
    fn the_last_value_counts_in_the_order_postgresql_reads() {
        let texts = Texts::of(&[
            (
                "postgresql.conf",
                "a = 1\ninclude x\na = 2\ninclude_dir d\ninclude x\nb = 9\n",
            ),
            ("x", "A = 3\nb = 1\n"),
            ("d/2.conf", "c = 5\n"),
            ("d/1.conf", "c = 4\ninclude '../x'\n"),
            ("d/.0.conf", "c = 6\n"),
        ]);
        let confined = texts.confined();
        assert_eq!(
            ["a", "b", "c"].map(|name| value(&confined, name)),
            ["3", "9", "5"]
        );
        assert!(confined.files().all(|(_, file)| !file.is_changed));
    }

    #[test]
    fn files_that_include_each_other_have_an_end() {
        let texts = Texts::of(&[
            ("postgresql.conf", "include x\ninclude x\n"),
            ("x", "include y\ninclude y\ninclude postgresql.conf\na = 1\n"),
            ("y", "include x\ninclude x\nhba_file = '/etc/x'\n"),
        ]);
        let confined = texts.confined();
        assert_eq!(value(&confined, "a"), "1");
        assert_eq!(confined.taken_out, BTreeSet::from(["hba_file"]));
    }

    #[test]
    fn more_files_than_anybody_needs_are_refused() {
        let names: Vec<_> = (0..=MAX_FILES).map(|n| format!("d/{n}.conf")).collect();
        let mut files: Vec<_> = names.iter().map(|name| (&**name, "a = 1\n")).collect();
        files.push(("postgresql.conf", "include_dir d\n"));
        let texts = Texts::of(&files);
        let conf = texts.read(b"postgresql.conf").unwrap();
        assert!(
            confine(&texts, [(&b"postgresql.conf"[..], conf)])
                .unwrap()
                .is_none()
        );
    }
}
