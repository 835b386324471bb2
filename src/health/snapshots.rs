//! Whether the snapshots that are backups are still in the storage.

use std::time::Duration;

use barmanfs_catalog::{Backup, IntendedSnapshot, Repository, SnapshotDisk};

use super::Subject;
use super::finding::{Finding, Findings};
use crate::config::BackupMethod;
use crate::hooks::NEVER_STOPPED;
use crate::hooks::storage::{Act, Storage};
use crate::output;

const NAME: &str = "snapshots of the storage";

/// How long the storage may take to name its snapshots.
const LIST_WITHIN: Duration = Duration::from_secs(20);

/// Snapshots that are named.
const SHOWN: usize = 3;

pub(super) fn check(
    repository: &Repository,
    subject: Subject<'_>,
    backups: &[Backup],
    findings: &mut Findings,
) {
    let server = subject.server;
    let is_there = |backup: &&Backup| backup.is_snapshot() && backup.has_ended_well();
    let of: Vec<&Backup> = backups.iter().filter(is_there).collect();
    if server.backup_method == BackupMethod::Snapshot && server.snapshots.take.is_none() {
        return findings.failed(NAME, "backup_method = snapshot, and there is no snapshot_command");
    }
    match repository.abandoned_snapshots(&server.name) {
        Err(error) => findings.failed(NAME, error.to_string()),
        Ok(abandoned) if abandoned.is_empty() => {}
        Ok(abandoned) => findings.push(Finding::warning(NAME, left_behind(&abandoned))),
    }
    if of.is_empty() {
        return;
    }
    let storage = Storage::of(server, repository, NEVER_STOPPED).within(LIST_WITHIN);
    let count = output::count(of.len(), "snapshot");
    if !storage.has(Act::List) {
        return findings.push(Finding::warning(
            NAME,
            format!("{count}, and nobody knows whether they are still there: set snapshot_list_command"),
        ));
    }
    let snapshots = of.iter().filter_map(|backup| backup.snapshot.as_ref());
    let disks: Vec<&SnapshotDisk> = snapshots.flat_map(|snapshot| &snapshot.disks).collect();
    match storage.missing(&disks) {
        Err(error) => findings.failed(NAME, error.to_string()),
        Ok(missing) if missing.is_empty() => findings.ok(NAME, format!("{count}, all there")),
        Ok(missing) => {
            let names: Vec<&str> = missing
                .iter()
                .take(SHOWN)
                .map(|disk| disk.snapshot.as_str())
                .collect();
            findings.failed(
                NAME,
                format!(
                    "{} of backups are gone from the storage, {} among them: nothing can be recovered from these backups",
                    output::count(missing.len(), "snapshot"),
                    names.join(", ")
                ),
            );
        }
    }
}

fn left_behind(abandoned: &[IntendedSnapshot]) -> String {
    let names: Vec<&str> = abandoned
        .iter()
        .take(SHOWN)
        .map(|snapshot| snapshot.name.as_str())
        .collect();
    format!(
        "{} may be left in the storage by backups that were killed, {} among them: the next backup deletes what is there",
        output::count(abandoned.len(), "snapshot"),
        names.join(", ")
    )
}
