//! Tells `notify_command` which checks fail, and which are good again: each change once.
//!
//! What it was told is remembered when the command has ended with 0; otherwise it is told again the next time.

use std::collections::BTreeMap;
use std::time::Duration;

use barmanfs_catalog::Repository;

use super::super::App;
use crate::config::ServerConfig;
use crate::error::Error;
use crate::health::standing::each;
use crate::health::{self, Checked, Finding, State};
use crate::hooks::{Notice, Told, notify};
use crate::invocation::Invocation;
use crate::output;

/// How long the checks may take where the configuration sets no limit.
const WITHIN: Duration = Duration::from_secs(60);

/// How long the command may take where `hook_timeout` is not set: the next run waits for it.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);

/// Where one of these fails, others were not made.
const FOUNDATIONS: &[&str] = &["check timeout", "repository", "catalog"];

/// A check whose state has changed.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    check: String,
    /// Why it fails; `None` if it is good again.
    failed: Option<String>,
}

/// Checks the servers that have a `notify_command`, and the repository once, and tells what has changed.
pub(super) fn run(app: &App, repository: &Repository) -> Result<String, Error> {
    let mut servers = app.config.servers.clone();
    servers.retain(is_told);
    let request = health::Request {
        place: &app.place,
        servers: &servers,
        invocation: &Invocation::current(Some(&app.config.file)),
        measured: false,
    };
    let report = health::check(&request, |server| Some(server.check_timeout.unwrap_or(WITHIN)));
    let checked: Vec<(&ServerConfig, Checked)> = servers.iter().zip(report.into_each()).collect();
    // A command that hangs delays the alarms of its own server only.
    let results = each(&checked, |(server, checked)| {
        let told = tell(repository, server, checked);
        told.map_err(|error| format!("Server {}: {error}", server.name))
    });
    let (mut told, mut failed) = (0, Vec::new());
    for result in results {
        match result {
            Ok(changes) => told += changes,
            Err(error) => failed.push(error),
        }
    }
    match failed.is_empty() {
        false => Err(Error::failed(failed.join("; "))),
        true => Ok(format!("told {}", output::count(told, "change"))),
    }
}

/// Whether changes of a server's checks are told.
pub(super) fn is_told(server: &ServerConfig) -> bool {
    server.active && server.hooks.notify_command.is_some()
}

/// Tells what has changed. Returns how many changes.
fn tell(repository: &Repository, server: &ServerConfig, checked: &Checked) -> Result<usize, Error> {
    let Some(command) = &server.hooks.notify_command else {
        return Ok(0);
    };
    let known = repository.server_memory(&server.name)?.failing;
    let changes = changes(checked, &known);
    let limit = server.hooks.timeout.unwrap_or(COMMAND_WITHIN);
    let (mut told, mut has_hung) = (0, false);
    for change in &changes {
        let notice = Notice {
            server,
            check: &change.check,
            state: match change.failed {
                Some(_) => State::Failed.word(),
                None => State::Ok.word(),
            },
            message: change.failed.as_deref().unwrap_or_default(),
        };
        match notify(command, &notice, limit, repository.path()) {
            Told::Done => {}
            Told::Failed => continue,
            // The next ones would hang as well.
            Told::TimedOut => {
                has_hung = true;
                break;
            }
        }
        told += 1;
        repository.remember_of_server(&server.name, |memory| {
            match &change.failed {
                Some(why) => memory.failing.insert(change.check.clone(), why.clone()),
                None => memory.failing.remove(&change.check),
            };
        })?;
    }
    let untold = output::count(changes.len() - told, "change");
    match (has_hung, told < changes.len()) {
        (true, _) => Err(Error::failed(format!(
            "notify_command did not end within {}, so {untold} could not be told",
            output::duration(limit)
        ))),
        (false, true) => Err(Error::failed(format!("notify_command has failed for {untold}"))),
        (false, false) => Ok(told),
    }
}

/// What is different from what is known. A check that has no line is good where all checks were made: some say something
/// only when they fail.
fn changes(checked: &Checked, known: &BTreeMap<String, String>) -> Vec<Change> {
    let findings = checked.findings.iter();
    let states: BTreeMap<&str, &Finding> = findings.map(|finding| (finding.name, finding)).collect();
    let fails = |name: &str| {
        states
            .get(name)
            .is_some_and(|finding| finding.state == State::Failed)
    };
    let is_complete = checked.figures.is_up == Some(true) && !FOUNDATIONS.iter().any(|name| fails(name));
    let failed = states.values().filter(|finding| finding.state == State::Failed);
    let new = failed.filter(|finding| !known.contains_key(finding.name));
    let mut changes: Vec<Change> = new
        .map(|finding| Change {
            check: finding.name.to_owned(),
            failed: Some(finding.text().unwrap_or_default()),
        })
        .collect();
    let is_good = |name: &str| match states.get(name) {
        Some(finding) => finding.state != State::Failed,
        None => is_complete,
    };
    let good = known.keys().filter(|name| is_good(name));
    changes.extend(good.map(|name| Change {
        check: name.clone(),
        failed: None,
    }));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Figures;

    fn checked(lines: &[(&'static str, State)], is_up: bool) -> Checked {
        let finding = |(name, state): &(&'static str, State)| Finding {
            name,
            state: *state,
            message: None,
            hint: None,
        };
        Checked {
            findings: lines.iter().map(finding).collect(),
            figures: Figures {
                is_up: Some(is_up),
                ..Figures::default()
            },
        }
    }

    /// The names of checks that have changed, with `+` where they are good again.
    fn changed(lines: &[(&'static str, State)], is_up: bool, known: &[&str]) -> Vec<String> {
        let known = known
            .iter()
            .map(|name| ((*name).to_owned(), String::new()))
            .collect();
        let name = |change: &Change| match change.failed {
            Some(_) => change.check.clone(),
            None => format!("+{}", change.check),
        };
        changes(&checked(lines, is_up), &known).iter().map(name).collect()
    }

    #[test]
    fn each_change_is_told_once() {
        let lines = [("a", State::Failed), ("b", State::Ok), ("c", State::Warning)];
        assert_eq!(changed(&lines, true, &[]), ["a"]);
        assert_eq!(changed(&lines, true, &["a"]), [""; 0]);
        assert_eq!(changed(&lines, true, &["a", "b", "c"]), ["+b", "+c"]);
        assert_eq!(
            changed(&[("a", State::Ok), ("a", State::Failed)], true, &["a"]),
            [""; 0]
        );
    }

    #[test]
    fn a_check_that_was_not_made_is_not_good() {
        assert_eq!(changed(&[], true, &["a"]), ["+a"]);
        assert_eq!(
            changed(&[("PostgreSQL", State::Failed)], false, &["a"]),
            ["PostgreSQL"]
        );
        assert_eq!(
            changed(&[("catalog", State::Failed)], true, &["a", "catalog"]),
            [""; 0]
        );
    }
}
