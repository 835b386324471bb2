//! Asking the kernel to forget names, so that what this process keeps for them is bounded by its own measure, and not by the
//! kernel's memory.
//!
//! On a thread of its own, as [`crate::watch`]: the kernel waits in there until the look-ups in the same directory have been
//! answered.

use std::sync::{Arc, Weak};

use crossbeam_channel::{Receiver, bounded};

use crate::error::{Error, Result};
use crate::namespace::Namespace;
use crate::watch::Invalidate;

/// Starts the thread; it ends with the namespace.
pub(crate) fn start(namespace: &Arc<Namespace>, kernel: Box<dyn Invalidate>) -> Result<()> {
    let (tell, crowded) = bounded(1);
    namespace.on_crowd(tell);
    let namespace = Arc::downgrade(namespace);
    std::thread::Builder::new()
        .name("evict".to_owned())
        .spawn(move || evict(&namespace, &*kernel, &crowded))
        .map(drop)
        .map_err(|source| Error::io("start a thread for", "(forgetting names)", source))
}

fn evict(namespace: &Weak<Namespace>, kernel: &dyn Invalidate, crowded: &Receiver<()>) {
    while crowded.recv().is_ok() {
        let Some(namespace) = namespace.upgrade() else {
            return;
        };
        for victim in namespace.victims() {
            // Where somebody is at work the names are kept: a copy goes by paths.
            let usage = victim.node.directory().and_then(|directory| directory.usage());
            if !usage.is_some_and(|usage| usage.is_busy()) {
                kernel.entry(victim.parent, &victim.node.name);
            }
        }
    }
}
