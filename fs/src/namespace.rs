//! The engine: inodes and open files over a tree of directories. It does not know FUSE. An adapter turns requests into
//! these calls, from any number of threads at once.
//!
//! It holds no lock while a view runs or data is read.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use barmanfs_store::TreeReader;
use barmanfs_store::sync::lock;
use crossbeam_channel::Sender;
use rustix::io::Errno;

use crate::entry::{Body, Child, Content, Directory, Lifetime, Stat};
use crate::error::{NOT_FOUND, Result, STALE};
use crate::usage::{Caller, Use};

mod handles;
mod ino;
mod node;
mod sequence;
mod siblings;
mod table;

pub use handles::Handle;
pub use ino::Ino;
pub use node::Node;

use handles::{Handles, OpenDirectory, OpenFile};
use siblings::Orders;
use table::Table;
pub(crate) use table::Victim;

/// Minimum time between two log lines about the same condition.
const FULL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The mounted tree.
#[derive(Debug)]
pub struct Namespace {
    trees: TreeReader,
    nodes: Table,
    files: Handles<OpenFile>,
    directories: Handles<OpenDirectory>,
    orders: Orders,
    deliver: OnceLock<Sender<Vec<Arc<Node>>>>,
    last_full_log: Mutex<Option<Instant>>,
}

/// The answer to a look-up.
#[derive(Debug)]
pub enum Found {
    /// The entry with its current attributes. It counts as looked up once more.
    Node(Arc<Node>, Stat),
    /// There is no such entry, and this stays valid for the lifetime.
    Absent(Lifetime),
}

/// An opened file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Identifies it in later calls.
    pub handle: Handle,
    /// Whether the kernel may keep its cached content for the next open. Otherwise it must not cache anything.
    pub keep: bool,
}

/// What `lseek` looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is not in a hole.
    Data,
    /// The next hole.
    Hole,
}

/// One line of a listing.
#[derive(Debug)]
pub struct Line<'a> {
    /// The entry's inode number.
    pub ino: Ino,
    /// The offset after it, to continue the listing.
    pub next: u64,
    /// Its name.
    pub name: &'a [u8],
    /// Its attributes; for `.` and `..` those of the directory itself.
    pub stat: Stat,
    /// What it is.
    pub content: &'a Content,
    /// How long that stays true.
    pub lifetime: Lifetime,
}

impl Namespace {
    /// The tree below `root`, whose stored files are read from `trees`.
    pub fn new(root: Child, trees: TreeReader) -> Self {
        let root = Node::new(Ino::ROOT, None, root);
        Self {
            trees,
            nodes: Table::new(root),
            files: Handles::default(),
            directories: Handles::default(),
            orders: Orders::default(),
            deliver: OnceLock::new(),
            last_full_log: Mutex::default(),
        }
    }

    /// The entry `name` of a directory.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Found> {
        let parent = self.node(parent)?;
        let directory = directory(&parent)?;
        let found = directory.lookup(name);
        let found = log_failure(found, || {
            format!("look up {} in {}", name.escape_ascii(), parent.described())
        });
        Ok(match found? {
            // Only for directories, which need much memory: recovery must get the proof that a segment is absent.
            Some(Child {
                content: Content::Directory(_),
                ..
            }) if directory.is_open_ended() && self.nodes.is_full() => {
                self.log_full();
                return Err(crate::Error::Refused(Errno::AGAIN));
            }
            Some(child) => {
                let stat = child.stat;
                Found::Node(self.nodes.look_up(&parent, child), stat)
            }
            None => Found::Absent(directory.lifetime()),
        })
    }

    /// Logged once a minute, because this may last long.
    fn log_full(&self) {
        let mut last = lock(&self.last_full_log);
        if last.is_none_or(|last| last.elapsed() >= FULL_LOG_INTERVAL) {
            *last = Some(Instant::now());
            tracing::warn!(
                "More names are looked up in pitr/ than are kept: those beyond are answered with \
                 \"Resource temporarily unavailable\" for now"
            );
        }
    }

    /// Sets the channel that is notified when the kernel knows too many names.
    pub(crate) fn on_crowd(&self, tell: Sender<()>) {
        self.nodes.on_crowd(tell);
    }

    /// The names the kernel should forget.
    pub(crate) fn victims(&self) -> Vec<Victim> {
        self.nodes.victims()
    }

    /// The kernel forgets `count` look-ups of an inode.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.nodes.forget(ino, count);
    }

    /// The node of an inode the kernel knows.
    ///
    /// # Errors
    /// ESTALE for any other.
    pub fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        self.nodes.get(ino).ok_or(STALE)
    }

    /// The attributes of an inode, as they are now.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn stat(&self, node: &Node) -> Result<Stat> {
        if node.lifetime == Lifetime::Forever {
            return Ok(node.stat);
        }
        let Some(parent) = &node.parent else {
            return Ok(node.stat);
        };
        // An entry that lost its name keeps its attributes for those who have it open.
        let now = directory(parent)?.lookup(&node.name);
        Ok(
            log_failure(now, || format!("read the attributes of {}", node.described()))?
                .filter(|child| child.identity == node.identity)
                .map_or(node.stat, |child| child.stat),
        )
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// When it cannot be read, or its backup has been deleted.
    pub fn open(&self, ino: Ino, caller: Caller) -> Result<Opened> {
        let node = self.node(ino)?;
        let parent = node
            .parent
            .as_ref()
            .filter(|_| matches!(node.content, Content::File))
            .ok_or(NOT_FOUND)?;
        let body = match &node.map {
            Some(map) => Body::Stored(Arc::clone(map)),
            None => {
                let body = directory(parent)?.open(&node.name);
                log_failure(body, || format!("open {}", node.described()))?
            }
        };
        let usage = directory(parent)?.usage().cloned();
        if let Some(usage) = &usage {
            usage.opened(Use::File, caller).map_err(|_deleted| STALE)?;
        }
        self.read_siblings_ahead(parent, ino);
        let keep = node.lifetime != Lifetime::Never;
        Ok(Opened {
            handle: self.files.insert(OpenFile::new(node, body, usage)),
            keep,
        })
    }

    /// Decodes the beginnings of files that are likely to be opened next. Errors are ignored here; the real read
    /// reports them.
    fn read_siblings_ahead(&self, parent: &Node, opened: Ino) {
        let (Some(siblings), Ok(directory)) = (self.orders.of(parent.ino), directory(parent)) else {
            return;
        };
        let trees = &self.trees;
        let mut small = Vec::new();
        for sibling in siblings.opened(opened) {
            let node = self.nodes.get(sibling.ino);
            if let Some(map) = node.as_ref().and_then(|node| node.map.as_ref()) {
                let _ = trees.read_ahead(map, 0..1);
                small.extend(node);
            } else if let Ok(Body::Stored(map)) = directory.open(&sibling.name) {
                let _ = trees.read_ahead(&map, map.windows_of(0, siblings::FIRST_BYTES));
            }
        }
        if let Some(deliver) = self.deliver.get().filter(|_| !small.is_empty()) {
            // If the thread is behind, the files are handed over when they are opened.
            let _ = deliver.try_send(small);
        }
    }

    /// Sets the channel that gets small files that are likely to be opened next, see [`deliver`](Self::deliver).
    pub(crate) fn on_ahead(&self, deliver: Sender<Vec<Arc<Node>>>) {
        let _ = self.deliver.set(deliver);
    }

    /// As [`hand_over`](Self::hand_over), for a small file that is not open yet.
    pub(crate) fn deliver(&self, node: &Node, give: impl FnOnce(&[u8])) {
        if let Some(map) = &node.map {
            node.hand_over(&Body::Stored(Arc::clone(map)), &self.trees, give);
        }
    }

    /// Passes the whole content of a small file to `give`, once for each node, so that the kernel need not request it.
    /// If the content cannot be read, the kernel's request reports that.
    pub fn hand_over(&self, handle: Handle, give: impl FnOnce(&[u8])) {
        if let Some(file) = self.files.get(handle) {
            file.hand_over(&self.trees, give);
        }
    }

    /// Reads up to `length` bytes and gives them to `reply`; fewer at the file's end.
    ///
    /// # Errors
    /// When a chunk that is needed cannot be read.
    pub fn read(&self, handle: Handle, offset: u64, length: usize, reply: impl FnOnce(&[u8])) -> Result<()> {
        self.files
            .get(handle)
            .ok_or(STALE)?
            .read(&self.trees, offset, length, reply)
    }

    /// The next data or hole from `offset` on. The end of the file counts as a hole.
    ///
    /// # Errors
    /// ENXIO when there is none; when the file's map cannot be read.
    pub fn seek(&self, handle: Handle, offset: u64, seek: Seek) -> Result<u64> {
        let file = self.files.get(handle).ok_or(STALE)?;
        let none = crate::Error::Refused(Errno::NXIO);
        if offset >= file.body().size_bytes() {
            return Err(none);
        }
        let trees = &self.trees;
        let failed = |result: barmanfs_store::Result<Option<u64>>| {
            let what = || format!("find the holes of {}", file.node().described());
            log_failure(result.map_err(Into::into), what)
        };
        match (file.body(), seek) {
            (Body::Stored(map), Seek::Data) => failed(trees.next_data(map, offset))?.ok_or(none),
            (Body::Stored(map), Seek::Hole) => failed(trees.next_hole(map, offset).map(Some))?.ok_or(none),
            (Body::Made(_) | Body::Spooled(..) | Body::Edited(_), Seek::Data) => Ok(offset),
            (body, Seek::Hole) => Ok(body.size_bytes()),
        }
    }

    /// Closes a file.
    pub fn close(&self, handle: Handle) {
        self.files.remove(handle);
    }

    /// Opens a directory.
    ///
    /// # Errors
    /// When its backup has been deleted.
    pub fn open_directory(&self, ino: Ino, caller: Caller) -> Result<Opened> {
        let node = self.node(ino)?;
        let of = directory(&node)?;
        if let Some(usage) = of.usage() {
            usage.opened(Use::Directory, caller).map_err(|_deleted| STALE)?;
        }
        let keep = of.lifetime() == Lifetime::Forever;
        Ok(Opened {
            handle: self.directories.insert(OpenDirectory::new(node)),
            keep,
        })
    }

    /// Passes the lines of a listing from `offset` on to `emit` until it returns [`Room::Full`].
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn read_directory(
        &self,
        handle: Handle,
        offset: u64,
        lines: Lines,
        emit: &mut dyn FnMut(Line<'_>) -> Room,
    ) -> Result<()> {
        let open = self.directories.get(handle).ok_or(STALE)?;
        let mut files = open.listed_before(offset);
        let ended = open.read(offset, &mut |directory, next, child| {
            let (ino, room) = self.emit(directory, next, child, lines, emit);
            if room == Room::Taken && matches!(child.content, Content::File) {
                siblings::note(&mut files, ino, child);
            }
            room
        })?;
        if ended && open.is_immutable() {
            self.orders.learn(open.ino(), files);
        } else {
            open.listed(files);
        }
        Ok(())
    }

    fn emit(
        &self,
        directory: &Arc<Node>,
        next: u64,
        child: &Child,
        lines: Lines,
        emit: &mut dyn FnMut(Line<'_>) -> Room,
    ) -> (Ino, Room) {
        let counted = lines == Lines::AsLookups && !handles::is_dot(&child.name);
        let ino = match child.name.as_slice() {
            b"." => directory.ino,
            b".." => directory.parent.as_ref().unwrap_or(directory).ino,
            _ if counted => self.nodes.look_up(directory, child.clone()).ino,
            _ => self.nodes.number_of(directory.ino, child),
        };
        let Child {
            name,
            stat,
            content,
            lifetime,
            ..
        } = child;
        let room = emit(Line {
            ino,
            next,
            name,
            stat: *stat,
            content,
            lifetime: *lifetime,
        });
        if counted && room == Room::Full {
            self.nodes.forget(ino, 1);
        }
        (ino, room)
    }

    /// Closes a directory.
    pub fn close_directory(&self, handle: Handle) {
        self.directories.remove(handle);
    }

    /// The directory at a path below the root, if the kernel knows it.
    ///
    /// # Errors
    /// When a directory on the path cannot be read.
    pub fn find(&self, path: &[String]) -> Result<Option<Arc<Node>>> {
        let mut node = self.node(Ino::ROOT)?;
        for name in path {
            let Some(ino) = self.number_of(&node, name)? else {
                return Ok(None);
            };
            let Some(known) = self.nodes.get(ino) else {
                return Ok(None);
            };
            node = known;
        }
        Ok(Some(node))
    }

    /// The inode number of a name in a directory, whether or not the kernel knows it.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn number_of(&self, parent: &Node, name: &str) -> Result<Option<Ino>> {
        let child = directory(parent)?.lookup(name.as_bytes())?;
        Ok(child.map(|child| self.nodes.number_of(parent.ino, &child)))
    }

    /// How many inodes the kernel knows, and how many files and directories are open.
    pub fn in_use(&self) -> (usize, usize) {
        (self.nodes.len(), self.files.len() + self.directories.len())
    }
}

/// Logs a failure. A refusal is a normal answer and is not logged.
fn log_failure<T>(result: Result<T>, what: impl FnOnce() -> String) -> Result<T> {
    result.inspect_err(|error| {
        if error.is_failure() {
            tracing::error!("Cannot {}: {error}", what());
        }
    })
}

/// What a line of a listing counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// Only a name.
    AsNames,
    /// A look-up of the name, except `.` and `..`.
    AsLookups,
}

/// Whether a listing's reader has room for another line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// The line was taken.
    Taken,
    /// It was not.
    Full,
}

fn directory(node: &Node) -> Result<&Arc<dyn Directory>> {
    node.directory().ok_or(crate::Error::Refused(Errno::NOTDIR))
}
