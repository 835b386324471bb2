//! Is the newest backup one to rely on? What verifications and boot tests have found.

use std::collections::BTreeSet;

use barmanfs_catalog::{Backup, BackupId, BackupStatus};

use super::lines::Line;
use crate::commands::doubts::Doubts;
use crate::output;

const DAMAGE: &str = "damage of backups";
const BOOT: &str = "boot tests";

/// Both lines: FAILED where it concerns the newest complete backup, a warning where it concerns older ones alone.
pub(super) fn findings(server: &str, backups: &[Backup], doubts: &Doubts) -> [Line; 2] {
    let complete: Vec<BackupId> = backups
        .iter()
        .filter(|backup| backup.status == BackupStatus::Done)
        .map(|backup| backup.id)
        .collect();
    [
        damage(server, &complete, &doubts.damaged),
        boot(server, &complete, &doubts.not_booted),
    ]
}

fn damage(server: &str, complete: &[BackupId], damaged: &BTreeSet<BackupId>) -> Line {
    let found = Found::among(complete, damaged);
    let Some(id) = found.newest else {
        return Line::ok(DAMAGE, "none is known: 'barmanfs verify' looks for it");
    };
    let remedy = format!(
        "'barmanfs verify {server} {id}' names the files; 'barmanfs backup {server} --incremental never' stores again what \
         the server still has of them"
    );
    found.line(DAMAGE, "is damaged", "damaged", &remedy)
}

fn boot(server: &str, complete: &[BackupId], failed: &BTreeSet<BackupId>) -> Line {
    let found = Found::among(complete, failed);
    let Some(id) = found.newest else {
        return Line::ok(BOOT, "none has failed");
    };
    let remedy = format!(
        "'barmanfs show-backup {server} {id}' says why; take another backup, and test it with 'barmanfs verify {server} \
         latest --boot'"
    );
    found.line(BOOT, "failed its boot test", "with a failed boot test", &remedy)
}

/// Complete backups with something wrong.
struct Found {
    count: usize,
    /// The newest of them.
    newest: Option<BackupId>,
    /// It is the newest complete backup.
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

    fn line(&self, name: &'static str, verb: &str, attribute: &str, remedy: &str) -> Line {
        let id = self.newest.map(|id| id.to_string()).unwrap_or_default();
        if self.is_last {
            return Line::failed(name, format!("{id}, the newest complete one, {verb}: {remedy}"));
        }
        let count = output::count(self.count, "older backup");
        Line::warning(name, format!("{count} {attribute}, the last is {id}: {remedy}"))
    }
}
