//! The sizes of the repository format, in one place.
//!
//! Those that readers check (`MAX_*`, [`PACK_HEADER_BYTES`], [`PACK_TRAILER_BYTES`], [`FORMAT_VERSION`]) are
//! part of the format, see `FORMAT.md`. The others only affect writers: a later release may change them, and
//! existing data stays readable.

/// Version of the byte layout of plain repositories and packs, and of maps, listings and records everywhere.
pub const FORMAT_VERSION: u32 = 1;

/// Version of encrypted repositories and sealed packs, the newest that this release reads.
pub const SEALED_FORMAT_VERSION: u32 = 2;

/// A PostgreSQL page: the unit in which a delta chunk records changes.
pub const BLOCK_BYTES: usize = 8192;

/// Window of relation and other data files: 16 pages, the amount that one random read decodes.
pub const DATA_WINDOW_BYTES: u32 = 128 * 1024;

/// Window of files such as WAL segments: they are written and read from front to back, so larger windows compress better
/// and cost nothing.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Maximum size of a chunk, stored or decoded. A reader rejects more before it allocates anything. Four times
/// the largest window leaves room for listings and for larger windows later.
pub const MAX_CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// A pack with this many bytes of frames is full: large enough that closing it (fsync, SQLite commit) is
/// rare, small enough that sweeping one rewrites little.
pub const PACK_TARGET_BYTES: u64 = 64 * 1024 * 1024;

/// A pack with this many chunks is full, however small they are. This bounds a footer, the ids a writer
/// remembers, and one SQLite transaction.
pub const PACK_MAX_CHUNKS: usize = 32 * 1024;

/// A pack with this many bytes of record payloads is full: records are in the footer, which is read as a
/// whole.
pub const PACK_RECORDS_TARGET_BYTES: usize = 4 * 1024 * 1024;

/// Maximum size of one record's payload. A backup of millions of files has the largest, well under a
/// megabyte.
pub const MAX_RECORD_BYTES: usize = 8 * 1024 * 1024;

/// Maximum size of a footer, stored or unpacked: the chunks of a full pack (2.4 MiB), its records up to the
/// target and one largest record beyond, with room to grow. A reader rejects more before it allocates
/// anything.
pub const MAX_FOOTER_BYTES: usize = 32 * 1024 * 1024;

/// A pack's header: magic, version, reserved, pack id.
pub const PACK_HEADER_BYTES: usize = 32;

/// The header of a sealed pack: the same, then key id and salt.
pub const SEALED_HEADER_BYTES: usize = PACK_HEADER_BYTES + 16 + 32;

/// A pack's trailer: version, reserved, footer lengths, BLAKE3, magic.
pub const PACK_TRAILER_BYTES: usize = 56;
