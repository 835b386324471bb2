//! A file that is stored by blocks, in its order.
//!
//! Each super block is decoded as the file needs its blocks. Of each backup the last one stays open: where blocks of several
//! backups alternate, none is decoded twice.

use std::io::{self, Read};

use barmanfs_foreign::pgbackrest::{
    self as format, BlockMap, Blocks, Decrypted, Header, Manifest, Run, SuperBlock,
};

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
        let place = file.piece.map_or((0, 0), |piece| (piece.bundle, piece.offset));
        let stored = open_stored(store, manifest, file, (manifest.holder(file), place.0))?;
        let end = place.1 + file.stored_bytes;
        let map = Slice::new(stored, end - blocks.map_bytes, blocks.map_bytes);
        let mut bytes = Vec::new();
        match &manifest.passphrase {
            Some(passphrase) => Decrypted::new(map, passphrase, Header::Salt).read_to_end(&mut bytes)?,
            None => map.take(blocks.map_bytes).read_to_end(&mut bytes)?,
        };
        let map =
            BlockMap::parse(&bytes, blocks, file.size_bytes).map_err(|error| invalid(error.to_string()))?;
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
