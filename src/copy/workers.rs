//! Several packs on their way at once: each waits for the store most of the time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use barmanfs_catalog::{KnownPack, Monitor, Unit};
use barmanfs_store::sync::lock;

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
    let (next, done, running) = (
        AtomicUsize::new(0),
        AtomicU64::new(0),
        AtomicUsize::new(UNDER_WAY),
    );
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
        running.fetch_sub(1, Ordering::Release);
    };
    std::thread::scope(|scope| {
        for _ in 0..UNDER_WAY {
            scope.spawn(work);
        }
        while running.load(Ordering::Acquire) > 0 {
            monitor.progress(done.load(Ordering::Relaxed), Some(total), Unit::Bytes);
            std::thread::sleep(SHOWN_EVERY);
        }
    });
    match failed.into_inner() {
        Ok(Some(error)) => Err(error),
        _ if interruption.requested() => Err(Error::failed(
            "Interrupted: what was copied stays, and the same command goes on from there",
        )),
        _ => Ok(()),
    }
}
