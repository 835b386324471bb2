//! Looking up, opening and closing nodes. The counts tell the engine which nodes are still needed.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{NOT_FOUND, Result, STALE, failed};
use crate::live_clone::LiveClone;
use crate::names::{check_name, listing_of};
use crate::node::{Body, FileNode, Node, State};
use crate::stat::{NodeAttributes, NodeId};

impl LiveClone {
    /// The node under a name in a directory. It is kept in memory until [`forget`](Self::forget).
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`; when the backup cannot be read.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<NodeAttributes> {
        check_name(name)?;
        let parent = self.node(parent)?;
        let node = {
            let listing = listing_of(&parent)?;
            let known = self.names().difference(parent.id, name);
            // This read does not lock the names. They are checked again below, because they may have changed.
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

    /// The path of a node in the backup, if it has one. [`recall`](Self::recall) needs it after the clone was opened
    /// again.
    pub fn origin(&self, id: NodeId) -> Option<Box<[u8]>> {
        self.names().node(id).ok()?.origin.clone()
    }

    /// Restores the look-ups of a node from before the clone was opened again. A node without differences is
    /// identified by its `origin` alone.
    ///
    /// # Errors
    /// `ESTALE` when the node is gone or has another place; when the backup cannot be read.
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

    /// Takes back `count` look-ups of a node; its creation counts as one.
    pub fn forget(&self, id: NodeId, count: u64) {
        let mut names = self.names_mut();
        if let Ok(node) = names.node(id) {
            let before = node.lookups.load(Ordering::Relaxed);
            node.lookups
                .store(before.saturating_sub(count), Ordering::Relaxed);
            names.release(&node);
        }
    }

    /// Opens a node. An open node exists even if it loses all its names.
    ///
    /// # Errors
    /// `ESTALE` for a node that does not exist.
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

    /// Closes the upper file of a node that was closed, unless it was opened again meanwhile.
    pub(crate) fn put_away(&self, node: &Arc<Node>, file: &FileNode) {
        let mut data = file.write();
        if node.users.load(Ordering::Relaxed) > 0 {
            return;
        }
        if file.handed_out.load(Ordering::Relaxed) {
            self.mark_dirty(node, file);
            file.handed_out.store(false, Ordering::Release);
        }
        // A dirty file is reopened for its sync: there may be more dirty files than a process may have open.
        data.upper = None;
    }

    /// The file itself, for a kernel that reads and writes it directly. Only for a file that has no part of the backup
    /// any more, and not in a clone with a size limit, because nothing would count the bytes.
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
