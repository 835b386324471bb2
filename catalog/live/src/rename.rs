//! Renames: rename(2).

use std::sync::Arc;

use rustix::io::Errno;

use crate::edit::Edit;
use crate::error::{Error, NOT_FOUND, Result};
use crate::live_clone::LiveClone;
use crate::names::{Names, check_name, present_directory};
use crate::node::{Body, Node};
use crate::stat::NodeId;

/// What happens to the node under the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// An existing node is an error.
    NoReplace,
    /// It gets the old name.
    Exchange,
}

/// The nodes of a rename.
struct Renamed {
    from: (Arc<Node>, Vec<u8>),
    to: (Arc<Node>, Vec<u8>),
    node: Arc<Node>,
    /// The node under the new name.
    other: Option<Arc<Node>>,
}

impl LiveClone {
    /// Renames a file or directory.
    ///
    /// # Errors
    /// As rename(2): `ENOENT`, `EEXIST`, `EISDIR`, `ENOTDIR`, `ENOTEMPTY`; `EINVAL` for a directory moved into itself.
    pub fn rename(&self, from: (NodeId, &[u8]), to: (NodeId, &[u8]), mode: RenameMode) -> Result<()> {
        check_name(from.1)?;
        check_name(to.1)?;
        let _gate = self.gate();
        let gone = {
            let mut names = self.names_mut();
            let renamed = self.renamed(&names, from, to)?;
            self.check_rename(&names, &renamed, mode)?;
            self.check_stays(&names, to, &renamed.node)?;
            if let Some(other) = renamed.other.as_ref().filter(|_| mode == RenameMode::Exchange) {
                self.check_stays(&names, from, other)?;
            }
            if renamed
                .other
                .as_ref()
                .is_some_and(|other| other.id == renamed.node.id)
            {
                return Ok(());
            }
            self.commit(&mut names, renamed.edit(mode))?
        };
        self.doom_all(gone);
        Ok(())
    }

    fn renamed(&self, names: &Names, from: (NodeId, &[u8]), to: (NodeId, &[u8])) -> Result<Renamed> {
        let old = present_directory(names, from.0)?;
        let new = present_directory(names, to.0)?;
        let node = names.child(&self.trees, &old, from.1)?.ok_or(NOT_FOUND)?;
        let other = names.child(&self.trees, &new, to.1)?;
        Ok(Renamed {
            from: (old, from.1.to_vec()),
            to: (new, to.1.to_vec()),
            node,
            other,
        })
    }

    /// Refuses a rename that would give the clone a tablespace outside itself.
    fn check_stays(&self, names: &Names, (parent, name): (NodeId, &[u8]), node: &Node) -> Result<()> {
        match &node.body {
            Body::Symlink(target) => self.check_tablespace_link(names, parent, name, target),
            _ => self.check_tablespaces(names, parent, name, node),
        }
    }

    /// In the order in which Linux checks.
    fn check_rename(&self, names: &Names, renamed: &Renamed, mode: RenameMode) -> Result<()> {
        let Renamed {
            from,
            to,
            node,
            other,
        } = renamed;
        match (mode, other) {
            (RenameMode::NoReplace, Some(_)) => return Err(Error::Refused(Errno::EXIST)),
            (RenameMode::Exchange, None) => return Err(NOT_FOUND),
            _ => {}
        }
        if node.is_directory() && names.is_below(&to.0, node.id) {
            return Err(Error::Refused(Errno::INVAL));
        }
        let Some(other) = other else {
            return Ok(());
        };
        if other.is_directory() && names.is_below(&from.0, other.id) {
            let errno = match mode {
                RenameMode::Exchange => Errno::INVAL,
                RenameMode::Replace | RenameMode::NoReplace => Errno::NOTEMPTY,
            };
            return Err(Error::Refused(errno));
        }
        if mode == RenameMode::Exchange || other.id == node.id {
            return Ok(());
        }
        match (node.is_directory(), other.is_directory()) {
            (true, false) => Err(Error::Refused(Errno::NOTDIR)),
            (false, true) => Err(Error::Refused(Errno::ISDIR)),
            (true, true) => self.check_empty(names, other),
            (false, false) => Ok(()),
        }
    }
}

impl Renamed {
    fn edit(&self, mode: RenameMode) -> Edit {
        let Self {
            from,
            to,
            node,
            other,
        } = self;
        let mut edit = Edit::default();
        edit.name(&to.0, &to.1, Some(node));
        edit.links(node, 0, 0);
        let exchanged = other.as_ref().filter(|_| mode == RenameMode::Exchange);
        edit.name(&from.0, &from.1, exchanged);
        if let Some(other) = other {
            let fewer = u32::from(exchanged.is_none());
            edit.links(other, 0, fewer);
        }
        edit
    }
}
