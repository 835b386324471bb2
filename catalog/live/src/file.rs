//! Reading and writing the bytes of files.
//!
//! A write to a partial file writes whole blocks to its upper file: the rest of a block that is not there yet is
//! filled in from the lower file. Only then does the block count as present.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLockReadGuard, RwLockWriteGuard};

use rustix::io::Errno;

use crate::attributes::{introduction, recorded};
use crate::blocks::{BLOCK_BYTES, block_of, blocks_of};
use crate::disk::{DiskFile, file_name};
use crate::error::{Error, Result, failed};
use crate::live_clone::LiveClone;
use crate::node::{Data, FileNode, Node, Partial, State, file_of};
use crate::record::Change;
use crate::stat::NodeId;

/// Maximum size of a partial file: its blocks are kept in memory as bits.
pub(crate) const MOST_PARTIAL_BYTES: u64 = 1 << 40;

impl LiveClone {
    pub(crate) fn upper_path(&self, node: &Node) -> PathBuf {
        self.disk.path().join(file_name(node.id))
    }

    /// The file's data, with the upper file open if there is one.
    pub(crate) fn opened<'a>(&self, node: &Node, file: &'a FileNode) -> Result<RwLockReadGuard<'a, Data>> {
        loop {
            let data = file.read();
            if data.upper.is_some() || matches!(data.state, State::Lower) {
                return Ok(data);
            }
            drop(data);
            drop(self.opened_mut(node, file)?);
        }
    }

    /// The same, to change it.
    pub(crate) fn opened_mut<'a>(
        &self,
        node: &Node,
        file: &'a FileNode,
    ) -> Result<RwLockWriteGuard<'a, Data>> {
        let mut data = file.write();
        if !matches!(data.state, State::Lower) {
            self.upper(node, &mut data)?;
        }
        Ok(data)
    }

    /// The file's upper file, opened or created if necessary.
    pub(crate) fn upper(&self, node: &Node, data: &mut Data) -> Result<Arc<dyn DiskFile>> {
        if let Some(upper) = &data.upper {
            return Ok(Arc::clone(upper));
        }
        let fail = |action, error| failed(action, self.upper_path(node), error);
        let name = file_name(node.id);
        let found = self.disk.open(&name).map_err(|error| fail("open", error))?;
        let upper = match (found, &data.state) {
            (Some(upper), State::Partial(partial)) => {
                // The journal records that the file was cut, but the upper file was not cut yet.
                let size_bytes = upper.status().map_err(|error| fail("read", error))?.size_bytes;
                if size_bytes > partial.size_bytes {
                    upper
                        .set_size(partial.size_bytes)
                        .map_err(|error| fail("cut", error))?;
                }
                upper
            }
            (Some(upper), _) => upper,
            (None, State::Partial(partial)) if !partial.blocks.is_empty() => {
                return Err(fail("open", std::io::ErrorKind::NotFound.into()));
            }
            (None, _) => {
                let upper = self.disk.create(&name).map_err(|error| fail("create", error))?;
                self.journal.name_made();
                upper
            }
        };
        data.upper = Some(Arc::clone(&upper));
        Ok(upper)
    }

    /// Reads from `offset` until the buffer is full or the file ends. Returns the number of bytes.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for a node that is not a file; when a part of it cannot be read.
    pub fn read(&self, id: NodeId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let node = self.node(id)?;
        let file = file_of(&node)?;
        let data = self.opened(&node, file)?;
        match (&data.state, &data.upper) {
            (State::Plain, Some(upper)) => upper
                .read_at(offset, buffer)
                .map_err(|error| failed("read", self.upper_path(&node), error)),
            (State::Partial(partial), upper) => {
                let left = partial.size_bytes.saturating_sub(offset);
                let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
                let buffer = buffer.get_mut(..count).unwrap_or_default();
                self.read_visible(&node, file, partial, upper.as_ref(), offset, buffer)?;
                Ok(count)
            }
            (State::Lower | State::Plain, _) => match &file.lower {
                Some(map) => Ok(self.trees.read_at(map, offset, buffer)?),
                None => Ok(0),
            },
        }
    }

    /// Fills the buffer with the file's bytes from `offset` on: blocks of the upper file, the visible part of the
    /// lower file, zeros.
    fn read_visible(
        &self,
        node: &Node,
        file: &FileNode,
        partial: &Partial,
        upper: Option<&Arc<dyn DiskFile>>,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        let end = offset + buffer.len() as u64;
        let last = blocks_of(offset..end).end;
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (is_upper, next) = partial.blocks.run(block_of(at), last);
            let length = (end.min(next * BLOCK_BYTES) - at) as usize;
            let (part, behind) = rest.split_at_mut(length.min(rest.len()));
            let count = match (is_upper, upper, &file.lower) {
                (true, Some(upper), _) => upper
                    .read_at(at, part)
                    .map_err(|error| failed("read", self.upper_path(node), error))?,
                (false, _, Some(map)) => {
                    let shown = partial.lower_bytes.saturating_sub(at);
                    let shown = usize::try_from(shown).map_or(part.len(), |shown| shown.min(part.len()));
                    self.trees
                        .read_at(map, at, part.get_mut(..shown).unwrap_or_default())?
                }
                (true, None, _) | (false, _, None) => 0,
            };
            part.get_mut(count..).unwrap_or_default().fill(0);
            at += length as u64;
            rest = behind;
        }
        Ok(())
    }

    /// Writes bytes at `offset`, or at the end of the file with `append`. Returns how many.
    ///
    /// # Errors
    /// `ENOSPC` when the disk is full or the clone has reached its limit; `EFBIG`.
    pub fn write(&self, id: NodeId, offset: u64, bytes: &[u8], append: bool) -> Result<usize> {
        let node = self.node(id)?;
        let file = file_of(&node)?;
        let count = self.write_bytes(&node, file, offset, bytes, append);
        self.mark_dirty(&node, file);
        let count = count?;
        self.written_bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn write_bytes(
        &self,
        node: &Arc<Node>,
        file: &FileNode,
        offset: u64,
        bytes: &[u8],
        append: bool,
    ) -> Result<usize> {
        let fail = |error| failed("write", self.upper_path(node), error);
        if !append && self.max_bytes.is_none() {
            let data = self.opened(node, file)?;
            if let (State::Plain, Some(upper)) = (&data.state, &data.upper) {
                return upper.write_at(offset, bytes).map_err(fail);
            }
        }
        let mut data = self.opened_mut(node, file)?;
        let size_bytes = match (&data.state, &data.upper) {
            (State::Plain, Some(upper)) => upper.status().map_err(fail)?.size_bytes,
            (State::Partial(partial), _) => partial.size_bytes,
            (State::Lower | State::Plain, _) => file.lower_size_bytes(),
        };
        let offset = if append { size_bytes } else { offset };
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or(Error::Refused(Errno::FBIG))?;
        if matches!(data.state, State::Plain) {
            let growth = end.saturating_sub(size_bytes.max(offset));
            self.check_room(growth)?;
            let count = self
                .upper(node, &mut data)?
                .write_at(offset, bytes)
                .map_err(fail)?;
            let counted = data.counted_bytes + growth.min(count as u64);
            self.count(&mut data.counted_bytes, counted);
            return Ok(count);
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        self.write_blocks(node, file, &mut data, offset, bytes)?;
        Self::stamp(node, file);
        Ok(bytes.len())
    }

    /// Writes to a file that is still partly or completely the backup's.
    pub(crate) fn write_blocks(
        &self,
        node: &Arc<Node>,
        file: &FileNode,
        data: &mut Data,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let end = offset + bytes.len() as u64;
        if end > MOST_PARTIAL_BYTES {
            return Err(Error::Refused(Errno::FBIG));
        }
        let blocks = blocks_of(offset..end);
        let is_new = |block: &u64| match &data.state {
            State::Partial(partial) => !partial.blocks.contains(*block),
            State::Lower | State::Plain => true,
        };
        let new_bytes = blocks.clone().filter(is_new).count() as u64 * BLOCK_BYTES;
        self.check_room(new_bytes)?;
        let upper = self.upper(node, data)?;
        let partial = data.become_partial(file);
        node.touch();
        let (from, filled) = self.fill_blocks(node, file, partial, &upper, offset, bytes)?;
        let bytes = filled.as_deref().unwrap_or(bytes);
        match upper.write_at(from, bytes) {
            Ok(count) if count == bytes.len() => {}
            Ok(_) => return Err(Error::Refused(Errno::NOSPC)),
            Err(error) => return Err(failed("write", self.upper_path(node), error)),
        }
        partial.insert(blocks);
        partial.size_bytes = partial.size_bytes.max(end);
        let counted = data.counted_bytes + new_bytes;
        self.count(&mut data.counted_bytes, counted);
        Ok(())
    }

    /// What to write, and where, so that the upper file never has a part of a block. The result differs from the given
    /// bytes only where these begin or end inside a block that is not there yet.
    fn fill_blocks(
        &self,
        node: &Node,
        file: &FileNode,
        partial: &Partial,
        upper: &Arc<dyn DiskFile>,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(u64, Option<Vec<u8>>)> {
        let end = offset + bytes.len() as u64;
        let (first, last) = (block_of(offset), block_of(end - 1));
        let from = if partial.blocks.contains(first) {
            offset
        } else {
            first * BLOCK_BYTES
        };
        let to = if partial.blocks.contains(last) {
            end
        } else {
            ((last + 1) * BLOCK_BYTES).min(partial.size_bytes).max(end)
        };
        if (from, to) == (offset, end) {
            return Ok((offset, None));
        }
        let mut filled = vec![0; (to - from) as usize];
        let (head, rest) = filled.split_at_mut((offset - from) as usize);
        let (middle, tail) = rest.split_at_mut(bytes.len());
        self.read_visible(node, file, partial, Some(upper), from, head)?;
        middle.copy_from_slice(bytes);
        self.read_visible(node, file, partial, Some(upper), end, tail)?;
        Ok((from, Some(filled)))
    }

    /// Marks a file as written to, so that it is synced soon.
    pub(crate) fn mark_dirty(&self, node: &Arc<Node>, file: &FileNode) {
        if !file.dirty.swap(true, Ordering::AcqRel) {
            self.dirty().insert(node.id, Arc::clone(node));
        }
    }

    /// Cuts a file, or lets it grow by zeros.
    pub(crate) fn set_size(&self, node: &Arc<Node>, file: &FileNode, size_bytes: u64) -> Result<()> {
        let _gate = self.gate();
        let _sync = file.syncing();
        let mut data = self.opened_mut(node, file)?;
        self.mark_dirty(node, file);
        if matches!(data.state, State::Plain) {
            if node.meta().links == 0 {
                // Otherwise the file could come back after a crash, with its name and without its bytes.
                self.journal.flush()?;
            }
            let upper = self.upper(node, &mut data)?;
            let fail = |error| failed("cut", self.upper_path(node), error);
            upper.set_size(size_bytes).map_err(fail)?;
            let status = upper.status().map_err(fail)?;
            self.count(&mut data.counted_bytes, status.allocated_bytes);
            return Ok(());
        }
        if size_bytes > MOST_PARTIAL_BYTES {
            return Err(Error::Refused(Errno::FBIG));
        }
        let partial = data.become_partial(file);
        let mut next = partial.resized(size_bytes);
        if size_bytes < partial.journaled_bytes {
            next.journaled_bytes = size_bytes;
            self.append_size(node, &next, !partial.blocks.is_empty())?;
        }
        self.apply_size(node, &mut data, next)?;
        Self::stamp(node, file);
        node.touch();
        Ok(())
    }

    /// Writes the new size to the journal. The bytes are destroyed only when this record, or that of the file's
    /// removal, is durable.
    fn append_size(&self, node: &Node, next: &Partial, destroys: bool) -> Result<()> {
        {
            let _names = self.names();
            if node.meta().links > 0 {
                let mut changes = introduction(node);
                changes.push(Change::Data {
                    id: node.id,
                    size_bytes: next.size_bytes,
                    lower_bytes: next.lower_bytes,
                    added: Vec::new(),
                });
                self.journal.append(&changes)?;
                recorded(node);
            }
        }
        if destroys { self.journal.flush() } else { Ok(()) }
    }

    fn apply_size(&self, node: &Node, data: &mut Data, next: Partial) -> Result<()> {
        let size_bytes = next.size_bytes;
        data.state = State::Partial(next);
        let Some(upper) = data.upper.clone() else {
            return Ok(());
        };
        let cut = upper.status().and_then(|status| {
            if status.size_bytes > size_bytes {
                upper.set_size(size_bytes)?;
            }
            upper.status()
        });
        match cut {
            Ok(status) => {
                self.count(&mut data.counted_bytes, status.allocated_bytes);
                Ok(())
            }
            Err(error) => {
                // If this fails, the file is cut when it is opened the next time.
                data.upper = None;
                Err(failed("cut", self.upper_path(node), error))
            }
        }
    }
}
