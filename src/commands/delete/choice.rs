//! Which backups a rule names, in WAL-G's words: facts in, backups out. Whether they may be deleted is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use barmanfs_catalog::retention::probable_begins;
use barmanfs_catalog::{Backup, BackupId, BackupStatus};
use barmanfs_pg::TimestampMicros;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// All but the newest ones, and but those from this place on.
    Retain { count: usize, after: Option<Place> },
    /// Those before this place.
    Before(Place),
    /// All.
    All,
}

/// A place in the row of a server's backups.
///
/// Ids grow with each backup, also where a clock was set back. So a backup's place is its id, and never its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// That of a backup.
    Backup(BackupId),
    /// That of a time. A backup whose clock was wrong counts as one of the next newer one's time.
    Time(TimestampMicros),
}

impl Place {
    fn is_behind(self, backup: BackupId, begins: &BTreeMap<BackupId, TimestampMicros>) -> bool {
        match self {
            Self::Backup(id) => backup < id,
            Self::Time(time) => begins.get(&backup).is_some_and(|begin| *begin < time),
        }
    }
}

/// The backups that a rule names at a moment, oldest first.
///
/// Backups that somebody keeps, those of clones, and those that are being taken belong to no rule but `All`. Only backups
/// of the history that counts, and that can be relied on, count as retained: a failed or damaged one protects nothing.
pub(super) fn chosen(
    rule: Rule,
    all: &[Backup],
    kept: &BTreeSet<BackupId>,
    is_doubtful: impl Fn(BackupId) -> bool,
    now: TimestampMicros,
) -> Vec<Backup> {
    let places = match rule {
        Rule::All => return all.to_vec(),
        Rule::Before(place) => [Some(place), None],
        Rule::Retain { count, after } => {
            let is_reliable = |backup: &&Backup| {
                backup.status == BackupStatus::Done
                    && backup.is_of_current_history()
                    && !is_doubtful(backup.id)
            };
            let mut reliable: Vec<BackupId> =
                all.iter().filter(is_reliable).map(|backup| backup.id).collect();
            reliable.sort_unstable();
            let Some(oldest) = reliable
                .len()
                .checked_sub(count)
                .and_then(|place| reliable.get(place))
            else {
                return Vec::new();
            };
            [Some(Place::Backup(*oldest)), after]
        }
    };
    let own: Vec<Backup> = all
        .iter()
        .filter(|backup| backup.is_of_server())
        .cloned()
        .collect();
    let begins = probable_begins(&own, now);
    let is_free = |backup: &&Backup| {
        let mut places = places.iter().flatten();
        places.all(|place| place.is_behind(backup.id, &begins))
            && backup.status != BackupStatus::Started
            && !kept.contains(&backup.id)
    };
    own.iter().filter(is_free).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use barmanfs_catalog::ServerName;
    use barmanfs_store::RecordId;

    use crate::testing::backup;

    fn day(day: u8) -> TimestampMicros {
        format!("2026-11-{day:02}T00:00:00Z").parse().unwrap()
    }

    fn backups() -> Vec<Backup> {
        let done = BackupStatus::Done;
        [
            (1, done),
            (2, done),
            (3, BackupStatus::Failed),
            (4, done),
            (5, done),
        ]
        .into_iter()
        .map(|(number, status)| {
            let mut backup = backup(status);
            backup.id = format!("2026110{number}T000000").parse().unwrap();
            backup.begin_time = day(number);
            backup
        })
        .collect()
    }

    fn days(rule: Rule, kept: &[&str], doubtful: &[&str]) -> String {
        days_of(rule, &backups(), kept, doubtful)
    }

    fn days_of(rule: Rule, backups: &[Backup], kept: &[&str], doubtful: &[&str]) -> String {
        let kept = kept.iter().map(|id| id.parse().unwrap()).collect();
        let is_doubtful = |id: BackupId| doubtful.contains(&id.to_string().as_str());
        let chosen = chosen(rule, backups, &kept, is_doubtful, day(9));
        let days = chosen
            .iter()
            .map(|backup| backup.id.to_string().get(7..8).unwrap_or_default().to_owned());
        days.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_newest_ones_are_retained() {
        let retain = |count| Rule::Retain { count, after: None };
        assert_eq!(days(retain(2), &[], &[]), "1 2 3");
        assert_eq!(days(retain(3), &[], &[]), "1");
        assert_eq!(days(retain(4), &[], &[]), "");
        assert_eq!(days(retain(9), &[], &[]), "");
        assert_eq!(days(retain(0), &[], &[]), "");
        // What cannot be relied on is not counted.
        assert_eq!(days(retain(2), &[], &["20261105T000000"]), "1");
        assert_eq!(days(retain(2), &["20261101T000000"], &[]), "2 3");
        let after = |day| Rule::Retain {
            count: 1,
            after: Some(Place::Time(day)),
        };
        assert_eq!(days(after(day(2)), &[], &[]), "1");
        assert_eq!(days(after(day(9)), &[], &[]), "1 2 3 4");
    }

    #[test]
    fn a_time_is_a_limit_and_all_is_all() {
        assert_eq!(days(Rule::Before(Place::Time(day(3))), &[], &[]), "1 2");
        assert_eq!(
            days(Rule::Before(Place::Time(day(5))), &["20261102T000000"], &[]),
            "1 3 4"
        );
        assert_eq!(days(Rule::All, &["20261102T000000"], &[]), "1 2 3 4 5");
    }

    #[test]
    fn backups_of_a_history_that_was_left_protect_nothing() {
        let mut backups = backups();
        for place in [3, 4] {
            let (server, fork) = (&backups[place].server, RecordId([1; 16]));
            backups[place].apart = Some(ServerName::of_left_history(server, fork));
        }
        let retain = |count| Rule::Retain { count, after: None };
        assert_eq!(days_of(retain(2), &backups, &[], &[]), "");
        assert_eq!(days_of(retain(1), &backups, &[], &[]), "1");
    }

    #[test]
    fn a_wrong_clock_never_makes_a_newer_backup_an_older_one() {
        let place = |number: u8| Place::Backup(format!("2026110{number}T000000").parse().unwrap());
        let retain = |count| Rule::Retain { count, after: None };
        let long_ago: TimestampMicros = "2001-01-01T00:00:00Z".parse().unwrap();
        for (wrong, begin) in (0..5).flat_map(|wrong| [(wrong, day(30)), (wrong, long_ago)]) {
            let mut backups = backups();
            backups[wrong].begin_time = begin;
            let of = |rule| days_of(rule, &backups, &[], &[]);
            assert_eq!(of(retain(1)), "1 2 3 4", "{wrong} {begin}");
            assert_eq!(of(retain(2)), "1 2 3", "{wrong} {begin}");
            for number in 1..=5 {
                let what = format!("{wrong} {begin} {number}");
                let older: BTreeSet<String> = (1..number).map(|number| number.to_string()).collect();
                let named = |rule| {
                    let days = of(rule);
                    days.split_whitespace()
                        .map(str::to_owned)
                        .collect::<BTreeSet<_>>()
                };
                assert_eq!(named(Rule::Before(place(number))), older, "{what}");
                // By a time, it goes at the earliest with the next one, and takes no other one with it. Nothing shows that
                // the oldest one is not that old.
                let mut before = named(Rule::Before(Place::Time(day(number))));
                let is_oldest = wrong == 0 && begin == long_ago;
                assert!(before.is_subset(&older) || is_oldest, "{what}: {before:?}");
                before.insert((wrong + 1).to_string());
                assert!(before.is_superset(&older), "{what}: {before:?}");
            }
        }
    }
}
