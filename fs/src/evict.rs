//! Asks the kernel to forget names, so that the memory this process needs for them has a bound of its own and does not
//! depend on the kernel's memory.
//!
//! This runs on a thread of its own, as [`crate::watch`] does: the call into the kernel waits until look-ups in the
//! same directory have been answered.

use std::sync::{Arc, Weak};
use std::time::Duration;

use barmanfs_store::threads;
use crossbeam_channel::{Receiver, bounded};

use crate::error::Result;
use crate::namespace::Namespace;
use crate::watch::Invalidate;

/// Time between two rounds when nothing can be forgotten.
const PAUSE: Duration = Duration::from_millis(200);

/// Starts the thread. It ends with the namespace.
pub(crate) fn start(namespace: &Arc<Namespace>, kernel: Box<dyn Invalidate>) -> Result<()> {
    let (tell, crowded) = bounded(1);
    namespace.on_crowd(tell);
    let namespace = Arc::downgrade(namespace);
    let started = threads::start("evict", move || evict(&namespace, &*kernel, &crowded));
    Ok(started.map(drop).map_err(barmanfs_store::Error::from)?)
}

fn evict(namespace: &Weak<Namespace>, kernel: &dyn Invalidate, crowded: &Receiver<()>) {
    while crowded.recv().is_ok() {
        let Some(namespace) = namespace.upgrade() else {
            return;
        };
        let mut asked = 0;
        for victim in namespace.victims() {
            // Names of a view in use are kept, because a copy works with paths.
            let usage = victim.node.directory().and_then(|directory| directory.usage());
            if !usage.is_some_and(|usage| usage.is_busy()) {
                kernel.entry(victim.parent, &victim.node.name);
                asked += 1;
            }
        }
        drop(namespace);
        if asked == 0 {
            // All are in use. That does not change at once.
            std::thread::sleep(PAUSE);
        }
    }
}
