//! The users of a backup's view. While there are any, the backup cannot be deleted, and `latest` does not move on to
//! another backup.
//!
//! Programs like `cp -a` open one file after the other by its path, so use does not end with the last open file: it
//! lasts as long as a process lives that has opened something. The constants limit it, so that a monitor that looks in
//! now and then does not keep a backup forever.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use barmanfs_catalog::{Backup, BackupId, ReadGuard, Repository, ServerName};
use barmanfs_store::sync::lock;

use crate::error::Result;

/// A living process that has opened a file counts as a user this long after its last open: a stopped `cp` must find
/// its backup again, and a daemon that once read a file must not keep it.
const FILE_PATIENCE: Duration = Duration::from_secs(3600);

/// The same for a process that has only opened directories: a copy soon opens files, but a shell that completed a name
/// does not.
const DIRECTORY_PATIENCE: Duration = Duration::from_secs(30);

/// The backup is kept this long after its last use. A caller that cannot be seen from here (another PID namespace)
/// counts as a user for the same time.
const LINGER: Duration = Duration::from_secs(5);

/// How often to check that a process id still belongs to the same process.
const VISIT_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of processes remembered. Those that have ended are forgotten first.
const MAX_CALLERS: usize = 256;

/// The thread that made a request; 0 if it cannot be seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller(pub u32);

/// What was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A directory.
    Directory,
    /// A file.
    File,
}

#[derive(Debug)]
struct Visit {
    process: u32,
    /// Start of the process in clock ticks: distinguishes it from a later process with the same id.
    started: u64,
    last: Instant,
    deepest: Use,
}

#[derive(Debug, Default)]
struct State {
    open: usize,
    last: Option<Instant>,
    last_unseen: Option<Instant>,
    visits: HashMap<Caller, Visit>,
    guard: Option<ReadGuard>,
    /// The warning that the backup is not protected from deletion was logged.
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
    /// Notes that a caller opened something.
    ///
    /// # Errors
    /// When the backup has been deleted.
    pub fn opened(&self, opened: Use, caller: Caller) -> Result<()> {
        let mut state = self.lock();
        if state.guard.is_none() {
            state.guard = self.guard(&mut state.warned)?;
        }
        state.open += 1;
        state.last = Some(Instant::now());
        state.visit(opened, caller);
        Ok(())
    }

    /// Notes that something reported by [`opened`](Self::opened) was closed.
    pub fn closed(&self) {
        let mut state = self.lock();
        state.open = state.open.saturating_sub(1);
        state.last = Some(Instant::now());
    }

    /// Whether the view is in use.
    pub fn is_busy(&self) -> bool {
        self.lock().is_busy()
    }

    fn release_if_idle(&self) {
        let mut state = self.lock();
        if state.guard.is_some() && !state.is_busy() && !recent(state.last) {
            *state = State::default();
        }
    }

    fn guard(&self, warned: &mut bool) -> Result<Option<ReadGuard>> {
        match self.repository.reading(&self.backup) {
            Ok(guard) => Ok(Some(guard)),
            Err(gone @ barmanfs_catalog::Error::NoSuchBackup { .. }) => Err(gone.into()),
            // Reading is more important than protection from deletion: the repository may be readable but not
            // writable.
            Err(error) => {
                if !std::mem::replace(warned, true) {
                    tracing::warn!("Reading {self} without a lock against its deletion: {error}");
                }
                Ok(None)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backup {} of server {}", self.backup.id, self.backup.server)
    }
}

impl State {
    fn visit(&mut self, opened: Use, caller: Caller) {
        let now = Instant::now();
        if let Some(visit) = self.visits.get_mut(&caller)
            && visit.deepest >= opened
            && visit.last.elapsed() < VISIT_INTERVAL
        {
            visit.last = now;
            return;
        }
        let process = process_of(caller);
        let Some((process, started)) = process.and_then(|process| Some((process, started(process)?))) else {
            self.last_unseen = Some(now);
            return;
        };
        if self.visits.len() >= MAX_CALLERS {
            self.visits.retain(|_, visit| visit.is_there());
        }
        let before = self.visits.get(&caller).filter(|visit| visit.started == started);
        let deepest = before.map_or(opened, |visit| visit.deepest.max(opened));
        if self.visits.len() < MAX_CALLERS || before.is_some() {
            self.visits.insert(
                caller,
                Visit {
                    process,
                    started,
                    last: now,
                    deepest,
                },
            );
        }
    }

    fn is_busy(&mut self) -> bool {
        if self.open > 0 || recent(self.last_unseen) {
            return true;
        }
        self.visits.retain(|_, visit| visit.is_there());
        !self.visits.is_empty()
    }
}

impl Visit {
    fn is_there(&self) -> bool {
        let patience = match self.deepest {
            Use::Directory => DIRECTORY_PATIENCE,
            Use::File => FILE_PATIENCE,
        };
        self.last.elapsed() < patience && started(self.process) == Some(self.started)
    }
}

fn recent(time: Option<Instant>) -> bool {
    time.is_some_and(|time| time.elapsed() < LINGER)
}

/// The process of a thread (proc(5), `Tgid` of `status`); `None` if it does not exist.
fn process_of(caller: Caller) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", caller.0)).ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:"))?
        .trim()
        .parse()
        .ok()
}

/// Start of a process, in clock ticks since boot (proc(5), field 22 of `stat`); `None` if it does not exist.
fn started(process: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the command in parentheses, which may contain anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

/// The uses of all views that are referenced or still in use.
#[derive(Debug, Default)]
pub(crate) struct Usages {
    known: Mutex<HashMap<(ServerName, BackupId, String), Arc<Usage>>>,
}

impl Usages {
    /// The use of a backup's view.
    pub(crate) fn of(&self, backup: &Arc<Backup>, view: &str, repository: &Repository) -> Arc<Usage> {
        let mut known = lock(&self.known);
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

    pub(crate) fn release_idle(&self) {
        let mut known = lock(&self.known);
        known.values().for_each(|usage| usage.release_if_idle());
        known.retain(|_, usage| Arc::strong_count(usage) > 1 || usage.is_busy());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visitor_counts_as_busy_while_its_process_lives() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut state = State::default();
        state.visit(Use::File, Caller(child.id()));
        assert!(state.is_busy());
        // A later open of a directory does not weaken that.
        state.visit(Use::Directory, Caller(child.id()));
        assert_eq!(state.visits.values().next().unwrap().deepest, Use::File);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!state.is_busy());
    }

    #[test]
    fn a_thread_counts_as_its_process() {
        let (mut state, process) = std::thread::spawn(|| {
            let mut state = State::default();
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            state.visit(Use::File, Caller(thread.unsigned_abs()));
            (state, std::process::id())
        })
        .join()
        .unwrap();
        assert!(
            state.is_busy(),
            "the thread has ended, its process {process} has not"
        );
    }

    #[test]
    fn an_invisible_process_counts_for_a_moment() {
        let mut state = State::default();
        state.visit(Use::File, Caller(0));
        assert!(state.is_busy());
        state.last_unseen = Instant::now().checked_sub(LINGER);
        assert!(!state.is_busy());
    }
}
