//! The vocabulary that the namespace and the views share: the entries of a directory and the content of an open file.
//!
//! A view makes a [`Child`] for each of its names. The namespace gives it an inode number.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use barmanfs_catalog::{CloneName, ServerName};
use barmanfs_store::{FileMap, RecordId, TreeReader};

use crate::error::{Error, Result};
use crate::usage::Usage;

/// A file of at most this size is small: it is handed to the kernel as a whole, as the kernel would read that much with its
/// first request.
pub(crate) const SMALL_BYTES: u64 = 128 * 1024;

/// The entries of a directory, in any order.
pub type Children = Box<dyn Iterator<Item = Result<Child>> + Send>;

/// A directory of the mounted tree.
pub trait Directory: fmt::Debug + Send + Sync {
    /// The entry of this name.
    ///
    /// # Errors
    /// When the catalog or the store cannot be read.
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>>;

    /// All entries except `.` and `..`.
    ///
    /// # Errors
    /// When they cannot be read.
    fn entries(&self) -> Result<Children>;

    /// The content of the regular file of this name.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    fn open(&self, name: &[u8]) -> Result<Body>;

    /// How long the listing stays valid, including the absence of other names.
    fn lifetime(&self) -> Lifetime;

    /// Whether a process can look up any number of names here.
    fn is_open_ended(&self) -> bool {
        false
    }

    /// The server whose clones are made here by `mkdir` and removed by `rmdir`.
    fn clones_of(&self) -> Option<&ServerName> {
        None
    }

    /// The clone whose root this is. The clone answers for everything in it.
    fn clone_root(&self) -> Option<&CloneRoot> {
        None
    }

    /// The use of a backup's view, for the directories of such a view.
    fn usage(&self) -> Option<&Arc<Usage>> {
        None
    }
}

/// One entry of a directory.
#[derive(Debug, Clone)]
pub struct Child {
    /// Its name.
    pub name: Vec<u8>,
    /// Distinguishes entries that have the same name at different times: another identity gets another inode.
    pub identity: u64,
    /// Its attributes.
    pub stat: Stat,
    /// What it is.
    pub content: Content,
    /// How long the name leads to this entry.
    pub lifetime: Lifetime,
    /// The map of a small stored file, so that it can be opened without another look-up. It lives as long as the kernel
    /// knows the file.
    pub map: Option<Arc<FileMap>>,
}

/// The kind of an entry.
#[derive(Debug, Clone)]
pub enum Content {
    /// A directory.
    Directory(Arc<dyn Directory>),
    /// A regular file; its directory opens it.
    File,
    /// A symbolic link and where it points.
    Symlink(Arc<[u8]>),
}

/// The attributes that `stat` shows, except the inode number and the kind.
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

impl Stat {
    /// Attributes of a missing entry.
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

/// How long an answer about a name stays valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// For the life of the mount: a backup never changes.
    Forever,
    /// Until a notification. The kernel asks again after a second in case a notification is lost.
    UntilNotified,
    /// Not at all: the kernel asks every time.
    Never,
}

impl Lifetime {
    /// How long the kernel may use the answer.
    pub fn duration(self) -> Duration {
        match self {
            // About 30 years; the kernel accepts any number.
            Self::Forever => Duration::from_secs(1 << 30),
            Self::UntilNotified => Duration::from_secs(1),
            Self::Never => Duration::ZERO,
        }
    }

    /// How long the kernel may cache the absence of a name. PostgreSQL's recovery polls for files that may appear.
    pub fn of_absence(self) -> Duration {
        match self {
            Self::Forever => self.duration(),
            Self::UntilNotified | Self::Never => Duration::ZERO,
        }
    }
}

/// The root of a clone. The clone, not the view, answers for everything in it.
#[derive(Debug)]
pub struct CloneRoot {
    /// The server of the clone.
    pub server: ServerName,
    /// The clone's name.
    pub name: CloneName,
    /// The clone's id: another clone may get the same name later.
    pub id: RecordId,
    /// How often it came back to this mount after another mount had served it.
    pub epoch: u64,
}

/// The content of an open file.
#[derive(Debug, Clone)]
pub enum Body {
    /// Stored in chunks.
    Stored(Arc<FileMap>),
    /// Generated by the view.
    Made(Arc<[u8]>),
    /// Stored in chunks, and shown with other bytes at some places.
    Edited(Arc<Edited>),
    /// A plain file of this size: a file of the spool, or a nameless file that the view generated because the content
    /// is too large for memory.
    Spooled(Arc<File>, u64),
}

/// A stored file with some bytes replaced.
#[derive(Debug)]
pub struct Edited {
    /// The stored file.
    map: Arc<FileMap>,
    /// The replacing bytes by offset.
    edits: Vec<(u64, Vec<u8>)>,
}

impl Edited {
    /// Replaces bytes in a part that was read from `offset` on.
    fn apply(&self, offset: u64, read: &mut [u8]) {
        for (at, bytes) in &self.edits {
            for (place, byte) in (*at..).zip(bytes) {
                let index = place
                    .checked_sub(offset)
                    .and_then(|index| usize::try_from(index).ok());
                if let Some(shown) = index.and_then(|index| read.get_mut(index)) {
                    *shown = *byte;
                }
            }
        }
    }
}

impl Body {
    /// A stored file with bytes replaced, if there are any replacements.
    pub(crate) fn edited(map: FileMap, edits: Vec<(u64, Vec<u8>)>) -> Self {
        let map = Arc::new(map);
        match edits.is_empty() {
            true => Self::Stored(map),
            false => Self::Edited(Arc::new(Edited { map, edits })),
        }
    }

    /// The map of its stored part.
    pub(crate) fn map(&self) -> Option<&Arc<FileMap>> {
        match self {
            Self::Stored(map) => Some(map),
            Self::Edited(edited) => Some(&edited.map),
            Self::Made(_) | Self::Spooled(..) => None,
        }
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Stored(map) => map.size_bytes,
            Self::Edited(edited) => edited.map.size_bytes,
            Self::Made(bytes) => bytes.len() as u64,
            Self::Spooled(_, size_bytes) => *size_bytes,
        }
    }

    /// Number of bytes outside holes.
    ///
    /// # Errors
    /// When a stored map cannot be read.
    pub fn allocated_bytes(&self, trees: &TreeReader) -> Result<u64> {
        match self {
            Self::Stored(map) => allocated_bytes(trees, map),
            Self::Edited(edited) => allocated_bytes(trees, &edited.map),
            Self::Made(_) | Self::Spooled(..) => Ok(self.size_bytes()),
        }
    }

    /// Reads from `offset` until `buffer` is full or the file ends; returns the number of bytes.
    ///
    /// # Errors
    /// When the stored data cannot be read.
    pub fn read_at(&self, trees: &TreeReader, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Self::Stored(map) => Ok(trees.read_at(map, offset, buffer)?),
            Self::Edited(edited) => {
                let count = trees.read_at(&edited.map, offset, buffer)?;
                edited.apply(offset, buffer.split_at_mut(count.min(buffer.len())).0);
                Ok(count)
            }
            Self::Made(bytes) => {
                let rest = usize::try_from(offset)
                    .ok()
                    .and_then(|from| bytes.get(from..))
                    .unwrap_or_default();
                let count = rest.len().min(buffer.len());
                for (to, from) in buffer.iter_mut().zip(rest) {
                    *to = *from;
                }
                Ok(count)
            }
            Self::Spooled(file, _) => {
                let failed = |source| Error::io("read", "(a file that is not in packs)", source);
                file.read_at(buffer, offset).map_err(failed)
            }
        }
    }

    /// The whole content, or `None` if it is longer than `limit_bytes`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_all(&self, trees: &TreeReader, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
        if self.size_bytes() > limit_bytes {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(self.size_bytes()).unwrap_or(0)];
        let count = self.read_at(trees, 0, &mut bytes)?;
        bytes.truncate(count);
        Ok(Some(bytes))
    }
}

/// Bytes of a stored file outside holes.
fn allocated_bytes(trees: &TreeReader, map: &FileMap) -> Result<u64> {
    let (mut at, mut allocated) = (0, 0);
    while let Some(data) = trees.next_data(map, at)? {
        at = trees.next_hole(map, data)?;
        allocated += at - data;
    }
    Ok(allocated)
}
