//! The repository, mounted for one boot test only, and the throw-away clone in it.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use barmanfs_catalog::{Backup, BackupId, CloneName, Repository, ServerName};
use barmanfs_fs::{CloneLimits, MountOptions, Unmounter};
use barmanfs_store::threads;
use nix::unistd::Uid;

use super::Stop;
use crate::error::Error;

/// Prefix of the names of boot tests' clones; the backup's id follows.
const PREFIX: &str = "boot-test-";

const NO_LIMITS: CloneLimits = CloneLimits {
    max_bytes: None,
    max_count: usize::MAX,
};

/// How long a clone may stay in use after its server has ended: the last processes may still be closing their files.
const BUSY_FOR: Duration = Duration::from_secs(10);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The name of a test's clone.
pub(super) fn clone_name(backup: BackupId) -> Result<CloneName, Error> {
    Ok(format!("{PREFIX}{backup}").parse::<CloneName>()?)
}

/// A mount that a thread of this process serves until this is dropped.
#[derive(Debug)]
pub(super) struct PrivateMount {
    point: PathBuf,
    server: ServerName,
    unmounter: Unmounter,
    serving: Option<JoinHandle<Result<(), barmanfs_fs::Error>>>,
}

impl PrivateMount {
    /// Mounts the files of one server, and shows all of them as owned by this user.
    pub(super) fn make(
        repository: &Repository,
        server: &ServerName,
        point: PathBuf,
        (uid, gid): (u32, u32),
    ) -> Result<Self, Error> {
        let options = MountOptions {
            mount_point: point.clone(),
            servers: Some(vec![server.clone()]),
            allow_other: Uid::effective().as_raw() != uid,
            uid: Some(uid),
            gid: Some(gid),
            // Existing clones do not prevent the test of a backup.
            clone_limits: HashMap::from([(server.clone(), NO_LIMITS)]),
            ..MountOptions::default()
        };
        let mounted = barmanfs_fs::mount(repository.clone(), options)?;
        let unmounter = mounted.unmounter();
        let serving = threads::start("mount", move || mounted.serve());
        // A failure to start the thread is reported first.
        let serving = serving.inspect_err(|_| drop(unmounter.unmount()))?;
        Ok(Self {
            point,
            server: server.clone(),
            unmounter,
            serving: Some(serving),
        })
    }

    /// The directory of a clone.
    pub(super) fn clone_path(&self, name: &CloneName) -> PathBuf {
        self.point
            .join(self.server.as_str())
            .join("live")
            .join(name.as_str())
    }

    /// Makes a clone of a backup, and returns its directory. If the backup cannot be read, that is the test's result.
    pub(super) fn make_clone(&self, name: &CloneName, backup: &Backup) -> Result<PathBuf, Stop> {
        let path = self.clone_path(name);
        let mut asked = path.clone().into_os_string();
        asked.push(format!("@backup={}", backup.id));
        match fs::create_dir(&asked) {
            Ok(()) => Ok(path),
            Err(error) => Err(Stop::reading("No clone of it can be made", &error)),
        }
    }

    /// Removes a clone, as soon as it is not in use.
    pub(super) fn remove_clone(&self, name: &CloneName) -> std::io::Result<()> {
        let path = self.clone_path(name);
        let until = Instant::now() + BUSY_FOR;
        loop {
            match fs::remove_dir(&path) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < until => {
                    thread::sleep(TRY_AGAIN_AFTER);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                other => return other,
            }
        }
    }
}

impl Drop for PrivateMount {
    fn drop(&mut self) {
        if let Err(error) = self.unmounter.unmount() {
            tracing::warn!("{} stays mounted: {error}", self.point.display());
            return;
        }
        match self.serving.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => tracing::warn!("The mount at {} failed: {error}", self.point.display()),
            Some(Err(_)) => tracing::error!("The mount at {} ended by a bug", self.point.display()),
        }
    }
}

/// Removes clones that killed tests of this server have left. The caller has the server's lock for tests, so none of
/// them belongs to a running test.
pub(super) fn remove_leftovers(repository: &Repository, server: &ServerName) -> Result<(), Error> {
    for clone in repository.clones(server)? {
        let id = clone.name.as_str().strip_prefix(PREFIX);
        if id.is_some_and(|id| id.parse::<BackupId>().is_ok()) {
            let removed = repository
                .lock_clone(server, &clone.name, "removing it")
                .and_then(|lock| repository.remove_clone(&clone, lock));
            match removed {
                Ok(()) => tracing::info!("Removed the clone {}, left by a killed boot test", clone.name),
                // Another mount serves it.
                Err(error) => tracing::warn!("The clone {} of a killed boot test stays: {error}", clone.name),
            }
        }
    }
    Ok(())
}
