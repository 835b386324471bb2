//! The tree that is restored: a view, opened in this process.

use std::sync::Arc;

use barmanfs_catalog::{Backup, Repository};
use barmanfs_fs::entry::{Child, Content, Directory, Stat};
use barmanfs_fs::views::{Context, ViewOptions, root};

use super::agent::far::FarFile;
use super::source::{ContentReader, FileContent, TreeSource};
use crate::error::Error;

/// The tree of one backup, as it is restored.
#[derive(Debug)]
pub(crate) struct ViewTree {
    pub(crate) backup: Backup,
    pub(super) root: Arc<dyn Directory>,
    pub(crate) stat: Stat,
    pub(super) source: TreeSource,
}

/// A file of the tree. Its content is looked up when it is opened.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    directory: Arc<dyn Directory>,
    pub(crate) name: Vec<u8>,
    pub(crate) stat: Stat,
    /// Below the root, with slashes.
    pub(crate) path: Vec<u8>,
    source: TreeSource,
}

/// Receives the entries of a tree, a directory before its entries.
pub(crate) trait Visitor {
    /// A directory follows. Not called for the root.
    fn enter(&mut self, name: &[u8], stat: &Stat) -> Result<(), Error>;
    /// All entries of the present directory have come. Not called for the root.
    fn leave(&mut self) -> Result<(), Error>;
    /// A file of the present directory.
    fn file(&mut self, file: SourceFile) -> Result<(), Error>;
    /// A symbolic link of the present directory.
    fn link(&mut self, name: &[u8], stat: &Stat, target: &[u8]) -> Result<(), Error>;
}

impl ViewTree {
    /// Opens the view at these names below the root of a mount.
    ///
    /// # Errors
    /// When the repository cannot be read, or has no such view.
    pub(crate) fn open(
        repository: &Repository,
        backup: Backup,
        options: ViewOptions,
        names: &[&str],
    ) -> Result<Self, Error> {
        let context = Context::new(repository.clone(), options);
        let mut child = root(&context);
        for name in names {
            let Content::Directory(directory) = &child.content else {
                return Err(gone(names));
            };
            child = directory.lookup(name.as_bytes())?.ok_or_else(|| gone(names))?;
        }
        let Content::Directory(root) = child.content else {
            return Err(gone(names));
        };
        Ok(Self {
            backup,
            root,
            stat: child.stat,
            source: TreeSource::Own(context.trees().clone()),
        })
    }

    /// The user to whom the data directory belongs.
    pub(crate) fn owner(&self) -> u32 {
        self.stat.uid
    }

    /// The key of chunk ids, if they have one.
    pub(crate) fn chunk_key(&self) -> Option<&barmanfs_store::Secret> {
        match &self.source {
            TreeSource::Own(trees) => trees.chunks().chunk_hash().key(),
            TreeSource::Far(_) => None,
        }
    }

    /// The content of a small file of the tree; `None` if there is none, or it is larger.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read_small(&self, path: &[u8], limit_bytes: u64) -> Result<Option<Vec<u8>>, Error> {
        let TreeSource::Own(trees) = &self.source else {
            return Ok(None);
        };
        match self.file(path)? {
            Some(file) => Ok(file.directory.open(&file.name)?.read_all(trees, limit_bytes)?),
            None => Ok(None),
        }
    }

    /// Walks the tree.
    pub(crate) fn walk(&self, visitor: &mut dyn Visitor) -> Result<(), Error> {
        walk(&self.root, (b"", &self.source), visitor)
    }

    /// Walks what is in one of its directories; nothing if there is no such directory.
    pub(crate) fn walk_below(&self, path: &[u8], visitor: &mut dyn Visitor) -> Result<(), Error> {
        match self.directory(path)? {
            Some(directory) => walk(&directory, (path, &self.source), visitor),
            None => Ok(()),
        }
    }

    /// The file at a path; `None` if there is none.
    pub(crate) fn file(&self, path: &[u8]) -> Result<Option<SourceFile>, Error> {
        let mut directory = Arc::clone(&self.root);
        let mut names = path.split(|&byte| byte == b'/').peekable();
        while let Some(name) = names.next() {
            let Some(child) = directory.lookup(name)? else {
                return Ok(None);
            };
            directory = match child.content {
                Content::Directory(below) if names.peek().is_some() => below,
                Content::File if names.peek().is_none() => {
                    return Ok(Some(SourceFile {
                        directory,
                        name: child.name,
                        stat: child.stat,
                        path: path.to_vec(),
                        source: self.source.clone(),
                    }));
                }
                _ => return Ok(None),
            };
        }
        Ok(None)
    }

    /// The directory at a path; `None` if there is none.
    pub(super) fn directory(&self, path: &[u8]) -> Result<Option<Arc<dyn Directory>>, Error> {
        let mut directory = Arc::clone(&self.root);
        for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            directory = match directory.lookup(name)?.map(|child| child.content) {
                Some(Content::Directory(below)) => below,
                _ => return Ok(None),
            };
        }
        Ok(Some(directory))
    }
}

fn gone(names: &[&str]) -> Error {
    Error::failed(format!("{} is no longer there", names.join("/")))
        .hint("A backup or WAL was removed meanwhile: run the command again")
}

/// PostgreSQL nests a few directories; a path has at most 4096 bytes, which bounds the depth.
fn walk(
    directory: &Arc<dyn Directory>,
    (above, source): (&[u8], &TreeSource),
    visitor: &mut dyn Visitor,
) -> Result<(), Error> {
    for child in directory.entries()? {
        let Child {
            name, stat, content, ..
        } = child?;
        let path = match above {
            [] => name.clone(),
            above => [above, name.as_slice()].join(&b'/'),
        };
        match content {
            Content::Directory(below) => {
                visitor.enter(&name, &stat)?;
                walk(&below, (&path, source), visitor)?;
                visitor.leave()?;
            }
            Content::File => visitor.file(SourceFile {
                directory: Arc::clone(directory),
                name,
                stat,
                path,
                source: source.clone(),
            })?,
            Content::Symlink(target) => visitor.link(&name, &stat, &target)?,
        }
    }
    Ok(())
}

impl SourceFile {
    /// Reads its content from front to back.
    pub(crate) fn read(&self) -> Result<ContentReader, Error> {
        self.open().map(FileContent::reader)
    }

    /// Its content.
    pub(super) fn open(&self) -> Result<FileContent, Error> {
        let body = match &self.source {
            TreeSource::Own(trees) => FileContent::Own(self.directory.open(&self.name)?, trees.clone()),
            TreeSource::Far(tree) => FileContent::Far(FarFile::new(tree, &self.path, self.stat.size_bytes)),
        };
        if body.size_bytes() == self.stat.size_bytes {
            return Ok(body);
        }
        Err(Error::failed(format!(
            "{} has changed meanwhile: it has {} bytes instead of {}",
            String::from_utf8_lossy(&self.name),
            body.size_bytes(),
            self.stat.size_bytes
        ))
        .hint("Run the command again"))
    }
}
