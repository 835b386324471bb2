//! Which processes work on a server or on the whole repository now. A process counts as long as it holds its lock.

use crate::error::Result;
use crate::home::locks::Lock;
use crate::index::repository::Repository;
use crate::names::ServerName;

/// Prefix of the locks of verifications: `verify-<server>:<token>`, without a server for the whole repository.
const VERIFY: &str = "verify-";

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// It takes a backup.
    Backup,
    /// It receives WAL as a stream.
    ReceiveWal,
    /// It starts a backup to try it.
    BootTest,
    /// It extracts again what archived segments say.
    IndexWal,
    /// It reads data back.
    Verify,
    /// It compares an incremental backup with its server.
    Audit,
    /// It frees space.
    Sweep,
    /// It is a run of `cron`.
    Cron,
}

impl Task {
    /// All of them.
    const ALL: [Self; 8] = [
        Self::Backup,
        Self::ReceiveWal,
        Self::BootTest,
        Self::IndexWal,
        Self::Verify,
        Self::Audit,
        Self::Sweep,
        Self::Cron,
    ];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::ReceiveWal => "receive-wal",
            Self::BootTest => "boot-test",
            Self::IndexWal => "index-wal",
            Self::Verify => "verify",
            Self::Audit => "audit",
            Self::Sweep => "sweep",
            Self::Cron => "cron",
        }
    }
}

/// A process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingProcess {
    /// What it does.
    pub task: Task,
    /// Its process number, if it is certain that this process holds the lock.
    pub process: Option<u32>,
    /// What it is and since when it runs, for messages.
    pub description: String,
    lock: String,
}

/// A verification is shown as long as this lives.
#[derive(Debug)]
pub(crate) struct ShownVerification(Option<Lock>);

impl Drop for ShownVerification {
    fn drop(&mut self) {
        if let Some(lock) = self.0.take() {
            lock.remove();
        }
    }
}

impl Repository {
    /// The processes that work on a server or on the whole repository now.
    ///
    /// # Errors
    /// When the locks cannot be listed or probed.
    pub fn processes(&self, server: &ServerName) -> Result<Vec<WorkingProcess>> {
        let mut found = Vec::new();
        for task in Task::ALL {
            for lock in self.locks_of(task, server)? {
                if self.locks.is_held(&lock)? {
                    found.push(WorkingProcess {
                        task,
                        process: self.locks.holding_process(&lock),
                        description: self.locks.holder(&lock),
                        lock,
                    });
                }
            }
        }
        Ok(found)
    }

    /// Whether the process still holds its lock.
    ///
    /// # Errors
    /// When the lock cannot be probed.
    pub fn is_still_at_work(&self, process: &WorkingProcess) -> Result<bool> {
        let holder = self.locks.holding_process(&process.lock);
        Ok(holder == process.process && self.locks.is_held(&process.lock)?)
    }

    fn locks_of(&self, task: Task, server: &ServerName) -> Result<Vec<String>> {
        let of_server = match task {
            Task::Backup => "backup",
            Task::ReceiveWal => "receive",
            Task::BootTest => "boot",
            Task::IndexWal => "index-wal",
            Task::Audit => "task-audit",
            Task::Sweep => return Ok(vec!["sweep".to_owned()]),
            Task::Cron => return Ok(vec!["cron".to_owned()]),
            Task::Verify => {
                let mut names = vec!["task-verify".to_owned()];
                names.extend(self.locks.names(&format!("{VERIFY}:"))?);
                names.extend(self.locks.names(&format!("{VERIFY}{server}:"))?);
                return Ok(names);
            }
        };
        Ok(vec![format!("{of_server}-{server}")])
    }

    /// Shows a verification of a server, or of everything, to [`processes`](Self::processes). Where no lock can be
    /// written, as in a repository that may only be read, it is not shown.
    pub(crate) fn show_verification(&self, server: Option<&ServerName>) -> ShownVerification {
        for left in self.locks.names(VERIFY).unwrap_or_default() {
            // What cannot be removed is free all the same.
            let _ = self.locks.remove_free(&left);
        }
        let of = server.map(ServerName::as_str);
        let purpose = format!("verify of {}", of.unwrap_or("everything"));
        let lock = barmanfs_store::RecordId::random().ok().and_then(|token| {
            let name = format!("{VERIFY}{}:{token}", of.unwrap_or_default());
            self.locks.try_exclusive(&name, &purpose).ok().flatten()
        });
        ShownVerification(lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::settings::CreateOptions;

    fn shown(repository: &Repository, server: &str) -> Vec<(&'static str, Option<u32>)> {
        let server: ServerName = server.parse().unwrap();
        let processes = repository.processes(&server).unwrap();
        assert!(
            processes
                .iter()
                .all(|process| repository.is_still_at_work(process).unwrap())
        );
        let shown = |process: &WorkingProcess| (process.task.as_str(), process.process);
        processes.iter().map(shown).collect()
    }

    #[test]
    fn a_process_is_shown_as_long_as_it_holds_its_lock() {
        let root = tempfile::tempdir().unwrap();
        let repository = Repository::create(root.path(), CreateOptions::default()).unwrap();
        let main: ServerName = "main".parse().unwrap();
        let own = Some(std::process::id());
        assert!(shown(&repository, "main").is_empty());
        let spool = repository.spool(&main).unwrap();
        let of_main = repository.show_verification(Some(&main));
        let of_all = repository.show_verification(None);
        let verify = ("verify", own);
        assert_eq!(shown(&repository, "main"), [("receive-wal", own), verify, verify]);
        assert_eq!(shown(&repository, "mainz"), [verify]);
        let receiver = repository.processes(&main).unwrap().remove(0);
        drop((spool, of_main, of_all));
        assert!(!repository.is_still_at_work(&receiver).unwrap());
        assert!(shown(&repository, "main").is_empty());
        assert!(repository.locks.names(VERIFY).unwrap().is_empty());
    }
}
