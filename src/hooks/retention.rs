//! Retention with hooks: scripts run before the lock is taken, for what the plan shows, and after it is released, for what
//! was deleted.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use barmanfs_catalog::retention::{Approved, Enforced, RetentionPlan, RetentionRules};
use barmanfs_catalog::{Backup, BackupId, Repository, SegmentRange, ServerName, WalEntry};
use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::WalName;

use super::{Hook, Hooks, IsStopped, Wal};
use crate::config::ServerConfig;
use crate::error::Error;

/// As many entries of the archive are read at a time.
const PAGE: usize = 1000;

/// Deletes what the policies of a server do not keep, with its hooks.
///
/// # Errors
/// When something cannot be read or made durable. What was deleted before stays deleted.
pub(crate) fn enforce(
    repository: &Repository,
    (server, configured): (&ServerName, Option<&ServerConfig>),
    rules: &RetentionRules,
    now: TimestampMicros,
    is_stopped: IsStopped<'_>,
) -> Result<Enforced, Error> {
    let hooks = configured.map(|configured| Hooks::of(configured, repository, is_stopped));
    let is_hooked = |hooks: &Hooks<'_>| hooks.has(Hook::Delete) || hooks.has(Hook::WalDelete);
    let Some(hooks) = hooks.filter(is_hooked) else {
        return Ok(repository.enforce_retention(server, rules, now)?);
    };
    let plan = repository.retention(server, rules, now)?;
    let doomed = doomed(repository, server, &plan)?;
    let files = files(repository, server, &plan, &hooks)?;
    let approved = Approved {
        backups: approved_backups(&hooks, &doomed),
        wal: approved_wal(&hooks, &plan, &files),
    };
    let done = repository.enforce_approved(server, rules, now, Some(&approved))?;
    for backup in doomed.iter().filter(|backup| done.deleted.contains(&backup.id)) {
        hooks.after_backup(Hook::Delete, backup);
    }
    let is_removed = |entry: &&WalEntry| done.wal.iter().any(|wal| wal.range.contains(&entry.name));
    for entry in files.iter().filter(is_removed) {
        hooks.after_wal(Hook::WalDelete, &wal(entry));
    }
    Ok(done)
}

/// The backups of the plan, oldest first.
fn doomed(repository: &Repository, server: &ServerName, plan: &RetentionPlan) -> Result<Vec<Backup>, Error> {
    let ids: BTreeSet<_> = plan.doomed().map(|judged| judged.id).collect();
    let mut backups = repository.backups(server)?;
    backups.retain(|backup| ids.contains(&backup.id));
    Ok(backups)
}

/// A script may save a backup from this run.
fn approved_backups(hooks: &Hooks<'_>, doomed: &[Backup]) -> BTreeSet<BackupId> {
    let is_approved = |backup: &&Backup| {
        let before = hooks.before_backup(Hook::Delete, backup, backup.status.as_str());
        before
            .inspect_err(|error| tracing::error!("Backup {} is not deleted: {error}", backup.id))
            .is_ok()
    };
    doomed
        .iter()
        .filter(is_approved)
        .map(|backup| backup.id)
        .collect()
}

/// A script that stops one file stops the removal of all WAL in this run: what is left is without gaps.
fn approved_wal(hooks: &Hooks<'_>, plan: &RetentionPlan, files: &[WalEntry]) -> Vec<SegmentRange> {
    for entry in files {
        let place = hooks.shown(&format!("wal/{}", entry.name));
        let wal = Wal {
            path: place.as_deref(),
            ..wal(entry)
        };
        if let Err(error) = hooks.before_wal(Hook::WalDelete, &wal) {
            tracing::error!("No WAL of server {} is removed: {error}", hooks.server());
            return Vec::new();
        }
    }
    plan.removable_wal().iter().map(|wal| wal.range).collect()
}

/// The files that the plan removes, if scripts are to see them.
fn files(
    repository: &Repository,
    server: &ServerName,
    plan: &RetentionPlan,
    hooks: &Hooks<'_>,
) -> Result<Vec<WalEntry>, Error> {
    let mut files = Vec::new();
    if !hooks.has(Hook::WalDelete) {
        return Ok(files);
    }
    let archive = repository.wal(server);
    for wal in plan.removable_wal() {
        let mut after = wal.range.first.name_below().map(WalName::Segment);
        loop {
            let page = archive.page(after.as_ref(), PAGE)?;
            let is_last = page.len() < PAGE;
            after = page.last().map(|entry| entry.name);
            files.extend(page.into_iter().filter(|entry| wal.range.contains(&entry.name)));
            let is_behind =
                after.is_some_and(|name| name.segment().is_some_and(|name| name > wal.range.last));
            if is_last || is_behind {
                break;
            }
        }
    }
    Ok(files)
}

fn wal(entry: &WalEntry) -> Wal<'static> {
    let micros = u64::try_from(entry.archived_at.unix_micros()).unwrap_or_default();
    Wal {
        name: entry.name,
        path: None,
        size_bytes: entry.size_bytes,
        time: UNIX_EPOCH + Duration::from_micros(micros),
        error: None,
    }
}
