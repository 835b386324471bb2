//! The one file that names fuser: turns the kernel's requests into calls of the engine, and its answers into replies.
//! Nothing is decided here but what FUSE wants to hear.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, Notifier, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request, Session, SessionACL,
};

use crate::error::{Error, Result};
use crate::namespace::{
    Content, Found, Handle, Ino, Lifetime, Line, Lines, Namespace, Opened, Room, Seek, Stat,
};
use crate::views::Caller;
use crate::watch::Invalidate;

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
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
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
        self.namespace.forget(ino(number), lookups);
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
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

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        let node = self.answer("read a symbolic link", |namespace| namespace.node(ino(number)));
        match node.as_ref().map(|node| &node.content) {
            Ok(Content::Symlink(target)) => reply.data(target),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(errno) => reply.error(*errno),
        }
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
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
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
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

    fn lseek(
        &self,
        _request: &Request,
        _number: INodeNo,
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
        match self.answer("seek", |namespace| namespace.seek(Handle(handle.0), offset, seek)) {
            Ok(found) => reply.offset(found.cast_signed()),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.namespace.close(Handle(handle.0));
        reply.ok();
    }

    fn opendir(&self, request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
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
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
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
        _number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
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
        _number: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
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
