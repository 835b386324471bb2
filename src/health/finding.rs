//! The result of one check, and the way of results from the checks to those who show them.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use super::figures::Figures;
use crate::error::Error;
use crate::output::printable;

/// The result of a check, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// As it should be.
    Ok,
    /// Somebody should look at it. Nothing is known to be lost.
    Warning,
    /// Something is wrong now.
    Failed,
}

impl State {
    /// The word for this state in all outputs.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Failed => "FAILED",
        }
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The name of the check.
    pub(crate) name: &'static str,
    /// Its state.
    pub(crate) state: State,
    /// What was found. The text may end with what to do about it.
    pub(crate) message: Option<String>,
    /// What to do about it, if that is a sentence of its own.
    pub(crate) hint: Option<String>,
}

impl Finding {
    /// All is well.
    pub(super) fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, State::Ok, message)
    }

    /// Somebody should look at it.
    pub(super) fn warning(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, State::Warning, message)
    }

    /// Something is wrong.
    pub(crate) fn failed(name: &'static str, message: impl Into<String>) -> Self {
        Self::new(name, State::Failed, message)
    }

    fn new(name: &'static str, state: State, message: impl Into<String>) -> Self {
        let message: String = message.into();
        Self {
            name,
            state,
            message: Some(printable(message.as_bytes())),
            hint: None,
        }
    }

    /// Adds what to do about it.
    pub(super) fn hint(mut self, hint: impl AsRef<str>) -> Self {
        self.hint = Some(printable(hint.as_ref().as_bytes()));
        self
    }

    /// Adds what another finding of this name and state says. Of those that are OK, the first says enough.
    fn join(&mut self, other: &Self) {
        let (Some(text), Some(more)) = (self.text(), other.text()) else {
            return;
        };
        let is_said = text == more || text.ends_with(&format!("; {more}"));
        if self.state != State::Ok && !is_said {
            self.message = Some(format!("{text}; {more}"));
            self.hint = None;
        }
    }

    /// Message and hint in one text.
    pub(crate) fn text(&self) -> Option<String> {
        match (&self.message, &self.hint) {
            (Some(message), Some(hint)) => Some(format!("{message}. {hint}")),
            (one, other) => one.as_ref().or(other.as_ref()).cloned(),
        }
    }
}

/// The worst state among findings.
pub(crate) fn worst(findings: &[Finding]) -> State {
    let states = findings.iter().map(|finding| finding.state);
    states.max().unwrap_or(State::Ok)
}

/// One finding for each name, at the place of the first: of several, the worst. Those that are equally bad are joined, if
/// there is something to do.
pub(crate) fn merge(findings: Vec<Finding>) -> Vec<Finding> {
    let mut merged: Vec<Finding> = Vec::with_capacity(findings.len());
    for finding in findings {
        match merged.iter_mut().find(|known| known.name == finding.name) {
            None => merged.push(finding),
            Some(known) if known.state < finding.state => *known = finding,
            Some(known) if known.state == finding.state => known.join(&finding),
            Some(_) => {}
        }
    }
    merged
}

/// How many findings may wait for the thread that shows them.
const AHEAD_MAX: usize = 64;

/// Passes findings, and the figures that the checks have met, to the thread that waits for them.
#[derive(Debug)]
pub(super) struct Findings {
    found: SyncSender<Finding>,
    figures: Arc<Mutex<Figures>>,
}

/// The other end of [`Findings`].
#[derive(Debug)]
pub(super) struct Found {
    /// Each finding when it is known. Ends when there will be no more.
    pub(super) findings: Receiver<Finding>,
    figures: Arc<Mutex<Figures>>,
}

impl Found {
    /// The figures that are known by now.
    pub(super) fn figures(&self) -> Figures {
        self.figures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Findings {
    /// Both ends.
    pub(super) fn pair() -> (Self, Found) {
        let (found, findings) = mpsc::sync_channel(AHEAD_MAX);
        let figures = Arc::new(Mutex::new(Figures::default()));
        let other_end = Found {
            findings,
            figures: Arc::clone(&figures),
        };
        (Self { found, figures }, other_end)
    }

    /// Adds a finding.
    pub(super) fn push(&mut self, finding: Finding) {
        // If nobody waits any more, the time is up.
        let _ = self.found.send(finding);
    }

    /// Adds findings.
    pub(super) fn extend(&mut self, found: impl IntoIterator<Item = Finding>) {
        for finding in found {
            self.push(finding);
        }
    }

    /// Notes figures.
    pub(super) fn note(&mut self, note: impl FnOnce(&mut Figures)) {
        note(&mut self.figures.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Adds that all is well.
    pub(super) fn ok(&mut self, name: &'static str, message: impl Into<Option<String>>) {
        let message: Option<String> = message.into();
        self.push(Finding {
            name,
            state: State::Ok,
            message: message.map(|message| printable(message.as_bytes())),
            hint: None,
        });
    }

    /// Adds that something is wrong.
    pub(super) fn failed(&mut self, name: &'static str, message: impl Into<String>) {
        self.push(Finding::failed(name, message));
    }

    /// Adds OK with a message about the value, or FAILED with the error and its hint.
    pub(super) fn result<T>(
        &mut self,
        name: &'static str,
        result: Result<T, Error>,
        message: impl FnOnce(&T) -> Option<String>,
    ) -> Option<T> {
        match result {
            Ok(value) => {
                self.ok(name, message(&value));
                Some(value)
            }
            Err(error) => {
                let failed = Finding::failed(name, error.to_string());
                self.push(match error.hint_text() {
                    Some(hint) => failed.hint(hint),
                    None => failed,
                });
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_message_and_hint() {
        let plain = Finding::failed("repository", "it is not there");
        assert_eq!(plain.text().as_deref(), Some("it is not there"));
        let hinted = plain.hint("Mount it");
        assert_eq!(hinted.text().as_deref(), Some("it is not there. Mount it"));
        let (mut findings, found) = Findings::pair();
        findings.ok("catalog", None);
        findings.note(|figures| figures.gaps = Some(2));
        drop(findings);
        let catalog = found.findings.iter().next();
        assert_eq!(catalog.and_then(|finding| finding.text()), None);
        assert_eq!(found.figures().gaps, Some(2));
    }

    #[test]
    fn a_check_has_one_line_whatever_it_has_found() {
        let found = merge(vec![
            Finding::ok("a", "1"),
            Finding::failed("b", "no answer").hint("Ask again"),
            Finding::ok("b", "nothing is known"),
            Finding::warning("a", "2"),
            Finding::failed("b", "x"),
            Finding::failed("b", "x"),
            Finding::ok("c", "1"),
            Finding::ok("c", "2"),
        ]);
        let lines: Vec<_> = found
            .iter()
            .map(|finding| (finding.name, finding.state, finding.text().unwrap_or_default()))
            .collect();
        assert_eq!(
            lines,
            [
                ("a", State::Warning, "2".to_owned()),
                ("b", State::Failed, "no answer. Ask again; x".to_owned()),
                ("c", State::Ok, "1".to_owned()),
            ]
        );
    }

    #[test]
    fn the_worst_state_counts() {
        assert_eq!(worst(&[]), State::Ok);
        let findings = [
            Finding::ok("a", ""),
            Finding::failed("b", ""),
            Finding::warning("c", ""),
        ];
        assert_eq!(worst(&findings), State::Failed);
    }
}
