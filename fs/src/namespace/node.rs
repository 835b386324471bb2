//! What a directory has under a name, before and after it has an inode.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::ino::Ino;
use crate::views::Directory;

/// How long what was said about a name stays true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// For as long as the mount lives: what is in a backup never changes.
    Forever,
    /// Until a notification says otherwise; asked again after a second all the same, should one be lost.
    UntilNotified,
    /// Not at all: asked anew each time.
    Never,
}

impl Lifetime {
    /// How long the kernel may answer by itself.
    pub fn duration(self) -> Duration {
        match self {
            // Any number the kernel takes for "always": about 30 years.
            Self::Forever => Duration::from_secs(1 << 30),
            Self::UntilNotified => Duration::from_secs(1),
            Self::Never => Duration::ZERO,
        }
    }
}

/// What `stat` shows, apart from the inode number and the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970.
    pub mtime_s: i64,
    /// Modification time: nanoseconds within the second.
    pub mtime_ns: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes that are not in holes.
    pub allocated_bytes: u64,
}

/// What an entry is.
#[derive(Debug, Clone)]
pub enum Content {
    /// A directory.
    Directory(Arc<dyn Directory>),
    /// A regular file; its directory opens it.
    File,
    /// A symbolic link and where it points.
    Symlink(Arc<[u8]>),
}

/// One entry of a directory, as a view makes it.
#[derive(Debug, Clone)]
pub struct Child {
    /// Its name.
    pub name: Vec<u8>,
    /// Tells apart what stands under the same name at different times: another identity is another inode.
    pub identity: u64,
    /// Its attributes.
    pub stat: Stat,
    /// What it is.
    pub content: Content,
    /// How long the name stands for this.
    pub lifetime: Lifetime,
}

/// An entry the kernel knows by its inode number.
#[derive(Debug)]
pub struct Node {
    /// The number.
    pub ino: Ino,
    /// Its directory; none for the root.
    pub parent: Option<Arc<Node>>,
    /// Its name there.
    pub name: Box<[u8]>,
    /// See [`Child::identity`].
    pub identity: u64,
    /// Its attributes when it was looked up.
    pub stat: Stat,
    /// What it is.
    pub content: Content,
    /// How long that stays true.
    pub lifetime: Lifetime,
    /// The kernel was given the whole content; that it may have dropped it since only costs a read.
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
        } = child;
        Self {
            ino,
            parent,
            name: name.into_boxed_slice(),
            identity,
            stat,
            content,
            lifetime,
            handed_over: AtomicBool::new(false),
        }
    }

    /// Whether this is the node of what a directory now has under the name.
    pub(super) fn is(&self, parent: Ino, child: &Child) -> bool {
        *self.name == *child.name
            && self.identity == child.identity
            && self.parent.as_ref().is_some_and(|mine| mine.ino == parent)
    }

    /// The directory behind it, if it is one.
    pub fn directory(&self) -> Option<&Arc<dyn Directory>> {
        match &self.content {
            Content::Directory(directory) => Some(directory),
            Content::File | Content::Symlink(_) => None,
        }
    }

    /// What it is called in messages: its path, and which backup it is of: `latest` alone does not say.
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

impl Stat {
    /// Of nothing.
    pub const NONE: Self = Self {
        mode: 0,
        uid: 0,
        gid: 0,
        mtime_s: 0,
        mtime_ns: 0,
        size_bytes: 0,
        allocated_bytes: 0,
    };
}
