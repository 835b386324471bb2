//! Finds what can be recovered with a set of backups.

use barmanfs_catalog::recovery::{Target, TargetSpec};
use barmanfs_catalog::{Backup, BackupStatus, Repository, ServerName};

use crate::error::Error;
use crate::health::Doubts;
use crate::report::{Place, Remains};

/// The part of the history that can be recovered with these backups and the archived WAL.
pub(super) fn find(
    repository: &Repository,
    server: &ServerName,
    backups: &[&Backup],
    doubts: &Doubts,
) -> Result<Remains, Error> {
    let (done, doubtful): (Vec<&Backup>, Vec<&Backup>) = backups
        .iter()
        .filter(|backup| backup.status == BackupStatus::Done && backup.is_of_current_history())
        .copied()
        .partition(|backup| !doubts.concern(backup.id));
    let mut newest = None;
    // From the newest backup on, in the order in which a recovery would try them.
    for backup in done.iter().rev() {
        newest = reach(repository, server, backup)?;
        if newest.is_some() {
            break;
        }
    }
    let first = done.iter().min_by_key(|backup| backup.id);
    Ok(Remains {
        done: done.len(),
        doubtful: doubtful.len(),
        earliest: first.and_then(|backup| {
            Some(Place {
                time: backup.end_time,
                timeline: backup.timeline?,
                lsn: backup.stop_lsn?,
                backup: backup.id.to_string(),
            })
        }),
        newest,
    })
}

/// The end of the recovery to `now` from this backup.
fn reach(repository: &Repository, server: &ServerName, backup: &Backup) -> Result<Option<Place>, Error> {
    let spec = TargetSpec {
        backup: Some(backup.id),
        ..Target::Now.into()
    };
    let plan = repository.plan(server, &spec)?.ok();
    Ok(plan.map(|plan| Place {
        time: plan.reaches.or(plan.backup.end_time),
        timeline: plan.timeline,
        lsn: plan.path.last().and_then(|span| span.to).unwrap_or_default(),
        backup: backup.id.to_string(),
    }))
}

/// Formats a place for a message.
pub(super) fn shown(place: Option<&Place>) -> String {
    place.map_or_else(
        || "nothing".to_owned(),
        |place| {
            let time = place.time.map(|time| format!("{time}, ")).unwrap_or_default();
            format!(
                "{time}LSN {} on timeline {}, from backup {}",
                place.lsn, place.timeline, place.backup
            )
        },
    )
}
