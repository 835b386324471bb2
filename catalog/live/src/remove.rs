//! Removes names.

use rustix::io::Errno;

use crate::edit::Edit;
use crate::error::{Error, NOT_FOUND, Result};
use crate::live_clone::LiveClone;
use crate::names::{Names, check_name, listing_of, present_directory};
use crate::node::{Body, Node};
use crate::stat::NodeId;

impl LiveClone {
    /// Removes a name of a file, a symbolic link or a socket.
    ///
    /// # Errors
    /// `ENOENT`; `EISDIR` for a directory.
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        self.remove(parent, name, |_, node| match node.body {
            Body::Directory(_) => Err(Error::Refused(Errno::ISDIR)),
            Body::File(_) | Body::Symlink(_) | Body::Socket => Ok(()),
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`; `ENOTDIR`; `ENOTEMPTY`.
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        self.remove(parent, name, |names, node| self.check_empty(names, node))
    }

    /// Refuses anything but an empty directory.
    pub(crate) fn check_empty(&self, names: &Names, node: &Node) -> Result<()> {
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
