//! `barmanfs cron`: what has to be done regularly, once a minute.
//!
//! One run looks at each active server, in the order of their names, and then at the repository. It does at once what takes
//! milliseconds, and starts a process of its own for everything else ([`launch`], [`task`]); what is due is decided in
//! [`due`]. Where nothing is due it opens no connection. A kill at any moment does no harm: the next run decides again by
//! what is in the repository.
//!
//! The trouble of one server is logged and remembered, and stops neither the others nor this command.

mod audit;
mod due;
mod launch;
mod notify;
mod task;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use barmanfs_catalog::recovery::zone_of;
use barmanfs_catalog::retention::{NewestRecord, RetentionRules};
use barmanfs_catalog::{Backup, BackupKind, BackupStatus, CronTask, Repository, ServerMemory, ServerName};
use barmanfs_pg::TimestampMicros;
use jiff::tz::TimeZone;

use super::App;
use crate::boot;
use crate::cli::upkeep::CronArgs;
use crate::config::{Archiver, ServerConfig};
use crate::error::{Error, Outcome};
use crate::incoming;
use crate::moment;
use launch::Launcher;

/// As many backups of a server are looked at, the newest ones: what is due does not depend on older ones, and a minute
/// must not take longer where there are many.
const BACKUPS_LOOKED_AT: usize = 8;

/// Number of scheduled backups at one time: each uses all cores and one connection at full speed.
const BACKUPS_AT_ONCE: usize = 2;

/// Servers that are synced with their primaries at one time: the first sync of one may take hours, and the others must not
/// wait for it.
const SYNCS_AT_ONCE: usize = 4;

/// Processes that apply policies at one time. Each proves first that the catalog knows all packs, which takes seconds
/// where there are millions, and then does one server after the other.
const RETENTIONS_AT_ONCE: usize = 2;

/// A sweep pays for so many bytes, and for [`SWEPT_SHARE`] of a smaller repository.
const SWEPT_BYTES: u64 = 1 << 30;

/// One in so many bytes.
const SWEPT_SHARE: u64 = 20;

/// The least time between two sweeps, since each walks through all trees.
const SWEEP_AT_MOST_EVERY: Duration = Duration::from_secs(3600);

/// A sweep pays after this time in any case: it also finds what nobody has counted, such as the packs of killed backups.
const SWEEP_AT_LEAST_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);

/// A sweep pays for so many archived files, once a day: it merges their packs when their day is over.
const MERGED_FILES: u64 = 256;

/// How often it is computed whether a sweep pays: that reads a row for each pack.
const WEIGH_EVERY: Duration = Duration::from_secs(600);

/// How often a part of the repository is read back, and its packs are surveyed for `check`.
const VERIFY_EVERY: Duration = Duration::from_secs(3600);

/// How often the policies are applied where no new backup has come: a backup leaves a window when time passes.
const RETENTION_EVERY: Duration = Duration::from_secs(3600);

/// The units that people enable.
const SYSTEMD_UNITS: &str = "/etc/systemd/system";

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &CronArgs) -> Result<Outcome, Error> {
    if let Some(task) = args.task {
        return task::run(app, args, task);
    }
    // It never creates one: the disk may not be mounted.
    let repository = app.repository_for_writing()?;
    let Some(_run) = repository.begin_cron()? else {
        tracing::info!(
            "Nothing is done: there is another cron ({})",
            repository.cron_holder()
        );
        return Ok(Outcome::Done);
    };
    let now = moment::now();
    // A leap that cannot be noted must not lead to a deletion.
    repository.note_clock(now)?;
    let mut servers: Vec<ServerConfig> = app.config.servers.clone();
    servers.retain(|server| server.active);
    servers.sort_by(|one, other| one.name.cmp(&other.name));
    let mut round = Round {
        repository: &repository,
        launcher: Launcher::new(app, args)?,
        notifies: servers.iter().any(notify::is_told),
        backups_running: 0,
        retentions_running: 0,
        newest_record: None,
        retentions: Vec::new(),
        backups: Vec::new(),
        boot_tests: Vec::new(),
        syncs_running: 0,
        syncs: Vec::new(),
    };
    round.count_running(&servers)?;
    let mut errors: BTreeMap<&ServerName, String> = BTreeMap::new();
    for server in &servers {
        if let Err(error) = round.look_after(server) {
            errors.insert(&server.name, error.to_string());
        }
    }
    round.start_retentions()?;
    for (server, error) in round.start_queued()? {
        if let Some(server) = servers.iter().find(|known| known.name == server) {
            errors.entry(&server.name).or_insert_with(|| error.to_string());
        }
    }
    for server in &servers {
        let error = errors.get(&server.name);
        if let Some(error) = error {
            tracing::error!("Server {}: {error}", server.name);
        }
        unheard(repository.note_run(&server.name, now, error.map(String::as_str)));
    }
    if let Err(error) = round.look_after_repository() {
        tracing::error!("Repository: {error}");
    }
    unheard(repository.note_run_of_repository(now));
    for line in round.launcher.into_started() {
        if !app.options.quiet {
            app.out.line(line)?;
        }
    }
    Ok(Outcome::Done)
}

/// Logs that something could not be remembered, as on a full disk: the work goes on.
fn unheard(remembered: Result<(), barmanfs_catalog::Error>) {
    if let Err(error) = remembered {
        tracing::warn!("What cron did cannot be remembered: {error}");
    }
}

/// One run.
struct Round<'a> {
    repository: &'a Repository,
    launcher: Launcher,
    notifies: bool,
    backups_running: usize,
    retentions_running: usize,
    /// Looked up when it is needed first.
    newest_record: Option<NewestRecord>,
    /// Due tasks of which only a few may run at one time.
    retentions: Vec<Due>,
    backups: Vec<Due>,
    boot_tests: Vec<Due>,
    syncs_running: usize,
    syncs: Vec<Due>,
}

/// A task of a server that is due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    /// When it was last started: the one that waits longest goes first, so none waits for ever.
    last_began: Option<TimestampMicros>,
    server: ServerName,
}

/// A server, and what is known of it without a connection.
struct Subject<'a> {
    server: &'a ServerConfig,
    memory: ServerMemory,
    /// The newest ones, oldest first.
    backups: Vec<Backup>,
    zone: TimeZone,
}

impl Round<'_> {
    fn count_running(&mut self, servers: &[ServerConfig]) -> Result<(), Error> {
        for server in servers.iter().filter(|server| server.backup_schedule.is_some()) {
            let runs = self
                .repository
                .is_task_running(CronTask::Backup, Some(&server.name))?;
            self.backups_running += usize::from(runs);
        }
        for server in servers {
            let runs = self
                .repository
                .is_task_running(CronTask::Retention, Some(&server.name))?;
            self.retentions_running += usize::from(runs);
        }
        for server in servers.iter().filter(|server| server.is_passive()) {
            let runs = self
                .repository
                .is_task_running(CronTask::Sync, Some(&server.name))?;
            self.syncs_running += usize::from(runs);
        }
        Ok(())
    }

    /// All steps for one server. A step that fails does not prevent the others; the first error is returned.
    ///
    /// The order matters: a backup must be complete before anything decides which backups are not needed any more, and
    /// the sweep, which frees their space, comes after all servers.
    fn look_after(&mut self, server: &ServerConfig) -> Result<(), Error> {
        let mut backups = self.repository.newest_backups(&server.name, BACKUPS_LOOKED_AT)?;
        backups.retain(Backup::is_of_server);
        let subject = Subject {
            server,
            memory: self.repository.server_memory(&server.name)?,
            zone: zone_of(&backups),
            backups,
        };
        let steps = [
            Self::complete_backups,
            Self::apply_policies,
            Self::sync,
            Self::receive_wal,
            Self::archive_incoming,
            Self::back_up,
            Self::audit,
            Self::test_boot,
        ];
        let results: Vec<_> = steps.iter().map(|step| step(self, &subject)).collect();
        results.into_iter().collect()
    }

    /// A backup is complete as soon as the catalog has its WAL. It may be in packs that a killed process did not enter.
    fn complete_backups(&mut self, subject: &Subject<'_>) -> Result<(), Error> {
        let waits = |backup: &Backup| backup.status == BackupStatus::WaitingForWals;
        if subject.backups.iter().any(waits) && self.repository.adopt_unknown_packs()? {
            tracing::info!(
                "Server {}: entered packs of killed processes",
                subject.server.name
            );
        }
        Ok(())
    }

    /// Deletes what the policies do not keep: after each new backup, and once an hour, where that may be something.
    fn apply_policies(&mut self, subject: &Subject<'_>) -> Result<(), Error> {
        let rules = subject.server.retention_rules();
        let last = subject.memory.tasks.get(&CronTask::Retention);
        let began = last.map(|last| last.began_at);
        let newest = subject.newest_done().and_then(|backup| backup.end_time);
        // What a sync brings ended before it came.
        let synced = subject.memory.tasks.get(&CronTask::Sync);
        let came = newest.max(synced.and_then(|last| last.ended_at));
        let is_recent = due::is_within(RETENTION_EVERY, began, moment::now()) && came <= began;
        // A process that runs for other servers may come to this one later.
        let may_wait = self.retentions_running > 0 && last.is_some_and(|last| last.ended_at.is_none());
        if subject.backups.is_empty()
            || (rules.backups.is_none() && rules.failed_backups.is_none())
            || is_recent
            || may_wait
            || !due::may_try_again(last, moment::now())
            || self
                .repository
                .is_task_running(CronTask::Retention, Some(&subject.server.name))?
            || self.is_quiet(subject, &rules)?
        {
            return Ok(());
        }
        self.retentions.push(subject.due(CronTask::Retention));
        Ok(())
    }

    /// Whether the last run has found that there is nothing to delete yet, and nothing has changed since.
    fn is_quiet(&mut self, subject: &Subject<'_>, rules: &RetentionRules) -> Result<bool, Error> {
        let Some(quiet) = &subject.memory.quiet else {
            return Ok(false);
        };
        let newest = match self.newest_record {
            Some(newest) => newest,
            None => *self.newest_record.insert(self.repository.newest_record()?),
        };
        let server = &subject.server.name;
        Ok(self
            .repository
            .is_quiet(server, rules, quiet, newest, moment::now())?)
    }

    /// Takes over what the primary of a passive server has.
    fn sync(&mut self, subject: &Subject<'_>) -> Result<(), Error> {
        let name = &subject.server.name;
        let last = subject.memory.tasks.get(&CronTask::Sync);
        if !subject.server.is_passive()
            || subject.server.is_disabled()
            // WAL comes though something else cannot be taken, so a failed sync waits no longer than a service.
            || !(due::may_try_again(last, moment::now()) || due::may_run_again(last, moment::now()))
            || self.repository.is_task_running(CronTask::Sync, Some(name))?
        {
            return Ok(());
        }
        self.syncs.push(subject.due(CronTask::Sync));
        Ok(())
    }

    /// Starts a receiver where there is none. It stops none: a person or a service manager may have started it.
    fn receive_wal(&mut self, subject: &Subject<'_>) -> Result<(), Error> {
        let name = &subject.server.name;
        let last = subject.memory.tasks.get(&CronTask::ReceiveWal);
        if !subject.server.streaming_archiver
            || subject.server.is_passive()
            || self.repository.receiver(name)?.is_some()
            || self
                .repository
                .is_task_running(CronTask::ReceiveWal, Some(name))?
            || !due::may_run_again(last, moment::now())
            || is_unit_enabled(
                Path::new(SYSTEMD_UNITS),
                &format!("barmanfs-receive-wal@{name}.service"),
            )
        {
            return Ok(());
        }
        self.start(CronTask::ReceiveWal, subject)
    }

    /// Archives what lies in the server's directory.
    fn archive_incoming(&mut self, subject: &Subject<'_>) -> Result<(), Error> {
        let server = subject.server;
        let directory = match &server.incoming_wals_directory {
            Some(directory) if server.archiver != Archiver::Off && !server.is_passive() => directory,
            _ => return Ok(()),
        };
        let waiting = incoming::waiting(directory)
            .map_err(|error| Error::failed(format!("Cannot read {}: {error}", directory.display())))?;
        let last = subject.memory.tasks.get(&CronTask::ArchiveWal);
        if waiting.is_empty()
            || !due::may_try_again(last, moment::now())
            || self
                .repository
                .is_task_running(CronTask::ArchiveWal, Some(&server.name))?
        {
            return Ok(());
        }
        self.start(CronTask::ArchiveWal, subject)
    }

    fn back_up(&mut self, subject: &Subject<'_>) -> Result<(), Error> {
        let name = &subject.server.name;
        let Some(schedule) = &subject.server.backup_schedule else {
            return Ok(());
        };
        if subject.server.is_disabled() || subject.server.is_passive() {
            return Ok(());
        }
        let runs = |backup: &Backup| backup.status == BackupStatus::Started;
        let is_good = |backup: &&Backup| backup.has_ended_well() && backup.is_of_server();
        let last_good = subject.backups.iter().rfind(is_good);
        let last = subject.memory.tasks.get(&CronTask::Backup);
        let done = last_good.map(|backup| backup.begin_time);
        if subject.backups.iter().any(runs)
            || !due::is_due(schedule, done, last, moment::now(), &subject.zone)
            || self.repository.is_task_running(CronTask::Backup, Some(name))?
        {
            return Ok(());
        }
        self.backups.push(subject.due(CronTask::Backup));
        Ok(())
    }

    /// Compares each incremental backup with the server once.
    fn audit(&mut self, subject: &Subject<'_>) -> Result<(), Error> {
        let newest = subject.newest_done();
        let Some(backup) = newest.filter(|backup| backup.kind == BackupKind::Incremental) else {
            return Ok(());
        };
        let audited = subject.memory.audit.as_ref().map(|audit| audit.backup);
        let last = subject.memory.tasks.get(&CronTask::Audit);
        if subject.server.audit_sample == 0
            || subject.server.is_passive()
            || audited == Some(backup.id)
            || !due::may_try_again(last, moment::now())
            || self
                .repository
                .is_task_running(CronTask::Audit, Some(&subject.server.name))?
        {
            return Ok(());
        }
        self.start(CronTask::Audit, subject)
    }

    fn test_boot(&mut self, subject: &Subject<'_>) -> Result<(), Error> {
        let Some(schedule) = &subject.server.boot_test_schedule else {
            return Ok(());
        };
        let done = self.repository.last_boot_test(&subject.server.name)?;
        let last = subject.memory.tasks.get(&CronTask::BootTest);
        if subject.newest_done().is_none() || !due::is_due(schedule, done, last, moment::now(), &subject.zone)
        {
            return Ok(());
        }
        self.boot_tests.push(subject.due(CronTask::BootTest));
        Ok(())
    }

    /// Divides the servers whose policies are due among the processes that may run for them.
    fn start_retentions(&mut self) -> Result<(), Error> {
        let mut due = std::mem::take(&mut self.retentions);
        if due.is_empty() {
            return Ok(());
        }
        let at_once = RETENTIONS_AT_ONCE.saturating_sub(self.retentions_running);
        if at_once == 0 {
            return Ok(());
        }
        due.sort();
        let names: Vec<ServerName> = due.into_iter().map(|due| due.server).collect();
        for part in names.chunks(names.len().div_ceil(at_once)) {
            self.launcher
                .start(self.repository, CronTask::Retention, part, moment::now())?;
        }
        Ok(())
    }

    /// Starts what is due, as much as may run at one time. The rest is due in the next minute. Returns which servers'
    /// tasks could not be started.
    fn start_queued(&mut self) -> Result<Vec<(ServerName, Error)>, Error> {
        let backups = BACKUPS_AT_ONCE.saturating_sub(self.backups_running);
        // One boot test in the whole repository: each runs a server.
        let boot_tests = match self.repository.is_task_running(CronTask::BootTest, None)? {
            true => 0,
            false => 1,
        };
        let syncs = SYNCS_AT_ONCE.saturating_sub(self.syncs_running);
        let queues = [
            (CronTask::Sync, std::mem::take(&mut self.syncs), syncs),
            (CronTask::Backup, std::mem::take(&mut self.backups), backups),
            (
                CronTask::BootTest,
                std::mem::take(&mut self.boot_tests),
                boot_tests,
            ),
        ];
        let mut failed = Vec::new();
        for (task, mut due, at_once) in queues {
            due.sort();
            for Due { server, .. } in due.into_iter().take(at_once) {
                let of = std::slice::from_ref(&server);
                let started = self.launcher.start(self.repository, task, of, moment::now());
                failed.extend(started.err().map(|error| (server, error)));
            }
        }
        Ok(failed)
    }

    fn start(&mut self, task: CronTask, subject: &Subject<'_>) -> Result<(), Error> {
        let of = std::slice::from_ref(&subject.server.name);
        self.launcher.start(self.repository, task, of, moment::now())
    }

    fn look_after_repository(&mut self) -> Result<(), Error> {
        boot::remove_leftovers();
        let tidied = self.repository.remove_unfinished_files().map(drop);
        let results = [
            tidied.map_err(Error::from),
            self.sweep(),
            self.verify(),
            self.notify(),
        ];
        results.into_iter().collect()
    }

    fn sweep(&mut self) -> Result<(), Error> {
        let memory = self.repository.repository_memory()?;
        let last = memory.tasks.get(&CronTask::Sweep).map(|last| last.began_at);
        if due::is_within(SWEEP_AT_MOST_EVERY, last, moment::now())
            || due::is_within(WEIGH_EVERY, memory.weighed_at, moment::now())
            || self.repository.is_task_running(CronTask::Sweep, None)?
        {
            return Ok(());
        }
        let last = last.unwrap_or(self.repository.settings().created_at);
        let freeable = self.repository.freeable(memory.swept_through)?;
        let bytes = freeable.bytes();
        let merges = due::is_on_an_earlier_day(last, moment::now()) && freeable.added_records >= MERGED_FILES;
        let pays = merges
            || bytes >= SWEPT_BYTES
            || !due::is_within(SWEEP_AT_LEAST_EVERY, Some(last), moment::now())
            || bytes > 0 && bytes >= self.repository.pack_totals()?.bytes / SWEPT_SHARE;
        if pays {
            return self
                .launcher
                .start(self.repository, CronTask::Sweep, &[], moment::now());
        }
        if bytes > 0 {
            self.repository
                .remember_of_repository(|memory| memory.weighed_at = Some(moment::now()))?;
        }
        Ok(())
    }

    /// Tells `notify_command` what the checks find, in each run.
    fn notify(&mut self) -> Result<(), Error> {
        if !self.notifies || self.repository.is_task_running(CronTask::Notify, None)? {
            return Ok(());
        }
        self.launcher
            .start(self.repository, CronTask::Notify, &[], moment::now())
    }

    fn verify(&mut self) -> Result<(), Error> {
        let memory = self.repository.repository_memory()?;
        let last = memory.tasks.get(&CronTask::Verify).map(|last| last.began_at);
        if due::is_within(VERIFY_EVERY, last, moment::now())
            || self.repository.is_task_running(CronTask::Verify, None)?
        {
            return Ok(());
        }
        self.launcher
            .start(self.repository, CronTask::Verify, &[], moment::now())
    }
}

impl Subject<'_> {
    fn due(&self, task: CronTask) -> Due {
        Due {
            last_began: self.memory.tasks.get(&task).map(|last| last.began_at),
            server: self.server.name.clone(),
        }
    }

    fn newest_done(&self) -> Option<&Backup> {
        let is_done = |backup: &&Backup| {
            backup.status == BackupStatus::Done && backup.is_of_current_history() && backup.is_complete()
        };
        self.backups.iter().rfind(is_done)
    }
}

/// Whether systemd is to run this unit.
fn is_unit_enabled(units: &Path, unit: &str) -> bool {
    let directories = std::fs::read_dir(units).into_iter().flatten().flatten();
    let is_wanted = |directory: &Path| {
        let wants = directory
            .extension()
            .is_some_and(|kind| kind == "wants" || kind == "requires");
        wants && directory.join(unit).symlink_metadata().is_ok()
    };
    directories.map(|entry| entry.path()).any(|path| is_wanted(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_that_waits_longest_goes_first() {
        let due = |server: &str, last_began: Option<i64>| Due {
            last_began: last_began.map(TimestampMicros::from_unix_seconds),
            server: server.parse().unwrap(),
        };
        let mut waiting = [
            due("a", Some(9)),
            due("c", None),
            due("b", Some(5)),
            due("d", Some(5)),
        ];
        waiting.sort();
        let order: Vec<&str> = waiting.iter().map(|due| due.server.as_str()).collect();
        assert_eq!(order, ["c", "b", "d", "a"]);
    }

    #[test]
    fn a_unit_counts_when_it_is_enabled() {
        let units = tempfile::tempdir().unwrap();
        let unit = "barmanfs-receive-wal@main.service";
        std::fs::write(units.path().join("barmanfs-receive-wal@.service"), "").unwrap();
        assert!(!is_unit_enabled(units.path(), unit));
        let wants = units.path().join("multi-user.target.wants");
        std::fs::create_dir(&wants).unwrap();
        std::os::unix::fs::symlink("/nowhere", wants.join(unit)).unwrap();
        assert!(is_unit_enabled(units.path(), unit));
        assert!(!is_unit_enabled(
            units.path(),
            "barmanfs-receive-wal@other.service"
        ));
    }
}
