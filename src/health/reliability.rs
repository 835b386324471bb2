//! Whether the newest backup can be relied on, by the results of verifications and boot tests.

use std::collections::BTreeSet;

use barmanfs_catalog::{Backup, BackupId, BackupStatus};

use super::doubts::Doubts;
use super::finding::Finding;
use crate::invocation::Invocation;
use crate::output;

const DAMAGE: &str = "damage of backups";
const BOOT: &str = "boot tests";

/// Both findings: FAILED if the newest complete backup is concerned, a warning if only older ones are.
pub(super) fn findings(
    invocation: &Invocation,
    server: &str,
    backups: &[Backup],
    doubts: &Doubts,
) -> [Finding; 2] {
    let complete: Vec<BackupId> = backups
        .iter()
        .filter(|backup| backup.status == BackupStatus::Done)
        .map(|backup| backup.id)
        .collect();
    [
        damage(invocation, server, &complete, &doubts.damaged),
        boot(invocation, server, &complete, &doubts.not_booted),
    ]
}

fn damage(
    invocation: &Invocation,
    server: &str,
    complete: &[BackupId],
    damaged: &BTreeSet<BackupId>,
) -> Finding {
    let found = Found::among(complete, damaged);
    let Some(id) = found.newest else {
        return Finding::ok(
            DAMAGE,
            format!("none is known: '{}' looks for it", invocation.with("verify")),
        );
    };
    let remedy = format!(
        "'{}' names the files; '{}' stores again what the server still has of them",
        invocation.with(&format!("verify {server} {id}")),
        invocation.with(&format!("backup {server} --incremental never"))
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
