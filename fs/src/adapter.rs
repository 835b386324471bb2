//! The one place that names fuser: turns the kernel's requests into calls of the engine, and its answers into replies.
//! Nothing is decided here but what FUSE wants to hear.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};

use crate::clones::{Clones, Served};
use crate::error::{Error, NOT_FOUND, Result};
use crate::live::{LiveClone, Name, NodeAttributes, NodeId};
use crate::namespace::{
    Content, Found, Handle, Ino, Lifetime, Line, Lines, Namespace, Node, Opened, Room, Seek, Stat,
};
use crate::views::Caller;
use crate::watch::Invalidate;

mod live;

use live::OpenInodes;

/// Requests the kernel may have under way in the background: reading ahead of many readers. Measured elsewhere as half
/// as fast again as its default of 16, with no gain above.
const MAX_BACKGROUND: u16 = 64;

/// Longest name; what `statfs` says.
const NAME_BYTES: u32 = 255;

/// A session with the kernel, ready to serve.
pub(crate) struct Service {
    session: Session<Adapter>,
}

/// How to serve.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServiceOptions {
    /// Threads that take requests.
    pub(crate) threads: usize,
    /// Whether others than the owner may use the mount.
    pub(crate) allow_other: bool,
}

impl Service {
    /// Takes over a FUSE device that has been mounted, and greets the kernel.
    pub(crate) fn new(
        namespace: Arc<Namespace>,
        device: OwnedFd,
        options: ServiceOptions,
    ) -> io::Result<Self> {
        let acl = if options.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        let mut config = Config::default();
        config.acl = acl;
        config.n_threads = Some(options.threads.max(1));
        config.clone_fd = options.threads > 1;
        let kernel = Arc::new(OnceLock::new());
        let adapter = Adapter {
            clones: Clones::new(namespace.context()),
            open: OpenInodes::default(),
            passthrough: false,
            namespace,
            kernel: Arc::clone(&kernel),
            pushes: Pushes::leaving_one_of(options.threads),
        };
        let session = Session::from_fd(adapter, device, acl, config)?;
        let _ = kernel.set(session.notifier());
        Ok(Self { session })
    }

    /// Tells the kernel what it must forget.
    pub(crate) fn invalidator(&self) -> Box<dyn Invalidate> {
        Box::new(Invalidator {
            notifier: self.session.notifier(),
        })
    }

    /// Serves until the tree is unmounted, by whomever.
    pub(crate) fn run(self) -> io::Result<()> {
        match self.session.run() {
            // `umount -f`, and an abort through sysfs: unmounted all the same.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            result => result,
        }
    }
}

struct Invalidator {
    notifier: Notifier,
}

impl Invalidate for Invalidator {
    fn entry(&self, parent: Ino, name: &[u8]) {
        // What the kernel does not know it need not forget.
        let _ = self
            .notifier
            .inval_entry(INodeNo(parent.0), OsStr::from_bytes(name));
    }

    fn inode(&self, ino: Ino) {
        let _ = self.notifier.inval_inode(INodeNo(ino.0), 0, 0);
    }
}

#[derive(Debug)]
struct Adapter {
    namespace: Arc<Namespace>,
    clones: Arc<Clones>,
    /// What of clones is open.
    open: OpenInodes,
    /// Whether the kernel can be handed files to read and write by itself.
    passthrough: bool,
    /// For what is told the kernel without being asked; there once the session is.
    kernel: Arc<OnceLock<Notifier>>,
    pushes: Pushes,
}

/// Counts the threads that push data into the kernel's cache. They may have to wait there for a page that another
/// request is to fill: one thread must always be left to answer that.
#[derive(Debug)]
struct Pushes {
    under_way: AtomicUsize,
    max: usize,
}

impl Pushes {
    fn leaving_one_of(threads: usize) -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            max: threads.saturating_sub(1),
        }
    }

    /// Does the work unless too many are at it.
    fn run(&self, work: impl FnOnce()) {
        if self.under_way.fetch_add(1, Ordering::SeqCst) < self.max {
            work();
        }
        self.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Adapter {
    /// Puts a small file's content into the kernel's cache before the kernel asks for it.
    fn hand_over(&self, number: INodeNo, handle: Handle) {
        let Some(kernel) = self.kernel.get() else { return };
        let give = |bytes: &[u8]| {
            // Refused, or not known any more: then it is read.
            let _ = kernel.store(number, 0, bytes);
        };
        self.pushes.run(|| {
            let _ = self.answer("read", |namespace| {
                namespace.hand_over(handle, give);
                Ok(())
            });
        });
    }

    /// Answers one request. A panic is a bug, but not one that takes the mount down: it is EIO for this request.
    fn answer<T>(&self, what: &str, work: impl FnOnce(&Namespace) -> Result<T>) -> Result<T, Errno> {
        let result = catch_unwind(AssertUnwindSafe(|| work(&self.namespace)));
        match result {
            Ok(Ok(value)) => Ok(value),
            // The engine has said which file it is about.
            Ok(Err(error)) => Err(errno(&error)),
            Err(_) => {
                tracing::error!("A request to {what} failed by a bug in barmanfs; the mount goes on");
                Err(Errno::EIO)
            }
        }
    }
}

impl Adapter {
    /// The clone an inode belongs to, and what it is there.
    fn live(&self, number: INodeNo) -> Result<Option<(Arc<Served>, NodeId)>, Errno> {
        let served = self.answer("find a clone", |namespace| self.clones.of(namespace, ino(number)))?;
        Ok(served.map(|served| {
            let node = served.node(ino(number));
            (served, node)
        }))
    }

    /// The same for what can only be in a clone: all else is read-only.
    fn writable(&self, number: INodeNo) -> Result<(Arc<Served>, NodeId), Errno> {
        self.live(number)?.ok_or(Errno::EROFS)
    }

    /// Answers one request to a clone.
    fn ask<T>(
        &self,
        what: &str,
        served: &Served,
        work: impl FnOnce(&LiveClone) -> Result<T>,
    ) -> Result<T, Errno> {
        self.answer(what, |_| {
            let result = work(&served.clone);
            if let Err(error) = &result
                && error.is_failure()
            {
                tracing::error!("Cannot {what} in the clone {}: {error}", served.described());
            }
            result
        })
    }

    fn shown(&self, served: &Served, of: &NodeAttributes) -> FileAttr {
        let options = self.namespace.context().options();
        live::attributes(served, of, (options.uid, options.gid))
    }

    /// Answers with a node that counts as looked up.
    fn found(&self, served: &Arc<Served>, found: Result<NodeAttributes, Errno>, reply: ReplyEntry) {
        match found {
            Ok(of) => {
                self.clones.looked_up(served, of.node);
                live::entry(reply, &self.shown(served, &of));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn live_lookup(&self, served: &Arc<Served>, parent: NodeId, name: &OsStr, reply: ReplyEntry) {
        match self.ask("look up a name", served, |clone| {
            clone.lookup(parent, name.as_bytes())
        }) {
            Err(errno) if errno.code() == libc::ENOENT => {
                live::no_entry(reply, &attributes(Ino(0), &Stat::NONE, &Content::File));
            }
            found => self.found(served, found, reply),
        }
    }

    /// A line of a listing with attributes: it counts as a look-up, except for `.` and `..`. Says whether it had no room.
    fn add_live_entry(
        &self,
        served: &Arc<Served>,
        parent: NodeId,
        next: u64,
        name: &Name,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<bool> {
        let counted = !matches!(name.name.as_slice(), b"." | b"..");
        let of = match counted {
            true => match served.clone.lookup(parent, &name.name) {
                // Gone since the directory was opened.
                Err(error) if error.errno() == rustix::io::Errno::NOENT => return Ok(false),
                found => found?,
            },
            false => served.clone.attributes(name.node)?,
        };
        let full = live::add_entry(next, name, &self.shown(served, &of), reply);
        match (counted, full) {
            (true, true) => served.clone.forget(of.node, 1),
            (true, false) => self.clones.looked_up(served, of.node),
            _ => {}
        }
        Ok(full)
    }

    /// Answers what has nothing to tell but whether it was done.
    fn done(&self, outcome: Result<(), Errno>, reply: ReplyEmpty) {
        match outcome {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    /// `mkdir` in `live/` makes a clone.
    fn make_clone(&self, parent: INodeNo, name: &OsStr) -> Result<(Arc<Node>, Stat), Errno> {
        self.answer("make a clone", |namespace| {
            let node = namespace.node(ino(parent))?;
            let server = node.directory().and_then(|directory| directory.clones_of());
            let server = server.ok_or(Error::Refused(rustix::io::Errno::ROFS))?;
            let asked = name.to_str().ok_or(Error::Refused(rustix::io::Errno::INVAL))?;
            let made = self.clones.make(server, asked).inspect_err(|error| {
                tracing::error!("Cannot make {server}/live/{}: {error}", asked.escape_debug());
            })?;
            match namespace.lookup(ino(parent), made.as_str().as_bytes())? {
                Found::Node(node, stat) => Ok((node, stat)),
                Found::Absent(_) => Err(NOT_FOUND),
            }
        })
    }

    /// `rmdir` in `live/` removes one.
    fn remove_clone(&self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        self.answer("remove a clone", |namespace| {
            let node = namespace.node(ino(parent))?;
            let server = node.directory().and_then(|directory| directory.clones_of());
            let server = server.ok_or(Error::Refused(rustix::io::Errno::ROFS))?;
            let name = name
                .to_str()
                .and_then(|name| name.parse().ok())
                .ok_or(NOT_FOUND)?;
            self.clones.remove(server, &name).inspect_err(|error| {
                if error.is_failure() {
                    tracing::error!("Cannot remove {server}/live/{name}: {error}");
                }
            })
        })
    }
}

fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno().raw_os_error())
}

fn attributes(ino: Ino, stat: &Stat, content: &Content) -> FileAttr {
    let kind = match content {
        Content::Directory(_) => FileType::Directory,
        Content::File => FileType::RegularFile,
        Content::Symlink(_) => FileType::Symlink,
    };
    let mtime = time(stat.mtime_s, stat.mtime_ns);
    FileAttr {
        ino: INodeNo(ino.0),
        size: stat.size_bytes,
        blocks: stat.allocated_bytes.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind,
        // Permission bits fit.
        perm: (stat.mode & 0o7777) as u16,
        nlink: 1,
        uid: stat.uid,
        gid: stat.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let start = if seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    let time = start.and_then(|start| start.checked_add(Duration::from_nanos(u64::from(nanoseconds))));
    time.unwrap_or(UNIX_EPOCH)
}

fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Content never changes under an inode, so attributes need not be compared to trust the cache.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ];
        for capability in wanted {
            // An older kernel does without.
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        // Only root may hand files to the kernel.
        self.passthrough = rustix::process::geteuid().is_root()
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        Ok(())
    }

    fn destroy(&mut self) {
        self.clones.flush();
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.live(parent) {
            Ok(None) => {}
            Ok(Some((served, node))) => return self.live_lookup(&served, node, name, reply),
            Err(errno) => return reply.error(errno),
        }
        match self.answer("look up a name", |namespace| {
            namespace.lookup(ino(parent), name.as_bytes())
        }) {
            Ok(Found::Node(node, stat)) => {
                let attributes = attributes(node.ino, &stat, &node.content);
                reply.entry(&node.lifetime.duration(), &attributes, Generation(0));
            }
            Ok(Found::Absent(lifetime)) if lifetime == Lifetime::Forever => {
                // Inode 0: the kernel may remember that there is nothing.
                let none = Stat::NONE;
                let attributes = attributes(Ino(0), &none, &Content::File);
                reply.entry(&lifetime.of_absence(), &attributes, Generation(0));
            }
            Ok(Found::Absent(_)) => reply.error(Errno::ENOENT),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _request: &Request, number: INodeNo, lookups: u64) {
        if !self.clones.forget(ino(number), lookups) {
            self.namespace.forget(ino(number), lookups);
        }
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.live(number) {
            Ok(None) => {}
            Ok(Some((served, node))) => {
                return match self.ask("read attributes", &served, |clone| clone.attributes(node)) {
                    Ok(of) => reply.attr(&live::ATTRIBUTES_TTL, &self.shown(&served, &of)),
                    Err(errno) => reply.error(errno),
                };
            }
            // Another process has the clone: that it is there can be seen all the same.
            Err(errno) if errno.code() == libc::EBUSY && self.namespace.node(ino(number)).is_ok() => {}
            Err(errno) => return reply.error(errno),
        }
        let found = self.answer("read attributes", |namespace| {
            let node = namespace.node(ino(number))?;
            Ok((namespace.stat(&node)?, node))
        });
        match found {
            Ok((stat, node)) => {
                reply.attr(
                    &node.lifetime.duration(),
                    &attributes(node.ino, &stat, &node.content),
                );
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = live::changes(mode, uid, gid, size, mtime);
        let changed = self.writable(number).and_then(|(served, node)| {
            let of = self.ask("change attributes", &served, |clone| {
                clone.set_attributes(node, changes)
            })?;
            Ok(self.shown(&served, &of))
        });
        match changed {
            Ok(attributes) => reply.attr(&live::ATTRIBUTES_TTL, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        match self.live(number) {
            Ok(None) => {}
            Ok(Some((served, node))) => {
                return match self.ask("read a symbolic link", &served, |clone| clone.readlink(node)) {
                    Ok(target) => reply.data(&target),
                    Err(errno) => reply.error(errno),
                };
            }
            Err(errno) => return reply.error(errno),
        }
        let node = self.answer("read a symbolic link", |namespace| namespace.node(ino(number)));
        match node.as_ref().map(|node| &node.content) {
            Ok(Content::Symlink(target)) => reply.data(target),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(errno) => reply.error(*errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let (served, parent) = match self.writable(parent) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        if mode & libc::S_IFMT != libc::S_IFREG {
            // Sockets and the like belong elsewhere.
            return reply.error(Errno::EPERM);
        }
        let new = live::new_node(request, mode, umask);
        let made = self.ask("make a file", &served, |clone| {
            clone.create(parent, name.as_bytes(), new)
        });
        self.found(&served, made, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        match self.live(parent) {
            Ok(Some((served, parent))) => {
                let new = live::new_node(request, mode, umask);
                let made = self.ask("make a directory", &served, |clone| {
                    clone.mkdir(parent, name.as_bytes(), new)
                });
                self.found(&served, made, reply);
            }
            Ok(None) => match self.make_clone(parent, name) {
                Ok((node, stat)) => {
                    let attributes = attributes(node.ino, &stat, &node.content);
                    reply.entry(&Duration::ZERO, &attributes, Generation(0));
                }
                Err(errno) => reply.error(errno),
            },
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome = self.writable(parent).and_then(|(served, parent)| {
            self.ask("remove a file", &served, |clone| {
                clone.unlink(parent, name.as_bytes())
            })
        });
        self.done(outcome, reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let outcome = match self.live(parent) {
            Ok(Some((served, parent))) => self.ask("remove a directory", &served, |clone| {
                clone.rmdir(parent, name.as_bytes())
            }),
            Ok(None) => self.remove_clone(parent, name),
            Err(errno) => Err(errno),
        };
        self.done(outcome, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (served, parent) = match self.writable(parent) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        let new = live::new_node(request, 0o777, 0);
        let target = target.as_os_str().as_bytes();
        let made = self.ask("make a symbolic link", &served, |clone| {
            clone.symlink(parent, name.as_bytes(), target, new)
        });
        self.found(&served, made, reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let outcome = self.writable(parent).and_then(|(served, parent)| {
            let (other, new_parent) = self.writable(new_parent)?;
            if !Arc::ptr_eq(&served, &other) {
                return Err(Errno::EXDEV);
            }
            let (from, to) = ((parent, name.as_bytes()), (new_parent, new_name.as_bytes()));
            self.ask("rename a file", &served, |clone| {
                clone.rename(from, to, live::rename_mode(flags)?)
            })
        });
        self.done(outcome, reply);
    }

    fn link(&self, _request: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let both = self
            .writable(number)
            .and_then(|node| Ok((node, self.writable(parent)?)));
        match both {
            Ok(((served, node), (other, parent))) if Arc::ptr_eq(&served, &other) => {
                let linked = self.ask("link a file", &served, |clone| {
                    clone.link(node, parent, name.as_bytes())
                });
                self.found(&served, linked, reply);
            }
            Ok(_) => reply.error(Errno::EXDEV),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let (served, parent) = match self.writable(parent) {
            Ok(found) => found,
            Err(errno) => return reply.error(errno),
        };
        let new = live::new_node(request, mode, umask);
        let made = self.ask("make a file", &served, |clone| {
            served.before_making(parent, name.as_bytes())?;
            clone.create(parent, name.as_bytes(), new)
        });
        match made {
            Ok(of) => {
                self.clones.looked_up(&served, of.node);
                let attributes = self.shown(&served, &of);
                self.open
                    .create(&served, of.node, self.passthrough, &attributes, reply);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.live(number) {
            Ok(None) => {}
            Ok(Some((served, node))) => return self.open.open(&served, node, self.passthrough, reply),
            Err(errno) => return reply.error(errno),
        }
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let caller = Caller(request.pid());
        match self.answer("open a file", |namespace| namespace.open(ino(number), caller)) {
            Ok(Opened { handle, keep }) => {
                if keep {
                    self.hand_over(number, handle);
                }
                // What is made anew for each reader has no size to rely on: it is read as far as it goes.
                let cache = if keep {
                    FopenFlags::FOPEN_KEEP_CACHE
                } else {
                    FopenFlags::FOPEN_DIRECT_IO
                };
                reply.opened(FileHandle(handle.0), cache | FopenFlags::FOPEN_NOFLUSH);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.live(number) {
            Ok(None) => {}
            Ok(Some((served, node))) => {
                let read = self.ask("read", &served, |clone| {
                    let mut buffer = vec![0; size as usize];
                    let count = clone.read(node, offset, &mut buffer)?;
                    buffer.truncate(count);
                    Ok(buffer)
                });
                return match read {
                    Ok(bytes) => reply.data(&bytes),
                    Err(errno) => reply.error(errno),
                };
            }
            Err(errno) => return reply.error(errno),
        }
        let mut reply = Some(reply);
        let result = self.answer("read", |namespace| {
            namespace.read(Handle(handle.0), offset, size as usize, |bytes| {
                if let Some(reply) = reply.take() {
                    reply.data(bytes);
                }
            })
        });
        if let (Err(errno), Some(reply)) = (result, reply) {
            reply.error(errno);
        }
    }

    fn write(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let append = flags.0 & libc::O_APPEND != 0;
        let written = self.writable(number).and_then(|(served, node)| {
            self.ask("write", &served, |clone| clone.write(node, offset, data, append))
        });
        match written {
            // At most what one request can hold.
            Ok(count) => reply.written(count as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let outcome = match self.live(number) {
            Ok(Some((served, node))) => self.ask("sync", &served, |clone| clone.sync(node, datasync)),
            // What cannot be written is durable.
            Ok(None) => Ok(()),
            Err(errno) => Err(errno),
        };
        self.done(outcome, reply);
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let outcome = match self.live(number) {
            Ok(Some((served, node))) => {
                self.ask("sync a directory", &served, |clone| clone.sync_directory(node))
            }
            Ok(None) => Ok(()),
            Err(errno) => Err(errno),
        };
        self.done(outcome, reply);
    }

    fn fallocate(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let outcome = self.writable(number).and_then(|(served, node)| {
            self.ask("allocate", &served, |clone| {
                let (what, keep_size) = live::allocation(mode)?;
                clone.allocate(node, what, keep_size, offset, length)
            })
        });
        self.done(outcome, reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        match self.live(number) {
            Ok(None) => {}
            Ok(Some((served, node))) => {
                let data = seek == Seek::Data;
                return match self.ask("seek", &served, |clone| clone.seek(node, offset, data)) {
                    Ok(found) => reply.offset(found.cast_signed()),
                    Err(errno) => reply.error(errno),
                };
            }
            Err(errno) => return reply.error(errno),
        }
        match self.answer("seek", |namespace| namespace.seek(Handle(handle.0), offset, seek)) {
            Ok(found) => reply.offset(found.cast_signed()),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Ok(Some((served, node))) = self.live(number) {
            self.open.close(&served, node);
            return reply.ok();
        }
        self.namespace.close(Handle(handle.0));
        reply.ok();
    }

    fn opendir(&self, request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.live(number) {
            Ok(None) => {}
            Ok(Some((served, node))) => {
                return match self.answer("open a directory", |_| self.open.open_directory(&served, node)) {
                    Ok(handle) => reply.opened(handle, FopenFlags::empty()),
                    Err(errno) => reply.error(errno),
                };
            }
            Err(errno) => return reply.error(errno),
        }
        match self.answer("open a directory", |namespace| {
            namespace.open_directory(ino(number), Caller(request.pid()))
        }) {
            Ok(Opened { handle, keep }) => {
                let cached = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
                let flags = if keep { cached } else { FopenFlags::empty() };
                reply.opened(FileHandle(handle.0), flags);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.live(number) {
            Ok(None) => {}
            Ok(Some((served, node))) => {
                let listed = self.answer("list", |_| {
                    self.open.list(&served, node, handle, offset, |next, name| {
                        Ok(live::add_name(&served, next, name, &mut reply))
                    })
                });
                return match listed {
                    Ok(()) => reply.ok(),
                    Err(errno) => reply.error(errno),
                };
            }
            Err(errno) => return reply.error(errno),
        }
        let mut emit = |line: Line<'_>| {
            let kind = attributes(line.ino, &line.stat, line.content).kind;
            let full = reply.add(INodeNo(line.ino.0), line.next, kind, OsStr::from_bytes(line.name));
            if full { Room::Full } else { Room::Taken }
        };
        let result = self.answer("list", |namespace| {
            namespace.read_directory(Handle(handle.0), offset, Lines::AsNames, &mut emit)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        match self.live(number) {
            Ok(None) => {}
            Ok(Some((served, node))) => {
                let listed = self.answer("list", |_| {
                    self.open.list(&served, node, handle, offset, |next, name| {
                        self.add_live_entry(&served, node, next, name, &mut reply)
                    })
                });
                return match listed {
                    Ok(()) => reply.ok(),
                    Err(errno) => reply.error(errno),
                };
            }
            Err(errno) => return reply.error(errno),
        }
        let mut emit = |line: Line<'_>| {
            let attributes = attributes(line.ino, &line.stat, line.content);
            let name = OsStr::from_bytes(line.name);
            let ttl = line.lifetime.duration();
            let full = reply.add(
                INodeNo(line.ino.0),
                line.next,
                name,
                &ttl,
                &attributes,
                Generation(0),
            );
            if full { Room::Full } else { Room::Taken }
        };
        let result = self.answer("list", |namespace| {
            namespace.read_directory(Handle(handle.0), offset, Lines::AsLookups, &mut emit)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        if let Ok(Some((served, node))) = self.live(number) {
            self.open.close_directory(&served, node, handle);
            return reply.ok();
        }
        self.namespace.close_directory(Handle(handle.0));
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        match self.answer("inspect the repository's file system", Namespace::space) {
            Ok(space) => {
                let block = space.block_bytes;
                reply.statfs(
                    space.blocks,
                    space.free,
                    space.available,
                    0,
                    0,
                    block,
                    NAME_BYTES,
                    block,
                );
            }
            Err(errno) => reply.error(errno),
        }
    }

    // ENOSYS, without a line in the log: the kernel does not ask again as long as the mount lives.

    fn getxattr(&self, _request: &Request, _number: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _request: &Request, _number: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}
