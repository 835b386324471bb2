//! For tests: bytes that do not compress, storages that record and fail, what each storage must do, and a repository of packs in a temporary
//! directory with an index in memory.

mod conformance;
mod noise;
mod packs;
#[cfg(test)]
mod store;

pub use conformance::conforms;
pub use noise::noise;
pub use packs::{Call, MemoryPacks, TestPacks};
#[cfg(test)]
pub(crate) use store::{MemoryIndex, TestStore};

use crate::listing::Attributes;

/// The attributes of files in tests that need no others.
pub const ATTRIBUTES: Attributes = Attributes {
    mode: 0o600,
    uid: 26,
    gid: 26,
    mtime_s: 1_700_000_000,
    mtime_ns: 5,
};
