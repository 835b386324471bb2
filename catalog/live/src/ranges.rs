//! Ranges of files: allocate, zero, punch; find data and holes.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::blocks::{BLOCK_BYTES, block_of, blocks_of, whole_blocks_of};
use crate::disk::DiskFile;
use crate::error::{Error, Result, failed};
use crate::file::MOST_PARTIAL_BYTES;
use crate::live_clone::LiveClone;
use crate::node::{Body, Data, FileNode, Node, Partial, State, file_of};
use crate::stat::NodeId;

/// The operations of fallocate(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// Reserve space for the bytes.
    Reserve,
    /// Turn the bytes into zeros and keep the space.
    Zero,
    /// Turn the bytes into zeros and free the space. The size does not change.
    Punch,
}

/// Zeros per write, on a file system that cannot make holes.
const ZEROS: &[u8] = &[0; 128 * 1024];

/// Turns bytes of an upper file into zeros.
pub(crate) fn zero(upper: &dyn DiskFile, bytes: Range<u64>) -> io::Result<()> {
    let end = bytes.end.min(upper.status()?.size_bytes);
    if bytes.start >= end {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match upper.allocate(flags, bytes.start, end - bytes.start) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {}
        punched => return punched,
    }
    let mut at = bytes.start;
    while at < end {
        let count = usize::try_from(end - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        at += upper.write_at(at, ZEROS.get(..count).unwrap_or_default())? as u64;
    }
    Ok(())
}

impl LiveClone {
    /// fallocate(2).
    ///
    /// # Errors
    /// `EINVAL` for an empty range, `ENOSPC`, `EFBIG`; `ENODEV` for a node that is not a file.
    pub fn allocate(
        &self,
        id: NodeId,
        what: Allocation,
        keep_size: bool,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        let node = self.node(id)?;
        let Body::File(file) = &node.body else {
            return Err(Error::Refused(Errno::NODEV));
        };
        let end = offset.checked_add(length).ok_or(Error::Refused(Errno::FBIG))?;
        if length == 0 {
            return Err(Error::Refused(Errno::INVAL));
        }
        let keep_size = keep_size || what == Allocation::Punch;
        let _gate = self.gate();
        let _sync = file.syncing();
        let mut data = self.opened_mut(&node, file)?;
        self.mark_dirty(&node, file);
        let upper = self.upper(&node, &mut data)?;
        let fail = |error| failed("allocate", self.upper_path(&node), error);
        if what != Allocation::Punch {
            self.check_room(length)?;
        }
        if let State::Plain = data.state {
            upper
                .allocate(flags(what, keep_size), offset, length)
                .map_err(fail)?;
        } else {
            data.become_partial(file);
            node.touch();
            self.allocate_partial(&node, file, &mut data, what, offset..end)?;
            if let State::Partial(partial) = &mut data.state
                && !keep_size
            {
                partial.size_bytes = partial.size_bytes.max(end);
            }
            Self::stamp(&node, file);
        }
        let status = upper.status().map_err(fail)?;
        self.count(&mut data.counted_bytes, status.allocated_bytes);
        Ok(())
    }

    fn allocate_partial(
        &self,
        node: &Arc<Node>,
        file: &FileNode,
        data: &mut Data,
        what: Allocation,
        bytes: Range<u64>,
    ) -> Result<()> {
        if bytes.end > MOST_PARTIAL_BYTES {
            return Err(Error::Refused(Errno::FBIG));
        }
        if what != Allocation::Punch {
            let upper = self.upper(node, data)?;
            let room = upper.allocate(FallocateFlags::KEEP_SIZE, bytes.start, bytes.end - bytes.start);
            room.map_err(|error| failed("allocate", self.upper_path(node), error))?;
        }
        match (&data.state, what) {
            (_, Allocation::Reserve) => Ok(()),
            (State::Partial(partial), _) => {
                let end = bytes.end.min(partial.size_bytes);
                self.zero_partial(node, file, data, bytes.start..end.max(bytes.start))
            }
            (State::Lower | State::Plain, _) => Ok(()),
        }
    }

    /// Turns bytes of a partial file into zeros. Whole blocks count as present in the upper file afterwards, where
    /// they are a hole.
    fn zero_partial(
        &self,
        node: &Arc<Node>,
        file: &FileNode,
        data: &mut Data,
        bytes: Range<u64>,
    ) -> Result<()> {
        let whole = whole_blocks_of(bytes.clone());
        let head = bytes.start..bytes.end.min(whole.start * BLOCK_BYTES);
        let tail = head.end.max(whole.end * BLOCK_BYTES)..bytes.end;
        for part in [head, tail] {
            if !part.is_empty() {
                let zeros = vec![0; (part.end - part.start) as usize];
                self.write_blocks(node, file, data, part.start, &zeros)?;
            }
        }
        if whole.is_empty() {
            return Ok(());
        }
        let upper = self.upper(node, data)?;
        zero(&*upper, whole.start * BLOCK_BYTES..whole.end * BLOCK_BYTES)
            .map_err(|error| failed("punch", self.upper_path(node), error))?;
        if let State::Partial(partial) = &mut data.state {
            partial.insert(whole);
        }
        Ok(())
    }

    /// lseek(2) with `SEEK_DATA` and `SEEK_HOLE`. In a partial file, blocks of the upper file count as data, even
    /// zeros.
    ///
    /// # Errors
    /// `ENXIO` past the end, and when no data follows.
    pub fn seek(&self, id: NodeId, offset: u64, data: bool) -> Result<u64> {
        const NONE: Error = Error::Refused(Errno::NXIO);
        let node = self.node(id)?;
        let file = file_of(&node)?;
        let state = self.opened(&node, file)?;
        let (size_bytes, found) = match (&state.state, &state.upper) {
            (State::Plain, Some(upper)) => {
                let found = upper.seek(offset, data);
                let found = found.map_err(|error| failed("read", self.upper_path(&node), error))?;
                return found.ok_or(NONE);
            }
            (State::Partial(partial), _) => (
                partial.size_bytes,
                self.seek_partial(file, partial, offset, data)?,
            ),
            (State::Lower | State::Plain, _) => {
                let size_bytes = file.lower_size_bytes();
                (size_bytes, self.seek_lower(file, size_bytes, offset, data)?)
            }
        };
        if offset >= size_bytes {
            return Err(NONE);
        }
        match found {
            Some(found) if found < size_bytes => Ok(found),
            _ if data => Err(NONE),
            _ => Ok(size_bytes),
        }
    }

    /// The first data or hole of the lower file from `offset` on, before `end`.
    fn seek_lower(&self, file: &FileNode, end: u64, offset: u64, data: bool) -> Result<Option<u64>> {
        let found = match &file.lower {
            Some(map) if data => self.trees.next_data(map, offset)?,
            Some(map) => Some(self.trees.next_hole(map, offset)?),
            None => None,
        };
        Ok(found.filter(|found| *found < end))
    }

    fn seek_partial(
        &self,
        file: &FileNode,
        partial: &Partial,
        offset: u64,
        data: bool,
    ) -> Result<Option<u64>> {
        let end = blocks_of(0..partial.size_bytes).end;
        let mut at = offset;
        while at < partial.size_bytes {
            let (is_upper, next) = partial.blocks.run(block_of(at), end);
            let next = (next * BLOCK_BYTES).min(partial.size_bytes);
            if is_upper && data {
                return Ok(Some(at));
            }
            if !is_upper {
                let shown = next.min(partial.lower_bytes);
                let found = if at < shown {
                    self.seek_lower(file, shown, at, data)?
                } else {
                    None
                };
                // Beyond the visible part of the lower file there are no bytes.
                let hole = (!data && shown < next).then_some(at.max(shown));
                if let Some(found) = found.or(hole) {
                    return Ok(Some(found));
                }
            }
            at = next;
        }
        Ok(None)
    }
}

pub(crate) fn flags(what: Allocation, keep_size: bool) -> FallocateFlags {
    let keep = if keep_size {
        FallocateFlags::KEEP_SIZE
    } else {
        FallocateFlags::empty()
    };
    keep | match what {
        Allocation::Reserve => FallocateFlags::empty(),
        Allocation::Zero => FallocateFlags::ZERO_RANGE,
        Allocation::Punch => FallocateFlags::PUNCH_HOLE,
    }
}
