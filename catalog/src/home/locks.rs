//! Locks between processes, and who holds them.
//!
//! A lock has a name. It ends with its process, however that ends, so a killed process never blocks another. Who holds
//! it is only known for messages, and may be unknown. [`Locks`] is all that the rest of the catalog needs from locks;
//! [`FileLocks`] implements it for the processes of one host.
//!
//! | name | held by | excludes |
//! |---|---|---|
//! | `cron` | a run of `cron` | another run |
//! | `task-<task>`, `task-<task>-<server>` | a process that cron started for this | another such process |
//! | `config` | a process that changes files in `config/` | another such process |
//! | `delete-<server>` | a process that decides which of its backups to delete, and deletes them | another such one |
//! | `rebuild` | a writer that begins, shared | a rebuild of the catalog that waits for writers, which takes it alone |
//! | `writers` | every writer, shared | a rebuild of the catalog, which takes it alone |
//! | `writer-<token>` | one writer | nothing: it shows a sweep that the writer is alive |
//! | `sweep` | a sweep | another sweep |
//! | `backup-<server>` | a backup | another backup of the server |
//! | `receive-<server>` | a process that receives WAL as a stream | another such process |
//! | `sync-<server>` | a process that takes over what the primary of the server has | another such process |
//! | `boot-<server>` | a boot test of one of its backups | another boot test of the server |
//! | `index-wal-<server>` | a process that extracts again what its archived segments say | another such process |
//! | `server-<server>` | a process that records a server's system id for the first time | another such process |
//! | `wal-<server>-<stripe>` | the archiving of one file | the archiving of the same file by another process |
//! | `neighbours-<server>` | the entry of one file into the archive | the entry of another file of the server |
//! | `clone-<server>:<name>` | a process that serves, creates or removes a clone | another such process |
//! | `read-<server>-<id>` | readers of a backup, shared | its deletion without force, which takes it alone |
//! | `sync-packs-<repository>` | a process that reads the footers of a primary's new packs | another such process |
//! | `keys` | a change of the repository's keys | another such change |
//! | `cron-memory` | a change of what cron remembers | another such change |
//! | `pack-entry` | a process that enters a pack of another one, and a sweep that removes one | another such process |
//! | `make` | a process that makes the repository | another such process |
//! | `verify-<server>:<token>` | a verification; without a server one of everything | nothing: it shows that it is at work |
//!
//! A process that takes several locks takes them in the order of this table, and waits for none of the first
//! thirteen but `config`, `delete-<server>`, `rebuild` and `writers`. So there is no deadlock.

use std::fmt::Debug;

use crate::error::Result;

mod files;

pub(crate) use files::FileLocks;
pub(super) use files::LOCKS;

/// The locks of a repository.
pub(crate) trait Locks: Debug + Send + Sync {
    /// Takes a lock alone; `None` when it is held. `purpose` describes the holder's work in messages.
    ///
    /// # Errors
    /// When the lock cannot be taken for another reason.
    fn try_exclusive(&self, name: &str, purpose: &str) -> Result<Option<Lock>>;

    /// Takes a lock together with others who share it; `None` when one holder has it alone.
    ///
    /// # Errors
    /// When the lock cannot be taken for another reason.
    fn try_shared(&self, name: &str, purpose: &str) -> Result<Option<Lock>>;

    /// Takes a lock alone, and waits for it. Only for locks that are held for moments.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    fn wait_exclusive(&self, name: &str, purpose: &str) -> Result<Lock>;

    /// Whether the lock is held, alone or shared. Needs no space, so that it works on a full disk.
    ///
    /// # Errors
    /// When the lock cannot be probed.
    fn is_held(&self, name: &str) -> Result<bool>;

    /// The holder of a lock and its purpose, for messages.
    fn holder(&self, name: &str) -> String;

    /// The process that says that it holds a lock. It may have ended.
    fn named_process(&self, name: &str) -> Option<u32>;

    /// The process that holds a lock, if it certainly does: then it runs on this host, is alive, and may be signalled.
    fn holding_process(&self, name: &str) -> Option<u32>;

    /// The names that begin with `prefix`: all held ones, and those of free locks that were not removed.
    ///
    /// # Errors
    /// When the locks cannot be listed.
    fn names(&self, prefix: &str) -> Result<Vec<String>>;

    /// Removes what is left of a lock that is not held; leaves one that is held. This is safe while another process is
    /// taking the lock.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn remove_free(&self, name: &str) -> Result<()>;
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(crate) struct Lock(Box<dyn Held>);

/// What an implementation of [`Locks`] keeps while a lock is held. Dropping it frees the lock.
trait Held: Debug + Send + Sync {
    /// Removes the lock's name, then frees the lock. A name that stays behind is free, and removed later.
    fn remove(self: Box<Self>);
}

impl Lock {
    /// Frees the lock and leaves nothing of it: for a name that is not used again.
    pub(crate) fn remove(self) {
        self.0.remove();
    }
}
