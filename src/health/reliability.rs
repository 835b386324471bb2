//! Whether the newest backup can be relied on, by the results of verifications and boot tests.

use std::collections::BTreeSet;

use barmanfs_catalog::{Backup, BackupId, BackupStatus, BootTest};
use barmanfs_pg::TimestampMicros;

use super::Subject;
use super::doubts::Doubts;
use super::finding::Finding;
use crate::invocation::Invocation;
use crate::output;

const DAMAGE: &str = "damage of backups";
const BOOT: &str = "boot tests";
const BOOT_AGE: &str = "boot test age";

/// Both findings: FAILED if the newest complete backup is concerned, a warning if only older ones are.
pub(super) fn findings(subject: Subject<'_>, backups: &[Backup], doubts: &Doubts) -> [Finding; 2] {
    let (invocation, server) = (subject.invocation, subject.server.name.as_str());
    let complete: Vec<BackupId> = backups
        .iter()
        .filter(|backup| backup.status == BackupStatus::Done)
        .map(|backup| backup.id)
        .collect();
    [
        damage(subject, &complete, &doubts.damaged),
        boot(invocation, server, &complete, &doubts.not_booted),
    ]
}

fn damage(subject: Subject<'_>, complete: &[BackupId], damaged: &BTreeSet<BackupId>) -> Finding {
    let (invocation, server) = (subject.invocation, subject.server.name.as_str());
    let found = Found::among(complete, damaged);
    let Some(id) = found.newest else {
        return Finding::ok(
            DAMAGE,
            format!("none is known: '{}' looks for it", invocation.with("verify")),
        );
    };
    let (command, whose) = match subject.server.is_passive() {
        true => (format!("sync-backup {server} {id}"), "primary"),
        false => (format!("backup {server} --incremental never"), "server"),
    };
    let remedy = format!(
        "'{}' names the files; '{}' stores again what the {whose} still has of them",
        invocation.with(&format!("verify {server} {id}")),
        invocation.with(&command)
    );
    found.line(DAMAGE, "is damaged", "damaged", &remedy)
}

fn boot(
    invocation: &Invocation,
    server: &str,
    complete: &[BackupId],
    failed: &BTreeSet<BackupId>,
) -> Finding {
    let found = Found::among(complete, failed);
    let Some(id) = found.newest else {
        return Finding::ok(BOOT, "none has failed");
    };
    let remedy = format!(
        "'{}' says why; take another backup, and test it with '{}'",
        invocation.with(&format!("show-backup {server} {id}")),
        invocation.with(&format!("verify {server} latest --boot"))
    );
    found.line(BOOT, "failed its boot test", "with a failed boot test", &remedy)
}

/// When a backup was last tested, whatever came out: [`findings`] tells that. Nothing where no test is wanted and none
/// was made.
pub(super) fn test_age(
    subject: Subject<'_>,
    last: Option<&BootTest>,
    now: TimestampMicros,
) -> Option<Finding> {
    let limit = subject.server.limits.boot_test_age.as_ref();
    let command = format!("verify {} latest --boot", subject.server.name);
    let remedy = format!("'{}' tests one", subject.invocation.with(&command));
    let Some(last) = last else {
        let limit = limit?;
        let text = format!("interval provided: {limit}, and no backup was tested: {remedy}");
        return Some(Finding::failed(BOOT_AGE, text));
    };
    let age = now.saturating_duration_since(last.began_at);
    let shown = format!("latest boot test age: {}", output::duration(age));
    Some(match limit {
        Some(limit) if age.as_secs() > limit.seconds => {
            Finding::failed(BOOT_AGE, format!("interval provided: {limit}, {shown}: {remedy}"))
        }
        Some(limit) => Finding::ok(BOOT_AGE, format!("interval provided: {limit}, {shown}")),
        None => Finding::ok(BOOT_AGE, shown),
    })
}

/// Complete backups with a problem.
struct Found {
    count: usize,
    /// The newest of them.
    newest: Option<BackupId>,
    /// Whether that is the newest complete backup.
    is_last: bool,
}

impl Found {
    fn among(complete: &[BackupId], bad: &BTreeSet<BackupId>) -> Self {
        let mut found = complete.iter().filter(|id| bad.contains(id));
        let newest = found.next_back().copied();
        Self {
            count: newest.map_or(0, |_| 1 + found.count()),
            newest,
            is_last: newest.is_some() && newest == complete.last().copied(),
        }
    }

    fn line(&self, name: &'static str, verb: &str, attribute: &str, remedy: &str) -> Finding {
        let id = self.newest.map(|id| id.to_string()).unwrap_or_default();
        if self.is_last {
            return Finding::failed(name, format!("{id}, the newest complete one, {verb}: {remedy}"));
        }
        let count = output::count(self.count, "older backup");
        Finding::warning(name, format!("{count} {attribute}, the last is {id}: {remedy}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::server;
    use crate::health::State;
    use crate::testing::boot_test;

    /// A passive server has nothing to take a backup of.
    #[test]
    fn the_remedy_of_damage_is_one_that_the_server_has() {
        let invocation = Invocation::current(None);
        let damaged = crate::testing::backup(BackupStatus::Done).id;
        let text = |settings: &str| {
            let server = server(settings);
            let subject = Subject {
                server: &server,
                invocation: &invocation,
            };
            damage(subject, &[damaged], &BTreeSet::from([damaged]))
                .text()
                .unwrap()
        };
        assert!(text("").contains("backup main --incremental never"));
        let passive = text("primary_repository = /srv/primary");
        assert!(
            passive.contains(&format!("sync-backup main {damaged}")),
            "{passive}"
        );
    }

    #[test]
    fn a_backup_must_be_tested_in_time() {
        let test = boot_test();
        let state_after = |hours: i64, tested: bool, settings: &str| {
            let server = server(settings);
            let invocation = Invocation::current(None);
            let subject = Subject {
                server: &server,
                invocation: &invocation,
            };
            let now = TimestampMicros::from_unix_micros(test.began_at.unix_micros() + hours * 3_600_000_000);
            test_age(subject, tested.then_some(&test), now).map(|finding| finding.state)
        };
        let weekly = "last_boot_test_maximum_age = 1 WEEK";
        assert_eq!(state_after(7 * 24, true, weekly), Some(State::Ok));
        assert_eq!(state_after(7 * 24 + 1, true, weekly), Some(State::Failed));
        assert_eq!(state_after(1, false, weekly), Some(State::Failed));
        assert_eq!(state_after(9000, true, ""), Some(State::Ok));
        assert_eq!(state_after(1, false, ""), None);
    }
}
