//! A page with the places of its entries, for many look-ups in it.

use std::sync::Arc;

use crc32c::crc32c;

use super::page::{Page, entry_at, name_at, what};
use super::{Entry, PageRef};
use crate::error::{Error, Result};
use crate::id::ChunkId;

/// A page that was read once from front to back. A look-up in it reads one or two places of the table, and the entry.
#[derive(Debug)]
pub(crate) struct IndexedPage {
    chunk: ChunkId,
    bytes: Arc<[u8]>,
    /// The CRC-32C of each entry's name and where the entry begins, sorted. Checksums are spread evenly, so each is found
    /// close to where its value says.
    table: Box<[(u32, u32)]>,
}

impl IndexedPage {
    /// Reads the page that `page` refers to; `bytes` are its chunk's.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::NewerFormat`].
    pub(crate) fn open(page: &PageRef, bytes: Arc<[u8]>) -> Result<Self> {
        let chunk = page.chunk;
        let mut reader = Page::open(page, Arc::clone(&bytes))?;
        let mut table = Vec::new();
        loop {
            // A chunk has at most 4 MiB.
            let start = u32::try_from(reader.position()).unwrap_or(u32::MAX);
            match reader.next()? {
                Some(entry) => table.push((crc32c(entry.name), start)),
                None => break,
            }
        }
        table.sort_unstable();
        Ok(Self {
            chunk,
            bytes,
            table: table.into_boxed_slice(),
        })
    }

    /// The entry of this name, if the page has it.
    ///
    /// # Errors
    /// [`Error::Damaged`]: the entry is no valid one.
    pub(crate) fn entry(&self, name: &[u8]) -> Result<Option<Entry>> {
        let wanted = crc32c(name);
        let (before, after) = self.table.split_at(self.near(wanted));
        let smaller = before.iter().rev().take_while(|(sum, _)| *sum >= wanted);
        let larger = after.iter().take_while(|(sum, _)| *sum <= wanted);
        let mut same = smaller.chain(larger).filter(|(sum, _)| *sum == wanted);
        let Some((_, start)) = same.find(|(_, start)| name_at(&self.bytes, *start as usize) == name) else {
            return Ok(None);
        };
        entry_at(&self.bytes, *start as usize)
            .map(Some)
            .map_err(|reason| Error::damaged(what(self.chunk), reason))
    }

    /// Where this checksum would be in the table if all had the same distance.
    fn near(&self, sum: u32) -> usize {
        // Less than the table's length.
        ((u64::from(sum) * self.table.len() as u64) >> u32::BITS) as usize
    }

    /// Memory that it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.bytes.len() + self.table.len() * size_of::<(u32, u32)>() + size_of::<Self>()
    }
}
