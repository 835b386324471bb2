//! A pack storage for tests that records the order of calls.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use barmanfs_store::{LocalPacks, PackId, PackStorage, PackUpload, Result};

/// A call to the storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A pack's size, which is where reading its footer begins.
    Bytes(PackId),
    Remove(PackId),
    Settle(Vec<PackId>),
}

/// Packs in a directory, with a record of the calls.
#[derive(Debug)]
pub(crate) struct NotedPacks {
    packs: LocalPacks,
    asked: Mutex<Vec<Asked>>,
}

impl NotedPacks {
    pub(crate) fn open(directory: &Path) -> Arc<Self> {
        Arc::new(Self {
            packs: LocalPacks::open(directory).unwrap(),
            asked: Mutex::default(),
        })
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn note(&self, asked: Asked) {
        self.asked.lock().unwrap().push(asked);
    }
}

impl PackStorage for NotedPacks {
    fn begin(&self, id: PackId) -> Result<Box<dyn PackUpload>> {
        self.packs.begin(id)
    }

    fn read_at(&self, id: PackId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.packs.read_at(id, offset, buf)
    }

    fn bytes(&self, id: PackId) -> Result<u64> {
        self.note(Asked::Bytes(id));
        self.packs.bytes(id)
    }

    fn list(&self, each: &mut dyn FnMut(PackId) -> Result<()>) -> Result<()> {
        self.packs.list(each)
    }

    fn remove(&self, id: PackId) -> Result<()> {
        self.note(Asked::Remove(id));
        self.packs.remove(id)
    }

    fn settle(&self, packs: &[PackId]) -> Result<()> {
        self.note(Asked::Settle(packs.to_vec()));
        self.packs.settle(packs)
    }

    fn remove_abandoned(&self, older_than: Duration) -> Result<usize> {
        self.packs.remove_abandoned(older_than)
    }
}
