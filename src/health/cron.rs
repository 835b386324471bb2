//! Whether `cron` runs, and what it has found.

use std::time::Duration;

use barmanfs_catalog::{
    Backup, BackupKind, BackupStatus, CronTask, Damage, KnownLoss, Repository, RepositoryMemory,
    ServerMemory, TaskMemory,
};
use barmanfs_pg::TimestampMicros;

use super::Subject;
use super::finding::{Finding, Findings};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::invocation::Invocation;
use crate::output;

const RUNS: &str = "cron";
const OF_REPOSITORY: &str = "cron for the repository";
const VERIFIED: &str = "verification";
const AUDITED: &str = "incremental backups";

/// It runs once a minute, and a run takes far less. Several that are left out are no accident.
const RUNS_WITHIN: Duration = Duration::from_secs(600);

/// A run of another host, or of this one before its clock was corrected, may seem to be in the future.
const CLOCKS_MAY_DIFFER_MICROS: i64 = 300 * 1_000_000;

/// Checks what `cron` remembers of the server.
pub(super) fn check(
    repository: &Repository,
    subject: Subject<'_>,
    backups: &[Backup],
    now: TimestampMicros,
    findings: &mut Findings,
) {
    let Subject { server, invocation } = subject;
    let of_server = repository.server_memory(&server.name).map_err(Error::from);
    let Some(memory) = remembered(of_server, RUNS, findings) else {
        return;
    };
    findings.note(|figures| figures.cron = Some(memory.clone()));
    let is_received = repository.receiver(&server.name).ok().flatten().is_some();
    let seen = Seen {
        backups,
        is_received,
        now,
    };
    findings.extend(runs(server, invocation, &memory, &seen));
    findings.extend(audited(&memory, backups));
}

/// Checks what `cron` remembers of the repository.
pub(super) fn check_repository(repository: &Repository, invocation: &Invocation, findings: &mut Findings) {
    let found = repository
        .repository_memory()
        .and_then(|memory| Ok((memory, repository.pack_problems()?, repository.known_loss()?)));
    if let Some((mut memory, problems, lost)) = remembered(found.map_err(Error::from), VERIFIED, findings) {
        // A sweep may have copied such a pack since, or a rebuild has given it up.
        memory.verification.problems = problems;
        findings.extend(of_repository(&memory));
        findings.extend(verified(invocation, &memory, lost));
    }
}

fn remembered<T>(memory: Result<T, Error>, name: &'static str, findings: &mut Findings) -> Option<T> {
    memory
        .map_err(|error| findings.failed(name, error.to_string()))
        .ok()
}

/// What else is known of the server.
struct Seen<'a> {
    backups: &'a [Backup],
    /// Whether a process receives its WAL now.
    is_received: bool,
    now: TimestampMicros,
}

/// Whether the failure of a task still matters: it is still wanted, and what it was to do has not been done since.
fn matters(task: CronTask, last: &TaskMemory, server: &ServerConfig, seen: &Seen<'_>) -> bool {
    let is_done_since = |backup: &Backup| backup.has_ended_well() && backup.begin_time > last.began_at;
    match task {
        CronTask::ReceiveWal => server.streaming_archiver && !seen.is_received,
        CronTask::ArchiveWal => server.incoming_wals_directory.is_some(),
        CronTask::Backup => server.backup_schedule.is_some() && !seen.backups.iter().any(is_done_since),
        CronTask::BootTest => server.boot_test_schedule.is_some(),
        CronTask::Audit => server.audit_sample > 0,
        CronTask::Retention => true,
        // A check of its own says more.
        CronTask::Sync => false,
        // They are of the repository.
        CronTask::Notify | CronTask::Sweep | CronTask::Verify => false,
    }
}

/// Whether it runs where it is needed. Where it has never run, a stream alone does not need it: a service manager may run
/// `receive-wal`.
fn runs(
    server: &ServerConfig,
    invocation: &Invocation,
    memory: &ServerMemory,
    seen: &Seen<'_>,
) -> Option<Finding> {
    let scheduled = server.backup_schedule.is_some()
        || server.boot_test_schedule.is_some()
        || server.retention_policy.is_some()
        || server.is_passive();
    let scheduled =
        scheduled || server.incoming_wals_directory.is_some() || server.hooks.notify_command.is_some();
    let needed = scheduled || (server.streaming_archiver && memory.ran_at.is_some());
    if !needed || !server.active {
        return None;
    }
    let advice = format!("run '{}' every minute", invocation.with("-q cron"));
    let Some(ran_at) = memory.ran_at else {
        return Some(Finding::failed(RUNS, format!("it has never run: {advice}")));
    };
    let micros = seen.now.unix_micros().saturating_sub(ran_at.unix_micros());
    if micros < -CLOCKS_MAY_DIFFER_MICROS {
        return Some(Finding::failed(
            RUNS,
            format!("by this host's clock, it last ran in the future: {advice}"),
        ));
    }
    let passed = seen.now.saturating_duration_since(ran_at);
    let ago = format!("last ran {} ago", output::duration(passed));
    if passed > RUNS_WITHIN {
        return Some(Finding::failed(RUNS, format!("{ago}: {advice}")));
    }
    if let Some(error) = &memory.error {
        return Some(Finding::failed(RUNS, format!("{ago}, with an error: {error}")));
    }
    let failed = memory
        .tasks
        .iter()
        .find(|(task, last)| last.failures > 0 && matters(**task, last, server, seen));
    Some(match failed {
        Some((task, last)) => Finding::failed(RUNS, failure(*task, last)),
        None => Finding::ok(RUNS, ago),
    })
}

fn failure(task: CronTask, last: &TaskMemory) -> String {
    format!(
        "{} has failed {}: {}",
        task.as_str(),
        times(last.failures),
        last.error.as_deref().unwrap_or("it is being tried again")
    )
}

/// The tasks of the whole repository. One failure may be a passing trouble.
fn of_repository(memory: &RepositoryMemory) -> Option<Finding> {
    let (task, last) = memory.tasks.iter().find(|(_, last)| last.failures > 0)?;
    let text = failure(*task, last);
    Some(match last.failures {
        1 => Finding::warning(OF_REPOSITORY, text),
        _ => Finding::failed(OF_REPOSITORY, text),
    })
}

fn times(count: u32) -> String {
    match count {
        1 => "once".to_owned(),
        count => format!("{count} times in a row"),
    }
}

/// A difference counts until a full backup has been taken since.
fn audited(memory: &ServerMemory, backups: &[Backup]) -> Option<Finding> {
    if let Some(found) = memory.open_difference(backups) {
        let difference = found.difference.as_deref().unwrap_or_default();
        return Some(Finding::failed(
            AUDITED,
            format!(
                "{} is not what the server has: {difference}; the next backup is a full one",
                found.backup
            ),
        ));
    }
    let audit = memory.audit.as_ref()?;
    let is_there = |backup: &Backup| {
        backup.id == audit.backup
            && backup.kind == BackupKind::Incremental
            && backup.status == BackupStatus::Done
    };
    backups.iter().any(is_there).then(|| match &audit.refused {
        Some(why) => Finding::warning(AUDITED, format!("{} cannot be compared: {why}", audit.backup)),
        None => Finding::ok(
            AUDITED,
            format!("{} pages of {} are as on the server", audit.pages, audit.backup),
        ),
    })
}

/// What reading back in parts has found, as long as it is not mended.
fn verified(invocation: &Invocation, memory: &RepositoryMemory, loss: KnownLoss) -> Option<Finding> {
    let verify = invocation.with("verify");
    if let Some(problem) = memory.verification.problems.first() {
        let count = output::count(memory.verification.problems.len(), "pack");
        return Some(Finding::failed(
            VERIFIED,
            format!(
                "{count} cannot be read, one is {}: {}; see '{verify}'",
                problem.pack, problem.reason
            ),
        ));
    }
    if loss.is_unexamined {
        return Some(Finding::failed(
            VERIFIED,
            format!("a rebuild of the catalog did not end, so it is not known what is lost: run '{verify}'"),
        ));
    }
    let is_lost = loss.damaged > 0 || loss.in_no_pack > 0;
    if let Some(damage) = memory.verification.damages.first().filter(|_| is_lost) {
        return Some(Finding::failed(
            VERIFIED,
            format!(
                "{} is damaged: {}; '{verify}' names all",
                place(damage),
                damage.reason
            ),
        ));
    }
    if loss.in_no_pack > 0 {
        let lost = match loss.in_no_pack {
            1 => "1 needed chunk is lost".to_owned(),
            KnownLoss::COUNTED_MAX => format!("{} or more needed chunks are lost", loss.in_no_pack),
            count => format!("{count} needed chunks are lost"),
        };
        return Some(Finding::failed(
            VERIFIED,
            format!("{lost}: '{verify}' names the files"),
        ));
    }
    let complete = memory.verification.complete_since?;
    Some(Finding::ok(
        VERIFIED,
        format!(
            "all that is older than {} was read since",
            output::second(complete)
        ),
    ))
}

fn place(damage: &Damage) -> String {
    match damage.backup {
        Some(backup) => format!("{} of backup {backup} of {}", damage.file, damage.server),
        None => format!("{} of {}", damage.file, damage.server),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::server;
    use crate::health::State;
    use crate::testing::backup;
    use barmanfs_catalog::AuditMemory;
    use std::path::Path;

    fn at(seconds: i64) -> TimestampMicros {
        TimestampMicros::from_unix_seconds(seconds)
    }

    fn found(settings: &str, memory: &ServerMemory) -> Option<(State, String)> {
        seen(settings, memory, &[], false)
    }

    fn seen(
        settings: &str,
        memory: &ServerMemory,
        backups: &[Backup],
        is_received: bool,
    ) -> Option<(State, String)> {
        let invocation = Invocation::current(Some(Path::new("/etc/b.conf")));
        let seen = Seen {
            backups,
            is_received,
            now: at(100_000),
        };
        let finding = runs(&server(settings), &invocation, memory, &seen)?;
        Some((finding.state, finding.text().unwrap_or_default()))
    }

    /// A task that was killed, and started again.
    fn killed(task: CronTask) -> ServerMemory {
        let mut memory = ran(99_990);
        TaskMemory::begin(&mut memory.tasks, task, at(99_000));
        TaskMemory::begin(&mut memory.tasks, task, at(99_100));
        memory
    }

    #[test]
    fn a_failure_is_over_when_its_work_is_done_or_no_longer_wanted() {
        let streams = "streaming_archiver = on\nslot_name = barmanfs\n";
        let memory = killed(CronTask::ReceiveWal);
        assert_eq!(seen(streams, &memory, &[], false).unwrap().0, State::Failed);
        assert_eq!(seen(streams, &memory, &[], true).unwrap().0, State::Ok);
        let memory = killed(CronTask::Backup);
        let nightly = "backup_schedule = @daily\n";
        assert_eq!(found(nightly, &memory).unwrap().0, State::Failed);
        let mut by_hand = backup(BackupStatus::Done);
        by_hand.begin_time = at(99_500);
        assert_eq!(seen(nightly, &memory, &[by_hand], false).unwrap().0, State::Ok);
        let tests = "boot_test_schedule = @weekly\n";
        assert_eq!(found(tests, &killed(CronTask::Audit)).unwrap().0, State::Ok);
    }

    #[test]
    fn a_clock_that_was_set_back_hides_nothing() {
        let nightly = "backup_schedule = @daily\n";
        assert_eq!(found(nightly, &ran(100_200)).unwrap().0, State::Ok);
        assert_eq!(found(nightly, &ran(200_000)).unwrap().0, State::Failed);
    }

    #[test]
    fn work_for_the_repository_that_fails_again_is_found() {
        let mut memory = RepositoryMemory::default();
        assert_eq!(of_repository(&memory), None);
        for expected in [State::Warning, State::Failed] {
            TaskMemory::begin(&mut memory.tasks, CronTask::Sweep, at(99_000));
            TaskMemory::end(
                &mut memory.tasks,
                CronTask::Sweep,
                at(99_001),
                Err("no".to_owned()),
            );
            assert_eq!(of_repository(&memory).unwrap().state, expected);
        }
    }

    /// What a rebuild has given up may be needed by WAL alone, and then no backup is damaged.
    #[test]
    fn lost_chunks_of_which_no_file_is_named_are_a_failure() {
        let invocation = Invocation::current(Some(Path::new("/etc/b.conf")));
        let mut memory = RepositoryMemory::default();
        memory.verification.complete_since = Some(at(99_000));
        let found = |loss| {
            let finding = verified(&invocation, &memory, loss).unwrap();
            (finding.state, finding.text().unwrap_or_default())
        };
        let lost = |in_no_pack| KnownLoss {
            in_no_pack,
            ..KnownLoss::default()
        };
        assert_eq!(found(lost(0)).0, State::Ok);
        for (count, expected) in [
            (1, "1 needed chunk is lost: '"),
            (7, "7 needed chunks are lost: '"),
            (KnownLoss::COUNTED_MAX, "10000 or more needed chunks are lost: '"),
        ] {
            let (state, text) = found(lost(count));
            assert!(state == State::Failed && text.starts_with(expected), "{text}");
        }
        let (state, text) = found(KnownLoss {
            is_unexamined: true,
            ..KnownLoss::default()
        });
        assert!(state == State::Failed && text.contains("did not end"), "{text}");
        // Nothing may need what is only damaged, and then a sweep frees it.
        let unneeded = KnownLoss {
            damaged: 1,
            ..KnownLoss::default()
        };
        assert_eq!(found(unneeded).0, State::Ok);
    }

    fn ran(seconds: i64) -> ServerMemory {
        ServerMemory {
            ran_at: Some(at(seconds)),
            ..ServerMemory::default()
        }
    }

    #[test]
    fn it_must_run_where_something_is_scheduled() {
        let nightly = "backup_schedule = 0 2 * * *\n";
        let (state, text) = found(nightly, &ServerMemory::default()).unwrap();
        assert!(
            state == State::Failed && text.starts_with("it has never run: run '"),
            "{text}"
        );
        assert_eq!(found(nightly, &ran(99_401)).unwrap().0, State::Ok);
        let (state, text) = found(nightly, &ran(90_000)).unwrap();
        assert!(
            state == State::Failed && text.starts_with("last ran 2 h"),
            "{text}"
        );
        assert_eq!(found("", &ran(90_000)), None);
        let streams = "streaming_archiver = on\nslot_name = barmanfs\n";
        assert_eq!(found(streams, &ServerMemory::default()), None);
        assert_eq!(found(streams, &ran(90_000)).unwrap().0, State::Failed);
    }

    #[test]
    fn a_task_that_fails_is_shown_until_it_succeeds() {
        let mut memory = ran(99_990);
        TaskMemory::begin(&mut memory.tasks, CronTask::Backup, at(99_000));
        TaskMemory::end(
            &mut memory.tasks,
            CronTask::Backup,
            at(99_001),
            Err("it is down".to_owned()),
        );
        let (state, text) = found("backup_schedule = @daily\n", &memory).unwrap();
        assert_eq!(
            (state, &*text),
            (State::Failed, "backup has failed once: it is down")
        );
        TaskMemory::begin(&mut memory.tasks, CronTask::Backup, at(99_100));
        TaskMemory::end(
            &mut memory.tasks,
            CronTask::Backup,
            at(99_101),
            Ok("done".to_owned()),
        );
        assert_eq!(found("backup_schedule = @daily\n", &memory).unwrap().0, State::Ok);
    }

    #[test]
    fn a_difference_counts_until_there_is_a_full_backup_since() {
        let mut taken = backup(BackupStatus::Done);
        taken.kind = BackupKind::Incremental;
        let audit = AuditMemory {
            backup: taken.id,
            at: at(0),
            pages: 3,
            refused: None,
            difference: Some("page 1".to_owned()),
        };
        let memory = ServerMemory {
            difference: Some(audit.clone()),
            audit: Some(audit),
            ..ServerMemory::default()
        };
        let state = |backups: &[Backup]| audited(&memory, backups).map(|finding| finding.state);
        assert_eq!(state(std::slice::from_ref(&taken)), Some(State::Failed));
        taken.kind = BackupKind::Full;
        assert_eq!(state(std::slice::from_ref(&taken)), None);
    }
}
