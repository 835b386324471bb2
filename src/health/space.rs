//! Whether there is space for what comes: now, and at the rate at which the repository grows.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use barmanfs_catalog::{Growth, Repository};

use super::finding::{Finding, Findings};
use crate::error::Error;
use crate::output;

const NAME: &str = "free space";

/// The time that shows the rate of growth: many sites have a weekly rhythm.
const OBSERVED: Duration = Duration::from_secs(7 * 24 * 3600);

/// With less free space than this, the next few packs do not fit.
const FREE_BYTES_MIN: u64 = 256 << 20;
/// The same for files: each pack and each lock is a file.
const FREE_FILES_MIN: u64 = 1000;

const DAY_SECONDS: u64 = 24 * 3600;
/// With space for fewer days, somebody should look: time to order a disk, or to agree on fewer backups.
const WARNING_DAYS: u64 = 14;
/// With space for fewer days it fails: nobody may look before a weekend is over.
const FAILED_DAYS: u64 = 3;

/// The free space of a file system.
#[derive(Debug, Clone, Copy)]
struct Free {
    bytes: u64,
    files: u64,
}

/// Checks the space for the repository at `path`.
pub(super) fn check(repository: &Repository, path: &Path, findings: &mut Findings) {
    let free = match rustix::fs::statvfs(path) {
        Ok(state) => Free {
            bytes: state.f_bavail.saturating_mul(state.f_frsize),
            // Some file systems have no limit of files, and report 0.
            files: if state.f_files == 0 {
                u64::MAX
            } else {
                state.f_favail
            },
        },
        Err(error) => return findings.failed(NAME, io::Error::from(error).to_string()),
    };
    // What grows is in the object store; this is its cache, with the spool and clones.
    if repository.is_remote() {
        return findings.push(judge(free, Growth::default()));
    }
    match growth(repository) {
        Ok(growth) => findings.push(judge(free, growth)),
        Err(error) => {
            findings.push(judge(free, Growth::default()));
            findings.failed("growth of the repository", error.to_string());
        }
    }
}

/// How fast the repository grows now.
pub(super) fn growth(repository: &Repository) -> Result<Growth, Error> {
    let now = SystemTime::now();
    let since = now.checked_sub(OBSERVED).unwrap_or(now);
    Ok(repository.growth(since.into(), now.into())?)
}

fn judge(free: Free, growth: Growth) -> Finding {
    let left = output::bytes(free.bytes);
    if free.bytes < FREE_BYTES_MIN {
        return Finding::failed(NAME, format!("only {left} left"));
    }
    if free.files < FREE_FILES_MIN {
        return Finding::failed(NAME, format!("only {} files can be made", free.files));
    }
    let Some(days) = free.bytes.checked_div(growth.bytes_per_day) else {
        return Finding::ok(NAME, left);
    };
    let but = if growth.has_deletions {
        ", without what is deleted"
    } else {
        ""
    };
    let text = format!(
        "{left}, which is enough for {} at {} a day, as in the last {}{but}",
        output::count(days, "day"),
        output::bytes(growth.bytes_per_day),
        observed(growth)
    );
    let advice = "Make it larger, or delete backups and run 'sweep'";
    // What was seen for a shorter time may be the loading of a new database.
    let is_known = growth.observed_seconds >= FAILED_DAYS * DAY_SECONDS;
    match days {
        // What is deleted frees space, as much as is added where a policy holds.
        0..FAILED_DAYS if growth.has_deletions => Finding::warning(NAME, text).hint(advice),
        _ if growth.has_deletions => Finding::ok(NAME, text),
        0..FAILED_DAYS if is_known => Finding::failed(NAME, text).hint(advice),
        0..WARNING_DAYS => Finding::warning(NAME, text).hint(advice),
        _ => Finding::ok(NAME, text),
    }
}

/// `18 hours`, `7 days`
fn observed(growth: Growth) -> String {
    let hours = usize::try_from(growth.observed_seconds / 3600).unwrap_or(usize::MAX);
    match hours {
        0..48 => output::count(hours.max(1), "hour"),
        hours => output::count(hours / 24, "day"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::State;

    const GIB: u64 = 1 << 30;

    fn judged(free_gib: u64, gib_per_day: u64, observed_days: u64) -> (State, String) {
        let free = Free {
            bytes: free_gib * GIB,
            files: u64::MAX,
        };
        let growth = Growth {
            bytes_per_day: gib_per_day * GIB,
            observed_seconds: observed_days * DAY_SECONDS,
            has_deletions: false,
        };
        let finding = judge(free, growth);
        (finding.state, finding.text().unwrap_or_default())
    }

    #[test]
    fn space_must_last_longer_than_a_weekend() {
        for (free, per_day, observed, expected) in [
            (100, 0, 0, State::Ok),
            (100, 7, 7, State::Ok),
            (100, 8, 7, State::Warning),
            (30, 10, 7, State::Warning),
            (29, 10, 7, State::Failed),
            (29, 10, 3, State::Failed),
            // A day of loading is not how it goes on.
            (29, 10, 2, State::Warning),
            (0, 0, 7, State::Failed),
        ] {
            let (state, text) = judged(free, per_day, observed);
            assert_eq!(state, expected, "{free} GiB, {per_day} GiB a day: {text}");
        }
        let (_, text) = judged(100, 7, 7);
        assert_eq!(
            text,
            "100.00 GiB, which is enough for 14 days at 7.00 GiB a day, as in the last 7 days"
        );
    }

    #[test]
    fn where_a_policy_deletes_little_space_is_no_failure() {
        let state = |gib_per_day: u64| {
            let free = Free {
                bytes: 10 * GIB,
                files: u64::MAX,
            };
            let growth = Growth {
                bytes_per_day: gib_per_day * GIB,
                observed_seconds: 7 * DAY_SECONDS,
                has_deletions: true,
            };
            judge(free, growth).state
        };
        assert_eq!((state(3), state(4)), (State::Ok, State::Warning));
    }

    #[test]
    fn files_run_out_too() {
        let free = Free {
            bytes: 100 * GIB,
            files: 999,
        };
        assert_eq!(judge(free, Growth::default()).state, State::Failed);
    }
}
