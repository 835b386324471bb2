//! Configuration files that a base backup does not have: those outside the data directory, with all they include, and
//! those that are symbolic links.
//!
//! They are read when the data has been copied. What cannot be read is named in a warning, and the backup counts
//! without it: PostgreSQL starts on it with a minimal configuration.

mod host;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use barmanfs_catalog::{Backup, BackupRun, ConfigurationFiles};
use barmanfs_pg::SystemId;
use barmanfs_pg::conf::{AccessReference, access_references, is_taken_by_include_dir};
use barmanfs_store::layout::DATA_WINDOW_BYTES;
use barmanfs_store::{Attributes, DirectoryRef, Node, TreeReader};

use crate::cluster::ConfigurationPaths;
use crate::cluster::configuration_files::{absolute, settings_references};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::moment;
use host::{Host, HostFile, Unread};

/// Files that a server reads from its data directory by default.
const DEFAULT_FILES: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

/// Size limit of one file. A larger one is not a configuration file.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// Limit of all kept files together: they are in memory until the last one has been read.
const TOTAL_MAX_BYTES: usize = 16 << 20;

/// Limit of the files that are looked at: `include_dir` may name any directory.
const FILES_MAX: usize = 1000;

/// Permissions of files whose own are unknown: as Debian's, since they may have secrets.
const MODE: u32 = 0o640;

/// Files that the backup lacks, by their paths, each with the reason.
pub(crate) type Missing = BTreeMap<String, String>;

/// Reads the configuration files that the tree of `run` lacks, and stores them with it. Returns those that could not be
/// read. `paths` is `None` if the role may not see where they are.
///
/// # Errors
/// When the repository cannot be read or written.
pub(crate) fn keep(
    run: &mut BackupRun,
    trees: TreeReader,
    server: &ServerConfig,
    system_id: SystemId,
    paths: Option<&ConfigurationPaths>,
) -> Result<Missing, Error> {
    let Some((root, attributes)) = run.stored_root() else {
        return Ok(Missing::new());
    };
    let Some(paths) = paths else {
        return missing_by_default(&trees, &root);
    };
    let like = Attributes {
        mode: MODE,
        ..attributes
    };
    let mut walk = Walk {
        paths,
        trees,
        root,
        like,
        host: LazyHost {
            server,
            system_id,
            data_directory: &paths.data_directory,
            host: None,
        },
        kept: BTreeMap::new(),
        kept_bytes: 0,
        missing: Missing::new(),
        seen: BTreeSet::new(),
        waiting: Vec::new(),
    };
    walk.all()?;
    let Walk { kept, missing, .. } = walk;
    if !kept.is_empty() {
        store(run, attributes, paths, &kept)?;
    }
    Ok(missing)
}

/// Logs which files a backup lacks.
pub(crate) fn warn(backup: &Backup, missing: &Missing) {
    if missing.is_empty() {
        return;
    }
    let files: Vec<String> = missing
        .iter()
        .map(|(path, why)| format!("{} ({why})", path.escape_debug()))
        .collect();
    tracing::warn!(
        "Backup {} of server {} does not have configuration files that the server reads: {}. Keep a copy of them. Without \
         postgresql.conf or pg_hba.conf, a recovered server starts with a minimal configuration instead",
        backup.id,
        backup.server,
        files.join(", ")
    );
}

/// Which of the usual files are not in the data directory.
fn missing_by_default(trees: &TreeReader, root: &DirectoryRef) -> Result<Missing, Error> {
    let mut missing = Missing::new();
    for name in DEFAULT_FILES {
        let found = trees.lookup(root, name.as_bytes());
        if found.map_err(barmanfs_catalog::Error::from)?.is_none() {
            let why =
                "it is not in the data directory, and where it is cannot be seen: GRANT pg_read_all_settings";
            missing.insert(name.to_owned(), why.to_owned());
        }
    }
    Ok(missing)
}

fn store(
    run: &mut BackupRun,
    root: Attributes,
    paths: &ConfigurationPaths,
    kept: &BTreeMap<String, HostFile>,
) -> Result<(), Error> {
    let files = kept.iter();
    let files = files.map(|(path, file)| (path.as_str(), file.attributes, file.text.as_slice()));
    let directory = store_files(run, root, files)?;
    let if_kept = |path: &String| {
        let path = absolute(path.as_bytes(), path)?;
        kept.contains_key(&path).then_some(path)
    };
    run.set_configuration(ConfigurationFiles {
        directory,
        read_at: moment::now(),
        data_directory: paths.data_directory.clone(),
        config_file: if_kept(&paths.config_file),
        hba_file: if_kept(&paths.hba_file),
        ident_file: if_kept(&paths.ident_file),
    });
    Ok(())
}

/// Stores configuration files with a backup; each has its absolute path on the server. Returns their tree.
///
/// # Errors
/// When they cannot be stored.
pub(crate) fn store_files<'a>(
    run: &BackupRun,
    root: Attributes,
    files: impl Iterator<Item = (&'a str, Attributes, &'a [u8])>,
) -> Result<DirectoryRef, Error> {
    let tree = run.configuration_tree()?;
    for (path, attributes, content) in files {
        let path = path.trim_start_matches('/').as_bytes();
        let mut sink = tree.file(path, attributes, content.len() as u64, DATA_WINDOW_BYTES)?;
        sink.write(content)?;
        sink.finish()?;
    }
    Ok(tree.finish(root)?.root)
}

/// The connection to the host, opened when the first file is needed: most servers keep all in the data directory.
struct LazyHost<'a> {
    server: &'a ServerConfig,
    system_id: SystemId,
    data_directory: &'a str,
    host: Option<Host>,
}

impl LazyHost<'_> {
    fn get(&mut self) -> &mut Host {
        self.host
            .get_or_insert_with(|| Host::of(self.server, self.system_id, self.data_directory))
    }
}

/// What a file is: of settings, or of rules of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Syntax {
    Settings,
    Access,
}

struct Walk<'a> {
    paths: &'a ConfigurationPaths,
    trees: TreeReader,
    /// The backed-up data directory.
    root: DirectoryRef,
    like: Attributes,
    host: LazyHost<'a>,
    kept: BTreeMap<String, HostFile>,
    kept_bytes: usize,
    missing: Missing,
    seen: BTreeSet<String>,
    waiting: Vec<(String, Syntax)>,
}

impl Walk<'_> {
    fn all(&mut self) -> Result<(), Error> {
        for (path, has_settings) in self.paths.files() {
            let syntax = if has_settings {
                Syntax::Settings
            } else {
                Syntax::Access
            };
            // Older versions leave ".." in it.
            let path = absolute(path.as_bytes(), path).unwrap_or_else(|| path.to_owned());
            self.wait_for(path, syntax);
        }
        while let Some((path, syntax)) = self.waiting.pop() {
            if let Some(text) = self.read(&path)? {
                self.follow(&path, syntax, &text)?;
            }
        }
        Ok(())
    }

    fn wait_for(&mut self, path: String, syntax: Syntax) {
        if self.seen.len() >= FILES_MAX {
            self.missing
                .insert(path, format!("there are more than {FILES_MAX} files"));
        } else if self.seen.insert(path.clone()) {
            self.waiting.push((path, syntax));
        }
    }

    /// The text of a file, from the backup if that has it.
    fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        if let Some(name) = self.paths.in_data_directory(path)
            && let Some(text) = self.stored(name)?
        {
            return Ok(text);
        }
        match self.host.get().read(path, &self.like) {
            Ok(file) if self.kept_bytes + file.text.len() > TOTAL_MAX_BYTES => {
                let why = format!("all files together have more than {} MiB", TOTAL_MAX_BYTES >> 20);
                self.missing.insert(path.to_owned(), why);
                Ok(None)
            }
            Ok(file) => {
                let text = file.text.clone();
                self.kept_bytes += text.len();
                self.kept.insert(path.to_owned(), file);
                Ok(Some(text))
            }
            // The server has started without it, or it has been removed since.
            Err(Unread::Absent) => {
                if self.paths.files().iter().any(|(named, _)| *named == path) {
                    self.missing.insert(path.to_owned(), "it is not there".to_owned());
                }
                Ok(None)
            }
            Err(Unread::Refused(why)) => {
                self.missing.insert(path.to_owned(), why);
                Ok(None)
            }
        }
    }

    /// A file of the backup; `None` if it has none, and an inner `None` if that is no configuration file.
    fn stored(&self, name: &str) -> Result<Option<Option<Vec<u8>>>, Error> {
        let found = self.trees.find(&self.root, name.as_bytes());
        let found = found.map_err(barmanfs_catalog::Error::from)?;
        let Some(Node::File(map)) = found.map(|entry| entry.node) else {
            return Ok(None);
        };
        if map.size_bytes > FILE_MAX_BYTES {
            return Ok(Some(None));
        }
        let mut text = Vec::new();
        let read = self.trees.reader(map).read_to_end(&mut text);
        read.map_err(|error| Error::failed(format!("Cannot read {name} of the backup: {error}")))?;
        Ok(Some(Some(text)))
    }

    /// Queues the files that a file names.
    fn follow(&mut self, path: &str, syntax: Syntax, text: &[u8]) -> Result<(), Error> {
        let references = match syntax {
            Syntax::Settings => settings_references(text),
            Syntax::Access => access_references(text),
        };
        for reference in references {
            let (AccessReference::File(named)
            | AccessReference::FileIfExists(named)
            | AccessReference::Directory(named)) = &reference;
            let Some(named) = absolute(named, path) else {
                continue;
            };
            if !matches!(reference, AccessReference::Directory(_)) {
                self.wait_for(named, syntax);
                continue;
            }
            for name in self.names(&named)? {
                if is_taken_by_include_dir(name.as_bytes()) {
                    self.wait_for(format!("{named}/{name}"), syntax);
                }
            }
        }
        Ok(())
    }

    /// The names in a directory, of the backup if that has it.
    fn names(&mut self, path: &str) -> Result<Vec<String>, Error> {
        if let Some(name) = self.paths.in_data_directory(path) {
            let found = self.trees.find(&self.root, name.as_bytes());
            let found = found.map_err(barmanfs_catalog::Error::from)?;
            if let Some(Node::Directory(directory)) = found.map(|entry| entry.node) {
                let names = self.trees.entries(&directory);
                let names = names.map(|entry| Ok(String::from_utf8_lossy(&entry?.name).into_owned()));
                let names = names.collect::<Result<_, barmanfs_store::Error>>();
                return Ok(names.map_err(barmanfs_catalog::Error::from)?);
            }
        }
        Ok(match self.host.get().names(path) {
            Ok(names) => names,
            Err(Unread::Absent) => Vec::new(),
            Err(Unread::Refused(why)) => {
                self.missing.insert(path.to_owned(), why);
                Vec::new()
            }
        })
    }
}
