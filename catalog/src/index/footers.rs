//! Many footers at once: in an object store, each takes a round trip or two.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use barmanfs_store::{ClosedPack, PackId, PackStorage, read_footer, threads};

use crate::error::Result;

/// Footers that are read at once from an object store.
pub(crate) const FROM_OBJECTS: usize = 16;

/// Calls `each` with the footer of each pack, of which `at_once` are read at the same time.
///
/// # Errors
/// When no thread can be started, and whatever `each` returns.
pub(crate) fn read_each(
    storage: &dyn PackStorage,
    packs: &[PackId],
    at_once: usize,
    each: &mut dyn FnMut(PackId, barmanfs_store::Result<ClosedPack>) -> Result<()>,
) -> Result<()> {
    if at_once <= 1 || packs.len() <= 1 {
        return packs
            .iter()
            .try_for_each(|pack| each(*pack, read_footer(storage, *pack)));
    }
    let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, footers) = sync_channel(at_once);
    std::thread::scope(|scope| {
        let started = threads::start_up_to(scope, "footers", at_once.min(packs.len()), || {
            let (sender, next, stopped) = (sender.clone(), &next, &stopped);
            move || {
                while !stopped.load(Ordering::Relaxed) {
                    let Some(pack) = packs.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        break;
                    };
                    if sender.send((*pack, read_footer(storage, *pack))).is_err() {
                        break;
                    }
                }
            }
        });
        started.map_err(barmanfs_store::Error::from)?;
        drop(sender);
        let mut result = Ok(());
        for (pack, footer) in footers {
            if result.is_ok() {
                result = each(pack, footer);
                stopped.fetch_or(result.is_err(), Ordering::Relaxed);
            }
        }
        result
    })
}
