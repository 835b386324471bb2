//! Whether there is a backup, and whether it is recent and large enough. Facts in, findings out.

use std::time::Duration;

use barmanfs_catalog::{Backup, BackupStatus};
use barmanfs_pg::TimestampMicros;

use super::doubts::Doubts;
use super::finding::Finding;
use crate::config::Limits;
use crate::invocation::Invocation;
use crate::output;

const COMPLETE: &str = "complete backup";
const AGE: &str = "backup maximum age";
const SIZE: &str = "backup minimum size";
const REDUNDANCY: &str = "minimum redundancy requirements";

/// Number of last intervals between backups that determine the usual interval.
const RECENT: usize = 10;
/// Fewer intervals are not enough: a few manual backups one after the other are not a habit.
const INTERVALS_MIN: usize = 2;
/// The usual interval if there are too few backups to determine it.
const ASSUMED_SECONDS: u64 = 7 * 24 * 3600;
/// Maximum difference between the clocks of two hosts that share a repository.
const AHEAD_SECONDS_MAX: u64 = 300;
/// The usual interval is at least this long.
const SHORTEST_SECONDS: u64 = 1800;

/// The facts for the rules.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    /// The server's name.
    pub(super) server: &'a str,
    /// For hints with commands.
    pub(super) invocation: &'a Invocation,
    /// Its own backups, oldest first.
    pub(super) backups: &'a [Backup],
    /// The configuration.
    pub(super) limits: &'a Limits,
    /// `minimum_redundancy`
    pub(super) minimum_redundancy: usize,
    /// The backups that cannot be relied on.
    pub(super) doubts: &'a Doubts,
    /// Whether its backups come from a primary.
    pub(super) is_passive: bool,
    /// The time by this host's clock, which determines the times of backups.
    pub(super) now: TimestampMicros,
}

impl Facts<'_> {
    /// How the server gets a backup.
    fn backup_command(&self) -> String {
        self.command(if self.is_passive { "sync" } else { "backup" })
    }

    fn command(&self, name: &str) -> String {
        self.invocation.with(&format!("{name} {}", self.server))
    }
}

/// The findings about complete backups.
pub(super) fn findings(facts: &Facts<'_>) -> Vec<Finding> {
    let done: Vec<&Backup> = facts
        .backups
        .iter()
        .filter(|backup| backup.status == BackupStatus::Done && backup.is_of_current_history())
        .collect();
    let mut findings = vec![complete(facts, &done)];
    findings.extend(age(facts, &done));
    findings.extend(size(facts, &done));
    findings.push(redundancy(facts, &done));
    findings
}

fn complete(facts: &Facts<'_>, done: &[&Backup]) -> Finding {
    match done.last() {
        Some(last) => Finding::ok(
            COMPLETE,
            format!("{}, the last is {}", output::count(done.len(), "backup"), last.id),
        ),
        None => Finding::failed(
            COMPLETE,
            match facts.is_passive {
                true => format!("there is none: '{}' fetches them", facts.command("sync")),
                false => format!("there is none: '{}' takes one", facts.command("backup")),
            },
        ),
    }
}

fn age(facts: &Facts<'_>, done: &[&Backup]) -> Option<Finding> {
    let Some(last) = done.last() else {
        let limit = facts.limits.backup_age.as_ref()?;
        return Some(Finding::failed(
            AGE,
            format!("interval provided: {limit}, and there is no complete backup"),
        ));
    };
    let ended = last.end_time.unwrap_or(last.begin_time);
    let ahead = |backup: &Backup| seconds_between(facts.now, backup.end_time.unwrap_or(backup.begin_time));
    if let Some(backup) = done.iter().rfind(|backup| ahead(backup) > AHEAD_SECONDS_MAX) {
        return Some(Finding::warning(
            AGE,
            from_the_future(facts, backup, ahead(backup)),
        ));
    }
    let age = seconds_between(ended, facts.now);
    let shown = output::duration(Duration::from_secs(age));
    let remedy = format!(
        "{} '{}', and see why none was taken",
        if facts.is_passive {
            "fetch with"
        } else {
            "take one with"
        },
        facts.backup_command()
    );
    if let Some(limit) = &facts.limits.backup_age {
        let text = format!("interval provided: {limit}, latest backup age: {shown}");
        return Some(match age > limit.seconds {
            true => Finding::failed(AGE, format!("{text}: {remedy}")),
            false => Finding::ok(AGE, text),
        });
    }
    let usual = usual_interval(done);
    let interval = usual.unwrap_or(ASSUMED_SECONDS).max(SHORTEST_SECONDS);
    if age <= interval.saturating_mul(2) {
        return Some(Finding::ok(AGE, format!("latest backup age: {shown}")));
    }
    let why = match usual {
        Some(usual) => format!(
            "usual between two are {}",
            output::duration(Duration::from_secs(usual))
        ),
        None => "there are too few to know how often they are usual".to_owned(),
    };
    Some(Finding::warning(
        AGE,
        format!("latest backup age: {shown}, and {why}: {remedy}; last_backup_maximum_age sets a limit"),
    ))
}

/// The age of such a backup is unknown, and a window keeps it until long after that time.
fn from_the_future(facts: &Facts<'_>, backup: &Backup, ahead: u64) -> String {
    format!(
        "backup {id} ended {} in the future by this host's clock: set the clock right; where it is right now, \
         take another with '{}', and delete this one: '{}'",
        output::duration(Duration::from_secs(ahead)),
        facts.backup_command(),
        facts
            .invocation
            .with(&format!("delete {} {}", facts.server, backup.id)),
        id = backup.id,
    )
}

/// The median of the last intervals between backups, in seconds; `None` if there are too few.
fn usual_interval(done: &[&Backup]) -> Option<u64> {
    let mut intervals: Vec<u64> = done
        .windows(2)
        .rev()
        .take(RECENT)
        .filter_map(|pair| {
            let [before, after] = pair else { return None };
            Some(seconds_between(before.begin_time, after.begin_time))
        })
        .collect();
    if intervals.len() < INTERVALS_MIN {
        return None;
    }
    intervals.sort_unstable();
    intervals.get(intervals.len() / 2).copied()
}

fn seconds_between(from: TimestampMicros, to: TimestampMicros) -> u64 {
    to.saturating_duration_since(from).as_secs()
}

fn size(facts: &Facts<'_>, done: &[&Backup]) -> Option<Finding> {
    let limit = facts.limits.backup_size;
    // Of a snapshot, only the storage knows the size.
    if done.last().is_some_and(|last| last.is_snapshot()) {
        return None;
    }
    let Some(last) = done.last() else {
        return limit.map(|_| Finding::failed(SIZE, "there is no complete backup"));
    };
    let size = output::bytes(last.logical_bytes);
    let Some(limit) = limit else {
        return Some(Finding::ok(SIZE, size));
    };
    let least = output::bytes(limit);
    Some(if last.logical_bytes < limit {
        Finding::failed(
            SIZE,
            format!(
                "last backup size {size} < {least} minimum: look into {} before older ones are deleted",
                last.id
            ),
        )
    } else {
        Finding::ok(SIZE, format!("last backup size {size} > {least} minimum"))
    })
}

fn redundancy(facts: &Facts<'_>, done: &[&Backup]) -> Finding {
    let least = facts.minimum_redundancy;
    let good = done
        .iter()
        .filter(|backup| !facts.doubts.concern(backup.id))
        .count();
    let others = match done.len() - good {
        0 => String::new(),
        others => format!(" and {others} damaged or with a failed boot test"),
    };
    let text = format!(
        "have {}{others}, expected at least {least}",
        output::count(good, "backup")
    );
    match good < least {
        true => Finding::failed(REDUNDANCY, text),
        false => Finding::ok(REDUNDANCY, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::limits;
    use crate::health::finding::State;
    use crate::testing::backup;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    /// Complete backups that ended this many seconds ago.
    fn taken(ago: &[i64]) -> Vec<Backup> {
        let one = |ago: &i64| {
            let mut backup = backup(BackupStatus::Done);
            backup.begin_time = TimestampMicros::from_unix_seconds(1_000_000_000 - ago);
            backup.end_time = Some(backup.begin_time);
            backup
        };
        ago.iter().map(one).collect()
    }

    fn found(backups: &[Backup], settings: &str) -> Vec<(&'static str, State)> {
        let (limits, minimum_redundancy) = limits(settings);
        let facts = Facts {
            server: "main",
            invocation: &Invocation::current(None),
            backups,
            limits: &limits,
            minimum_redundancy,
            doubts: &Doubts::default(),
            is_passive: false,
            now: TimestampMicros::from_unix_seconds(1_000_000_000),
        };
        let bad = findings(&facts)
            .into_iter()
            .filter(|finding| finding.state != State::Ok);
        bad.map(|finding| (finding.name, finding.state)).collect()
    }

    #[test]
    fn a_month_without_a_backup_is_found_without_configuration() {
        let daily: Vec<i64> = (0..12).rev().map(|day| day * DAY).collect();
        assert_eq!(found(&taken(&daily), ""), []);
        let shifted = |by: i64| taken(&daily.iter().map(|ago| ago + by).collect::<Vec<_>>());
        assert_eq!(found(&shifted(2 * DAY), ""), []);
        assert_eq!(found(&shifted(2 * DAY + 1), ""), [(AGE, State::Warning)]);
        assert_eq!(found(&shifted(31 * DAY), ""), [(AGE, State::Warning)]);
        // One pause is not a habit, nor is a first backup.
        assert_eq!(
            found(&taken(&[40 * DAY, 39 * DAY, 3 * DAY, 2 * DAY, DAY]), ""),
            []
        );
        assert_eq!(found(&taken(&[13 * DAY]), ""), []);
        assert_eq!(found(&taken(&[31 * DAY]), ""), [(AGE, State::Warning)]);
        // Several manual backups.
        assert_eq!(found(&taken(&[HOUR, HOUR - 10, HOUR - 20]), ""), []);
    }

    #[test]
    fn configured_limits_are_checked() {
        let backups = taken(&[3 * DAY, 2 * DAY]);
        assert_eq!(found(&backups, "last_backup_maximum_age = 2 DAYS"), []);
        assert_eq!(
            found(&backups, "last_backup_maximum_age = 47 HOURS"),
            [(AGE, State::Failed)]
        );
        assert_eq!(found(&backups, "last_backup_minimum_size = 3Gi"), []);
        assert_eq!(
            found(&backups, "last_backup_minimum_size = 4G"),
            [(SIZE, State::Failed)]
        );
        assert_eq!(found(&backups, "minimum_redundancy = 2"), []);
        assert_eq!(
            found(&backups, "minimum_redundancy = 3"),
            [(REDUNDANCY, State::Failed)]
        );
        assert_eq!(found(&[], ""), [(COMPLETE, State::Failed)]);
        assert_eq!(
            found(&[], "last_backup_maximum_age = 1 DAY"),
            [(COMPLETE, State::Failed), (AGE, State::Failed)]
        );
    }
}
