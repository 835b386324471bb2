//! Noticing that backups and WAL have come or gone, and telling the kernel what it must not believe any longer.
//!
//! Runs on a thread of its own that holds no lock while it tells: the kernel may wait in there for a request this very
//! process has to answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::error::{Error, Result};
use crate::namespace::{Ino, Namespace};
use crate::views::Snapshot;

/// Between two looks at the repository's generation, which costs microseconds.
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
    pub(crate) fn start(namespace: Arc<Namespace>, kernel: Box<dyn Invalidate>) -> Result<Self> {
        let (stop, stopped) = bounded(0);
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || watch(&namespace, &*kernel, &stopped))
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

fn watch(namespace: &Namespace, kernel: &dyn Invalidate, stopped: &Receiver<()>) {
    let mut known = Known::default();
    let mut failing = false;
    while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        namespace.context().release_idle();
        let result = known.update(namespace, kernel);
        if let Err(error) = &result
            && !failing
        {
            tracing::warn!("Cannot see whether there are new backups, will try again: {error}");
        }
        failing = result.is_err();
    }
}

/// What the kernel was last told.
#[derive(Debug, Default)]
struct Known {
    generation: Option<u64>,
    /// Paths of directories and the names in them: `["main", "raw"]` and the ids.
    names: BTreeSet<(Vec<String>, String)>,
    /// What `latest` and `oldest` stand for.
    aliases: BTreeSet<(Vec<String>, &'static str, Ino)>,
}

impl Known {
    fn update(&mut self, namespace: &Namespace, kernel: &dyn Invalidate) -> Result<()> {
        let context = namespace.context();
        let generation = context.repository().generation()?;
        let snapshot = context.snapshot()?;
        // These may move without a new generation: when the last reader of the old backup has gone.
        let aliases = aliases(namespace, &snapshot)?;
        if self.generation == Some(generation) && self.aliases == aliases {
            return Ok(());
        }
        let names = names(&snapshot);
        // At first there is nothing the kernel could have seen before.
        if self.generation.is_some() {
            for (path, name) in self.names.symmetric_difference(&names) {
                forget(namespace, kernel, path, name)?;
            }
            for (path, name, _) in self.aliases.symmetric_difference(&aliases) {
                forget(namespace, kernel, path, name)?;
            }
        }
        *self = Self {
            generation: Some(generation),
            names,
            aliases,
        };
        Ok(())
    }
}

fn names(snapshot: &Snapshot) -> BTreeSet<(Vec<String>, String)> {
    let mut names = BTreeSet::new();
    for server in &snapshot.servers {
        let name = server.name.to_string();
        for backup in &server.backups {
            let id = backup.id.to_string();
            names.insert((vec![name.clone(), "raw".to_owned()], id.clone()));
            names.insert((vec![name.clone()], id));
        }
        names.insert((Vec::new(), name));
    }
    names
}

fn aliases(namespace: &Namespace, snapshot: &Snapshot) -> Result<BTreeSet<(Vec<String>, &'static str, Ino)>> {
    let mut aliases = BTreeSet::new();
    for server in &snapshot.servers {
        let path = vec![server.name.to_string()];
        let Some(directory) = namespace.find(&path)? else {
            continue;
        };
        for name in ["latest", "oldest"] {
            if let Some(ino) = namespace.number_of(&directory, name)? {
                aliases.insert((path.clone(), name, ino));
            }
        }
    }
    Ok(aliases)
}

fn forget(namespace: &Namespace, kernel: &dyn Invalidate, path: &[String], name: &str) -> Result<()> {
    // A directory the kernel does not know has nothing to forget.
    if let Some(directory) = namespace.find(path)? {
        kernel.entry(directory.ino, name.as_bytes());
        kernel.inode(directory.ino);
    }
    Ok(())
}
