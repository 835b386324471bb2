//! Configuration files as they are stored.

use std::sync::Arc;

use barmanfs_catalog::ConfigurationFiles;
use barmanfs_live::leads_out;
use barmanfs_pg::conf::location;
use barmanfs_store::{Attributes, DirectoryRef, Entry, Node};

use super::super::changes;
use super::super::tree::TreeDirectory;
use crate::entry::Body;
use crate::error::{Error, Result};

/// Maximum size. A larger file is not a configuration file.
pub(in crate::views) const MAX_BYTES: u64 = 4 << 20;

/// The stored content of a path.
#[derive(Debug)]
pub(in crate::views) enum Stored {
    /// A file.
    Text(Attributes, Vec<u8>),
    /// A file that cannot be read because it is damaged. Opening it fails.
    Damaged,
    /// PostgreSQL might read this, but barmanfs does not, for this reason.
    Unusable(Attributes, &'static str),
    /// Nothing is stored here, or a view does not show it.
    Absent,
}

/// A source of configuration files.
pub(in crate::views) trait Source {
    /// Reads a path in the data directory.
    fn read(&self, path: &[u8]) -> Result<Stored>;

    /// The names in a directory of the data directory that match `is_wanted`, without subdirectories. `None` if the
    /// directory does not exist.
    fn names(&self, path: &[u8], is_wanted: &dyn Fn(&[u8]) -> bool) -> Result<Option<Vec<Vec<u8>>>>;

    /// Whether a view has a file at this path.
    fn has_file(&self, path: &[u8]) -> Result<bool>;

    /// Whether what [`read`](Self::read) returns for this path was kept outside the data directory, so that a view has to
    /// add it.
    fn is_from_outside(&self, _path: &[u8]) -> Result<bool> {
        Ok(false)
    }

    /// The path in the data directory under which a view shows what `named`, as it is written in the file `named_in`, is
    /// on the server; `None` if that is in the data directory, or not stored.
    fn place_of(&self, _named: &[u8], _named_in: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

/// The directory of a view with what its configuration includes by an absolute path.
const INCLUDED: &str = "barmanfs_included";

/// The stored tree below a view, and the configuration files that the server keeps outside its data directory. Those
/// beside the main file are shown at the top, where PostgreSQL looks for what that includes.
#[derive(Debug, Clone, Copy)]
pub(in crate::views) struct TreeSource<'a>(pub(in crate::views) &'a TreeDirectory);

/// Where an entry is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Tree,
    Outside,
}

impl TreeSource<'_> {
    fn entry(&self, path: &[u8]) -> Result<Option<(Entry, Origin)>> {
        // A view shows other content at these paths than is stored.
        if changes::is_of_the_running_server(path) || path.starts_with(b"pg_wal/") {
            return Ok(None);
        }
        if let Some(found) = self.outside(path, true)? {
            return Ok(Some((found, Origin::Outside)));
        }
        let stored = self.in_tree(path)?;
        let is_link = |entry: &Entry| matches!(entry.node, Node::Symlink(_));
        if stored.as_ref().is_none_or(is_link)
            && let Some(found) = self.outside(path, false)?
        {
            return Ok(Some((found, Origin::Outside)));
        }
        Ok(stored.map(|entry| (entry, Origin::Tree)))
    }

    /// The file outside the data directory that a path leads to: of the files that a setting names if `by_setting`,
    /// otherwise of the files beside the main one.
    fn outside(&self, path: &[u8], by_setting: bool) -> Result<Option<Entry>> {
        let (Some(files), Ok(path)) = (self.0.tree.configuration()?, std::str::from_utf8(path)) else {
            return Ok(None);
        };
        let on_server = match (by_setting, path) {
            (true, "postgresql.conf") => files.config_file.clone(),
            (true, "pg_hba.conf") => files.hba_file.clone(),
            (true, "pg_ident.conf") => files.ident_file.clone(),
            (true, _) => None,
            (false, _) => beside_the_main_file(files, path),
        };
        let Some(on_server) = on_server else {
            return Ok(None);
        };
        Ok(files.entry(&self.0.tree.context.trees, &on_server)?)
    }

    fn in_tree(&self, path: &[u8]) -> Result<Option<Entry>> {
        let Some(end) = path.iter().rposition(|byte| *byte == b'/') else {
            return self.0.stored(path);
        };
        let (Some(parent), Some(name)) = (path.get(..end), path.get(end + 1..)) else {
            return Ok(None);
        };
        let Some(parent) = self.directory(parent)? else {
            return Ok(None);
        };
        Ok(self.0.tree.context.trees.lookup(&parent, name)?)
    }

    /// Follows no symbolic links.
    fn directory(&self, path: &[u8]) -> Result<Option<DirectoryRef>> {
        let mut at = self.0.listing.clone();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let found = self.0.tree.context.trees.lookup(&at, name)?;
            let Some(Node::Directory(listing)) = found.map(|entry| entry.node) else {
                return Ok(None);
            };
            at = listing;
        }
        Ok(Some(at))
    }
}

/// Where the server has what a view shows at this path, if that is not in the data directory.
fn beside_the_main_file(files: &ConfigurationFiles, path: &str) -> Option<String> {
    if let Some(path) = path.strip_prefix(INCLUDED) {
        return path.starts_with('/').then(|| path.to_owned());
    }
    let directory = match &files.config_file {
        Some(file) => file.rsplit_once('/')?.0,
        None => files.data_directory.trim_end_matches('/'),
    };
    Some(format!("{directory}/{path}"))
}

/// The absolute path on the server of what a file of a view names.
fn on_server(files: &ConfigurationFiles, named: &[u8], named_in: &[u8]) -> Option<String> {
    let named_in = std::str::from_utf8(named_in).ok()?;
    let named_in = match named_in {
        "postgresql.conf" => files.config_file.clone(),
        _ => None,
    }
    .or_else(|| beside_the_main_file(files, named_in))?;
    let path = match named.strip_prefix(b"/") {
        Some(path) => location(path, b""),
        None => location(named, named_in.trim_start_matches('/').as_bytes()),
    };
    Some(format!("/{}", String::from_utf8(path?).ok()?))
}

impl Source for TreeSource<'_> {
    fn read(&self, path: &[u8]) -> Result<Stored> {
        let Some((Entry { attributes, node, .. }, origin)) = self.entry(path)? else {
            return Ok(Stored::Absent);
        };
        let attributes = match origin {
            Origin::Tree => attributes,
            // The server's may not let the owner of a copy read it.
            Origin::Outside => self.0.tree.attributes(false),
        };
        let map = match node {
            Node::File(map) => map,
            Node::Symlink(target) if leads_out(&target) => return Ok(Stored::Absent),
            Node::Symlink(_) => return Ok(Stored::Unusable(attributes, "it is a symbolic link")),
            Node::Directory(_) => return Ok(Stored::Absent),
        };
        match Body::Stored(Arc::new(map)).read_all(&self.0.tree.context.trees, MAX_BYTES) {
            Ok(Some(text)) => Ok(Stored::Text(attributes, text)),
            Ok(None) => Ok(Stored::Unusable(
                attributes,
                "it is too large to be a configuration file",
            )),
            // Without these, a copy starts with what barmanfs makes.
            Err(Error::Store(_)) if origin == Origin::Outside => Ok(Stored::Absent),
            Err(Error::Store(_)) => Ok(Stored::Damaged),
            Err(error) => Err(error),
        }
    }

    fn names(&self, path: &[u8], is_wanted: &dyn Fn(&[u8]) -> bool) -> Result<Option<Vec<Vec<u8>>>> {
        let Some(directory) = self.directory(path)? else {
            let (Some(files), Ok(path)) = (self.0.tree.configuration()?, std::str::from_utf8(path)) else {
                return Ok(None);
            };
            let Some(on_server) = beside_the_main_file(files, path) else {
                return Ok(None);
            };
            let names = files.names(&self.0.tree.context.trees, &on_server)?;
            return Ok(names.map(|names| names.into_iter().filter(|name| is_wanted(name)).collect()));
        };
        let mut names = Vec::new();
        for entry in self.0.tree.context.trees.entries(&directory) {
            let entry = entry?;
            if is_wanted(&entry.name) && !matches!(entry.node, Node::Directory(_)) {
                names.push(entry.name);
            }
        }
        Ok(Some(names))
    }

    fn has_file(&self, path: &[u8]) -> Result<bool> {
        let entry = self.entry(path)?;
        Ok(
            entry
                .is_some_and(|(entry, origin)| origin == Origin::Tree && matches!(entry.node, Node::File(_))),
        )
    }

    fn is_from_outside(&self, path: &[u8]) -> Result<bool> {
        let entry = self.entry(path)?;
        Ok(entry.is_some_and(|(_, origin)| origin == Origin::Outside))
    }

    fn place_of(&self, named: &[u8], named_in: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(files) = self.0.tree.configuration()? else {
            return Ok(None);
        };
        let Some(named) = on_server(files, named, named_in) else {
            return Ok(None);
        };
        let found = files.entry(&self.0.tree.context.trees, &named)?;
        Ok(found.map(|_| format!("{INCLUDED}{named}").into_bytes()))
    }
}
