//! `check --nagios`: one line, and a plugin's exit codes.

use crate::error::Outcome;
use crate::health::State;
use crate::report::CheckedServer;

/// A plugin's exit code for a state that somebody should look at.
const WARNING: u8 = 1;
/// A plugin's exit code for a critical state.
const CRITICAL: u8 = 2;

/// The exit code for the worst state.
pub(super) fn outcome(worst: State) -> Outcome {
    match worst {
        State::Ok => Outcome::Done,
        State::Warning => Outcome::Told(WARNING),
        State::Failed => Outcome::Told(CRITICAL),
    }
}

/// The status line: the problems by server, failures before warnings.
pub(super) fn line(checked: &[CheckedServer]) -> String {
    let word = match CheckedServer::worst(checked) {
        State::Ok => {
            let names: Vec<&str> = checked.iter().map(|server| server.server.as_str()).collect();
            return format!("BARMANFS OK - ready to serve: {}", names.join(", "));
        }
        State::Warning => "WARNING",
        State::Failed => "CRITICAL",
    };
    let bad: Vec<String> = checked
        .iter()
        .filter(|server| server.status > State::Ok)
        .map(|server| {
            let parts = [State::Failed, State::Warning].map(|state| named(server, state));
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            format!("{} {}", server.server, parts.join(", "))
        })
        .collect();
    format!("BARMANFS {word} - {}", bad.join("; "))
}

/// `FAILED: archive_mode, replication slot`
fn named(server: &CheckedServer, state: State) -> Option<String> {
    let findings = server.findings.iter().filter(|finding| finding.state == state);
    let names: Vec<&str> = findings.map(|finding| finding.name).collect();
    (!names.is_empty()).then(|| format!("{}: {}", state.word(), names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::server;
    use crate::health::Finding;

    fn checked(worst: State) -> CheckedServer {
        let finding = |name, state| Finding {
            name,
            state,
            message: None,
            hint: None,
        };
        let mut findings = vec![finding("PostgreSQL", State::Ok)];
        if worst >= State::Warning {
            findings.push(finding("archive_command", State::Warning));
        }
        if worst == State::Failed {
            findings.push(finding("archive_mode", State::Failed));
        }
        CheckedServer::new(&server(""), findings)
    }

    #[test]
    fn nagios_gets_one_line() {
        let [good, warned, failed] = [State::Ok, State::Warning, State::Failed].map(checked);
        assert_eq!(line(&[checked(State::Ok)]), "BARMANFS OK - ready to serve: main");
        assert_eq!(
            line(&[checked(State::Ok), warned]),
            "BARMANFS WARNING - main WARNING: archive_command"
        );
        assert_eq!(
            line(&[good, failed]),
            "BARMANFS CRITICAL - main FAILED: archive_mode, WARNING: archive_command"
        );
    }
}
