//! What a directory was before it is caught up: a standby or a primary, on which timeline, and what it has written on a
//! timeline that was left. That is lost.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use barmanfs_pg::backup_label::BackupLabel;
use barmanfs_pg::history::TimelineHistory;
use barmanfs_pg::pg_control::{ClusterState, ControlFile};
use barmanfs_pg::wal_check::check_segment;
use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::wal_scan::{RecordFacts, SegmentIndex, WalScanner};
use barmanfs_pg::{Lsn, SystemId, TimelineId};
use serde::{Deserialize, Serialize};

use super::DESCRIPTION;
use super::place::failed;
use crate::error::Error;
use crate::instance;

/// Bytes of WAL to read at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// A history has a line for each timeline; the others have fewer.
const MAX_SMALL_BYTES: u64 = 1 << 20;

/// Where a start from a backup begins. It is there until the first start.
const LABEL: &str = "backup_label";

/// How a backup over a connection is made: its label is never in the directory of the server itself.
const STREAMED: &str = "streamed";

/// With these files a server recovers. Its promotion removes them.
const SIGNALS: [&str; 2] = ["standby.signal", "recovery.signal"];

/// What a directory was.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Previous {
    /// Whether it was a primary, also one that was shut down.
    pub(crate) was_primary: bool,
    /// Whether a server was started in it since a backup was copied there.
    pub(crate) was_started: bool,
    /// The timeline of its last checkpoint.
    pub(crate) timeline: TimelineId,
    /// Where its last checkpoint is.
    pub(crate) checkpoint_lsn: Lsn,
    /// What it has written that its new primary does not have.
    pub(crate) lost: Option<Lost>,
}

/// WAL of a timeline behind the place where it was left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lost {
    pub(crate) timeline: TimelineId,
    pub(crate) from_lsn: Lsn,
    pub(crate) to_lsn: Lsn,
    /// Commits in it.
    pub(crate) commits: u64,
}

impl Previous {
    /// Reads the state of a directory, and compares it with the history of the timeline that it is to follow.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub(crate) fn examine(data: &Path, route: &TimelineHistory) -> Result<Self, Error> {
        let control = instance::control(data)?;
        let was_started = !awaits_start(data, control.system_id)?;
        let is_in_recovery = matches!(
            control.state,
            ClusterState::ShutDownInRecovery | ClusterState::InArchiveRecovery
        );
        let mut previous = Self {
            was_primary: was_started && !is_in_recovery,
            was_started,
            timeline: control.timeline,
            checkpoint_lsn: control.checkpoint,
            lost: None,
        };
        if !was_started {
            return Ok(previous);
        }
        let left_at = match history(data, control.timeline)? {
            Some(own) => left_at(route, &own),
            None if control.timeline == route.timeline() => None,
            // Its file is lost. Where the way leaves this timeline is known all the same.
            None => Some(
                route
                    .switch_point(control.timeline)
                    .ok_or_else(|| unknown_history(data, control.timeline))?,
            ),
        };
        if let Some(from) = left_at {
            let lost = wal_from(data, &control, from)?;
            previous.lost = (lost.to_lsn > from).then_some(lost);
        }
        Ok(previous)
    }
}

/// Whether a backup was copied there and no server was started since: it has written nothing of its own. `pg_control` is
/// still that of the server that was backed up. The first start renames `backup_label`, after it has written `pg_control`.
///
/// Before PostgreSQL 15, a primary had a `backup_label` during an exclusive backup, and has it still when it failed then.
/// That somebody has added a file for a recovery, so that it starts as a standby, does not undo what it has written. So only
/// the label of a backup over a connection, which no primary has, counts with such a file; any other label must be the one
/// that a restore has written. In doubt the directory was started: then what it would lose is shown.
fn awaits_start(data: &Path, system_id: SystemId) -> Result<bool, Error> {
    let Some(label) = small_file(&data.join(LABEL))? else {
        return Ok(false);
    };
    let Ok(label) = BackupLabel::parse(&label) else {
        return Ok(false);
    };
    let is_never_of_a_primary = label.method.as_deref() == Some(STREAMED);
    for signal in SIGNALS {
        let path = data.join(signal);
        if path
            .try_exists()
            .map_err(|error| failed("look at", &path, error))?
            && is_never_of_a_primary
        {
            return Ok(true);
        }
    }
    let Some(restored) = small_file(&data.join(DESCRIPTION))? else {
        return Ok(false);
    };
    let restored: Restored = serde_json::from_slice(&restored).unwrap_or_default();
    Ok(restored.system_id == Some(system_id) && restored.first_segment == Some(label.start_segment))
}

/// What a restore has written of itself.
#[derive(Default, Deserialize)]
struct Restored {
    system_id: Option<SystemId>,
    /// Where replay begins.
    first_segment: Option<SegmentName>,
}

/// A file of a few lines; `None` if there is none.
fn small_file(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_SMALL_BYTES).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path, error)),
        Ok(_) => Ok(Some(bytes)),
    }
}

/// The WAL of its timeline from there on, as far as it is in the directory.
fn wal_from(data: &Path, control: &ControlFile, from: Lsn) -> Result<Lost, Error> {
    let mut lost = Lost {
        timeline: control.timeline,
        from_lsn: from,
        to_lsn: control.checkpoint.max(from),
        commits: 0,
    };
    let mut name = SegmentName::from_lsn(control.timeline, from, control.segment_size);
    while let Some((index, commits)) = scan(data, control, &name, from)? {
        lost.to_lsn = lost.to_lsn.max(index.end_lsn);
        lost.commits += commits;
        if index.stopped.is_some() {
            break;
        }
        name = name.next(control.segment_size);
    }
    Ok(lost)
}

/// Reads a segment in the directory, and counts the commits in it from a place on; `None` where there is none.
fn scan(
    data: &Path,
    control: &ControlFile,
    name: &SegmentName,
    from: Lsn,
) -> Result<Option<(SegmentIndex, u64)>, Error> {
    let path = data.join("pg_wal").join(name.to_string());
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| failed("open", &path, error))?,
    };
    let read = |file: &mut File| {
        let mut piece = Vec::new();
        let read = file.take(PIECE_BYTES).read_to_end(&mut piece);
        read.map_err(|error| failed("read", &path, error))?;
        Ok::<_, Error>(piece)
    };
    let mut piece = read(&mut file)?;
    // A file that was prepared for later has an older segment in it.
    let Ok(facts) = check_segment(&piece, name, control.segment_size.bytes()) else {
        return Ok(None);
    };
    if facts.system_id != control.system_id {
        return Ok(None);
    }
    let (mut scanner, mut commits) = (WalScanner::new(name, &facts), 0);
    while !piece.is_empty() {
        scanner.push_each(&piece, &mut |lsn, facts| {
            if lsn >= from && matches!(facts, Some(RecordFacts::Commit { .. })) {
                commits += 1;
            }
        });
        piece = read(&mut file)?;
    }
    Ok(Some((scanner.finish(), commits)))
}

fn unknown_history(data: &Path, timeline: TimelineId) -> Error {
    Error::failed(format!(
        "What {} has written on timeline {timeline} cannot be compared: {}.history is not in its pg_wal",
        data.display(),
        timeline.hex()
    ))
    .hint("Put it there, 'barmanfs get-wal' gives it; or make a new standby with 'barmanfs restore --standby-mode'")
}

/// The history of a timeline by the file in the directory's WAL; `None` if the file is missing. The first has none.
fn history(data: &Path, timeline: TimelineId) -> Result<Option<TimelineHistory>, Error> {
    if timeline == TimelineId(1) {
        return Ok(Some(TimelineHistory::without_ancestors(timeline)));
    }
    let path = data.join("pg_wal").join(format!("{}.history", timeline.hex()));
    let Some(bytes) = small_file(&path)? else {
        return Ok(None);
    };
    TimelineHistory::parse(&bytes, timeline)
        .map(Some)
        .map_err(|error| Error::failed(format!("{}: {error}", path.display())))
}

/// Where the way to a timeline leaves another one, if it does: the last place that both histories have.
fn left_at(route: &TimelineHistory, own: &TimelineHistory) -> Option<Lsn> {
    let spans = |history: &TimelineHistory| {
        let ended = history.entries().iter();
        let ended = ended.map(|entry| (entry.timeline, Some(entry.switch_lsn)));
        ended.chain([(history.timeline(), None)]).collect::<Vec<_>>()
    };
    let mut last = None;
    for (theirs, ours) in spans(route).into_iter().zip(spans(own)) {
        if theirs.0 != ours.0 {
            return last;
        }
        last = match (theirs.1, ours.1) {
            (Some(theirs), Some(ours)) if theirs == ours => Some(ours),
            (Some(theirs), Some(ours)) => return Some(theirs.min(ours)),
            (theirs, ours) => return theirs.or(ours),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(timeline: u32, entries: &[(u32, u64)]) -> TimelineHistory {
        let lines = entries
            .iter()
            .map(|(timeline, lsn)| format!("{timeline}\t{}\tno reason\n", Lsn(*lsn)));
        let text: String = lines.collect();
        TimelineHistory::parse(text.as_bytes(), TimelineId(timeline)).unwrap()
    }

    #[test]
    fn only_what_no_primary_has_says_that_nothing_was_started() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let label = |method: &str| {
            format!(
                "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n\
                 BACKUP METHOD: {method}\nBACKUP FROM: primary\nSTART TIMELINE: 1\n"
            )
        };
        let awaits_start = || awaits_start(dir.path(), SystemId(7)).unwrap();
        assert!(!awaits_start(), "there is no label");
        for method in [STREAMED, "pg_start_backup"] {
            put(LABEL, &label(method));
            assert!(!awaits_start(), "{method}: nothing tells it from a primary");
        }
        // A primary that failed during an exclusive backup, and is to be a standby.
        put("standby.signal", "");
        assert!(!awaits_start());
        put(
            DESCRIPTION,
            r#"{"system_id": "7", "first_segment": "000000010000000000000001"}"#,
        );
        assert!(!awaits_start(), "the label of another backup");
        put(
            DESCRIPTION,
            r#"{"system_id": "7", "first_segment": "000000010000000000000002"}"#,
        );
        assert!(awaits_start(), "an exclusive backup that was restored");
        std::fs::remove_file(dir.path().join(DESCRIPTION)).unwrap();
        put(LABEL, &label(STREAMED));
        assert!(awaits_start());
        put(LABEL, "nonsense");
        assert!(!awaits_start());
    }

    #[test]
    fn a_timeline_is_left_where_the_histories_part() {
        let first = TimelineHistory::without_ancestors(TimelineId(1));
        let second = history(2, &[(1, 100)]);
        for (route, own, expected) in [
            // The same timeline, or one that is not known to be left.
            (&first, &first, None),
            (&second, &second, None),
            // A failed primary.
            (&second, &first, Some(100)),
            // The directory was promoted, and what it is to follow was not.
            (&first, &second, Some(100)),
            // Two servers were promoted, at different times.
            (&history(3, &[(1, 80)]), &second, Some(80)),
            (&history(3, &[(1, 120)]), &second, Some(100)),
            (&history(3, &[(1, 100), (2, 300)]), &second, Some(300)),
            (&history(4, &[(1, 100), (3, 300)]), &second, Some(100)),
        ] {
            assert_eq!(left_at(route, own), expected.map(Lsn), "{route:?} {own:?}");
        }
    }
}
