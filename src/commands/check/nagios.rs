//! `check --nagios`: a status line with performance data, a line for each problem, and a plugin's exit codes. Barman's
//! plugin has the same form, so that templates of services which match it need only another prefix.

use std::time::Duration;

use barmanfs_pg::TimestampMicros;

use crate::error::{Outcome, exit};
use crate::health::{Figures, Finding, State};
use crate::moment;
use crate::report::{CheckedRepository, CheckedServer};

/// For whom the lines are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plugin {
    /// The name of the program, which templates of services match.
    prefix: &'static str,
    /// The least state that is a problem.
    least: State,
}

/// Our own plugin.
pub(super) const OWN: Plugin = Plugin {
    prefix: "BARMANFS",
    least: State::Warning,
};

/// Barman's plugin, which has no warnings.
pub(super) const BARMAN: Plugin = Plugin {
    prefix: "BARMAN",
    least: State::Failed,
};

/// Stands before the problems of the repository.
const REPOSITORY: &str = "(repository)";

/// A plugin's exit code for a state that somebody should look at.
const WARNING: u8 = 1;

/// The exit code for the worst state.
pub(super) fn outcome(plugin: Plugin, worst: State) -> Outcome {
    match worst {
        fine if fine < plugin.least => Outcome::Done,
        State::Ok | State::Warning => Outcome::Told(WARNING),
        State::Failed => Outcome::Told(exit::NAGIOS_CRITICAL),
    }
}

/// The lines: first the status of all servers and the performance data, then the problems. A problem of the repository is
/// one of all servers, and is said once.
pub(super) fn lines(
    plugin: Plugin,
    repository: Option<&CheckedRepository>,
    checked: &[CheckedServer],
) -> Vec<String> {
    let Plugin { prefix, least } = plugin;
    let data: Vec<String> = checked.iter().filter_map(performance_data).collect();
    let data = match data.join(" ") {
        none if none.is_empty() => none,
        data => format!("|{data}"),
    };
    let (active, inactive): (Vec<_>, Vec<_>) = checked.iter().partition(|server| server.active);
    let bad: Vec<_> = active.iter().filter(|server| server.status >= least).collect();
    let repository = repository.filter(|repository| repository.status >= least);
    let of_repository = repository.map_or(State::Ok, |repository| repository.status);
    let word = match CheckedServer::worst(checked).max(of_repository) {
        State::Failed => format!("{prefix} CRITICAL"),
        State::Ok | State::Warning => format!("{prefix} WARNING"),
    };
    let mut status = match (bad.as_slice(), active.as_slice()) {
        ([], _) if repository.is_some() => format!("{word} - the repository has issues"),
        ([], _) => format!("{prefix} OK - {}", ready(&active)),
        ([one], [_]) => format!("{word} - server {} has issues", one.server),
        (bad, all) => format!("{word} - {} server out of {} have issues", bad.len(), all.len()),
    };
    let of_repository = repository.map(|repository| (REPOSITORY, &repository.findings));
    let of_servers = bad
        .iter()
        .map(|server| (server.server.as_str(), &server.findings));
    let bad: Vec<_> = of_repository.into_iter().chain(of_servers).collect();
    for (whose, findings) in &bad {
        let states = [State::Failed, State::Warning].into_iter();
        let parts = states.filter(|state| *state >= least);
        let parts: Vec<String> = parts.filter_map(|state| named(findings, state)).collect();
        status += &format!(" * {whose} {}", parts.join(", "));
    }
    for server in inactive {
        status += &format!(" * IGNORING: {}", server.server);
    }
    let mut lines = vec![format!("{status}{data}")];
    for (whose, findings) in bad {
        let findings = findings.iter().filter(|finding| finding.state >= least);
        lines.extend(findings.map(|finding| detail(whose, finding)));
    }
    lines
}

fn ready(servers: &[&CheckedServer]) -> String {
    match servers {
        [] => "no active server".to_owned(),
        [one] => format!("ready to serve: {}", one.server),
        several => {
            let names: Vec<&str> = several.iter().map(|server| server.server.as_str()).collect();
            format!("ready to serve: {} servers * {}", names.len(), names.join(" * "))
        }
    }
}

/// `FAILED: archive_mode, replication slot`
fn named(findings: &[Finding], state: State) -> Option<String> {
    let findings = findings.iter().filter(|finding| finding.state == state);
    let names: Vec<&str> = findings.map(|finding| finding.name).collect();
    (!names.is_empty()).then(|| format!("{}: {}", state.word(), names.join(", ")))
}

/// `main.archive_mode: FAILED (it is off)`
fn detail(whose: &str, finding: &Finding) -> String {
    // Behind a vertical bar, a plugin's output is performance data.
    let text = finding.text().unwrap_or_default().replace('|', "\u{a6}");
    format!("{whose}.{}: {} ({text})", finding.name, finding.state.word())
}

/// `main=55872146B main_wals=16610B main_age=58s main_wal_age=3s`; what is not known is left out.
fn performance_data(server: &CheckedServer) -> Option<String> {
    let Figures {
        newest,
        wal_bytes,
        last_wal,
        ..
    } = &server.figures;
    let name = &server.server;
    let values = [
        newest.map(|newest| format!("{name}={}B", newest.logical_bytes)),
        wal_bytes.map(|bytes| format!("{name}_wals={bytes}B")),
        newest.map(|newest| format!("{name}_age={}s", age(newest.ended).as_secs())),
        last_wal.map(|last| format!("{name}_wal_age={}s", age(last).as_secs())),
    ];
    let values: Vec<String> = values.into_iter().flatten().collect();
    (!values.is_empty()).then(|| values.join(" "))
}

fn age(time: TimestampMicros) -> Duration {
    moment::now().saturating_duration_since(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::server;
    use crate::health::Checked;
    use crate::health::figures::NewestBackup;

    fn with_figures(settings: &str, worst: State, figures: Figures) -> CheckedServer {
        let finding = |name, state| Finding {
            name,
            state,
            message: Some("a | b".to_owned()),
            hint: None,
        };
        let mut findings = vec![finding("PostgreSQL", State::Ok)];
        if worst >= State::Warning {
            findings.push(finding("archive_command", State::Warning));
        }
        if worst == State::Failed {
            findings.push(finding("archive_mode", State::Failed));
        }
        CheckedServer::new(&server(settings), Checked { findings, figures })
    }

    /// Without a problem of the repository.
    fn lines(plugin: Plugin, checked: &[CheckedServer]) -> Vec<String> {
        super::lines(plugin, None, checked)
    }

    fn checked(worst: State) -> CheckedServer {
        with_figures("", worst, Figures::default())
    }

    #[test]
    fn the_status_line_names_what_is_wrong() {
        let [good, warned, failed] = [State::Ok, State::Warning, State::Failed].map(checked);
        let ok = [checked(State::Ok)];
        assert_eq!(lines(OWN, &ok), ["BARMANFS OK - ready to serve: main"]);
        assert_eq!(lines(BARMAN, &ok), ["BARMAN OK - ready to serve: main"]);
        assert_eq!(
            lines(OWN, &[checked(State::Ok), checked(State::Ok)]),
            ["BARMANFS OK - ready to serve: 2 servers * main * main"]
        );
        assert_eq!(
            lines(OWN, &[warned]),
            [
                "BARMANFS WARNING - server main has issues * main WARNING: archive_command",
                "main.archive_command: WARNING (a \u{a6} b)",
            ]
        );
        assert_eq!(
            lines(BARMAN, &[checked(State::Warning)]),
            ["BARMAN OK - ready to serve: main"]
        );
        assert_eq!(outcome(BARMAN, State::Warning), Outcome::Done);
        assert_eq!(outcome(OWN, State::Warning), Outcome::Told(WARNING));
        assert_eq!(
            lines(OWN, &[good, failed]),
            [
                "BARMANFS CRITICAL - 1 server out of 2 have issues * main FAILED: archive_mode, WARNING: archive_command",
                "main.archive_command: WARNING (a \u{a6} b)",
                "main.archive_mode: FAILED (a \u{a6} b)",
            ]
        );
    }

    #[test]
    fn a_problem_of_the_repository_is_said_once() {
        let space = Finding {
            name: "free space",
            state: State::Failed,
            message: Some("only 1 MiB left".to_owned()),
            hint: None,
        };
        let found = Checked {
            findings: vec![space],
            figures: Figures::default(),
        };
        let repository = CheckedRepository::new("/var/lib/barmanfs", found);
        let of = |servers: &[CheckedServer]| super::lines(OWN, Some(&repository), servers);
        let detail = "(repository).free space: FAILED (only 1 MiB left)";
        assert_eq!(
            of(&[checked(State::Ok), checked(State::Ok)]),
            [
                "BARMANFS CRITICAL - the repository has issues * (repository) FAILED: free space",
                detail
            ]
        );
        assert_eq!(
            of(&[checked(State::Warning)]),
            [
                "BARMANFS CRITICAL - server main has issues * (repository) FAILED: free space * main WARNING: archive_command",
                detail,
                "main.archive_command: WARNING (a \u{a6} b)",
            ]
        );
    }

    #[test]
    fn an_inactive_server_is_named_and_does_not_count() {
        let inactive = with_figures("active = off", State::Failed, Figures::default());
        assert_eq!(CheckedServer::worst(std::slice::from_ref(&inactive)), State::Ok);
        assert_eq!(
            lines(OWN, &[checked(State::Ok), inactive]),
            ["BARMANFS OK - ready to serve: main * IGNORING: main"]
        );
    }

    #[test]
    fn performance_data_has_sizes_and_ages() {
        let now = moment::now();
        let ago =
            |seconds: i64| TimestampMicros::from_unix_micros(now.unix_micros() - seconds * 1_000_000 - 1);
        let figures = Figures {
            newest: Some(NewestBackup {
                began: ago(900),
                ended: ago(600),
                logical_bytes: 55_872_146,
                sent_bytes: 1,
                new_stored_bytes: 1,
            }),
            wal_bytes: Some(16_610),
            last_wal: Some(ago(30)),
            ..Figures::default()
        };
        let lines = lines(OWN, &[with_figures("", State::Ok, figures)]);
        let [line] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        let (status, data) = line.split_once('|').unwrap();
        assert_eq!(status, "BARMANFS OK - ready to serve: main");
        // The test may take a second.
        assert!(
            data.starts_with("main=55872146B main_wals=16610B main_age=60")
                && data.contains("s main_wal_age=3"),
            "{data}"
        );
    }
}
