//! The goals for barmanfs, as ratios within one run.

use serde::Serialize;

use crate::peers::Barmanfs;
use crate::results::{Measure, Results, Row};

/// One goal, and the result.
#[derive(Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: &'static str,
    pub(crate) limit: f64,
    /// The measured ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<f64>,
}

impl Target {
    /// Whether the goal was reached; `None` if it was not measured.
    pub(crate) fn is_met(&self) -> Option<bool> {
        self.value.map(|value| value <= self.limit)
    }
}

const OURS: &str = Barmanfs::NAME;
const OUR_MOUNT: &str = "barmanfs mount";
const OUR_CLONE: &str = "barmanfs clone";
const BLOCK_INCREMENTAL: &str = "pgBackRest";
const PLAIN: &str = "cp";
/// The tool that is incremental from PostgreSQL 17 on.
const INCREMENTAL: &str = "pg_basebackup";
const COMBINED: &str = "pg_combinebackup";

/// All goals, with the results for them.
pub(crate) fn all(results: &Results) -> Vec<Target> {
    let seconds = |measure, tool| results.row(measure, tool).map(|row| row.median_seconds);
    let stored = |measure, tool| {
        results
            .row(measure, tool)
            .and_then(Row::median_stored_bytes)
            .map(|bytes| bytes as f64)
    };
    let memory = |measure, tool| {
        results
            .row(measure, tool)
            .and_then(|row| row.peak_memory_bytes)
            .map(|bytes| bytes as f64 / 1e6)
    };
    let ratio = |ours: Option<f64>, theirs: Option<f64>| ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
    let time_ratio = |measure, ours, theirs| ratio(seconds(measure, ours), seconds(measure, theirs));
    let stored_ratio = |measure, theirs| ratio(stored(measure, OURS), stored(measure, theirs));
    let milliseconds = |measure| seconds(measure, OUR_MOUNT).map(|seconds| seconds * 1e3);
    let target = |what, limit, value| Target { what, limit, value };
    use Measure::{
        Delta, FirstAnswer, FirstByte, Full, ReadAccounts, ReadNoise, ReadWrite, Ready, Replay, Restore,
        SecondHalf, SecondSmall, SelectWarm, WalArchive, WalFetch,
    };
    vec![
        target(
            "Full backup: time, of pgBackRest's",
            0.6,
            time_ratio(Full, OURS, BLOCK_INCREMENTAL),
        ),
        target(
            "Full backup: stored, of pgBackRest's",
            1.0,
            stored_ratio(Full, BLOCK_INCREMENTAL),
        ),
        target(
            "After half the pages: time, of pgBackRest's",
            0.5,
            time_ratio(SecondHalf, OURS, BLOCK_INCREMENTAL),
        ),
        target(
            "After half the pages: added, of pgBackRest's",
            0.1,
            stored_ratio(SecondHalf, BLOCK_INCREMENTAL),
        ),
        target(
            "After the small change: added, of pgBackRest's",
            1.0 / 15.0,
            stored_ratio(SecondSmall, BLOCK_INCREMENTAL),
        ),
        target(
            "After the small change: time, of pg_basebackup's incremental",
            1.0,
            time_ratio(SecondSmall, OURS, INCREMENTAL),
        ),
        target(
            "After the small change: added, of pg_basebackup's incremental",
            1.0 / 40.0,
            stored_ratio(SecondSmall, INCREMENTAL),
        ),
        target(
            "First page read from the mount: time, of pg_combinebackup's",
            1.0,
            time_ratio(Ready, OUR_MOUNT, COMBINED),
        ),
        target(
            "First page of a file of the mount, milliseconds",
            10.0,
            milliseconds(FirstByte),
        ),
        target(
            "Recovery fed from wal/: time, of plain files",
            1.05,
            time_ratio(Replay, OUR_MOUNT, PLAIN),
        ),
        target(
            "restore: time, of pgBackRest's",
            0.8,
            time_ratio(Restore, OURS, BLOCK_INCREMENTAL),
        ),
        target(
            "restore: time, of restic's",
            0.8,
            time_ratio(Restore, OURS, "restic"),
        ),
        target(
            "restore: time, of pg_combinebackup's",
            0.8,
            time_ratio(Restore, OURS, COMBINED),
        ),
        target(
            "restore: time, of cp -a from the mount",
            0.8,
            time_ratio(Restore, OURS, OUR_MOUNT),
        ),
        target(
            "restore --delta-restore after 1 % of the pages: time, of a full restore",
            0.2,
            ratio(seconds(Delta, OURS), seconds(Restore, OURS)),
        ),
        target(
            "First answer of a restored copy: time, of pgBackRest's",
            1.0,
            time_ratio(FirstAnswer, OURS, BLOCK_INCREMENTAL),
        ),
        target(
            "First answer of a restored copy: time, of pg_combinebackup's",
            1.0,
            time_ratio(FirstAnswer, OURS, COMBINED),
        ),
        target(
            "cp -a from the mount: time, of restic's restore",
            1.0,
            time_ratio(Restore, OUR_MOUNT, "restic"),
        ),
        target(
            "cp -a from the mount: time, of pgBackRest's restore",
            1.0,
            time_ratio(Restore, OUR_MOUNT, BLOCK_INCREMENTAL),
        ),
        target(
            "cp -a from the mount: time, of cp -a of plain files",
            1.3,
            time_ratio(Restore, OUR_MOUNT, PLAIN),
        ),
        target(
            "Random read, pgbench_accounts, milliseconds",
            0.25,
            milliseconds(ReadAccounts),
        ),
        target(
            "Random read, incompressible rows, milliseconds",
            0.25,
            milliseconds(ReadNoise),
        ),
        target(
            "wal-archive: time, of cp and fsync",
            1.5,
            time_ratio(WalArchive, OURS, PLAIN),
        ),
        target(
            "cp from wal/: time, of plain cp",
            2.0,
            time_ratio(WalFetch, OUR_MOUNT, PLAIN),
        ),
        target(
            "First answer of a server on a clone, seconds",
            2.0,
            seconds(FirstAnswer, OUR_CLONE),
        ),
        target(
            "pgbench -S on a clone, warm: time, of plain files",
            1.0 / 0.95,
            time_ratio(SelectWarm, OUR_CLONE, PLAIN),
        ),
        target(
            "pgbench with writes on a clone: time, of plain files",
            1.0 / 0.8,
            time_ratio(ReadWrite, OUR_CLONE, PLAIN),
        ),
        target("Memory of a backup, MB", 300.0, memory(Full, OURS)),
        target(
            "Memory of the mount while all is copied, MB",
            300.0,
            memory(Restore, OUR_MOUNT),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Sample;

    #[test]
    fn targets_compare_medians() {
        let mut results = Results::default();
        let sample = |seconds| Sample {
            seconds,
            ..Sample::default()
        };
        results.add(Measure::WalArchive, "cp", sample(0.010));
        results.add(Measure::WalArchive, "barmanfs", sample(0.030));
        let targets = all(&results);
        let archive = targets
            .iter()
            .find(|target| target.what.starts_with("wal-archive"))
            .unwrap();
        assert_eq!(archive.is_met(), Some(false));
        assert!((archive.value.unwrap() - 3.0).abs() < 1e-9);
        assert_eq!(targets[0].is_met(), None);
    }
}
