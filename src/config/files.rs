//! The files of a configuration: the main one, those of the include directory, and the file that `config-update` writes.
//! Later ones win key by key. Line numbers in messages are those of the file in which the line is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use barmanfs_bucket::Location;

use super::bucket;
use super::ini::{self, Contents, Entry, Malformed, Section};
use super::interpolation::Interpolation;
use super::origin::{File, Notice, Origin, Problem};
use super::state::{self, Missing};
use super::values::{absolute, boolean, given};

/// The section of barmanfs itself.
pub(super) const GLOBAL_SECTION: &str = "barmanfs";
/// Barman's name for it.
pub(super) const BARMAN_SECTION: &str = "barman";
/// Supplies keys to all sections of its file.
pub(super) const DEFAULT_SECTION: &str = "DEFAULT";

/// The names that no server has.
const RESERVED: [&str; 3] = [DEFAULT_SECTION, BARMAN_SECTION, GLOBAL_SECTION];

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
    /// Why what it says is not known in full.
    pub(super) problems: Vec<Problem>,
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
    /// What is wrong with the settings of all servers.
    pub(super) of_all: Vec<Problem>,
    /// Files, or parts of them, that cannot be read: there may be servers in them.
    pub(super) lost: Vec<Problem>,
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
    pub(super) fn read(main: &Candidate, bytes: &[u8], home: Option<&Path>) -> Self {
        let file = File::new(&main.path);
        let contents = ini::parse(&file, bytes);
        let is_of_barman = |section: &Section| section.name.as_deref() == Some(BARMAN_SECTION);
        let mut files = Self {
            is_barmans: main.is_barmans_place || contents.sections.iter().any(is_of_barman),
            global: Merged {
                name: GLOBAL_SECTION.to_owned(),
                origin: file.at(1),
                lines: Vec::new(),
                problems: Vec::new(),
            },
            main: file,
            sections: Vec::new(),
            notices: Vec::new(),
            not_included: None,
            of_all: Vec::new(),
            lost: Vec::new(),
        };
        files.add(&contents, Role::Main);
        if let Err(problem) = files.include(home) {
            files.lost.push(problem);
        }
        files
    }

    /// Reads the file that `config-update` writes, if there is one. A file that this user may not read is left out: the
    /// repository, which it is a part of, says why when it is opened.
    ///
    /// With `instead`, these bytes are tried in its place.
    pub(super) fn add_automatic(&mut self, path: &Path, instead: Option<&[u8]>) {
        let file = File::new(path);
        let read = match instead {
            Some(bytes) => Ok(Some(bytes.to_owned())),
            None => state::read(path),
        };
        let bytes = match read {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(error) => {
                let message = format!("What 'config-update' has changed cannot be read: {error}");
                self.of_all.push(Problem::of_form(file.at(1), message));
                return;
            }
        };
        let contents = ini::parse(&file, &bytes);
        self.add(&contents, Role::Automatic);
        self.mark_missing(&file, state::missing(&bytes, &contents.sections));
    }

    /// What the file of `config-update` said of a server is not known where the file is not as it was written.
    fn mark_missing(&mut self, file: &File, missing: Missing) {
        let message = "A part of what 'config-update' has changed is lost: remove the file, then make the changes again";
        let problem = Problem::of_form(file.at(1), message.to_owned());
        let names = match missing {
            Missing::Of(names) if names.is_empty() => return,
            Missing::Of(names) => names,
            Missing::All => {
                self.of_all.push(problem);
                return;
            }
        };
        let is_server = |name: &String| {
            let found = self.sections.iter().find(|section| section.name == *name);
            found.is_some_and(|section| !super::model::is_model(section))
        };
        // A server may be switched to a model that is lost.
        if !names.iter().all(is_server) {
            self.of_all.push(problem);
            return;
        }
        for section in &mut self.sections {
            if names.contains(&section.name) {
                section.problems.push(problem.clone());
            }
        }
    }

    /// The value of a key of the global section, ready for use.
    fn global_value(&self, key: &str) -> Option<String> {
        let line = self.global.line(key)?;
        given(&Interpolation::of(&self.global, &self.global).value(line).ok()?)
    }

    /// The repository, if the global section names one.
    pub(super) fn repository(&self) -> Option<PathBuf> {
        let value = self.global_value("repository")?;
        match Location::is_url(&value) {
            true => Some(bucket::home_in(&self.cache(), &Location::parse(&value).ok()?)),
            false => absolute(&value).ok(),
        }
    }

    /// Where the caches of repositories in object stores are.
    pub(super) fn cache(&self) -> PathBuf {
        let value = self.global_value("cache");
        let given = value.and_then(|value| absolute(&value).ok());
        given.unwrap_or_else(|| bucket::CACHE.into())
    }

    /// Reads the include directory.
    fn include(&mut self, home: Option<&Path>) -> Result<(), Problem> {
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
            match read(&path) {
                Ok(Some(bytes)) => self.add(&ini::parse(&File::new(&path), &bytes), Role::Included),
                Ok(None) => {}
                Err(error) => self.lost.push(unreadable(&path, &error)),
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
    fn add(&mut self, contents: &Contents, role: Role) {
        let sections = named(&contents.sections);
        self.warn_of_form(&sections, role);
        let is_barmans = self.is_barmans && role != Role::Automatic;
        let line = |entry: &Entry, from_default| Line {
            entry: entry.clone(),
            is_barmans,
            from_default,
        };
        let called = |name: &'static str| sections.iter().filter(move |(known, _)| *known == name);
        let entries = |name| called(name).flat_map(|(_, section)| &section.entries);
        let defaults: Vec<&Entry> = entries(DEFAULT_SECTION).collect();
        let global: Vec<&Entry> = entries(BARMAN_SECTION).chain(entries(GLOBAL_SECTION)).collect();
        let mut problems = problems_of_all(contents);
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
            (_, Some(entry)) => problems.push(Problem::of_form(
                entry.origin.clone(),
                format!(
                    "An included file has settings for all servers: put '{}' into {}",
                    entry.key,
                    self.main.path().display()
                ),
            )),
        }
        let mut begun = BTreeSet::new();
        for (name, section) in sections.iter().filter(|(name, _)| !RESERVED.contains(name)) {
            if role == Role::Automatic && !self.may_add(name, section) {
                let message =
                    format!("[{name}] is in no other file: what 'config-update' wrote for it is ignored");
                self.notices.push(Notice::of_form(&section.origin, message));
                continue;
            }
            let is_first = begun.insert(*name);
            let merged = self.merged(name, &section.origin);
            for entry in defaults.iter().filter(|_| is_first) {
                merged.set(line(entry, true));
            }
            for entry in &section.entries {
                merged.set(line(entry, false));
            }
            merged
                .problems
                .extend(section.malformed.iter().map(Problem::malformed));
        }
        self.assign(&begun, problems, role);
        let nameless = contents.sections.iter().filter(|section| section.name.is_none());
        let lost = nameless.flat_map(|section| section.malformed.iter().map(Problem::malformed));
        match role {
            Role::Automatic => self.of_all.extend(lost),
            Role::Main | Role::Included => self.lost.extend(lost),
        }
    }

    /// Gives the problems of a whole file to those that it may be about.
    fn assign(&mut self, names: &BTreeSet<&str>, problems: Vec<Problem>, role: Role) {
        match role {
            Role::Included if names.is_empty() => self.lost.extend(problems),
            Role::Included => {
                for section in &mut self.sections {
                    if names.contains(section.name.as_str()) {
                        section.problems.extend(problems.iter().cloned());
                    }
                }
            }
            Role::Main | Role::Automatic => self.of_all.extend(problems),
        }
    }

    /// Whether the file of `config-update` may have this section. It makes no server: one that was taken out of the other
    /// files is not configured any more.
    fn may_add(&self, name: &str, section: &Section) -> bool {
        let is_model = |entry: &Entry| entry.key == "model" && boolean(&entry.value) == Ok(true);
        section.entries.iter().any(is_model) || self.sections.iter().any(|known| known.name == name)
    }

    fn merged(&mut self, name: &str, origin: &Origin) -> &mut Merged {
        let at = self.sections.iter().position(|known| known.name == name);
        let at = at.unwrap_or_else(|| {
            self.sections.push(Merged {
                name: name.to_owned(),
                origin: origin.clone(),
                lines: Vec::new(),
                problems: Vec::new(),
            });
            self.sections.len() - 1
        });
        &mut self.sections[at]
    }

    /// Warns of what Python's reader accepts without a word: text behind a header, a section that is there twice, a key
    /// that is there twice.
    fn warn_of_form(&mut self, sections: &[(&str, &Section)], role: Role) {
        let mut notices = Vec::new();
        let find = |name: &str| sections.iter().find(|(known, _)| *known == name);
        if let (Some((_, barmans)), Some(_)) = (find(BARMAN_SECTION), find(GLOBAL_SECTION)) {
            notices.push(Notice::of_form(
                &barmans.origin,
                format!(
                    "[{BARMAN_SECTION}] and [{GLOBAL_SECTION}] are one section here: where both set a key, \
                     [{GLOBAL_SECTION}] counts"
                ),
            ));
        }
        for (nth, (name, section)) in sections.iter().enumerate() {
            let earlier = sections.iter().take(nth).filter(|(other, _)| other == name);
            let earlier: Vec<&Section> = earlier.map(|(_, section)| *section).collect();
            let in_another_file = match role {
                Role::Included => self.sections.iter().find(|known| known.name == *name),
                Role::Main | Role::Automatic => None,
            };
            let begun = earlier.first().map(|first| &first.origin);
            if let Some(begun) = begun.or(in_another_file.map(|known| &known.origin)) {
                let message = format!("[{name}] was already begun at {begun}: both are merged");
                notices.push(Notice::of_form(&section.origin, message));
            }
            if section.has_ignored_text {
                let message = format!("The text behind [{name}] is ignored");
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

/// The sections whose names can be read.
fn named(sections: &[Section]) -> Vec<(&str, &Section)> {
    let named = |section| Some((Section::name(section)?, section));
    sections.iter().filter_map(named).collect()
}

/// What is wrong with the lines that concern each section of a file.
fn problems_of_all(contents: &Contents) -> Vec<Problem> {
    let named = named(&contents.sections).into_iter();
    let of_sections = named
        .filter(|(name, _)| RESERVED.contains(name))
        .flat_map(|(_, section)| &section.malformed);
    let malformed = contents.stray.iter().chain(of_sections);
    malformed.map(Problem::malformed).collect()
}

impl Problem {
    /// A line that is not INI. It may have been any key.
    fn malformed(line: &Malformed) -> Self {
        Self::of_form(line.origin.clone(), line.message.to_owned())
    }
}

/// A file that cannot be read.
fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem::of_form(File::new(path).at(1), format!("The file cannot be read: {error}"))
}

/// The bytes of an included file; `None` if this is no file.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(path)?.is_file() {
        true => state::bytes(std::fs::File::open(path)?).map(Some),
        false => Ok(None),
    }
}

/// Whether there is a directory of this name. One that cannot be examined is an error: servers may be configured in it.
fn is_directory(path: &Path) -> Result<bool, Problem> {
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
        Err(error) => Err(unreadable(path, &error)),
    }
}

/// The names `*.conf` of a directory, sorted; none if it does not exist.
fn listed(directory: &Path) -> Result<Vec<PathBuf>, Problem> {
    let failed = |error| unreadable(directory, &error);
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
        if name.ends_with(".conf") && !name.starts_with('.') {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
