//! Several packs on their way at once: each waits for the store most of the time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use barmanfs_catalog::{KnownPack, Monitor, Unit};
use barmanfs_store::sync::lock;
use barmanfs_store::threads;

use crate::error::Error;
use crate::signals::Interruption;

/// Packs on their way at once. Each is in memory as a whole, so this bounds it: 64 MiB each, as writers make them.
const UNDER_WAY: usize = 4;

/// How often progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

/// Calls `copy` for each pack, in their order as far as they begin. Ends with the first error, when those under way have ended.
pub(super) fn each_pack(
    packs: &[KnownPack],
    monitor: &mut dyn Monitor,
    copy: impl Fn(KnownPack) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let total: u64 = packs.iter().map(|pack| pack.bytes).sum();
    let interruption = Interruption::watch(|| {})?;
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let failed = Mutex::new(None);
    let work = || {
        while !interruption.requested() && lock(&failed).is_none() {
            let Some(pack) = packs.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            match copy(*pack) {
                Ok(()) => done.fetch_add(pack.bytes, Ordering::Relaxed),
                Err(error) => {
                    lock(&failed).get_or_insert(error);
                    break;
                }
            };
        }
    };
    std::thread::scope(|scope| {
        let working = threads::start_up_to(scope, "copy", UNDER_WAY, || work)?;
        while !working.iter().all(ScopedJoinHandle::is_finished) {
            monitor.progress(done.load(Ordering::Relaxed), Some(total), Unit::Bytes);
            std::thread::sleep(SHOWN_EVERY);
        }
        Ok::<_, Error>(())
    })?;
    match failed.into_inner() {
        Ok(Some(error)) => Err(error),
        _ if interruption.requested() => Err(Error::failed(
            "Interrupted: what was copied stays, and the same command goes on from there",
        )),
        _ => Ok(()),
    }
}
