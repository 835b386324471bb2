//! The checks of a server's WAL as it is stored: the archive as a whole, and the spool in front of it.

use barmanfs_catalog::{Backup, BackupStatus, PartialSegment, Repository};
use barmanfs_pg::wal_name::SegmentName;

use super::Subject;
use super::finding::{Finding, Findings};
use crate::config::{Archiver, ServerConfig};
use crate::error::Error;
use crate::incoming;
use crate::invocation::Invocation;
use crate::output;

const ARCHIVE: &str = "WAL archive";
const SIZE: &str = "wal size";
const RECEIVER: &str = "receive-wal running";
const LEFT: &str = "empty streaming directory";
const QUEUE: &str = "streaming WALs directory";
const NOT_EMPTY: &str = "empty incoming directory";
const INCOMING: &str = "incoming WALs directory";
const SET_ASIDE: &str = "incoming errors";

/// Checks archive and spool. `backups` are the server's own, oldest first.
pub(super) fn check(
    repository: &Repository,
    subject: Subject<'_>,
    backups: &[Backup],
    findings: &mut Findings,
) {
    match spool(repository, subject, findings) {
        Ok(spooled) => archive(repository, subject, backups, &spooled, findings),
        Err(error) => findings.failed(QUEUE, error.to_string()),
    }
    size(repository, backups, findings);
}

/// Whether there is any WAL at all. Says something only if there is none and some is expected.
fn archive(
    repository: &Repository,
    subject: Subject<'_>,
    backups: &[Backup],
    spooled: &[PartialSegment],
    findings: &mut Findings,
) {
    let server = subject.server;
    let newest = match repository.wal(&server.name).newest_segment() {
        Ok(newest) => newest,
        Err(error) => return findings.failed(ARCHIVE, Error::from(error).to_string()),
    };
    let archived_at = newest.as_ref().map(|newest| newest.archived_at);
    let received_at = spooled.iter().map(|segment| segment.modified).max();
    findings.note(|figures| figures.last_wal = archived_at.max(received_at));
    let is_expected = server.archiver != Archiver::Off || server.streaming_archiver;
    let waits = |backup: &Backup| backup.status == BackupStatus::WaitingForWals;
    if is_expected && newest.is_none() && spooled.is_empty() && !backups.iter().any(waits) {
        findings.push(none(subject));
    }
}

fn none(subject: Subject<'_>) -> Finding {
    let name = subject.server.name.as_str();
    let advice = match subject.server.streaming_archiver {
        true => format!(
            "start '{}'",
            subject.invocation.with(&format!("receive-wal {name}"))
        ),
        false => format!("set {}", subject.invocation.archive_command(name)),
    };
    Finding::failed(
        ARCHIVE,
        format!("it is empty, so nothing can be recovered but the ends of backups: {advice}"),
    )
}

/// The WAL since the newest complete backup began: what a recovery may have to replay.
fn size(repository: &Repository, backups: &[Backup], findings: &mut Findings) {
    let is_done = |backup: &&Backup| backup.status == BackupStatus::Done && backup.is_of_current_history();
    let last = backups.iter().rfind(is_done);
    let Some((last, first)) = last.and_then(|last| Some((last, first_segment(last)?))) else {
        return;
    };
    match repository.wal(last.archive()).totals_from(first) {
        Ok(totals) => {
            findings.note(|figures| figures.wal_bytes = Some(totals.new_stored_bytes));
            let files = usize::try_from(totals.files).unwrap_or(usize::MAX);
            findings.ok(
                SIZE,
                format!(
                    "{} for {} since backup {}",
                    output::bytes(totals.new_stored_bytes),
                    output::count(files, "file"),
                    last.id
                ),
            );
        }
        Err(error) => findings.failed(SIZE, Error::from(error).to_string()),
    }
}

/// The segment in which the replay of a backup begins.
fn first_segment(backup: &Backup) -> Option<SegmentName> {
    let (timeline, start) = backup.timeline.zip(backup.start_lsn)?;
    Some(SegmentName::from_lsn(timeline, start, backup.segment_size))
}

/// Checks the spool. Returns what is in it.
fn spool(
    repository: &Repository,
    subject: Subject<'_>,
    findings: &mut Findings,
) -> Result<Vec<PartialSegment>, Error> {
    let server = subject.server;
    let spooled = repository.receiving(&server.name)?;
    let receiver = repository.receiver(&server.name)?;
    findings.note(|figures| {
        figures.spooled = Some(spooled.len());
        figures.is_received = Some(receiver.is_some());
    });
    let receive = subject.invocation.with(&format!("receive-wal {}", server.name));
    if let Some(receiver) = &receiver {
        findings.ok(RECEIVER, receiver.description.clone());
    } else if server.streaming_archiver {
        findings.failed(RECEIVER, format!("start '{receive}'"));
    }
    let is_used = server.streaming_archiver || receiver.is_some();
    findings.extend(judge(&spooled, is_used, server.max_incoming_wals_queue, &receive));
    directory(server, subject.invocation, findings);
    Ok(spooled)
}

/// Checks the directory into which WAL is copied.
fn directory(server: &ServerConfig, invocation: &Invocation, findings: &mut Findings) {
    let Some(directory) = &server.incoming_wals_directory else {
        return;
    };
    let place = directory.display();
    let archive = invocation.with(&format!("archive-wal {}", server.name));
    let waiting = match incoming::waiting(directory) {
        Ok(names) => names.len(),
        Err(error) => return findings.failed(INCOMING, format!("{place} cannot be read: {error}")),
    };
    let files = output::count(waiting, "file");
    if server.archiver == Archiver::Off && waiting > 0 {
        findings.failed(NOT_EMPTY, format!("{files} in {place}, and archiver is off"));
    } else if let Some(max) = server.max_incoming_wals_queue.filter(|max| waiting > *max) {
        findings.failed(
            INCOMING,
            format!("{files} in {place}, max_incoming_wals_queue is {max}: see what '{archive}' logs"),
        );
    }
    if server.archiver != Archiver::Off
        && let Ok(Some(name)) = incoming::stuck(directory)
    {
        findings.failed(
            INCOMING,
            format!(
                "{} in {place} has waited for more than {}: see what '{archive}' says",
                output::printable(name.as_encoded_bytes()),
                output::duration(incoming::STUCK_AFTER)
            ),
        );
    }
    let errors = incoming::errors_directory(directory);
    let set_aside = incoming::waiting(&errors).map_or(0, |names| names.len());
    if set_aside > 0 {
        findings.failed(
            SET_ASIDE,
            format!(
                "{} in {} could not be archived: look at them, and remove them",
                output::count(set_aside, "file"),
                errors.display()
            ),
        );
    }
}

/// `is_used` is whether WAL is received as a stream, or should be.
fn judge(
    spooled: &[PartialSegment],
    is_used: bool,
    queue_max: Option<usize>,
    receive: &str,
) -> Option<Finding> {
    let complete = spooled.iter().filter(|segment| segment.complete).count();
    // Where streaming was given up, the last segment was not complete, and the archive has it by another way.
    let left = complete > 0 || spooled.len() > 1;
    if !is_used && left {
        return Some(Finding::failed(
            LEFT,
            format!(
                "{} of an earlier receive-wal are not archived: '{receive}' archives them",
                output::count(spooled.len(), "segment")
            ),
        ));
    }
    queue_max.filter(|max| complete > *max).map(|max| {
        Finding::failed(
            QUEUE,
            format!(
                "{} received and not archived, max_incoming_wals_queue is {max}: see what '{receive}' logs",
                output::count(complete, "segment")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::State;
    use barmanfs_pg::TimestampMicros;

    fn spooled(complete: usize, partial: usize) -> Vec<PartialSegment> {
        let one = |complete| PartialSegment {
            name: "000000010000000000000007".parse().unwrap(),
            path: "/spool".into(),
            size_bytes: 1 << 24,
            modified: TimestampMicros::from_unix_seconds(1),
            complete,
        };
        let complete = std::iter::repeat_n(one(true), complete);
        complete.chain(std::iter::repeat_n(one(false), partial)).collect()
    }

    fn found(
        complete: usize,
        partial: usize,
        is_used: bool,
        queue_max: Option<usize>,
    ) -> Option<&'static str> {
        let found = judge(
            &spooled(complete, partial),
            is_used,
            queue_max,
            "receive-wal main",
        );
        assert!(
            found
                .as_ref()
                .is_none_or(|finding| finding.state == State::Failed)
        );
        found.map(|finding| finding.name)
    }

    #[test]
    fn what_nobody_will_archive_is_found() {
        assert_eq!(found(0, 0, false, None), None);
        assert_eq!(found(0, 1, false, None), None);
        assert_eq!(found(1, 0, false, None), Some(LEFT));
        assert_eq!(found(0, 2, false, None), Some(LEFT));
        assert_eq!(found(3, 1, true, None), None);
    }

    #[test]
    fn more_segments_than_allowed_wait() {
        assert_eq!(found(3, 1, true, Some(3)), None);
        assert_eq!(found(4, 1, true, Some(3)), Some(QUEUE));
        assert_eq!(found(1, 1, true, Some(0)), Some(QUEUE));
    }
}
