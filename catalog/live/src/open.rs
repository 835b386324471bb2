//! Opening a clone (replaying its journal over the backup), and creating one.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use barmanfs_catalog::CloneDescription;
use barmanfs_store::{Attributes, DirectoryRef, Entry, TreeReader};

use crate::attributes::AttributeChanges;
use crate::attributes::{NewTime, recorded};
use crate::blocks::BLOCK_BYTES;
use crate::create::NewNode;
use crate::disk::{Disk, FILES, JOURNAL, SystemDisk, file_name};
use crate::edit::Edit;
use crate::error::{Error, NOT_FOUND, Result, failed};
use crate::journal::Journal;
use crate::live_clone::LiveClone;
use crate::names::{Names, join};
use crate::node::{Body, FileNode, Node, State};
use crate::record::{Change, Made};
use crate::stat::{Kind, Meta, NodeId, Time};

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// The differences of a new clone from its lower layer.
pub struct Initial<'a> {
    /// Created in this order. A file replaces one of the backup at the same path.
    pub made: Vec<AddedEntry>,
    /// Directories in which [`hide`](Self::hide) is called; "" is the root.
    pub looked_at: &'a [&'a [u8]],
    /// Whether the clone hides an entry of the backup.
    pub hide: &'a dyn Fn(&[u8], &Entry) -> bool,
}

impl std::fmt::Debug for Initial<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initial")
            .field("made", &self.made)
            .field("looked_at", &self.looked_at)
            .finish_non_exhaustive()
    }
}

/// A file, directory or link that a new clone starts with.
#[derive(Debug, Clone)]
pub struct AddedEntry {
    /// Its path: "recovery.signal".
    pub path: Vec<u8>,
    /// Its owner, permissions and time.
    pub attributes: Attributes,
    /// Its content.
    pub thing: AddedContent,
}

/// Content of a [`AddedEntry`].
#[derive(Debug, Clone)]
pub enum AddedContent {
    /// A file with these bytes.
    File(Vec<u8>),
    /// A file with the content of this one.
    CopyOf(Arc<File>),
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
}

impl LiveClone {
    /// Opens the clone in `directory`.
    ///
    /// # Errors
    /// When its journal cannot be read, is damaged or belongs to another clone, or when the backup cannot be read.
    pub fn open(directory: &Path, description: &CloneDescription, trees: TreeReader) -> Result<Self> {
        let disk = SystemDisk::open(directory).map_err(|error| failed("open", directory, error))?;
        Self::open_on(Arc::new(disk), description, trees, false)
    }

    /// Opens a clone that is known to be durable, because it was just created or this process has released it. Unlike
    /// [`open`](Self::open), this does not wait for what other processes write to the same file system.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_durable(directory: &Path, description: &CloneDescription, trees: TreeReader) -> Result<Self> {
        let disk = SystemDisk::open(directory).map_err(|error| failed("open", directory, error))?;
        Self::open_on(Arc::new(disk), description, trees, true)
    }

    /// Creates a clone in the empty directory `directory`. It is durable afterwards.
    ///
    /// # Errors
    /// When it cannot be written, or the backup cannot be read. The directory does not hold a clone then.
    pub fn create_in(
        directory: &Path,
        description: &CloneDescription,
        trees: TreeReader,
        initial: &Initial<'_>,
    ) -> Result<Self> {
        let disk = SystemDisk::open(directory).map_err(|error| failed("open", directory, error))?;
        Self::create_on(Arc::new(disk), description, trees, initial)
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        description: &CloneDescription,
        trees: TreeReader,
        is_durable: bool,
    ) -> Result<Self> {
        let mut replay = Replay::new(&disk, description, &trees)?;
        let id = description.seed().to_string();
        let journal = Journal::open(Arc::clone(&disk), &id, &mut |change| replay.apply(change))?;
        let names = replay.names;
        // The process that had the clone open before may have been killed. What it did not sync counts as synced from
        // now on. Only after that may files be removed below.
        if !is_durable {
            let synced = disk.sync_all();
            synced.map_err(|error| failed("sync", disk.path(), error))?;
        }
        let used_bytes = take_stock(&*disk, &names)?;
        Ok(Self::new(disk, journal, names, used_bytes, description, trees))
    }

    pub(crate) fn create_on(
        disk: Arc<dyn Disk>,
        description: &CloneDescription,
        trees: TreeReader,
        initial: &Initial<'_>,
    ) -> Result<Self> {
        let replay = Replay::new(&disk, description, &trees)?;
        let names = replay.names;
        let journal = Journal::create(Arc::clone(&disk), &description.seed().to_string())?;
        let clone = Self::new(disk, journal, names, 0, description, trees);
        for directory in initial.looked_at {
            clone.hide(directory, initial.hide)?;
        }
        for made in &initial.made {
            clone.make_initial(made)?;
        }
        clone.flush_all()?;
        Ok(clone)
    }

    fn new(
        disk: Arc<dyn Disk>,
        journal: Journal,
        names: Names,
        used_bytes: u64,
        description: &CloneDescription,
        trees: TreeReader,
    ) -> Self {
        Self {
            id: description.seed(),
            root: NodeId::of_path(description.seed(), b""),
            max_bytes: description.max_bytes,
            trees,
            disk,
            journal,
            gate: RwLock::default(),
            names: RwLock::new(names),
            dirty: Mutex::default(),
            doomed: Mutex::default(),
            used_bytes: AtomicU64::new(used_bytes),
            written_bytes: AtomicU64::new(0),
        }
    }

    /// The node at a path.
    fn at(&self, path: &[u8]) -> Result<Arc<Node>> {
        let mut names = self.names_mut();
        let mut node = names.node(self.root)?;
        for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            let child = names.child(&self.trees, &node, name)?.ok_or(NOT_FOUND)?;
            node = names.keep(&child);
        }
        Ok(node)
    }

    /// Hides entries of a directory, if it exists.
    fn hide(&self, path: &[u8], hide: &dyn Fn(&[u8], &Entry) -> bool) -> Result<()> {
        let directory = match self.at(path) {
            Err(Error::Refused(_)) => return Ok(()),
            directory => directory?,
        };
        let (Body::Directory(listing), Some(origin)) = (&directory.body, &directory.origin) else {
            return Ok(());
        };
        for entry in self.trees.entries(listing) {
            let entry = entry?;
            if hide(&join(origin, &entry.name), &entry) {
                let mut names = self.names_mut();
                let mut edit = Edit::default();
                edit.name(&directory, &entry.name, None);
                edit.keep_times();
                self.commit(&mut names, edit)?;
            }
        }
        Ok(())
    }

    fn make_initial(&self, made: &AddedEntry) -> Result<()> {
        let (parent, name) = match made.path.iter().rposition(|&byte| byte == b'/') {
            Some(end) => (made.path.get(..end), made.path.get(end + 1..)),
            None => (Some(&[][..]), Some(&*made.path)),
        };
        let (parent, name) = (parent.unwrap_or_default(), name.unwrap_or_default());
        let parent = self.at(parent).map_err(|error| Error::Unusable {
            path: self.disk.path().to_owned(),
            reason: format!("\"{}\" cannot be made: {error}", made.path.escape_ascii()),
        })?;
        let Attributes {
            mode,
            uid,
            gid,
            mtime_s,
            mtime_ns,
        } = made.attributes;
        let new = NewNode { mode, uid, gid };
        match self.unlink(parent.id, name) {
            Err(Error::Refused(rustix::io::Errno::NOENT)) => {}
            unlinked => unlinked?,
        }
        let node = match &made.thing {
            AddedContent::File(_) | AddedContent::CopyOf(_) => self.create(parent.id, name, new)?,
            AddedContent::Directory => self.mkdir(parent.id, name, new)?,
            AddedContent::Symlink(target) => self.symlink(parent.id, name, target, new)?,
        };
        match &made.thing {
            AddedContent::File(bytes) => self.write_all(node.node, 0, bytes)?,
            AddedContent::CopyOf(file) => self.copy_from(node.node, file)?,
            AddedContent::Directory | AddedContent::Symlink(_) => {}
        }
        let time = Time {
            s: mtime_s,
            ns: mtime_ns,
        };
        let times = AttributeChanges {
            mtime: Some(NewTime::At(time)),
            ..Default::default()
        };
        self.set_attributes(node.node, times)?;
        self.forget(node.node, 1);
        Ok(())
    }

    fn copy_from(&self, node: NodeId, file: &File) -> Result<()> {
        let mut buffer = vec![0; COPY_BYTES];
        let mut offset = 0;
        loop {
            let count = match file.read_at(&mut buffer, offset) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                count => count.map_err(|error| failed("copy a file to", self.disk.path(), error))?,
            };
            self.write_all(node, offset, buffer.get(..count).unwrap_or_default())?;
            offset += count as u64;
        }
    }

    fn write_all(&self, node: NodeId, offset: u64, bytes: &[u8]) -> Result<()> {
        match self.write(node, offset, bytes, false)? < bytes.len() {
            true => Err(Error::Refused(rustix::io::Errno::NOSPC)),
            false => Ok(()),
        }
    }
}

/// Applies the changes of a journal.
struct Replay<'a> {
    names: Names,
    root: &'a DirectoryRef,
    trees: &'a TreeReader,
    disk: &'a Arc<dyn Disk>,
}

impl<'a> Replay<'a> {
    /// The state of a clone without changes.
    fn new(
        disk: &'a Arc<dyn Disk>,
        description: &'a CloneDescription,
        trees: &'a TreeReader,
    ) -> Result<Self> {
        let mut names = Names::new(description.seed());
        let root = Entry {
            name: Vec::new(),
            attributes: description.root.attributes,
            node: barmanfs_store::Node::Directory(description.root.directory.clone()),
        };
        let node = names.lower_node(b"", root);
        node.touch();
        names.keep(&node);
        let mut replay = Self {
            names,
            root: &description.root.directory,
            trees,
            disk,
        };
        for graft in &description.grafts {
            replay.graft(graft)?;
        }
        Ok(replay)
    }

    /// Adds a stored file at a path where the backup has none.
    fn graft(&mut self, graft: &barmanfs_catalog::ExtraFile) -> Result<()> {
        let path = graft.path.as_bytes();
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(end) => (
                path.get(..end).unwrap_or_default(),
                path.get(end + 1..).unwrap_or_default(),
            ),
            None => (&b""[..], path),
        };
        let parent = self.lower(parent)?;
        let node = self.names.lower_node(
            path,
            Entry {
                name: name.to_vec(),
                attributes: graft.attributes,
                node: barmanfs_store::Node::File(graft.map.clone()),
            },
        );
        node.touch();
        self.names.keep(&node);
        self.names.set(&parent, name, Some(&node));
        Ok(())
    }

    /// The node that the lower layer has at a path.
    fn lower(&self, path: &[u8]) -> Result<Arc<Node>> {
        let id = NodeId::of_path(self.names.clone_id(), path);
        if let Ok(node) = self.names.node(id) {
            return Ok(node);
        }
        let entry = self.trees.find(self.root, path)?;
        let entry = entry.ok_or_else(|| {
            self.damaged(format!(
                "It refers to \"{}\", which the backup does not have",
                path.escape_ascii()
            ))
        })?;
        Ok(self.names.lower_node(path, entry))
    }

    fn damaged(&self, reason: String) -> Error {
        Error::Unusable {
            path: self.disk.path().join(JOURNAL),
            reason,
        }
    }

    fn known(&self, id: NodeId) -> Result<Arc<Node>> {
        let unknown = |_| self.damaged(format!("It refers to node {:016x} before it describes it", id.0));
        self.names.node(id).map_err(unknown)
    }

    fn apply(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Begin { .. } => {}
            Change::Made { count } => self.names.made = self.names.made.max(count),
            Change::Node { id, origin, made } => self.introduce(id, origin.as_deref(), made)?,
            Change::Attributes { id, meta } => {
                let node = self.known(id)?;
                *node.meta() = meta;
                if meta.links == 0 {
                    self.names.unlinked(&node);
                    self.names.nodes.remove(&id);
                }
            }
            Change::Name { parent, name, node } => {
                let parent = self.known(parent)?;
                let node = node.map(|node| self.known(node)).transpose()?;
                self.names.set(&parent, &name, node.as_deref());
            }
            Change::Data {
                id,
                size_bytes,
                lower_bytes,
                added,
            } => {
                let node = self.known(id)?;
                let file = self.file(&node)?;
                let mut data = file.write();
                let mut partial = data.become_partial(file).resized(size_bytes);
                partial.lower_bytes = lower_bytes.min(partial.lower_bytes);
                partial.journaled_bytes = size_bytes;
                let end = size_bytes.div_ceil(BLOCK_BYTES);
                for run in added {
                    partial.blocks.insert(run.start..run.end.min(end));
                }
                data.state = State::Partial(partial);
            }
            Change::Plain { id } => {
                let node = self.known(id)?;
                self.file(&node)?.write().state = State::Plain;
            }
        }
        Ok(())
    }

    fn file<'n>(&self, node: &'n Node) -> Result<&'n FileNode> {
        match &node.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) | Body::Symlink(_) | Body::Socket => Err(self.damaged(format!(
                "It has bytes for node {:016x}, which is not a file",
                node.id.0
            ))),
        }
    }

    fn introduce(&mut self, id: NodeId, origin: Option<&[u8]>, made: Made) -> Result<()> {
        let node = match origin {
            Some(path) => self.lower(path)?,
            None => {
                let body = match made {
                    Made::File => Body::File(FileNode::new(None, State::Plain)),
                    Made::Directory => Body::Directory(DirectoryRef::default()),
                    Made::Symlink(target) => Body::Symlink(target.into()),
                    Made::Socket => Body::Socket,
                };
                let epoch = Time { s: 0, ns: 0 };
                let meta = Meta {
                    mode: 0,
                    uid: 0,
                    gid: 0,
                    links: 1,
                    mtime: epoch,
                    ctime: epoch,
                };
                Arc::new(Node::new(id, None, body, meta))
            }
        };
        if node.id != id {
            return Err(self.damaged(format!("It gives a node the wrong number {:016x}", id.0)));
        }
        recorded(&node);
        self.names.keep(&node);
        Ok(())
    }
}

/// Removes upper files that belong to no node, and sums up the bytes of the others.
fn take_stock(disk: &dyn Disk, names: &Names) -> Result<u64> {
    let fail = |action, error| failed(action, disk.path().join(FILES), error);
    let mut unclaimed: HashMap<String, &Arc<Node>> = HashMap::new();
    for node in names.nodes.values().filter(|node| node.kind() == Kind::File) {
        unclaimed.insert(file_name(node.id), node);
    }
    let (mut used_bytes, mut removed) = (0, false);
    for name in disk.file_names().map_err(|error| fail("list", error))? {
        let name = format!("{FILES}/{name}");
        let owner = unclaimed.get(&name).and_then(|node| match &node.body {
            Body::File(file) => Some(file),
            Body::Directory(_) | Body::Symlink(_) | Body::Socket => None,
        });
        match owner.map(FileNode::write) {
            Some(mut data) if !matches!(data.state, State::Lower) => {
                let status = disk.status(&name).map_err(|error| fail("read", error))?;
                data.counted_bytes = status.map_or(0, |status| status.allocated_bytes);
                used_bytes += data.counted_bytes;
            }
            _ => {
                disk.remove(&name).map_err(|error| fail("remove", error))?;
                removed = true;
            }
        }
    }
    if removed {
        // Otherwise a file created later under the same name could turn out, after a crash, to be the removed one.
        disk.sync_names(true).map_err(|error| fail("sync", error))?;
    }
    Ok(used_bytes)
}
