//! The store: chunks, packs, file maps and trees. It handles bytes and does not interpret PostgreSQL's files.
//!
//! Data comes in as windows of files. A window is identified by its BLAKE3 hash, compressed on its own or as a
//! delta against a similar chunk, and appended to immutable, self-describing packs. `FORMAT.md` specifies the byte
//! layout and what a reader must check. A [`ChunkIndex`], which the catalog implements, locates chunks.
//!
//! - [`id`], [`layout`], [`error`]: names, sizes, errors.
//! - [`codec`]: one chunk's frame. [`pack`]: many frames in a file. [`storage`]: where the files are.
//! - [`seal`], [`age`]: the keys of encrypted packs, and the files in which keys are wrapped.
//! - [`reader`]: from ids back to bytes, cached and checked.
//! - [`depositor`]: from bytes to ids: hash, compare, compress, pack, on all cores.
//! - [`file_map`], [`listing`], [`tree`]: chunks assembled into files, directories and whole backups.
//! - [`threads`]: how all of barmanfs starts threads.
//! - [`counters`]: how much of all this was done, and how long reading took.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod age;
pub mod codec;
pub mod counters;
pub mod crc;
pub mod depositor;
pub mod error;
pub mod file_map;
pub mod id;
pub mod index;
pub mod layout;
pub mod listing;
mod location;
pub mod pack;
mod pack_header;
mod random;
pub mod reader;
pub mod seal;
pub mod storage;
pub mod sync;
pub mod threads;
pub mod throttle;
pub mod tree;

pub use codec::{Encoding, Frame};
pub use counters::{Counters, Counts, Latencies, LatencyCounts};
pub use depositor::{ContentClass, Deposit, DepositOptions, DepositTotals, Depositor};
pub use error::{Error, Result};
pub use file_map::{FileMap, Window, Windows};
pub use id::{ChunkId, KeyId, PackId, RecordId};
pub use index::ChunkIndex;
pub use listing::{Attributes, DirectoryRef, Entry, Node, PageRef};
pub use location::ChunkLocation;
pub use pack::{ClosedPack, PackWriter, PackedChunk, Record, key_of_pack, read_footer, read_frame};
pub use reader::ChunkReader;
pub use seal::{ChunkHash, IdHash, Keys, PlainPacks, SealedKey, Secret};
pub use storage::{
    CountedPacks, Listed, LocalPacks, PackStorage, PackUpload, Part, PartMark, SealedPacks, open_regular,
    open_unlinked,
};
pub use throttle::Throttle;
pub use tree::{
    ComposedSink, FileSink, Finder, SingleFile, StoredFile, TreeOptions, TreeReader, TreeTotals, TreeWriter,
};

#[cfg(any(test, feature = "testing"))]
pub mod testing;
