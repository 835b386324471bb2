//! Live clones: a backup shown as a writable directory. Only what is written takes space.
//!
//! A clone has two layers. The lower layer is a backup's tree in the store, with WAL beside it, and never changes. The
//! upper layer is the clone's directory:
//!
//! - `journal`: a log of everything except file bytes (`journal.rs`).
//! - `files/<node>`: the bytes of a changed or new file, sparse.
//!
//! A file is in one of three states. It is the backup's file; or it is partial (written blocks of 8 KiB are in its
//! upper file, the others are read from the backup); or the upper file is the whole file. Opening a file, syncing it
//! or changing its owner copies nothing.
//!
//! Invariants:
//! - After a successful sync, the synced state survives any crash or loss of power. Every other block has either its
//!   old or its new content after a crash, never anything else, and never zeros in place of data.
//! - To guarantee this, bytes are durable before the journal records that they belong to the file (`sync.rs`), and an
//!   operation that destroys bytes waits until its journal record is durable.
//! - Everything found when a clone is opened is made durable before it is used, because an earlier process may have
//!   been killed.
//! - An operation that cannot be written to the journal is refused and has no effect.
//! - There is one writer: the process that holds the clone's lock.
//!
//! Lock order: gate, a file's sync, its data, names, a node's attributes, then the locks inside `journal.rs`. A thread
//! must hold the gate to append. Rewriting the journal takes the gate exclusively.

#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod attributes;
mod blocks;
mod contents;
mod copy;
mod create;
mod disk;
mod edit;
mod error;
mod file;
mod journal;
mod listing;
mod live_clone;
mod lookup;
mod names;
mod node;
mod open;
mod ranges;
mod record;
mod remove;
mod rename;
mod stat;
mod sync;
mod tablespaces;
#[cfg(test)]
mod tests;

pub use attributes::{AttributeChanges, NewTime};
pub use copy::copy_files;
pub use create::NewNode;
pub use error::{Error, Result};
pub use listing::{Listing, Name};
pub use live_clone::{LiveClone, Statistics};
pub use open::{AddedContent, AddedEntry, Initial};
pub use ranges::Allocation;
pub use rename::RenameMode;
pub use stat::{Kind, NodeAttributes, NodeId, Time};
pub use sync::Flusher;
pub use tablespaces::leads_out;
