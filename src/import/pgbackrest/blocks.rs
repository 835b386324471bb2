//! A file that is stored by blocks, in its order: all of it, or what has changed since another backup.
//!
//! Each super block is decoded as the file needs its blocks. Of each backup the last one stays open: where blocks of several
//! backups alternate, none is decoded twice.

use std::io::{self, Read};
use std::ops::Range;

use barmanfs_foreign::pgbackrest::{
    self as format, BlockMap, Blocks, Decrypted, Header, Manifest, Run, SuperBlock,
};
use barmanfs_store::layout::BLOCK_BYTES;

use super::content::{Slice, Store, decoded};

/// So many super blocks are open at a time. Beyond that, one is decoded again when it is needed again.
const OPEN_MAX: usize = 64;

/// A super block that is being decoded.
struct Open {
    number: usize,
    reference: u32,
    content: Box<dyn Read>,
    position: u64,
}

/// Reads a file that is stored by blocks.
pub(super) struct BlockReader<'r> {
    store: &'r Store<'r>,
    manifest: &'r Manifest,
    file: &'r format::File,
    super_blocks: Vec<SuperBlock>,
    runs: std::vec::IntoIter<Run>,
    /// The last one is being read, up to `left` more bytes.
    open: Vec<Open>,
    left: u64,
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl<'r> BlockReader<'r> {
    /// Reads the map.
    ///
    /// # Errors
    /// When it cannot be read, or is not that of the file.
    pub(super) fn open(
        store: &'r Store<'_>,
        manifest: &'r Manifest,
        file: &'r format::File,
        blocks: Blocks,
    ) -> io::Result<Self> {
        let map = read_map(store, manifest, file, blocks)?;
        Ok(Self {
            store,
            manifest,
            file,
            super_blocks: map.super_blocks,
            runs: map.runs.into_iter(),
            open: Vec::new(),
            left: 0,
        })
    }

    /// Reads only what has changed since the other backup, which has the file too: where it is in the file, and a reader of that.
    /// `None` if blocks of the two cannot be compared.
    ///
    /// # Errors
    /// When a map cannot be read, or is not that of its file.
    pub(super) fn changes(
        store: &'r Store<'_>,
        (manifest, file): (&'r Manifest, &'r format::File),
        (other, before): (&Manifest, &format::File),
    ) -> io::Result<Option<(Vec<Range<u64>>, Self)>> {
        let (Some(blocks), Some(blocks_before)) = (file.blocks, before.blocks) else {
            return Ok(None);
        };
        let block_bytes = blocks.block_bytes;
        if block_bytes != blocks_before.block_bytes || !block_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Ok(None);
        }
        let mut reader = Self::open(store, manifest, file, blocks)?;
        let map = BlockMap {
            super_blocks: std::mem::take(&mut reader.super_blocks),
            runs: std::mem::take(&mut reader.runs).collect(),
        };
        let is_same = |now: u32, then: u32| {
            let now = manifest.references.get(now as usize);
            now.is_some() && now == other.references.get(then as usize)
        };
        let changes = map.changes(
            &read_map(store, other, before, blocks_before)?,
            block_bytes,
            is_same,
        );
        let ranges = changes.iter().map(|(at, run)| *at..*at + run.bytes).collect();
        let runs: Vec<Run> = changes.into_iter().map(|(_, run)| run).collect();
        reader.super_blocks = map.super_blocks;
        reader.runs = runs.into_iter();
        Ok(Some((ranges, reader)))
    }

    /// Goes to the beginning of a run.
    fn seek(&mut self, run: Run) -> io::Result<()> {
        let number = run.super_block;
        let is_it = |open: &Open| open.number == number && open.position <= run.offset;
        let mut open = match self.open.iter().position(is_it) {
            Some(at) => self.open.remove(at),
            None => self.decode(number)?,
        };
        let skipped = io::copy(
            &mut open.content.by_ref().take(run.offset - open.position),
            &mut io::sink(),
        )?;
        open.position += skipped;
        if open.position != run.offset {
            return Err(invalid("a super block is shorter than its map says"));
        }
        self.left = run.bytes;
        self.open.push(open);
        Ok(())
    }

    fn decode(&mut self, number: usize) -> io::Result<Open> {
        let block = self.super_blocks.get(number).copied();
        let block = block.ok_or_else(|| invalid("a block outside its map"))?;
        self.open.retain(|open| open.reference != block.reference);
        if self.open.len() >= OPEN_MAX {
            self.open.remove(0);
        }
        let holder = self.manifest.references.get(block.reference as usize);
        let holder =
            holder.ok_or_else(|| invalid("the block map names a backup that the manifest does not"))?;
        let stored = open_stored(self.store, self.manifest, self.file, (holder, block.bundle))?;
        let stored = Slice::new(stored, block.offset, block.stored_bytes);
        let passphrase = self.manifest.passphrase.as_ref();
        let content = decoded(stored, passphrase, self.manifest.compression, true)?;
        Ok(Open {
            number,
            reference: block.reference,
            content,
            position: 0,
        })
    }
}

fn read_map(
    store: &Store<'_>,
    manifest: &Manifest,
    file: &format::File,
    blocks: Blocks,
) -> io::Result<BlockMap> {
    let place = file.piece.map_or((0, 0), |piece| (piece.bundle, piece.offset));
    let stored = open_stored(store, manifest, file, (manifest.holder(file), place.0))?;
    let end = place.1 + file.stored_bytes;
    let map = Slice::new(stored, end - blocks.map_bytes, blocks.map_bytes);
    let mut bytes = Vec::new();
    match &manifest.passphrase {
        Some(passphrase) => Decrypted::new(map, passphrase, Header::Salt).read_to_end(&mut bytes)?,
        None => map.take(blocks.map_bytes).read_to_end(&mut bytes)?,
    };
    BlockMap::parse(&bytes, blocks, file.size_bytes).map_err(|error| invalid(error.to_string()))
}

fn open_stored(
    store: &Store<'_>,
    manifest: &Manifest,
    file: &format::File,
    (holder, bundle): (&format::Label, u64),
) -> io::Result<std::sync::Arc<std::fs::File>> {
    match bundle {
        0 => store.open(holder, &manifest.stored_path(file)),
        bundle => store.open(holder, format!("bundle/{bundle}").as_bytes()),
    }
}

impl Read for BlockReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            match self.runs.next() {
                Some(run) => self.seek(run)?,
                None => return Ok(0),
            }
        }
        let length = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let Some(open) = self.open.last_mut() else {
            return Err(invalid("no super block"));
        };
        let count = open.content.read(buffer.get_mut(..length).unwrap_or_default())?;
        if count == 0 {
            return Err(invalid("a super block is shorter than its map says"));
        }
        open.position += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
