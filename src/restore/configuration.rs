//! Configuration files from outside the data directory, as on Debian in `/etc/postgresql`: from the backup into a directory
//! of this host. Its server reads them instead of those in the restored data directory.
//!
//! Lines that say where the original keeps its data and these files would make this server run on another data directory,
//! even the original's. So they become comments, and the main file says at its end where things are now.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use barmanfs_catalog::{Backup, Repository};
use barmanfs_fs::confinement::OWN_FILES;
use barmanfs_pg::conf::{AccessReference, ConfLine, quoted};
use barmanfs_store::{Attributes, FileMap};
use serde::Serialize;

use super::destination::refuse_place;
use crate::cluster::configuration_files::{absolute, settings_references};
use crate::error::Error;
use crate::instance;

/// Before a line that does not apply here.
const OF_THE_ORIGINAL: &[u8] = b"# Of the original (barmanfs): ";

/// Ends the name of a file that was there before.
pub(super) const BEFORE: &str = ".before-restore";

/// Where the configuration goes, and what of it.
#[derive(Debug)]
pub(crate) struct ConfigurationTarget {
    directory: PathBuf,
    /// The directory of the main file on the server.
    beside: PathBuf,
    /// The files by their paths in the directory.
    files: BTreeMap<PathBuf, Restorable>,
    /// Paths on the server of files that are not below the directory of its main file.
    left_out: Vec<String>,
    /// The new values of settings in the main file, but for the data directory.
    values: Vec<(&'static str, PathBuf)>,
}

#[derive(Debug)]
struct Restorable {
    attributes: Attributes,
    map: FileMap,
    kind: FileKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    /// `postgresql.conf`.
    Main,
    /// Another file of settings.
    Settings,
    /// Rules of access, or a list that they name.
    Access,
}

/// A file as it is written.
#[derive(Debug)]
pub(super) struct ConfigurationText {
    /// Its path below the directory.
    pub(super) place: PathBuf,
    pub(super) attributes: Attributes,
    pub(super) text: Vec<u8>,
    /// Directories that it includes.
    pub(super) directories: Vec<PathBuf>,
}

/// What was restored.
#[derive(Debug, Serialize)]
pub(crate) struct RestoredConfiguration {
    pub(crate) directory: String,
    /// Paths below the directory.
    pub(crate) files: Vec<String>,
    /// Paths on the server of files that were not restored, because they are elsewhere there.
    pub(crate) left_out: Vec<String>,
}

impl ConfigurationTarget {
    /// Looks up what a backup has. Writes nothing.
    ///
    /// # Errors
    /// When it has no such files, or cannot be read.
    pub(crate) fn new(
        repository: &Repository,
        backup: &Backup,
        directory: PathBuf,
        is_here: bool,
    ) -> Result<Self, Error> {
        let stored = repository.configuration_files(backup)?;
        let main = stored.as_ref().and_then(|stored| stored.config_file.clone());
        let (Some(stored), Some(main)) = (stored, main) else {
            return Err(Error::failed(format!(
                "Backup {} of server {} has no postgresql.conf from outside the data directory",
                backup.id, backup.server
            ))
            .hint("Without --restore-config, the configuration is in the restored directory"));
        };
        if is_here {
            refuse_place(Some(repository), &directory)?;
            refuse_other_server(&directory)?;
        }
        let all = stored.all(&repository.trees())?;
        let settings = files_of_settings(repository, &main, &all)?;
        let beside = Path::new(&main).parent().unwrap_or(Path::new("/"));
        let mut target = Self {
            directory,
            beside: beside.to_path_buf(),
            files: BTreeMap::new(),
            left_out: Vec::new(),
            values: Vec::new(),
        };
        let access = [("hba_file", &stored.hba_file), ("ident_file", &stored.ident_file)];
        for (path, (attributes, map)) in all {
            let named = access.iter().find(|(_, named)| named.as_ref() == Some(&path));
            let place = match named {
                Some(_) => Path::new(&path).file_name().map(Path::new),
                None => Path::new(&path).strip_prefix(beside).ok(),
            };
            let Some(place) = place.map(Path::to_path_buf) else {
                target.left_out.push(path);
                continue;
            };
            let kind = match named {
                _ if path == main => FileKind::Main,
                _ if settings.contains(&path) => FileKind::Settings,
                _ => FileKind::Access,
            };
            if let Some((setting, _)) = named {
                target.values.push((setting, target.directory.join(&place)));
            }
            let file = Restorable {
                attributes,
                map,
                kind,
            };
            if target.files.insert(place, file).is_some() {
                return Err(Error::failed(format!(
                    "Two configuration files of backup {} have the name of {path}",
                    backup.id
                ))
                .hint("Copy them from info/ of a mount"));
            }
        }
        Ok(target)
    }

    /// What is, or would be, restored.
    pub(crate) fn report(&self) -> RestoredConfiguration {
        RestoredConfiguration {
            directory: self.directory.display().to_string(),
            files: self.files.keys().map(|path| path.display().to_string()).collect(),
            left_out: self.left_out.clone(),
        }
    }

    /// The files as they are written, for a server on the data directory `data`.
    ///
    /// # Errors
    /// When the repository cannot be read.
    pub(super) fn texts(
        &self,
        repository: &Repository,
        data: &Path,
    ) -> Result<Vec<ConfigurationText>, Error> {
        let trees = repository.trees();
        let text_of = |(place, file): (&PathBuf, &Restorable)| {
            let mut text = Vec::new();
            let read = trees.reader(file.map.clone()).read_to_end(&mut text);
            read.map_err(|error| {
                Error::failed(format!("Cannot read {} of the backup: {error}", place.display()))
            })?;
            let text = self.adapted(file.kind, &text, data);
            Ok(ConfigurationText {
                directories: match file.kind {
                    FileKind::Access => Vec::new(),
                    FileKind::Main | FileKind::Settings => self.included_directories(place, &text),
                },
                place: place.clone(),
                attributes: file.attributes,
                text,
            })
        };
        self.files.iter().map(text_of).collect()
    }

    /// Writes the files. A file that is there and differs keeps its content under another name.
    ///
    /// # Errors
    /// Which file cannot be written, and why.
    pub(crate) fn write(&self, repository: &Repository, data: &Path) -> Result<(), Error> {
        for file in self.texts(repository, data)? {
            let path = self.directory.join(&file.place);
            let failed = |error: std::io::Error| {
                Error::failed(format!("Cannot write {}: {error}", path.display()))
                    .hint("The data directory is complete. Run the same command again with --delta-restore")
            };
            for directory in &file.directories {
                fs::create_dir_all(directory).map_err(failed)?;
            }
            replace(&path, &file.text, &file.attributes).map_err(failed)?;
        }
        Ok(())
    }

    /// Directories that are included must exist, even with nothing in them.
    fn included_directories(&self, place: &Path, text: &[u8]) -> Vec<PathBuf> {
        let path = self.directory.join(place);
        let named = settings_references(text)
            .into_iter()
            .filter_map(|reference| match reference {
                AccessReference::Directory(named) => absolute(&named, &path.to_string_lossy()),
                _ => None,
            });
        let directories = named.map(PathBuf::from);
        directories
            .filter(|directory| directory.starts_with(&self.directory))
            .collect()
    }

    /// What a line that includes something by an absolute path becomes: the original's files are not for this server.
    fn included(&self, line: &[u8]) -> Option<Vec<u8>> {
        let ConfLine::Setting { name, value } = ConfLine::parse(line) else {
            return None;
        };
        if !matches!(&*name, "include" | "include_if_exists" | "include_dir") || value.first() != Some(&b'/')
        {
            return None;
        }
        let of_the_original = [OF_THE_ORIGINAL, line].concat();
        let named = String::from_utf8_lossy(&value).into_owned();
        Some(match Path::new(&named).strip_prefix(&self.beside) {
            Ok(below) => {
                let here = quoted(&self.directory.join(below).to_string_lossy());
                [format!("{name} = {here}\n").as_bytes(), &of_the_original].concat()
            }
            Err(_) => of_the_original,
        })
    }

    fn adapted(&self, kind: FileKind, text: &[u8], data: &Path) -> Vec<u8> {
        if kind == FileKind::Access {
            return text.to_vec();
        }
        let mut adapted = Vec::with_capacity(text.len());
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            if let Some(included) = self.included(line) {
                adapted.extend_from_slice(&included);
                continue;
            }
            if names_a_place(line) {
                adapted.extend_from_slice(OF_THE_ORIGINAL);
            }
            adapted.extend_from_slice(line);
        }
        if kind == FileKind::Main {
            if adapted.last().is_some_and(|byte| *byte != b'\n') {
                adapted.push(b'\n');
            }
            let values = [("data_directory", data.to_path_buf())].into_iter();
            for (name, path) in values.chain(self.values.iter().cloned()) {
                let value = quoted(&path.to_string_lossy());
                adapted.extend_from_slice(format!("{name} = {value} # restored by barmanfs\n").as_bytes());
            }
        }
        adapted
    }
}

/// The paths on the server of the files that its main file includes, and of that itself.
fn files_of_settings(
    repository: &Repository,
    main: &str,
    all: &BTreeMap<String, (Attributes, FileMap)>,
) -> Result<BTreeSet<String>, Error> {
    let trees = repository.trees();
    let mut found = BTreeSet::new();
    let mut waiting = vec![main.to_owned()];
    while let Some(path) = waiting.pop() {
        let Some((_, map)) = all.get(&path) else {
            continue;
        };
        if !found.insert(path.clone()) {
            continue;
        }
        let mut text = Vec::new();
        let read = trees.reader(map.clone()).read_to_end(&mut text);
        read.map_err(|error| Error::failed(format!("Cannot read {path} of the backup: {error}")))?;
        for reference in settings_references(&text) {
            let (AccessReference::File(named)
            | AccessReference::FileIfExists(named)
            | AccessReference::Directory(named)) = &reference;
            let Some(named) = absolute(named, &path) else {
                continue;
            };
            match reference {
                AccessReference::Directory(_) => {
                    let is_in = |path: &&String| Path::new(path).parent() == Some(Path::new(&named));
                    waiting.extend(all.keys().filter(is_in).cloned());
                }
                _ => waiting.push(named),
            }
        }
    }
    Ok(found)
}

/// A server that runs with the configuration in a directory would come up on other data at its next start.
fn refuse_other_server(directory: &Path) -> Result<(), Error> {
    let text = fs::read(directory.join("postgresql.conf")).unwrap_or_default();
    for data in data_directories(&text) {
        if let Some(pid) = instance::process_in(&data) {
            return Err(Error::failed(format!(
                "A server runs with the configuration in {} (process {pid}, in {})",
                directory.display(),
                data.display()
            ))
            .hint("Stop it first, or name another directory"));
        }
    }
    Ok(())
}

/// The data directories that a configuration names.
pub(super) fn data_directories(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let named = lines.filter_map(|line| match ConfLine::parse(line) {
        ConfLine::Setting { name, value } if name == "data_directory" => {
            Some(PathBuf::from(String::from_utf8_lossy(&value).into_owned()))
        }
        _ => None,
    });
    named.collect()
}

/// Whether a line sets where the server keeps files of its own.
fn names_a_place(line: &[u8]) -> bool {
    let ConfLine::Setting { name, .. } = ConfLine::parse(line) else {
        return false;
    };
    OWN_FILES.iter().any(|(setting, ..)| *setting == name)
}

/// Replaces a file as a whole, durably.
fn replace(path: &Path, text: &[u8], attributes: &Attributes) -> std::io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    match fs::read(path) {
        Ok(there) if there == text => return Ok(()),
        Ok(_) => {
            let mut before = path.as_os_str().to_owned();
            before.push(BEFORE);
            if fs::symlink_metadata(&before).is_err() {
                fs::rename(path, before)?;
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    file.write_all(text)?;
    let permissions = fs::Permissions::from_mode(attributes.mode & 0o777);
    file.as_file().set_permissions(permissions)?;
    if nix::unistd::Uid::effective().is_root() {
        std::os::unix::fs::fchown(file.as_file(), Some(attributes.uid), Some(attributes.gid))?;
    }
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_file_says_where_things_are_now() {
        let target = ConfigurationTarget {
            directory: "/etc/b".into(),
            beside: "/etc/a".into(),
            files: BTreeMap::new(),
            left_out: Vec::new(),
            values: vec![("hba_file", "/etc/b/pg_hba.conf".into())],
        };
        let text =
            b"Data_Directory = '/srv/a'\nport = 5433\ninclude '/srv/x'\ninclude_dir='/etc/a/d'\n hba_file '/etc/a/pg_hba.conf' # x\nwork_mem = 1MB";
        let adapted = target.adapted(FileKind::Main, text, Path::new("/srv/it's"));
        assert_eq!(
            String::from_utf8(adapted).unwrap(),
            "# Of the original (barmanfs): Data_Directory = '/srv/a'\nport = 5433\n\
             # Of the original (barmanfs): include '/srv/x'\n\
             include_dir = '/etc/b/d'\n# Of the original (barmanfs): include_dir='/etc/a/d'\n\
             # Of the original (barmanfs):  hba_file '/etc/a/pg_hba.conf' # x\nwork_mem = 1MB\n\
             data_directory = '/srv/it''s' # restored by barmanfs\n\
             hba_file = '/etc/b/pg_hba.conf' # restored by barmanfs\n"
        );
        let list = b"data_directory = 'a user'\n";
        assert_eq!(target.adapted(FileKind::Access, list, Path::new("/")), list);
    }

    #[test]
    fn a_file_that_was_there_keeps_its_content_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("conf.d/a.conf");
        let attributes = Attributes {
            mode: 0o640,
            uid: 0,
            gid: 0,
            mtime_s: 0,
            mtime_ns: 0,
        };
        for text in ["of before", "restored", "restored", "again"] {
            replace(&path, text.as_bytes(), &attributes).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "again");
        let before = fs::read_to_string(directory.path().join("conf.d/a.conf.before-restore")).unwrap();
        assert_eq!(before, "of before");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }
}
