//! How large the tree is, and whether there is room for it.

use std::collections::BTreeMap;

use barmanfs_fs::entry::Stat;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::destination::{Destination, State, is_of_the_file_system};
use super::part::Part;
use super::place::Place;
use super::view::{SourceFile, ViewTree, Visitor};
use crate::error::Error;
use crate::output;

/// Space is allocated in units of this size by the usual file systems.
const BLOCK_BYTES: u64 = 4096;

/// The size of a tree.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct TreeSize {
    /// Number of files.
    pub(crate) files: u64,
    /// Bytes that are written.
    pub(crate) bytes: u64,
    /// Bytes that the tree takes on disk, without the parts that can be elsewhere.
    own_disk_bytes: u64,
    /// The same of each of these.
    part_disk_bytes: BTreeMap<Part, u64>,
}

impl TreeSize {
    /// The size of this tree.
    pub(super) fn of(view: &ViewTree) -> Result<Self, Error> {
        Self::measured(view, |stat| stat.allocated_bytes)
    }

    /// The same where holes are written as zeros.
    pub(super) fn without_holes(view: &ViewTree) -> Result<Self, Error> {
        Self::measured(view, |stat| stat.size_bytes)
    }

    fn measured(view: &ViewTree, bytes_of: fn(&Stat) -> u64) -> Result<Self, Error> {
        let mut measure = Measure {
            bytes_of,
            path: Vec::new(),
            size: Self::default(),
        };
        view.walk(&mut measure)?;
        Ok(measure.size)
    }

    /// Bytes that it takes on disk, with all its parts.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.own_disk_bytes + self.part_disk_bytes.values().sum::<u64>()
    }

    /// The same of one part.
    pub(super) fn disk_bytes_of(&self, part: Part) -> u64 {
        self.part_disk_bytes.get(&part).copied().unwrap_or(0)
    }

    /// The same of the data directory, where these parts are not in it.
    pub(super) fn disk_bytes_but(&self, outside: &[Part]) -> u64 {
        let outside = outside.iter().map(|part| self.disk_bytes_of(*part));
        self.disk_bytes() - outside.sum::<u64>()
    }
}

struct Measure {
    /// The bytes of a file that are written.
    bytes_of: fn(&Stat) -> u64,
    path: Vec<Vec<u8>>,
    size: TreeSize,
}

impl Measure {
    fn take(&mut self, bytes: u64) {
        let bytes = bytes.next_multiple_of(BLOCK_BYTES);
        match Part::of(&self.path) {
            Some(part) => *self.size.part_disk_bytes.entry(part).or_default() += bytes,
            None => self.size.own_disk_bytes += bytes,
        }
    }
}

impl Visitor for Measure {
    fn enter(&mut self, name: &[u8], _: &Stat) -> Result<(), Error> {
        self.path.push(name.to_vec());
        self.take(BLOCK_BYTES);
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.path.pop();
        Ok(())
    }

    fn file(&mut self, file: SourceFile) -> Result<(), Error> {
        self.size.files += 1;
        let bytes = (self.bytes_of)(&file.stat);
        self.size.bytes += bytes;
        self.take(bytes);
        Ok(())
    }

    fn link(&mut self, _: &[u8], _: &Stat, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}

/// Refuses a destination that has not enough space. What is there already is overwritten or removed, so only growth
/// counts.
pub(super) fn check(destination: &Destination, size: &TreeSize) -> Result<(), Error> {
    let mut needed: BTreeMap<u64, (u64, u64, String)> = BTreeMap::new();
    let mut own = size.own_disk_bytes;
    for (part, bytes) in &size.part_disk_bytes {
        match destination.relocations.of(*part) {
            Some(location) => {
                let place = Place::open(super::destination::nearest_existing(location))?;
                let there = if location.exists() {
                    Place::open(location)?
                } else {
                    place.clone()
                };
                let present = if location.exists() { used(&there)? } else { 0 };
                add(&mut needed, &place, bytes.saturating_sub(present))?;
            }
            None => own += bytes,
        }
    }
    let place = Place::open(super::destination::nearest_existing(&destination.path))?;
    let present = match destination.state {
        State::Vacant => 0,
        State::Incomplete | State::Older => used(&Place::open(&destination.path)?)?,
    };
    add(&mut needed, &place, own.saturating_sub(present))?;
    for (needed, free, path) in needed.into_values() {
        if needed > free {
            return Err(Error::failed(format!(
                "The file system of {path} has {} free, and {} are needed",
                output::bytes(free),
                output::bytes(needed)
            ))
            .hint("Make room, or name another directory"));
        }
    }
    Ok(())
}

fn add(needed: &mut BTreeMap<u64, (u64, u64, String)>, place: &Place, bytes: u64) -> Result<(), Error> {
    let (free, device) = place.space()?;
    let entry = needed
        .entry(device)
        .or_insert_with(|| (0, free, place.path().display().to_string()));
    entry.0 += bytes;
    Ok(())
}

/// Bytes that a directory takes on disk. Links are not followed.
fn used(place: &Place) -> Result<u64, Error> {
    let mut bytes = 0;
    for name in place.names()? {
        let name = name?;
        // Only root may look into it.
        if is_of_the_file_system(name.as_bytes()) {
            continue;
        }
        let Some(found) = place.find(name.as_bytes())? else {
            continue;
        };
        bytes += found.disk_bytes;
        if found.kind == FileType::Directory {
            bytes += used(&place.enter(name.as_bytes())?)?;
        }
    }
    Ok(bytes)
}
