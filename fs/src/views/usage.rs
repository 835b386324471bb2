//! Who is at work in a backup's view. While anybody is, the backup is kept from being deleted, and `latest` from moving
//! on to another one.
//!
//! Programs like `cp -a` open one file after the other by its path, so "at work" does not end with the last open file:
//! it lasts a moment longer, and as long as a process lives that has opened one.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use barmanfs_catalog::{Backup, BackupId, ReadGuard, Repository, ServerName};

use crate::error::Result;

/// Use lasts this long after the last file was closed.
const LINGER: Duration = Duration::from_secs(5);

/// A process that opened a file and lives on is waited for this long after: a monitor that once read a file must
/// not hold on to a backup for ever, a stopped `cp` is to find it again.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Processes remembered at most; those that have ended are forgotten first.
const MAX_CALLERS: usize = 256;

/// The process that made a request; 0 where it cannot be seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller(pub u32);

#[derive(Debug)]
struct Visit {
    /// When the process was started, in clock ticks: tells it from a later one with the same number.
    started: u64,
    last: Instant,
}

#[derive(Debug, Default)]
struct State {
    open: usize,
    last: Option<Instant>,
    visits: HashMap<Caller, Visit>,
    guard: Option<ReadGuard>,
    /// Said once that the backup cannot be kept from being deleted.
    warned: bool,
}

/// The use of one view of one backup.
#[derive(Debug)]
pub struct Usage {
    repository: Repository,
    backup: Arc<Backup>,
    state: Mutex<State>,
}

impl Usage {
    /// Something was opened. `caller` is given for files, not for directories: a shell that completed a name is not
    /// at work.
    ///
    /// # Errors
    /// When the backup has been deleted.
    pub fn opened(&self, caller: Option<Caller>) -> Result<()> {
        let mut state = self.lock();
        if state.guard.is_none() {
            state.guard = self.guard(&mut state.warned)?;
        }
        let now = Instant::now();
        state.open += 1;
        state.last = Some(now);
        if let Some(caller) = caller
            && let Some(started) = started(caller)
        {
            if state.visits.len() >= MAX_CALLERS {
                state.visits.retain(|caller, visit| visit.is_there(*caller));
            }
            if state.visits.len() < MAX_CALLERS {
                state.visits.insert(caller, Visit { started, last: now });
            }
        }
        Ok(())
    }

    /// What [`opened`](Self::opened) said was opened is closed.
    pub fn closed(&self) {
        let mut state = self.lock();
        state.open = state.open.saturating_sub(1);
        state.last = Some(Instant::now());
    }

    /// Whether somebody is at work in the view.
    pub fn is_busy(&self) -> bool {
        self.lock().is_busy()
    }

    fn release_if_idle(&self) {
        let mut state = self.lock();
        if state.guard.is_some() && !state.is_busy() {
            *state = State::default();
        }
    }

    fn guard(&self, warned: &mut bool) -> Result<Option<ReadGuard>> {
        match self.repository.reading(&self.backup) {
            Ok(guard) => Ok(Some(guard)),
            Err(gone @ barmanfs_catalog::Error::NoSuchBackup { .. }) => Err(gone.into()),
            // Reading matters more than being safe from a deletion: a repository may be readable and no more.
            Err(error) => {
                if !std::mem::replace(warned, true) {
                    tracing::warn!("Reading {self} without a lock against its deletion: {error}");
                }
                Ok(None)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backup {} of server {}", self.backup.id, self.backup.server)
    }
}

impl State {
    fn is_busy(&mut self) -> bool {
        if self.open > 0 || self.last.is_some_and(|last| last.elapsed() < LINGER) {
            return true;
        }
        self.visits.retain(|caller, visit| visit.is_there(*caller));
        !self.visits.is_empty()
    }
}

impl Visit {
    fn is_there(&self, caller: Caller) -> bool {
        self.last.elapsed() < PATIENCE && started(caller) == Some(self.started)
    }
}

/// When a process was started, in clock ticks since boot (proc(5), field 22 of `stat`); `None` when it is not there.
fn started(caller: Caller) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", caller.0)).ok()?;
    // The second field is the command in parentheses, which may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

/// The uses of all views that are known to anybody, or not over yet.
#[derive(Debug, Default)]
pub(super) struct Usages {
    known: Mutex<HashMap<(ServerName, BackupId, String), Arc<Usage>>>,
}

impl Usages {
    /// That of a backup's view.
    pub(super) fn of(&self, backup: &Arc<Backup>, view: &str, repository: &Repository) -> Arc<Usage> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (backup.server.clone(), backup.id, view.to_owned());
        if let Some(usage) = known.get(&key) {
            return Arc::clone(usage);
        }
        let usage = Arc::new(Usage {
            repository: repository.clone(),
            backup: Arc::clone(backup),
            state: Mutex::default(),
        });
        known.insert(key, Arc::clone(&usage));
        usage
    }

    pub(super) fn release_idle(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().for_each(|usage| usage.release_if_idle());
        known.retain(|_, usage| Arc::strong_count(usage) > 1 || usage.is_busy());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let own = Caller(std::process::id());
        assert!(started(own).is_some());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let caller = Caller(child.id());
        let visit = Visit {
            started: started(caller).unwrap(),
            last: Instant::now(),
        };
        assert!(visit.is_there(caller));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!visit.is_there(caller));
        assert_eq!(started(Caller(0)), None);
    }
}
