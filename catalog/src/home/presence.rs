//! Which writers are at work.
//!
//! A writer is at work from before its first look-up until all that it refers to is in the catalog, or until it is
//! killed. It shows this by two locks: it shares one with all writers, which a rebuild of the catalog takes alone, and
//! it has one of its own. The name of its own lock names the writer; no other writer ever gets the name again.
//!
//! A sweep shares the first lock, too: a rebuild excludes both. It waits a moment for short writers, and a third lock keeps
//! new ones from coming meanwhile.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use barmanfs_store::RecordId;

use crate::error::{Error, Result};
use crate::home::locks::{Lock, Locks};

/// The lock that every writer shares and a rebuild takes alone.
const GATE: &str = "writers";

/// The lock that a writer shares while it takes the first one. A rebuild that waits for writers has it alone.
const TURN: &str = "rebuild";

/// How long a rebuild waits for writers. The archiving of a segment takes a fraction of this.
const WAIT_FOR_WRITERS: Duration = Duration::from_secs(5);
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(20);

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
    let occupied = |lock| Error::Occupied {
        what: "A rebuild of the catalog",
        holder: locks.holder(lock),
        advice: "run again when it has ended",
    };
    let _turn = locks.try_shared(TURN, purpose)?.ok_or_else(|| occupied(TURN))?;
    locks.try_shared(GATE, purpose)?.ok_or_else(|| occupied(GATE))
}

/// As long as the result lives, no writer and no sweep is at work. Waits a moment for those that are, and lets no new ones in
/// meanwhile: servers that archive all the time must not keep a rebuild from beginning.
///
/// # Errors
/// [`Error::Occupied`] while one stays at work, or while another rebuild waits; when a lock cannot be taken.
pub(crate) fn keep_writers_out(locks: &dyn Locks, purpose: &str) -> Result<Lock> {
    let Some(_turn) = wait_for(locks, TURN, purpose)? else {
        return Err(Error::Occupied {
            what: "A rebuild of the catalog",
            holder: locks.holder(TURN),
            advice: "run again when it has ended",
        });
    };
    if let Some(lock) = wait_for(locks, GATE, purpose)? {
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

/// A lock taken alone; `None` when it stayed held for too long.
fn wait_for(locks: &dyn Locks, name: &str, purpose: &str) -> Result<Option<Lock>> {
    let until = Instant::now() + WAIT_FOR_WRITERS;
    loop {
        let lock = locks.try_exclusive(name, purpose)?;
        if lock.is_some() || Instant::now() >= until {
            return Ok(lock);
        }
        std::thread::sleep(TRY_AGAIN_AFTER);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::repository::temporary;

    #[test]
    fn a_rebuild_begins_although_short_writers_come_all_the_time() {
        let (_directory, repository) = temporary();
        let locks = repository.locks.as_ref();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                        if let Ok(_writer) = Registration::new(locks, "wal-archive") {
                            std::thread::sleep(Duration::from_millis(40));
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(100));
            let alone = keep_writers_out(locks, "rebuild");
            let refused = Registration::new(locks, "backup").is_err();
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(alone.is_ok(), "{alone:?}");
            assert!(refused);
        });
    }

    #[test]
    fn a_writer_that_stays_at_work_keeps_a_rebuild_out() {
        let (_directory, repository) = temporary();
        let _backup = repository.writer("backup of main").unwrap();
        let refused = keep_writers_out(repository.locks.as_ref(), "rebuild").unwrap_err();
        assert!(refused.to_string().contains("backup of main"), "{refused}");
        assert!(
            repository.writer("wal-archive").is_ok(),
            "a rebuild that gave up keeps nobody out"
        );
    }
}
