//! A task, in the process that was started for it.

use std::time::{Duration, SystemTime};

use barmanfs_catalog::retention::RetentionRules;
use barmanfs_catalog::{
    Annotations, Backup, BackupStatus, BootOutcome, CronTask, Repository, RepositoryMemory, ServerName,
    Silent, SweepOptions, TaskMemory, count_unread,
};
use barmanfs_pg::TimestampMicros;

use super::super::App;
use super::super::archive_wal;
use super::super::receive_wal;
use super::super::retention::held_by_audit;
use super::super::verify;
use super::{BACKUPS_LOOKED_AT, audit, notify, unheard};
use crate::background;
use crate::backup::{BackupOptions, Stop};
use crate::boot;
use crate::cli::upkeep::CronArgs;
use crate::config::ServerConfig;
use crate::error::{Error, Outcome};
use crate::hooks;
use crate::moment;
use crate::output;
use crate::progress::{Counted, Progress};
use crate::signals::Interruption;
use crate::snapshot::{self, Asked};
use crate::sync::Extent;

/// How long a scheduled backup waits for its WAL; after that, it is complete when the WAL comes.
const WAIT_FOR_WAL: Duration = Duration::from_secs(300);

/// A part of a verification never makes up for more than this: after a pause of the host, the disks have other work.
const BUDGET_OF_AT_MOST: Duration = Duration::from_secs(24 * 3600);

/// How often the catalog's file is read.
const CATALOG_EVERY: Duration = BUDGET_OF_AT_MOST;

/// The first part of a verification has the budget of this time.
const FIRST_BUDGET: Duration = Duration::from_secs(3600);

/// A sweep works on all cores, and has time.
const SWEEP_NICENESS: i32 = 10;

/// Does the task, for one server after the other. Its trouble is no trouble of `cron`.
pub(super) fn run(app: &mut App, args: &CronArgs, task: CronTask) -> Result<Outcome, Error> {
    background::detach(app.config.log_file.as_deref(), args.keep_descriptors)?;
    let servers = args.servers.iter().map(|name| app.configured(name).cloned());
    let mut servers: Vec<Result<ServerConfig, Error>> = servers.collect();
    let repository = app.repository_for_writing()?;
    if servers.len() < 2 {
        let server = servers.pop().transpose()?;
        return carry_out(app, &repository, task, server.as_ref());
    }
    let interruption = Interruption::watch(|| {})?;
    for server in servers {
        if interruption.requested() {
            break;
        }
        // One that has left the configuration meanwhile does not stop the others.
        let done = server.and_then(|server| carry_out(app, &repository, task, Some(&server)));
        if let Err(error) = done {
            tracing::error!("{} by cron: {error}", task.as_str());
        }
    }
    Ok(Outcome::Done)
}

/// Does the task once, and remembers how it ended.
fn carry_out(
    app: &App,
    repository: &Repository,
    task: CronTask,
    server: Option<&ServerConfig>,
) -> Result<Outcome, Error> {
    let of_server = server.map(|server| &server.name);
    // One boot test at a time, of whichever server.
    let holder = of_server.filter(|_| task != CronTask::BootTest);
    let Some(_lock) = repository.begin_task(task, holder)? else {
        // Another server's boot test was started at the same moment; this one is due as before.
        if let (CronTask::BootTest, Some(server)) = (task, of_server) {
            let now = SystemTime::now().into();
            unheard(repository.remember_of_server(server, |memory| {
                TaskMemory::put_off(&mut memory.tasks, task, now);
            }));
        }
        return Ok(Outcome::Done);
    };
    let ended = match server {
        Some(server) => of_one_server(app, repository, task, server),
        None => of_repository(app, repository, task),
    };
    if let Err(error) = &ended {
        let whose = of_server.map_or_else(String::new, |server| format!(" of server {server}"));
        tracing::error!("{}{whose} by cron: {error}", task.as_str());
    }
    let ended = ended.map_err(|error| error.to_string());
    remember(repository, task, of_server, ended);
    Ok(Outcome::Done)
}

fn remember(
    repository: &Repository,
    task: CronTask,
    server: Option<&ServerName>,
    ended: Result<String, String>,
) {
    let now = SystemTime::now().into();
    unheard(match server {
        Some(server) => repository.remember_of_server(server, |memory| {
            TaskMemory::end(&mut memory.tasks, task, now, ended);
        }),
        None => repository.remember_of_repository(|memory| {
            TaskMemory::end(&mut memory.tasks, task, now, ended);
        }),
    });
}

fn of_one_server(
    app: &App,
    repository: &Repository,
    task: CronTask,
    server: &ServerConfig,
) -> Result<String, Error> {
    match task {
        CronTask::ReceiveWal => {
            receive_wal::receive(app, repository, server)?;
            Ok("stopped".to_owned())
        }
        CronTask::ArchiveWal => {
            let names = archive_wal::archive_incoming(repository, server)?;
            Ok(format!("archived {}", output::count(names.len(), "WAL file")))
        }
        CronTask::Backup => back_up(repository, server),
        CronTask::Audit => audit::run(repository, server),
        CronTask::BootTest => test_boot(app, repository, server),
        CronTask::Retention => apply_policies(repository, server),
        CronTask::Sync => sync(app, repository, server),
        CronTask::Notify | CronTask::Sweep | CronTask::Verify => {
            Err(Error::usage("This is no task of one server"))
        }
    }
}

fn of_repository(app: &App, repository: &Repository, task: CronTask) -> Result<String, Error> {
    match task {
        CronTask::Sweep => sweep(repository),
        CronTask::Verify => verify_part(app, repository),
        CronTask::Notify => notify::run(app, repository),
        _ => Err(Error::usage("Name the server of this task")),
    }
}

fn back_up(repository: &Repository, server: &ServerConfig) -> Result<String, Error> {
    let options = BackupOptions {
        label: None,
        annotations: Annotations::new(),
        keep: None,
        fast_checkpoint: None,
        incremental: None,
        method: None,
        max_rate_kb: None,
        wait_timeout: WAIT_FOR_WAL,
        quiet: true,
    };
    let backup = snapshot::take_as_asked(repository, server, &Asked::default(), &options, &Stop::watch()?)?;
    Ok(format!("backup {} is {}", backup.id, backup.status))
}

fn sync(app: &App, repository: &Repository, server: &ServerConfig) -> Result<String, Error> {
    let config = std::path::absolute(&app.config.file).ok();
    let synced = crate::sync::run(repository, server, config.as_deref(), Extent::ALL, &mut Silent)?;
    let report = synced.report;
    for problem in &report.problems {
        tracing::error!("Server {}: {problem}", server.name);
    }
    if let Some(first) = report.problems.first() {
        return Err(Error::failed(first.clone()));
    }
    Ok(format!(
        "{} and {} came",
        output::count(report.backups.len(), "backup"),
        output::count(report.wal_files, "WAL file")
    ))
}

fn apply_policies(repository: &Repository, server: &ServerConfig) -> Result<String, Error> {
    server.refuse_disabled()?;
    let rules = server.retention_rules();
    let rules = RetentionRules {
        held: held_by_audit(repository, &server.name)?.or(rules.held.clone()),
        ..rules
    };
    let interruption = Interruption::watch(|| {})?;
    let is_stopped = || interruption.requested();
    let now = SystemTime::now().into();
    // It may have leapt while other servers were looked after.
    repository.note_clock(now)?;
    unheard(repository.remember_of_server(&server.name, |memory| memory.quiet = None));
    let basis = repository.retention_basis(&server.name)?;
    let done = hooks::retention::enforce(repository, (&server.name, Some(server)), &rules, now, &is_stopped)?;
    let problem = done.problems.into_iter().next();
    let done = done.enforced;
    let quiet = repository.quiet_after(&server.name, &rules, &done.plan, &basis, now)?;
    unheard(repository.remember_of_server(&server.name, |memory| memory.quiet = quiet));
    if let Some(why) = done.plan.blocked {
        return Err(Error::failed(format!("Nothing is deleted: {why}")));
    }
    let ids: Vec<String> = done.deleted.iter().map(ToString::to_string).collect();
    for id in &ids {
        tracing::info!(
            "Server {}: deleted backup {id}, which no policy keeps",
            server.name
        );
    }
    if let Some(problem) = problem {
        return Err(Error::failed(problem));
    }
    let files: u64 = done.wal.iter().map(|wal| wal.totals.files).sum();
    Ok(format!(
        "deleted {} and {}",
        output::count(ids.len(), "backup"),
        output::count(files, "WAL file")
    ))
}

/// The newest backup of a server that is complete with its WAL.
pub(super) fn newest_done(repository: &Repository, server: &ServerName) -> Result<Backup, Error> {
    let backups = repository.newest_backups(server, BACKUPS_LOOKED_AT)?;
    let is_done = |backup: &Backup| {
        backup.status == BackupStatus::Done && backup.is_of_current_history() && backup.is_complete()
    };
    let newest = backups.into_iter().rfind(is_done);
    newest.ok_or_else(|| Error::failed(format!("Server {server} has no backup that is DONE")))
}

fn test_boot(app: &App, repository: &Repository, server: &ServerConfig) -> Result<String, Error> {
    let backup = newest_done(repository, &server.name)?;
    let request = verify::boot_request(app, backup);
    let progress = Progress::start("Boot test", Counted::Time, true);
    let report = boot::run(repository, &request, &Interruption::watch(|| {})?, &progress)?;
    let (id, outcome) = (request.backup.id, report.test.outcome);
    let message = report.test.message.clone().unwrap_or_default();
    repository.add_boot_test(&request.backup, report.test)?;
    if outcome == BootOutcome::Failed {
        tracing::error!(
            "Backup {id} of server {} failed its boot test: {message}",
            server.name
        );
        return Ok(format!("backup {id} failed: {message}"));
    }
    Ok(format!("backup {id} started"))
}

fn sweep(repository: &Repository) -> Result<String, Error> {
    // Linux derives the priority of reading and writing from it, too.
    if let Err(error) = rustix::process::nice(SWEEP_NICENESS) {
        tracing::debug!("The sweep has the priority of everything else: {error}");
    }
    let seen = repository.freeable(0)?.last_record;
    let report = repository.sweep(&SweepOptions::default(), &mut Silent)?;
    repository.remember_of_repository(|memory| memory.swept_through = seen)?;
    let freed = report.removed_bytes.saturating_sub(report.copied_bytes);
    let mut freed = format!("freed {}", output::bytes(freed));
    if report.merged_packs > 0 {
        freed += &format!(", merged {} of WAL", output::count(report.merged_packs, "pack"));
    }
    if report.missing_chunks > 0 {
        return Err(Error::failed(format!(
            "{freed}, but missing: {}; 'barmanfs verify' names the files",
            output::count(report.missing_chunks, "chunk")
        )));
    }
    match report.problems.first() {
        Some(problem) => Err(Error::failed(format!(
            "{freed}, and pack {}: {}",
            problem.pack, problem.reason
        ))),
        None => Ok(freed),
    }
}

/// Reads the catalog's file, once a day. `check` reads only a small one.
fn look_through_catalog(repository: &Repository, last: Option<TimestampMicros>) -> Result<(), Error> {
    if last_end(last).is_some_and(|passed| passed < CATALOG_EVERY) {
        return Ok(());
    }
    let faults = repository.catalog_faults()?;
    for fault in &faults {
        tracing::error!("Catalog: {fault}");
    }
    Ok(repository.remember_of_repository(|memory| {
        memory.catalog_read_at = Some(SystemTime::now().into());
        memory.catalog_faults = faults;
    })?)
}

/// Surveys the packs, so that `check` need not, and reads as much as the budget of the time since the last part allows.
fn verify_part(app: &App, repository: &Repository) -> Result<String, Error> {
    let memory = repository.repository_memory()?;
    // What was damaged may have been mended since.
    look_through_catalog(
        repository,
        memory
            .catalog_read_at
            .filter(|_| memory.catalog_faults.is_empty()),
    )?;
    let unread = repository.survey_packs()?;
    let done = match app.config.verify_budget.is_off() {
        true => "read nothing: verify_budget is off".to_owned(),
        false => read_part(app, &app.repository_as_stored()?, memory)?,
    };
    match unread.first() {
        Some(first) => Err(Error::failed(format!(
            "{done}, and {} could not be read, the first is {}: {}",
            output::count(count_unread(&unread), "pack"),
            first.pack,
            first.reason
        ))),
        None => Ok(done),
    }
}

/// Reads back what the budget allows.
fn read_part(app: &App, repository: &Repository, memory: RepositoryMemory) -> Result<String, Error> {
    let mut round = memory.verification;
    let time = last_end(memory.verified_at).unwrap_or(FIRST_BUDGET);
    let allowed = app
        .config
        .verify_budget
        .of(repository.pack_totals()?.bytes, time.as_secs());
    let interruption = Interruption::watch(|| {})?;
    let part = repository.verify_part(&mut round, allowed, &|| interruption.requested(), &mut |round| {
        repository.remember_of_repository(|memory| {
            memory.verification = round.clone();
            memory.verified_at = Some(SystemTime::now().into());
        })
    })?;
    if part.bad_chunks > 0 {
        tracing::error!(
            "{} of the chunks that were read are damaged: 'barmanfs verify' names the files",
            part.bad_chunks
        );
    }
    for problem in &round.problems {
        tracing::error!("Pack {}: {}", problem.pack, problem.reason);
    }
    Ok(format!(
        "read {} in {}",
        output::bytes(part.bytes),
        output::count(part.packs, "pack")
    ))
}

/// The time since the last part, if that is known, and not more than a day.
fn last_end(verified_at: Option<TimestampMicros>) -> Option<Duration> {
    let passed = moment::now().saturating_duration_since(verified_at?);
    Some(passed.min(BUDGET_OF_AT_MOST))
}
