//! Whether the newest state can be recovered: that there are complete backups does not show it. A history file that does
//! not belong, or one that never came, takes the way from all backups to the newest WAL.

use barmanfs_catalog::recovery::{Target, Timeline, TimelineReport};
use barmanfs_catalog::{BackupStatus, Repository};
use barmanfs_pg::TimelineId;
use barmanfs_pg::wal_name::WalName;

use super::Subject;
use super::finding::{Finding, Findings};
use crate::error::Error;
use crate::invocation::Invocation;

const NAME: &str = "recovery to now";

/// Checks the way to the newest state. Says nothing while there is no complete backup.
pub(super) fn check(
    repository: &Repository,
    report: &TimelineReport,
    subject: Subject<'_>,
    findings: &mut Findings,
) {
    let why = || {
        let planned = repository.plan(&subject.server.name, &Target::Now.into())?;
        Ok(planned.err().map(|reason| match reason.hint() {
            Some(hint) => format!("{reason}; {hint}"),
            None => reason.to_string(),
        }))
    };
    findings.extend(judge(report, subject.invocation, why));
}

/// The reason is only asked for where there is none of the newest states.
fn judge(
    report: &TimelineReport,
    invocation: &Invocation,
    why: impl FnOnce() -> Result<Option<String>, Error>,
) -> Option<Finding> {
    let newest_backup = report
        .timelines
        .iter()
        .filter(|of| has_done(of))
        .map(|of| of.timeline);
    let newest_backup = newest_backup.max()?;
    let server = report.server.as_str();
    let Some(newest) = &report.newest else {
        let why = match why() {
            Ok(why) => why.unwrap_or_else(|| "it could not be determined just now".to_owned()),
            Err(error) => error.to_string(),
        };
        let (see, all) = (
            invocation.with(&format!("explain {server} now")),
            invocation.with(&format!("timeline {server}")),
        );
        return Some(Finding::failed(
            NAME,
            format!("the newest state cannot be recovered: {why}. See '{see}' and '{all}'"),
        ));
    };
    if let Some((orphan, last)) = orphan(report, newest_backup) {
        let name = WalName::History(orphan);
        let archive = invocation.with(&format!("wal-archive {server} pg_wal/{name}"));
        let backup = invocation.with(&format!("backup {server}"));
        return Some(Finding::failed(
            NAME,
            format!(
                "WAL of timeline {orphan} is archived up to {last}, and {name} is not, so nothing on it can be recovered: archive \
                 that file by hand, from the server's data directory: {archive}; or take a backup: {backup}"
            ),
        ));
    }
    Some(Finding::ok(
        NAME,
        format!("up to {} on timeline {}", newest.lsn, newest.timeline),
    ))
}

fn has_done(timeline: &Timeline) -> bool {
    let mut backups = timeline.backups.iter();
    backups.any(|backup| backup.status == BackupStatus::Done)
}

/// The newest timeline, if it has WAL, and nothing says where it came from. A backup on it, or on a later one, needs no
/// such file. The last segment is returned, too.
fn orphan(report: &TimelineReport, newest_backup: TimelineId) -> Option<(TimelineId, String)> {
    let with_wal = report.timelines.iter().filter(|of| !of.ranges.is_empty());
    let newest = with_wal.max_by_key(|of| of.timeline)?;
    let is_unreadable = report
        .unreadable
        .iter()
        .any(|file| file.name == WalName::History(newest.timeline));
    if newest.parent.is_some() || newest.timeline <= newest_backup || is_unreadable {
        return None;
    }
    let last = newest.ranges.last()?.last;
    Some((newest.timeline, last.to_string()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use barmanfs_catalog::recovery::{BackupPlace, Parent, Reach, WalRange};
    use barmanfs_pg::{Lsn, SegmentSize};

    use super::*;
    use crate::health::State;

    fn timeline(id: u32, backups: &[&str]) -> Timeline {
        let size = SegmentSize::DEFAULT;
        let segment = barmanfs_pg::wal_name::SegmentName::from_lsn(TimelineId(id), Lsn(size.bytes()), size);
        let place = |id: &&str| BackupPlace {
            id: id.parse().unwrap(),
            status: BackupStatus::Done,
            start_lsn: Lsn(1),
            stop_lsn: Lsn(2),
            end_time: None,
        };
        Timeline {
            timeline: TimelineId(id),
            parent: None,
            ranges: vec![WalRange {
                first: segment,
                last: segment,
                segments: 1,
                start_lsn: Lsn(size.bytes()),
                end_lsn: Lsn(2 * size.bytes()),
                from: None,
                to: None,
                commits: 1,
            }],
            backups: backups.iter().map(place).collect(),
            restore_points: Vec::new(),
        }
    }

    fn report(timelines: Vec<Timeline>, is_reachable: bool) -> TimelineReport {
        TimelineReport {
            server: "main".parse().unwrap(),
            timelines,
            gaps: Vec::new(),
            minimal: Vec::new(),
            earliest: None,
            unreadable: Vec::new(),
            newest: is_reachable.then(|| Reach {
                backup: "20261120T101500".parse().unwrap(),
                timeline: TimelineId(1),
                lsn: Lsn(3),
                time: None,
                is_commit: false,
                receiving: false,
            }),
            forks: Vec::new(),
        }
    }

    fn judged(report: &TimelineReport) -> Option<(State, String)> {
        let invocation = Invocation::current(Some(Path::new("/etc/b.conf")));
        let finding = judge(report, &invocation, || Ok(Some("its way is lost".to_owned())))?;
        Some((finding.state, finding.text().unwrap_or_default()))
    }

    const ID: &str = "20261120T101500";

    #[test]
    fn a_newest_state_that_cannot_be_recovered_is_a_failure() {
        assert_eq!(judged(&report(vec![timeline(1, &[])], false)), None);
        let (state, text) = judged(&report(vec![timeline(1, &[ID])], false)).unwrap();
        assert_eq!(state, State::Failed);
        assert!(
            text.contains("its way is lost") && text.contains("explain main now"),
            "{text}"
        );
        let (state, _) = judged(&report(vec![timeline(1, &[ID])], true)).unwrap();
        assert_eq!(state, State::Ok);
    }

    #[test]
    fn wal_without_its_history_is_a_failure_until_there_is_a_backup() {
        let (state, text) = judged(&report(vec![timeline(1, &[ID]), timeline(2, &[])], true)).unwrap();
        assert_eq!(state, State::Failed);
        assert!(
            text.contains("wal-archive main pg_wal/00000002.history"),
            "{text}"
        );
        let mut known = timeline(2, &[]);
        known.parent = Some(Parent {
            timeline: TimelineId(1),
            switch_lsn: Lsn(5),
            reason: String::new(),
        });
        for second in [known, timeline(2, &[ID])] {
            let (state, text) = judged(&report(vec![timeline(1, &[ID]), second], true)).unwrap();
            assert_eq!(state, State::Ok, "{text}");
        }
    }
}
