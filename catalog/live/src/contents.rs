//! Copies of a clone's files: into a backup, which takes over unchanged windows of a stored file without reading them,
//! or into a plain directory, where holes stay holes.
//!
//! A written block counts as changed, even if its bytes are the same as in the lower layer.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use barmanfs_store::layout::BLOCK_BYTES;
use barmanfs_store::{Attributes, FileMap, TreeWriter};
use rustix::io::Errno;

use crate::error::{Error, Result, failed};
use crate::live_clone::LiveClone;
use crate::node::{State, file_of};
use crate::stat::{NodeAttributes, NodeId};

/// Bytes read at a time: whole blocks.
const READ_BYTES: usize = 128 << 10;

/// A file that partly consists of a stored file.
#[derive(Debug)]
struct StoredPart {
    map: FileMap,
    /// So many of its first bytes are visible where nothing was written. Zeros follow.
    keep_bytes: u64,
    /// The written ranges: whole blocks, in order. The last one ends with the file.
    changed: Vec<Range<u64>>,
}

impl NodeAttributes {
    /// Attributes in the form the store uses.
    pub fn stored(&self) -> Attributes {
        Attributes {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime_s: self.mtime.s,
            mtime_ns: self.mtime.ns,
        }
    }
}

impl LiveClone {
    /// Stores a file under `path` of a tree. It reads the changed blocks, and only the map of the others. A file
    /// without a stored part is read as a whole and cut into windows of `window_bytes`. Returns the number of bytes
    /// read.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for a node that is not a file; when the file cannot be read, or the tree cannot be written.
    pub fn store_file(&self, id: NodeId, tree: &TreeWriter, path: &[u8], window_bytes: u32) -> Result<u64> {
        let attributes = self.attributes(id)?;
        let (size_bytes, stored) = (attributes.size_bytes, self.stored_part(id)?);
        let attributes = attributes.stored();
        let mut read_bytes = 0;
        let Some(stored) = stored else {
            let mut sink = tree.file(path, attributes, size_bytes, window_bytes)?;
            self.each_part(id, 0..size_bytes, &mut |_, bytes| {
                read_bytes += bytes.len() as u64;
                Ok(sink.write(bytes)?)
            })?;
            sink.finish()?;
            return Ok(read_bytes);
        };
        let base = Some((&self.trees, &stored.map));
        let (window_bytes, keep_bytes) = (stored.map.window_bytes, stored.keep_bytes);
        let mut sink = tree.composed_file(path, attributes, size_bytes, window_bytes, base, keep_bytes)?;
        for run in stored.changed {
            self.each_part(id, run, &mut |offset, bytes| {
                read_bytes += bytes.len() as u64;
                let mut blocks = (offset..).step_by(BLOCK_BYTES).zip(bytes.chunks(BLOCK_BYTES));
                blocks.try_for_each(|(offset, block)| Ok(sink.block(offset, block)?))
            })?;
        }
        sink.finish()?;
        Ok(read_bytes)
    }

    /// Copies a file into an empty one: data where it has data, holes where it has holes. Calls `copied` with the
    /// number of bytes as they are written.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for a node that is not a file; when the file cannot be read, or the other one not be
    /// written.
    pub fn copy_file(&self, id: NodeId, to: &File, copied: &mut dyn FnMut(u64)) -> Result<()> {
        let size_bytes = self.attributes(id)?.size_bytes;
        let fail = |error| failed("write", "the copy", error);
        to.set_len(size_bytes).map_err(fail)?;
        let mut at = 0;
        while let Some(start) = self.next(id, at, true)? {
            let end = self.next(id, start, false)?.unwrap_or(size_bytes).min(size_bytes);
            self.each_part(id, start..end, &mut |offset, bytes| {
                to.write_all_at(bytes, offset).map_err(fail)?;
                copied(bytes.len() as u64);
                Ok(())
            })?;
            at = end;
        }
        Ok(())
    }

    /// The stored part of a file; none when all its bytes are its own.
    fn stored_part(&self, id: NodeId) -> Result<Option<StoredPart>> {
        let node = self.node(id)?;
        let file = file_of(&node)?;
        let data = file.read();
        let (keep_bytes, changed) = match &data.state {
            State::Lower => (file.lower_size_bytes(), Vec::new()),
            State::Partial(partial) => {
                let (block, end) = (BLOCK_BYTES as u64, partial.size_bytes);
                let bytes = |run: Range<u64>| run.start * block..(run.end * block).min(end);
                (partial.lower_bytes, partial.blocks.runs().map(bytes).collect())
            }
            State::Plain => return Ok(None),
        };
        Ok(file.lower.as_ref().map(|map| StoredPart {
            map: map.clone(),
            keep_bytes,
            changed,
        }))
    }

    /// Reads a range of a file, part by part.
    fn each_part(
        &self,
        id: NodeId,
        bytes: Range<u64>,
        each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let at_once = |left: u64| usize::try_from(left).map_or(READ_BYTES, |left| left.min(READ_BYTES));
        let mut buffer = vec![0; at_once(bytes.end.saturating_sub(bytes.start))];
        let mut at = bytes.start;
        while at < bytes.end {
            let length = at_once(bytes.end - at);
            let part = buffer.get_mut(..length).unwrap_or_default();
            if self.read(id, at, part)? < length {
                return Err(Error::Unusable {
                    path: self.disk.path().to_owned(),
                    reason: format!("A file ends before its {} bytes, at {at}", bytes.end),
                });
            }
            each(at, part)?;
            at += length as u64;
        }
        Ok(())
    }

    /// The next data, or the next hole, in a file.
    fn next(&self, id: NodeId, offset: u64, data: bool) -> Result<Option<u64>> {
        match self.seek(id, offset, data) {
            Err(Error::Refused(Errno::NXIO)) => Ok(None),
            found => found.map(Some),
        }
    }
}
