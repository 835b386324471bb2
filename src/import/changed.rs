//! Files that are made from those of a backup that was imported before.

use std::cell::RefCell;
use std::io::Read;

use barmanfs_pg::{Lsn, SystemId};
use barmanfs_store::layout::BLOCK_BYTES;
use barmanfs_store::{Attributes, FileMap, Finder, Node, TreeReader};

use super::Intake;
use super::intake::wrong;
use crate::error::Error;

/// The backup on which another one builds.
pub(super) struct Base {
    trees: TreeReader,
    files: RefCell<Finder>,
}

impl Base {
    /// The complete backup that was imported under this name, of this cluster and with this start; `None` if it is not here.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub(super) fn find(
        intake: &Intake<'_>,
        name: &str,
        system_id: SystemId,
        start_lsn: Lsn,
    ) -> Result<Option<Self>, Error> {
        let backups = intake.repository.backups(intake.server)?;
        let found = backups.into_iter().rfind(|backup| {
            backup.is_complete()
                && backup.imported.as_ref().is_some_and(|from| from.name == name)
                && backup.system_id == system_id
                && backup.start_lsn == Some(start_lsn)
        });
        Ok(found.and_then(|backup| {
            let trees = intake.repository.trees();
            Some(Self {
                files: RefCell::new(Finder::new(trees.clone(), backup.root?.directory)),
                trees,
            })
        }))
    }

    /// One of its files.
    ///
    /// # Errors
    /// When it does not have it, or cannot be read.
    pub(super) fn file(&self, path: &[u8]) -> Result<(Attributes, FileMap), Error> {
        let found = self.files.borrow_mut().find(path);
        match found.map_err(barmanfs_catalog::Error::from)? {
            Some(entry) => match entry.node {
                Node::File(map) => Ok((entry.attributes, map)),
                Node::Directory(_) | Node::Symlink(_) => {
                    Err(wrong(path, format_args!("it is no file in the backup before")))
                }
            },
            None => Err(wrong(path, format_args!("the backup before does not have it"))),
        }
    }
}

impl Intake<'_> {
    /// Takes a file over from the backup before. Nothing is read.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub(super) fn unchanged(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        (base, map): (&Base, &FileMap),
    ) -> Result<(), Error> {
        let stored = self.files.stored_file(path, attributes, (&base.trees, map));
        stored.map_err(|error| self.failed(path, &error))?;
        self.shared_bytes += map.size_bytes;
        self.show()
    }

    /// Makes a file of `size_bytes` from that of the backup before, and these blocks of `content` in its place.
    ///
    /// # Errors
    /// When the blocks cannot be read, or the file cannot be stored.
    pub(super) fn changed(
        &mut self,
        path: &[u8],
        (attributes, size_bytes): (Attributes, u64),
        (base, map): (&Base, &FileMap),
        blocks: &[u32],
        content: &mut dyn Read,
    ) -> Result<(), Error> {
        let base = (&base.trees, map);
        let begun = self.files.composed_file(path, attributes, size_bytes, base);
        let mut sink = begun.map_err(|error| self.failed(path, &error))?;
        let ranges = blocks.iter().map(|number| {
            let at = u64::from(*number) * BLOCK_BYTES as u64;
            at..at + BLOCK_BYTES as u64
        });
        let changed = self.put_changes(path, &mut sink, ranges, content)?;
        // What checks the content does so at its end.
        match content.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(wrong(path, format_args!("there is more than its blocks"))),
            Err(error) => return Err(wrong(path, format_args!("it cannot be read: {error}"))),
        }
        self.shared_bytes += size_bytes.saturating_sub(changed);
        let finished = sink.finish();
        finished.map_err(|error| self.failed(path, &error.into()))?;
        self.show()
    }
}
