//! Entries that have an inode.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use barmanfs_store::{FileMap, TreeReader};

use super::ino::Ino;
use crate::entry::{Body, Child, Content, Directory, Lifetime, SMALL_BYTES, Stat};

/// An entry that the kernel knows by its inode number.
#[derive(Debug)]
pub struct Node {
    /// The number.
    pub ino: Ino,
    /// Its directory; none for the root.
    pub parent: Option<Arc<Node>>,
    /// Its name there.
    pub name: Box<[u8]>,
    /// Distinguishes entries of the same name, see [`Child::identity`].
    pub identity: u64,
    /// Its attributes when it was looked up.
    pub stat: Stat,
    /// What it is.
    pub content: Content,
    /// How long its name leads to this entry.
    pub lifetime: Lifetime,
    /// The map of a small stored file, see [`Child::map`].
    pub(super) map: Option<Arc<FileMap>>,
    /// The kernel was given the whole content. It may have dropped it since; that only costs a read.
    pub(super) handed_over: AtomicBool,
}

impl Node {
    pub(super) fn new(ino: Ino, parent: Option<Arc<Self>>, child: Child) -> Self {
        let Child {
            name,
            identity,
            stat,
            content,
            lifetime,
            map,
        } = child;
        Self {
            ino,
            parent,
            name: name.into_boxed_slice(),
            identity,
            stat,
            content,
            lifetime,
            map,
            handed_over: AtomicBool::new(false),
        }
    }

    /// Whether this is the node of a directory's present entry.
    pub(super) fn is(&self, parent: Ino, child: &Child) -> bool {
        *self.name == *child.name
            && self.identity == child.identity
            && self.parent.as_ref().is_some_and(|mine| mine.ino == parent)
    }

    /// Passes the whole content of a small file that never changes to `give`, once for each node, so that the kernel need
    /// not request it. If the content cannot be read, the kernel's request reports that.
    pub(super) fn hand_over(&self, body: &Body, trees: &TreeReader, give: impl FnOnce(&[u8])) {
        let immutable = self.lifetime == Lifetime::Forever;
        if !immutable || !(1..=SMALL_BYTES).contains(&body.size_bytes()) {
            return;
        }
        if !self.handed_over.swap(true, Ordering::Relaxed)
            && let Ok(Some(bytes)) = body.read_all(trees, SMALL_BYTES)
        {
            give(&bytes);
        }
    }

    /// The directory, if the node is one.
    pub fn directory(&self) -> Option<&Arc<dyn Directory>> {
        match &self.content {
            Content::Directory(directory) => Some(directory),
            Content::File | Content::Symlink(_) => None,
        }
    }

    /// Its name in messages: its path and its backup, because a path like `latest` does not identify the backup.
    pub fn described(&self) -> String {
        let path = self.path();
        let directory = self.directory().or_else(|| self.parent.as_ref()?.directory());
        match directory.and_then(|directory| directory.usage()) {
            Some(usage) => format!("{path} ({usage})"),
            None if path.is_empty() => "the root".to_owned(),
            None => path,
        }
    }

    /// Its path below the mount point, for messages.
    pub fn path(&self) -> String {
        let mut names = vec![self.name.escape_ascii().to_string()];
        let mut at = &self.parent;
        while let Some(node) = at {
            names.push(node.name.escape_ascii().to_string());
            at = &node.parent;
        }
        names.reverse();
        names.join("/").trim_start_matches('/').to_owned()
    }
}
