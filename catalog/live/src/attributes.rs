//! Attributes of nodes: reading them and changing them.

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use crate::disk::DiskFile;
use crate::disk::{Status, file_name};
use crate::error::{Error, Result, failed};
use crate::live_clone::LiveClone;
use crate::node::{Body, FileNode, Node, State, file_of};
use crate::record::{Change, Made};
use crate::stat::{Kind, Meta, NodeAttributes, NodeId, Time};

/// A modification time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTime {
    /// The current time.
    Now,
    /// The given time.
    At(Time),
}

/// The attributes to change. `None` leaves an attribute as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttributeChanges {
    /// The lower twelve bits of `st_mode`.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes. The file is cut, or grows by zeros.
    pub size_bytes: Option<u64>,
    /// Modification time.
    pub mtime: Option<NewTime>,
}

impl AttributeChanges {
    fn apply(&self, meta: &mut Meta, now: Time) {
        meta.mode = self.mode.map_or(meta.mode, |mode| mode & 0o7777);
        meta.uid = self.uid.unwrap_or(meta.uid);
        meta.gid = self.gid.unwrap_or(meta.gid);
        meta.mtime = match self.mtime {
            None => meta.mtime,
            Some(NewTime::Now) => now,
            Some(NewTime::At(time)) => time,
        };
        meta.ctime = now;
    }
}

impl LiveClone {
    /// What `stat` shows of a node.
    ///
    /// # Errors
    /// `ESTALE` for a node that is not known.
    pub fn attributes(&self, id: NodeId) -> Result<NodeAttributes> {
        self.attributes_of(&*self.node(id)?)
    }

    pub(crate) fn attributes_of(&self, node: &Node) -> Result<NodeAttributes> {
        let mut times = None;
        let (size_bytes, allocated_bytes) = match &node.body {
            Body::Directory(_) | Body::Socket => (0, 0),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::File(file) => {
                let data = file.read();
                match &data.state {
                    State::Lower => (file.lower_size_bytes(), file.lower_size_bytes()),
                    State::Partial(partial) => (partial.size_bytes, partial.size_bytes),
                    State::Plain => {
                        let status = self.status(node, data.upper.as_deref())?;
                        times = Some((status.mtime, status.ctime));
                        (status.size_bytes, status.allocated_bytes)
                    }
                }
            }
        };
        let meta = *node.meta();
        Ok(NodeAttributes {
            node: node.id,
            kind: node.kind(),
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            links: meta.links,
            size_bytes,
            allocated_bytes,
            mtime: times.map_or(meta.mtime, |(mtime, _)| mtime),
            ctime: times.map_or(meta.ctime, |(_, ctime)| meta.ctime.max(ctime)),
        })
    }

    /// The status of the upper file, open or not. An upper file that does not exist is empty: the file was created and
    /// never synced.
    fn status(&self, node: &Node, upper: Option<&dyn DiskFile>) -> Result<Status> {
        let status = match upper {
            Some(upper) => upper.status().map(Some),
            None => self.disk.status(&file_name(node.id)),
        };
        let meta = *node.meta();
        let status = status.map_err(|error| failed("read", self.upper_path(node), error))?;
        Ok(status.unwrap_or(Status {
            size_bytes: 0,
            allocated_bytes: 0,
            mtime: meta.mtime,
            ctime: meta.ctime,
        }))
    }

    /// Changes attributes. Only a change of size touches a file's bytes.
    ///
    /// # Errors
    /// `EISDIR` and `EINVAL` for the size of a node that has none; when the change cannot be written to the journal.
    pub fn set_attributes(&self, id: NodeId, changes: AttributeChanges) -> Result<NodeAttributes> {
        let node = self.node(id)?;
        if let Some(size_bytes) = changes.size_bytes {
            self.set_size(&node, file_of(&node)?, size_bytes)?;
        }
        let rest = AttributeChanges {
            size_bytes: None,
            ..changes
        };
        if rest != AttributeChanges::default() {
            self.change_meta(&node, &rest)?;
        }
        self.attributes_of(&node)
    }

    fn change_meta(&self, node: &Node, changes: &AttributeChanges) -> Result<()> {
        let _gate = self.gate();
        // Held to the end: the file must not switch to or from the state in which its upper file holds the time.
        let mut data = match &node.body {
            Body::File(file) => Some(file.write()),
            Body::Directory(_) | Body::Symlink(_) | Body::Socket => None,
        };
        let upper = match &mut data {
            Some(data) if changes.mtime.is_some() && matches!(data.state, State::Plain) => {
                Some(self.upper(node, data)?)
            }
            _ => None,
        };
        let names = self.names();
        let mut meta = node.meta();
        let mut next = *meta;
        changes.apply(&mut next, Time::now());
        if next.links > 0 {
            self.journal.append(&described(node, next))?;
            recorded(node);
        }
        *meta = next;
        drop(meta);
        drop(names);
        if let Some(data) = &mut data
            && node.users.load(Ordering::Relaxed) == 0
        {
            data.upper = None;
        }
        if let Some(upper) = upper {
            let set = upper.set_mtime(next.mtime);
            set.map_err(|error| failed("set the time of", self.upper_path(node), error))?;
        }
        Ok(())
    }

    /// Sets the times of a file whose bytes were just changed.
    pub(crate) fn stamp(node: &Node, file: &FileNode) {
        file.stamped.store(true, Ordering::Relaxed);
        let now = Time::now();
        let mut meta = node.meta();
        meta.mtime = now;
        meta.ctime = now;
    }

    /// Where a symbolic link points.
    ///
    /// # Errors
    /// `EINVAL` for a node that is not a symbolic link.
    pub fn readlink(&self, id: NodeId) -> Result<Vec<u8>> {
        match &self.node(id)?.body {
            Body::Symlink(target) => Ok(target.to_vec()),
            Body::File(_) | Body::Directory(_) | Body::Socket => Err(Error::Refused(Errno::INVAL)),
        }
    }
}

/// The journal records that describe a node completely, except for its bytes.
pub(crate) fn described(node: &Node, meta: Meta) -> Vec<Change> {
    let mut changes = introduction(node);
    changes.push(Change::Attributes { id: node.id, meta });
    changes
}

/// The journal records that must precede any other record of the node.
pub(crate) fn introduction(node: &Node) -> Vec<Change> {
    if node.recorded.load(Ordering::Relaxed) {
        return Vec::new();
    }
    introduction_for_rewrite(node)
}

/// The same for a rewritten journal, which has no record of the node yet.
pub(crate) fn introduction_for_rewrite(node: &Node) -> Vec<Change> {
    let made = match (&node.body, node.kind()) {
        (Body::Symlink(target), _) => Made::Symlink(target.to_vec()),
        (_, Kind::Directory) => Made::Directory,
        (_, Kind::Socket) => Made::Socket,
        _ => Made::File,
    };
    vec![Change::Node {
        id: node.id,
        origin: node.origin.as_deref().map(<[u8]>::to_vec),
        made,
    }]
}

/// Marks a node as known to the journal.
pub(crate) fn recorded(node: &Node) {
    node.touch();
    node.recorded.store(true, Ordering::Relaxed);
}
