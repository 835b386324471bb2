//! The picture of a server's timelines: time runs down, each timeline is a line, and lines branch where one timeline
//! left another.
//!
//! ```text
//! ╷     0/1000000  timeline 1
//! ●     0/3000100  backup
//! ├─╮   0/6000128  timeline 2
//! ╵ │   0/7000000  end of timeline 1
//!   ◆   0/8000060  restore point
//! ```

use barmanfs_catalog::BackupStatus;
use barmanfs_catalog::recovery::{Gap, Timeline, TimelineReport, WalRange};
use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};

use crate::health::losses;
use crate::locale::Drawing;
use crate::output::{self, Style, table};

/// Maximum number of restore points to draw, the newest ones: with one a minute, the rest must still be visible.
/// `--json` has all.
const RESTORE_POINTS_MAX: usize = 40;

/// Width of a time to the second.
const TIME_WIDTH: usize = 22;

/// A line of the picture.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) style: Style,
}

/// The events at a position of the WAL. Events at the same position are in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Begin,
    Backup,
    RestorePoint,
    Gap,
    Fork(TimelineId),
    End,
}

#[derive(Debug)]
struct Event {
    lsn: Lsn,
    kind: Kind,
    timeline: TimelineId,
    symbol: char,
    style: Style,
    time: Option<TimestampMicros>,
    text: String,
}

/// Draws the picture in lines of at most this many characters. A text continues in the next line at a blank, if its
/// longest word fits.
pub(super) fn draw(report: &TimelineReport, drawing: Drawing, columns: Option<usize>) -> Vec<Line> {
    let mut events: Vec<Event> = report
        .timelines
        .iter()
        .flat_map(|timeline| of_timeline(report, timeline))
        .collect();
    events.extend(gaps(report));
    events.extend(restore_points(report));
    events.extend(forks(report));
    events.sort_by_key(|event| (event.lsn, event.kind, event.timeline));
    let mut open = Columns::default();
    let graphs: Vec<(String, String)> = events
        .iter()
        .map(|event| (open.draw(event), open.between()))
        .collect();
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or_default();
    let graph_width = width(&mut graphs.iter().map(|(graph, _)| graph.chars().count()));
    let lsn_width = width(&mut events.iter().map(|event| event.lsn.to_string().len()));
    let before_text = graph_width + lsn_width + TIME_WIDTH + 6;
    let most = columns.map_or(usize::MAX, |columns| columns.saturating_sub(before_text));
    let lines = graphs.iter().zip(&events).flat_map(|((graph, below), event)| {
        let time = event.time.map(output::second).unwrap_or_default();
        let lsn = event.lsn.to_string();
        let (graph, below) = (drawing.shown(graph), drawing.shown(below));
        let first_columns = format!("{graph:graph_width$}  {lsn:>lsn_width$}  {time:TIME_WIDTH$}");
        let later_columns = format!("{below:before$}", before = before_text - 2);
        let parts = match table::longest_word(&event.text) <= most {
            true => table::lines(&event.text, most),
            false => vec![event.text.as_str()],
        };
        let line = |(nth, part): (usize, &str)| Line {
            text: format!(
                "{}  {part}",
                if nth == 0 { &first_columns } else { &later_columns }
            ),
            style: event.style,
        };
        parts.into_iter().enumerate().map(line).collect::<Vec<_>>()
    });
    lines.collect()
}

/// The places where a timeline has two histories.
fn forks(report: &TimelineReport) -> impl Iterator<Item = Event> {
    report.forks.iter().map(|fork| Event {
        lsn: fork.lsn,
        kind: Kind::Gap,
        timeline: fork.timeline,
        symbol: '!',
        style: Style::Red,
        time: Some(fork.found_at),
        text: format!(
            "two histories from here on: {}",
            output::printable(fork.why.as_bytes())
        ),
    })
}

fn of_timeline(report: &TimelineReport, timeline: &Timeline) -> Vec<Event> {
    let id = timeline.timeline;
    let event = |lsn, kind, symbol, time, text| Event {
        lsn,
        kind,
        timeline: id,
        symbol,
        style: Style::Plain,
        time,
        text,
    };
    let first = timeline.ranges.first();
    let mut events = Vec::new();
    match &timeline.parent {
        Some(parent) => {
            let reason = output::printable(parent.reason.as_bytes());
            let text = format!("timeline {id} leaves timeline {}: {reason}", parent.timeline);
            events.push(event(
                parent.switch_lsn,
                Kind::Fork(parent.timeline),
                '╷',
                None,
                text,
            ));
        }
        None => {
            let start = first.map(|range| range.start_lsn);
            let start = start.or_else(|| timeline.backups.first().map(|backup| backup.start_lsn));
            let text = match first {
                Some(range) => format!("timeline {id}, WAL from {}", range.first),
                None => format!("timeline {id}, no WAL in the archive"),
            };
            events.push(event(
                start.unwrap_or_default(),
                Kind::Begin,
                '╷',
                first.and_then(|range| range.from),
                text,
            ));
        }
    }
    for (before, after) in removed(report, timeline) {
        let text = format!(
            "no WAL from here to {}: the retention policy removed it",
            after.first
        );
        events.push(event(before.end_lsn, Kind::Gap, '┆', before.to, text));
    }
    for backup in &timeline.backups {
        let (symbol, text) = match backup.status {
            BackupStatus::Done => ('●', format!("backup {}", backup.id)),
            status => ('○', format!("backup {}, {status}", backup.id)),
        };
        events.push(event(
            backup.stop_lsn,
            Kind::Backup,
            symbol,
            backup.end_time,
            text,
        ));
    }
    events.push(end(report, timeline, &event));
    events
}

/// The pairs of ranges between which nothing is missing that should be there.
fn removed<'a>(
    report: &'a TimelineReport,
    timeline: &'a Timeline,
) -> impl Iterator<Item = (&'a WalRange, &'a WalRange)> {
    let pairs = timeline.ranges.iter().zip(timeline.ranges.iter().skip(1));
    pairs.filter(|(before, after)| {
        let is_between = |gap: &Gap| {
            gap.timeline == timeline.timeline && before.last < gap.first && gap.first < after.first
        };
        !report.gaps.iter().any(is_between)
    })
}

/// The end of a timeline's line: the end of its WAL or, if there is none until there, the place where the last timeline
/// leaves it.
fn end(
    report: &TimelineReport,
    timeline: &Timeline,
    event: &dyn Fn(Lsn, Kind, char, Option<TimestampMicros>, String) -> Event,
) -> Event {
    let children = report.timelines.iter().filter_map(|child| child.parent.as_ref());
    let left = children
        .filter(|parent| parent.timeline == timeline.timeline)
        .map(|parent| parent.switch_lsn)
        .max();
    let own = timeline.parent.as_ref().map(|parent| parent.switch_lsn);
    let backups = timeline.backups.iter().map(|backup| backup.stop_lsn).max();
    let last = timeline.ranges.last();
    let lsn = [last.map(|range| range.end_lsn), left, own, backups]
        .into_iter()
        .flatten()
        .max();
    let segments: u64 = timeline.ranges.iter().map(|range| range.segments).sum();
    let commits: u64 = timeline.ranges.iter().map(|range| range.commits).sum();
    let time = timeline.ranges.iter().filter_map(|range| range.to).max();
    let text = match last {
        Some(range) => format!(
            "WAL of timeline {} to {}: {}, {}",
            timeline.timeline,
            range.last,
            count(segments, "segment"),
            count(commits, "commit")
        ),
        None => format!("no segment of timeline {} is archived", timeline.timeline),
    };
    event(lsn.unwrap_or_default(), Kind::End, '╵', time, text)
}

fn count(number: u64, noun: &str) -> String {
    output::count(number, noun)
}

fn gaps(report: &TimelineReport) -> impl Iterator<Item = Event> {
    report.gaps.iter().map(|gap| Event {
        lsn: gap.unreachable.from,
        kind: Kind::Gap,
        timeline: gap.timeline,
        symbol: '╳',
        style: Style::Red,
        time: gap.after,
        text: format!("missing: {}", losses::missing(gap)),
    })
}

fn restore_points(report: &TimelineReport) -> Vec<Event> {
    let mut points: Vec<Event> = report
        .timelines
        .iter()
        .flat_map(|timeline| {
            timeline
                .restore_points
                .iter()
                .map(|point| (timeline.timeline, point))
        })
        .map(|(timeline, point)| Event {
            lsn: point.lsn,
            kind: Kind::RestorePoint,
            timeline,
            symbol: '◆',
            style: Style::Plain,
            time: Some(point.time),
            text: format!("restore point {}", output::printable(point.name.as_bytes())),
        })
        .collect();
    points.sort_by_key(|event| (event.lsn, event.timeline));
    let older = points.len().saturating_sub(RESTORE_POINTS_MAX);
    points.drain(..older);
    if let Some(first) = points.first_mut().filter(|_| older > 0) {
        first.text.push_str(&format!(
            " ({} before it: see --json)",
            output::count(older, "other")
        ));
    }
    points
}

/// The column of each timeline. A column is free again when its timeline has ended.
#[derive(Debug, Default)]
struct Columns(Vec<Option<TimelineId>>);

impl Columns {
    fn of(&self, timeline: TimelineId) -> Option<usize> {
        self.0.iter().position(|column| *column == Some(timeline))
    }

    fn take(&mut self, timeline: TimelineId) -> usize {
        let free = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        if free == self.0.len() {
            self.0.push(None);
        }
        if let Some(column) = self.0.get_mut(free) {
            *column = Some(timeline);
        }
        free
    }

    /// The characters between the lines of two events.
    fn between(&self) -> String {
        let cells = self
            .0
            .iter()
            .flat_map(|column| [if column.is_some() { '│' } else { ' ' }, ' ']);
        cells.collect::<String>().trim_end().to_owned()
    }

    fn draw(&mut self, event: &Event) -> String {
        let mut cells: Vec<char> = self
            .0
            .iter()
            .flat_map(|column| [if column.is_some() { '│' } else { ' ' }, ' '])
            .collect();
        let parent = match event.kind {
            Kind::Fork(parent) => self.of(parent),
            _ => None,
        };
        let own = match self.of(event.timeline) {
            Some(own) => own,
            None => self.take(event.timeline),
        };
        cells.resize(cells.len().max(own * 2 + 2), ' ');
        match parent {
            Some(parent) => connect(&mut cells, parent * 2, own * 2),
            None => set(&mut cells, own * 2, event.symbol),
        }
        if event.kind == Kind::End
            && let Some(column) = self.0.get_mut(own)
        {
            *column = None;
        }
        let line: String = cells.into_iter().collect();
        line.trim_end().to_owned()
    }
}

/// Draws the line from one timeline to the one that leaves it, across the timelines between them.
fn connect(cells: &mut [char], from: usize, to: usize) {
    let (low, high) = (from.min(to), from.max(to));
    for cell in cells.iter_mut().take(high).skip(low + 1) {
        *cell = if *cell == '│' { '┼' } else { '─' };
    }
    let (fork, corner) = if from < to { ('├', '╮') } else { ('┤', '╭') };
    set(cells, from, fork);
    set(cells, to, corner);
}

fn set(cells: &mut [char], at: usize, symbol: char) {
    if let Some(cell) = cells.get_mut(at) {
        *cell = symbol;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;
    use serde_json::json;

    /// Two recoveries: one to a time before the last backup of the first timeline, one on the second timeline.
    fn report() -> TimelineReport {
        let range = |first: &str, last: &str, segments: u64, start: &str, end: &str| {
            json!({"first": first, "last": last, "segments": segments, "start_lsn": start, "end_lsn": end,
                "from_time": "2026-11-20T10:00:00Z", "to_time": "2026-11-20T12:00:00.5Z", "commits": 40})
        };
        let value = json!({
            "server": "main",
            "timelines": [
                {"timeline": 1,
                 "ranges": [
                    range("000000010000000000000001", "000000010000000000000004", 4, "0/1000000", "0/5000000"),
                    range("000000010000000000000007", "000000010000000000000009", 3, "0/7000000", "0/A000000")],
                 "backups": [
                    {"id": "20261120T101500", "status": "DONE", "start_lsn": "0/2000028", "stop_lsn": "0/2000100",
                     "end_time": "2026-11-20T10:15:09.25Z"},
                    {"id": "20261120T113000", "status": "WAITING_FOR_WALS", "start_lsn": "0/8000028",
                     "stop_lsn": "0/8000100"}],
                 "restore_points": [{"name": "before_migration", "lsn": "0/3000060", "time": "2026-11-20T10:30:00Z"}]},
                {"timeline": 2,
                 "parent": {"timeline": 1, "switch_lsn": "0/3000128", "reason": "before 2026-11-20 10:31:00+00"},
                 "ranges": [range("000000020000000000000003", "000000020000000000000003", 1, "0/3000000", "0/4000000")],
                 "backups": [], "restore_points": []},
                {"timeline": 3,
                 "parent": {"timeline": 2, "switch_lsn": "0/3800000", "reason": "no recovery target specified"},
                 "ranges": [], "backups": [], "restore_points": []},
            ],
            "gaps": [
                {"timeline": 1, "first": "000000010000000000000005", "last": "000000010000000000000006", "count": 2,
                 "unreachable": {"timeline": 1, "from": "0/5000000"}, "after_time": "2026-11-20T11:00:00Z",
                 "backup_before": "20261120T101500"}],
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn timelines_branch_where_one_leaves_the_other() {
        let lines: Vec<String> = draw(&report(), Drawing::Unicode, None)
            .into_iter()
            .map(|line| line.text)
            .collect();
        assert_snapshot!(lines.join("\n"), @"
        ╷      0/1000000  2026-11-20 10:00:00+00  timeline 1, WAL from 000000010000000000000001
        ●      0/2000100  2026-11-20 10:15:09+00  backup 20261120T101500
        ◆      0/3000060  2026-11-20 10:30:00+00  restore point before_migration
        ├─╮    0/3000128                          timeline 2 leaves timeline 1: before 2026-11-20 10:31:00+00
        │ ├─╮  0/3800000                          timeline 3 leaves timeline 2: no recovery target specified
        │ │ ╵  0/3800000                          no segment of timeline 3 is archived
        │ ╵    0/4000000  2026-11-20 12:00:00+00  WAL of timeline 2 to 000000020000000000000003: 1 segment, 40 commits
        ╳      0/5000000  2026-11-20 11:00:00+00  missing: 2 segments, 000000010000000000000005 to 000000010000000000000006
        ○      0/8000100                          backup 20261120T113000, WAITING_FOR_WALS
        ╵      0/A000000  2026-11-20 12:00:00+00  WAL of timeline 1 to 000000010000000000000009: 7 segments, 80 commits
        ");
    }

    #[test]
    fn words_are_not_broken_in_short_lines() {
        let lines: Vec<String> = draw(&report(), Drawing::Ascii, Some(78))
            .into_iter()
            .map(|line| line.text)
            .collect();
        assert_snapshot!(lines[4..9].join("\n"), @r"
        |-\    0/3000128                          timeline 2 leaves timeline 1: before
        | |                                       2026-11-20 10:31:00+00
        | |-\  0/3800000                          timeline 3 leaves timeline 2: no
        | | |                                     recovery target specified
        | | +  0/3800000                          no segment of timeline 3 is archived
        ");
        assert!(lines.iter().all(|line| line.chars().count() <= 78), "{lines:#?}");
        // If not even a word fits, lines are not broken.
        assert_eq!(draw(&report(), Drawing::Ascii, Some(45)).len(), 10);
    }

    #[test]
    fn a_gap_stands_out() {
        let lines = draw(&report(), Drawing::Unicode, None);
        let red: Vec<&Line> = lines.iter().filter(|line| line.style == Style::Red).collect();
        assert_eq!(red.len(), 1);
        assert!(
            red[0]
                .text
                .contains("2 segments, 000000010000000000000005 to 000000010000000000000006")
        );
    }

    #[test]
    fn the_newest_of_many_restore_points_are_drawn() {
        let mut report = report();
        let points = &mut report.timelines[0].restore_points;
        let point = points[0].clone();
        points.extend(std::iter::repeat_n(point, RESTORE_POINTS_MAX + 1));
        let drawn = draw(&report, Drawing::Unicode, None);
        let points: Vec<&Line> = drawn
            .iter()
            .filter(|line| line.text.contains("restore point"))
            .collect();
        assert_eq!(points.len(), RESTORE_POINTS_MAX);
        assert!(points[0].text.contains("2 others before it"));
    }
}
