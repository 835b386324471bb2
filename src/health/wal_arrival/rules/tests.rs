use std::collections::BTreeMap;
use std::path::Path;

use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::wal_name::{SegmentName, WalName};
use barmanfs_pg::{Lsn, SegmentSize, TimelineId, TimestampMicros};

use super::super::facts::{ArchiverStats, Arrival, Facts, Here, Ready, Settings};
use super::*;
use crate::health::finding::State;
use crate::invocation::Invocation;

const MINUTE: i64 = 60_000_000;

/// This many minutes ago.
fn ago(minutes: i64) -> TimestampMicros {
    TimestampMicros::from_unix_micros(1_795_183_387_000_000 - minutes * MINUTE)
}

fn segment(timeline: u32, number: u64) -> SegmentName {
    let size = SegmentSize::DEFAULT;
    SegmentName::from_lsn(TimelineId(timeline), Lsn(number * size.bytes()), size)
}

/// A server at segment 9 that archives correctly. Its newest backup is in segment 4.
fn healthy() -> Facts {
    Facts {
        server: "main".to_owned(),
        invocation: Invocation::current(Some(Path::new("/etc/b.conf"))),
        archiver: Archiver::Auto,
        streams: false,
        wal_age: None,
        settings: Settings {
            archive_mode: "on".to_owned(),
            archive_command: "/usr/local/bin/barmanfs wal-archive main %p".to_owned(),
            archive_library: String::new(),
        },
        now: Some(ago(0)),
        in_recovery: false,
        archiver_stats: Some(ArchiverStats {
            archived_count: 8,
            last_archived_wal: Some(segment(1, 8).to_string()),
            last_archived_time: Some(ago(3)),
            ..ArchiverStats::default()
        }),
        ready: Some(Ready::default()),
        pg_wal: Some(
            (1..12)
                .map(|n| (WalName::Segment(segment(1, n)), ago(3)))
                .collect(),
        ),
        timeline: TimelineId(1),
        flush_lsn: Lsn(9 * SegmentSize::DEFAULT.bytes() + 100),
        origin_lsn: Some(Lsn(9 * SegmentSize::DEFAULT.bytes() + 100)),
        segment_size: SegmentSize::DEFAULT,
        history: None,
        here: Some(Here {
            any_segment: true,
            has_last_archived: true,
            has_history: true,
            newest_backup: Some((TimelineId(1), Lsn(4 * SegmentSize::DEFAULT.bytes() + 300))),
            newest_segment: Some(segment(1, 8)),
            ..Here::default()
        }),
    }
}

/// The findings that are not OK.
#[track_caller]
fn found(facts: &Facts) -> Vec<(&'static str, State)> {
    let bad = findings(facts)
        .into_iter()
        .filter(|finding| finding.state != State::Ok);
    bad.map(|finding| (finding.name, finding.state)).collect()
}

fn here(facts: &mut Facts) -> &mut Here {
    facts.here.as_mut().unwrap()
}

fn says(facts: &Facts, name: &str, words: &[&str]) {
    let findings = findings(facts);
    let line = findings.iter().find(|line| line.name == name).unwrap();
    let hint = line.text().unwrap_or_default();
    assert!(words.iter().all(|word| hint.contains(word)), "{hint}");
}

#[test]
fn a_healthy_server_raises_no_alarm_however_long_it_is_idle() {
    let mut facts = healthy();
    assert_eq!(found(&facts), []);
    // Its current segment may be of any age.
    facts
        .pg_wal
        .as_mut()
        .unwrap()
        .insert(WalName::Segment(segment(1, 9)), ago(9000));
    facts.archiver_stats.as_mut().unwrap().last_archived_time = Some(ago(9000));
    assert_eq!(found(&facts), []);
    // Its statistics were reset.
    facts.archiver_stats = Some(ArchiverStats::default());
    assert_eq!(found(&facts), []);
}

#[test]
fn segments_completed_since_the_backup_are_required() {
    let mut facts = healthy();
    let required = |facts: &Facts| {
        let here = facts.here.as_ref().unwrap();
        facts.required(here.newest_backup, here.newest_segment)
    };
    assert_eq!(required(&facts), [5, 6, 7, 8].map(|n| segment(1, n)));
    // At the very end of a segment, the next one has not begun.
    facts.flush_lsn = Lsn(9 * SegmentSize::DEFAULT.bytes());
    assert_eq!(required(&facts), [5, 6, 7, 8].map(|n| segment(1, n)));
    here(&mut facts).newest_backup = None;
    here(&mut facts).newest_segment = Some(segment(1, 7));
    assert_eq!(required(&facts), [segment(1, 8)]);
    here(&mut facts).newest_segment = None;
    assert_eq!(required(&facts), []);
    // Across a switch of timelines, where the segment of the switch belongs to the later timeline.
    let mut facts = healthy();
    let history = format!("1\t0/{:X}\tno recovery target specified\n", 6 * (16 << 20) + 5000);
    facts.timeline = TimelineId(2);
    facts.history = Some(TimelineHistory::parse(history.as_bytes(), TimelineId(2)).unwrap());
    assert_eq!(
        required(&facts),
        [segment(1, 5), segment(2, 6), segment(2, 7), segment(2, 8)]
    );
}

#[test]
fn segments_reported_as_archived_must_be_here() {
    let mut facts = healthy();
    here(&mut facts).has_last_archived = false;
    assert_eq!(found(&facts), [(ARCHIVED, State::Failed)]);
    let last = segment(1, 8).to_string();
    says(&facts, ARCHIVED, &[&last, "archive_command = '/", "/etc/b.conf"]);
    facts.archiver_stats.as_mut().unwrap().last_archived_time = Some(ago(0));
    assert_eq!(found(&facts), [(ARCHIVED, State::Warning)]);
}

#[test]
fn a_segment_is_missed_a_minute_after_it_was_completed() {
    let mut facts = healthy();
    here(&mut facts).missing = vec![segment(1, 7), segment(1, 8)];
    assert_eq!(found(&facts), [(CONTINUOUS, State::Failed)]);
    says(
        &facts,
        CONTINUOUS,
        &["2 segments", "000000010000000000000007", "log"],
    );
    here(&mut facts).done = [segment(1, 8)].into();
    says(
        &facts,
        CONTINUOUS,
        &["by hand", "wal-archive main pg_wal/000000010000000000000008"],
    );
    // The server no longer has one of the segments.
    let pg_wal = facts.pg_wal.as_mut().unwrap();
    pg_wal.remove(&WalName::Segment(segment(1, 7)));
    says(&facts, CONTINUOUS, &["has removed 1", "take a backup"]);
    let pg_wal: BTreeMap<_, _> = [7, 8].map(|n| (WalName::Segment(segment(1, n)), ago(0))).into();
    facts.pg_wal = Some(pg_wal);
    assert_eq!(found(&facts), [], "they are on the way");
}

#[test]
fn without_times_the_number_of_segments_decides() {
    let mut facts = healthy();
    facts.pg_wal = None;
    for (count, expected) in [(1, None), (2, Some(State::Warning)), (16, Some(State::Failed))] {
        here(&mut facts).missing = (0..count).map(|n| segment(1, n)).collect();
        let level = found(&facts).first().map(|(_, level)| *level);
        assert_eq!(level, expected, "{count}");
    }
}

#[test]
fn a_command_that_is_not_ours_is_a_warning_unless_wal_is_streamed() {
    let mut facts = healthy();
    facts.settings.archive_command = "/bin/true".to_owned();
    assert_eq!(found(&facts), [(COMMAND, State::Warning)]);
    facts.streams = true;
    assert_eq!(found(&facts), []);
    facts.archiver = Archiver::On;
    assert_eq!(found(&facts), [(COMMAND, State::Warning)]);
    facts = healthy();
    facts.settings.archive_library = "basic_archive".to_owned();
    assert_eq!(found(&facts), [(COMMAND, State::Warning)]);
    facts = healthy();
    facts.settings.archive_command = "barmanfs wal-archive other %p".to_owned();
    assert_eq!(found(&facts), [(COMMAND, State::Failed)]);
    facts.settings.archive_command = String::new();
    assert_eq!(found(&facts), [(COMMAND, State::Failed)]);
}

#[test]
fn segments_that_wait_for_the_command_are_found() {
    let mut facts = healthy();
    let ready = |since| Ready {
        count: 3,
        oldest: Some((segment(1, 8).to_string(), since)),
    };
    facts.ready = Some(ready(ago(0)));
    assert_eq!(found(&facts), []);
    facts.ready = Some(ready(ago(2)));
    assert_eq!(found(&facts), [(WAITING, State::Failed)]);
    facts.archiver_stats.as_mut().unwrap().last_archived_time = Some(ago(0));
    assert_eq!(found(&facts), [(WAITING, State::Warning)], "it is behind");
    let stats = facts.archiver_stats.as_mut().unwrap();
    stats.last_failed_time = Some(TimestampMicros::from_unix_micros(ago(0).unix_micros() + 1));
    stats.last_failed_wal = Some(segment(1, 9).to_string());
    assert!(found(&facts).contains(&(ERRORS, State::Failed)));
}

#[test]
fn a_standby_archives_only_with_archive_mode_always() {
    let mut facts = healthy();
    facts.in_recovery = true;
    facts.settings.archive_command = "/bin/true".to_owned();
    here(&mut facts).has_last_archived = false;
    assert_eq!(found(&facts), [], "its own archiver does nothing");
    facts.settings.archive_mode = "always".to_owned();
    assert_eq!(
        found(&facts),
        [(COMMAND, State::Warning), (ARCHIVED, State::Failed)]
    );
}

#[test]
fn archive_mode_off_fails_unless_no_archiver_is_configured() {
    let mut facts = healthy();
    facts.settings.archive_mode = "off".to_owned();
    facts.settings.archive_command = "(disabled)".to_owned();
    assert_eq!(found(&facts), [(MODE, State::Failed)]);
    facts.archiver = Archiver::Off;
    assert_eq!(found(&facts), []);
    facts.streams = true;
    here(&mut facts).missing = vec![segment(1, 8)];
    assert_eq!(
        found(&facts),
        [(CONTINUOUS, State::Failed)],
        "the stream does not bring it"
    );
    says(&facts, CONTINUOUS, &["receive-wal main"]);
}

#[test]
fn a_timeline_that_the_archive_lacks_is_found() {
    let mut facts = healthy();
    facts.timeline = TimelineId(2);
    let history = format!("1\t0/{:X}\tno recovery target specified\n", 8 * (16 << 20) + 5000);
    facts.history = Some(TimelineHistory::parse(history.as_bytes(), TimelineId(2)).unwrap());
    here(&mut facts).has_history = false;
    assert_eq!(found(&facts), [(TIMELINE, State::Failed)]);
    says(&facts, TIMELINE, &["00000002.history", "by hand"]);
    let name = WalName::History(TimelineId(2));
    facts.pg_wal.as_mut().unwrap().insert(name, ago(0));
    assert_eq!(found(&facts), [(TIMELINE, State::Warning)]);
    // The server was promoted before the end of the newest backup, which therefore belongs to another
    // history.
    here(&mut facts).has_history = true;
    facts.history = None;
    assert_eq!(found(&facts), [(TIMELINE, State::Failed)]);
    let mut facts = healthy();
    here(&mut facts).left_at = Some((TimelineId(2), Lsn(1)));
    assert_eq!(found(&facts), [(TIMELINE, State::Failed)]);
}

#[test]
fn without_any_segment_continuity_is_unproven() {
    let mut facts = healthy();
    facts.here = Some(Here {
        has_history: true,
        has_last_archived: true,
        ..Here::default()
    });
    assert_eq!(found(&facts), [(CONTINUOUS, State::Failed)]);
    says(&facts, CONTINUOUS, &["pg_switch_wal"]);
}

/// The age of the last arrival in minutes, a limit of an hour, and WAL up to segment 9.
fn arrived_ago(minutes: i64) -> Facts {
    let mut facts = healthy();
    facts.wal_age = crate::config::tests::limits("last_wal_maximum_age = 1 HOUR")
        .0
        .wal_age;
    here(&mut facts).end = Some(Lsn(9 * SegmentSize::DEFAULT.bytes()));
    here(&mut facts).last_arrival = Some(Arrival {
        at: ago(minutes),
        age_seconds: minutes * 60,
    });
    facts
}

/// Sets how far the server has written behind what is here.
fn written(facts: &mut Facts, behind_bytes: u64) {
    facts.flush_lsn = Lsn(9 * SegmentSize::DEFAULT.bytes() + behind_bytes);
    facts.origin_lsn = Some(facts.flush_lsn);
}

#[test]
fn an_idle_server_has_no_wal_to_bring() {
    let more = WRITTEN_WHEN_IDLE_BYTES + 8;
    let mut facts = arrived_ago(60);
    written(&mut facts, more);
    assert_eq!(found(&facts), []);
    let mut facts = arrived_ago(61);
    written(&mut facts, more);
    assert_eq!(found(&facts), [(WAL_AGE, State::Failed)]);
    for noted in [0, 40, WRITTEN_WHEN_IDLE_BYTES] {
        written(&mut facts, noted);
        assert_eq!(found(&facts), [], "{noted}");
    }
    // A stream has brought a part of the segment.
    written(&mut facts, 3 << 20);
    assert_eq!(found(&facts), [(WAL_AGE, State::Failed)]);
    here(&mut facts).end = Some(facts.flush_lsn);
    assert_eq!(found(&facts), []);
    here(&mut facts).end = None;
    assert_eq!(found(&facts), [(WAL_AGE, State::Failed)]);
    here(&mut facts).last_arrival = None;
    assert_eq!(found(&facts), [(WAL_AGE, State::Failed)]);
}

#[test]
fn an_idle_standby_does_not_prove_that_its_primary_is_idle() {
    let mut facts = arrived_ago(61);
    written(&mut facts, 40);
    facts.in_recovery = true;
    facts.settings.archive_mode = "always".to_owned();
    facts.origin_lsn = None;
    assert_eq!(found(&facts), [(WAL_AGE, State::Warning)]);
    says(&facts, WAL_AGE, &["standby", "primary_conninfo"]);
    facts.origin_lsn = Some(Lsn(facts.flush_lsn.0 + (1 << 20)));
    assert_eq!(found(&facts), [(WAL_AGE, State::Failed)]);
    facts.origin_lsn = Some(facts.flush_lsn);
    assert_eq!(found(&facts), []);
}

#[test]
fn an_arrival_in_the_future_says_nothing() {
    let mut facts = arrived_ago(-60);
    written(&mut facts, 1 << 20);
    assert_eq!(found(&facts), [(WAL_AGE, State::Warning)]);
    says(&facts, WAL_AGE, &["in the future"]);
    written(&mut facts, 0);
    assert_eq!(found(&facts), []);
    // Clocks of two hosts differ.
    let mut facts = arrived_ago(-4);
    written(&mut facts, 1 << 20);
    assert_eq!(found(&facts), []);
}
