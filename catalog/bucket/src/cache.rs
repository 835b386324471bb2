//! What was read of packs in a bucket, kept on a local disk.
//!
//! Packs are read in small pieces, and each request takes long. So they are read in blocks of 256 KiB, which stay in one sparse
//! file for each pack (`file`). A miss fetches its block; misses that follow each other fetch more at once. What writers
//! put is kept, too, as they put it.
//!
//! The cache may be removed at any time, whole or in part. A block counts only with its checksum, so neither a crash nor a damaged
//! disk shows: such a block is fetched again. All processes of a host share it, and its limit (`budget`).

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use barmanfs_store::sync::lock;
use barmanfs_store::{Keys, Listed, PackId, PackStorage, PackUpload, Part, PartMark};
use bytes::Bytes;
use lru::LruCache;

use crate::Result;
use crate::packs::{ObjectPacks, short};

mod budget;
mod file;

use budget::Budget;
use file::{BLOCK_BYTES, BlockFile, Filling};

/// Files that are kept open.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(128).unwrap();

/// Blocks in memory, whose checksums need not be computed for the next piece.
const IN_MEMORY: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// Packs of which it is remembered where the last miss was.
const RUNS: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// A miss this close behind the last one goes on with it.
const NEAR_BLOCKS: u64 = 4;

/// What the second and all later misses of a run fetch at once: 4 and 8 MiB.
const SECOND_BLOCKS: u64 = 16;
const LATER_BLOCKS: u64 = 32;

/// Requests ahead of readers, and those that wait for one.
const FETCHERS: usize = 8;
const QUEUED: usize = 64;

/// Packs in a bucket, with what was read of them on a local disk.
#[derive(Debug)]
pub struct BlockCache {
    core: Arc<Core>,
    ahead: OnceLock<SyncSender<Ahead>>,
}

/// A range that will be read.
type Ahead = (PackId, u64, u32);

/// A block of a pack.
type Block = (PackId, u64);

#[derive(Debug)]
struct Core {
    packs: Arc<ObjectPacks>,
    directory: PathBuf,
    budget: Budget,
    files: Mutex<LruCache<PackId, Arc<BlockFile>>>,
    recent: Mutex<LruCache<Block, Bytes>>,
    runs: Mutex<LruCache<PackId, Run>>,
    /// Blocks that are being fetched.
    flying: Mutex<HashSet<Block>>,
    landed: Condvar,
}

/// Misses that follow each other.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// The block behind the last one that was fetched.
    next: u64,
    blocks: u64,
}

impl BlockCache {
    /// A cache of `packs` in a directory, which is made when it is needed, and takes at most `max_bytes`.
    #[must_use]
    pub fn new(packs: Arc<ObjectPacks>, directory: &Path, max_bytes: u64) -> Self {
        let core = Core {
            packs,
            directory: directory.to_path_buf(),
            budget: Budget::of(directory, max_bytes),
            files: Mutex::new(LruCache::new(OPEN_FILES)),
            recent: Mutex::new(LruCache::new(IN_MEMORY)),
            runs: Mutex::new(LruCache::new(RUNS)),
            flying: Mutex::new(HashSet::new()),
            landed: Condvar::new(),
        };
        Self {
            core: Arc::new(core),
            ahead: OnceLock::new(),
        }
    }

    fn filled(&self, upload: Box<dyn PackUpload>) -> Box<dyn PackUpload> {
        Box::new(FillingUpload {
            filling: Filling::begin(&self.core.directory, upload.id()),
            upload,
            core: Arc::clone(&self.core),
        })
    }

    fn start_ahead(&self) -> SyncSender<Ahead> {
        let (queue, ranges) = sync_channel(QUEUED);
        let ranges = Arc::new(Mutex::new(ranges));
        for _ in 0..FETCHERS {
            let (core, ranges) = (Arc::clone(&self.core), Arc::clone(&ranges));
            let fetcher = std::thread::Builder::new().name("fetch-ahead".to_owned());
            // A host that is out of threads reads without fetching ahead.
            if let Err(error) = fetcher.spawn(move || fetch_ahead(&core, &ranges)) {
                tracing::debug!("Nothing is fetched ahead: {error}");
            }
        }
        queue
    }
}

fn fetch_ahead(core: &Core, ranges: &Mutex<Receiver<Ahead>>) {
    loop {
        let next = lock(ranges).recv();
        let Ok((id, offset, bytes)) = next else {
            return;
        };
        let end = offset.saturating_add(bytes.into());
        for block in offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) {
            // The reader sees it.
            if let Err(error) = core.block(id, block, end.div_ceil(BLOCK_BYTES) - block) {
                tracing::debug!("Cannot fetch pack {id} ahead: {error}");
                break;
            }
        }
    }
}

impl Core {
    /// The open file of a pack; `None` if there is none.
    fn file(&self, id: PackId) -> Option<Arc<BlockFile>> {
        let known = lock(&self.files).get(&id).cloned();
        if let Some(known) = known.filter(|file| file.is_there()) {
            return Some(known);
        }
        let opened = Arc::new(BlockFile::open(&self.directory, id)?);
        lock(&self.files).put(id, Arc::clone(&opened));
        Some(opened)
    }

    /// A block that is here.
    fn here(&self, id: PackId, block: u64) -> Option<Bytes> {
        if let Some(bytes) = lock(&self.recent).get(&(id, block)) {
            return Some(bytes.clone());
        }
        let bytes = Bytes::from(self.file(id)?.read(block)?);
        lock(&self.recent).put((id, block), bytes.clone());
        Some(bytes)
    }

    /// A block, from here or from the bucket. A block that another thread fetches is waited for. `wanted` is how many blocks will
    /// be read from this one on.
    fn block(&self, id: PackId, block: u64, wanted: u64) -> Result<Bytes> {
        loop {
            if let Some(bytes) = self.here(id, block) {
                return Ok(bytes);
            }
            let Some(flight) = self.take_off(id, block, wanted) else {
                self.wait(id, block);
                continue;
            };
            // It may have landed in between.
            if let Some(bytes) = self.here(id, block) {
                return Ok(bytes);
            }
            return self.fetch(id, block, flight.blocks);
        }
    }

    /// Reserves blocks from `first` on for this thread: as many as are wanted or as the run makes likely, up to the next one that
    /// is here or under way. `None` if the first one is under way.
    fn take_off(&self, id: PackId, first: u64, wanted: u64) -> Option<Flight<'_>> {
        let likely = self.likely(id, first).max(wanted.min(LATER_BLOCKS)).max(1);
        let file = self.file(id);
        let mut flying = lock(&self.flying);
        if flying.contains(&(id, first)) {
            return None;
        }
        let mut blocks = 1;
        while blocks < likely {
            let next = first + blocks;
            let is_here = file.as_ref().is_some_and(|file| file.has(next));
            if is_here || flying.contains(&(id, next)) {
                break;
            }
            blocks += 1;
        }
        flying.extend((first..first + blocks).map(|block| (id, block)));
        drop(flying);
        lock(&self.runs).put(
            id,
            Run {
                next: first + blocks,
                blocks: likely,
            },
        );
        Some(Flight {
            core: self,
            id,
            first,
            blocks,
        })
    }

    fn likely(&self, id: PackId, block: u64) -> u64 {
        match lock(&self.runs).get(&id) {
            Some(run) if block >= run.next && block < run.next + NEAR_BLOCKS => match run.blocks {
                0..SECOND_BLOCKS => SECOND_BLOCKS,
                _ => LATER_BLOCKS,
            },
            _ => 1,
        }
    }

    fn wait(&self, id: PackId, block: u64) {
        let flying = lock(&self.flying);
        let waited = self
            .landed
            .wait_while(flying, |flying| flying.contains(&(id, block)));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Fetches blocks with one request, keeps them, and returns the first.
    fn fetch(&self, id: PackId, first: u64, blocks: u64) -> Result<Bytes> {
        let found = self.packs.range(id, first * BLOCK_BYTES, blocks * BLOCK_BYTES)?;
        let mut block = first;
        let mut rest = found.bytes.clone();
        let mut answer = None;
        let mut kept = Vec::new();
        while !rest.is_empty() {
            let bytes = rest.split_to(rest.len().min(BLOCK_BYTES as usize));
            let end = block * BLOCK_BYTES + bytes.len() as u64;
            // The last one is short; any other that is would be a part of one.
            if bytes.len() as u64 == BLOCK_BYTES || end == found.object_bytes {
                kept.push((block, bytes.clone()));
            }
            answer.get_or_insert(bytes);
            block += 1;
        }
        let mut recent = lock(&self.recent);
        for (block, bytes) in kept.iter().take(IN_MEMORY.get() / 2) {
            recent.put((id, *block), bytes.clone());
        }
        drop(recent);
        self.keep(id, found.object_bytes, &kept);
        answer.ok_or_else(|| short(id, first * BLOCK_BYTES + 1))
    }

    /// A disk that is full or broken makes reading slower, and nothing else.
    fn keep(&self, id: PackId, object_bytes: u64, blocks: &[(u64, Bytes)]) {
        let bytes: u64 = blocks.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        let keep = || -> std::io::Result<()> {
            if !self.budget.charge(bytes)? {
                return Ok(());
            }
            let file = match self.file(id) {
                Some(file) => file,
                None => Arc::new(BlockFile::create(&self.directory, id, object_bytes)?),
            };
            blocks
                .iter()
                .try_for_each(|(block, bytes)| file.write(*block, bytes))
        };
        if let Err(error) = keep() {
            tracing::debug!(
                "Nothing of pack {id} is kept in {}: {error}",
                self.directory.display()
            );
        }
    }

    fn forget(&self, id: PackId) {
        lock(&self.files).pop(&id);
        let mut recent = lock(&self.recent);
        let blocks: Vec<Block> = recent
            .iter()
            .filter(|((pack, _), _)| *pack == id)
            .map(|(block, _)| *block)
            .collect();
        for block in blocks {
            recent.pop(&block);
        }
        drop(recent);
        BlockFile::remove(&self.directory, id);
    }
}

/// Blocks that one thread fetches. Others wait until this is dropped.
struct Flight<'a> {
    core: &'a Core,
    id: PackId,
    first: u64,
    blocks: u64,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flying = lock(&self.core.flying);
        for block in self.first..self.first + self.blocks {
            flying.remove(&(self.id, block));
        }
        drop(flying);
        self.core.landed.notify_all();
    }
}

impl PackStorage for BlockCache {
    fn keys(&self) -> &Keys {
        self.core.packs.keys()
    }

    fn begin(&self) -> Result<Box<dyn PackUpload>> {
        Ok(self.filled(self.core.packs.begin()?))
    }

    fn begin_copy(&self, id: PackId) -> Result<Box<dyn PackUpload>> {
        self.core.packs.begin_copy(id)
    }

    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<()> {
        if let Some(read) = self.core.packs.kept(id, offset, buf) {
            return read;
        }
        let end = offset.saturating_add(buf.len() as u64);
        let mut at = offset;
        let mut left = buf;
        while !left.is_empty() {
            let block = at / BLOCK_BYTES;
            let bytes = self.core.block(id, block, end.div_ceil(BLOCK_BYTES) - block)?;
            let from = usize::try_from(at % BLOCK_BYTES).unwrap_or_default();
            let part = bytes.get(from..).filter(|part| !part.is_empty());
            let part = part.ok_or_else(|| short(id, end))?;
            let length = part.len().min(left.len());
            let (now, later) = left.split_at_mut(length);
            now.copy_from_slice(part.get(..length).unwrap_or_default());
            left = later;
            at += length as u64;
        }
        Ok(())
    }

    fn will_read(&self, id: PackId, offset: u64, bytes: u32) {
        let first = offset / BLOCK_BYTES;
        let last = offset.saturating_add(u64::from(bytes).saturating_sub(1)) / BLOCK_BYTES;
        let file = self.core.file(id);
        if file.is_some_and(|file| (first..=last).all(|block| file.has(block))) {
            return;
        }
        // When there is no room, the reader fetches it.
        let _full = self
            .ahead
            .get_or_init(|| self.start_ahead())
            .try_send((id, offset, bytes));
    }

    fn bytes(&self, id: PackId) -> Result<u64> {
        match self.core.file(id) {
            Some(file) => Ok(file.object_bytes()),
            None => self.core.packs.bytes(id),
        }
    }

    fn list(&self, each: &mut dyn FnMut(PackId) -> Result<()>) -> Result<()> {
        self.core.packs.list(each)
    }

    fn part_mark(&self, part: Part) -> Result<PartMark> {
        self.core.packs.part_mark(part)
    }

    fn list_part(&self, part: Part, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.core.packs.list_part(part, each)
    }

    fn remove(&self, id: PackId) -> Result<()> {
        self.core.forget(id);
        self.core.packs.remove(id)
    }

    fn settle(&self, packs: &[PackId]) -> Result<()> {
        self.core.packs.settle(packs)
    }

    fn remove_abandoned(&self, older_than: Duration) -> Result<usize> {
        self.core.packs.remove_abandoned(older_than)
    }
}

/// An upload whose bytes stay here when it has succeeded.
#[derive(Debug)]
struct FillingUpload {
    upload: Box<dyn PackUpload>,
    /// Nothing more is kept when that has failed once.
    filling: Option<Filling>,
    core: Arc<Core>,
}

impl FillingUpload {
    fn fill(&mut self, bytes: &[u8]) {
        let Some(filling) = &mut self.filling else {
            return;
        };
        let core = &self.core;
        let filled = filling.write(bytes, &mut |more| core.budget.charge(more));
        if !filled.unwrap_or(false) {
            self.filling = None;
        }
    }
}

impl PackUpload for FillingUpload {
    fn id(&self) -> PackId {
        self.upload.id()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.upload.write(bytes)?;
        self.fill(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Self { upload, filling, .. } = *self;
        upload.finish()?;
        if let Some(Err(error)) = filling.map(Filling::finish) {
            tracing::debug!("A pack that was put is not kept: {error}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
