//! The mounted tree: which names there are, what is behind them, and how the kernel gets to see it.
//!
//! - [`namespace`] is the engine: inodes, handles, reading ahead. It speaks of files and directories, not of FUSE, and
//!   is tested without a kernel.
//! - [`views`] are the directories of the tree, each made from the catalog when it is looked at.
//! - `clones` are the clones that a mount serves; the engine of one is the crate `barmanfs_live`.
//! - `adapter` is the one place that names fuser, and [`mount`](mod@mount) owns the mount: it makes it, and unmounts it only while
//!   it is still the one it made.
//!
//! Invariants:
//! - Nothing here writes to the repository but to the directories of clones. What readers hold is the lock that keeps a backup from being deleted
//!   under them.
//! - A name below a backup never changes what it stands for while the mount lives; `latest` and `oldest` move only
//!   when nobody is at work in them.
//! - No request can take the mount down: damage is EIO for what needs the damaged chunk, and one line in the log.
//! - Memory is bounded: inodes by asking the kernel to forget the oldest, listings by a page per open directory, data by the
//!   chunk cache.

mod adapter;
mod clones;
pub mod entry;
mod error;
mod evict;
pub mod mount;
pub mod namespace;
pub mod usage;
pub mod views;
mod warm;
mod watch;

pub use error::{Error, Holder, Result};
pub use mount::{
    DEFAULT_CACHE_BYTES, FoundMount, FoundMounts, MountOptions, MountedFs, SilentMount, Unmounter,
    Unmounting, is_shown, mount, mounts_of, recover_stale, unmount,
};
pub use views::{CloneLimits, confinement, restore_command};
