//! A storage with keys: new packs are sealed, and sealed ones can be read. Their bytes go through as they are.

use std::sync::Arc;
use std::time::Duration;

use super::{Listed, PackStorage, PackUpload, Part, PartMark};
use crate::error::Result;
use crate::id::PackId;
use crate::seal::Keys;

/// A storage whose packs are sealed by `keys`.
#[derive(Debug)]
pub struct SealedPacks {
    packs: Arc<dyn PackStorage>,
    keys: Arc<Keys>,
}

impl SealedPacks {
    /// Gives `packs` these keys.
    pub fn new(packs: Arc<dyn PackStorage>, keys: Arc<Keys>) -> Self {
        Self { packs, keys }
    }
}

impl PackStorage for SealedPacks {
    fn keys(&self) -> &Keys {
        &self.keys
    }

    fn begin(&self) -> Result<Box<dyn PackUpload>> {
        self.packs.begin()
    }

    fn begin_copy(&self, id: PackId) -> Result<Box<dyn PackUpload>> {
        self.packs.begin_copy(id)
    }

    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.packs.read_at(id, offset, buf)
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
