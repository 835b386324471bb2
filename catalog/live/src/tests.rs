//! Tests of clones as a whole: their base, and what they are compared with.

mod contents;
mod crash;
mod differential;
mod fragile;
mod whole;

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;

use barmanfs_catalog::CloneDescription;
use barmanfs_store::TreeReader;
use rustix::io::Errno;

use self::support::{Fixture, Thing, clone_of};
use super::{Initial, LiveClone, NewNode, NodeAttributes, NodeId};
use crate::error::{Error, Result};

/// A backup, and a place for a clone of it.
struct Stage {
    fixture: Fixture,
    description: CloneDescription,
    directory: PathBuf,
}

const NOTHING: Initial<'static> = Initial {
    made: Vec::new(),
    looked_at: &[],
    hide: &|_, _| false,
};

const NEW: NewNode = NewNode {
    mode: 0o640,
    uid: 7,
    gid: 8,
};

/// Random numbers, the same for the same seed.
struct Random(u64);

impl Random {
    fn from_seed(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

impl Stage {
    fn new(things: &[(&str, Thing)]) -> Self {
        let fixture = Fixture::new();
        let backup = fixture.backup(things);
        let directory = fixture.directory.path().join("clone");
        std::fs::create_dir(&directory).unwrap();
        Self {
            description: clone_of(&backup),
            fixture,
            directory,
        }
    }

    fn trees(&self) -> TreeReader {
        self.fixture.repository.trees()
    }

    fn create(&self) -> LiveClone {
        LiveClone::create_in(&self.directory, &self.description, self.trees(), &NOTHING).unwrap()
    }

    fn open(&self) -> LiveClone {
        LiveClone::open(&self.directory, &self.description, self.trees()).unwrap()
    }
}

/// What a path leads to.
fn at(clone: &LiveClone, path: &str) -> Result<NodeAttributes> {
    let mut found = clone.attributes(clone.root())?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        found = clone.lookup(found.node, name.as_bytes())?;
    }
    Ok(found)
}

fn id(clone: &LiveClone, path: &str) -> NodeId {
    at(clone, path).unwrap().node
}

fn read_all(clone: &LiveClone, node: NodeId) -> Result<Vec<u8>> {
    let size_bytes = clone.attributes(node)?.size_bytes;
    // One byte more than the file has, to see where it ends.
    let mut bytes = vec![0xEE; usize::try_from(size_bytes).unwrap() + 1];
    let count = clone.read(node, 0, &mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

fn errno<T>(result: Result<T>) -> std::result::Result<T, Errno> {
    result.map_err(|error| match error {
        Error::Refused(errno) => errno,
        failure => panic!("{failure}"),
    })
}
