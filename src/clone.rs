//! Work on a clone's files in this process: not through a mount, while no server runs on the clone and no other process
//! has it.

pub(crate) mod backup_contents;
pub(crate) mod commit;
pub(crate) mod export;
mod needed_wal;

use barmanfs_catalog::{CloneDescription, CloneLock, CloneName, Repository, ServerName};
use barmanfs_live::{Kind, LiveClone, NodeAttributes, NodeId};
use rustix::io::Errno;

use crate::error::Error;
use crate::mounts::{is_running, running_on};
use crate::output::printable;

/// A clone that only this process has.
#[derive(Debug)]
pub(crate) struct OfflineClone {
    pub(crate) description: CloneDescription,
    pub(crate) files: LiveClone,
    _lock: CloneLock,
}

/// Called with each entry's path and attributes. Returns whether to enter a directory.
type Visit<'a> = dyn FnMut(&[u8], &NodeAttributes) -> Result<bool, Error> + 'a;

impl OfflineClone {
    /// Opens a clone that is locked: no mount serves it.
    pub(crate) fn open(
        repository: &Repository,
        server: &ServerName,
        name: &CloneName,
        lock: CloneLock,
    ) -> Result<Self, Error> {
        let description = repository.clone_named(server, name)?;
        let directory = repository.clone_directory(server, name);
        let acting = repository.as_owner()?;
        let clone = Self {
            files: LiveClone::open(&directory, &description, repository.trees())?,
            description,
            _lock: lock,
        };
        drop(acting);
        clone.refuse_running()?;
        Ok(clone)
    }

    /// Refuses a clone on which a server runs that has outlived its mount: it would see its files change.
    fn refuse_running(&self) -> Result<(), Error> {
        match running_on(&self.files)? {
            None => Ok(()),
            Some(running) => {
                let CloneDescription { server, name, .. } = &self.description;
                Err(is_running(server, name, &running))
            }
        }
    }

    /// The attributes of the entry at this path; `None` if it does not exist.
    pub(crate) fn find(&self, path: &[u8]) -> Result<Option<NodeAttributes>, Error> {
        let mut found = self.files.attributes(self.files.root())?;
        for name in path.split(|&byte| byte == b'/') {
            found = match self.files.lookup(found.node, name) {
                Err(barmanfs_live::Error::Refused(Errno::NOENT | Errno::NOTDIR)) => return Ok(None),
                found => found?,
            };
        }
        Ok(Some(found))
    }

    /// The content of a file, up to a limit; `None` if the file does not exist.
    pub(crate) fn read_small(&self, path: &[u8], max_bytes: usize) -> Result<Option<Vec<u8>>, Error> {
        match self.find(path)? {
            Some(found) if found.kind == Kind::File => self.read(found.node, 0, max_bytes).map(Some),
            _ => Ok(None),
        }
    }

    /// Bytes of a file from `offset` on; fewer at its end.
    pub(crate) fn read(&self, node: NodeId, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; length];
        let count = self.files.read(node, offset, &mut bytes)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Visits everything in the clone except its root, in the order of names. A directory comes before its entries.
    pub(crate) fn walk(&self, visit: &mut Visit<'_>) -> Result<(), Error> {
        self.walk_directory(self.files.root(), &mut Vec::new(), visit)
    }

    fn walk_directory(
        &self,
        directory: NodeId,
        path: &mut Vec<u8>,
        visit: &mut Visit<'_>,
    ) -> Result<(), Error> {
        let length = path.len();
        for name in self.files.entries(directory)? {
            let name = name?.name;
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let found = self.files.lookup(directory, &name)?;
            // The node is opened for the visit, so that its upper file is closed right afterwards.
            self.files.open_node(found.node)?;
            let visited = visit(path, &found).and_then(|enter| match found.kind {
                Kind::Directory if enter => self.walk_directory(found.node, path, visit),
                _ => Ok(()),
            });
            self.files.close_node(found.node);
            self.files.forget(found.node, 1);
            visited?;
            path.truncate(length);
        }
        Ok(())
    }

    /// The error for a link that leads out of the clone: a copy would lack the link's target.
    fn leads_out(&self, path: &[u8], target: &[u8]) -> Error {
        Error::failed(format!(
            "{} of {} leads out of it, to {}: a backup would lack what is there",
            printable(path),
            self.described(),
            printable(target)
        ))
    }

    /// The clone's name in messages: "clone test1 of main".
    pub(crate) fn described(&self) -> String {
        format!("clone {} of {}", self.description.name, self.description.server)
    }
}
