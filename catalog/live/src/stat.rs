//! What identifies a node, and what `stat` shows of it.

use std::fmt;

use barmanfs_store::{Attributes, RecordId};
use rustix::time::ClockId;

/// A node's number: its inode number, which survives renames and remounts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({:016x})", self.0)
    }
}

impl NodeId {
    /// Smaller numbers are reserved for the mount.
    const FIRST: u64 = 16;

    /// Keeps numbers positive in programs that store them in a signed 64-bit integer.
    const MASK: u64 = (1 << 63) - 1;

    /// The number of the node that the lower layer has at `path`.
    pub(crate) fn of_path(clone: RecordId, path: &[u8]) -> Self {
        Self::hashed(clone, b"path", path)
    }

    /// The number of the `n`th node created in the clone.
    pub(crate) fn of_made(clone: RecordId, n: u64) -> Self {
        Self::hashed(clone, b"made", &n.to_le_bytes())
    }

    fn hashed(clone: RecordId, kind: &[u8; 4], what: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(clone.to_string().as_bytes());
        hasher.update(kind);
        hasher.update(what);
        let mut number = [0; 8];
        hasher.finalize_xof().fill(&mut number);
        Self((u64::from_le_bytes(number) & Self::MASK).max(Self::FIRST))
    }
}

/// A time since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds.
    pub s: i64,
    /// Nanoseconds within the second.
    pub ns: u32,
}

impl Time {
    /// The clock that file systems use for time stamps, so that times taken here and by the kernel never go backwards.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
        Self {
            s: now.tv_sec,
            ns: u32::try_from(now.tv_nsec).unwrap_or(0),
        }
    }
}

/// The kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// The name of a socket. The kernel knows the process that listens on it.
    Socket,
}

/// What `stat` shows of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAttributes {
    /// Its number.
    pub node: NodeId,
    /// What it is.
    pub kind: Kind,
    /// The lower twelve bits of `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names; 1 for a directory, whose subdirectories are not counted.
    pub links: u32,
    /// Size in bytes; of a symbolic link, the length of its target.
    pub size_bytes: u64,
    /// Bytes outside holes, including those shared with the backup.
    pub allocated_bytes: u64,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Time of the last change of the content or the attributes.
    pub ctime: Time,
}

/// The attributes that are recorded for every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Number of names. Changes only while the names are locked for writing.
    pub(crate) links: u32,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
}

impl From<&Attributes> for Meta {
    fn from(attributes: &Attributes) -> Self {
        let time = Time {
            s: attributes.mtime_s,
            ns: attributes.mtime_ns,
        };
        Self {
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            links: 1,
            mtime: time,
            ctime: time,
        }
    }
}
