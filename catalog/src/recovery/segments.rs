//! The archived segments along a timeline's history, in the way PostgreSQL would request them.

use std::io::Read;

use barmanfs_pg::pg_control::RequiredSettings;
use barmanfs_pg::wal_check::check_segment;
use barmanfs_pg::wal_name::WalName;
use barmanfs_pg::wal_scan::{RecordFacts, SegmentIndex, WalScanner, join};
use barmanfs_pg::{Lsn, TimelineId, TimestampMicros};
use rusqlite::{OptionalExtension, params};

use crate::archive::wal::removal;
use crate::error::Result;
use crate::index::repository::Repository;
use crate::names::ServerName;
use crate::recovery::route::{LAST, Part, Route};

/// Size of a read.
const READ_BYTES: usize = 1 << 20;

/// The catalog's row of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) number: u64,
    /// Where its last record ends.
    pub(super) end: Lsn,
    /// Where the last record starts that both starts and ends in it.
    pub(super) last_lsn: Option<Lsn>,
    /// The latest time in a commit or abort that starts in it.
    pub(super) time_max: Option<TimestampMicros>,
    /// The segment in which the last relevant record that starts in it ends.
    pub(super) ends_in: u64,
}

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get(0)?,
            end: lsn(row.get(1)?),
            last_lsn: row.get::<_, Option<i64>>(2)?.map(lsn),
            time_max: row
                .get::<_, Option<i64>>(3)?
                .map(TimestampMicros::from_unix_micros),
            ends_in: row.get(4)?,
        })
    }
}

fn lsn(value: i64) -> Lsn {
    Lsn(value.cast_unsigned())
}

/// A condition on a segment.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    Any,
    /// Its records end before it does.
    Broken,
    /// A commit or abort starts in it.
    Commits,
    /// A commit or abort later than this starts in it.
    CommitsAfter(i64),
    /// A record starts and ends in it.
    Records,
}

impl Wanted {
    fn condition(self) -> (&'static str, &'static str) {
        match self {
            Self::Any => ("", ""),
            Self::Broken => ("INDEXED BY segments_ending_early", "AND ends_early"),
            Self::Commits => ("", "AND time_max IS NOT NULL"),
            Self::CommitsAfter(_) => ("", "AND time_max > ?5"),
            Self::Records => ("", "AND last_lsn IS NOT NULL"),
        }
    }
}

/// A relevant record, with where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) lsn: Lsn,
    pub(super) facts: RecordFacts,
    /// The last segment that it extends into.
    pub(super) last_number: u64,
}

/// A server's segments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segments<'a> {
    repository: &'a Repository,
    server: &'a ServerName,
}

impl<'a> Segments<'a> {
    pub(super) fn of(repository: &'a Repository, server: &'a ServerName) -> Self {
        Self { repository, server }
    }

    /// The timelines that have segments. This takes one step per timeline, however many segments it has.
    pub(super) fn timelines(&self) -> Result<Vec<TimelineId>> {
        self.repository.db.read(|db| {
            let mut next =
                db.prepare_cached("SELECT min(timeline) FROM segments WHERE server = ?1 AND timeline > ?2")?;
            let mut found: Vec<TimelineId> = Vec::new();
            loop {
                let last = found.last().map_or(0, |timeline| timeline.0);
                match next.query_row(params![self.server.as_str(), last], |row| row.get(0))? {
                    Some(timeline) => found.push(TimelineId(timeline)),
                    None => return Ok(found),
                }
            }
        })
    }

    /// Whether a timeline's segment of this number is archived.
    pub(super) fn has(&self, timeline: TimelineId, number: u64) -> Result<bool> {
        Ok(self
            .one(vec![(timeline, number..=number)], "ASC", Wanted::Any)?
            .is_some())
    }

    /// Where the last record starts in a timeline's segment of this number.
    pub(super) fn last_record_in(&self, timeline: TimelineId, number: u64) -> Result<Option<Lsn>> {
        let row = self.one(vec![(timeline, number..=number)], "ASC", Wanted::Any)?;
        Ok(row.and_then(|row| row.last_lsn))
    }

    fn first(&self, route: &Route, from: u64, to: u64, wanted: Wanted) -> Result<Option<Row>> {
        self.one(route.parts(from, to), "ASC", wanted)
    }

    fn last(&self, route: &Route, from: u64, to: u64, wanted: Wanted) -> Result<Option<Row>> {
        let mut parts = route.parts(from, to);
        parts.reverse();
        self.one(parts, "DESC", wanted)
    }

    fn one(&self, parts: Vec<Part>, direction: &str, wanted: Wanted) -> Result<Option<Row>> {
        let (index, condition) = wanted.condition();
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(&format!(
                "SELECT number, end_lsn, last_lsn, time_max, ends_in FROM segments {index}
                 WHERE server = ?1 AND timeline = ?2 AND number BETWEEN ?3 AND ?4 {condition}
                 ORDER BY number {direction} LIMIT 1"
            ))?;
            for (timeline, numbers) in parts {
                let server = self.server.as_str();
                let (from, to) = (numbers.start(), numbers.end());
                let row = match wanted {
                    Wanted::CommitsAfter(time) => {
                        query.query_row(params![server, timeline.0, from, to, time], Row::read)
                    }
                    _ => query.query_row(params![server, timeline.0, from, to], Row::read),
                };
                if let Some(row) = row.optional()? {
                    return Ok(Some(row));
                }
            }
            Ok(None)
        })
    }

    /// The first segment of a PostgreSQL version whose WAL was unknown when it was indexed, and whether it still is.
    pub(super) fn first_unknown(&self, route: &Route, from: u64, to: u64) -> Result<Option<(u64, bool)>> {
        let found: Option<(u64, u32)> = self.in_parts(
            route,
            from,
            to,
            "SELECT number, reads FROM segments INDEXED BY segments_unknown
             WHERE server = ?1 AND timeline = ?2 AND number BETWEEN ?3 AND ?4 AND unknown ORDER BY number LIMIT 1",
            &mut |row| Ok((row.get(0)?, row.get(1)?)),
            1,
        )?
        .pop();
        Ok(found.map(|(number, reads)| (number, reads >= SegmentIndex::READS)))
    }

    /// The first segment in which a tablespace is created.
    pub(super) fn first_with_tablespaces(&self, route: &Route, from: u64, to: u64) -> Result<Option<u64>> {
        let mut found = self.in_parts(
            route,
            from,
            to,
            "SELECT number FROM segments INDEXED BY segments_with_tablespaces
             WHERE server = ?1 AND timeline = ?2 AND number BETWEEN ?3 AND ?4 AND tablespaces > 0
             ORDER BY number LIMIT 1",
            &mut |row| row.get(0),
            1,
        )?;
        Ok(found.pop())
    }

    /// Where the server was started with other settings: whether with `wal_level = minimal`, and the settings that a
    /// standby needs at least.
    pub(super) fn parameter_changes(
        &self,
        route: &Route,
        from: u64,
        to: u64,
    ) -> Result<Vec<(Lsn, bool, RequiredSettings)>> {
        let found: Vec<(i64, bool, String)> = self.in_parts(
            route,
            from,
            to,
            "SELECT lsn, minimal, required FROM parameter_changes
             WHERE server = ?1 AND timeline = ?2 AND number BETWEEN ?3 AND ?4 ORDER BY lsn",
            &mut |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            usize::MAX,
        )?;
        found
            .into_iter()
            .map(|(at, minimal, required)| {
                let required = serde_json::from_str(&required)
                    .map_err(|error| crate::Error::Invalid(error.to_string()))?;
                Ok((lsn(at), minimal, required))
            })
            .collect()
    }

    /// The segments, at most `count` of them, whose index was made by a release that looked for less.
    pub(super) fn unread(&self, route: &Route, from: u64, to: u64, count: u64) -> Result<Vec<u64>> {
        let any = self.repository.db.read(|db| {
            Ok(db
                .prepare_cached("SELECT 1 FROM segments WHERE server = ?1 AND reads < ?2 LIMIT 1")?
                .exists(params![self.server.as_str(), SegmentIndex::READS])?)
        })?;
        if !any {
            return Ok(Vec::new());
        }
        let query = format!(
            "SELECT number FROM segments WHERE server = ?1 AND timeline = ?2 AND number BETWEEN ?3 AND ?4
             AND reads < {} ORDER BY number LIMIT {count}",
            SegmentIndex::READS
        );
        let limit = usize::try_from(count).unwrap_or(usize::MAX);
        self.in_parts(route, from, to, &query, &mut |row| row.get(0), limit)
    }

    /// How many such segments there are.
    pub(super) fn count_unread(&self, route: &Route, from: u64, to: u64) -> Result<u64> {
        let query = format!(
            "SELECT count(*) FROM segments WHERE server = ?1 AND timeline = ?2 AND number BETWEEN ?3 AND ?4
             AND reads < {}",
            SegmentIndex::READS
        );
        let counts: Vec<u64> = self.in_parts(route, from, to, &query, &mut |row| row.get(0), usize::MAX)?;
        Ok(counts.into_iter().sum())
    }

    /// The rows a query returns for each part of the route, at most `limit` of them.
    fn in_parts<T>(
        &self,
        route: &Route,
        from: u64,
        to: u64,
        query: &str,
        read: &mut dyn FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
        limit: usize,
    ) -> Result<Vec<T>> {
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(query)?;
            let mut found = Vec::new();
            for (timeline, numbers) in route.parts(from, to) {
                let range = params![self.server.as_str(), timeline.0, numbers.start(), numbers.end()];
                let mut rows = query.query(range)?;
                while let Some(row) = rows.next()? {
                    if found.len() >= limit {
                        return Ok(found);
                    }
                    found.push(read(row)?);
                }
            }
            Ok(found)
        })
    }

    /// The start of the first record at or after `from` in a segment.
    pub(super) fn first_start(&self, route: &Route, number: u64, from: Lsn) -> Result<Option<Lsn>> {
        let mut found = None;
        self.scan(route, number, &mut |lsn, _| {
            if lsn >= from && found.is_none() {
                found = Some(lsn);
            }
            found.is_some()
        })?;
        Ok(found)
    }

    /// The segment of this number.
    pub(super) fn row(&self, route: &Route, number: u64) -> Result<Option<Row>> {
        self.first(route, number, number, Wanted::Any)
    }

    /// Whether a segment that is not archived was removed because no policy kept it.
    pub(super) fn is_removed(&self, route: &Route, number: u64) -> Result<bool> {
        let name = WalName::Segment(route.name(number));
        self.repository
            .db
            .read(|db| removal::is_removed(db, self.server, &name))
    }

    /// The first number from `from` to `to` that is not archived.
    pub(super) fn first_missing(&self, route: &Route, from: u64, to: u64) -> Result<Option<u64>> {
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT count(*), coalesce(max(number), 0) FROM segments
                 WHERE server = ?1 AND timeline = ?2 AND number BETWEEN ?3 AND ?4",
            )?;
            for (timeline, numbers) in route.parts(from, to) {
                let mut count = |from: u64, to: u64| -> Result<(u64, u64)> {
                    let range = params![self.server.as_str(), timeline.0, from, to];
                    Ok(query.query_row(range, |row| Ok((row.get(0)?, row.get(1)?)))?)
                };
                let (mut low, end) = (*numbers.start(), *numbers.end());
                let (found, mut high) = count(low, end)?;
                if found == 0 {
                    return Ok(Some(low));
                }
                if found == high - low + 1 {
                    if high == end {
                        continue;
                    }
                    return Ok(Some(high + 1));
                }
                // All before `low` are archived, but not all from `low` to `high`.
                while low < high {
                    let middle = low + (high - low) / 2;
                    match count(low, middle)?.0 == middle - low + 1 {
                        true => low = middle + 1,
                        false => high = middle,
                    }
                }
                return Ok(Some(low));
            }
            Ok(None)
        })
    }

    /// The first number from `from` on that is archived.
    pub(super) fn first_present(&self, route: &Route, from: u64) -> Result<Option<u64>> {
        Ok(self.first(route, from, LAST, Wanted::Any)?.map(|row| row.number))
    }

    /// The first segment whose records end before it does.
    pub(super) fn first_broken(&self, route: &Route, from: u64, to: u64) -> Result<Option<Row>> {
        self.first(route, from, to, Wanted::Broken)
    }

    /// The first of these segments with a commit or abort after `time`, or at it unless `inclusive`.
    pub(super) fn first_after(
        &self,
        route: &Route,
        (from, to): (u64, u64),
        time: TimestampMicros,
        inclusive: bool,
    ) -> Result<Option<Row>> {
        let after = time.unix_micros() - i64::from(!inclusive);
        self.first(route, from, to, Wanted::CommitsAfter(after))
    }

    /// Whether there is such a commit or abort anywhere on the route.
    pub(super) fn any_after(&self, route: &Route, time: TimestampMicros, inclusive: bool) -> Result<bool> {
        // Most requested times are recent, and only the newest segments have something later.
        let after = time.unix_micros() - i64::from(!inclusive);
        Ok(self.last(route, 0, LAST, Wanted::CommitsAfter(after))?.is_some())
    }

    /// The last segment from `from` to `to` with a commit or abort.
    pub(super) fn last_with_commits(&self, route: &Route, from: u64, to: u64) -> Result<Option<Row>> {
        self.last(route, from, to, Wanted::Commits)
    }

    /// The first segment from `from` on in which a record both starts and ends.
    pub(super) fn first_with_records(&self, route: &Route, from: u64) -> Result<Option<Row>> {
        self.first(route, from, LAST, Wanted::Records)
    }

    /// The segments in which transaction `xid` may have ended, newest first.
    fn with_xid(&self, route: &Route, xid: u32) -> Result<Vec<u64>> {
        let mut parts = route.parts(0, LAST);
        parts.reverse();
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT number FROM segments WHERE server = ?1 AND timeline = ?2 AND number BETWEEN ?3 AND ?4
                 AND (?5 BETWEEN xid_min AND xid_max OR (xid_min IS NULL AND time_max IS NOT NULL))
                 ORDER BY number DESC",
            )?;
            let mut numbers: Vec<u64> = Vec::new();
            for (timeline, part) in parts {
                let range = params![self.server.as_str(), timeline.0, part.start(), part.end(), xid];
                let found = query.query_map(range, |row| row.get(0))?;
                numbers.extend(found.collect::<rusqlite::Result<Vec<u64>>>()?);
            }
            Ok(numbers)
        })
    }

    /// The last commit or abort of transaction `xid` on the route.
    pub(super) fn end_of_xid(&self, route: &Route, xid: u32) -> Result<Option<Found>> {
        for number in self.with_xid(route, xid)? {
            let found = self.find_record(route, number, &mut |_, facts| {
                matches!(facts, RecordFacts::Commit { xid: other, .. } | RecordFacts::Abort { xid: other, .. }
                    if *other == xid)
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Restore points of this name on the route, in order.
    pub(super) fn restore_points(&self, route: &Route, name: &str) -> Result<Vec<(Lsn, TimestampMicros)>> {
        let all: Vec<(u32, u64, i64, i64)> = self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT timeline, number, lsn, time FROM restore_points WHERE server = ?1 AND name = ?2
                 ORDER BY lsn",
            )?;
            let rows = query.query_map(params![self.server.as_str(), name], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })?;
        Ok(all
            .into_iter()
            .filter(|(timeline, number, _, _)| route.timeline_at(*number) == TimelineId(*timeline))
            .map(|(_, _, at, time)| (lsn(at), TimestampMicros::from_unix_micros(time)))
            .collect())
    }

    /// The names of restore points, the newest first, at most `count` of them.
    pub(super) fn restore_point_names(&self, count: usize) -> Result<Vec<String>> {
        self.repository.db.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT name FROM restore_points WHERE server = ?1 GROUP BY name ORDER BY max(time) DESC LIMIT ?2",
            )?;
            let rows = query.query_map(params![self.server.as_str(), count], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Reads a segment's records in order until `wanted` returns true.
    pub(super) fn find_record(
        &self,
        route: &Route,
        number: u64,
        wanted: &mut dyn FnMut(Lsn, &RecordFacts) -> bool,
    ) -> Result<Option<Found>> {
        let mut found = None;
        self.scan(route, number, &mut |lsn, facts| {
            if found.is_none()
                && let Some(facts) = facts
                && wanted(lsn, facts)
            {
                found = Some(Found {
                    lsn,
                    facts: facts.clone(),
                    last_number: number,
                });
            }
            found.is_some()
        })?;
        if found.is_none()
            && let Some(crossing) = self.crossing(route, number)?
            && wanted(crossing.lsn, &crossing.facts)
        {
            found = Some(crossing);
        }
        Ok(found)
    }

    /// Reads a segment's records until `each` returns true.
    fn scan(
        &self,
        route: &Route,
        number: u64,
        each: &mut dyn FnMut(Lsn, Option<&RecordFacts>) -> bool,
    ) -> Result<()> {
        let name = route.name(number);
        let Some(file) = self.repository.wal(self.server).find(&WalName::Segment(name))? else {
            return Ok(());
        };
        let size_bytes = file.size_bytes;
        let mut reader = self.repository.trees().reader(file.map);
        let mut buffer = vec![0; READ_BYTES];
        let mut scanner = None;
        let mut enough = false;
        loop {
            let length = read_full(&mut reader, &mut buffer).map_err(|source| crate::Error::WalSource {
                name: WalName::Segment(name),
                source: std::sync::Arc::new(source),
            })?;
            let bytes = buffer.get(..length).unwrap_or_default();
            if bytes.is_empty() || enough {
                return Ok(());
            }
            let scanner = match &mut scanner {
                Some(scanner) => scanner,
                none => none.insert(WalScanner::new(&name, &check_segment(bytes, &name, size_bytes)?)),
            };
            scanner.push_each(bytes, &mut |lsn, facts| {
                if !enough {
                    enough = each(lsn, facts);
                }
            });
        }
    }

    /// The record that starts in a segment and ends in a later one, if it is relevant and complete.
    fn crossing(&self, route: &Route, number: u64) -> Result<Option<Found>> {
        let Some(row) = self.row(route, number)?.filter(|row| row.ends_in > number) else {
            return Ok(None);
        };
        let index_of = |number: u64| -> Result<Option<SegmentIndex>> {
            let name = WalName::Segment(route.name(number));
            Ok(self
                .repository
                .wal(self.server)
                .find(&name)?
                .and_then(|file| file.index))
        };
        let mut heads = Vec::new();
        for number in number + 1..=row.ends_in {
            heads.extend(index_of(number)?.and_then(|index| index.head));
        }
        let tail = index_of(number)?.and_then(|index| index.tail);
        let record = tail.and_then(|tail| join(&tail, &heads.iter().collect::<Vec<_>>()));
        Ok(record.map(|record| Found {
            lsn: record.lsn,
            facts: record.facts,
            last_number: row.ends_in,
        }))
    }
}

/// Whether PostgreSQL stops before a commit at time `at` when the target is `time`.
pub(super) fn is_after(at: TimestampMicros, time: TimestampMicros, inclusive: bool) -> bool {
    at > time || (at == time && !inclusive)
}

fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
