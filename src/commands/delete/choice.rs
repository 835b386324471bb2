//! Which backups a rule names, in WAL-G's words: facts in, backups out. Whether they may be deleted is decided elsewhere.

use std::collections::BTreeSet;

use barmanfs_catalog::{Backup, BackupId, BackupStatus};
use barmanfs_pg::TimestampMicros;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// All but the newest ones, and but those that began after this time.
    Retain {
        count: usize,
        after: Option<TimestampMicros>,
    },
    /// Those that began before this time.
    Before(TimestampMicros),
    /// All.
    All,
}

/// The backups that a rule names, oldest first.
///
/// Backups that somebody keeps, those of clones, and those that are being taken belong to no rule but `All`. Only backups
/// that can be relied on count as retained: a failed or damaged one protects nothing.
pub(super) fn chosen(
    rule: Rule,
    all: &[Backup],
    kept: &BTreeSet<BackupId>,
    is_doubtful: impl Fn(BackupId) -> bool,
) -> Vec<Backup> {
    let before = match rule {
        Rule::All => return all.to_vec(),
        Rule::Before(time) => time,
        Rule::Retain { count, after } => {
            let reliable = all.iter().rev().filter(|backup| {
                backup.status == BackupStatus::Done && backup.is_of_server() && !is_doubtful(backup.id)
            });
            let Some(oldest) = count.checked_sub(1).and_then(|rest| reliable.clone().nth(rest)) else {
                return Vec::new();
            };
            after.map_or(oldest.begin_time, |after| after.min(oldest.begin_time))
        }
    };
    let is_free = |backup: &&Backup| {
        backup.begin_time < before
            && backup.is_of_server()
            && backup.status != BackupStatus::Started
            && !kept.contains(&backup.id)
    };
    all.iter().filter(is_free).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let kept = kept.iter().map(|id| id.parse().unwrap()).collect();
        let is_doubtful = |id: BackupId| doubtful.contains(&id.to_string().as_str());
        let chosen = chosen(rule, &backups(), &kept, is_doubtful);
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
            after: Some(day),
        };
        assert_eq!(days(after(day(2)), &[], &[]), "1");
        assert_eq!(days(after(day(9)), &[], &[]), "1 2 3 4");
    }

    #[test]
    fn a_time_is_a_limit_and_all_is_all() {
        assert_eq!(days(Rule::Before(day(3)), &[], &[]), "1 2");
        assert_eq!(days(Rule::Before(day(5)), &["20261102T000000"], &[]), "1 3 4");
        assert_eq!(days(Rule::All, &["20261102T000000"], &[]), "1 2 3 4 5");
    }
}
