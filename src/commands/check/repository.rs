//! The checks that need no server.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use barmanfs_catalog::recovery::{Gap, TimelineReport};
use barmanfs_catalog::{Backup, BackupStatus, MinimalStretch, Repository, UnreadPack};

use super::{Context, Lines, backups, doubtful};
use crate::commands::doubts::Doubts;
use crate::commands::{history, timeline};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::invocation::Invocation;
use crate::output;
use crate::versions::UNKNOWN_WAL;

/// Less than this free, and the next few packs do not fit.
const FREE_BYTES_MIN: u64 = 256 << 20;
/// The same for files: each pack is one, and each lock.
const FREE_FILES_MIN: u64 = 1000;
/// The check of holes in the archive.
const GAPS: &str = "WAL without gaps";

/// What is stored, for the checks that hold the server against it.
#[derive(Debug)]
pub(super) struct Stored {
    /// The repository.
    pub(super) repository: Repository,
    /// What it has of the server's timelines; none where that cannot be read.
    pub(super) timelines: Option<TimelineReport>,
}

/// Looks at the repository and at what it has of the server; gives what is stored when it can be opened.
pub(super) fn check(context: &Context<'_>, lines: &mut Lines) -> Option<Stored> {
    let Context {
        app,
        server,
        invocation,
    } = context;
    let path = &app.config.repository;
    let shown = |_: &Repository| Some(path.display().to_string());
    let repository = lines.result("repository", app.repository(), shown)?;
    let writable = app
        .refuse_foreign_root()
        .and_then(|()| repository.try_writing().map_err(Error::from));
    lines.result("repository writable", writable, |()| None);
    file_system(path, lines);
    free_space(path, lines);
    catalog_file(&repository, invocation, lines);
    // First: this enters what the catalog has lost, and all that follows is of the whole.
    unread_packs(&repository, lines);
    misshapen_packs(&repository, lines);
    let backups = repository.backups(&server.name).map_err(Error::from);
    if let Some(mut backups) = lines.result("catalog", backups, |_| None) {
        // What became of a clone says nothing about how safe the server is.
        backups.retain(Backup::is_of_server);
        let doubts = doubts(&repository, &backups, lines);
        lines.extend(backups::findings(&backups::Facts {
            server: server.name.as_str(),
            invocation,
            backups: &backups,
            limits: &server.limits,
            minimum_redundancy: server.minimum_redundancy,
            doubts: &doubts,
            now: SystemTime::now().into(),
        }));
        waiting(&repository, &backups, lines);
        failed(&backups, lines);
        lines.extend(doubtful::findings(
            invocation,
            server.name.as_str(),
            &backups,
            &doubts,
        ));
        checksums(context, &backups, lines);
    }
    let timelines = timelines(&repository, context, lines);
    version(&repository, context, lines);
    unreadable_files(&repository, server, lines);
    quarantine(&repository, server, lines);
    forks(&repository, server, lines);
    Some(Stored {
        repository,
        timelines,
    })
}

/// The catalog works on a network file system, but for one host at a time.
fn file_system(path: &Path, lines: &mut Lines) {
    const NAME: &str = "file system";
    match rustix::fs::statfs(path) {
        Ok(state) => {
            if let Some(network) = network_file_system(state.f_type) {
                lines.ok(
                    NAME,
                    format!("{network}: the repository must be used by this host alone, mounts included"),
                );
            }
        }
        Err(error) => lines.failed(NAME, io::Error::from(error).to_string()),
    }
}

/// The network file system with this number, which is from Linux's `magic.h`.
fn network_file_system(number: rustix::fs::FsWord) -> Option<&'static str> {
    match number {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x00c3_6400 => Some("Ceph"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x0102_1997 => Some("9p"),
        _ => None,
    }
}

fn free_space(path: &Path, lines: &mut Lines) {
    const NAME: &str = "free space";
    match rustix::fs::statvfs(path) {
        Ok(state) => {
            let free = state.f_bavail.saturating_mul(state.f_frsize);
            // Some file systems have no limit of files, and say 0.
            let has_files = state.f_files == 0 || state.f_favail >= FREE_FILES_MIN;
            match (free >= FREE_BYTES_MIN, has_files) {
                (true, true) => lines.ok(NAME, output::bytes(free)),
                (true, false) => lines.failed(NAME, format!("only {} files can be made", state.f_favail)),
                (false, _) => lines.failed(NAME, format!("only {} left", output::bytes(free))),
            }
        }
        Err(error) => lines.failed(NAME, io::Error::from(error).to_string()),
    }
}

/// What is known of these backups; nothing where it cannot be found out, which is told.
fn doubts(repository: &Repository, backups: &[Backup], lines: &mut Lines) -> Doubts {
    Doubts::find(repository, backups).unwrap_or_else(|error| {
        lines.failed("damage of backups", error.to_string());
        Doubts::default()
    })
}

fn waiting(repository: &Repository, backups: &[Backup], lines: &mut Lines) {
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
        lines.failed(NAME, format!("{} is WAITING_FOR_WALS: {first}", backup.id));
    }
}

/// A failure that a later backup made good is no problem any more.
fn failed(backups: &[Backup], lines: &mut Lines) {
    const NAME: &str = "failed backups";
    let last = backups
        .iter()
        .rfind(|backup| backup.status != BackupStatus::Started);
    match last.filter(|backup| backup.status == BackupStatus::Failed) {
        Some(backup) => {
            let reason = backup.error.as_deref().unwrap_or("the reason is not known");
            lines.failed(
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
            lines.ok(NAME, format!("{count}, all before the last complete one"));
        }
    }
}

/// The server found them while it sent its pages: it is the server that has to be looked after.
fn checksums(context: &Context<'_>, backups: &[Backup], lines: &mut Lines) {
    const NAME: &str = "page checksums";
    let last = backups.iter().rfind(|backup| backup.is_complete());
    if let Some(backup) = last.filter(|backup| !backup.checksum_failures.is_empty()) {
        let show = format!("show-backup {} {}", context.server.name, backup.id);
        lines.failed(
            NAME,
            format!(
                "the server has damaged pages: '{}' lists them",
                context.invocation.with(&show)
            ),
        );
    }
}

fn timelines(repository: &Repository, context: &Context<'_>, lines: &mut Lines) -> Option<TimelineReport> {
    match repository.timelines(&context.server.name) {
        Ok(report) => {
            gaps(&report, context, lines);
            minimal(&report, lines);
            Some(report)
        }
        Err(error) => {
            lines.failed(GAPS, Error::from(error).to_string());
            None
        }
    }
}

/// WAL of a PostgreSQL version that this release does not know, or an earlier one did not.
fn version(repository: &Repository, context: &Context<'_>, lines: &mut Lines) {
    const NAME: &str = "PostgreSQL's version of the archived WAL";
    let name = &context.server.name;
    let unknown = repository.unknown_segments(name);
    let outdated = repository.outdated_segments(name);
    match unknown.and_then(|unknown| Ok((unknown, outdated?))) {
        Ok((Some((newest, count)), _)) => {
            let count = output::count(usize::try_from(count).unwrap_or(usize::MAX), "segment");
            lines.failed(NAME, format!("{count}, the newest is {newest}, {UNKNOWN_WAL}"));
        }
        Ok((None, 0)) => lines.ok(NAME, None),
        Ok((None, outdated)) => lines.ok(
            NAME,
            format!(
                "an earlier release read {outdated} segments and looked for less: '{}' reads them again",
                context.invocation.with(&format!("index-wal {name}"))
            ),
        ),
        Err(error) => lines.failed(NAME, Error::from(error).to_string()),
    }
}

/// No recovery gets past a start with wal_level = minimal: what lies behind it needs a new backup.
fn minimal(report: &TimelineReport, lines: &mut Lines) {
    const NAME: &str = "wal_level of the archived WAL";
    let matters = |stretch: &&MinimalStretch| stretch.matters() && stretch.backup_after.is_none();
    match report.minimal.iter().rfind(matters) {
        None => lines.ok(NAME, None),
        Some(stretch) => lines.failed(
            NAME,
            format!(
                "nothing can be recovered {}; take a backup now",
                timeline::behind(stretch)
            ),
        ),
    }
}

/// What lies behind a gap cannot be recovered, up to the next backup.
fn gaps(report: &TimelineReport, context: &Context<'_>, lines: &mut Lines) {
    let gaps: Vec<&Gap> = report.gaps.iter().filter(|gap| gap.matters()).collect();
    let Some(gap) = gaps.last() else {
        return lines.ok(GAPS, None);
    };
    let see = context
        .invocation
        .with(&format!("timeline {}", context.server.name));
    let advice = match gap.backup_after {
        None => format!("; take a backup now, and see '{see}'"),
        Some(_) => format!("; see '{see}'"),
    };
    let count = output::count(gaps.len(), "gap");
    lines.failed(
        GAPS,
        format!("{count}, the last: nothing {}{advice}", timeline::lost(gap)),
    );
}

/// Larger catalogs are looked through by 'verify' alone: checks run every few minutes.
const CATALOG_BYTES_MAX: u64 = 512 << 20;

fn catalog_file(repository: &Repository, invocation: &Invocation, lines: &mut Lines) {
    const NAME: &str = "catalog file";
    if repository.catalog_bytes() > CATALOG_BYTES_MAX {
        return lines.ok(
            NAME,
            format!("large: '{}' looks through it", invocation.with("verify")),
        );
    }
    match repository.catalog_faults() {
        Ok(faults) => match faults.first() {
            None => lines.ok(NAME, None),
            Some(first) => lines.failed(
                NAME,
                format!(
                    "damaged ({}): make it again from the packs with '{}'",
                    output::printable(first.as_bytes()),
                    invocation.with("rebuild-catalog")
                ),
            ),
        },
        Err(error) => lines.failed(NAME, Error::from(error).to_string()),
    }
}

/// What is in them is missing wherever it is looked for, and recovery cannot tell where the archive ends.
fn unread_packs(repository: &Repository, lines: &mut Lines) {
    packs("packs are read", repository.unread_packs(), lines);
}

/// What is in them cannot be read back.
fn misshapen_packs(repository: &Repository, lines: &mut Lines) {
    packs("packs are whole", repository.misshapen_packs(), lines);
}

fn packs(name: &'static str, found: barmanfs_catalog::Result<Vec<UnreadPack>>, lines: &mut Lines) {
    match found {
        Ok(found) => match found.first() {
            None => lines.ok(name, None),
            Some(first) => lines.failed(
                name,
                format!(
                    "{} not, the first is {}: {}",
                    output::count(found.len(), "pack"),
                    output::printable(first.pack.as_bytes()),
                    output::printable(first.reason.as_bytes())
                ),
            ),
        },
        Err(error) => lines.failed(name, Error::from(error).to_string()),
    }
}

/// What they say is left out, wherever it would matter.
fn unreadable_files(repository: &Repository, server: &ServerConfig, lines: &mut Lines) {
    const NAME: &str = "history files";
    match repository.unreadable_files(&server.name) {
        Ok(files) => match files.first() {
            None => lines.ok(NAME, None),
            Some(first) => lines.failed(
                NAME,
                format!(
                    "{} cannot be read: {}. {}",
                    first.name,
                    output::printable(first.reason.as_bytes()),
                    first.advice
                ),
            ),
        },
        Err(error) => lines.failed(NAME, Error::from(error).to_string()),
    }
}

/// Where a timeline has two histories, WAL is refused until somebody decides.
fn forks(repository: &Repository, server: &ServerConfig, lines: &mut Lines) {
    const NAME: &str = "one history";
    match repository.open_forks(&server.name) {
        Ok(forks) => match forks.first() {
            None => lines.ok(NAME, None),
            Some(fork) => lines.failed(
                NAME,
                format!("history changed: {fork}. {}", history::advice(&server.name, fork)),
            ),
        },
        Err(error) => lines.failed(NAME, Error::from(error).to_string()),
    }
}

fn quarantine(repository: &Repository, server: &ServerConfig, lines: &mut Lines) {
    const NAME: &str = "quarantined WAL";
    match repository.wal(&server.name).quarantined() {
        Ok(files) => match files.last() {
            None => lines.ok(NAME, "there is none".to_owned()),
            Some(last) => lines.failed(
                NAME,
                format!(
                    "{}, the last is {} of {}: somebody else archives as '{}'",
                    output::count(files.len(), "file"),
                    last.file.name,
                    output::second(last.file.archived_at),
                    server.name
                ),
            ),
        },
        Err(error) => lines.failed(NAME, Error::from(error).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_named() {
        assert_eq!(network_file_system(0x6969), Some("NFS"));
        // ext4
        assert_eq!(network_file_system(0xef53), None);
    }
}
