//! Derives findings from the facts.

use std::time::Duration;

use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};

use super::command::{self, Call};
use super::facts::{Arrival, Facts, Here};
use crate::config::Archiver;
use crate::health::finding::Finding;
use crate::output;

/// How long a completed segment may take to arrive.
const GRACE_MICROS: i64 = 60 * 1_000_000;
/// How far in the future a file's time may be: the server's files may come from another host.
const AHEAD_MICROS_MAX: i64 = 300 * 1_000_000;
/// Number of missing segments that is a failure if the times of the server's files are unknown: more than a busy server
/// writes while one `archive_command` runs.
const LAG_SEGMENTS: usize = 16;

const MODE: &str = "archive_mode";
const COMMAND: &str = "archive_command";
const ERRORS: &str = "archiver errors";
const ARCHIVED: &str = "archived segments";
const WAITING: &str = "waiting for archive_command";
const CONTINUOUS: &str = "continuous archiving";
const TIMELINE: &str = "timeline";
const WAL_AGE: &str = "wal maximum age";

/// All findings about the arrival of WAL.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let by_command = mode(facts, &mut findings);
    if by_command && facts.runs_archiver() {
        findings.push(archive_command(facts));
        findings.extend(errors(facts));
        findings.extend(archived(facts));
        findings.extend(waiting(facts));
    }
    if by_command || facts.streams {
        findings.extend(timeline(facts));
        findings.extend(arrived(facts));
        findings.extend(wal_age(facts));
    }
    findings
}

/// Adds the way in which WAL arrives. Returns whether it comes through an `archive_command`, of this server or of its
/// primary.
fn mode(facts: &Facts, findings: &mut Vec<Finding>) -> bool {
    let off = facts.settings.archive_mode == "off";
    let serves_us = || !off && called(facts) != Call::Other;
    let expected = match facts.archiver {
        Archiver::On => true,
        Archiver::Off => false,
        // A server that streams need not archive as well, or may archive to another place.
        Archiver::Auto => !facts.streams || serves_us(),
    };
    let line = match (expected, off) {
        (true, true) => Finding::failed(MODE, "it is off: set archive_mode = on and restart the server"),
        (true, false) if !facts.runs_archiver() => Finding::ok(
            MODE,
            format!(
                "{}: a standby archives only with 'always', so WAL must come from its primary",
                facts.settings.archive_mode
            ),
        ),
        (true, false) => Finding::ok(MODE, facts.settings.archive_mode.clone()),
        (false, _) if facts.streams => Finding::ok(MODE, "WAL comes by receive-wal alone"),
        (false, _) => Finding::ok(
            MODE,
            "archiver = off: backups bring their WAL, there is no recovery to a later time",
        ),
    };
    findings.push(line);
    expected && !off
}

fn called(facts: &Facts) -> Call {
    if facts.settings.archive_library.is_empty() {
        command::read(&facts.settings.archive_command, &facts.server)
    } else {
        Call::Other
    }
}

fn archive_command(facts: &Facts) -> Finding {
    let wanted = facts.invocation.archive_command(&facts.server);
    let (command, library) = (&facts.settings.archive_command, &facts.settings.archive_library);
    let shown = output::printable(command.as_bytes());
    if !library.is_empty() {
        let library = output::printable(library.as_bytes());
        return Finding::warning(
            COMMAND,
            format!(
                "the server archives with archive_library = '{library}', which does not call barmanfs: set it to '' and {wanted}"
            ),
        );
    }
    if command.is_empty() || command == "(disabled)" {
        return Finding::failed(COMMAND, format!("there is none: set {wanted}"));
    }
    match called(facts) {
        Call::Ours => Finding::ok(COMMAND, shown),
        Call::Other => Finding::warning(
            COMMAND,
            format!("'{shown}' does not call barmanfs, as far as its words tell: set {wanted}"),
        ),
        Call::OtherServer(name) => Finding::failed(
            COMMAND,
            format!(
                "'{shown}' archives as server '{}', and this is '{}': set {wanted}",
                output::printable(name.as_bytes()),
                facts.server
            ),
        ),
        Call::Unchecked => Finding::warning(
            COMMAND,
            format!(
                "in '{shown}' something behind barmanfs decides about success, so that PostgreSQL may remove a segment \
                 that is not archived: set {wanted}"
            ),
        ),
        Call::WithoutPath => Finding::failed(COMMAND, format!("'{shown}' does not pass %p: set {wanted}")),
    }
}

fn errors(facts: &Facts) -> Option<Finding> {
    let stats = facts.archiver_stats.as_ref()?;
    let Some(failed) = stats
        .last_failed_time
        .filter(|failed| stats.last_archived_time.is_none_or(|archived| *failed > archived))
    else {
        return Some(Finding::ok(ERRORS, "there are none now"));
    };
    let name = stats.last_failed_wal.as_deref().unwrap_or_default();
    Some(Finding::failed(
        ERRORS,
        format!(
            "{} could not be archived at {}, {} failures in all: the server's log says why",
            output::printable(name.as_bytes()),
            output::second(failed),
            stats.failed_count
        ),
    ))
}

/// The last file that the server reports as archived must be here, because `wal-archive` returns only when it is.
fn archived(facts: &Facts) -> Option<Finding> {
    let (stats, here) = (facts.archiver_stats.as_ref()?, facts.here.as_ref()?);
    let Some(last) = &stats.last_archived_wal else {
        return Some(Finding::ok(
            ARCHIVED,
            "the server has archived none since its statistics began",
        ));
    };
    let last = output::printable(last.as_bytes());
    let since = stats.last_archived_time;
    let at = since
        .map(|time| format!(" at {}", output::second(time)))
        .unwrap_or_default();
    if here.has_last_archived {
        return Some(Finding::ok(ARCHIVED, format!("{last}{at}")));
    }
    let said = format!(
        "the server says that it archived {last}{at} ({} in all), and it is not here",
        output::count(stats.archived_count, "file")
    );
    let remedy = format!(
        "set {}, run 'SELECT pg_switch_wal()', take a backup and check again",
        facts.invocation.archive_command(&facts.server)
    );
    Some(if facts.is_recent(since) {
        Finding::warning(ARCHIVED, format!("{said} yet: {remedy}"))
    } else {
        Finding::failed(ARCHIVED, format!("{said}: {remedy}"))
    })
}

/// Files that wait for the server's `archive_command`.
fn waiting(facts: &Facts) -> Option<Finding> {
    let ready = facts.ready.as_ref()?;
    let Some((name, since)) = &ready.oldest else {
        return Some(Finding::ok(WAITING, "there are none"));
    };
    let count = output::count(ready.count, "file");
    let text = format!(
        "{count}, {} since {}",
        output::printable(name.as_bytes()),
        output::second(*since)
    );
    let progress = facts
        .archiver_stats
        .as_ref()
        .and_then(|stats| stats.last_archived_time);
    Some(if facts.is_recent(Some(*since)) {
        Finding::ok(WAITING, text)
    } else if facts.is_recent(progress) {
        Finding::warning(
            WAITING,
            format!("{text}: archive_command is slower than the server writes"),
        )
    } else {
        Finding::failed(
            WAITING,
            format!("{text}: the server keeps them, its log says why they are not archived"),
        )
    })
}

/// Whether the archive knows the server's timeline.
fn timeline(facts: &Facts) -> Option<Finding> {
    let here = facts.here.as_ref()?;
    let timeline = facts.timeline;
    if let Some((other, left)) = here.left_at {
        return Some(Finding::failed(
            TIMELINE,
            format!(
                "the server writes timeline {timeline} at {}, and the archive has timeline {other}, which left it at {left}: \
                 is 'conninfo' of the right server? See '{}'; '{}' takes out a wrong history",
                facts.flush_lsn,
                facts.invocation.with(&format!("timeline {}", facts.server)),
                facts.invocation.with(&format!(
                    "quarantine {} take {} --force",
                    facts.server,
                    WalName::History(other)
                ))
            ),
        ));
    }
    if !here.has_history {
        let name = WalName::History(timeline);
        let text = format!(
            "the server is on timeline {timeline}, and {name} is not archived, so nothing on it can be recovered"
        );
        let remedy = format!(
            "check archive_command on the new primary, or archive the file by hand: {}",
            facts
                .invocation
                .with(&format!("wal-archive {} pg_wal/{name}", facts.server))
        );
        return Some(match facts.is_recent(facts.written_at(&name)) {
            true => Finding::warning(TIMELINE, format!("{text} yet")),
            false => Finding::failed(TIMELINE, format!("{text}: {remedy}")),
        });
    }
    if let Some((of_backup, _)) = here.newest_backup.filter(|(of, _)| !facts.has_ancestor(*of)) {
        return Some(Finding::failed(TIMELINE, stray(facts, of_backup)));
    }
    (timeline > TimelineId(1)).then(|| Finding::ok(TIMELINE, timeline.to_string()))
}

fn stray(facts: &Facts, of_backup: TimelineId) -> String {
    format!(
        "the newest complete backup is on timeline {of_backup}, which timeline {} of the server does not come from: take a \
         backup now",
        facts.timeline
    )
}

/// Whether all segments that the server has completed are here.
fn arrived(facts: &Facts) -> Option<Finding> {
    let here = facts.here.as_ref()?;
    if !here.any_segment && here.missing.is_empty() {
        return Some(nothing_yet(facts));
    }
    let Some((first, last)) = here.missing.first().zip(here.missing.last()) else {
        let newest = here.newest_segment.map(|name| format!("up to {name}"));
        return Some(Finding::ok(
            CONTINUOUS,
            newest.unwrap_or_else(|| "nothing is missing".to_owned()),
        ));
    };
    let count = here.missing.len();
    let named = match count {
        1 => format!("segment {first} is"),
        _ => format!("{count} segments, {first} to {last}, are"),
    };
    let Some(pg_wal) = &facts.pg_wal else {
        return Some(without_times(facts, count, &named));
    };
    let has = |name: &SegmentName| pg_wal.contains_key(&WalName::Segment(*name));
    let late = here.missing.iter().filter(|name| {
        let written = pg_wal.get(&WalName::Segment(**name)).copied();
        // A segment that the server no longer has never arrives.
        !facts.is_recent(written)
    });
    if late.count() == 0 {
        return Some(Finding::ok(CONTINUOUS, format!("{named} on the way")));
    }
    let gone = here.missing.iter().filter(|name| !has(name)).count();
    Some(Finding::failed(
        CONTINUOUS,
        format!(
            "{named} complete on the server and not here: {}",
            remedy(facts, here, gone)
        ),
    ))
}

/// An idle server still writes checkpoints and running transactions at the start of a segment: some hundred bytes, and
/// then no more. It does not archive a segment for that, not even with `archive_timeout`.
const WRITTEN_WHEN_IDLE_BYTES: u64 = 4096;

/// The age of the newest WAL. A server that has written nothing since then has nothing to send.
fn wal_age(facts: &Facts) -> Option<Finding> {
    let here = facts.here.as_ref()?;
    let Some(limit) = &facts.wal_age else {
        return Some(Finding::ok(
            WAL_AGE,
            format!("latest WAL age: {}", shown(here.last_arrival?)),
        ));
    };
    let Some(last) = here.last_arrival else {
        return Some(Finding::failed(
            WAL_AGE,
            format!("interval provided: {limit}, and none has arrived"),
        ));
    };
    let text = format!("interval provided: {limit}, latest WAL age: {}", shown(last));
    let has_all = |written: Lsn| {
        here.end
            .is_some_and(|end| written.0.saturating_sub(end.0) <= WRITTEN_WHEN_IDLE_BYTES)
    };
    let is_known = last.age_seconds >= -AHEAD_MICROS_MAX / 1_000_000;
    if is_known && last.age_seconds.max(0).unsigned_abs() <= limit.seconds {
        return Some(Finding::ok(WAL_AGE, text));
    }
    Some(match facts.origin_lsn {
        Some(written) if has_all(written) => {
            Finding::ok(WAL_AGE, format!("{text}; the server has written nothing since"))
        }
        None if has_all(facts.flush_lsn) => Finding::warning(
            WAL_AGE,
            format!("{text}; the server is a standby, and has received nothing since from its primary"),
        )
        .hint("Set primary_conninfo, and this check knows whether the primary has written anything"),
        _ if !is_known => Finding::warning(WAL_AGE, text).hint("Set the clock of this host right"),
        _ => Finding::failed(
            WAL_AGE,
            format!(
                "{text}: the server has written up to {} since {}; with archive_timeout it hands over segments in time that \
                 do not fill, and receive-wal brings WAL at once",
                facts.origin_lsn.unwrap_or(facts.flush_lsn),
                output::second(last.at)
            ),
        ),
    })
}

/// `3 hours`
fn shown(arrival: Arrival) -> String {
    let age = output::duration(Duration::from_secs(arrival.age_seconds.unsigned_abs()));
    match arrival.age_seconds < 0 {
        true => format!("{age} in the future by this host's clock"),
        false => age,
    }
}

/// Before the first segment arrives, it is unknown whether any will.
fn nothing_yet(facts: &Facts) -> Finding {
    let after = if facts.streams {
        ""
    } else {
        "after a change of archive_command "
    };
    Finding::failed(
        CONTINUOUS,
        format!("none of the last segments has arrived: {after}run 'SELECT pg_switch_wal()' and check again"),
    )
}

fn without_times(facts: &Facts, count: usize, named: &str) -> Finding {
    let text = format!("{named} complete on the server and not here");
    let hint = "grant pg_monitor to the role of 'conninfo', and this check knows since when";
    match count {
        1 => Finding::ok(CONTINUOUS, format!("{named} on the way")),
        2..LAG_SEGMENTS => Finding::warning(CONTINUOUS, format!("{text}; {hint}")),
        _ => Finding::failed(CONTINUOUS, format!("{text}: {}; {hint}", who_brings(facts))),
    }
}

fn remedy(facts: &Facts, here: &Here, gone: usize) -> String {
    if gone > 0 {
        return format!(
            "the server has removed {gone} of them, so what follows cannot be recovered: take a backup now; {}",
            who_brings(facts)
        );
    }
    match here.done.first() {
        Some(first) => format!(
            "the server takes {} of them for archived and will remove them; archive them by hand now, from the server's data \
             directory: {}; then {}",
            here.done.len(),
            facts
                .invocation
                .with(&format!("wal-archive {} pg_wal/{first}", facts.server)),
            who_brings(facts)
        ),
        None => who_brings(facts),
    }
}

fn who_brings(facts: &Facts) -> String {
    if facts.streams {
        return format!(
            "see that '{}' runs and what it logs",
            facts.invocation.with(&format!("receive-wal {}", facts.server))
        );
    }
    if !facts.runs_archiver() {
        return "see that the primary's archive_command brings them".to_owned();
    }
    match called(facts) {
        Call::Ours => "the server's log says why archive_command does not bring them".to_owned(),
        _ => format!("set {}", facts.invocation.archive_command(&facts.server)),
    }
}

impl Facts {
    /// Whether `time` is less than the grace period ago, by the server's clock. Not if there is no time, or if it is in
    /// the future, as after the clock was set back.
    fn is_recent(&self, time: Option<TimestampMicros>) -> bool {
        let age = self
            .now
            .zip(time)
            .map(|(now, time)| now.unix_micros().saturating_sub(time.unix_micros()));
        age.is_some_and(|age| (-AHEAD_MICROS_MAX..GRACE_MICROS).contains(&age))
    }

    fn written_at(&self, name: &WalName) -> Option<TimestampMicros> {
        self.pg_wal.as_ref()?.get(name).copied()
    }
}

#[cfg(test)]
mod tests;
