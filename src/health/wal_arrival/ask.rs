//! Collects the facts for the rules.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::SystemTime;

use barmanfs_catalog::recovery::TimelineReport;
use barmanfs_catalog::{BackupStatus, Repository, WalArchive};
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};

use super::facts::{ArchiverStats, Arrival, Facts, Here, Ready, Settings};
use crate::cluster::{ServerSettings, primary};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::health::finding::Findings;
use crate::invocation::Invocation;
use crate::postgres::{Connection, ResultSet};

/// The first version with `archive_library`.
const ARCHIVE_LIBRARY_SINCE: u32 = 15;

/// SQL for the microseconds since 1970 of an expression.
macro_rules! micros {
    ($time:literal) => {
        concat!("(extract(epoch from ", $time, ") * 1000000)::bigint")
    };
}

const STATE: &str = concat!(
    "SELECT ",
    micros!("now()"),
    " AS now, pg_catalog.pg_is_in_recovery()::text AS in_recovery, archived_count::text AS archived, ",
    "last_archived_wal, ",
    micros!("last_archived_time"),
    " AS last_archived, failed_count::text AS failed, ",
    "last_failed_wal, ",
    micros!("last_failed_time"),
    " AS last_failed FROM pg_catalog.pg_stat_archiver"
);
const READY: &str = concat!(
    "SELECT count(*) OVER ()::text AS count, name, ",
    micros!("modification"),
    " AS since ",
    "FROM pg_catalog.pg_ls_archive_statusdir() WHERE name LIKE '%.ready' ORDER BY modification LIMIT 1"
);
const DONE: &str = "SELECT name FROM pg_catalog.pg_ls_archive_statusdir() WHERE name LIKE '%.done'";
const PG_WAL: &str = concat!(
    "SELECT name, ",
    micros!("modification"),
    " AS written FROM pg_catalog.pg_ls_waldir()"
);

/// The sources of the facts: the server and the repository.
#[derive(Debug)]
pub(in crate::health) struct Asked<'a> {
    /// The command line of this program.
    pub(in crate::health) invocation: &'a Invocation,
    /// The repository, if it exists.
    pub(in crate::health) repository: Option<&'a Repository>,
    /// The repository's report of the server's timelines.
    pub(in crate::health) timelines: Option<&'a TimelineReport>,
    /// The configuration.
    pub(in crate::health) server: &'a ServerConfig,
    /// The server's settings.
    pub(in crate::health) cluster: &'a ServerSettings,
    /// The replication connection.
    pub(in crate::health) streaming: &'a mut Connection,
    /// The SQL connection, if there is one.
    pub(in crate::health) sql: Option<&'a mut Connection>,
}

/// Queries the server first and the archive afterwards: what the server reports as archived must then be in the
/// archive.
pub(super) fn facts(asked: &mut Asked<'_>, findings: &mut Findings) -> Facts {
    let mut facts = Facts {
        server: asked.server.name.to_string(),
        invocation: asked.invocation.clone(),
        archiver: asked.server.archiver,
        streams: asked.server.streaming_archiver,
        wal_age: asked.server.limits.wal_age.clone(),
        settings: settings_or_default(settings(asked), "archive_command", findings),
        now: None,
        in_recovery: false,
        archiver_stats: None,
        ready: None,
        pg_wal: None,
        timeline: asked.cluster.timeline,
        flush_lsn: asked.cluster.flush_lsn,
        origin_lsn: None,
        segment_size: asked.cluster.segment_size,
        history: history(asked.streaming, asked.cluster.timeline),
        here: None,
    };
    let mut done = Vec::new();
    if let Some(sql) = asked.sql.as_deref_mut() {
        match state(sql, &mut facts) {
            Ok(()) => {}
            Err(error) => findings.failed("archiver errors", error.to_string()),
        }
        // A role without pg_monitor may not see this. The rules then work without it.
        facts.ready = sql.simple_query(READY).ok().map(|results| ready(&results));
        facts.pg_wal = sql.simple_query(PG_WAL).ok().map(|results| pg_wal(&results));
        let waiting = facts.ready.as_ref().map(|ready| ready.count);
        findings.note(|figures| figures.waiting_files = waiting);
        done = sql
            .simple_query(DONE)
            .map_or_else(|_| Vec::new(), |results| names(&results));
    }
    facts.origin_lsn = origin_lsn(asked, &mut facts);
    if let (Some(repository), Some(timelines)) = (asked.repository, asked.timelines) {
        match here(repository, timelines, asked.server, &facts, &done) {
            Ok(here) => facts.here = Some(here),
            Err(error) => findings.failed("continuous archiving", error.to_string()),
        }
    }
    facts
}

/// A standby has no commits of its own: what its primary has written counts.
fn origin_lsn(asked: &mut Asked<'_>, facts: &mut Facts) -> Option<Lsn> {
    facts.in_recovery = asked.streaming.is_in_recovery().unwrap_or(facts.in_recovery);
    if !facts.in_recovery {
        return Some(asked.cluster.flush_lsn);
    }
    asked.server.primary_conninfo.as_ref()?;
    // Another check says why the primary cannot be asked.
    let primary = primary::look(asked.server, asked.cluster.system_id).ok()?;
    Some(primary.flush_lsn)
}

fn settings_or_default(
    settings: Result<Settings, Error>,
    name: &'static str,
    findings: &mut Findings,
) -> Settings {
    settings.unwrap_or_else(|error| {
        findings.failed(name, error.to_string());
        Settings::default()
    })
}

fn settings(asked: &mut Asked<'_>) -> Result<Settings, Error> {
    let has_library = asked.cluster.version.major() >= ARCHIVE_LIBRARY_SINCE;
    let mut show = |name: &str| asked.streaming.show(name);
    Ok(Settings {
        archive_mode: show("archive_mode")?,
        archive_command: show("archive_command")?,
        archive_library: if has_library {
            show("archive_library")?
        } else {
            String::new()
        },
    })
}

/// The timeline's ancestors, from the server itself: the archive may not have the history file.
fn history(streaming: &mut Connection, timeline: TimelineId) -> Option<TimelineHistory> {
    let file = streaming.timeline_history(timeline).ok()??;
    TimelineHistory::parse(&file.content, timeline).ok()
}

fn state(sql: &mut Connection, facts: &mut Facts) -> Result<(), Error> {
    let results = sql.simple_query(STATE)?;
    let Some(rows) = results.first() else {
        return Ok(());
    };
    facts.now = time(rows, 0, "now");
    facts.in_recovery = rows.text(0, "in_recovery") == Some("true");
    let count = |column| parsed(rows, 0, column).unwrap_or_default();
    let text = |column| rows.text(0, column).map(str::to_owned);
    facts.archiver_stats = Some(ArchiverStats {
        archived_count: count("archived"),
        last_archived_wal: text("last_archived_wal"),
        last_archived_time: time(rows, 0, "last_archived"),
        failed_count: count("failed"),
        last_failed_wal: text("last_failed_wal"),
        last_failed_time: time(rows, 0, "last_failed"),
    });
    Ok(())
}

fn parsed<T: FromStr>(rows: &ResultSet, row: usize, column: &str) -> Option<T> {
    rows.text(row, column)?.parse().ok()
}

fn time(rows: &ResultSet, row: usize, column: &str) -> Option<TimestampMicros> {
    parsed(rows, row, column).map(TimestampMicros::from_unix_micros)
}

fn ready(results: &[ResultSet]) -> Ready {
    let Some(rows) = results.first().filter(|rows| rows.len() > 0) else {
        return Ready::default();
    };
    let name = rows.text(0, "name").unwrap_or_default();
    let name = name.strip_suffix(".ready").unwrap_or(name).to_owned();
    Ready {
        count: parsed(rows, 0, "count").unwrap_or_default(),
        oldest: time(rows, 0, "since").map(|since| (name, since)),
    }
}

fn pg_wal(results: &[ResultSet]) -> BTreeMap<WalName, TimestampMicros> {
    let Some(rows) = results.first() else {
        return BTreeMap::new();
    };
    (0..rows.len())
        .filter_map(|row| Some((parsed(rows, row, "name")?, time(rows, row, "written")?)))
        .collect()
}

fn names(results: &[ResultSet]) -> Vec<SegmentName> {
    let Some(rows) = results.first() else {
        return Vec::new();
    };
    (0..rows.len())
        .filter_map(|row| rows.text(row, "name")?.strip_suffix(".done")?.parse().ok())
        .collect()
}

/// The timeline and the end of the newest backup that is DONE.
fn newest_backup(timelines: &TimelineReport) -> Option<(TimelineId, Lsn)> {
    let backups = timelines.timelines.iter().flat_map(|timeline| {
        let done = timeline
            .backups
            .iter()
            .filter(|backup| backup.status == BackupStatus::Done);
        done.map(|backup| (timeline.timeline, backup.stop_lsn, backup.id))
    });
    backups
        .max_by_key(|(_, _, id)| *id)
        .map(|(timeline, stop, _)| (timeline, stop))
}

fn here(
    repository: &Repository,
    timelines: &TimelineReport,
    server: &ServerConfig,
    facts: &Facts,
    done: &[SegmentName],
) -> Result<Here, Error> {
    let archive = repository.wal(&server.name);
    let has = |name: &WalName| Ok::<_, Error>(archive.entry(name)?.is_some());
    let last_archived = facts
        .archiver_stats
        .as_ref()
        .and_then(|stats| stats.last_archived_wal.as_deref());
    let newest_backup = newest_backup(timelines);
    let newest_segment = archive.last_segment(facts.timeline, None)?;
    let receiving = repository.receiving(&server.name)?;
    let (archived_end, archived_at) = newest_archived(&archive, facts)?.unzip();
    let last_arrival = receiving
        .iter()
        .map(|segment| segment.modified)
        .chain(archived_at)
        .max();
    // A segment that is being received has a part of the newest state.
    let newest = timelines.newest.as_ref();
    let recoverable = newest.filter(|newest| facts.has_ancestor(newest.timeline));
    let spooled: Vec<SegmentName> = receiving
        .into_iter()
        .filter(|segment| segment.complete)
        .map(|segment| segment.name)
        .collect();
    let mut missing = Vec::new();
    for name in facts.required(newest_backup, newest_segment) {
        if !spooled.contains(&name) && !has(&WalName::Segment(name))? {
            missing.push(name);
        }
    }
    Ok(Here {
        any_segment: timelines
            .timelines
            .iter()
            .any(|timeline| !timeline.ranges.is_empty())
            || newest_segment.is_some(),
        has_last_archived: match last_archived.map(WalName::from_str) {
            Some(Ok(name)) => has(&name)?,
            _ => false,
        },
        has_history: facts.timeline == TimelineId(1) || has(&WalName::History(facts.timeline))?,
        done: missing
            .iter()
            .filter(|name| done.contains(name))
            .copied()
            .collect(),
        missing,
        newest_backup,
        newest_segment,
        end: archived_end.max(recoverable.map(|newest| newest.lsn)),
        last_arrival: last_arrival.map(arrival),
        left_at: left_at(timelines, facts.timeline, facts.flush_lsn),
    })
}

/// Where the newest archived segment of the server's history ends, and when it came. The present timeline may have none
/// yet.
fn newest_archived(archive: &WalArchive<'_>, facts: &Facts) -> Result<Option<(Lsn, TimestampMicros)>, Error> {
    for (timeline, left_at) in facts.timelines() {
        let Some(name) = archive.last_segment(timeline, None)? else {
            continue;
        };
        let Some(entry) = archive.entry(&WalName::Segment(name))? else {
            continue;
        };
        let end = name.next(facts.segment_size).start_lsn(facts.segment_size);
        return Ok(Some((
            left_at.map_or(end, |left| left.min(end)),
            entry.archived_at,
        )));
    }
    Ok(None)
}

fn arrival(at: TimestampMicros) -> Arrival {
    let now = TimestampMicros::from(SystemTime::now()).unix_micros();
    Arrival {
        at,
        age_seconds: now.saturating_sub(at.unix_micros()) / 1_000_000,
    }
}

/// A timeline that left the server's timeline at a position which the server has since passed.
fn left_at(timelines: &TimelineReport, timeline: TimelineId, flush_lsn: Lsn) -> Option<(TimelineId, Lsn)> {
    timelines
        .timelines
        .iter()
        .filter_map(|other| Some((other.timeline, other.parent.as_ref()?)))
        .find(|(_, parent)| parent.timeline == timeline && parent.switch_lsn < flush_lsn)
        .map(|(other, parent)| (other, parent.switch_lsn))
}
