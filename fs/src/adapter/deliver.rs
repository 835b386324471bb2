//! Puts small files into the kernel's cache before they are opened, for a reader that opens one file of a directory after the
//! other. The reader waits for one short answer for each file then, and the content comes while it works on the files before.
//!
//! On a thread of its own: it may wait for a page that a request has to fill.

use std::io;
use std::sync::Arc;

use barmanfs_store::threads;
use crossbeam_channel::bounded;
use fuser::{INodeNo, Notifier};

use crate::counters::RequestCounters;
use crate::namespace::Namespace;

/// Batches that may wait: those of a few readers.
const BATCHES: usize = 8;

/// Starts the thread. It ends with the namespace.
pub(super) fn start(
    namespace: &Arc<Namespace>,
    kernel: Notifier,
    counters: &Arc<RequestCounters>,
) -> io::Result<()> {
    let (deliver, batches) = bounded(BATCHES);
    namespace.on_ahead(deliver);
    let (namespace, counters) = (Arc::downgrade(namespace), Arc::clone(counters));
    let each = move || {
        for batch in batches {
            let Some(namespace) = namespace.upgrade() else {
                return;
            };
            for node in batch {
                namespace.deliver(&node, |bytes| {
                    // If the kernel refuses or has forgotten the inode, it reads the file as usual.
                    if kernel.store(INodeNo(node.ino.0), 0, bytes).is_ok() {
                        counters.sends(bytes.len());
                    }
                });
            }
        }
    };
    Ok(threads::start("deliver", each).map(drop)?)
}
