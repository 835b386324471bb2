//! Counts what goes through a storage, for all its users: readers of chunks, of footers, sweeps, writers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Listed, PackStorage, PackUpload, Part, PartMark};
use crate::counters::Counters;
use crate::error::Result;
use crate::id::PackId;
use crate::seal::Keys;

/// A storage that counts reads of packs and complete packs, and passes everything on.
#[derive(Debug)]
pub struct CountedPacks {
    packs: Arc<dyn PackStorage>,
    counters: Arc<Counters>,
}

impl CountedPacks {
    /// Counts what goes through `packs`.
    pub fn new(packs: Arc<dyn PackStorage>, counters: Arc<Counters>) -> Self {
        Self { packs, counters }
    }

    fn counted(&self, upload: Box<dyn PackUpload>) -> Box<dyn PackUpload> {
        Box::new(CountedUpload {
            upload,
            bytes: 0,
            counters: Arc::clone(&self.counters),
        })
    }
}

impl PackStorage for CountedPacks {
    fn keys(&self) -> &Keys {
        self.packs.keys()
    }

    fn begin(&self) -> Result<Box<dyn PackUpload>> {
        Ok(self.counted(self.packs.begin()?))
    }

    fn begin_copy(&self, id: PackId) -> Result<Box<dyn PackUpload>> {
        Ok(self.counted(self.packs.begin_copy(id)?))
    }

    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let began = Instant::now();
        let read = self.packs.read_at(id, offset, buf);
        self.counters
            .pack_read(began.elapsed(), read.is_ok().then_some(buf.len()));
        read
    }

    fn will_read(&self, id: PackId, offset: u64, bytes: u32) {
        self.packs.will_read(id, offset, bytes);
    }

    fn bytes(&self, id: PackId) -> Result<u64> {
        self.packs.bytes(id)
    }

    fn list(&self, each: &mut dyn FnMut(PackId) -> Result<()>) -> Result<()> {
        self.packs.list(each)
    }

    fn part_mark(&self, part: Part) -> Result<PartMark> {
        self.packs.part_mark(part)
    }

    fn list_part(&self, part: Part, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.packs.list_part(part, each)
    }

    fn remove(&self, id: PackId) -> Result<()> {
        self.packs.remove(id)
    }

    fn settle(&self, packs: &[PackId]) -> Result<()> {
        self.packs.settle(packs)
    }

    fn remove_abandoned(&self, older_than: Duration) -> Result<usize> {
        self.packs.remove_abandoned(older_than)
    }
}

#[derive(Debug)]
struct CountedUpload {
    upload: Box<dyn PackUpload>,
    bytes: u64,
    counters: Arc<Counters>,
}

impl PackUpload for CountedUpload {
    fn id(&self) -> PackId {
        self.upload.id()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.upload.write(bytes)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.upload.finish()?;
        self.counters.pack_written(self.bytes);
        Ok(())
    }
}
