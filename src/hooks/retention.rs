//! Retention with hooks: scripts run before the lock is taken, for what the plan shows, and after it is released, for what
//! was deleted.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, Write};
use std::time::{Duration, UNIX_EPOCH};

use barmanfs_catalog::retention::{Approved, Enforced, RetentionPlan, RetentionRules};
use barmanfs_catalog::{Backup, BackupId, Repository, SegmentRange, ServerName, SnapshotDisk, WalEntry};
use barmanfs_pg::TimestampMicros;
use barmanfs_pg::wal_name::WalName;

use super::storage::{Act, Storage};
use super::{Hook, Hooks, IsStopped, Wal, storage};
use crate::config::ServerConfig;
use crate::error::Error;

/// As many entries of the archive are read at a time.
const PAGE: usize = 1000;

/// What a run has done.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) enforced: Enforced,
    /// What should have been deleted and could not be: the storage keeps its snapshot.
    pub(crate) problems: Vec<String>,
}

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
) -> Result<Done, Error> {
    let rules = &held_by_storage(repository, (server, configured), rules, is_stopped)?;
    let hooks = configured.map(|configured| Hooks::of(configured, repository, is_stopped));
    let is_hooked = |hooks: &Hooks<'_>| hooks.has(Hook::Delete) || hooks.has(Hook::WalDelete);
    let Some(hooks) = hooks.filter(is_hooked) else {
        let done = repository.enforce_retention(server, rules, now)?;
        return snapshots(
            repository,
            (server, configured),
            (rules, now, None),
            is_stopped,
            done,
        );
    };
    let plan = repository.retention(server, rules, now)?;
    let doomed = doomed(repository, server, &plan)?;
    let mut seen = match hooks.has(Hook::WalDelete) {
        true => Some(Seen::begin()?),
        false => None,
    };
    let approved = approved_backups(&hooks, &doomed);
    let approved = Approved {
        backups: approved.iter().map(|backup| backup.id).collect(),
        wal: approved_wal(&hooks, &plan, seen.as_mut())?,
    };
    let done = repository.enforce_approved(server, rules, now, Some(&approved))?;
    let done = snapshots(
        repository,
        (server, configured),
        (rules, now, Some(&approved.backups)),
        is_stopped,
        done,
    )?;
    let deleted = &done.enforced.deleted;
    for backup in doomed.iter().filter(|backup| deleted.contains(&backup.id)) {
        hooks.after_backup(Hook::Delete, backup);
    }
    let told = seen.map_or(Ok(()), |seen| {
        seen.each(|wal| {
            if done
                .enforced
                .wal
                .iter()
                .any(|removed| removed.range.contains(&wal.name))
            {
                hooks.after_wal(Hook::WalDelete, wal);
            }
        })
    });
    // All is deleted: as with the scripts themselves, what goes wrong now fails nothing.
    if let Err(error) = told {
        tracing::error!("Not all scripts after the removal of WAL of server {server} ran: {error}");
    }
    Ok(done)
}

/// The files that scripts have seen, in a file: there may be millions, and the archive has them no more afterwards.
struct Seen(BufWriter<File>);

impl Seen {
    fn begin() -> Result<Self, Error> {
        tempfile::tempfile()
            .map(|file| Self(BufWriter::new(file)))
            .map_err(|error| failed(&error))
    }

    fn add(&mut self, entry: &WalEntry) -> Result<(), Error> {
        let micros = entry.archived_at.unix_micros();
        writeln!(self.0, "{} {} {micros}", entry.name, entry.size_bytes).map_err(|error| failed(&error))
    }

    /// Calls `after` with each of them.
    fn each(self, mut after: impl FnMut(&Wal<'static>)) -> Result<(), Error> {
        let mut file = self.0.into_inner().map_err(|error| failed(error.error()))?;
        file.rewind().map_err(|error| failed(&error))?;
        for line in BufReader::new(file).lines() {
            let line = line.map_err(|error| failed(&error))?;
            let mut words = line.split(' ');
            let read = (|| {
                let name = words.next()?.parse().ok()?;
                let size_bytes = words.next()?.parse().ok()?;
                Some(wal(name, size_bytes, words.next()?.parse().ok()?))
            })();
            after(&read.ok_or_else(|| failed(&io::ErrorKind::InvalidData.into()))?);
        }
        Ok(())
    }
}

fn failed(error: &io::Error) -> Error {
    Error::failed(format!(
        "Cannot keep the names of removed WAL in a temporary file: {error}"
    ))
}

/// The backups of the plan, oldest first.
fn doomed(repository: &Repository, server: &ServerName, plan: &RetentionPlan) -> Result<Vec<Backup>, Error> {
    let ids: BTreeSet<_> = plan.doomed().map(|judged| judged.id).collect();
    let mut backups = repository.backups(server)?;
    backups.retain(|backup| ids.contains(&backup.id));
    Ok(backups)
}

/// A script may save a backup from this run.
fn approved_backups<'b>(hooks: &Hooks<'_>, doomed: &'b [Backup]) -> Vec<&'b Backup> {
    let is_approved = |backup: &&Backup| {
        hooks
            .before_backup(Hook::Delete, backup, backup.status.as_str())
            .inspect_err(|error| tracing::error!("Backup {} is not deleted: {error}", backup.id))
            .is_ok()
    };
    doomed.iter().filter(is_approved).collect()
}

/// The rules, which delete nothing while a snapshot is gone from the storage: it would count as a good backup.
fn held_by_storage(
    repository: &Repository,
    (server, configured): (&ServerName, Option<&ServerConfig>),
    rules: &RetentionRules,
    is_stopped: IsStopped<'_>,
) -> Result<RetentionRules, Error> {
    let mut rules = rules.clone();
    let Some(configured) = configured.filter(|_| rules.held.is_none()) else {
        return Ok(rules);
    };
    let storage = Storage::of(configured, repository, is_stopped);
    let backups = repository.backups(server)?;
    let there = backups.iter().filter(|backup| backup.has_ended_well());
    let snapshots = there.filter_map(|backup| backup.snapshot.as_ref());
    let disks: Vec<&SnapshotDisk> = snapshots.flat_map(|snapshot| &snapshot.disks).collect();
    if disks.is_empty() || !storage.has(Act::List) {
        return Ok(rules);
    }
    rules.held = match storage.missing(&disks) {
        Ok(missing) => missing.first().map(|disk| {
            format!(
                "Snapshot {} is gone from the storage, so its backup protects nothing: 'barmanfs check {server}', and delete that \
                 backup with --force",
                disk.snapshot
            )
        }),
        Err(error) => Some(format!("It is not known which snapshots are in the storage: {error}")),
    };
    Ok(rules)
}

/// Deletes the snapshots that a run has left, of those that were approved: a record goes with its snapshot in the storage.
fn snapshots(
    repository: &Repository,
    (server, configured): (&ServerName, Option<&ServerConfig>),
    (rules, now, approved): (&RetentionRules, TimestampMicros, Option<&BTreeSet<BackupId>>),
    is_stopped: IsStopped<'_>,
    enforced: Enforced,
) -> Result<Done, Error> {
    let mut done = Done {
        enforced,
        problems: Vec::new(),
    };
    let Enforced { plan, deleted, .. } = &mut done.enforced;
    if plan.doomed().all(|judged| deleted.contains(&judged.id)) {
        return Ok(done);
    }
    let mut doomed = doomed(repository, server, plan)?;
    doomed.retain(|backup| {
        backup.is_snapshot() && approved.is_none_or(|approved| approved.contains(&backup.id))
    });
    for backup in &doomed {
        match delete_snapshot(repository, configured, backup, (rules, now), is_stopped) {
            Ok(true) => deleted.push(backup.id),
            Ok(false) => tracing::info!("Backup {} is not deleted: it is needed now", backup.id),
            Err(error) => {
                tracing::error!("Backup {} is not deleted: {error}", backup.id);
                done.problems
                    .push(format!("Backup {} is not deleted: {error}", backup.id));
            }
        }
    }
    Ok(done)
}

/// Deletes a snapshot in the storage, and its record. Nobody deletes or keeps another backup meanwhile, so what was needed
/// less than this one is still there. Returns whether it was deleted: it may be needed by now.
fn delete_snapshot(
    repository: &Repository,
    configured: Option<&ServerConfig>,
    backup: &Backup,
    (rules, now): (&RetentionRules, TimestampMicros),
    is_stopped: IsStopped<'_>,
) -> Result<bool, Error> {
    let _deleting = repository.deleting(&backup.server)?;
    let plan = repository.retention(&backup.server, rules, now)?;
    if !plan.doomed().any(|judged| judged.id == backup.id) {
        return Ok(false);
    }
    repository.refuse_deletion(backup, false)?;
    storage::delete(repository, configured, backup, (false, is_stopped))?;
    repository.delete_backup(backup, false)?;
    Ok(true)
}

/// A script that stops one file stops the removal of all WAL in this run: what is left is without gaps.
fn approved_wal(
    hooks: &Hooks<'_>,
    plan: &RetentionPlan,
    seen: Option<&mut Seen>,
) -> Result<Vec<SegmentRange>, Error> {
    let ranges: Vec<SegmentRange> = plan.removable_wal().iter().map(|wal| wal.range).collect();
    let Some(seen) = seen else {
        return Ok(ranges);
    };
    for range in &ranges {
        let mut after = range.first.name_below().map(WalName::Segment);
        loop {
            let page = hooks
                .repository()
                .wal(hooks.server())
                .page(after.as_ref(), PAGE)?;
            after = page.last().map(|entry| entry.name);
            for entry in page.iter().filter(|entry| range.contains(&entry.name)) {
                seen.add(entry)?;
                if let Err(error) = ask(hooks, entry) {
                    tracing::error!("No WAL of server {} is removed: {error}", hooks.server());
                    return Ok(Vec::new());
                }
            }
            let is_behind = after.is_some_and(|name| name.segment().is_some_and(|name| name > range.last));
            if page.len() < PAGE || is_behind {
                break;
            }
        }
    }
    Ok(ranges)
}

/// Runs the scripts before the removal of a file.
fn ask(hooks: &Hooks<'_>, entry: &WalEntry) -> Result<(), Error> {
    let place = hooks.shown(&format!("wal/{}", entry.name));
    let wal = Wal {
        path: place.as_deref(),
        ..wal(entry.name, entry.size_bytes, entry.archived_at.unix_micros())
    };
    hooks.before_wal(Hook::WalDelete, &wal)
}

fn wal(name: WalName, size_bytes: u64, archived_at_micros: i64) -> Wal<'static> {
    let micros = u64::try_from(archived_at_micros).unwrap_or_default();
    Wal {
        name,
        path: None,
        size_bytes,
        time: UNIX_EPOCH + Duration::from_micros(micros),
        error: None,
    }
}
