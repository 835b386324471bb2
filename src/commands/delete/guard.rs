//! Decides which deletions are refused: facts in, a reason out.

use barmanfs_catalog::{Backup, BackupStatus, CloneName};

use super::remains::shown;
use crate::error::Error;
use crate::health::Doubts;
use crate::report::{Place, Remains};

/// A requested deletion, and the state after it.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) server: &'a str,
    pub(super) backups: &'a [Backup],
    /// The backups that would be left.
    pub(super) left: &'a [&'a Backup],
    /// Those of all these backups that cannot be relied on.
    pub(super) doubts: &'a Doubts,
    pub(super) before: &'a Remains,
    pub(super) after: &'a Remains,
    /// The end of the timeline of the newest complete backup, before and afterwards: a history file that does not belong
    /// leads `newest` away from it.
    pub(super) on_its_timeline: &'a (Option<Place>, Option<Place>),
    /// Whether the newest complete backup is one of those to be deleted.
    pub(super) takes_the_newest: bool,
    pub(super) clones: &'a [CloneName],
    /// Complete backups that must stay: `minimum_redundancy`.
    pub(super) minimum: usize,
    pub(super) force: bool,
}

/// The reason not to delete these backups, if any. `--force` overrides all reasons except `minimum_redundancy`, which a
/// person has set.
pub(super) fn refusal(asked: &Asked<'_>) -> Option<Error> {
    // Deleting a backup from which nothing can be recovered loses nothing.
    let mut complete = asked
        .backups
        .iter()
        .filter(|backup| backup.status == BackupStatus::Done && backup.is_of_current_history());
    let takes_away = complete.clone().any(|backup| !asked.doubts.concern(backup.id));
    if takes_away && asked.after.done < asked.minimum {
        return Some(too_few(asked));
    }
    // Most of a damaged backup can be recovered, so the very last backup is deleted only with --force.
    let takes_the_last = complete.next().is_some() && asked.after.doubtful == 0;
    if !asked.force && asked.after.done == 0 && (takes_away || takes_the_last) {
        return Some(last_one(asked));
    }
    if takes_away && !asked.force {
        let (before, after) = asked.on_its_timeline;
        for (before, after) in [(&asked.before.newest, &asked.after.newest), (before, after)] {
            if loses_the_newest(before.as_ref(), after.as_ref()) {
                return Some(newest_lost(asked, before.as_ref(), after.as_ref()));
            }
        }
        // What cannot be determined may be a loss.
        if asked.before.newest.is_none() && asked.takes_the_newest {
            return Some(newest_unknown(asked));
        }
    }
    (!asked.force && !asked.clones.is_empty()).then(|| {
        Error::failed(format!(
            "Not deleting {} of server {}{}",
            ids(asked.backups),
            asked.server,
            based_on_it(asked)
        ))
        .hint("With --force it is deleted, and the clones keep what they need")
    })
}

/// The clones, for the end of a reason: a person who forces a deletion for another reason should know about them.
fn based_on_it(asked: &Asked<'_>) -> String {
    if asked.clones.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = asked.clones.iter().map(CloneName::as_str).collect();
    format!(": clones are based on it: {}", names.join(", "))
}

fn too_few(asked: &Asked<'_>) -> Error {
    Error::failed(format!(
        "Not deleting {} of server {}: minimum_redundancy is {}, and {} complete would be left{}",
        ids(asked.backups),
        asked.server,
        asked.minimum,
        asked.after.done,
        doubtful(asked)
    ))
    .hint("Take a backup first, or lower minimum_redundancy in the configuration")
}

fn last_one(asked: &Asked<'_>) -> Error {
    Error::failed(format!(
        "Not deleting {} of server {}: no complete backup would be left{}. Now it can be recovered up to {}{}",
        ids(asked.backups),
        asked.server,
        doubtful(asked),
        shown(asked.before.newest.as_ref()),
        based_on_it(asked)
    ))
    .hint(format!(
        "Take another one first ('barmanfs backup {}'), or give all that up with --force",
        asked.server
    ))
}

/// The complete backups that would be left but cannot be relied on, for the middle of a reason.
fn doubtful(asked: &Asked<'_>) -> String {
    let left = asked
        .left
        .iter()
        .filter(|backup| backup.status == BackupStatus::Done);
    let left: Vec<String> = left
        .filter_map(|backup| Some(format!("{} {}", backup.id, asked.doubts.about(backup.id)?)))
        .collect();
    match left.is_empty() {
        true => String::new(),
        false => format!(" that can be relied on: {}", left.join(", ")),
    }
}

fn newest_lost(asked: &Asked<'_>, before: Option<&Place>, after: Option<&Place>) -> Error {
    Error::failed(format!(
        "Not deleting {} of server {}: what is newest depends on it. It could be recovered up to {} only, and not up to {}{}",
        ids(asked.backups),
        asked.server,
        shown(after),
        shown(before),
        based_on_it(asked)
    ))
    .hint(format!(
        "Take another one first ('barmanfs backup {}'), or give that up with --force",
        asked.server
    ))
}

fn newest_unknown(asked: &Asked<'_>) -> Error {
    Error::failed(format!(
        "Not deleting {} of server {}: it is the newest complete one, and the newest state cannot be recovered now, so what \
         would be lost is not known{}",
        ids(asked.backups),
        asked.server,
        based_on_it(asked)
    ))
    .hint(format!(
        "'barmanfs explain {} now' says why; mend that first, or give that up with --force",
        asked.server
    ))
}

/// Whether the end of the server's history could no longer be recovered.
fn loses_the_newest(before: Option<&Place>, after: Option<&Place>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => {
            after.timeline < before.timeline || after.timeline == before.timeline && after.lsn < before.lsn
        }
        (Some(_), None) => true,
        (None, _) => false,
    }
}

fn ids(backups: &[Backup]) -> String {
    let ids: Vec<String> = backups.iter().map(|backup| backup.id.to_string()).collect();
    format!("backup {}", ids.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::backup;
    use barmanfs_pg::{Lsn, TimelineId};

    fn remains(done: usize, newest: Option<(u32, u64)>) -> Remains {
        Remains {
            done,
            doubtful: 0,
            earliest: None,
            newest: newest.map(|(timeline, lsn)| Place {
                time: None,
                timeline: TimelineId(timeline),
                lsn: Lsn(lsn),
                backup: "20261120T101500".to_owned(),
            }),
        }
    }

    fn refused(status: BackupStatus, after: &Remains, minimum: usize, force: bool) -> Option<String> {
        refused_of(
            status,
            (&remains(2, Some((2, 100))), after),
            &(None, None),
            minimum,
            force,
        )
    }

    fn refused_of(
        status: BackupStatus,
        (before, after): (&Remains, &Remains),
        on_its_timeline: &(Option<Place>, Option<Place>),
        minimum: usize,
        force: bool,
    ) -> Option<String> {
        refusal(&Asked {
            server: "main",
            backups: &[backup(status)],
            left: &[],
            doubts: &Doubts::default(),
            before,
            after,
            on_its_timeline,
            takes_the_newest: true,
            clones: &[],
            minimum,
            force,
        })
        .map(|error| error.to_string())
    }

    #[test]
    fn deleting_the_last_of_something_is_refused_without_force() {
        let done = BackupStatus::Done;
        assert_eq!(refused(done, &remains(1, Some((2, 100))), 0, false), None);
        for (after, why) in [
            (remains(0, None), "no complete backup would be left"),
            (remains(1, Some((2, 99))), "depends on it"),
            (remains(1, Some((1, 500))), "depends on it"),
        ] {
            assert!(refused(done, &after, 0, false).unwrap().contains(why), "{why}");
            assert_eq!(refused(done, &after, 0, true), None);
        }
        assert_eq!(refused(BackupStatus::Failed, &remains(0, None), 5, false), None);
    }

    #[test]
    fn what_cannot_be_determined_is_no_reason_to_delete_the_newest() {
        let done = BackupStatus::Done;
        let (before, after) = (remains(3, None), remains(2, None));
        let unknown = (None, None);
        let why = refused_of(done, (&before, &after), &unknown, 0, false).unwrap();
        assert!(why.contains("is not known"), "{why}");
        assert_eq!(refused_of(done, (&before, &after), &unknown, 0, true), None);
        assert_eq!(
            refused_of(BackupStatus::Failed, (&before, &after), &unknown, 0, false),
            None
        );
        // The newest state is on a timeline that does not come from the backup.
        let of = |place: Option<(u32, u64)>| remains(1, place).newest;
        let (before, after) = (remains(3, Some((2, 100))), remains(2, Some((2, 100))));
        let lost = (of(Some((1, 500))), of(Some((1, 200))));
        let why = refused_of(done, (&before, &after), &lost, 0, false).unwrap();
        assert!(why.contains("depends on it"), "{why}");
        let same = (of(Some((1, 500))), of(Some((1, 500))));
        assert_eq!(refused_of(done, (&before, &after), &same, 0, false), None);
    }

    #[test]
    fn a_configured_minimum_holds_with_force_too() {
        let after = remains(1, Some((2, 100)));
        for force in [false, true] {
            let why = refused(BackupStatus::Done, &after, 2, force).unwrap();
            assert!(why.contains("minimum_redundancy is 2"), "{why}");
        }
        assert_eq!(refused(BackupStatus::Done, &after, 1, false), None);
    }
}
