//! Requests about clones: translates between the kernel and the engine ([`barmanfs_live`]).
//!
//! The mount is the only way into a clone, so the kernel may cache names, attributes and pages; all changes come from
//! the kernel itself. The kernel reads and writes a file without any part of the backup directly, where the kernel
//! supports it and this process is allowed to. All opens of an inode are of the same kind as the first.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use barmanfs_live::{
    Allocation, AttributeChanges, Kind, Listing, Name, NewNode, NewTime, NodeAttributes, NodeId, RenameMode,
    Time,
};
use barmanfs_store::sync::lock;
use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, RenameFlags,
    ReplyCreate, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyOpen, Request, TimeOrNow,
};
use rustix::io::Errno as SystemErrno;

use super::counted::Counted;
use super::time;
use crate::clones::Served;
use crate::error::{Error, Result};
use crate::namespace::Ino;

/// How long the kernel may cache: nothing else changes a clone.
const TTL: Duration = Duration::from_secs(3600);

/// An open inode.
struct Opened {
    count: u64,
    /// The file that the kernel reads and writes directly.
    backing: Option<Arc<BackingId>>,
}

/// The open files and directories of clones.
#[derive(Default)]
pub(super) struct OpenInodes {
    files: Mutex<HashMap<Ino, Opened>>,
    directories: Mutex<Directories>,
}

#[derive(Default)]
struct Directories {
    next: u64,
    open: HashMap<u64, Arc<Mutex<OpenDirectory>>>,
}

struct OpenDirectory {
    position: u64,
    listing: Listing,
    /// The name that did not fit into the last reply.
    pending: Option<Name>,
}

impl std::fmt::Debug for OpenInodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenInodes").finish_non_exhaustive()
    }
}

/// The attributes of a clone's node. `owner` overrides owner and group, as the mount shows them.
pub(super) fn attributes(
    served: &Served,
    of: &NodeAttributes,
    owner: (Option<u32>, Option<u32>),
) -> FileAttr {
    let kind = match of.kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Socket => FileType::Socket,
    };
    let mtime = time(of.mtime.s, of.mtime.ns);
    FileAttr {
        ino: INodeNo(served.ino(of.node).0),
        size: of.size_bytes,
        blocks: of.allocated_bytes.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: time(of.ctime.s, of.ctime.ns),
        crtime: mtime,
        kind,
        // Permission bits fit.
        perm: (of.mode & 0o7777) as u16,
        nlink: of.links,
        uid: owner.0.unwrap_or(of.uid),
        gid: owner.1.unwrap_or(of.gid),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// A new node belongs to the caller. Its permissions are the requested ones without the umask.
pub(super) fn new_node(request: &Request, mode: u32, umask: u32) -> NewNode {
    NewNode {
        mode: mode & 0o7777 & !umask,
        uid: request.uid(),
        gid: request.gid(),
    }
}

/// The attributes that setattr changes. Access times are not kept.
pub(super) fn changes(
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size_bytes: Option<u64>,
    mtime: Option<TimeOrNow>,
) -> AttributeChanges {
    AttributeChanges {
        mode,
        uid,
        gid,
        size_bytes,
        mtime: mtime.map(|mtime| match mtime {
            TimeOrNow::Now => NewTime::Now,
            TimeOrNow::SpecificTime(at) => NewTime::At(engine_time(at)),
        }),
    }
}

fn engine_time(at: SystemTime) -> Time {
    match at.duration_since(UNIX_EPOCH) {
        Ok(since) => Time {
            s: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            ns: since.subsec_nanos(),
        },
        // For times before 1970 fuser negates both parts, but nanoseconds always count forward.
        Err(before) => {
            let back = before.duration();
            Time {
                s: i64::try_from(back.as_secs()).map_or(i64::MIN, |back_s| -back_s),
                ns: back.subsec_nanos(),
            }
        }
    }
}

/// The rename mode for the kernel's flags.
pub(super) fn rename_mode(flags: RenameFlags) -> barmanfs_live::Result<RenameMode> {
    if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else {
        Err(barmanfs_live::Error::Refused(SystemErrno::INVAL))
    }
}

/// The operation for the kernel's fallocate mode, and whether the size stays.
pub(super) fn allocation(mode: i32) -> barmanfs_live::Result<(Allocation, bool)> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Ok((Allocation::Reserve, keep_size)),
        libc::FALLOC_FL_ZERO_RANGE => Ok((Allocation::Zero, keep_size)),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Ok((Allocation::Punch, true)),
        _ => Err(barmanfs_live::Error::Refused(SystemErrno::OPNOTSUPP)),
    }
}

/// Answers a look-up.
pub(super) fn entry(reply: ReplyEntry, attributes: &FileAttr) {
    reply.entry(&TTL, attributes, Generation(0));
}

/// Answers that the name does not exist. The kernel may cache that until it creates the name.
pub(super) fn no_entry(reply: ReplyEntry, none: &FileAttr) {
    reply.entry(&TTL, none, Generation(0));
}

/// How long attributes stay valid.
pub(super) const ATTRIBUTES_TTL: Duration = TTL;

impl OpenInodes {
    /// Opens a file and answers. `passthrough` says whether the kernel can read and write files directly.
    pub(super) fn open(
        &self,
        served: &Served,
        node: NodeId,
        passthrough: bool,
        reply: Counted<'_, ReplyOpen>,
    ) {
        let backing = self.begin(served, node, passthrough, |file| reply.open_backing(file));
        reply.finish(backing, |reply, backing| match backing {
            Some(backing) => reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &backing),
            None => reply.opened(
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            ),
        });
    }

    /// The same for a file that was just created.
    pub(super) fn create(
        &self,
        served: &Served,
        node: NodeId,
        passthrough: bool,
        attributes: &FileAttr,
        reply: Counted<'_, ReplyCreate>,
    ) {
        let backing = self.begin(served, node, passthrough, |file| reply.open_backing(file));
        let (handle, none) = (FileHandle(0), FopenFlags::empty());
        reply.finish(backing, |reply, backing| match backing {
            Some(backing) => {
                reply.created_passthrough(&TTL, attributes, Generation(0), handle, none, &backing);
            }
            None => reply.created(
                &TTL,
                attributes,
                Generation(0),
                handle,
                FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            ),
        });
    }

    fn begin(
        &self,
        served: &Served,
        node: NodeId,
        passthrough: bool,
        register: impl FnOnce(&std::fs::File) -> std::io::Result<BackingId>,
    ) -> Result<Option<Arc<BackingId>>, Errno> {
        let refuse = |error: barmanfs_live::Error| super::errno(&error.into());
        served.clone.open_node(node).map_err(refuse)?;
        let mut files = lock(&self.files);
        if let Some(opened) = files.get_mut(&served.ino(node)) {
            opened.count += 1;
            served.opened();
            return Ok(opened.backing.clone());
        }
        let plain = match passthrough {
            true => served.clone.plain_file(node),
            false => Ok(None),
        };
        let backing = match plain {
            Ok(plain) => plain.and_then(|file| register(&file).map(Arc::new).ok()),
            Err(error) => {
                served.clone.close_node(node);
                return Err(refuse(error));
            }
        };
        let opened = Opened {
            count: 1,
            backing: backing.clone(),
        };
        files.insert(served.ino(node), opened);
        served.opened();
        Ok(backing)
    }

    /// Closes a file.
    pub(super) fn close(&self, served: &Served, node: NodeId) {
        let mut files = lock(&self.files);
        let ino = served.ino(node);
        if let Some(opened) = files.get_mut(&ino) {
            opened.count -= 1;
            if opened.count == 0 {
                files.remove(&ino);
            }
        }
        drop(files);
        served.clone.close_node(node);
        served.closed();
    }

    /// Opens a directory. The listing has the names of this moment.
    pub(super) fn open_directory(&self, served: &Served, node: NodeId) -> Result<FileHandle> {
        served.clone.open_node(node)?;
        let listing = served
            .clone
            .entries(node)
            .inspect_err(|_| served.clone.close_node(node))?;
        let open = OpenDirectory {
            position: 0,
            listing,
            pending: None,
        };
        let mut directories = lock(&self.directories);
        directories.next += 1;
        let handle = directories.next;
        directories.open.insert(handle, Arc::new(Mutex::new(open)));
        served.opened();
        Ok(FileHandle(handle))
    }

    /// Closes a directory.
    pub(super) fn close_directory(&self, served: &Served, node: NodeId, handle: FileHandle) {
        lock(&self.directories).open.remove(&handle.0);
        served.clone.close_node(node);
        served.closed();
    }

    /// Passes the names from `offset` on to `emit` until the reply is full.
    pub(super) fn list(
        &self,
        served: &Served,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        mut emit: impl FnMut(u64, &Name) -> Result<bool>,
    ) -> Result<()> {
        let open = lock(&self.directories).open.get(&handle.0).cloned();
        let open = open.ok_or(Error::Refused(SystemErrno::BADF))?;
        let mut open = lock(&open);
        if open.position != offset {
            // The reader went back, possibly only because its buffer was full. A reader that starts again gets the
            // present names; other offsets refer to the names of the earlier listing.
            open.listing = match offset {
                0 => served.clone.entries(node)?,
                _ => served.clone.entries_again(node, &open.listing)?,
            };
            (open.position, open.pending) = (DOTS.min(offset), None);
            while open.position < offset {
                match open.listing.next() {
                    Some(name) => drop(name?),
                    None => break,
                }
                open.position += 1;
            }
        }
        loop {
            let name = match open.position {
                0 => dot(b".", node),
                1 => dot(b"..", served.clone.parent(node)?),
                _ => match open.pending.take().map(Ok).or_else(|| open.listing.next()) {
                    Some(name) => name?,
                    None => return Ok(()),
                },
            };
            if emit(open.position + 1, &name)? {
                if open.position >= DOTS {
                    open.pending = Some(name);
                }
                return Ok(());
            }
            open.position += 1;
        }
    }
}

/// `.` and `..` come first.
const DOTS: u64 = 2;

fn dot(name: &[u8], node: NodeId) -> Name {
    Name {
        name: name.to_vec(),
        node,
        kind: Kind::Directory,
    }
}

/// Adds a name to a listing. Returns whether the reply is full.
pub(super) fn add_name(served: &Served, next: u64, name: &Name, reply: &mut ReplyDirectory) -> bool {
    let kind = match name.kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Socket => FileType::Socket,
    };
    let ino = INodeNo(served.ino(name.node).0);
    reply.add(ino, next, kind, OsStr::from_bytes(&name.name))
}

/// Adds a name with attributes. Returns whether the reply is full.
pub(super) fn add_entry(
    next: u64,
    name: &Name,
    attributes: &FileAttr,
    reply: &mut ReplyDirectoryPlus,
) -> bool {
    let text = OsStr::from_bytes(&name.name);
    reply.add(attributes.ino, next, text, &TTL, attributes, Generation(0))
}

// The data behind these locks is consistent even after a panic in another thread.
