//! Trees: directories of files as they were backed up, written from a stream and read at random.

mod file;
mod reader;
mod writer;

pub use file::{SingleFile, StoredFile};
pub use reader::{Entries, FileReader, TreeReader};
pub use writer::{FileSink, TreeOptions, TreeTotals, TreeWriter};
