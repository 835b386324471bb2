//! The checks of a server's stored backups and WAL.

use std::time::SystemTime;

use barmanfs_catalog::recovery::{Gap, Target, TimelineReport, Unreachable};
use barmanfs_catalog::{Backup, BackupStatus, MinimalStretch, Repository};

use super::doubts::Doubts;
use super::figures::NewestBackup;
use super::finding::{Finding, Findings};
use super::{
    Subject, backups, clones, cron, losses, recoverable, reliability, retention, snapshots, wal_store,
};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::forks;
use crate::output;
use crate::versions::UNKNOWN_WAL;

/// The check of holes in the archive.
const GAPS: &str = "WAL without gaps";

/// All statuses of a backup.
const BACKUP_STATUSES: [BackupStatus; 4] = [
    BackupStatus::Started,
    BackupStatus::WaitingForWals,
    BackupStatus::Done,
    BackupStatus::Failed,
];

/// Checks backups and WAL. Returns the server's timelines, if they can be read.
pub(super) fn check(
    repository: &Repository,
    subject: Subject<'_>,
    findings: &mut Findings,
) -> Option<TimelineReport> {
    let server = subject.server;
    let stored = repository.backups(&server.name).map_err(Error::from);
    if let Some(stored) = findings.result("catalog", stored, |_| None) {
        check_backups(repository, subject, stored, findings);
    }
    retention::check(repository, subject, findings);
    let timelines = timelines(repository, subject, findings);
    version(repository, subject, findings);
    unreadable_files(repository, server, findings);
    damaged_wal(repository, subject, findings);
    quarantine(repository, server, findings);
    open_forks(repository, server, findings);
    clones::check(repository, subject, findings);
    timelines
}

fn check_backups(
    repository: &Repository,
    subject: Subject<'_>,
    mut stored: Vec<Backup>,
    findings: &mut Findings,
) {
    let Subject { server, invocation } = subject;
    // Backups of clones do not make the server itself safer.
    stored.retain(Backup::is_of_server);
    let doubts = doubts(repository, &stored, findings);
    note(&stored, &doubts, findings);
    findings.extend(backups::findings(&backups::Facts {
        server: server.name.as_str(),
        invocation,
        backups: &stored,
        limits: &server.limits,
        minimum_redundancy: server.minimum_redundancy,
        doubts: &doubts,
        is_passive: server.is_passive(),
        now: SystemTime::now().into(),
    }));
    waiting(repository, &stored, findings);
    failed(&stored, findings);
    findings.extend(reliability::findings(subject, &stored, &doubts));
    findings.extend(reliability::test_age(
        subject,
        doubts.last_test.as_ref(),
        SystemTime::now().into(),
    ));
    checksums(subject, &stored, findings);
    snapshots::check(repository, subject, &stored, findings);
    wal_store::check(repository, subject, &stored, findings);
    cron::check(repository, subject, &stored, SystemTime::now().into(), findings);
}

/// Notes what is known about a server's own backups.
fn note(stored: &[Backup], doubts: &Doubts, findings: &mut Findings) {
    let of = |status| stored.iter().filter(move |backup| backup.status == status);
    let done = of(BackupStatus::Done).filter(|backup| backup.is_of_current_history());
    let ended = |backup: &Backup| backup.end_time.unwrap_or(backup.begin_time);
    findings.note(|figures| {
        figures.backups = BACKUP_STATUSES
            .map(|status| (status, of(status).count()))
            .to_vec();
        figures.newest = done.clone().next_back().map(|backup| NewestBackup {
            began: backup.begin_time,
            ended: ended(backup),
            logical_bytes: backup.logical_bytes,
            sent_bytes: backup.sent_bytes,
            new_stored_bytes: backup.new_stored_bytes,
        });
        figures.oldest_end = done.clone().next().map(ended);
        figures.damaged = Some(doubts.damaged.len());
        figures.boot_test.clone_from(&doubts.last_test);
    });
}

/// The doubts about these backups. An error becomes a finding.
fn doubts(repository: &Repository, backups: &[Backup], findings: &mut Findings) -> Doubts {
    Doubts::find(repository, backups).unwrap_or_else(|error| {
        findings.failed("damage of backups", error.to_string());
        Doubts::default()
    })
}

fn waiting(repository: &Repository, backups: &[Backup], findings: &mut Findings) {
    const NAME: &str = "backups have their WAL";
    for backup in backups
        .iter()
        .filter(|backup| backup.status == BackupStatus::WaitingForWals)
    {
        let missing = repository.missing_wal(backup).unwrap_or_default();
        let first = missing
            .first()
            .map(|segment| format!("{segment} is not archived"))
            .unwrap_or_default();
        findings.failed(NAME, format!("{} is WAITING_FOR_WALS: {first}", backup.id));
    }
}

/// A failure is not a problem any more if a later backup is complete.
fn failed(backups: &[Backup], findings: &mut Findings) {
    const NAME: &str = "failed backups";
    let last = backups
        .iter()
        .rfind(|backup| backup.status != BackupStatus::Started);
    match last.filter(|backup| backup.status == BackupStatus::Failed) {
        Some(backup) => {
            let reason = backup.error.as_deref().unwrap_or("the reason is not known");
            findings.failed(
                NAME,
                format!(
                    "the last, {}: {}",
                    backup.id,
                    output::printable(reason.as_bytes())
                ),
            );
        }
        None => {
            let count = backups
                .iter()
                .filter(|backup| backup.status == BackupStatus::Failed)
                .count();
            findings.ok(NAME, format!("{count}, all before the last complete one"));
        }
    }
}

/// Damaged pages that the server found while sending them. This is a problem of the server.
fn checksums(subject: Subject<'_>, backups: &[Backup], findings: &mut Findings) {
    const NAME: &str = "page checksums";
    let last = backups.iter().rfind(|backup| backup.is_complete());
    if let Some(backup) = last.filter(|backup| !backup.checksum_failures.is_empty()) {
        let show = format!("show-backup {} {}", subject.server.name, backup.id);
        findings.failed(
            NAME,
            format!(
                "the server has damaged pages: '{}' lists them",
                subject.invocation.with(&show)
            ),
        );
    }
}

fn timelines(
    repository: &Repository,
    subject: Subject<'_>,
    findings: &mut Findings,
) -> Option<TimelineReport> {
    match repository.timelines(&subject.server.name) {
        Ok(report) => {
            findings.note(|figures| {
                figures.earliest = report.earliest.as_ref().and_then(|state| state.time);
                figures.newest_state = report.newest.as_ref().and_then(|state| state.time);
                figures.gaps = Some(report.gaps.iter().filter(|gap| gap.matters()).count());
            });
            gaps(&report, subject, findings);
            minimal(&report, findings);
            recoverable::check(repository, &report, subject, findings);
            Some(report)
        }
        Err(error) => {
            findings.failed(GAPS, Error::from(error).to_string());
            None
        }
    }
}

/// WAL of a PostgreSQL version that this release does not know, or that an earlier release did not know.
fn version(repository: &Repository, subject: Subject<'_>, findings: &mut Findings) {
    const NAME: &str = "PostgreSQL's version of the archived WAL";
    let name = &subject.server.name;
    let unknown = repository.unknown_segments(name);
    let outdated = repository.outdated_segments(name);
    match unknown.and_then(|unknown| Ok((unknown, outdated?))) {
        Ok((Some((newest, count)), _)) => {
            let count = output::count(count, "segment");
            findings.failed(NAME, format!("{count}, the newest is {newest}, {UNKNOWN_WAL}"));
        }
        Ok((None, 0)) => findings.ok(NAME, None),
        Ok((None, outdated)) => findings.ok(
            NAME,
            format!(
                "an earlier release read {outdated} segments and looked for less: '{}' reads them again",
                subject.invocation.with(&format!("index-wal {name}"))
            ),
        ),
        Err(error) => findings.failed(NAME, Error::from(error).to_string()),
    }
}

/// No recovery gets past a start with wal_level = minimal: the history after it needs a new backup.
fn minimal(report: &TimelineReport, findings: &mut Findings) {
    const NAME: &str = "wal_level of the archived WAL";
    let matters = |stretch: &&MinimalStretch| stretch.matters() && stretch.backup_after.is_none();
    match report.minimal.iter().rfind(matters) {
        None => findings.ok(NAME, None),
        Some(stretch) => findings.failed(
            NAME,
            format!(
                "nothing can be recovered {}; take a backup now",
                losses::behind(stretch)
            ),
        ),
    }
}

/// The history after a gap cannot be recovered, up to the next backup.
fn gaps(report: &TimelineReport, subject: Subject<'_>, findings: &mut Findings) {
    let gaps: Vec<&Gap> = report.gaps.iter().filter(|gap| gap.matters()).collect();
    let Some(gap) = gaps.last() else {
        return findings.ok(GAPS, None);
    };
    let see = subject
        .invocation
        .with(&format!("timeline {}", subject.server.name));
    let advice = match gap.backup_after {
        None => format!("; take a backup now, and see '{see}'"),
        Some(_) => format!("; see '{see}'"),
    };
    let count = output::count(gaps.len(), "gap");
    findings.failed(
        GAPS,
        format!("{count}, the last: nothing {}{advice}", losses::lost(gap)),
    );
}

/// Unreadable history files. Their content is ignored wherever it would matter.
fn unreadable_files(repository: &Repository, server: &ServerConfig, findings: &mut Findings) {
    const NAME: &str = "history files";
    match repository.unreadable_files(&server.name) {
        Ok(files) => match files.first() {
            None => findings.ok(NAME, None),
            Some(first) => findings.push(
                Finding::failed(
                    NAME,
                    format!(
                        "{} cannot be read: {}",
                        first.name,
                        output::printable(first.reason.as_bytes())
                    ),
                )
                .hint(&first.advice),
            ),
        },
        Err(error) => findings.failed(NAME, Error::from(error).to_string()),
    }
}

/// Archived WAL that is known to be damaged: it fails while it blocks the way to the newest state.
fn damaged_wal(repository: &Repository, subject: Subject<'_>, findings: &mut Findings) {
    const NAME: &str = "damage of WAL";
    let server = &subject.server.name;
    let damaged = match repository.damaged_segments(server) {
        Ok(damaged) => damaged,
        Err(error) => return findings.failed(NAME, Error::from(error).to_string()),
    };
    let (Some(first), Some(last)) = (damaged.first(), damaged.last()) else {
        return findings.ok(NAME, None);
    };
    let which = match damaged.len() {
        1 => format!("segment {first} cannot be read, and no recovery leads over it"),
        count => format!(
            "{count} segments cannot be read, from {first} to {last}, and no recovery leads over them"
        ),
    };
    let with = |words: &str| subject.invocation.with(words);
    let blocks = matches!(
        repository.plan(server, &Target::Now.into()),
        Ok(Err(Unreachable::Damaged { .. }))
    );
    let found = |text: String| match blocks {
        true => Finding::failed(NAME, text),
        // A newer backup leads past it, and points in time before it are lost.
        false => Finding::warning(NAME, text),
    };
    findings.push(found(format!(
            "{which}: '{}' stores it again where somebody still has it, as the server in its pg_wal; else '{}' leads past it; \
             '{}' names all",
            with(&format!("wal-archive {server} PATH")),
            with(&format!("backup {server}")),
            with(&format!("timeline {server}"))
        ),
    ));
}

/// If a timeline has two histories, WAL is refused until somebody decides.
fn open_forks(repository: &Repository, server: &ServerConfig, findings: &mut Findings) {
    const NAME: &str = "one history";
    match repository.open_forks(&server.name) {
        Ok(forks) => {
            findings.note(|figures| figures.open_forks = Some(forks.len()));
            match forks.first() {
                None => findings.ok(NAME, None),
                Some(fork) => findings.push(
                    Finding::failed(NAME, format!("history changed: {fork}"))
                        .hint(forks::advice(&server.name, fork)),
                ),
            }
        }
        Err(error) => findings.failed(NAME, Error::from(error).to_string()),
    }
}

fn quarantine(repository: &Repository, server: &ServerConfig, findings: &mut Findings) {
    const NAME: &str = "quarantined WAL";
    match repository.wal(&server.name).quarantined() {
        Ok(files) => {
            findings.note(|figures| figures.quarantined = Some(files.len()));
            match files.last() {
                None => findings.ok(NAME, "there is none".to_owned()),
                Some(last) => findings.failed(
                    NAME,
                    format!(
                        "{}, the last is {} of {}: somebody else archives as '{}'",
                        output::count(files.len(), "file"),
                        last.file.name,
                        output::second(last.file.archived_at),
                        server.name
                    ),
                ),
            }
        }
        Err(error) => findings.failed(NAME, Error::from(error).to_string()),
    }
}
