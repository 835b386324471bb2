//! Notices new and removed backups and WAL, and tells the kernel to drop what it has cached about them.
//!
//! Runs on a thread of its own that holds no lock during notifications: the kernel may wait for a request that this
//! process has to answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use barmanfs_catalog::BackupId;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::error::{Error, Result};
use crate::namespace::{Ino, Namespace};
use crate::views::{BY_NAME, Context, Snapshot, aliases, named};

/// Time between two checks. Asking for the repository's generation costs microseconds; backups are read only when it
/// has changed.
const INTERVAL: Duration = Duration::from_millis(500);

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
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || watch(&namespace, &context, &*kernel, &stopped))
            .map_err(|source| Error::io("start a thread for", "(watching the repository)", source))?;
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
    }
}

/// A name that can change: the path of its directory, the name, and the backup it leads to if that can change.
type Name = (Vec<String>, String, Option<BackupId>);

/// The names as of the last notification.
#[derive(Debug, Default)]
struct Known {
    names: Option<BTreeSet<Name>>,
}

impl Known {
    fn update(
        &mut self,
        namespace: &Namespace,
        context: &Arc<Context>,
        kernel: &dyn Invalidate,
    ) -> Result<()> {
        let names = names(context, &*context.snapshot()?);
        // Before the first round the kernel has cached nothing.
        for (path, name, _) in self
            .names
            .iter()
            .flat_map(|known| known.symmetric_difference(&names))
        {
            forget(namespace, kernel, path, name)?;
        }
        self.names = Some(names);
        Ok(())
    }
}

fn names(context: &Arc<Context>, snapshot: &Snapshot) -> BTreeSet<Name> {
    let mut names = BTreeSet::new();
    for server in &snapshot.servers {
        let path = vec![server.name.to_string()];
        for backup in &server.backups {
            let id = backup.id.to_string();
            names.insert((vec![server.name.to_string(), "raw".to_owned()], id.clone(), None));
            names.insert((path.clone(), id, None));
        }
        // These can change without a change in the repository: when the last user of the old backup has gone.
        for (name, id) in aliases(context, server) {
            names.insert((path.clone(), name.to_owned(), Some(id)));
        }
        for (name, id) in named(context, server) {
            let path = vec![server.name.to_string(), BY_NAME.to_owned()];
            names.insert((path, name, Some(id)));
        }
        names.insert((Vec::new(), server.name.to_string(), None));
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
