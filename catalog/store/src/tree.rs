//! Trees: directories of files as they were backed up, written from a stream and read at random.
//!
//! A tree is its root's [`DirectoryRef`](crate::DirectoryRef): pages of entries, which hold file maps, links and
//! further directories. All of it is chunks, so a tree that hardly differs from another hardly takes space.

mod assembly;
mod beside;
mod composed;
mod content;
mod directories;
mod file;
mod finder;
mod path;
mod previous;
mod reader;
mod run;
mod writer;

pub use assembly::StoredFile;
pub use beside::{Enter, TakeWindows};
pub use content::{ChunkRole, EachChunk};
pub use file::SingleFile;
pub use finder::Finder;
pub use reader::{Entries, FileReader, TreeReader};
pub use writer::{ComposedSink, FileSink, TreeOptions, TreeTotals, TreeWriter};

#[cfg(test)]
mod tests;
