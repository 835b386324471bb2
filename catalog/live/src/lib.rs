//! Live clones: a backup as a directory that can be written, of which only what is written takes space.
//!
//! A clone has two layers. The lower one is a backup's tree in the store (and WAL beside it), which never changes. The
//! upper one is the clone's directory:
//!
//! - `journal`: everything that is not file bytes, as a log ([`journal`]).
//! - `files/<node>`: the bytes of a changed or new file, sparse.
//!
//! A file is the backup's, or partly (blocks of 8 KiB that were written are in its upper file, the others are read from
//! the backup), or the upper file alone. Nothing is copied when a file is opened, synced or gets another owner.
//!
//! Invariants:
//! - What a sync has answered for is there after any crash or loss of power. All else is, block by block, what it was
//!   or what it was to become; never anything else, and never zeros in place of data.
//! - For that, bytes are durable before the journal says that they are the file's ([`sync`]), and what destroys bytes
//!   waits until the journal's word for it is durable.
//! - What is found when a clone is opened is durable before anything is done with it, whoever was killed before.
//! - What cannot be written down is refused, and has not happened.
//! - One writer: the process that holds the clone's lock.
//!
//! Locks are taken in this order: gate, a file's sync, its data, names, a node's attributes; then those inside of
//! [`journal`]. Who holds the gate may append; nobody does while the journal is written anew.

mod attributes;
mod blocks;
mod clone;
mod contents;
mod copy;
mod create;
mod disk;
mod edit;
pub mod error;
mod file;
mod journal;
mod listing;
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
pub use clone::{LiveClone, Statistics};
pub use copy::copy_files;
pub use create::NewNode;
pub use error::{Error, Result};
pub use listing::{Listing, Name};
pub use open::{Initial, MadeFile, MadeThing};
pub use ranges::Allocation;
pub use rename::RenameMode;
pub use stat::{Kind, NodeAttributes, NodeId, Time};
pub use sync::Flusher;
pub use tablespaces::leads_out;
