//! A tree that was written before, beside the one that is being written: files that are equal in both get a second name
//! and no second copy, as `rsync --link-dest` does it.

use std::path::Path;

use super::part::Part;
use super::place::Place;
use super::tablespaces::Relocations;
use super::view::{SourceFile, ViewTree};
use crate::error::Error;

/// See the module. Nothing may change the files of either tree afterwards.
#[derive(Debug)]
pub(crate) struct Like {
    view: ViewTree,
    root: Place,
    /// The parts that are elsewhere.
    outside: Vec<(Part, Place)>,
}

impl Like {
    /// The tree that was written to this directory, with its parts at these places.
    ///
    /// # Errors
    /// When a directory cannot be opened.
    pub(crate) fn new(view: ViewTree, root: &Path, relocations: &Relocations) -> Result<Self, Error> {
        let outside = relocations.iter();
        Ok(Self {
            view,
            root: Place::open(root)?,
            outside: outside
                .map(|(part, place)| Ok((part, Place::open(place)?)))
                .collect::<Result<_, Error>>()?,
        })
    }

    /// Makes a second name for a file here, if the tree has an equal one: the same bytes, owner, permissions and time.
    pub(super) fn link(&self, file: &SourceFile, place: &Place) -> Result<bool, Error> {
        let Some(other) = self.view.file(&file.path)? else {
            return Ok(false);
        };
        if other.stat != file.stat || !file.open()?.is_stored_as(&other.open()?) {
            return Ok(false);
        }
        let mut names: Vec<Vec<u8>> = file
            .path
            .split(|byte| *byte == b'/')
            .map(<[u8]>::to_vec)
            .collect();
        names.pop();
        let outside = Part::of(&names).and_then(|part| {
            let mut outside = self.outside.iter();
            outside.find(|(other, _)| *other == part)
        });
        let from = match outside {
            Some((part, place)) => place.descend(names.get(part.depth()..).unwrap_or_default())?,
            None => self.root.descend(&names)?,
        };
        place.link_from(&from, &file.name).map(|()| true)
    }
}
