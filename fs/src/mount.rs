//! The life of a mount: creating, serving and unmounting it. It never unmounts a file system that another process
//! mounted in its place.
//!
//! fuser gets a device that is already mounted (by `kernel`, or by `helper` for users who may not mount) and does not
//! unmount. The mount id in `/proc/self/mountinfo` identifies the mount.

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use barmanfs_catalog::{Action, Repository, ServerName};
use barmanfs_store::threads;
use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::io::Errno;

use crate::adapter::{Service, ServiceOptions};
use crate::clones::Clones;
use crate::counters::RequestCounters;
use crate::error::{Error, Holder, Result};
use crate::namespace::Namespace;
use crate::views::{CloneLimits, Context, ViewOptions, root};
use crate::warm::Warmer;
use crate::watch::Watcher;

mod discovery;
mod helper;
mod holders;
mod kernel;
mod mountinfo;
mod serving_process;
mod status;

pub use discovery::{FoundMount, FoundMounts, SilentMount, mounts_of};
use mountinfo::Mounted;
pub use mountinfo::is_shown;
use serving_process::ServingProcess;

/// Default number of request threads: one for each core. Data is decoded ahead on other threads, so more request
/// threads would only alternate (measured: a copy of everything took a quarter longer with twice as many). Never a
/// single thread, because every request would wait for the slowest one.
const THREADS: std::ops::RangeInclusive<usize> = 2..=16;

/// Default size of the chunk cache. The daemon needs up to about 150 MiB in addition to it (measured: listings, request
/// buffers and the allocator's reserve), and should stay below 300 MB.
pub const DEFAULT_CACHE_BYTES: usize = 96 << 20;

/// The kernel's read-ahead for the mount, in KiB. The kernel's default of 128 keeps one core decoding; this keeps all
/// of them busy (measured: twice to three times the throughput of one reader).
const READ_AHEAD_KIB: u32 = 4096;

/// After unmounting the tree itself, the daemon serves open files this long.
const GRACE: Duration = Duration::from_secs(5);

/// How long to wait for a daemon to end: the last writes to clones may still have to reach the disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that has just ended is still closing its files, so the mount may look used for this long.
const CLOSES_WITHIN: Duration = Duration::from_secs(3);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What to do with the users of a mount that is unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounting {
    /// Keep the mount while it is in use.
    Unused,
    /// Hide the mount at once, and serve it until its users have closed their files.
    Lazily,
    /// End the mount at once. Open files fail.
    ByForce,
}

/// What to mount, and how.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// The mount point: an empty directory.
    pub mount_point: PathBuf,
    /// The servers to show; all when `None`.
    pub servers: Option<Vec<ServerName>>,
    /// Whether other users may see the tree. File permissions are checked in any case.
    pub allow_other: bool,
    /// Owner of all files. When `None`, root shows the stored owners, and other users show themselves.
    pub uid: Option<u32>,
    /// Group of all files, in the same way.
    pub gid: Option<u32>,
    /// What a copy does at its recovery target if the target's name does not specify it; promotion when `None`.
    pub recovery_target_action: Option<Action>,
    /// Limits for new clones of a server; [`CloneLimits::default`] for a server that is not in the map.
    pub clone_limits: HashMap<ServerName, CloneLimits>,
    /// Bytes of decoded chunks to keep; [`DEFAULT_CACHE_BYTES`] when `None`.
    pub cache_bytes: Option<usize>,
    /// Threads that take requests; one for each core when `None`.
    pub threads: Option<usize>,
}

/// A tree that is mounted. It answers once [`serve`](Self::serve) is called.
pub struct MountedFs {
    repository: Repository,
    service: Service,
    clones: Arc<Clones>,
    counters: Arc<RequestCounters>,
    watcher: Watcher,
    unmounter: Unmounter,
    unmounted: Receiver<()>,
    unless_served: UnlessServed,
}

/// Removes a mount that nothing serves: looking into it would fail, and hang where the process lives on.
struct UnlessServed(Option<Mounted>);

impl UnlessServed {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for UnlessServed {
    fn drop(&mut self) {
        if let Some(mounted) = &self.0
            && let Err(error) = mounted.detach()
        {
            tracing::warn!("Nothing serves {}, and: {error}", mounted.path().display());
        }
    }
}

/// Unmounts a [`MountedFs`] from any thread.
#[derive(Debug, Clone)]
pub struct Unmounter {
    mounted: Mounted,
    /// The kernel has ended the session: the mount is gone, and another mount may have its id.
    gone: Arc<AtomicBool>,
    done: Sender<()>,
}

/// Mounts the tree of a repository.
///
/// # Errors
/// [`Error::CannotMount`] says what is wrong with the mount point, or what the system refused.
pub fn mount(repository: Repository, options: MountOptions) -> Result<MountedFs> {
    recover_stale(&options.mount_point)?;
    let mount_point = checked_mount_point(&options.mount_point, repository.path())?;
    let is_root = rustix::process::geteuid().is_root();
    let own = |asked: Option<u32>, own: u32| if is_root { asked } else { asked.or(Some(own)) };
    let views = ViewOptions {
        mount_point: mount_point.clone(),
        servers: options.servers,
        uid: own(options.uid, rustix::process::geteuid().as_raw()),
        gid: own(options.gid, rustix::process::getegid().as_raw()),
        recovery_target_action: options.recovery_target_action.unwrap_or(Action::Promote),
        clone_limits: options.clone_limits,
        copy: None,
        plain: None,
        with_waiting: false,
    };
    let repository = repository.with_cache_bytes(options.cache_bytes.unwrap_or(DEFAULT_CACHE_BYTES));
    let context = Context::new(repository, views);
    let namespace = Arc::new(Namespace::new(root(&context), context.trees().clone()));
    let clones = Clones::new(&context)?;

    let device = mounted_device(&mount_point, options.allow_other)?;
    let mounted = Mounted::at(&mount_point)?
        .ok_or_else(|| cannot(&mount_point, "it was unmounted again at once".to_owned()))?;
    let unless_served = UnlessServed(Some(mounted.clone()));
    let threads = threads::can_start(options.threads.unwrap_or_else(default_threads));
    let threads = threads.map_err(barmanfs_store::Error::from)?;
    let service = Service::new(
        Arc::clone(&namespace),
        Arc::clone(&context),
        Arc::clone(&clones),
        device,
        ServiceOptions {
            threads,
            allow_other: options.allow_other,
        },
    );
    let service = service.map_err(|source| Error::io("serve", &mount_point, source))?;
    raise_read_ahead(&mounted);
    let repository = context.repository().clone();
    let counters = Arc::clone(context.counters());
    warm_index(repository.clone());
    if let Some(warmer) = Warmer::start(mount_point, mounted.device().to_owned()) {
        context.set_warmer(warmer);
    }
    crate::evict::start(&namespace, service.invalidator())?;
    let watcher = Watcher::start(namespace, context, service.invalidator())?;
    let (done, unmounted) = bounded(1);
    Ok(MountedFs {
        repository,
        service,
        clones,
        counters,
        watcher,
        unmounter: Unmounter {
            mounted,
            gone: Arc::default(),
            done,
        },
        unmounted,
        unless_served,
    })
}

impl MountedFs {
    /// A handle that unmounts the tree, for a thread that waits for signals.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// The counters of its requests. What they read from the repository is in [`Repository::counters`].
    pub fn counters(&self) -> &Arc<RequestCounters> {
        &self.counters
    }

    /// Serves until the tree is unmounted: by an [`Unmounter`], `umount` or `fusermount3 -u`. After an [`Unmounter`],
    /// open files are served for a few seconds more and fail after that. Then all writes to clones are durable.
    ///
    /// # Errors
    /// When the connection to the kernel fails.
    pub fn serve(self) -> Result<()> {
        let Self {
            repository,
            service,
            clones,
            counters,
            watcher,
            unmounter,
            unmounted,
            unless_served,
        } = self;
        let path = unmounter.mounted.path().to_path_buf();
        let stored = Arc::clone(repository.counters());
        let (ended, end) = bounded(1);
        let gone = Arc::clone(&unmounter.gone);
        let serving = threads::start("serve", move || {
            // All request threads are started from here, so they act as the owner too.
            let result = match repository.as_owner() {
                Ok(_acting) => service.run(),
                Err(error) => Err(io::Error::other(error)),
            };
            gone.store(result.is_ok(), Ordering::SeqCst);
            let _ = ended.send(result);
        });
        serving.map_err(barmanfs_store::Error::from)?;
        unless_served.keep();
        let result = select! {
            recv(end) -> result => result.unwrap_or(Ok(())),
            recv(unmounted) -> _ => end.recv_timeout(GRACE).unwrap_or_else(|_| {
                tracing::warn!(
                    "{} is unmounted with files open, {} of them in clones: they fail from now on{}",
                    path.display(),
                    clones.open_files(),
                    named(&unmounter.mounted.holders(None))
                );
                // The service would do this at its end, which it does not reach.
                clones.flush();
                Ok(())
            }),
        };
        drop(watcher);
        let (requests, stored) = (counters.snapshot(), stored.snapshot());
        tracing::debug!("Served {}: {requests}; {stored}", path.display());
        // However serving ended, no mount that does not answer may be left behind.
        unmounter.unmount()?;
        result.map_err(|source| Error::io("serve", path, source))
    }
}

impl std::fmt::Debug for MountedFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MountedFs")
            .field("unmounter", &self.unmounter)
            .finish_non_exhaustive()
    }
}

impl Unmounter {
    /// Unmounts the tree at once, even while it is in use. Does nothing if it is already unmounted, whatever is
    /// mounted there now.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn unmount(&self) -> Result<()> {
        if !self.gone.load(Ordering::SeqCst) {
            self.mounted.detach()?;
        }
        // A full channel means that this was already reported.
        let _ = self.done.try_send(());
        Ok(())
    }
}

/// The processes in a message, after a colon.
fn named(holders: &[Holder]) -> String {
    let names: Vec<String> = holders
        .iter()
        .map(|holder| {
            format!(
                "process {} ({}) {} {}",
                holder.process,
                holder.command,
                holder.doing,
                holder.path.display()
            )
        })
        .collect();
    match names.is_empty() {
        true => String::new(),
        false => format!(": {}", names.join(", ")),
    }
}

/// Unmounts the tree at this directory and, unless lazily, waits until its daemon has ended. Then all writes to clones
/// are on disk, and no backup is in use. Returns the processes that used it and still live, without its files: those that a
/// removal by force has cut off.
///
/// # Errors
/// [`Error::NotMounted`] when there is no mount of barmanfs; [`Error::InUse`] when it is in use and must not be
/// disturbed.
pub fn unmount(mount_point: &Path, how: Unmounting) -> Result<Vec<Holder>> {
    let path = absolute(mount_point)?;
    let mounted = Mounted::at(&path)?.ok_or_else(|| Error::NotMounted { path: path.clone() })?;
    let daemon = ServingProcess::of(&path);
    let mut cut_off = Vec::new();
    match how {
        Unmounting::Unused => release(&mounted, daemon.as_ref())?,
        Unmounting::Lazily => return mounted.detach().map(|()| cut_off),
        Unmounting::ByForce => {
            cut_off = mounted.holders(daemon.as_ref().map(ServingProcess::process));
            mounted.detach()?;
            if let Some(daemon) = &daemon {
                daemon.end();
            }
        }
    }
    if daemon.is_some_and(|daemon| !daemon.wait(PATIENCE)) {
        tracing::warn!(
            "{} is unmounted, and its process is still at work after {} s",
            path.display(),
            PATIENCE.as_secs()
        );
    }
    // Most notice it, and end.
    let began = std::time::Instant::now();
    loop {
        cut_off.retain(Holder::is_alive);
        if cut_off.is_empty() || began.elapsed() >= CLOSES_WITHIN {
            return Ok(cut_off);
        }
        std::thread::sleep(TRY_AGAIN_AFTER);
    }
}

/// Unmounts if the mount is unused. Only the kernel can decide that, and only at the moment of the call.
fn release(mounted: &Mounted, daemon: Option<&ServingProcess>) -> Result<()> {
    let began = std::time::Instant::now();
    while !mounted.release()? {
        if began.elapsed() >= CLOSES_WITHIN {
            return Err(Error::InUse {
                path: mounted.path().to_path_buf(),
                holders: mounted.holders(daemon.map(ServingProcess::process)),
                inside: mounted.mounted_inside()?,
            });
        }
        std::thread::sleep(TRY_AGAIN_AFTER);
    }
    Ok(())
}

/// Unmounts a tree whose daemon is gone ("Transport endpoint is not connected"). Returns whether there was one.
///
/// # Errors
/// When it is not ours, or the system refuses.
pub fn recover_stale(mount_point: &Path) -> Result<bool> {
    let Ok(path) = absolute(mount_point) else {
        return Ok(false);
    };
    // Unlike `stat`, whose answer may be cached, this asks the daemon.
    let gone = matches!(
        rustix::fs::statvfs(&path),
        Err(Errno::NOTCONN | Errno::CONNABORTED)
    );
    if !gone {
        return Ok(false);
    }
    let Some(mounted) = Mounted::at(&path)? else {
        let reason = "a file system that no longer answers is mounted there, and it is not barmanfs's: unmount it first";
        return Err(cannot(&path, reason.to_owned()));
    };
    tracing::warn!(
        "The mount at {} was left behind by a process that is gone: unmounting it",
        path.display()
    );
    mounted.detach()?;
    Ok(true)
}

/// The path without symbolic links, resolved without accessing the mount.
fn absolute(path: &Path) -> Result<PathBuf> {
    let canonical = |path: &Path| {
        path.canonicalize()
            .map_err(|source| Error::io("find", path, source))
    };
    let absolute = std::path::absolute(path).map_err(|source| Error::io("find", path, source))?;
    match (absolute.parent(), absolute.file_name()) {
        // The last component may be a symbolic link, but a link to a stale mount looks the same as a stale mount.
        (Some(parent), Some(name)) if !path.is_symlink() => Ok(canonical(parent)?.join(name)),
        _ => canonical(&absolute),
    }
}

fn cannot(path: &Path, reason: String) -> Error {
    Error::CannotMount {
        path: path.to_path_buf(),
        reason,
    }
}

fn checked_mount_point(path: &Path, repository: &Path) -> Result<PathBuf> {
    let refuse = |reason: &str| Err(cannot(path, reason.to_owned()));
    let mount_point = match path.canonicalize() {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return refuse("there is no such directory: make it first");
        }
        Err(error) => return Err(cannot(path, error.to_string())),
    };
    if !mount_point.is_dir() {
        return refuse("it is not a directory");
    }
    let repository = repository
        .canonicalize()
        .map_err(|source| Error::io("find", repository, source))?;
    if mount_point.starts_with(&repository) {
        return refuse("it is inside the repository: choose a directory outside it");
    }
    if repository.starts_with(&mount_point) {
        return refuse("the repository is inside it and would be hidden: choose another directory");
    }
    if Mounted::at(&mount_point)?.is_some() {
        return refuse("a tree of barmanfs is mounted there already: unmount it first");
    }
    let mut entries = std::fs::read_dir(&mount_point).map_err(|error| cannot(path, error.to_string()))?;
    if entries.next().is_some() {
        return refuse("it is not empty: what is in it would be hidden");
    }
    Ok(mount_point)
}

/// Mounts the file system, with the help of `fusermount3` where this user may not, and returns its device.
fn mounted_device(mount_point: &Path, allow_other: bool) -> Result<OwnedFd> {
    match kernel::mount(mount_point, allow_other) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            helper::mount(mount_point, allow_other)
        }
        mounted => mounted.map_err(|error| cannot(mount_point, error.to_string())),
    }
}

/// Reads the index of chunks in the background. This only improves speed, so errors are left to the requests that hit
/// them, and the process does not wait for this thread at its end.
fn warm_index(repository: Repository) {
    let warm = move || {
        if let Err(error) = repository.warm_index() {
            tracing::debug!("Cannot read the index ahead: {error}");
        }
    };
    let _ = threads::start("warm", warm);
}

fn default_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(*THREADS.start(), NonZero::get);
    cores.clamp(*THREADS.start(), *THREADS.end())
}

/// Raises the kernel's read-ahead on this mount. Only root may; other users get slower reads.
fn raise_read_ahead(mounted: &Mounted) {
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", mounted.device());
    if let Err(error) = std::fs::write(&setting, READ_AHEAD_KIB.to_string()) {
        tracing::debug!("Cannot write {setting}: {error}; large files are read more slowly");
    }
}
