//! Packs in object stores: S3 and what speaks like it, Google, Azure, and a directory with the same names.
//!
//! One primitive carries everything: a key is created by a single PUT if nothing has it yet, and is never overwritten. So
//! a writer that does not know how its PUT has ended sends the same bytes to the same key again, and compares where it finds
//! the key taken. Nothing here needs a lock, a list of parts, or a clock.
//!
//! - [`Location`]: what a URL names. [`Settings`]: how to get there, and as whom; `connect` makes a client of both.
//! - [`Bucket`]: requests, repeated until they succeed or the caller's patience ends; `trouble` has the words for what goes wrong.
//! - [`ObjectPacks`]: packs under their keys, as a [`PackStorage`](barmanfs_store::PackStorage). `stream` names those of a
//!   repository that is in the bucket, and [`Claim`] says which host writes them.
//! - [`BlockCache`]: what was read of packs, on a local disk.
//! - [`Abilities`]: what a store can do, found out by trying.
//! - `own`: what only S3 is asked: old versions ([`Bucket::at_oldest_versions`]), and what locks an object ([`Held`]).
//!
//! Callers block: a private runtime of two threads, which is made with the first bucket, does the waiting.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod bucket;
mod cache;
mod claim;
mod connect;
mod credentials;
mod guard;
mod held;
mod location;
mod own;
mod packs;
mod probe;
mod rights;
mod settings;
mod stream;
mod trouble;
mod versions;

pub use bucket::{Bucket, Created, Found};
pub use cache::BlockCache;
pub use claim::{Claim, Holder};
pub use held::Held;
pub use location::Location;
pub use packs::{ObjectPacks, Verified};
pub use probe::Abilities;
pub use settings::{Encryption, Settings};
pub use stream::{Stream, StreamId};
pub use versions::FromVersions;

/// Why something could not be done with a bucket.
pub type Result<T, E = barmanfs_store::Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests;
