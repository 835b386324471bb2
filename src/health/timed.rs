//! Runs checks within a time. When the time is up, what is known by then is the result, and the check
//! `check timeout` fails: a dead server or disk must not keep monitoring waiting.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::figures::Figures;
use super::finding::{self, Finding, Findings, Found};
use crate::output;
use barmanfs_store::threads;

const NAME: &str = "check timeout";

/// The findings and figures of a server.
#[derive(Debug)]
pub(crate) struct Checked {
    /// In the order of the checks.
    pub(crate) findings: Vec<Finding>,
    /// What the checks have counted.
    pub(crate) figures: Figures,
}

/// Runs `checks` in a thread of its own. After `within`, the thread is left to itself: each of its waits has a limit,
/// and the process does not wait for it.
pub(super) fn run(within: Option<Duration>, checks: impl FnOnce(&mut Findings) + Send + 'static) -> Checked {
    let (mut sender, found) = Findings::pair();
    let until = within.and_then(|within| Instant::now().checked_add(within));
    let thread = threads::start("check", move || checks(&mut sender));
    let mut findings = Vec::new();
    match thread {
        Err(error) => findings.push(Finding::failed(NAME, format!("the checks cannot start: {error}"))),
        Ok(thread) if collect(&found, until, &mut findings) => {
            if thread.join().is_err() {
                findings.push(Finding::failed(
                    NAME,
                    "the checks ended early, by a fault of barmanfs",
                ));
            }
        }
        Ok(_) => findings.push(late(within.unwrap_or_default(), findings.last())),
    }
    Checked {
        findings: finding::merge(findings),
        figures: found.figures(),
    }
}

/// The result of `work`; `None` if there is none after this time. Then its thread is left to itself.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, result) = mpsc::sync_channel(1);
    let started = threads::start("within", move || {
        // If nobody waits any more, the time is up.
        let _ = sender.send(work());
    });
    started.inspect_err(|refused| tracing::warn!("{refused}")).ok()?;
    result.recv_timeout(limit).ok()
}

/// Collects the findings. Returns whether the checks ended in time.
fn collect(found: &Found, until: Option<Instant>, findings: &mut Vec<Finding>) -> bool {
    loop {
        let next = match until {
            None => found.findings.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => found
                .findings
                .recv_timeout(until.saturating_duration_since(Instant::now())),
        };
        match next {
            Ok(finding) => findings.push(finding),
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

fn late(within: Duration, last: Option<&Finding>) -> Finding {
    let after = last.map_or_else(String::new, |last| format!(" after '{}'", last.name));
    Finding::failed(
        NAME,
        format!(
            "the checks did not end within {}, nothing came{after}: what is behind it is not known",
            output::duration(within)
        ),
    )
    .hint("check_timeout sets the time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::State;
    use std::thread;

    fn names(checked: &Checked) -> Vec<(&'static str, State)> {
        let findings = checked.findings.iter();
        findings.map(|finding| (finding.name, finding.state)).collect()
    }

    #[test]
    fn checks_that_end_in_time_are_all_there() {
        for within in [None, Some(Duration::from_secs(60))] {
            let checked = run(within, |findings| {
                // More than may wait.
                (0..200).for_each(|_| findings.ok("catalog", None));
                findings.failed("last", "it is the last");
                findings.note(|figures| figures.gaps = Some(1));
            });
            assert_eq!(names(&checked), [("catalog", State::Ok), ("last", State::Failed)]);
            assert_eq!(checked.figures.gaps, Some(1));
        }
    }

    #[test]
    fn a_check_that_hangs_fails_and_what_came_before_it_counts() {
        let checked = run(Some(Duration::from_millis(50)), |findings| {
            findings.ok("catalog", None);
            findings.note(|figures| figures.gaps = Some(1));
            thread::sleep(Duration::from_secs(20));
            findings.ok("late", None);
        });
        assert_eq!(names(&checked), [("catalog", State::Ok), (NAME, State::Failed)]);
        let text = checked
            .findings
            .last()
            .and_then(Finding::text)
            .unwrap_or_default();
        assert!(text.contains("after 'catalog'"), "{text}");
        assert_eq!(checked.figures.gaps, Some(1));
    }

    #[test]
    fn work_has_a_result_only_in_time() {
        assert_eq!(within(Duration::from_secs(60), || 7), Some(7));
        let sleeps = || thread::sleep(Duration::from_secs(20));
        assert_eq!(within(Duration::from_millis(20), sleeps), None);
    }

    #[test]
    fn checks_that_end_by_a_fault_are_not_well() {
        let checked = run(None, |findings| {
            findings.ok("catalog", None);
            panic!("as in a test");
        });
        assert_eq!(names(&checked), [("catalog", State::Ok), (NAME, State::Failed)]);
    }
}
