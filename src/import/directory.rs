//! Stores what a directory of a source holds.

use std::fs::Metadata;
use std::path::Path;

use barmanfs_store::{Attributes, open_unlinked};

use super::Intake;
use crate::error::Error;
use crate::walk::{self, Visitor};
pub(crate) use crate::walk::{Choice, attributes, cannot_read, leave_link_out, read_small};

/// Decides about the entry at a path in the backup, which is this one in the source.
pub(crate) type Choose<'c> =
    dyn FnMut(&mut Intake<'_>, &[u8], &Path, &Metadata) -> Result<Choice, Error> + 'c;

/// Stores what is in the directory `place`, as what is in `path` of the backup; an empty path is the data directory. Names
/// are taken in their order.
///
/// # Errors
/// When something cannot be read or stored.
pub(crate) fn store(
    intake: &mut Intake<'_>,
    place: &Path,
    path: &[u8],
    choose: &mut Choose<'_>,
) -> Result<(), Error> {
    walk::walk(&mut Storing { intake, choose }, place, path)
}

struct Storing<'s, 'i, 'c> {
    intake: &'s mut Intake<'i>,
    choose: &'s mut Choose<'c>,
}

impl Visitor for Storing<'_, '_, '_> {
    fn is_live(&self) -> bool {
        false
    }

    fn choose(&mut self, path: &[u8], place: &Path, found: &Metadata) -> Result<Choice, Error> {
        (self.choose)(self.intake, path, place, found)
    }

    fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), Error> {
        self.intake.directory(path, attributes)
    }

    fn file(&mut self, path: &[u8], place: &Path, _: &Metadata) -> Result<(), Error> {
        let mut file = open_unlinked(place).map_err(|error| cannot_read(place, &error))?;
        let found = file.metadata().map_err(|error| cannot_read(place, &error))?;
        self.intake.file(path, attributes(&found), found.len(), &mut file)
    }
}
