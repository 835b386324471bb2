//! Root's work in a repository of another user.
//!
//! A mount may be run by root, because only root can show it to all users; the repository belongs to the user who takes
//! backups. A name in the repository may be a link. If root wrote through it, the owner could have any file of the host
//! overwritten, or become its owner. So root does nothing in a repository that its owner could not do: it takes on the
//! owner's rights to files. Then the files it creates belong to the owner, who must be able to lock, commit and remove
//! them.
//!
//! In Linux these rights belong to a thread (`setfsuid(2)`); threads it starts have them too. All other rights stay
//! root's: to mount, to hand files to the kernel, to see other users' processes.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::unistd::{Gid, Uid, User, getgrouplist, setfsgid, setfsuid};
use rustix::process::getgroups;
use rustix::thread::set_thread_groups;

use crate::error::{Error, Result};

/// Not a valid id: with it, the calls change nothing and return the current id.
const NOBODY_NEW: u32 = u32::MAX;

/// The owner of a directory, if different rights are needed for it.
#[derive(Debug, Clone)]
pub struct Owner {
    /// None if this process does not run as root, or if root owns the directory.
    other: Option<Arc<Rights>>,
}

/// The ids that decide which files may be opened.
#[derive(Debug)]
struct Rights {
    uid: Uid,
    gid: Gid,
    groups: Vec<rustix::process::Gid>,
}

/// While this lives, its thread has an [`Owner`]'s rights to files.
#[derive(Debug)]
#[must_use = "the owner's rights end with it"]
pub struct AsOwner {
    before: Option<Rights>,
    /// Another thread cannot return the rights that this one has taken on.
    _stays_here: PhantomData<*const ()>,
}

impl Owner {
    /// The owner of a directory.
    ///
    /// # Errors
    /// When it cannot be inspected.
    pub fn of(directory: &Path) -> io::Result<Self> {
        let other = match Uid::effective().is_root() {
            true => Rights::of(directory)?.map(Arc::new),
            false => None,
        };
        Ok(Self { other })
    }

    /// Takes on the owner's rights to files. A thread that no longer has root's rights stays as it is.
    ///
    /// # Errors
    /// When root may not become another user here, as in some containers.
    pub fn act(&self) -> io::Result<AsOwner> {
        let other = self.other.as_ref().filter(|_| current_uid().is_root());
        let acting = AsOwner {
            before: other.map(|_| Rights::current()).transpose()?,
            _stays_here: PhantomData,
        };
        // If this fails halfway, dropping `acting` restores the rights at once.
        other.map_or(Ok(()), |rights| rights.take_on())?;
        Ok(acting)
    }

    /// The same for work at `place`.
    ///
    /// # Errors
    /// The same, with the place in the message.
    pub(crate) fn act_in(&self, place: &Path) -> Result<AsOwner> {
        let acting = self.act();
        acting.map_err(|source| Error::io("act as the owner of", place, source))
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = before.take_on()
        {
            tracing::error!("Cannot become root again: {error}");
        }
    }
}

impl Rights {
    fn of(directory: &Path) -> io::Result<Option<Self>> {
        let found = std::fs::metadata(directory)?;
        let (uid, gid) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
        if uid.is_root() {
            return Ok(None);
        }
        let user = User::from_uid(uid)?;
        let groups = user.and_then(|user| {
            let name = CString::new(user.name).ok()?;
            getgrouplist(&name, user.gid).ok()
        });
        // A user unknown to this host is in no other group.
        let groups = groups.unwrap_or_else(|| vec![gid]);
        let groups = groups
            .iter()
            .map(|gid| rustix::process::Gid::from_raw(gid.as_raw()));
        Ok(Some(Self {
            uid,
            gid,
            groups: groups.collect(),
        }))
    }

    fn current() -> io::Result<Self> {
        Ok(Self {
            uid: current_uid(),
            gid: current_gid(),
            groups: getgroups()?,
        })
    }

    /// Checks the result, because neither of the two calls reports whether it has worked.
    fn take_on(&self) -> io::Result<()> {
        set_thread_groups(&self.groups)?;
        setfsgid(self.gid);
        setfsuid(self.uid);
        match (current_uid(), current_gid()) {
            now if now == (self.uid, self.gid) => Ok(()),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

fn current_uid() -> Uid {
    setfsuid(Uid::from_raw(NOBODY_NEW))
}

fn current_gid() -> Gid {
    setfsgid(Gid::from_raw(NOBODY_NEW))
}
