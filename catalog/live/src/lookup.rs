//! Nodes looked up, opened and closed: how the engine knows which of them somebody still needs.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clone::LiveClone;
use crate::error::{NOT_FOUND, Result, STALE, failed};
use crate::names::{check_name, listing_of};
use crate::node::{Body, FileNode, Node, State};
use crate::stat::{NodeAttributes, NodeId};

impl LiveClone {
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
    pub(crate) fn put_away(&self, node: &Arc<Node>, file: &FileNode) {
        let mut data = file.write();
        if node.users.load(Ordering::Relaxed) > 0 {
            return;
        }
        if file.handed_out.load(Ordering::Relaxed) {
            self.mark_dirty(node, file);
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
    pub fn plain_file(&self, id: NodeId) -> Result<Option<File>> {
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
        self.mark_dirty(&node, file);
        let plain = plain.map_err(|error| failed("open", self.upper_path(&node), error))?;
        Ok(Some(plain))
    }
}
