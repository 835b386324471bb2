//! The only place that uses fuser. It turns the kernel's requests into calls of the engine and the results into
//! replies. It decides nothing except what FUSE needs.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use barmanfs_live::{LiveClone, Name, NodeAttributes, NodeId};
use fuser::{
    Config, Errno, FileAttr, FileType, INodeNo, Notifier, ReplyDirectoryPlus, ReplyEntry, Session, SessionACL,
};

use crate::clones::{Clones, Served};
use crate::counters::RequestCounters;
use crate::entry::{Content, Stat};
use crate::error::{Error, NOT_FOUND, Result};
use crate::namespace::{Found, Handle, Ino, Namespace, Node};
use crate::views::Context;
use crate::watch::Invalidate;

mod counted;
mod deliver;
mod live;
mod requests;
mod views;

use counted::Counted;
use live::OpenInodes;

/// Maximum number of background requests: the read-ahead of many readers. A measurement elsewhere showed 1.5 times the
/// speed of the default of 16, and no gain above 64.
const MAX_BACKGROUND: u16 = 64;

/// Maximum length of a name, reported by `statfs`.
const NAME_BYTES: u32 = 255;

/// A session with the kernel, ready to serve.
pub(crate) struct Service {
    session: Session<Adapter>,
    namespace: Arc<Namespace>,
    counters: Arc<RequestCounters>,
}

/// Options of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServiceOptions {
    /// Threads that take requests.
    pub(crate) threads: usize,
    /// Whether users other than the owner may use the mount.
    pub(crate) allow_other: bool,
}

impl Service {
    /// Takes over a mounted FUSE device and starts the session.
    pub(crate) fn new(
        namespace: Arc<Namespace>,
        context: Arc<Context>,
        clones: Arc<Clones>,
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
        let counters = Arc::clone(context.counters());
        let adapter = Adapter {
            clones,
            open: OpenInodes::default(),
            passthrough: false,
            namespace: Arc::clone(&namespace),
            context,
            kernel: Arc::clone(&kernel),
            pushes: Pushes::leaving_one_of(options.threads),
        };
        let session = Session::from_fd(adapter, device, acl, config)?;
        let _ = kernel.set(session.notifier());
        Ok(Self {
            session,
            namespace,
            counters,
        })
    }

    /// A handle that tells the kernel what to forget.
    pub(crate) fn invalidator(&self) -> Box<dyn Invalidate> {
        Box::new(Invalidator {
            notifier: self.session.notifier(),
        })
    }

    /// Serves until the tree is unmounted, by any process.
    pub(crate) fn run(self) -> io::Result<()> {
        // From here, so that it acts as the owner too.
        deliver::start(&self.namespace, self.session.notifier(), &self.counters)?;
        match self.session.run() {
            // `umount -f` and an abort through sysfs also end the mount.
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
        // The kernel answers with an error if it does not know the name; that is fine.
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
    context: Arc<Context>,
    clones: Arc<Clones>,
    /// The open files and directories of clones.
    open: OpenInodes,
    /// Whether the kernel can read and write files of a clone directly.
    passthrough: bool,
    /// For notifications to the kernel. Set once the session exists.
    kernel: Arc<OnceLock<Notifier>>,
    pushes: Pushes,
}

/// Counts the threads that push data into the kernel's cache. They may wait there for a page that another request has
/// to fill, so one thread must always be free to answer that request.
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

    /// Does the work unless too many threads already push.
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
            // If the kernel refuses or has forgotten the inode, it reads the file as usual.
            if kernel.store(number, 0, bytes).is_ok() {
                self.context.counters().sends(bytes.len());
            }
        };
        self.pushes.run(|| {
            let _ = self.answer("read", |namespace| {
                namespace.hand_over(handle, give);
                Ok(())
            });
        });
    }

    /// Answers one request. A panic is a bug, but it does not take the mount down: this request fails with EIO.
    fn answer<T>(&self, what: &str, work: impl FnOnce(&Namespace) -> Result<T>) -> Result<T, Errno> {
        let result = catch_unwind(AssertUnwindSafe(|| work(&self.namespace)));
        match result {
            Ok(Ok(value)) => Ok(value),
            // The engine has logged which file the error is about.
            Ok(Err(error)) => Err(errno(&error)),
            Err(_) => {
                tracing::error!("A request to {what} failed by a bug in barmanfs; the mount goes on");
                Err(Errno::EIO)
            }
        }
    }
}

impl Adapter {
    /// The clone an inode belongs to, and the inode's node there.
    fn live(&self, number: INodeNo) -> Result<Option<(Arc<Served>, NodeId)>, Errno> {
        let served = self.answer("find a clone", |namespace| self.clones.of(namespace, ino(number)))?;
        Ok(served.map(|served| {
            let node = served.node(ino(number));
            (served, node)
        }))
    }

    /// Answers a request about an inode from its clone, or from a view.
    fn either<T>(
        &self,
        number: INodeNo,
        of_clone: impl FnOnce(&Arc<Served>, NodeId) -> Result<T, Errno>,
        of_view: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match self.live(number)? {
            Some((served, node)) => of_clone(&served, node),
            None => of_view(),
        }
    }

    /// The clone an inode belongs to, for requests that only a clone supports. Everything else is read-only.
    fn writable(&self, number: INodeNo) -> Result<(Arc<Served>, NodeId), Errno> {
        self.live(number)?.ok_or(Errno::EROFS)
    }

    /// Answers one request to a clone.
    fn ask<T>(
        &self,
        what: &str,
        served: &Served,
        work: impl FnOnce(&LiveClone) -> barmanfs_live::Result<T>,
    ) -> Result<T, Errno> {
        self.answer(what, |_| {
            let result = work(&served.clone).map_err(Error::from);
            if let Err(error) = &result
                && error.is_failure()
            {
                tracing::error!("Cannot {what} in the clone {}: {error}", served.described());
            }
            result
        })
    }

    fn shown(&self, served: &Served, of: &NodeAttributes) -> FileAttr {
        let options = self.context.options();
        live::attributes(served, of, (options.uid, options.gid))
    }

    /// Answers with a node that counts as looked up.
    fn found(
        &self,
        served: &Arc<Served>,
        found: Result<NodeAttributes, Errno>,
        reply: Counted<'_, ReplyEntry>,
    ) {
        reply.finish(found, |reply, of| {
            self.clones.looked_up(served, of.node);
            live::entry(reply, &self.shown(served, &of));
        });
    }

    fn live_lookup(
        &self,
        served: &Arc<Served>,
        parent: NodeId,
        name: &OsStr,
        reply: Counted<'_, ReplyEntry>,
    ) {
        match self.ask("look up a name", served, |clone| {
            clone.lookup(parent, name.as_bytes())
        }) {
            Err(errno) if errno.code() == libc::ENOENT => {
                let none = attributes(Ino(0), &Stat::NONE, &Content::File);
                reply.send(|reply| live::no_entry(reply, &none));
            }
            found => self.found(served, found, reply),
        }
    }

    /// Adds an entry with attributes to a listing. It counts as a look-up, except for `.` and `..`. Returns whether
    /// the reply is full.
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
                // The entry was removed after the directory was opened.
                Err(barmanfs_live::Error::Refused(rustix::io::Errno::NOENT)) => return Ok(false),
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

    /// `mkdir` in `live/` creates a clone.
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

    /// `rmdir` in `live/` removes a clone.
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
