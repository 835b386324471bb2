//! Root at work in a repository that is not root's.
//!
//! A mount may be root's, who alone can show it to all; the repository belongs to whoever backs up. A name in there may be a
//! link, and were root to write through it, its owner could have any file of the host written or given to him. So root does
//! nothing in a repository that its owner could not do: it takes on the owner's rights to files, and what it makes is
//! the owner's by itself, who must be able to lock, commit and remove it.
//!
//! In Linux these rights are a thread's own (`setfsuid(2)`); threads it starts have them too. All others stay root's: to
//! mount, to hand files to the kernel, to see other users' processes.

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

/// What takes no user, and so only tells who it is now.
const NOBODY_NEW: u32 = u32::MAX;

/// Whom a directory belongs to, as far as that matters.
#[derive(Debug, Clone)]
pub struct Owner {
    /// None where this process is not root's, or the directory is.
    other: Option<Arc<Rights>>,
}

/// What decides which files may be opened.
#[derive(Debug)]
struct Rights {
    uid: Uid,
    gid: Gid,
    groups: Vec<rustix::process::Gid>,
}

/// As long as this lives, its thread has an [`Owner`]'s rights to files.
#[derive(Debug)]
#[must_use = "the owner's rights end with it"]
pub struct AsOwner {
    before: Option<Rights>,
    /// Another thread cannot give back what this one has taken on.
    _stays_here: PhantomData<*const ()>,
}

impl Owner {
    /// The owner of a directory.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn of(directory: &Path) -> io::Result<Self> {
        let other = match Uid::effective().is_root() {
            true => Rights::of(directory)?.map(Arc::new),
            false => None,
        };
        Ok(Self { other })
    }

    /// Takes on the owner's rights to files. A thread that has given up root's already stays what it is.
    ///
    /// # Errors
    /// When root may not become another user here, as in some containers.
    pub fn act(&self) -> io::Result<AsOwner> {
        let other = self.other.as_ref().filter(|_| current_uid().is_root());
        let acting = AsOwner {
            before: other.map(|_| Rights::current()).transpose()?,
            _stays_here: PhantomData,
        };
        // Where that fails half-way, the other half is given back at once.
        other.map_or(Ok(()), |rights| rights.take_on())?;
        Ok(acting)
    }

    /// The same, for work at `place`.
    ///
    /// # Errors
    /// The same, with the place in them.
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
        // One this host does not know is in no other group.
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

    /// Neither of the two calls says whether it has worked.
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
