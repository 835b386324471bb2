//! The check of a server's retention policy: that it can be followed, and how far back it reaches.

use barmanfs_catalog::Repository;
use barmanfs_catalog::retention::{JudgedBackup, RetentionPlan, RetentionState};

use super::Subject;
use super::finding::{Finding, Findings};
use crate::config::ServerConfig;
use crate::error::Error;
use crate::moment;

const NAME: &str = "retention policy settings";

/// Checks the policy of an enabled server: of one with errors, nothing is deleted, and another check says so.
pub(super) fn check(repository: &Repository, subject: Subject<'_>, findings: &mut Findings) {
    let server = subject.server;
    if server.is_disabled() {
        return;
    }
    let rules = server.retention_rules();
    let plan = || Ok(repository.retention(&server.name, &rules, moment::now())?);
    findings.push(judge(server, plan));
}

/// The plan is only made where there is a policy.
fn judge(server: &ServerConfig, plan: impl FnOnce() -> Result<RetentionPlan, Error>) -> Finding {
    let Some(policy) = server.retention_policy else {
        return Finding::ok(NAME, "no retention_policy: nothing is deleted by itself");
    };
    let plan = match plan() {
        Ok(plan) => plan,
        Err(error) => return Finding::failed(NAME, error.to_string()),
    };
    if let Some(why) = &plan.blocked {
        return Finding::failed(NAME, format!("{policy}: nothing is deleted: {why}"));
    }
    match plan.backups.iter().rfind(|backup| anchors_recovery(backup)) {
        Some(oldest) => Finding::ok(
            NAME,
            format!("{policy}: back to backup {}{}", oldest.id, wal_policy(server)),
        ),
        None => Finding::ok(NAME, format!("{policy}: no complete backup yet")),
    }
}

/// Whether WAL is kept from a backup on.
fn anchors_recovery(backup: &JudgedBackup) -> bool {
    matches!(
        backup.state,
        RetentionState::Valid | RetentionState::PotentiallyObsolete | RetentionState::KeptFull
    )
}

fn wal_policy(server: &ServerConfig) -> String {
    let policy = server.wal_retention_policy.to_string();
    match policy.as_str() {
        "MAIN" => String::new(),
        _ => format!("; WAL: {policy}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::State;

    fn plan(states: &[(&str, RetentionState)], blocked: Option<&str>) -> RetentionPlan {
        let backup = |(id, state): &(&str, RetentionState)| JudgedBackup {
            id: id.parse().unwrap(),
            status: barmanfs_catalog::BackupStatus::Done,
            state: *state,
            why: String::new(),
            keep: None,
            keeps_wal: true,
            deleted: false,
            held_by: None,
        };
        RetentionPlan {
            backups: states.iter().map(backup).collect(),
            wal: Vec::new(),
            blocked: blocked.map(str::to_owned),
            wal_blocked: None,
        }
    }

    fn found(policy: Option<&str>, plan: &RetentionPlan) -> (State, String) {
        let mut server = crate::config::tests::server("conninfo = host=db\n");
        server.retention_policy = policy.map(|policy| policy.parse().unwrap());
        let finding = judge(&server, || Ok(plan.clone()));
        (finding.state, finding.message.unwrap_or_default())
    }

    #[test]
    fn a_policy_says_how_far_back_it_reaches() {
        let states = [
            ("20261122T020000", RetentionState::Valid),
            ("20261121T020000", RetentionState::Valid),
            ("20261120T020000", RetentionState::KeptStandalone),
            ("20261119T020000", RetentionState::Obsolete),
        ];
        let (state, message) = found(Some("redundancy 2"), &plan(&states, None));
        assert_eq!(
            (state, message.as_str()),
            (State::Ok, "REDUNDANCY 2: back to backup 20261121T020000")
        );
        let (state, message) = found(Some("REDUNDANCY 2"), &plan(&[], None));
        assert_eq!(
            (state, message.as_str()),
            (State::Ok, "REDUNDANCY 2: no complete backup yet")
        );
        assert_eq!(found(None, &plan(&states, None)).0, State::Ok);
    }

    #[test]
    fn a_policy_that_cannot_be_followed_fails() {
        let (state, message) = found(Some("REDUNDANCY 2"), &plan(&[], Some("a record is damaged")));
        assert_eq!(state, State::Failed);
        assert!(
            message.ends_with("nothing is deleted: a record is damaged"),
            "{message}"
        );
    }
}
