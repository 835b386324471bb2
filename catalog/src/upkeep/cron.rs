//! What `cron` needs from a repository: that there is one of each kind, and what it remembers.
//!
//! `cron/<server>.json` has what it did for a server, `cron/.repository.json` what it did for the whole repository. These
//! files are for people and checks, and they pace what is tried again. What is due follows from the backups themselves,
//! so a lost file costs nothing but one needless attempt.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use barmanfs_pg::TimestampMicros;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::home::locks::Lock;
use crate::home::{RUNNING, TEMPORARY, regular, replace_file, write_durably};
use crate::index::repository::Repository;
use crate::names::ServerName;

mod memory;
pub(crate) mod pays;

pub use memory::{AuditMemory, RepositoryMemory, RestoreRates, ServerMemory, TaskMemory};
use memory::{ClockLeap, cut};

/// The directory of the files. It is made when the first one is written.
const CRON: &str = "cron";

/// What is remembered of the whole repository. No server's name begins with a dot.
const OF_REPOSITORY: &str = ".repository.json";

/// The lock of a run.
const RUN: &str = "cron";

/// The lock that is held while a file is read and written again.
const MEMORY: &str = "cron-memory";

/// Temporary files of killed processes are removed when they are older. A small file is written in milliseconds.
const TEMPORARY_FOR: Duration = Duration::from_secs(3600);

/// Work that `cron` starts as a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CronTask {
    /// To receive a server's WAL as a stream.
    ReceiveWal,
    /// To archive the WAL files that were put into a server's directory.
    ArchiveWal,
    /// A scheduled backup of a server.
    Backup,
    /// A comparison of the newest incremental backup with its server.
    Audit,
    /// A scheduled boot test of a server's newest backup.
    BootTest,
    /// To delete what a server's policies do not keep.
    Retention,
    /// To take over what the primary of a passive server has.
    Sync,
    /// To tell which checks of the servers fail.
    Notify,
    /// To free space of the repository.
    Sweep,
    /// To read a part of the repository back.
    Verify,
}

/// All tasks.
const TASKS: [CronTask; 10] = [
    CronTask::ReceiveWal,
    CronTask::ArchiveWal,
    CronTask::Backup,
    CronTask::Audit,
    CronTask::BootTest,
    CronTask::Retention,
    CronTask::Sync,
    CronTask::Notify,
    CronTask::Sweep,
    CronTask::Verify,
];

impl FromStr for CronTask {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let task = TASKS.into_iter().find(|task| task.as_str() == name);
        task.ok_or_else(|| format!("There is no task {name}"))
    }
}

impl CronTask {
    /// Its name, as in the files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReceiveWal => "receive-wal",
            Self::ArchiveWal => "archive-wal",
            Self::Backup => "backup",
            Self::Audit => "audit",
            Self::BootTest => "boot-test",
            Self::Retention => "retention",
            Self::Sync => "sync",
            Self::Notify => "notify",
            Self::Sweep => "sweep",
            Self::Verify => "verify",
        }
    }

    fn lock_name(self, server: Option<&ServerName>) -> String {
        match server {
            Some(server) => format!("task-{}-{server}", self.as_str()),
            None => format!("task-{}", self.as_str()),
        }
    }
}

/// Keeps another run, or another process with the same task, out while it lives.
#[derive(Debug)]
pub struct CronLock {
    _lock: Lock,
}

impl Repository {
    /// Begins a run of `cron`; `None` while another one runs.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn begin_cron(&self) -> Result<Option<CronLock>> {
        self.cron_lock(RUN, "cron")
    }

    /// The run that [`begin_cron`](Self::begin_cron) has found, for messages.
    pub fn cron_holder(&self) -> String {
        self.locks.holder(RUN)
    }

    /// Begins a task, in its own process; `None` while another process has it.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn begin_task(&self, task: CronTask, server: Option<&ServerName>) -> Result<Option<CronLock>> {
        self.cron_lock(&task.lock_name(server), &format!("{} by cron", task.as_str()))
    }

    /// Whether a process has this task.
    ///
    /// # Errors
    /// When the lock cannot be probed.
    pub fn is_task_running(&self, task: CronTask, server: Option<&ServerName>) -> Result<bool> {
        self.locks.is_held(&task.lock_name(server))
    }

    fn cron_lock(&self, name: &str, purpose: &str) -> Result<Option<CronLock>> {
        let lock = self.locks.try_exclusive(name, purpose)?;
        Ok(lock.map(|lock| CronLock { _lock: lock }))
    }

    /// What is remembered of a server; nothing if its file is lost or unreadable.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn server_memory(&self, server: &ServerName) -> Result<ServerMemory> {
        self.memory(&of_server(server))
    }

    /// What is remembered of the repository; nothing if the file is lost or unreadable.
    ///
    /// # Errors
    /// When the disk cannot be read.
    pub fn repository_memory(&self) -> Result<RepositoryMemory> {
        self.memory(OF_REPOSITORY)
    }

    /// Changes what is remembered of a server; durable when it returns.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember_of_server(
        &self,
        server: &ServerName,
        change: impl FnOnce(&mut ServerMemory),
    ) -> Result<()> {
        self.remember(&of_server(server), true, change)
    }

    /// Changes what is remembered of the repository; durable when it returns.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember_of_repository(&self, change: impl FnOnce(&mut RepositoryMemory)) -> Result<()> {
        self.remember(OF_REPOSITORY, true, change)
    }

    /// Notes that `cron` has looked at a server now, and what went wrong. Mostly not durable: with many servers, that would
    /// take longer than all else, and the next minute writes it again.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note_run(&self, server: &ServerName, at: TimestampMicros, error: Option<&str>) -> Result<()> {
        // A difference that an audit found must outlive a crash of the host.
        let durable = self.server_memory(server)?.difference.is_some();
        self.remember(&of_server(server), durable, |memory: &mut ServerMemory| {
            memory.ran_at = Some(at);
            memory.error = error.map(cut);
        })
    }

    /// Notes that a run of `cron` begins, if the clock has leapt since the last one.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn note_clock(&self, now: TimestampMicros) -> Result<()> {
        let last = self.repository_memory()?.ran_at;
        match last.and_then(|last| ClockLeap::between(last, now)) {
            Some(leap) => self.remember_of_repository(|memory| memory.leap = Some(leap)),
            None => Ok(()),
        }
    }

    /// The same for a run that has reached its end. It is durable: after a crash of the host, which its clock may not have
    /// outlived, the next run must find it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note_run_of_repository(&self, at: TimestampMicros) -> Result<()> {
        self.remember(OF_REPOSITORY, true, |memory: &mut RepositoryMemory| {
            memory.ran_at = Some(at);
        })
    }

    /// Removes small files that killed processes have not finished. Returns how many.
    ///
    /// # Errors
    /// When a file that can be listed cannot be removed.
    pub fn remove_unfinished_files(&self) -> Result<usize> {
        let _acting = self.as_owner()?;
        let now = SystemTime::now();
        let mut removed = 0;
        for directory in [
            self.path().to_path_buf(),
            self.home.join(RUNNING),
            self.home.join(CRON),
        ] {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(TEMPORARY)) {
                let written = entry.metadata().ok().filter(fs::Metadata::is_file);
                let age = written
                    .and_then(|found| found.modified().ok())
                    .and_then(|modified| now.duration_since(modified).ok());
                if age.is_some_and(|age| age > TEMPORARY_FOR) {
                    let path = entry.path();
                    fs::remove_file(&path).map_err(|source| Error::io("remove", &path, source))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }

    pub(crate) fn memory_file(&self, name: &str) -> PathBuf {
        self.home.join(CRON).join(name)
    }

    fn memory<T: DeserializeOwned + Default>(&self, name: &str) -> Result<T> {
        let path = self.memory_file(name);
        match regular::read(&path) {
            Ok(json) => Ok(serde_json::from_slice(&json).unwrap_or_default()),
            Err(source) if source.kind() == ErrorKind::NotFound => Ok(T::default()),
            Err(source) => Err(Error::io("read", &path, source)),
        }
    }

    fn remember<T: DeserializeOwned + Serialize + Default>(
        &self,
        name: &str,
        durable: bool,
        change: impl FnOnce(&mut T),
    ) -> Result<()> {
        let _lock = self.locks.wait_exclusive(MEMORY, "cron remembers something")?;
        let mut memory: T = self.memory(name)?;
        change(&mut memory);
        let mut json =
            serde_json::to_vec_pretty(&memory).map_err(|error| Error::Invalid(error.to_string()))?;
        json.push(b'\n');
        match durable {
            true => self.write_memory(name, &json, write_durably),
            false => self.replace_memory(name, &json),
        }
    }

    /// Replaces a file of the memory; after a crash of the host it may be empty.
    pub(crate) fn replace_memory(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write_memory(name, bytes, replace_file)
    }

    fn write_memory(
        &self,
        name: &str,
        bytes: &[u8],
        write: impl FnOnce(&Path, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let _acting = self.as_owner()?;
        let directory = self.home.join(CRON);
        match fs::create_dir(&directory) {
            Err(source) if source.kind() != ErrorKind::AlreadyExists => {
                Err(Error::io("create", &directory, source))
            }
            _ => write(&self.memory_file(name), bytes),
        }
    }
}

fn of_server(server: &ServerName) -> String {
    format!("{server}.json")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::index::repository::temporary;

    fn at(seconds: i64) -> TimestampMicros {
        TimestampMicros::from_unix_seconds(seconds)
    }

    #[test]
    fn there_is_one_run_and_one_process_for_a_task() {
        let (_directory, repository) = temporary();
        let main: ServerName = "main".parse().unwrap();
        let run = repository.begin_cron().unwrap().unwrap();
        assert!(repository.begin_cron().unwrap().is_none());
        assert!(repository.cron_holder().starts_with("cron, process "));
        drop(run);
        assert!(repository.begin_cron().unwrap().is_some());
        let task = repository.begin_task(CronTask::Backup, Some(&main)).unwrap();
        assert!(task.is_some());
        assert!(repository.is_task_running(CronTask::Backup, Some(&main)).unwrap());
        assert!(!repository.is_task_running(CronTask::Backup, None).unwrap());
        assert!(
            repository
                .begin_task(CronTask::Backup, Some(&main))
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn what_is_remembered_is_there_again_and_a_lost_file_is_no_error() {
        let (_directory, repository) = temporary();
        let main: ServerName = "main".parse().unwrap();
        assert_eq!(repository.server_memory(&main).unwrap(), ServerMemory::default());
        repository
            .remember_of_server(&main, |memory| {
                TaskMemory::begin(&mut memory.tasks, CronTask::Backup, at(1));
                TaskMemory::end(
                    &mut memory.tasks,
                    CronTask::Backup,
                    at(2),
                    Err("it is down".to_owned()),
                );
                TaskMemory::begin(&mut memory.tasks, CronTask::Backup, at(3));
            })
            .unwrap();
        repository.note_run(&main, at(4), None).unwrap();
        let memory = repository.server_memory(&main).unwrap();
        assert_eq!(memory.ran_at, Some(at(4)));
        let backup = memory.tasks.get(&CronTask::Backup).unwrap();
        assert_eq!(
            (backup.began_at, backup.ended_at, backup.failures),
            (at(3), None, 1)
        );
        // That one is killed.
        repository
            .remember_of_server(&main, |memory| {
                TaskMemory::begin(&mut memory.tasks, CronTask::Backup, at(4));
            })
            .unwrap();
        let memory = repository.server_memory(&main).unwrap();
        assert_eq!(memory.tasks.get(&CronTask::Backup).unwrap().failures, 2);
        fs::write(repository.memory_file("main.json"), b"{\"ran_at\":").unwrap();
        assert_eq!(repository.server_memory(&main).unwrap(), ServerMemory::default());
        repository.note_run(&main, at(5), Some("no")).unwrap();
        assert_eq!(
            repository.server_memory(&main).unwrap().error.as_deref(),
            Some("no")
        );
    }

    #[test]
    fn a_task_that_was_put_off_has_neither_failed_nor_succeeded() {
        let mut tasks = BTreeMap::new();
        TaskMemory::begin(&mut tasks, CronTask::BootTest, at(1));
        TaskMemory::put_off(&mut tasks, CronTask::BootTest, at(2));
        let put_off = tasks[&CronTask::BootTest].clone();
        assert_eq!((put_off.ended_at, put_off.failures), (Some(at(2)), 0));
        assert!(put_off.error.is_some(), "it is not done");
        TaskMemory::begin(&mut tasks, CronTask::BootTest, at(3));
        TaskMemory::end(
            &mut tasks,
            CronTask::BootTest,
            at(4),
            Ok("backup started".to_owned()),
        );
        let done = &tasks[&CronTask::BootTest];
        assert_eq!((done.failures, &done.error), (0, &None));
    }

    #[test]
    fn only_old_unfinished_files_are_removed() {
        let (_directory, repository) = temporary();
        let old = repository.path().join(".tmp-old");
        fs::write(&old, b"").unwrap();
        let long_ago = SystemTime::now() - 2 * TEMPORARY_FOR;
        fs::File::options()
            .write(true)
            .open(&old)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        fs::write(repository.path().join(".tmp-new"), b"").unwrap();
        assert_eq!(repository.remove_unfinished_files().unwrap(), 1);
        assert!(!old.exists() && repository.path().join(".tmp-new").exists());
    }
}
