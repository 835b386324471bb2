//! Decoding ahead of readers, on all cores.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::id::ChunkId;
use crate::threads;

use super::Core;

/// Maximum number of chunks that wait to be decoded ahead. Opening a WAL segment requests the next four, 64
/// windows of 1 MiB, and opening one small file after the other the next 64 of them. More than that would be evicted from the
/// cache before it is read, or be decoded too late for its reader.
const QUEUED_CHUNKS: usize = 96;

/// The pool of workers, started when the first chunk is requested: most commands never read ahead.
#[derive(Debug)]
pub(super) struct ReadAhead {
    core: Arc<Core>,
    pool: OnceLock<Pool>,
}

#[derive(Debug)]
struct Pool {
    queue: Sender<ChunkId>,
    stopping: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl ReadAhead {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            pool: OnceLock::new(),
        }
    }

    /// Queues a chunk. `false`: there is no room, and there will be none for the next few chunks.
    pub(super) fn push(&self, id: ChunkId) -> bool {
        let pool = self.pool.get_or_init(|| Pool::start(&self.core));
        match pool.queue.try_send(id) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

impl Pool {
    fn start(core: &Arc<Core>) -> Self {
        let (queue, chunks) = bounded(QUEUED_CHUNKS);
        let stopping = Arc::new(AtomicBool::new(false));
        let count = thread::available_parallelism().map_or(1, usize::from);
        let start = |_| {
            let (core, chunks, stopping) = (Arc::clone(core), chunks.clone(), Arc::clone(&stopping));
            // A host that is out of threads reads without reading ahead.
            threads::start("read-ahead", move || work(&core, &chunks, &stopping)).ok()
        };
        let workers = (0..count).filter_map(start).collect();
        Self {
            queue,
            stopping,
            workers,
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        let Some(Pool {
            queue,
            stopping,
            workers,
        }) = self.pool.take()
        else {
            return;
        };
        stopping.store(true, Ordering::Relaxed);
        drop(queue);
        for worker in workers {
            // The panic of a worker has already been reported; there is nothing to add.
            let _ = worker.join();
        }
    }
}

fn work(core: &Core, chunks: &Receiver<ChunkId>, stopping: &AtomicBool) {
    for id in chunks {
        if stopping.load(Ordering::Relaxed) {
            return;
        }
        // Do not wait for a chunk that another reader is decoding.
        if core.cache.is_known(&id) {
            continue;
        }
        if let Err(error) = core.get(&id) {
            tracing::debug!(chunk = %id, %error, "Cannot read ahead");
        }
    }
}
