//! The clones that a mount serves. `mkdir` in `live/` creates one, a request below it opens it, `rmdir` removes it.
//!
//! A clone's root is an entry of the view `live/`. Everything below it belongs to the clone, with node numbers as
//! inode numbers. So every request first asks here which clone its inode belongs to.

mod inodes;
mod served;
mod serving_epochs;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant, SystemTime};

use barmanfs_catalog::{CloneDescription, CloneName, CloneOrigin, ServerName};
use barmanfs_live::{Initial, LiveClone, NodeId};
use barmanfs_store::RecordId;
use barmanfs_store::sync::lock;
use rustix::io::Errno;

use self::inodes::{Inodes, Owner};
use self::served::Place;
pub(crate) use self::served::Served;
use self::serving_epochs::ServingEpochs;
use crate::error::{Error, NOT_FOUND, Result, STALE};
use crate::namespace::{Ino, Namespace};
use crate::views::{CloneAdditions, CloneSource, Context, ServesClones};

/// Separates a clone's name from its source in a directory name.
const AT: char = '@';

/// The kernel reports the close of a file a little after the program's close has returned.
const PATIENCE: Duration = Duration::from_millis(200);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// The clones of one mount.
#[derive(Debug)]
pub(crate) struct Clones {
    context: Arc<Context>,
    /// Held while a clone is created, so that the limit on their number holds.
    making: Mutex<()>,
    open: Mutex<HashMap<(ServerName, CloneName), Arc<Served>>>,
    inodes: Inodes,
    epochs: ServingEpochs,
}

impl Clones {
    /// The clones of a mount, none open yet.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Arc<Self>> {
        let clones = Arc::new(Self {
            context: Arc::clone(context),
            making: Mutex::default(),
            open: Mutex::default(),
            inodes: Inodes::default(),
            epochs: ServingEpochs::new()?,
        });
        let this: Weak<Self> = Arc::downgrade(&clones);
        context.set_clones(this);
        Ok(clones)
    }

    /// The clone an inode belongs to, if any. Opens it if necessary.
    pub(crate) fn of(&self, namespace: &Namespace, ino: Ino) -> Result<Option<Arc<Served>>> {
        match self.inodes.owner(ino) {
            Owner::Served(served) => return Ok(Some(served)),
            Owner::Released(place) => {
                let served = self.open(&place)?;
                self.inodes.recall(&served, ino)?;
                return Ok(Some(served));
            }
            Owner::Unknown => {}
        }
        // An inode that the views do not know either: the views answer with an error.
        let Ok(node) = namespace.node(ino) else {
            return Ok(None);
        };
        let Some(root) = node.directory().and_then(|directory| directory.clone_root()) else {
            return Ok(None);
        };
        let place = Place {
            server: root.server.clone(),
            name: root.name.clone(),
            id: root.id,
            epoch: root.epoch,
            root: ino,
        };
        self.open(&Arc::new(place)).map(Some)
    }

    /// Counts a look-up of a node.
    pub(crate) fn looked_up(&self, served: &Arc<Served>, node: NodeId) {
        self.inodes.looked_up(served, node);
    }

    /// The kernel forgets a node. Returns whether the inode belongs to a clone.
    pub(crate) fn forget(&self, ino: Ino, count: u64) -> bool {
        let Some((served, count)) = self.inodes.forget(ino, count) else {
            return false;
        };
        if let Some(served) = served {
            served.clone.forget(served.node(ino), count);
        }
        true
    }

    /// EBUSY while another process has the clone. ESTALE when another clone has its name by now, or another mount has
    /// served it since.
    fn open(&self, place: &Arc<Place>) -> Result<Arc<Served>> {
        let mut open = self.lock();
        let Place { server, name, id, .. } = &**place;
        let key = (server.clone(), name.clone());
        if let Some(served) = open.get(&key) {
            let is_it = served.place == *place;
            return is_it.then(|| Arc::clone(served)).ok_or(STALE);
        }
        let repository = self.context.repository();
        let is_it = |description: &CloneDescription| description.id == *id;
        repository
            .clone_named(server, name)
            .ok()
            .filter(is_it)
            .ok_or(STALE)?;
        let lock = match repository.lock_clone(server, name, "serving it on a mount") {
            Err(barmanfs_catalog::Error::CloneInUse { .. }) => return Err(Error::Refused(Errno::BUSY)),
            lock => lock?,
        };
        let mut description = repository.clone_named(server, name)?;
        if !is_it(&description) || self.epochs.current(repository, &description)? != place.epoch {
            return Err(STALE);
        }
        // The configuration decides the size limit. Earlier releases stored the limit when the clone was created.
        description.max_bytes = self.context.clone_limits(server).max_bytes;
        let is_durable = self.epochs.begin(repository, &lock, &description)?;
        let directory = repository.clone_directory(server, name);
        let clone = match is_durable {
            true => LiveClone::open_durable(&directory, &description, repository.trees())?,
            false => LiveClone::open(&directory, &description, repository.trees())?,
        };
        let served = Arc::new(Served::new(
            Arc::new(clone),
            Arc::clone(place),
            description,
            lock,
        )?);
        self.inodes.attach(&served);
        open.insert(key, Arc::clone(&served));
        tracing::info!("Serving the clone {}", served.described());
        Ok(served)
    }

    /// Creates a clone of the newest backup, with `NAME@backup=ID` of another one, with `NAME@TARGET` of a point in
    /// time as in `pitr/`. Returns its name.
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
        let _making = lock(&self.making);
        if repository.clones(server)?.len() >= limits.max_count {
            tracing::warn!(
                "{server} has {} clones, and clone_max_count allows no more",
                limits.max_count
            );
            return Err(Error::Refused(Errno::DQUOT));
        }
        let source = CloneSource::find(&self.context, server, target)?.ok_or(NOT_FOUND)?;
        let backup = source.backup();
        let CloneAdditions { grafts, made } = source.additions()?;
        let description = CloneDescription {
            id: RecordId::random()?,
            server: server.clone(),
            name: name.clone(),
            origin: CloneOrigin {
                backup: backup.id,
                target: source.target(),
                copied_from: None,
            },
            seed: None,
            created_at: SystemTime::now().into(),
            root: backup.root.clone().ok_or(NOT_FOUND)?,
            grafts,
            max_bytes: None,
        };
        let initial = Initial {
            made,
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

    /// Removes a clone with all its files. Nothing in it may be open.
    pub(crate) fn remove(&self, server: &ServerName, name: &CloneName) -> Result<()> {
        self.wait_for_closes(server, name);
        let mut open = self.lock();
        let repository = self.context.repository();
        let (description, lock) = match self.take(&mut open, server, name)? {
            Some(served) => served.into_lock(),
            None => match repository.lock_clone(server, name, "removing it") {
                Err(barmanfs_catalog::Error::CloneInUse { .. }) => return Err(Error::Refused(Errno::BUSY)),
                Err(barmanfs_catalog::Error::NoSuchClone { .. }) => return Err(NOT_FOUND),
                lock => (repository.clone_named(server, name)?, lock?),
            },
        };
        drop(open);
        repository.remove_clone(&description, lock)?;
        self.epochs.forget(server, name);
        tracing::info!("Removed the clone {server}/live/{name}");
        Ok(())
    }

    /// Stops serving a clone in which nothing is open; `None` when it is not served. EBUSY when it is in use.
    fn take(
        &self,
        open: &mut OpenClones<'_>,
        server: &ServerName,
        name: &CloneName,
    ) -> Result<Option<Served>> {
        let key = (server.clone(), name.clone());
        let Some(served) = open.get(&key) else {
            return Ok(None);
        };
        // Besides requests and inodes, only the entry in this table holds it.
        if served.is_open() || !self.inodes.detach(served, 1) {
            return Err(Error::Refused(Errno::BUSY));
        }
        let served = open.remove(&key).and_then(Arc::into_inner);
        served.map(Some).ok_or(Error::Refused(Errno::BUSY))
    }

    /// Number of open files and directories in all clones.
    pub(crate) fn open_files(&self) -> u64 {
        self.lock().values().map(|served| served.open_files()).sum()
    }

    /// Makes all writes to clones durable, because the mount ends.
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

    fn lock(&self) -> OpenClones<'_> {
        lock(&self.open)
    }

    /// Waits a moment until the kernel has reported the closes in a clone.
    fn wait_for_closes(&self, server: &ServerName, name: &CloneName) {
        let key = (server.clone(), name.clone());
        let began = Instant::now();
        let is_open = || self.lock().get(&key).is_some_and(|served| served.is_open());
        while is_open() && began.elapsed() < PATIENCE {
            std::thread::sleep(TRY_AGAIN_AFTER);
        }
    }
}

impl ServesClones for Clones {
    fn epoch(&self, clone: &CloneDescription) -> Result<u64> {
        self.epochs.current(self.context.repository(), clone)
    }

    /// When this returns, all writes to the clone are durable and its lock is free.
    fn release(&self, server: &ServerName, name: &CloneName) -> Result<()> {
        let served = self.lock().get(&(server.clone(), name.clone())).cloned();
        let Some(served) = served else { return Ok(()) };
        if served.is_open() {
            return Err(Error::Refused(Errno::BUSY));
        }
        // Flushes most of it while the clone can still be used. The rest is flushed below.
        served.clone.flush_all()?;
        drop(served);
        let mut open = self.lock();
        let Some(served) = self.take(&mut open, server, name)? else {
            return Ok(());
        };
        served.clone.flush_all()?;
        tracing::info!("Let go of the clone {}", served.described());
        drop(served);
        drop(open);
        Ok(())
    }
}

type OpenClones<'a> = MutexGuard<'a, HashMap<(ServerName, CloneName), Arc<Served>>>;
