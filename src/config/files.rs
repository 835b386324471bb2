//! The files of a configuration: the main one, those of the include directory, and the file that `config-update` writes.
//! Later ones win key by key. Line numbers in messages are those of the file in which the line is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::ConfigError;
use super::ini::{self, Entry, Section};
use super::interpolation::Interpolation;
use super::origin::{File, Notice, Origin};
use super::values::{absolute, boolean, given};

/// The section of barmanfs itself.
pub(super) const GLOBAL_SECTION: &str = "barmanfs";
/// Barman's name for it.
pub(super) const BARMAN_SECTION: &str = "barman";
/// Supplies keys to all sections of its file.
pub(super) const DEFAULT_SECTION: &str = "DEFAULT";

/// The configuration of the whole host.
const SYSTEM_FILE: &str = "/etc/barmanfs.conf";
/// Its include directory, if it does not name another one.
const SYSTEM_DIRECTORY: &str = "/etc/barmanfs.d";
/// The name of a user's own configuration, in the home directory.
pub(super) const USER_FILE: &str = ".barmanfs.conf";
/// Barman's, in the home directory.
const BARMAN_USER_FILE: &str = ".barman.conf";
/// Barman's for the whole host.
const BARMAN_FILES: [&str; 2] = ["/etc/barman.conf", "/etc/barman/barman.conf"];

/// A file that may hold the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    /// One of Barman's places: Barman's rules of interpolation and wrong values hold, whatever the sections are called.
    pub(super) is_barmans_place: bool,
}

/// The usual places, the first of which counts that exists.
pub(super) fn usual(home: Option<&Path>) -> Vec<Candidate> {
    let candidate = |is_barmans_place| {
        move |path: PathBuf| Candidate {
            path,
            is_barmans_place,
        }
    };
    let in_home = |name: &str| home.map(|home| home.join(name)).into_iter();
    let own = in_home(USER_FILE).chain([SYSTEM_FILE.into()]);
    let barmans = in_home(BARMAN_USER_FILE).chain(BARMAN_FILES.map(PathBuf::from));
    own.map(candidate(false))
        .chain(barmans.map(candidate(true)))
        .collect()
}

/// A key as it counts, before the layers are put on each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) entry: Entry,
    /// Written for Barman: `%(key)s` is replaced, and wrong values of harmless keys are ignored as Barman does.
    pub(super) is_barmans: bool,
    /// From `[DEFAULT]` of the same file.
    pub(super) from_default: bool,
}

/// Sections of one name, from all files: the last value of each key, in the order of first appearance.
#[derive(Debug, Clone)]
pub(super) struct Merged {
    pub(super) name: String,
    /// Where it was seen first.
    pub(super) origin: Origin,
    pub(super) lines: Vec<Line>,
}

impl Merged {
    /// The line that sets a key.
    pub(super) fn line(&self, key: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.entry.key == key)
    }

    /// Takes a line; an earlier one of its key does not count any more. Returns that one.
    fn set(&mut self, line: Line) -> Option<Line> {
        match self
            .lines
            .iter_mut()
            .find(|known| known.entry.key == line.entry.key)
        {
            Some(known) => Some(std::mem::replace(known, line)),
            None => {
                self.lines.push(line);
                None
            }
        }
    }
}

/// What all files say together.
#[derive(Debug)]
pub(super) struct Files {
    /// The main file.
    pub(super) main: File,
    /// It is a file of Barman.
    pub(super) is_barmans: bool,
    /// `[barmanfs]` over `[barman]`.
    pub(super) global: Merged,
    /// Servers and models, in the order of the files.
    pub(super) sections: Vec<Merged>,
    /// What there is to say about the form.
    pub(super) notices: Vec<Notice>,
    /// Why the include directory was not read.
    pub(super) not_included: Option<String>,
}

/// What is known about a file whose sections are to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Main,
    Included,
    /// Written by `config-update`: it replaces what others say, without a warning, and a `%` is a `%`.
    Automatic,
}

impl Files {
    /// Reads `main` and the files that it includes.
    pub(super) fn read(main: &Candidate, bytes: &[u8], home: Option<&Path>) -> Result<Self, ConfigError> {
        let file = File::new(&main.path);
        let sections = parse(&file, bytes)?;
        let mut files = Self {
            is_barmans: main.is_barmans_place
                || sections.iter().any(|section| section.name == BARMAN_SECTION),
            global: Merged {
                name: GLOBAL_SECTION.to_owned(),
                origin: file.at(1),
                lines: Vec::new(),
            },
            main: file,
            sections: Vec::new(),
            notices: Vec::new(),
            not_included: None,
        };
        files.add(&sections, Role::Main)?;
        files.include(home)?;
        Ok(files)
    }

    /// Reads the file that `config-update` writes, if there is one. A file that this user may not read is left out: the
    /// repository, which it is a part of, says why when it is opened.
    ///
    /// With `instead`, these bytes are tried in its place.
    pub(super) fn add_automatic(&mut self, path: &Path, instead: Option<&[u8]>) -> Result<(), ConfigError> {
        if let Some(bytes) = instead {
            let sections = parse(&File::new(path), bytes)?;
            return self.add(&sections, Role::Automatic);
        }
        let bytes = match super::state::read(path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(()),
            Err(source) => {
                return Err(ConfigError::Read {
                    file: path.to_owned(),
                    source,
                });
            }
        };
        let sections = parse(&File::new(path), &bytes)?;
        self.add(&sections, Role::Automatic)
    }

    /// The value of a key of the global section, ready for use.
    fn global_value(&self, key: &str) -> Option<String> {
        let line = self.global.line(key)?;
        given(&Interpolation::of(&self.global, &self.global).value(line).ok()?)
    }

    /// The repository, if the global section names one.
    pub(super) fn repository(&self) -> Option<PathBuf> {
        absolute(&self.global_value("repository")?).ok()
    }

    /// Reads the include directory.
    fn include(&mut self, home: Option<&Path>) -> Result<(), ConfigError> {
        let directory = match self.global_value("configuration_files_directory") {
            Some(value) => {
                let directory = self.directory(&value, home);
                if !is_directory(&directory)? {
                    self.not_included = Some(format!("names no directory: {}", directory.display()));
                    return Ok(());
                }
                directory
            }
            None if self.main.path() == Path::new(SYSTEM_FILE) => SYSTEM_DIRECTORY.into(),
            None => return Ok(()),
        };
        for path in listed(&directory)? {
            match std::fs::read(&path) {
                Ok(bytes) => {
                    let sections = parse(&File::new(&path), &bytes)?;
                    self.add(&sections, Role::Included)?;
                }
                Err(source) => return Err(ConfigError::Read { file: path, source }),
            }
        }
        Ok(())
    }

    /// A directory as it is written: `~` is the home directory, and a relative path begins where the main file is.
    fn directory(&self, value: &str, home: Option<&Path>) -> PathBuf {
        let beside = self.main.path().parent().unwrap_or(Path::new("/"));
        match (value.strip_prefix('~'), home) {
            (Some(""), Some(home)) => home.to_owned(),
            (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
            _ => beside.join(value),
        }
    }

    /// Adds the sections of one file.
    fn add(&mut self, sections: &[Section], role: Role) -> Result<(), ConfigError> {
        self.warn_of_form(sections, role);
        let is_barmans = self.is_barmans && role != Role::Automatic;
        let line = |entry: &Entry, from_default| Line {
            entry: entry.clone(),
            is_barmans,
            from_default,
        };
        let named = |name: &'static str| sections.iter().filter(move |section| section.name == name);
        let defaults: Vec<&Entry> = named(DEFAULT_SECTION)
            .flat_map(|section| &section.entries)
            .collect();
        let global = [BARMAN_SECTION, GLOBAL_SECTION].map(named);
        let global: Vec<&Entry> = global
            .into_iter()
            .flatten()
            .flat_map(|section| &section.entries)
            .collect();
        match (role, global.first()) {
            (Role::Main, _) => {
                for entry in defaults.iter().filter(|entry| super::keys::is_global(&entry.key)) {
                    self.global.set(line(entry, true));
                }
                for entry in global {
                    self.global.set(line(entry, false));
                }
            }
            (_, None) => {}
            (_, Some(entry)) => {
                return Err(ConfigError::At {
                    origin: entry.origin.clone(),
                    message: format!(
                        "An included file has settings for all servers: put '{}' into {}",
                        entry.key,
                        self.main.path().display()
                    ),
                });
            }
        }
        let reserved = [DEFAULT_SECTION, BARMAN_SECTION, GLOBAL_SECTION];
        let mut begun = BTreeSet::new();
        for section in sections
            .iter()
            .filter(|section| !reserved.contains(&section.name.as_str()))
        {
            if role == Role::Automatic && !self.may_add(section) {
                self.notices.push(Notice::of_form(
                    &section.origin,
                    format!(
                        "[{}] is in no other file: what 'config-update' wrote for it is ignored",
                        section.name
                    ),
                ));
                continue;
            }
            let is_first = begun.insert(section.name.as_str());
            let merged = self.merged(section);
            for entry in defaults.iter().filter(|_| is_first) {
                merged.set(line(entry, true));
            }
            for entry in &section.entries {
                merged.set(line(entry, false));
            }
        }
        Ok(())
    }

    /// Whether the file of `config-update` may have this section. It makes no server: one that was taken out of the other
    /// files is not configured any more.
    fn may_add(&self, section: &Section) -> bool {
        let is_model = |entry: &Entry| entry.key == "model" && boolean(&entry.value) == Ok(true);
        section.entries.iter().any(is_model) || self.sections.iter().any(|known| known.name == section.name)
    }

    fn merged(&mut self, section: &Section) -> &mut Merged {
        let at = self.sections.iter().position(|known| known.name == section.name);
        let at = at.unwrap_or_else(|| {
            self.sections.push(Merged {
                name: section.name.clone(),
                origin: section.origin.clone(),
                lines: Vec::new(),
            });
            self.sections.len() - 1
        });
        &mut self.sections[at]
    }

    /// Warns of what Python's reader accepts without a word: text behind a header, a section that is there twice, a key
    /// that is there twice.
    fn warn_of_form(&mut self, sections: &[Section], role: Role) {
        let mut notices = Vec::new();
        let find = |name: &str| sections.iter().find(|section| section.name == name);
        if let (Some(barmans), Some(_)) = (find(BARMAN_SECTION), find(GLOBAL_SECTION)) {
            notices.push(Notice::of_form(
                &barmans.origin,
                format!(
                    "[{BARMAN_SECTION}] and [{GLOBAL_SECTION}] are one section here: where both set a key, \
                     [{GLOBAL_SECTION}] counts"
                ),
            ));
        }
        for (nth, section) in sections.iter().enumerate() {
            let earlier: Vec<&Section> = sections
                .iter()
                .take(nth)
                .filter(|other| other.name == section.name)
                .collect();
            let in_another_file = match role {
                Role::Included => self.sections.iter().find(|known| known.name == section.name),
                Role::Main | Role::Automatic => None,
            };
            let begun = earlier.first().map(|first| &first.origin);
            if let Some(begun) = begun.or(in_another_file.map(|known| &known.origin)) {
                let message = format!("[{}] was already begun at {begun}: both are merged", section.name);
                notices.push(Notice::of_form(&section.origin, message));
            }
            if section.has_ignored_text {
                let message = format!("The text behind [{}] is ignored", section.name);
                notices.push(Notice::of_form(&section.origin, message));
            }
            notices.extend(repeated(&earlier, section));
        }
        self.notices.extend(notices);
    }
}

/// Warnings about the keys of a section that it, or an earlier section of its name, has already set.
fn repeated(earlier: &[&Section], section: &Section) -> Vec<Notice> {
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in earlier.iter().flat_map(|section| &section.entries) {
        lines.insert(&entry.key, entry.origin.line());
    }
    let mut notices = Vec::new();
    for entry in &section.entries {
        if let Some(line) = lines.insert(&entry.key, entry.origin.line()) {
            let message = format!("'{}' was already set on line {line}: this one counts", entry.key);
            notices.push(Notice::of_form(&entry.origin, message));
        }
    }
    notices
}

/// Whether there is a directory of this name. One that cannot be examined is an error: servers may be configured in it.
fn is_directory(path: &Path) -> Result<bool, ConfigError> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(found.is_dir()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(false)
        }
        Err(source) => Err(ConfigError::Read {
            file: path.to_owned(),
            source,
        }),
    }
}

/// Whether a name of the include directory is a file. A link that leads nowhere is an error, for the same reason.
fn is_file(path: &Path) -> Result<bool, ConfigError> {
    let found = std::fs::metadata(path).map_err(|source| ConfigError::Read {
        file: path.to_owned(),
        source,
    })?;
    Ok(found.is_file())
}

/// The files `*.conf` of a directory, sorted by name; none if it does not exist. A directory of that name is left out.
fn listed(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |source| ConfigError::Read {
        file: directory.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        // As a shell's pattern, which leaves hidden names out.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".conf") && !name.starts_with('.') && is_file(&path)? {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The sections of a file.
pub(super) fn parse(file: &File, bytes: &[u8]) -> Result<Vec<Section>, ConfigError> {
    let at = |line, message| ConfigError::At {
        origin: file.at(line),
        message,
    };
    let text = str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        at(
            1 + valid.iter().filter(|b| **b == b'\n').count(),
            "The line is not UTF-8 text".to_owned(),
        )
    })?;
    ini::parse(file, text).map_err(|error| at(error.line, error.message))
}
