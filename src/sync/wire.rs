//! What a passive node asks of the other host for, over the frames of an agent ([`crate::restore::agent::wire`]).

use barmanfs_catalog::Locked;
use barmanfs_store::{PackId, PartMark};
use serde::{Deserialize, Serialize};

/// Both sides must have the same.
pub(super) const PROTOCOL: u32 = 2;

/// Bytes of the end of a pack that come with its size: most footers are smaller.
pub(super) const TAIL_BYTES: u64 = 128 << 10;

/// More is not read at a time.
pub(super) const READ_BYTES_MAX: u32 = 7 << 20;

/// A request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// First of all.
    Hello { protocol: u32, server: String },
    /// The node is still there. There is no answer.
    Beat,
    /// The states of the 256 parts.
    Marks,
    /// The ids of the packs in a part: a frame of content.
    List { part: u8 },
    /// The size of a pack and its end: a frame of content that begins with eight bytes of the size.
    Size { pack: PackId },
    /// Bytes of a pack: a frame of content.
    Read { pack: PackId, offset: u64, bytes: u32 },
    /// What a server's receiver has and its archive does not.
    Spool { server: String },
    /// Bytes of a file in the spool: a frame of content, shorter at the file's end.
    ReadSpool {
        server: String,
        name: String,
        offset: u64,
        bytes: u32,
    },
}

/// An answer that is no content.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The id of the repository.
    Hello {
        protocol: u32,
        repository: String,
        /// What opens its packs, for who has the key.
        locked: Locked,
    },
    Marks(Vec<PartMark>),
    /// There is no such pack or file.
    Missing,
    /// It ends before what was asked for, or cannot be read.
    Damaged(String),
    /// Files of a spool.
    Spool(Vec<SpoolEntry>),
}

/// A file of a spool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SpoolEntry {
    /// The segment.
    pub(super) name: String,
    pub(super) size_bytes: u64,
    /// Whether all of it has been received.
    pub(super) complete: bool,
    /// When something was last received: seconds since 1970, and nanoseconds.
    pub(super) modified: (i64, i64),
}
