//! The mounted tree: its names, their content, and how the kernel sees them.
//!
//! - [`namespace`] is the engine: inodes, handles, read-ahead. It knows files and directories but not FUSE, and is
//!   tested without a kernel.
//! - [`views`] are the directories of the tree. Each reads the catalog when it is looked at.
//! - [`entry`] has the types that both share.
//! - `clones` are the clones that a mount serves. The engine of a clone is the crate `barmanfs_live`.
//! - `adapter` is the only place that uses fuser. [`mount`](mod@mount) owns the mount: it creates the mount, finds
//!   those of other processes, and unmounts.
//! - `usage` counts the files in use below a backup. [`counters`] count the kernel's requests.
//!
//! Invariants:
//! - The directories of clones are the only part of the repository that this crate writes to. Readers hold a lock that
//!   keeps their backup from being deleted.
//! - A name below a backup has the same meaning for the life of the mount. `latest` and `oldest` move only when nobody
//!   is using them.
//! - No request can take the mount down: damage is EIO for requests that need the damaged chunk, and one line in the
//!   log.
//! - Memory is bounded: inodes by asking the kernel to forget the oldest (what they took is given back then), listings by one page per open directory,
//!   data by the chunk cache.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod adapter;
mod clones;
pub mod counters;
pub mod entry;
mod error;
mod evict;
mod memory;
pub mod mount;
pub mod namespace;
pub mod usage;
pub mod views;
mod warm;
mod watch;

pub use counters::{MountCounters, RequestCounters, RequestCounts, RequestKind};
pub use error::{Error, Holder, Result};
pub use mount::{
    DEFAULT_CACHE_BYTES, FoundMount, FoundMounts, MountOptions, MountedFs, SilentMount, Unmounter,
    Unmounting, is_shown, mount, mounts_of, recover_stale, unmount,
};
pub use views::{CloneLimits, confinement, restore_command};
