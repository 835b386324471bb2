//! A repository for the store's own tests.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::{
    ChunkId, ChunkIndex, ChunkLocation, ChunkReader, ClosedPack, CountedPacks, DepositOptions, Depositor,
    Encoding, Error, LocalPacks, PackId, PackStorage, Result,
};

/// An index that a test can make fail and condemn packs. It counts look-ups.
#[derive(Debug, Default)]
pub(crate) struct MemoryIndex {
    pub(crate) chunks: Mutex<HashMap<ChunkId, ChunkLocation>>,
    pub(crate) condemned: Mutex<HashSet<PackId>>,
    pub(crate) look_ups: AtomicUsize,
    pub(crate) fail_publish: AtomicBool,
}

impl ChunkIndex for MemoryIndex {
    fn locate(&self, id: &ChunkId) -> Result<Option<ChunkLocation>> {
        Ok(self.chunks.lock().unwrap().get(id).copied())
    }

    fn locate_reusable(&self, id: &ChunkId) -> Result<Option<ChunkLocation>> {
        self.look_ups.fetch_add(1, Ordering::SeqCst);
        let location = self.locate(id)?;
        let condemned = self.condemned.lock().unwrap();
        Ok(location.filter(|location| !condemned.contains(&location.pack)))
    }

    fn publish(&self, pack: &ClosedPack) -> Result<()> {
        if self.fail_publish.load(Ordering::SeqCst) {
            return Err(Error::index("The index fails on request"));
        }
        let mut chunks = self.chunks.lock().unwrap();
        for chunk in &pack.chunks {
            assert_ne!(chunk.base, Some(chunk.id));
            if let Some(base) = chunk.base {
                let base = chunks
                    .get(&base)
                    .expect("a base is in the index before its deltas");
                assert_ne!(base.encoding, Encoding::Delta, "deltas are one deep");
            }
            chunks.insert(chunk.id, chunk.location(pack.id));
        }
        Ok(())
    }
}

/// A repository.
pub(crate) struct TestStore {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) packs: Arc<LocalPacks>,
    /// The same packs, as readers and writers use them.
    pub(crate) counted: Arc<dyn PackStorage>,
    pub(crate) index: Arc<MemoryIndex>,
    pub(crate) reader: Arc<ChunkReader>,
}

impl TestStore {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let packs = Arc::new(LocalPacks::create(&directory.path().join("packs")).unwrap());
        let index = Arc::new(MemoryIndex::default());
        let counters = Arc::default();
        let counted: Arc<dyn PackStorage> =
            Arc::new(CountedPacks::new(Arc::clone(&packs) as _, Arc::clone(&counters)));
        let reader = Arc::new(ChunkReader::new(
            Arc::clone(&counted),
            Arc::clone(&index) as _,
            counters,
            8 << 20,
        ));
        Self {
            directory,
            packs,
            counted,
            index,
            reader,
        }
    }

    pub(crate) fn depositor(&self) -> Arc<Depositor> {
        let options = DepositOptions {
            workers: 3,
            trust_previous: self.index.condemned.lock().unwrap().is_empty(),
            ..DepositOptions::default()
        };
        let depositor = Depositor::start(
            Arc::clone(&self.counted),
            Arc::clone(&self.index) as _,
            Arc::clone(&self.reader),
            options,
        );
        Arc::new(depositor.unwrap())
    }

    /// How often a writer has asked the index.
    pub(crate) fn asked(&self) -> u64 {
        self.index.look_ups.load(Ordering::SeqCst) as u64
    }

    /// All files in the repository's directory.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut waiting = vec![self.directory.path().to_path_buf()];
        let mut files = Vec::new();
        while let Some(directory) = waiting.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    waiting.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        files
    }
}
