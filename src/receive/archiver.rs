//! The thread that moves whole segments from the spool into the archive.
//!
//! The spool is its queue: the next process archives what a killed process left there.

use std::fs::Metadata;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use barmanfs_catalog::{Spool, WalOutcome};
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_store::threads;

use super::backoff::Backoff;
use crate::arrival;
use crate::config::ServerConfig;
use crate::error::Error;
use crate::hooks::{Hooks, Wal};
use crate::versions;

/// Maximum number of whole segments in the spool, usually 256 MB. At this number, receiving waits, too. The server
/// keeps WAL that is not reported as flushed.
const WAITING_SEGMENTS: usize = 16;

/// How often the thread checks the spool without being woken.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Archives until it is dropped. Segments that are not archived by then stay in the spool.
#[derive(Debug)]
pub(super) struct Archiver {
    spool: Arc<Spool>,
    /// Dropping it ends the thread.
    wake: Option<SyncSender<()>>,
    /// Set before that, for a hook that is tried again and again.
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Archiver {
    /// Starts the thread.
    pub(super) fn start(spool: Arc<Spool>, server: &ServerConfig) -> Result<Self, Error> {
        let (wake, woken) = sync_channel(1);
        let ended: Arc<AtomicBool> = Arc::default();
        let (its_spool, its_end, server) = (Arc::clone(&spool), Arc::clone(&ended), server.clone());
        let thread = threads::start("archiver", move || {
            let is_ended = || its_end.load(Ordering::Relaxed);
            let hooks = Hooks::of(&server, its_spool.repository(), &is_ended);
            work(&its_spool, &hooks, &woken);
        })?;
        Ok(Self {
            spool,
            wake: Some(wake),
            ended,
            thread: Some(thread),
        })
    }

    /// Reports a new segment.
    pub(super) fn wake(&self) {
        if let Some(wake) = &self.wake {
            // A full channel means that the thread was already woken. For a closed one see `has_ended`.
            let _ = wake.try_send(());
        }
    }

    /// Whether so many segments are waiting that receiving has to wait, too.
    pub(super) fn is_behind(&self) -> Result<bool, Error> {
        Ok(self.spool.complete()?.len() >= WAITING_SEGMENTS)
    }

    /// Whether the thread has ended. It never does so by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Archiver {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, the panic has been reported.
            let _ = thread.join();
        }
    }
}

fn work(spool: &Spool, hooks: &Hooks<'_>, woken: &Receiver<()>) {
    let mut backoff = Backoff::default();
    loop {
        let pause = match archive_first(spool, hooks) {
            Ok(true) => {
                backoff.reset();
                Duration::ZERO
            }
            Ok(false) => LOOK_AGAIN_AFTER,
            Err(error) => {
                let delay = backoff.next();
                tracing::error!(
                    "WAL received from server {} is in the spool and not archived, next try in {:.1} s. {}",
                    spool.server(),
                    delay.as_secs_f64(),
                    super::in_one_line(&error)
                );
                // A new segment is not a reason to try earlier.
                if sleep_while_wanted(woken, delay) {
                    continue;
                }
                return;
            }
        };
        if woken.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// Waits. Returns whether the thread is still needed then.
fn sleep_while_wanted(woken: &Receiver<()>, delay: Duration) -> bool {
    let until = std::time::Instant::now() + delay;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        match woken.recv_timeout(left) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// Archives the first waiting segment. Returns whether there was one.
fn archive_first(spool: &Spool, hooks: &Hooks<'_>) -> Result<bool, Error> {
    let Some(name) = spool.complete()?.first().copied() else {
        return Ok(false);
    };
    tell(spool, name, &archive(spool, hooks, name)?);
    Ok(true)
}

/// Archives a segment, with the server's hooks around that.
pub(crate) fn archive(spool: &Spool, hooks: &Hooks<'_>, name: SegmentName) -> Result<WalOutcome, Error> {
    let path = spool.path_of(name);
    let metadata = std::fs::metadata(&path);
    let wal = Wal {
        name: WalName::Segment(name),
        path: Some(&path),
        size_bytes: metadata.as_ref().map_or(0, Metadata::len),
        time: metadata.and_then(|found| found.modified()).unwrap_or(UNIX_EPOCH),
        error: None,
    };
    Ok(arrival::with_hooks(hooks, &wal, || Ok(spool.archive(name)?))?)
}

fn tell(spool: &Spool, name: SegmentName, outcome: &WalOutcome) {
    let server = spool.server();
    match outcome {
        WalOutcome::Stored(file) => {
            tracing::debug!("Archived {name} of server {server}");
            versions::warn_of_wal(file);
        }
        WalOutcome::AlreadyThere(_) => {
            tracing::debug!("Segment {name} of server {server} was archived before");
        }
        // Receiving continues. What was reported to the server is kept, and a decision of the user can move it into the
        // archive.
        WalOutcome::Refused(refused) => tracing::error!(
            "Segment {name} of server {server} was received and is put aside, not archived: {}. \
             'barmanfs history {server} list' tells more",
            refused.quarantined.reason
        ),
        // Receiving continues: the WAL that follows is good, and stopping would lose it as well.
        WalOutcome::Conflict(conflict) => tracing::error!(
            "Segment {name} of server {server} was received with other content than was archived at {} by {}: both are \
             kept, the received one is put aside. Does another server archive as '{server}', or a copy of this one that \
             was promoted on the same timeline? 'barmanfs history {server} list' tells more",
            conflict.archived.archived_at,
            conflict.archived.origin
        ),
    }
}
