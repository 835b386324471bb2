//! The clones a mount serves: made by `mkdir` in `live/`, opened when somebody looks into one, removed by `rmdir`.
//!
//! A clone's root is an entry of the view `live/`; everything below it is the clone's own, with node numbers as inode
//! numbers. So whoever has a request about an inode asks here first whose it is.

mod inodes;
mod served;
mod serving_epochs;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use barmanfs_catalog::{CloneDescription, CloneName, CloneOrigin, ServerName};
use barmanfs_live::{Initial, LiveClone, NodeId};
use barmanfs_store::RecordId;
use rustix::io::Errno;

use self::inodes::{Inodes, Whose};
use self::served::Place;
pub(crate) use self::served::Served;
use self::serving_epochs::ServingEpochs;
use crate::error::{Error, NOT_FOUND, Result, STALE};
use crate::namespace::{Ino, Namespace};
use crate::views::{CloneAdditions, CloneSource, Context, ServesClones};

/// Parts a clone's name from what it is to be made of.
const AT: char = '@';

/// The kernel tells us that a file was closed a little after the program that closed it has gone on.
const PATIENCE: Duration = Duration::from_millis(200);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Clones {
    context: Arc<Context>,
    /// Held while a clone is made, so that no two are the last that may be.
    making: Mutex<()>,
    open: Mutex<HashMap<(ServerName, CloneName), Arc<Served>>>,
    inodes: Inodes,
    epochs: ServingEpochs,
}

impl Clones {
    /// For a mount.
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

    /// The clone an inode belongs to, if it belongs to one. It is opened when it is not.
    pub(crate) fn of(&self, namespace: &Namespace, ino: Ino) -> Result<Option<Arc<Served>>> {
        match self.inodes.whose(ino) {
            Whose::Served(served) => return Ok(Some(served)),
            Whose::LetGo(place) => {
                let served = self.open(&place)?;
                self.inodes.recall(&served, ino)?;
                return Ok(Some(served));
            }
            Whose::Unknown => {}
        }
        // Not known to the views either: theirs to answer.
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

    /// The kernel was told of a node once more.
    pub(crate) fn looked_up(&self, served: &Arc<Served>, node: NodeId) {
        self.inodes.looked_up(served, node);
    }

    /// The kernel forgets a node; says whether it was one of a clone.
    pub(crate) fn forget(&self, ino: Ino, count: u64) -> bool {
        let Some((served, count)) = self.inodes.forget(ino, count) else {
            return false;
        };
        if let Some(served) = served {
            served.clone.forget(served.node(ino), count);
        }
        true
    }

    /// EBUSY while another process has the clone; ESTALE when it is another one by now that has its name, or another mount
    /// has served it since.
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
        // What it may take is what the configuration says now. Earlier releases wrote down what it said when the clone was made.
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

    /// Removes a clone in which nothing is open, with everything in it.
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

    /// Ends the serving of a clone in which nothing is open; `None` when it is not served. EBUSY when it is in use.
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
        // Of the others that hold it, there is the entry here.
        if served.is_open() || !self.inodes.detach(served, 1) {
            return Err(Error::Refused(Errno::BUSY));
        }
        let served = open.remove(&key).and_then(Arc::into_inner);
        served.map(Some).ok_or(Error::Refused(Errno::BUSY))
    }

    /// How many files and directories of clones are open.
    pub(crate) fn open_files(&self) -> u64 {
        self.lock().values().map(|served| served.open_files()).sum()
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

    fn lock(&self) -> OpenClones<'_> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a moment until what was closed in a clone is closed here too.
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

    /// What was written to the clone is durable when this returns, and its lock is free.
    fn release(&self, server: &ServerName, name: &CloneName) -> Result<()> {
        let served = self.lock().get(&(server.clone(), name.clone())).cloned();
        let Some(served) = served else { return Ok(()) };
        if served.is_open() {
            return Err(Error::Refused(Errno::BUSY));
        }
        // Most of it while the clone can still be used; what comes in between, below.
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
