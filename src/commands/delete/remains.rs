//! Finds what can be recovered with a set of backups.

use barmanfs_catalog::recovery::{Target, TargetSpec, TimelineChoice};
use barmanfs_catalog::{Backup, BackupStatus, Repository, ServerName};
use barmanfs_pg::TimelineId;

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
    let newest = newest(repository, server, &done, TimelineChoice::Latest)?;
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

/// The newest complete backup that can be relied on.
pub(super) fn newest_reliable<'a>(backups: &[&'a Backup], doubts: &Doubts) -> Option<&'a Backup> {
    backups
        .iter()
        .rfind(|backup| is_reliable(backup, doubts))
        .copied()
}

/// The end of what can be replayed on one of these backups along a timeline.
pub(super) fn along(
    repository: &Repository,
    server: &ServerName,
    backups: &[&Backup],
    doubts: &Doubts,
    timeline: TimelineId,
) -> Result<Option<Place>, Error> {
    let reliable = backups.iter().filter(|backup| is_reliable(backup, doubts));
    let reliable: Vec<&Backup> = reliable.copied().collect();
    newest(repository, server, &reliable, TimelineChoice::Id(timeline))
}

fn is_reliable(backup: &Backup, doubts: &Doubts) -> bool {
    backup.status == BackupStatus::Done && backup.is_of_current_history() && !doubts.concern(backup.id)
}

/// From the newest backup on, in the order in which a recovery would try them.
fn newest(
    repository: &Repository,
    server: &ServerName,
    backups: &[&Backup],
    timeline: TimelineChoice,
) -> Result<Option<Place>, Error> {
    for backup in backups.iter().rev() {
        let place = reach(repository, server, backup, timeline)?;
        if place.is_some() {
            return Ok(place);
        }
    }
    Ok(None)
}

/// The end of the recovery to `now` from this backup.
fn reach(
    repository: &Repository,
    server: &ServerName,
    backup: &Backup,
    timeline: TimelineChoice,
) -> Result<Option<Place>, Error> {
    let spec = TargetSpec {
        backup: Some(backup.id),
        timeline,
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
