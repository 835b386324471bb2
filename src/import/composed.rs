//! Files that are put together from those of another backup of the source and what has changed since: only that is read.
//!
//! The source compares what it says of both. That the result is right is not taken for granted: the whole is read once from
//! here, when the tree is complete, and compared with the checksum of the source.

use std::io::Read;
use std::ops::Range;

use barmanfs_store::layout::{BLOCK_BYTES, DATA_WINDOW_BYTES};
use barmanfs_store::{Attributes, ComposedSink, DirectoryRef, Finder, TreeReader};
use sha1::{Digest, Sha1};

use super::intake::wrong;
use super::{Identity, Intake};
use crate::backup::files::file_map;
use crate::error::Error;
use crate::output::printable;

/// What of a file has changed since another backup.
pub(crate) struct Changes<'r> {
    /// Where, in ascending order. Each begins at a block of PostgreSQL's, and ends at one or at the end of the file.
    pub(crate) ranges: Vec<Range<u64>>,
    /// The bytes of all of them.
    pub(crate) content: &'r mut dyn Read,
}

/// A file that was put together.
#[derive(Debug)]
pub(super) struct Composed {
    path: Box<[u8]>,
    /// SHA-1 that it must have.
    sha1: [u8; 20],
}

impl Intake<'_> {
    /// Takes a file over from another backup of the source, if that was imported and has it, but for what has changed: only
    /// that is read. Returns whether it was taken.
    ///
    /// # Errors
    /// When the changes cannot be read, and as [`Intake::same_as`].
    pub(crate) fn same_but_for(
        &mut self,
        other: &Identity,
        (path, attributes, size_bytes): (&[u8], Attributes, u64),
        changes: Changes<'_>,
        sha1: [u8; 20],
    ) -> Result<bool, Error> {
        if !self.has(path) {
            return Ok(false);
        }
        let Some((trees, map)) = self.file_of(other, path)? else {
            return Ok(false);
        };
        let base = (&trees, &map);
        let sink = self.files.composed_file(path, attributes, size_bytes, base);
        let mut sink = sink.map_err(|error| self.failed(path, &error))?;
        let changed = self.put_changes(path, &mut sink, changes.ranges, changes.content)?;
        self.shared_bytes += size_bytes.saturating_sub(changed);
        let ended = sink.finish();
        ended.map_err(|error| self.failed(path, &error.into()))?;
        self.composed.push(Composed {
            path: path.into(),
            sha1,
        });
        Ok(true)
    }

    /// Reads what belongs in these ranges of a file, and puts it there. Returns how many bytes that were.
    ///
    /// # Errors
    /// When it cannot be read or stored.
    pub(super) fn put_changes(
        &mut self,
        path: &[u8],
        sink: &mut ComposedSink,
        ranges: impl IntoIterator<Item = Range<u64>>,
        content: &mut dyn Read,
    ) -> Result<u64, Error> {
        let (mut block, mut put_bytes) = ([0; BLOCK_BYTES], 0);
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let left = usize::try_from(range.end - at).unwrap_or(BLOCK_BYTES);
                let bytes = block.get_mut(..left.min(BLOCK_BYTES)).unwrap_or_default();
                let read = content.read_exact(bytes);
                read.map_err(|error| wrong(path, format_args!("it cannot be read: {error}")))?;
                let put = sink.block(at, bytes);
                put.map_err(|error| self.failed(path, &error.into()))?;
                at += bytes.len() as u64;
                put_bytes += bytes.len() as u64;
                self.read_bytes += bytes.len() as u64;
            }
            self.show()?;
        }
        Ok(put_bytes)
    }
}

/// Reads the files that were put together, and compares them with what the source says of the whole.
///
/// # Errors
/// When one cannot be read, or is another one.
pub(super) fn check(trees: &TreeReader, root: &DirectoryRef, composed: &[Composed]) -> Result<(), Error> {
    let mut buffer = vec![0; DATA_WINDOW_BYTES as usize];
    let mut files = Finder::new(trees.clone(), root.clone());
    for Composed { path, sha1 } in composed {
        let found = files.find(path).map_err(barmanfs_catalog::Error::from)?;
        let map = found.and_then(file_map);
        let map = map.ok_or_else(|| wrong(path, format_args!("it is missing")))?;
        let mut sum = Sha1::new();
        let mut offset = 0;
        while offset < map.size_bytes {
            let length = trees.read_at(&map, offset, &mut buffer);
            let length = length.map_err(barmanfs_catalog::Error::from)?;
            sum.update(buffer.get(..length).unwrap_or_default());
            offset += length as u64;
        }
        if <[u8; 20]>::from(sum.finalize()) != *sha1 {
            return Err(Error::failed(format!(
                "{}: put together from another backup and its changes, it has not the SHA-1 that its tool recorded",
                printable(path)
            )));
        }
    }
    Ok(())
}
