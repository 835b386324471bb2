//! The clones a mount serves: made by `mkdir` in `live/`, opened when somebody looks into one, removed by `rmdir`.
//!
//! A clone's root is an entry of the view `live/`; everything below it is the clone's own, with node numbers as inode
//! numbers. So whoever has a request about an inode asks here first whose it is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

use barmanfs_catalog::{CloneDescription, CloneLock, CloneName, CloneOrigin, ServerName};
use barmanfs_store::RecordId;
use rustix::io::Errno;

use crate::error::{Error, NOT_FOUND, Result};
use crate::live::{Flusher, Initial, LiveClone, NodeId};
use crate::namespace::{Ino, Namespace};
use crate::views::{CloneSource, Context};

/// Parts a clone's name from what it is to be made of.
const AT: char = '@';

/// A server makes it first of all.
const SERVER_LOCK: &[u8] = b"postmaster.pid";

/// One clone that is open.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) clone: Arc<LiveClone>,
    description: CloneDescription,
    /// The number its root has in `live/`.
    root: Ino,
    /// Open files and directories.
    opens: AtomicU64,
    _flusher: Flusher,
    lock: Mutex<Option<CloneLock>>,
}

impl Served {
    /// The node with this inode number.
    pub(crate) fn node(&self, ino: Ino) -> NodeId {
        if ino == self.root {
            self.clone.root()
        } else {
            NodeId(ino.0)
        }
    }

    /// The inode number of a node.
    pub(crate) fn ino(&self, node: NodeId) -> Ino {
        if node == self.clone.root() {
            self.root
        } else {
            Ino(node.0)
        }
    }

    /// Called before a file is made. A server that starts relies on what is there being durable; it says so by syncing
    /// the file system, of which the kernel tells us nothing. The file that keeps a second server out is made just before.
    pub(crate) fn before_making(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        if parent == self.clone.root() && name == SERVER_LOCK {
            self.clone.flush_all()?;
        }
        Ok(())
    }

    /// One file or directory more is open.
    pub(crate) fn opened(&self) {
        self.opens.fetch_add(1, Ordering::SeqCst);
    }

    /// One fewer.
    pub(crate) fn closed(&self) {
        self.opens.fetch_sub(1, Ordering::SeqCst);
    }

    /// What it is called in messages.
    pub(crate) fn described(&self) -> String {
        format!("{}/live/{}", self.description.server, self.description.name)
    }
}

/// An inode below a clone's root that the kernel knows.
#[derive(Debug)]
struct Known {
    served: Arc<Served>,
    /// How often it was looked up; the engine counts them too, for itself.
    lookups: u64,
}

/// What clones of a server may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneLimits {
    /// Bytes a new clone may take in the repository; no limit when `None`.
    pub max_bytes: Option<u64>,
    /// How many there may be.
    pub max_count: usize,
}

impl CloneLimits {
    /// How many clones a server may have unless configured otherwise: more are rather a script gone wild, and each is
    /// asked for when names in `live/` are looked up.
    pub const DEFAULT_COUNT: usize = 100;
}

impl Default for CloneLimits {
    fn default() -> Self {
        Self {
            max_bytes: None,
            max_count: Self::DEFAULT_COUNT,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Clones {
    context: Arc<Context>,
    /// Held while a clone is made, so that no two are the last that may be.
    making: Mutex<()>,
    open: Mutex<HashMap<(ServerName, CloneName), Arc<Served>>>,
    roots: RwLock<HashMap<Ino, Arc<Served>>>,
    nodes: RwLock<HashMap<Ino, Known>>,
}

impl Clones {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            making: Mutex::default(),
            open: Mutex::default(),
            roots: RwLock::default(),
            nodes: RwLock::default(),
        }
    }

    /// The clone an inode belongs to, if it belongs to one. It is opened when it was not yet.
    pub(crate) fn of(&self, namespace: &Namespace, ino: Ino) -> Result<Option<Arc<Served>>> {
        if let Some(known) = read(&self.nodes).get(&ino) {
            return Ok(Some(Arc::clone(&known.served)));
        }
        if let Some(served) = read(&self.roots).get(&ino) {
            return Ok(Some(Arc::clone(served)));
        }
        // Not known to the views either: theirs to answer.
        let Ok(node) = namespace.node(ino) else {
            return Ok(None);
        };
        match node.directory().and_then(|directory| directory.clone_root()) {
            Some((server, name)) => self.open(server, name, ino).map(Some),
            None => Ok(None),
        }
    }

    /// The kernel was told of a node once more.
    pub(crate) fn looked_up(&self, served: &Arc<Served>, node: NodeId) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let known = nodes.entry(served.ino(node)).or_insert_with(|| Known {
            served: Arc::clone(served),
            lookups: 0,
        });
        known.lookups += 1;
    }

    /// The kernel forgets a node; says whether it was one of a clone.
    pub(crate) fn forget(&self, ino: Ino, count: u64) -> bool {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = nodes.get_mut(&ino) else {
            return false;
        };
        let served = Arc::clone(&known.served);
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0 {
            nodes.remove(&ino);
        }
        drop(nodes);
        served.clone.forget(served.node(ino), count);
        true
    }

    fn open(&self, server: &ServerName, name: &CloneName, root: Ino) -> Result<Arc<Served>> {
        let mut open = self.lock();
        let key = (server.clone(), name.clone());
        if let Some(served) = open.get(&key) {
            return Ok(Arc::clone(served));
        }
        let repository = self.context.repository();
        let lock = repository.lock_clone(server, name, "serving it on a mount")?;
        let description = repository.clone_named(server, name)?;
        let directory = repository.clone_directory(server, name);
        let clone = Arc::new(LiveClone::open(&directory, &description, repository.trees())?);
        let served = Arc::new(Served {
            _flusher: Flusher::start(&clone)?,
            clone,
            description,
            root,
            opens: AtomicU64::new(0),
            lock: Mutex::new(Some(lock)),
        });
        open.insert(key, Arc::clone(&served));
        self.roots
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(root, Arc::clone(&served));
        tracing::info!("Serving the clone {}", served.described());
        Ok(served)
    }

    /// Makes a clone: of the newest backup, with `NAME@backup=ID` of another one, or with `NAME@TARGET` of a point in time
    /// as `pitr/` has it. Gives its name.
    pub(crate) fn make(&self, server: &ServerName, asked: &str) -> Result<CloneName> {
        let (name, target) = match asked.split_once(AT) {
            Some((name, target)) => (name, Some(target)),
            None => (asked, None),
        };
        let invalid = |_| Error::Refused(Errno::INVAL);
        let name: CloneName = name.parse().map_err(invalid)?;
        let repository = self.context.repository();
        if repository.clone_named(server, &name).is_ok() {
            return Err(Error::Refused(Errno::EXIST));
        }
        let limits = self.context.clone_limits(server);
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if repository.clones(server)?.len() >= limits.max_count {
            tracing::warn!(
                "{server} has {} clones, and clone_max_count allows no more",
                limits.max_count
            );
            return Err(Error::Refused(Errno::DQUOT));
        }
        let source = CloneSource::find(&self.context, server, target)?.ok_or(NOT_FOUND)?;
        let backup = source.backup();
        let description = CloneDescription {
            id: RecordId::random()?,
            server: server.clone(),
            name: name.clone(),
            origin: CloneOrigin {
                backup: backup.id,
                target: source.target(),
                copied_from: None,
            },
            created_at: SystemTime::now().into(),
            root: backup.root.clone().ok_or(NOT_FOUND)?,
            grafts: source.grafts()?,
            max_bytes: limits.max_bytes,
        };
        let initial = Initial {
            made: source.made()?,
            looked_at: CloneSource::LOOKED_AT,
            hide: &CloneSource::hides,
        };
        let draft = repository.begin_clone(description, backup)?;
        let trees = repository.trees();
        drop(LiveClone::create_in(
            draft.directory(),
            draft.description(),
            trees,
            &initial,
        )?);
        draft.finish()?;
        tracing::info!("Made the clone {server}/live/{name} of {}", source.described());
        Ok(name)
    }

    /// Removes a clone in which nothing is open, with everything in it.
    pub(crate) fn remove(&self, server: &ServerName, name: &CloneName) -> Result<()> {
        let mut open = self.lock();
        let key = (server.clone(), name.clone());
        let repository = self.context.repository();
        let (description, lock) = match open.get(&key) {
            Some(served) if served.opens.load(Ordering::SeqCst) > 0 => {
                return Err(Error::Refused(Errno::BUSY));
            }
            Some(served) => {
                let lock = served.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
                (served.description.clone(), lock.ok_or(NOT_FOUND)?)
            }
            None => {
                let lock = repository.lock_clone(server, name, "removing it")?;
                (repository.clone_named(server, name)?, lock)
            }
        };
        if let Some(served) = open.remove(&key) {
            self.roots
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&served.root);
            self.nodes
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|_, known| !Arc::ptr_eq(&known.served, &served));
        }
        drop(open);
        repository.remove_clone(&description, lock)?;
        tracing::info!("Removed the clone {server}/live/{name}");
        Ok(())
    }

    /// Makes everything durable that was written to clones: the mount ends.
    pub(crate) fn flush(&self) {
        let open: Vec<_> = self.lock().values().cloned().collect();
        for served in open {
            if let Err(error) = served.clone.flush_all() {
                tracing::error!(
                    "What was last written to {} may be lost: {error}",
                    served.described()
                );
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(ServerName, CloneName), Arc<Served>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}
