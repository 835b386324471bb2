//! Names looked up, made and removed.
//!
//! An operation first finds out, names locked, whether it is possible; then it is written down; then it happens, which
//! cannot fail. So what is refused has not happened, and the journal has all in the order it happened in.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use barmanfs_store::DirectoryRef;
use rustix::io::Errno;

use super::attributes::{introduction, recorded};
use super::disk::file_name;
use super::names::{Differences, Names, Under};
use super::node::{Body, FileNode, Kind, Meta, Node, NodeAttributes, NodeId, State, Time};
use super::record::Change;
use super::{LiveClone, failed};
use crate::error::{Error, NOT_FOUND, Result, STALE};

/// A name's bytes at most, as Linux has it.
const MAX_NAME_BYTES: usize = 255;

/// The bytes of a symbolic link at most: `PATH_MAX` less the NUL.
const MAX_TARGET_BYTES: usize = 4095;

/// Names that lead to one file at most, as ext4 has it.
const MAX_LINKS: u32 = 65_000;

/// `S_ISGID`.
const SET_GROUP_ID: u32 = 0o2000;

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNode {
    /// The lower twelve bits of `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl NewNode {
    /// What is made in a directory with the set-group-id bit has that one's group, a directory also the bit.
    fn inherited(self, parent: &Node, is_directory: bool) -> Self {
        let parent = *parent.meta();
        if parent.mode & SET_GROUP_ID == 0 {
            return self;
        }
        Self {
            gid: parent.gid,
            mode: self.mode | if is_directory { SET_GROUP_ID } else { 0 },
            ..self
        }
    }

    fn meta(self, now: Time) -> Meta {
        Meta {
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            links: 1,
            mtime: now,
            ctime: now,
        }
    }
}

/// A name, and what stands under it after an edit.
#[derive(Debug)]
struct Named {
    parent: Arc<Node>,
    name: Vec<u8>,
    node: Option<Arc<Node>>,
}

/// What an operation does, once it is known that it can be done.
#[derive(Debug, Default)]
pub(super) struct Edit {
    names: Vec<Named>,
    /// Nodes whose count of names or times change.
    metas: Vec<(Arc<Node>, Meta)>,
}

impl Edit {
    /// Puts a node, or nothing, under a name.
    pub(super) fn name(&mut self, parent: &Arc<Node>, name: &[u8], node: Option<&Arc<Node>>) {
        self.names.push(Named {
            parent: Arc::clone(parent),
            name: name.to_vec(),
            node: node.cloned(),
        });
        // The directory changes with it, once.
        if !self.metas.iter().any(|(other, _)| other.id == parent.id) {
            let now = Time::now();
            let meta = *parent.meta();
            self.metas.push((
                Arc::clone(parent),
                Meta {
                    mtime: now,
                    ctime: now,
                    ..meta
                },
            ));
        }
    }

    /// Changes how many names a node has: by `more` less `fewer`.
    pub(super) fn links(&mut self, node: &Arc<Node>, more: u32, fewer: u32) {
        let meta = *node.meta();
        let links = (meta.links + more).saturating_sub(fewer);
        let now = Time::now();
        self.metas.push((
            Arc::clone(node),
            Meta {
                links,
                ctime: now,
                ..meta
            },
        ));
    }

    /// Has directories keep the times they have: what happens is no change to anyone.
    pub(super) fn keep_times(&mut self) {
        for (node, meta) in &mut self.metas {
            *meta = *node.meta();
        }
    }

    /// What the journal is told.
    fn changes(&self, made: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        for (node, meta) in &self.metas {
            if node.origin.is_none() && !node.recorded.load(Ordering::Relaxed) {
                changes.push(Change::Made { count: made });
            }
            // Of what was never spoken of, that it is no more need not be said: its name says it.
            if meta.links > 0 || node.recorded.load(Ordering::Relaxed) {
                changes.extend(introduction(node));
                changes.push(Change::Attributes {
                    id: node.id,
                    meta: *meta,
                });
            }
        }
        changes.extend(
            self.names
                .iter()
                .map(|Named { parent, name, node }| Change::Name {
                    parent: parent.id,
                    name: name.clone(),
                    node: node.as_ref().map(|node| node.id),
                }),
        );
        changes
    }
}

/// Whether a symbolic link in a data directory may lead out of it.
pub(crate) fn leads_out(target: &[u8]) -> bool {
    target.first() == Some(&b'/') || target.split(|&byte| byte == b'/').any(|name| name == b"..")
}

/// Where the links to tablespaces are.
const TABLESPACES: &[u8] = b"pg_tblspc";

impl LiveClone {
    /// Writes an operation down, and lets it happen. Returns the nodes that nothing leads to any more.
    pub(super) fn commit(&self, names: &mut Names, edit: Edit) -> Result<Vec<Arc<Node>>> {
        self.journal.append(&edit.changes(names.made))?;
        let mut gone = Vec::new();
        for (node, next) in &edit.metas {
            let mut meta = node.meta();
            meta.links = next.links;
            meta.ctime = next.ctime;
            if node.is_directory() {
                meta.mtime = next.mtime;
            }
            if next.links > 0 {
                recorded(node);
            }
        }
        for Named { parent, name, node } in &edit.names {
            names.keep(parent);
            if let Some(node) = node {
                names.keep(node);
            }
            names.set(parent, name, node.as_deref());
        }
        for (node, meta) in edit.metas {
            if meta.links == 0 {
                names.unlinked(&node);
                names.release(&node);
                if node.users.load(Ordering::Relaxed) == 0 {
                    gone.push(node);
                }
            }
        }
        Ok(gone)
    }

    /// For nodes an edit left without names.
    pub(super) fn doom_all(&self, gone: Vec<Arc<Node>>) {
        gone.into_iter().for_each(|node| self.doom(&node));
    }

    /// What stands under a name in a directory. It is remembered until it is [forgotten](Self::forget).
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`; when the backup cannot be read.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<NodeAttributes> {
        check_name(name)?;
        let parent = self.node(parent)?;
        let node = {
            let listing = listing_of(&parent)?;
            let known = self.names().difference(parent.id, name);
            // Read without keeping others from their names; looked at again below, for it may have changed since.
            if known.is_none() && parent.origin.is_some() {
                self.trees.lookup(listing, name)?;
            }
            let mut names = self.names_mut();
            let child = names.child(&self.trees, &parent, name)?.ok_or(NOT_FOUND)?;
            let node = names.keep(&child);
            node.lookups.fetch_add(1, Ordering::Relaxed);
            node
        };
        self.attributes_of(&node)
    }

    /// Where the backup has a node, if it has: how to [recall](Self::recall) it from another opening of the clone.
    pub fn origin(&self, id: NodeId) -> Option<Box<[u8]>> {
        self.names().node(id).ok()?.origin.clone()
    }

    /// Remembers a node that was looked up so often while the clone was open before. One that is as the backup has it is
    /// known by its `origin` alone.
    ///
    /// # Errors
    /// `ESTALE` when it is not there any more, or elsewhere; when the backup cannot be read.
    pub fn recall(&self, id: NodeId, origin: Option<&[u8]>, lookups: u64) -> Result<()> {
        let mut names = self.names_mut();
        let node = match (names.node(id), origin) {
            (Ok(node), _) => node,
            (Err(_), Some(path)) => {
                let mut at = names.node(self.root)?;
                for name in path.split(|&byte| byte == b'/') {
                    at = names.child(&self.trees, &at, name)?.ok_or(STALE)?;
                }
                at
            }
            (Err(error), None) => return Err(error),
        };
        if node.id != id || node.meta().links == 0 {
            return Err(STALE);
        }
        names.keep(&node).lookups.fetch_add(lookups, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back what `count` look-ups, or makings, of a node have taken.
    pub fn forget(&self, id: NodeId, count: u64) {
        let mut names = self.names_mut();
        if let Ok(node) = names.node(id) {
            let before = node.lookups.load(Ordering::Relaxed);
            node.lookups
                .store(before.saturating_sub(count), Ordering::Relaxed);
            names.release(&node);
        }
    }

    /// Opens a node: while it is open it is there, whatever becomes of its names.
    ///
    /// # Errors
    /// `ESTALE` for what is not there.
    pub fn open_node(&self, id: NodeId) -> Result<()> {
        let names = self.names_mut();
        let node = names.node(id)?;
        if node.meta().links == 0 && node.users.load(Ordering::Relaxed) == 0 {
            return Err(STALE);
        }
        node.users.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Closes a node.
    pub fn close_node(&self, id: NodeId) {
        let mut names = self.names_mut();
        let Ok(node) = names.node(id) else {
            return;
        };
        let users = node.users.load(Ordering::Relaxed).saturating_sub(1);
        node.users.store(users, Ordering::Relaxed);
        if users > 0 {
            return;
        }
        let is_gone = node.meta().links == 0;
        names.release(&node);
        drop(names);
        if is_gone {
            self.doom(&node);
        } else if let Body::File(file) = &node.body {
            self.put_away(&node, file);
        }
    }

    /// Nobody has the file open any more, unless somebody has opened it since.
    pub(super) fn put_away(&self, node: &Arc<Node>, file: &FileNode) {
        let mut data = file.write();
        if node.users.load(Ordering::Relaxed) > 0 {
            return;
        }
        if file.handed_out.load(Ordering::Relaxed) {
            self.soil(node, file);
            file.handed_out.store(false, Ordering::Release);
        }
        // One that is dirty is opened again to be synced: there may be more of them than a process may have open.
        data.upper = None;
    }

    /// The file itself, for a kernel that is to read and write it without asking: only of one that has nothing of the
    /// backup any more. Not of a clone whose size is limited, for nobody would count.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn plain_file(&self, id: NodeId) -> Result<Option<std::fs::File>> {
        let node = self.node(id)?;
        let Body::File(file) = &node.body else {
            return Ok(None);
        };
        if self.max_bytes.is_some() {
            return Ok(None);
        }
        let data = self.opened(&node, file)?;
        let (State::Plain, Some(upper)) = (&data.state, &data.upper) else {
            return Ok(None);
        };
        let Some(plain) = upper.file() else {
            return Ok(None);
        };
        file.handed_out.store(true, Ordering::Relaxed);
        self.soil(&node, file);
        let plain = plain.map_err(|error| failed("open", self.upper_path(&node), error))?;
        Ok(Some(plain))
    }

    /// Makes a file. It counts as looked up.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT` in a directory that is no more, `ENOTDIR`, `ENOSPC`.
    pub fn create(&self, parent: NodeId, name: &[u8], new: NewNode) -> Result<NodeAttributes> {
        self.make(parent, name, new, Body::File(FileNode::new(None, State::Plain)))
    }

    /// Makes a directory. It counts as looked up.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn mkdir(&self, parent: NodeId, name: &[u8], new: NewNode) -> Result<NodeAttributes> {
        self.make(parent, name, new, Body::Directory(DirectoryRef::default()))
    }

    /// Makes a symbolic link. It counts as looked up.
    ///
    /// # Errors
    /// As [`create`](Self::create); `ENAMETOOLONG`, `ENOENT` for a target that cannot be one.
    pub fn symlink(
        &self,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
        new: NewNode,
    ) -> Result<NodeAttributes> {
        match target.len() {
            0 => Err(NOT_FOUND),
            1..=MAX_TARGET_BYTES => self.make(parent, name, new, Body::Symlink(target.into())),
            _ => Err(Error::Refused(Errno::NAMETOOLONG)),
        }
    }

    /// Makes the name of a socket. It counts as looked up.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn socket(&self, parent: NodeId, name: &[u8], new: NewNode) -> Result<NodeAttributes> {
        self.make(parent, name, new, Body::Socket)
    }

    /// Refuses a tablespace outside the clone: the replay of another server's WAL, or a setting nobody meant, would have
    /// the clone's server work in the original's directory. `pg_tblspc` itself may not be a link that leads out either.
    pub(super) fn check_tablespace_link(
        &self,
        names: &Names,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<()> {
        if !leads_out(target) {
            return Ok(());
        }
        let root = names.node(self.root)?;
        let tablespaces = names.child(&self.trees, &root, TABLESPACES)?;
        let is_in_tablespaces = tablespaces.is_some_and(|tablespaces| tablespaces.id == parent);
        if is_in_tablespaces || self.is_tablespaces(parent, name) {
            return Err(refused_tablespace(name, target));
        }
        Ok(())
    }

    /// Refuses to make a directory `pg_tblspc` that holds a link [`check_tablespace_link`](Self::check_tablespace_link) would
    /// have refused.
    pub(super) fn check_tablespaces(
        &self,
        names: &Names,
        parent: NodeId,
        name: &[u8],
        node: &Node,
    ) -> Result<()> {
        let Body::Directory(listing) = &node.body else {
            return Ok(());
        };
        if !self.is_tablespaces(parent, name) {
            return Ok(());
        }
        let none = Differences::new();
        let differences = names.differences.get(&node.id).map_or(&none, |of| &**of);
        for (name, under) in differences {
            let Under::Node(id, Kind::Symlink) = under else {
                continue;
            };
            if let Body::Symlink(target) = &names.node(*id)?.body
                && leads_out(target)
            {
                return Err(refused_tablespace(name, target));
            }
        }
        for entry in self.trees.entries(listing) {
            let entry = entry?;
            if let barmanfs_store::Node::Symlink(target) = &entry.node
                && leads_out(target)
                && !differences.contains_key(&*entry.name)
            {
                return Err(refused_tablespace(&entry.name, target));
            }
        }
        Ok(())
    }

    fn is_tablespaces(&self, parent: NodeId, name: &[u8]) -> bool {
        parent == self.root && name == TABLESPACES
    }

    fn make(&self, parent: NodeId, name: &[u8], new: NewNode, body: Body) -> Result<NodeAttributes> {
        check_name(name)?;
        self.check_room(super::blocks::BLOCK_BYTES)?;
        let _gate = self.gate();
        let node = {
            let mut names = self.names_mut();
            let parent = self.free_name(&names, parent, name)?;
            if let Body::Symlink(target) = &body {
                self.check_tablespace_link(&names, parent.id, name, target)?;
            }
            let id = names.next_id();
            let new = new.inherited(&parent, matches!(body, Body::Directory(_)));
            let node = Arc::new(Node::new(id, None, body, new.meta(Time::now())));
            self.make_upper(&node)?;
            let mut edit = Edit::default();
            edit.name(&parent, name, Some(&node));
            edit.links(&node, 0, 0);
            if let Err(error) = self.commit(&mut names, edit) {
                // What is left of it goes when the clone is opened the next time, at the latest.
                let _ = self.disk.remove(&file_name(id));
                return Err(error);
            }
            node.lookups.fetch_add(1, Ordering::Relaxed);
            node
        };
        self.attributes_of(&node)
    }

    /// A new file's upper file is there before the journal speaks of it.
    fn make_upper(&self, node: &Node) -> Result<()> {
        let Body::File(file) = &node.body else {
            return Ok(());
        };
        let made = self.disk.create(&file_name(node.id));
        file.write().upper = Some(made.map_err(|error| failed("create", self.upper_path(node), error))?);
        self.journal.name_made();
        Ok(())
    }

    /// The directory, if it is there and nothing stands under the name.
    fn free_name(&self, names: &Names, parent: NodeId, name: &[u8]) -> Result<Arc<Node>> {
        let parent = present_directory(names, parent)?;
        match names.child(&self.trees, &parent, name)? {
            Some(_) => Err(Error::Refused(Errno::EXIST)),
            None => Ok(parent),
        }
    }

    /// Gives a file or a symbolic link another name. It counts as looked up once more.
    ///
    /// # Errors
    /// `EPERM` for a directory; `EMLINK`; as [`create`](Self::create).
    pub fn link(&self, id: NodeId, parent: NodeId, name: &[u8]) -> Result<NodeAttributes> {
        check_name(name)?;
        let _gate = self.gate();
        let node = {
            let mut names = self.names_mut();
            let node = names.node(id)?;
            let parent = self.free_name(&names, parent, name)?;
            let links = node.meta().links;
            if node.is_directory() {
                return Err(Error::Refused(Errno::PERM));
            }
            if let Body::Symlink(target) = &node.body {
                self.check_tablespace_link(&names, parent.id, name, target)?;
            }
            if links == 0 {
                return Err(NOT_FOUND);
            }
            if links >= MAX_LINKS {
                return Err(Error::Refused(Errno::MLINK));
            }
            let mut edit = Edit::default();
            edit.name(&parent, name, Some(&node));
            edit.links(&node, 1, 0);
            self.commit(&mut names, edit)?;
            node.lookups.fetch_add(1, Ordering::Relaxed);
            node
        };
        self.attributes_of(&node)
    }

    /// Removes a name of a file or a symbolic link.
    ///
    /// # Errors
    /// `ENOENT`; `EISDIR` for a directory.
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        self.remove(parent, name, |_, node| match node.body {
            Body::Directory(_) => Err(Error::Refused(Errno::ISDIR)),
            Body::File(_) | Body::Symlink(_) | Body::Socket => Ok(()),
        })
    }

    /// Removes a directory that is empty.
    ///
    /// # Errors
    /// `ENOENT`; `ENOTDIR`; `ENOTEMPTY`.
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        self.remove(parent, name, |names, node| self.check_empty(names, node))
    }

    /// Refuses what is not an empty directory.
    pub(super) fn check_empty(&self, names: &Names, node: &Node) -> Result<()> {
        if names.is_empty(&self.trees, node, listing_of(node)?)? {
            Ok(())
        } else {
            Err(Error::Refused(Errno::NOTEMPTY))
        }
    }

    fn remove(
        &self,
        parent: NodeId,
        name: &[u8],
        check: impl FnOnce(&Names, &Node) -> Result<()>,
    ) -> Result<()> {
        check_name(name)?;
        let _gate = self.gate();
        let gone = {
            let mut names = self.names_mut();
            let parent = present_directory(&names, parent)?;
            let node = names.child(&self.trees, &parent, name)?.ok_or(NOT_FOUND)?;
            check(&names, &node)?;
            let mut edit = Edit::default();
            edit.name(&parent, name, None);
            edit.links(&node, 0, 1);
            self.commit(&mut names, edit)?
        };
        self.doom_all(gone);
        Ok(())
    }
}

fn refused_tablespace(name: &[u8], target: &[u8]) -> Error {
    tracing::warn!(
        "A clone's server may not make the tablespace {} in {}: what is in a clone stays in it",
        name.escape_ascii(),
        target.escape_ascii()
    );
    Error::Refused(Errno::PERM)
}

/// The directory of this number, if a name leads to it.
pub(super) fn present_directory(names: &Names, id: NodeId) -> Result<Arc<Node>> {
    let node = names.node(id)?;
    listing_of(&node)?;
    let links = node.meta().links;
    if links == 0 { Err(NOT_FOUND) } else { Ok(node) }
}

/// What a directory has of the backup's.
pub(super) fn listing_of(node: &Node) -> Result<&DirectoryRef> {
    match &node.body {
        Body::Directory(listing) => Ok(listing),
        Body::File(_) | Body::Symlink(_) | Body::Socket => Err(Error::Refused(Errno::NOTDIR)),
    }
}

pub(super) fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::Refused(Errno::NAMETOOLONG));
    }
    let is_name = !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0));
    if is_name {
        Ok(())
    } else {
        Err(Error::Refused(Errno::INVAL))
    }
}
