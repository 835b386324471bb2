//! Tablespaces of a clone must lie inside it. A link that leads out is refused.

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::live_clone::LiveClone;
use crate::names::{Differences, Names, Under};
use crate::node::{Body, Node};
use crate::stat::{Kind, NodeId};

/// Whether a symbolic link in a data directory can lead out of it.
pub fn leads_out(target: &[u8]) -> bool {
    target.first() == Some(&b'/') || target.split(|&byte| byte == b'/').any(|name| name == b"..")
}

/// The directory of links to tablespaces.
const TABLESPACES: &[u8] = b"pg_tblspc";

impl LiveClone {
    /// Refuses a tablespace outside the clone. Otherwise the replay of another server's WAL, or a wrong setting, could
    /// make the clone's server write into the original's directory. `pg_tblspc` itself must not be a link that leads
    /// out either.
    pub(crate) fn check_tablespace_link(
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

    /// Refuses a directory that would become `pg_tblspc` if it holds a link that
    /// [`check_tablespace_link`](Self::check_tablespace_link) would have refused.
    pub(crate) fn check_tablespaces(
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
}

fn refused_tablespace(name: &[u8], target: &[u8]) -> Error {
    tracing::warn!(
        "A clone's server may not make the tablespace {} in {}: what is in a clone stays in it",
        name.escape_ascii(),
        target.escape_ascii()
    );
    Error::Refused(Errno::PERM)
}
