//! Which writers are at work.
//!
//! A writer is at work from before its first look-up until all that it refers to is in the catalog, or until it is
//! killed. It shows this by two locks: it shares one with all writers, which a rebuild of the catalog takes alone, and
//! it has one of its own. The name of its own lock names the writer; no other writer ever gets the name again.
//!
//! A sweep shares the first lock, too: a rebuild excludes both.

use std::collections::BTreeSet;

use barmanfs_store::RecordId;

use crate::error::{Error, Result};
use crate::home::locks::{Lock, Locks};

/// The lock that every writer shares and a rebuild takes alone.
const GATE: &str = "writers";

/// Prefix of the locks of single writers.
pub(crate) const WRITER_PREFIX: &str = "writer-";

/// Names one writer forever.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WriterName(pub(crate) String);

/// A writer is at work while this lives.
#[derive(Debug)]
pub(crate) struct Registration {
    name: WriterName,
    lock: Option<Lock>,
    /// Freed after the writer's own lock.
    _gate: Lock,
}

impl Registration {
    /// Registers a new writer. `purpose` describes its work in messages.
    ///
    /// # Errors
    /// [`Error::Occupied`] while the catalog is being rebuilt; when a lock cannot be taken.
    pub(crate) fn new(locks: &dyn Locks, purpose: &str) -> Result<Self> {
        let gate = keep_rebuild_out(locks, purpose)?;
        let name = format!("{WRITER_PREFIX}{}", RecordId::random()?);
        let lock = locks.wait_exclusive(&name, purpose)?;
        Ok(Self {
            name: WriterName(name),
            lock: Some(lock),
            _gate: gate,
        })
    }

    /// The writer's name.
    pub(crate) fn name(&self) -> &WriterName {
        &self.name
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take() {
            lock.remove();
        }
    }
}

/// As long as the result lives, no rebuild can replace the catalog.
///
/// # Errors
/// [`Error::Occupied`] while the catalog is being rebuilt; when the lock cannot be taken.
pub(crate) fn keep_rebuild_out(locks: &dyn Locks, purpose: &str) -> Result<Lock> {
    let gate = locks.try_shared(GATE, purpose)?;
    gate.ok_or_else(|| Error::Occupied {
        what: "A rebuild of the catalog",
        holder: locks.holder(GATE),
        advice: "run again when it has ended",
    })
}

/// As long as the result lives, no writer and no sweep is at work.
///
/// # Errors
/// [`Error::Occupied`] while one is; when the lock cannot be taken.
pub(crate) fn keep_writers_out(locks: &dyn Locks, purpose: &str) -> Result<Lock> {
    if let Some(lock) = locks.try_exclusive(GATE, purpose)? {
        return Ok(lock);
    }
    let writers = described(locks)?;
    let holder = if writers.is_empty() {
        locks.holder(GATE)
    } else {
        writers.join("; ")
    };
    Err(Error::Occupied {
        what: "A writer",
        holder,
        advice: "run again when it has ended, or end it",
    })
}

/// The writers that are at work.
///
/// # Errors
/// When the locks cannot be listed or probed.
pub(crate) fn at_work(locks: &dyn Locks) -> Result<BTreeSet<WriterName>> {
    let mut held = BTreeSet::new();
    for name in locks.names(WRITER_PREFIX)? {
        if locks.is_held(&name)? {
            held.insert(WriterName(name));
        }
    }
    Ok(held)
}

/// Whether any writer is at work.
///
/// # Errors
/// When a lock cannot be probed.
pub(crate) fn is_any_at_work(locks: &dyn Locks) -> Result<bool> {
    let mut any = false;
    // A repository without a locks directory has no writers.
    for name in locks.names(WRITER_PREFIX).unwrap_or_default() {
        any |= locks.is_held(&name)?;
    }
    Ok(any)
}

/// The writers that are at work, with their purposes, for messages.
///
/// # Errors
/// When the locks cannot be listed or probed.
pub(crate) fn described(locks: &dyn Locks) -> Result<Vec<String>> {
    let writers = at_work(locks)?;
    Ok(writers.iter().map(|writer| locks.holder(&writer.0)).collect())
}
