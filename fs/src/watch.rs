//! Notices new and removed backups and WAL, and tells the kernel to drop what it has cached about them.
//!
//! Runs on a thread of its own that holds no lock during notifications: the kernel may wait for a request that this
//! process has to answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use barmanfs_catalog::BackupId;
use barmanfs_store::threads;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::error::Result;
use crate::namespace::{Ino, Namespace};
use crate::views::{Context, ServerState, Snapshot, moved_aliases};

/// Time between two checks. Asking for the repository's generation costs microseconds; backups are read only when it
/// has changed.
const INTERVAL: Duration = Duration::from_millis(500);

/// When the kernel has forgotten so many nodes, the memory they took is given back.
const MANY_NODES: usize = 10_000;

/// Makes the kernel drop cached data.
pub(crate) trait Invalidate: Send {
    /// The entry under a name.
    fn entry(&self, parent: Ino, name: &[u8]);

    /// A directory's listing and attributes.
    fn inode(&self, ino: Ino);
}

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    /// Dropped first: the thread waits for it to close.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(crate) fn start(
        namespace: Arc<Namespace>,
        context: Arc<Context>,
        kernel: Box<dyn Invalidate>,
    ) -> Result<Self> {
        let (stop, stopped) = bounded(0);
        let work = move || watch(&namespace, &context, &*kernel, &stopped);
        let thread = threads::start("watch", work).map_err(barmanfs_store::Error::from)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It ends by itself. A panic in it was logged.
            let _ = thread.join();
        }
    }
}

fn watch(namespace: &Namespace, context: &Arc<Context>, kernel: &dyn Invalidate, stopped: &Receiver<()>) {
    let mut known = Known::default();
    let mut most_nodes = 0;
    let mut failing = false;
    while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        context.release_idle();
        let result = known.update(namespace, context, kernel);
        if let Err(error) = &result
            && !failing
        {
            tracing::warn!("Cannot see whether there are new backups, will try again: {error}");
        }
        failing = result.is_err();
        let nodes = namespace.in_use().0;
        most_nodes = nodes.max(most_nodes);
        if most_nodes - nodes >= MANY_NODES {
            crate::memory::give_back();
            most_nodes = nodes;
        }
    }
}

/// A directory and a name in it.
type Name = (Vec<String>, String);

/// What was there at the last round.
#[derive(Debug, Default)]
struct Known {
    snapshot: Option<Arc<Snapshot>>,
    /// What the kernel has to forget; after an error there is more to do.
    pending: Vec<Name>,
}

impl Known {
    fn update(
        &mut self,
        namespace: &Namespace,
        context: &Arc<Context>,
        kernel: &dyn Invalidate,
    ) -> Result<()> {
        let snapshot = context.snapshot()?;
        // Before the first round the kernel has cached nothing.
        if let Some(before) = self.snapshot.replace(Arc::clone(&snapshot)) {
            self.pending.extend(changed(&before, &snapshot));
        }
        self.pending.extend(moved_aliases(context, &snapshot));
        while let Some((path, name)) = self.pending.last() {
            forget(namespace, kernel, path, name)?;
            self.pending.pop();
        }
        Ok(())
    }
}

/// The names that are in only one of two snapshots. A server that has not changed is the same in both, and costs a comparison
/// of two pointers.
fn changed(before: &Snapshot, now: &Snapshot) -> Vec<Name> {
    let mut names = Vec::new();
    let all = before.servers.iter().chain(&now.servers);
    for name in all.map(|server| server.name.as_str()).collect::<BTreeSet<_>>() {
        match (before.server(name), now.server(name)) {
            (Some(before), Some(now)) if Arc::ptr_eq(before, now) => {}
            (Some(before), Some(now)) => {
                let ids = |server: &ServerState| server.backups.iter().map(|backup| backup.id).collect();
                let (before, now): (BTreeSet<BackupId>, BTreeSet<BackupId>) = (ids(before), ids(now));
                for id in before.symmetric_difference(&now) {
                    names.push((vec![name.to_owned()], id.to_string()));
                    names.push((vec![name.to_owned(), "raw".to_owned()], id.to_string()));
                }
            }
            // With the server's directory, the kernel forgets all below it.
            _ => names.push((Vec::new(), name.to_owned())),
        }
    }
    names
}

fn forget(namespace: &Namespace, kernel: &dyn Invalidate, path: &[String], name: &str) -> Result<()> {
    // The kernel has cached nothing of a directory that it does not know.
    if let Some(directory) = namespace.find(path)? {
        kernel.entry(directory.ino, name.as_bytes());
        kernel.inode(directory.ino);
    }
    Ok(())
}
