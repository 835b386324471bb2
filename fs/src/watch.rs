//! Noticing that backups and WAL have come or gone, and telling the kernel what it must not believe any longer.
//!
//! Runs on a thread of its own that holds no lock while it tells: the kernel may wait in there for a request this very
//! process has to answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use barmanfs_catalog::BackupId;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::error::{Error, Result};
use crate::namespace::{Ino, Namespace};
use crate::views::{Context, Snapshot, aliases};

/// Between two looks. Asking the repository for its generation costs microseconds; only a new one is read.
const INTERVAL: Duration = Duration::from_millis(500);

/// Makes the kernel forget.
pub(crate) trait Invalidate: Send {
    /// What a name in a directory stands for.
    fn entry(&self, parent: Ino, name: &[u8]);

    /// A directory's listing and attributes.
    fn inode(&self, ino: Ino);
}

/// The thread; ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    /// Dropped first: its end is what the thread waits for.
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
            // It ends by itself; a panic in it was logged.
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

/// A name that comes and goes: the path of its directory, the name, and which backup it stands for if that changes.
type Name = (Vec<String>, String, Option<BackupId>);

/// What the kernel was last told.
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
        // At first there is nothing the kernel could have seen before.
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
        // These may move without anything new in the repository: when the last reader of the old backup has gone.
        for (name, id) in aliases(context, server) {
            names.insert((path.clone(), name.to_owned(), Some(id)));
        }
        names.insert((Vec::new(), server.name.to_string(), None));
    }
    names
}

fn forget(namespace: &Namespace, kernel: &dyn Invalidate, path: &[String], name: &str) -> Result<()> {
    // A directory the kernel does not know has nothing to forget.
    if let Some(directory) = namespace.find(path)? {
        kernel.entry(directory.ino, name.as_bytes());
        kernel.inode(directory.ino);
    }
    Ok(())
}
