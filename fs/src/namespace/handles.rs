//! Open files and directories.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use barmanfs_store::sync::lock;
use barmanfs_store::{FileMap, TreeReader};

use super::ino::Ino;
use super::node::Node;
use super::sequence::Sequence;
use super::siblings::Sibling;
use super::{Room, log_failure};
use crate::entry::{Body, Child, Children, Lifetime};
use crate::error::Result;
use crate::usage::Usage;

/// Identifies an open file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// The open files or directories, by handle. The kernel's own limit bounds them.
#[derive(Debug)]
pub(super) struct Handles<T> {
    next: AtomicU64,
    open: Mutex<HashMap<Handle, Arc<T>>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(1),
            open: Mutex::default(),
        }
    }
}

impl<T> Handles<T> {
    pub(super) fn insert(&self, open: T) -> Handle {
        let handle = Handle(self.next.fetch_add(1, Ordering::Relaxed));
        self.lock().insert(handle, Arc::new(open));
        handle
    }

    pub(super) fn get(&self, handle: Handle) -> Option<Arc<T>> {
        self.lock().get(&handle).cloned()
    }

    pub(super) fn remove(&self, handle: Handle) {
        let removed = self.lock().remove(&handle);
        // Outside the lock: closing the last one may end the use of a backup.
        drop(removed);
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Handle, Arc<T>>> {
        lock(&self.open)
    }
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    node: Arc<Node>,
    body: Body,
    usage: Option<Arc<Usage>>,
    sequence: Mutex<Sequence>,
}

thread_local! {
    /// The buffer in which a read collects its chunks. It keeps its capacity between reads.
    static GATHERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl OpenFile {
    pub(super) fn new(node: Arc<Node>, body: Body, usage: Option<Arc<Usage>>) -> Self {
        Self {
            node,
            body,
            usage,
            sequence: Mutex::default(),
        }
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    pub(super) fn body(&self) -> &Body {
        &self.body
    }

    /// Hands the content to `give` once, see [`Node::hand_over`].
    pub(super) fn hand_over(&self, trees: &TreeReader, give: impl FnOnce(&[u8])) {
        self.node.hand_over(&self.body, trees, give);
    }

    pub(super) fn read(
        &self,
        trees: &TreeReader,
        offset: u64,
        length: usize,
        reply: impl FnOnce(&[u8]),
    ) -> Result<()> {
        let available = self.body.size_bytes().saturating_sub(offset);
        let length = usize::try_from(available).map_or(length, |available| available.min(length));
        if let Some(map) = self.body.map() {
            self.read_ahead(trees, map, offset, length as u64);
        }
        GATHERED.with_borrow_mut(|buffer| {
            // Zeroes only the new part: the rest is overwritten.
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let (buffer, _) = buffer.split_at_mut(length);
            let count = self.body.read_at(trees, offset, buffer);
            let count = log_failure(count, || {
                format!("read {} at offset {offset}", self.node.described())
            })?;
            reply(buffer.split_at(count.min(length)).0);
            Ok(())
        })
    }

    fn read_ahead(&self, trees: &TreeReader, map: &FileMap, offset: u64, length: u64) {
        let ahead = lock(&self.sequence).read(offset, length);
        let windows = map.windows_of(ahead.start, ahead.end - ahead.start);
        if !windows.is_empty()
            && let Err(error) = trees.read_ahead(map, windows)
        {
            // A read of the damaged place reports the error.
            tracing::debug!("Cannot read ahead in {}: {error}", self.node.described());
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(usage) = &self.usage {
            usage.closed();
        }
    }
}

/// An open directory: a stream of its entries, which restarts when the reader goes back.
pub(super) struct OpenDirectory {
    node: Arc<Node>,
    stream: Mutex<Option<Stream>>,
    /// The files listed so far, if the listing started at the beginning.
    files: Mutex<Vec<Sibling>>,
}

struct Stream {
    /// Number of lines taken.
    position: u64,
    entries: Children,
    /// The line that did not fit the last time.
    pending: Option<Child>,
}

impl OpenDirectory {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            stream: Mutex::default(),
            files: Mutex::default(),
        }
    }

    pub(super) fn ino(&self) -> Ino {
        self.node.ino
    }

    /// Whether its listing never changes.
    pub(super) fn is_immutable(&self) -> bool {
        let directory = self.node.directory();
        directory.is_some_and(|directory| directory.lifetime() == Lifetime::Forever)
    }

    /// Takes the files that were listed before `offset`.
    pub(super) fn listed_before(&self, offset: u64) -> Vec<Sibling> {
        let files = std::mem::take(&mut *lock(&self.files));
        if offset == 0 { Vec::new() } else { files }
    }

    /// Keeps the files that were listed until now.
    pub(super) fn listed(&self, files: Vec<Sibling>) {
        *lock(&self.files) = files;
    }

    /// Passes the lines from `offset` on to `emit`. Returns whether the last one was taken.
    pub(super) fn read(
        &self,
        offset: u64,
        emit: &mut dyn FnMut(&Arc<Node>, u64, &Child) -> Room,
    ) -> Result<bool> {
        log_failure(self.read_lines(offset, emit), || {
            format!("list {}", self.node.described())
        })
    }

    fn read_lines(&self, offset: u64, emit: &mut dyn FnMut(&Arc<Node>, u64, &Child) -> Room) -> Result<bool> {
        let mut kept = lock(&self.stream);
        // Taken out, so that the next read restarts a stream that failed.
        let mut stream = match kept.take() {
            Some(stream) if stream.position == offset => stream,
            _ => self.stream_at(offset)?,
        };
        while let Some(child) = stream.pending.take().map(Ok).or_else(|| stream.entries.next()) {
            let child = child?;
            if emit(&self.node, stream.position + 1, &child) == Room::Full {
                stream.pending = Some(child);
                break;
            }
            stream.position += 1;
        }
        let ended = stream.pending.is_none();
        *kept = Some(stream);
        Ok(ended)
    }

    fn stream_at(&self, offset: u64) -> Result<Stream> {
        let directory = super::directory(&self.node)?;
        let dots = [
            dot(&self.node, b"."),
            dot(self.node.parent.as_ref().unwrap_or(&self.node), b".."),
        ];
        let mut entries: Children = Box::new(dots.into_iter().map(Ok).chain(directory.entries()?));
        for _ in 0..offset {
            if entries.next().transpose()?.is_none() {
                break;
            }
        }
        Ok(Stream {
            position: offset,
            entries,
            pending: None,
        })
    }
}

fn dot(node: &Arc<Node>, name: &[u8]) -> Child {
    let Node {
        identity,
        stat,
        content,
        lifetime,
        ..
    } = &**node;
    Child {
        name: name.to_vec(),
        identity: *identity,
        stat: *stat,
        content: content.clone(),
        lifetime: *lifetime,
        map: None,
    }
}

/// Whether the name is `.` or `..`.
pub(super) fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

impl Drop for OpenDirectory {
    fn drop(&mut self) {
        if let Some(usage) = self.node.directory().and_then(|directory| directory.usage()) {
            usage.closed();
        }
    }
}

impl fmt::Debug for OpenDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenDirectory")
            .field("path", &self.node.path())
            .finish_non_exhaustive()
    }
}
