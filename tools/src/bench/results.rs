//! The measurements, in the form of `--json`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::measure::Sample;

/// All measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measure {
    /// The first backup.
    Full,
    /// The backup after 5,000 transactions and 0.1 % of the documents.
    SecondSmall,
    /// The backup after one row on every second page was changed.
    SecondHalf,
    /// The newest backup as a directory again, with an empty page cache.
    Restore,
    /// The newest backup again in its directory, in which one page of a hundred was changed, with an empty page cache.
    Delta,
    /// From the backup to the first page that can be read, with an empty page cache.
    Ready,
    /// The first page of a file of the mounted backup, opened for the first time.
    FirstByte,
    /// A page of pgbench_accounts from the mounted backup, with an empty page cache.
    ReadAccounts,
    /// The same of a table whose rows do not compress.
    ReadNoise,
    /// Archiving a full segment durably.
    WalArchive,
    /// Fetching an archived segment, with an empty page cache.
    WalFetch,
    /// Recovery through two hundred segments.
    Replay,
    /// From the backup to the first row from a server started on it, with an empty page cache.
    FirstAnswer,
    /// A transaction of `pgbench -S` on that server, at first with an empty page cache.
    SelectCold,
    /// The same when everything has been read once.
    SelectWarm,
    /// A transaction of pgbench with writes.
    ReadWrite,
}

impl Measure {
    /// Its heading in the report.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Full => "Full backup",
            Self::SecondSmall => "Second backup, after 5,000 transactions and 0.1 % of the documents",
            Self::SecondHalf => "Next backup, after a change on every second page",
            Self::Restore => "Data directory from the newest backup, cold",
            Self::Delta => "The same in place, after one page of a hundred was changed, cold",
            Self::Ready => "From the newest backup to its first page read, cold; stored: written for that",
            Self::FirstByte => "First page of a file, opened for the first time",
            Self::ReadAccounts => "Random 8 KiB reads from the mount, pgbench_accounts, cold",
            Self::ReadNoise => "Random 8 KiB reads from the mount, incompressible rows, cold",
            Self::WalArchive => "Archiving a full WAL segment",
            Self::WalFetch => "Fetching a WAL segment, cold",
            Self::Replay => "Recovery through 200 segments",
            Self::FirstAnswer => {
                "From the newest backup to a server's first row, cold; stored: written for that"
            }
            Self::SelectCold => "A server on the newest backup, pgbench -S, cold: per transaction",
            Self::SelectWarm => "The same, all read once: per transaction",
            Self::ReadWrite => "The same, pgbench with writes and checkpoints: per transaction",
        }
    }
}

/// All samples of one tool for one measure.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) measure: Measure,
    /// The tool, and its use if there are two: "restic", "restic mount".
    pub(crate) tool: String,
    /// The median of its times.
    pub(crate) median_seconds: f64,
    pub(crate) seconds: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stored_bytes: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peak_memory_bytes: Option<u64>,
}

impl Row {
    /// The median of its stored bytes.
    pub(crate) fn median_stored_bytes(&self) -> Option<u64> {
        let mut bytes = self.stored_bytes.clone();
        bytes.sort_unstable();
        bytes.get(bytes.len() / 2).copied()
    }
}

/// A whole benchmark.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    pub(crate) scale: u32,
    pub(crate) runs: u32,
    pub(crate) cpus: usize,
    pub(crate) database_bytes: u64,
    pub(crate) server_version: String,
    /// False if the page cache could not be emptied, so that nothing was cold.
    pub(crate) page_cache_dropped: bool,
    /// Each tool's version.
    pub(crate) tools: BTreeMap<String, String>,
    /// Tools that took no part, or only in part, and why.
    pub(crate) skipped: BTreeMap<String, String>,
    pub(crate) rows: Vec<Row>,
}

impl Results {
    /// Adds one sample.
    pub(crate) fn add(&mut self, measure: Measure, tool: &str, sample: Sample) {
        let known = self
            .rows
            .iter()
            .position(|row| row.measure == measure && row.tool == tool);
        let at = known.unwrap_or_else(|| {
            self.rows.push(Row {
                measure,
                tool: tool.to_owned(),
                median_seconds: f64::NAN,
                seconds: Vec::new(),
                stored_bytes: Vec::new(),
                peak_memory_bytes: None,
            });
            self.rows.len() - 1
        });
        if let Some(row) = self.rows.get_mut(at) {
            row.seconds.push(sample.seconds);
            row.median_seconds = median(&row.seconds);
            row.stored_bytes.extend(sample.stored_bytes);
            row.peak_memory_bytes = row.peak_memory_bytes.max(sample.peak_memory_bytes);
        }
    }

    /// The row of a tool, if it was measured.
    pub(crate) fn row(&self, measure: Measure, tool: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.measure == measure && row.tool == tool)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(values.len().saturating_sub(1) / 2), at(values.len() / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let mut results = Results::default();
        for seconds in [3.0, 1.0, 2.0] {
            let sample = Sample {
                seconds,
                stored_bytes: Some(7),
                peak_memory_bytes: Some(seconds as u64),
            };
            results.add(Measure::Full, "cp", sample);
        }
        let row = results.row(Measure::Full, "cp").unwrap();
        assert!((row.median_seconds - 2.0).abs() < 1e-9);
        assert_eq!(row.peak_memory_bytes, Some(3));
        results.add(
            Measure::Full,
            "cp",
            Sample {
                seconds: 4.0,
                ..Sample::default()
            },
        );
        let row = results.row(Measure::Full, "cp").unwrap();
        assert!((row.median_seconds - 2.5).abs() < 1e-9);
        assert_eq!(row.median_stored_bytes(), Some(7));
        assert!(results.row(Measure::Restore, "cp").is_none());
    }
}
