//! Creates files, directories, symbolic links, sockets and hard links.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use barmanfs_store::DirectoryRef;
use rustix::io::Errno;

use crate::blocks::BLOCK_BYTES;
use crate::disk::file_name;
use crate::edit::Edit;
use crate::error::{Error, NOT_FOUND, Result, failed};
use crate::live_clone::LiveClone;
use crate::names::{Names, check_name, present_directory};
use crate::node::{Body, FileNode, Node, State};
use crate::stat::{Meta, NodeAttributes, NodeId, Time};

/// Maximum bytes of a symbolic link: `PATH_MAX` without the NUL.
const MAX_TARGET_BYTES: usize = 4095;

/// Maximum number of names of one file, as in ext4.
const MAX_LINKS: u32 = 65_000;

/// `S_ISGID`.
const SET_GROUP_ID: u32 = 0o2000;

/// Attributes of a node to create.
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
    /// A node created in a directory with the set-group-id bit gets the directory's group; a directory also gets the
    /// bit.
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

impl LiveClone {
    /// Creates a file. It counts as looked up.
    ///
    /// # Errors
    /// `EEXIST`, `ENOENT` in a directory that was removed, `ENOTDIR`, `ENOSPC`.
    pub fn create(&self, parent: NodeId, name: &[u8], new: NewNode) -> Result<NodeAttributes> {
        self.make(parent, name, new, Body::File(FileNode::new(None, State::Plain)))
    }

    /// Creates a directory. It counts as looked up.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn mkdir(&self, parent: NodeId, name: &[u8], new: NewNode) -> Result<NodeAttributes> {
        self.make(parent, name, new, Body::Directory(DirectoryRef::default()))
    }

    /// Creates a symbolic link. It counts as looked up.
    ///
    /// # Errors
    /// As [`create`](Self::create); `ENAMETOOLONG`, `ENOENT` for an empty target.
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

    /// Creates the name of a socket. It counts as looked up.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn socket(&self, parent: NodeId, name: &[u8], new: NewNode) -> Result<NodeAttributes> {
        self.make(parent, name, new, Body::Socket)
    }

    fn make(&self, parent: NodeId, name: &[u8], new: NewNode, body: Body) -> Result<NodeAttributes> {
        check_name(name)?;
        self.check_room(BLOCK_BYTES)?;
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
                // If this fails, the file is removed when the clone is opened the next time.
                let _ = self.disk.remove(&file_name(id));
                return Err(error);
            }
            node.lookups.fetch_add(1, Ordering::Relaxed);
            node
        };
        self.attributes_of(&node)
    }

    /// Creates the upper file of a new file, before the journal mentions it.
    fn make_upper(&self, node: &Node) -> Result<()> {
        let Body::File(file) = &node.body else {
            return Ok(());
        };
        let made = self.disk.create(&file_name(node.id));
        file.write().upper = Some(made.map_err(|error| failed("create", self.upper_path(node), error))?);
        self.journal.name_made();
        Ok(())
    }

    /// The directory, if it exists and does not contain the name.
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
}
